// Where a review is kept: in the browser, and on the server where one serves the page.

import { debounced } from "./dom.js";
import { decide, latest, newReview, readDocument, reviewDocument } from "./review.js";

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
  if (!text) return { changes: [], exported: true, cleared: [] };
  try {
    const { document: kept, exported, cleared } = JSON.parse(text);
    return { changes: readDocument(app.page, kept).changes, exported: exported !== false, cleared: Array.isArray(cleared) ? cleared : [] };
  } catch {
    return { changes: [], exported: true, cleared: [] };
  }
}

/** Keep the review of the page: load what was kept, then save each change; tells `report(place, state)` how it went. */
export function keepReview(app, { storage, server, report }) {
  const slot = `fspmu.review.${app.page.key}`;
  const kept = keptChanges(app, storage?.getItem(slot) ?? null);
  const given = app.page.review ? readDocument(app.page, { schema: 1, ...app.page.review }).changes : [];
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
  const known = new Map(given);
  const unsent = [...app.review.decisions].some(([item, made]) => known.get(item) !== made);
  if (server) saveTo(app, server, report, unsent);
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

/** Send each change to the server, the whole review at once, so that a lost message costs nothing; try again until it is there. */
function saveTo(app, server, report, unsent) {
  let [sent, busy, failures] = [unsent ? -1 : 0, false, 0];
  const send = async () => {
    if (busy || sent === app.review.revision) return;
    busy = true;
    const revision = app.review.revision;
    report("server", "saving");
    try {
      const body = JSON.stringify(reviewDocument(app.page, app.review));
      const answer = await fetch(server.save, { method: "POST", headers: { "Content-Type": "application/json", "X-Fspmu-Token": server.token }, body });
      if (!answer.ok) throw new Error(`${answer.status}`);
      [sent, failures] = [revision, 0];
      report("server", "saved");
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
