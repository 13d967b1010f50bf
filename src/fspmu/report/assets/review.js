// The decisions of a person, with undo and redo. Nothing here touches the page.

export const DECISIONS = { accept: "accept", keep: "keep", drop: "drop", unsure: "unsure" };
const DEPTH = 500;

/** Return an empty review: decisions by place of the sample, and what can be undone and redone. */
export function newReview() {
  return { decisions: new Map(), undone: [], done: [], revision: 0 };
}

/** Return a decision in its one form: accepting the label that is given already is keeping it. */
export function normalDecision(decision, given) {
  const label = decision.decision === "accept" ? decision.label : null;
  return decision.decision === "accept" && label === given ? { ...decision, decision: "keep", label: null } : { ...decision, label };
}

function same(a, b) {
  return (a?.decision ?? null) === (b?.decision ?? null) && (a?.label ?? null) === (b?.label ?? null);
}

function put(review, item, decision) {
  if (decision) review.decisions.set(item, decision);
  else review.decisions.delete(item);
}

/** Carry out changes [[item, decision or null], ...] as one step and return the step, or null where nothing changes. */
export function decide(review, changes) {
  const step = changes.map(([item, after]) => [item, review.decisions.get(item) ?? null, after]).filter(([, before, after]) => !same(before, after));
  if (!step.length) return null;
  for (const [item, , after] of step) put(review, item, after);
  review.done.push(step);
  if (review.done.length > DEPTH) review.done.shift();
  review.undone = [];
  review.revision += 1;
  return step;
}

/** Take the last step back and return it, or null. */
export function undo(review) {
  const step = review.done.pop();
  if (!step) return null;
  for (const [item, before] of step) put(review, item, before);
  review.undone.push(step);
  review.revision += 1;
  return step;
}

/** Do the step that was taken back last again and return it, or null. */
export function redo(review) {
  const step = review.undone.pop();
  if (!step) return null;
  for (const [item, , after] of step) put(review, item, after);
  review.done.push(step);
  review.revision += 1;
  return step;
}

/** Return how many of these samples have each decision: {accept, keep, drop, unsure, decided, total}. */
export function progress(review, items) {
  const tally = { accept: 0, keep: 0, drop: 0, unsure: 0, decided: 0, total: items.length };
  for (const item of items) {
    const decision = review.decisions.get(item);
    if (!decision) continue;
    tally[decision.decision] += 1;
    tally.decided += 1;
  }
  return tally;
}

/** Return the review as it is kept and exported: names, not places, so that it fits a page made again. */
export function reviewDocument(page, review) {
  const rows = [...review.decisions]
    .sort(([a], [b]) => a - b)
    .map(([item, { decision, label, reviewer, time }]) => {
      const name = decision === "accept" ? page.classes[label] : decision === "keep" ? page.classes[page.items.given[item]] : null;
      const { id, path, given } = page.items;
      return { id: id[item], path: path[item], given_label: page.classes[given[item]], new_label: name, decision, reviewer: reviewer ?? "", time: time ?? "" };
    });
  return { schema: 1, key: page.key, decisions: rows };
}

/** Return {changes, unknown}: the decisions of a review document as changes of this page, and how many rows fit no sample, class or given label of it. */
export function readDocument(page, document) {
  if (!document || document.schema !== 1 || !Array.isArray(document.decisions)) throw new Error("This is not a review of this program: it has no schema 1.");
  const changes = [];
  let unknown = 0;
  const classOf = new Map(page.classes.map((name, label) => [name, label]));
  for (const row of document.decisions) {
    const item = page.placeOf.get(row?.id);
    const label = row?.decision === "accept" ? classOf.get(row.new_label) : null;
    const changed = row?.given_label !== page.classes[page.items.given[item]]; // it was made for another label
    if (item === undefined || changed || !Object.hasOwn(DECISIONS, row.decision) || label === undefined) {
      unknown += 1;
      continue;
    }
    const [reviewer, time] = [String(row.reviewer ?? ""), String(row.time ?? "")];
    changes.push([item, normalDecision({ decision: row.decision, label, reviewer, time }, page.items.given[item])]);
  }
  return { changes, unknown };
}

/** Return {fresh, agreeing, conflicts} of changes from elsewhere: what is new here, how many say the same, and [item, mine, theirs]. */
export function mergeDecisions(review, changes) {
  const merged = { fresh: [], agreeing: 0, conflicts: [] };
  for (const [item, theirs] of changes) {
    const mine = review.decisions.get(item);
    if (!mine) merged.fresh.push([item, theirs]);
    else if (same(mine, theirs)) merged.agreeing += 1;
    else merged.conflicts.push([item, mine, theirs]);
  }
  return merged;
}

/**
 * Take in what another page saved, by what both began with; all are Maps of decisions. Return how many that changed here.
 *
 * Where both changed the same sample the later word counts. Nothing says when a decision was taken back, so there a decision counts more:
 * taking one back may be lost, a decision never is.
 */
export function takeIn(review, base, theirs) {
  let count = 0;
  for (const item of new Set([...base.keys(), ...theirs.keys()])) {
    const [was, mine, other] = [base, review.decisions, theirs].map((decisions) => decisions.get(item) ?? null);
    if (same(other, was) || same(other, mine)) continue;
    if (mine && !same(mine, was) && (!other || (mine.time || "") > (other.time || ""))) continue;
    put(review, item, other);
    count += 1;
  }
  if (count) review.revision += 1;
  return count;
}

/** Return changes of which, sample by sample, the latest of several sources wins: what this browser kept and what the server knows. */
export function latest(...sources) {
  const kept = new Map();
  for (const changes of sources) {
    for (const [item, decision] of changes) {
      const other = kept.get(item);
      if (!other || (decision.time || "") >= (other.time || "")) kept.set(item, decision);
    }
  }
  return [...kept];
}
