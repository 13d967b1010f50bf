// A review as files. Nothing here touches the page.

import { toCsv } from "./csv.js";
import { reviewDocument } from "./review.js";

/** Return corrections.csv: a row for each decision, in the order of the page. */
export function correctionsCsv(page, review) {
  const columns = ["id", "path", "given_label", "new_label", "decision", "reviewer", "time"];
  return toCsv(
    columns,
    reviewDocument(page, review).decisions.map((row) => columns.map((name) => row[name])),
  );
}

/** Return the label of a sample after the review, or null where the sample is to be left out. */
export function labelAfter(page, review, item) {
  const decision = review.decisions.get(item);
  if (decision?.decision === "drop") return null;
  return page.classes[decision?.decision === "accept" ? decision.label : page.items.given[item]];
}

function shown(page, review) {
  const all = Array.from({ length: page.count }, (_, item) => item);
  return all.map((item) => [item, labelAfter(page, review, item)]).filter(([, label]) => label !== null);
}

/** Return labels_corrected.csv: id and label of the samples on this page (not of the whole data set), dropped ones left out. */
export function labelsCsv(page, review) {
  return toCsv(
    ["id", "label"],
    shown(page, review).map(([item, label]) => [page.items.id[item], label]),
  );
}

/** Return metadata.csv as the Hub's imagefolder reads it: file_name, which is the id, and label of the samples on this page that have a file. */
export function metadataCsv(page, review) {
  const rows = shown(page, review).filter(([item]) => page.items.path[item]);
  return toCsv(
    ["file_name", "label"],
    rows.map(([item, label]) => [page.items.id[item], label]), // names below the folder of the data set; paths are those of one machine
  );
}

/** Return review.json: what another browser or the command line reads back. */
export function reviewJson(page, review) {
  return `${JSON.stringify(reviewDocument(page, review), null, 1)}\n`;
}
