// Exports as downloads, and reviews made elsewhere taken in: what contradicts is listed and decided by the person.

import { className, counted } from "./data.js";
import { announce, button, byId, download, h, name } from "./dom.js";
import { correctionsCsv, labelsCsv, metadataCsv, reviewJson } from "./exports.js";
import { decide, mergeDecisions, readDocument } from "./review.js";
import { refreshList } from "./state.js";
import { newTile } from "./tiles.js";

function exported(app) {
  app.exported = app.review.revision;
  app.emit("exported");
}

/** Hand out one of the exports by its name. */
export function exportAs(app, kind) {
  const { page, review } = app;
  const files = {
    corrections: ["corrections.csv", () => correctionsCsv(page, review), "text/csv"],
    labels: ["labels_corrected.csv", () => labelsCsv(page, review), "text/csv"],
    metadata: ["metadata.csv", () => metadataCsv(page, review), "text/csv"],
    review: ["review.json", () => reviewJson(page, review), "application/json"],
  };
  const [fileName, make, type] = files[kind];
  download(fileName, make(), type);
  if (kind === "corrections" || kind === "review") exported(app);
  announce(`${fileName} downloaded`);
}

function words(app, item, decision) {
  const what = { keep: "keep", drop: "drop", unsure: "unsure" }[decision.decision];
  const who = decision.reviewer ? ` (${decision.reviewer})` : "";
  return what ? h("span", {}, what, who) : h("span", {}, "label ", name(className(app.page, decision.label)), who);
}

function askAboutConflicts(app, merged, finish) {
  const dialog = byId("conflicts");
  const takeTheirs = new Set();
  const line = ([item, mine, theirs], at) => {
    const choice = (value, decision) =>
      h(
        "label",
        {},
        Object.assign(
          h("input", { type: "radio", name: `conflict-${at}`, value, on: { change: () => (value === "theirs" ? takeTheirs.add(at) : takeTheirs.delete(at)) } }),
          { checked: value === "mine" },
        ),
        " ",
        words(app, item, decision),
      );
    return h(
      "tr",
      {},
      h("td", {}, newTile(app.page, item, 48)),
      h("th", { scope: "row" }, name(app.page.items.id[item])),
      h("td", {}, choice("mine", mine)),
      h("td", {}, choice("theirs", theirs)),
    );
  };
  byId("conflicts-count").textContent =
    `${counted(merged.conflicts.length, "image")} decided differently here and there. New: ${merged.fresh.length}, same: ${merged.agreeing}.`;
  byId("conflicts-body").replaceChildren(...merged.conflicts.map(line));
  const all = (value) =>
    byId("conflicts-body")
      .querySelectorAll(`input[value="${value}"]`)
      .forEach((input) => input.click());
  const close = (take) => {
    dialog.close();
    if (take) finish(merged.conflicts.filter((_, at) => takeTheirs.has(at)).map(([item, , theirs]) => [item, theirs]));
  };
  byId("conflicts-actions").replaceChildren(
    button("All mine", () => all("mine"), { class: "quiet" }),
    button("All theirs", () => all("theirs"), { class: "quiet" }),
    button("Cancel", () => close(false)),
    button("Merge", () => close(true), { class: "accept" }),
  );
  dialog.showModal();
}

/** Merge a review document given as text into this review; `sayIt` shows what came of it. */
export function mergeText(app, text, sayIt) {
  let read;
  let document;
  try {
    document = JSON.parse(text);
    read = readDocument(app.page, document);
  } catch (error) {
    return sayIt(error instanceof SyntaxError ? "This file is not JSON; choose a review.json." : error.message);
  }
  const merged = mergeDecisions(app.review, read.changes);
  const finish = (taken) => {
    decide(app.review, [...merged.fresh, ...taken]);
    refreshList(app);
    app.emit("review");
    const notes = [`${counted(merged.fresh.length + taken.length, "decision")} taken in, ${merged.agreeing} the same`];
    if (read.unknown) notes.push(`left out ${counted(read.unknown, "row")} that fit no image, class or given label of this page`);
    if (document.key !== app.page.key) notes.push("the review was made on another run; images were matched by id");
    sayIt(`${notes.join("; ")}.`);
  };
  if (merged.conflicts.length) return askAboutConflicts(app, merged, finish);
  return finish([]);
}

/** Set exports and imports up. */
export function startExchange(app) {
  document.querySelectorAll("[data-export]").forEach((element) => element.addEventListener("click", () => exportAs(app, element.dataset.export)));
  const field = byId("import-file");
  const sayIt = (text) => {
    byId("import-result").textContent = text;
    announce(text);
  };
  field?.addEventListener("change", async () => {
    for (const file of field.files) mergeText(app, await file.text(), sayIt);
    field.value = "";
  });
  const reviewer = byId("reviewer");
  reviewer.value = app.prefs.get("reviewer") ?? "";
  reviewer.addEventListener("input", () => app.prefs.set("reviewer", reviewer.value.trim()));
}
