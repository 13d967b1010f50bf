// Where a review is kept: in the browser, and on the server where one serves the page.

import { counted } from "./data.js";
import { announce, debounced } from "./dom.js";
import { decide, latest, newReview, readDocument, reviewDocument, takeIn } from "./review.js";

/** Return {get, set} of preferences that last where the browser lets them, and at least as long as the page. */
export function newPrefs(storage) {
  let kept = {};
  try {
    kept = JSON.parse(storage?.getItem("fspmu.prefs") ?? "{}") ?? {};
  } catch {
    kept = {};
  }
  const set = (name, value) => {
    kept[name] = value;
    try {
      storage?.setItem("fspmu.prefs", JSON.stringify(kept));
    } catch {
      // Without storage a preference lasts as long as the page.
    }
  };
  return { get: (name) => (Object.hasOwn(kept, name) ? kept[name] : undefined), set };
}

/** Return the browser's storage, or null in private windows and where it is switched off. */
export function browserStorage() {
  try {
    const storage = window.localStorage;
    storage.setItem("fspmu.probe", "1");
    storage.removeItem("fspmu.probe");
    return storage;
  } catch {
    return null;
  }
}

function keptChanges(app, text) {
  const nothing = { changes: [], unknown: 0, exported: true, cleared: [] };
  if (!text) return nothing;
  try {
    const { document: kept, exported, cleared } = JSON.parse(text);
    return { ...readDocument(app.page, kept), exported: exported !== false, cleared: Array.isArray(cleared) ? cleared : [] };
  } catch {
    return nothing;
  }
}

/** Keep the review of the page: load what was kept, then save each change; tells `report(place, state)` how it went. */
export function keepReview(app, { storage, server, report }) {
  const slot = `fspmu.review.${app.page.key}`;
  const kept = keptChanges(app, storage?.getItem(slot) ?? null);
  const { changes: given, unknown } = readDocument(app.page, app.page.review ?? { schema: 1, decisions: [] });
  // What the page came with and the person took back must not return; a server knows of that itself.
  const cleared = new Set(server ? [] : kept.cleared);
  decide(
    app.review,
    latest(
      given.filter(([item]) => !cleared.has(app.page.items.id[item])),
      kept.changes,
    ),
  );
  Object.assign(app.review, { done: [], undone: [], revision: 0 });
  app.exported = kept.exported ? 0 : -1;

  const keep = () => {
    if (!storage) return report("browser", "off");
    try {
      const gone = given.filter(([item]) => !app.review.decisions.has(item)).map(([item]) => app.page.items.id[item]);
      storage.setItem(slot, JSON.stringify({ document: reviewDocument(app.page, app.review), exported: app.exported === app.review.revision, cleared: gone }));
      return report("browser", "kept");
    } catch {
      return report("browser", "full");
    }
  };
  const keepSoon = debounced(keep, 150);
  app.on("review exported", keepSoon);
  window.addEventListener("pagehide", () => storage && app.review.revision > 0 && keep());
  window.addEventListener("storage", (event) => event.key === slot && event.newValue && adopt(app, event.newValue));
  report("browser", storage ? "kept" : "off");
  if (kept.unknown || unknown) report("left out");
  const known = new Map(given);
  const unsent = [...app.review.decisions].some(([item, made]) => known.get(item) !== made);
  if (server) saveTo(app, server, report, given, unsent);
  return keep;
}

/** Take over what another tab of the same page decided. */
function adopt(app, text) {
  const { changes, exported } = keptChanges(app, text);
  const revision = app.review.revision + 1;
  app.review = Object.assign(newReview(), { decisions: new Map(changes), revision });
  app.exported = exported ? revision : -1;
  app.emit("adopted");
}

/**
 * Send each change to the server, the whole review at once, so that a lost message costs nothing; try again until it is there.
 *
 * The server takes a review only from a page that knows what is saved. What another page saved meanwhile comes with its answer, is taken in
 * and sent along. What it refuses it would refuse again: that waits for the next change.
 */
export function saveTo(app, server, report, given, unsent) {
  let [sent, refused, busy, failures] = [unsent ? -1 : 0, -1, false, 0];
  let [known, base] = [server.revision, new Map(given)];
  const merge = (theirs) => {
    const count = takeIn(app.review, base, theirs);
    base = theirs;
    if (!count) return;
    app.emit("adopted");
    app.emit("review");
    announce(`${counted(count, "decision")} taken in from another page`);
  };
  const send = async () => {
    const { revision, decisions } = app.review;
    if (busy || revision === sent || revision === refused) return;
    busy = true;
    report("server", "saving");
    try {
      const sending = new Map(decisions);
      const body = JSON.stringify(reviewDocument(app.page, app.review));
      const headers = { "Content-Type": "application/json", "X-Fspmu-Token": server.token, "X-Fspmu-Revision": known };
      const answer = await fetch(server.save, { method: "POST", headers, body });
      if (answer.ok) {
        known = (await answer.json()).revision;
        [base, sent] = [sending, revision];
        report("server", "saved");
      } else if (answer.status === 409) {
        const found = await answer.json();
        known = found.revision;
        merge(new Map(readDocument(app.page, found.review).changes));
      } else {
        const why = (await answer.text()).trim() || `status ${answer.status}`;
        if (answer.status >= 500) throw new Error(why);
        refused = revision;
        report("server", "refused", why);
      }
      failures = 0;
    } catch (error) {
      failures += 1;
      report("server", "failed", error.message);
      setTimeout(send, Math.min(30_000, 1000 * 2 ** failures));
    } finally {
      busy = false;
    }
    if (failures === 0) send();
  };
  const soon = debounced(send, 300);
  app.on("review adopted", soon);
  window.addEventListener("beforeunload", (event) => sent !== app.review.revision && event.preventDefault());
  if (unsent) send();
  else report("server", "saved");
}
