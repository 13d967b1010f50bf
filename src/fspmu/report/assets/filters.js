// Which samples are shown, in which order, and how an address says so. Nothing here touches the page.

export const STATUSES = ["open", "accept", "relabel", "keep", "drop", "unsure"];
export const SORTS = {
  noise: "most likely wrong",
  score: "score",
  margin: "disagreement",
  near: "neighbours disagree",
  given: "given class",
  pair: "given → suggested",
  id: "id",
};

/** Return filters that let everything through; scope is "suspects" or "all". */
export function noFilters() {
  const nothing = { given: null, suggested: null, predicted: null, action: null, status: null, truth: null, reason: null };
  return { ...nothing, scope: "suspects", text: "", score: null, set: null, sample: null, lasso: null };
}

/** Return the names of the filters that hold something back. */
export function activeFilters(filters) {
  const none = noFilters();
  return Object.keys(none).filter((name) => JSON.stringify(filters[name]) !== JSON.stringify(none[name]));
}

/** Return open, accept (the suggestion), relabel (another class), keep, drop or unsure. */
export function statusOf(decision, suggested) {
  if (!decision) return "open";
  return decision.decision === "accept" && decision.label !== suggested ? "relabel" : decision.decision;
}

/** Return the tests of a sample by filter name, for the filters that are set; `given` holds what cannot be read from the items. */
export function filterTests(page, filters, { decisionOf, drawn = null, inLasso = null }) {
  const { items } = page;
  const text = filters.text.trim().toLowerCase();
  const named = (item) => [items.id[item], items.path[item], page.classes[items.given[item]], page.classes[items.suggested[item]]];
  const tests = {
    given: (item) => items.given[item] === filters.given,
    suggested: (item) => items.suggested[item] === filters.suggested,
    predicted: (item) => items.predicted[item] === filters.predicted,
    action: (item) => items.action[item] === filters.action,
    status: (item) => statusOf(decisionOf(item), items.suggested[item]) === filters.status,
    truth: (item) => items.true && items.true[item] !== null && (items.true[item] !== items.given[item]) === (filters.truth === "wrong"),
    reason: (item) => items.reasons[item].includes(filters.reason),
    text: (item) => named(item).some((part) => part && part.toLowerCase().includes(text)),
    score: (item) => items.score[item] !== null && items.score[item] >= filters.score[0] && items.score[item] <= filters.score[1],
    set: (item) => (filters.set === "fixed" ? page.fixed : page.broken).has(item),
    sample: (item) => (drawn ? drawn.has(item) : true),
    lasso: (item) => (inLasso ? inLasso(item) : true),
  };
  return Object.fromEntries(
    activeFilters(filters)
      .filter((name) => tests[name] && (name !== "text" || text))
      .map((name) => [name, tests[name]]),
  );
}

/** Return the places of the samples in scope: the suspects alone, or everything on the page. A set of flips lies outside the suspects. */
export function inScope(page, filters) {
  const count = filters.scope === "all" || filters.set ? page.count : page.items.suspects;
  return Array.from({ length: count }, (_, item) => item);
}

/** Return a comparison of two samples for one of SORTS; ties stay in the order of the page. */
export function sortKey(page, name) {
  const { items } = page;
  const pairs = new Map();
  const pairOf = (item) => items.given[item] * page.classes.length + items.suggested[item];
  if (name === "pair") for (let item = 0; item < page.count; item += 1) pairs.set(pairOf(item), (pairs.get(pairOf(item)) ?? 0) + 1);
  const chanceOf = (item, label) => items.before[item]?.find(([other]) => other === label)?.[1] ?? 0;
  const down = (key) => (a, b) => (key(b) ?? -Infinity) - (key(a) ?? -Infinity) || a - b;
  const orders = {
    noise: down((item) => items.noise[item]),
    score: down((item) => items.score[item]),
    margin: down((item) => (items.confidence[item] ?? 0) - chanceOf(item, items.given[item])),
    near: down((item) => (items.near_same[item] === null ? null : -items.near_same[item])),
    given: (a, b) => items.given[a] - items.given[b] || items.suggested[a] - items.suggested[b] || a - b,
    pair: (a, b) => pairs.get(pairOf(b)) - pairs.get(pairOf(a)) || pairOf(a) - pairOf(b) || a - b,
    id: (a, b) => (items.id[a] < items.id[b] ? -1 : items.id[a] > items.id[b] ? 1 : a - b),
  };
  return orders[name] ?? orders.noise;
}

const CODES = { given: "g", suggested: "s", predicted: "p", action: "a", status: "d", truth: "t", reason: "w", text: "q", set: "set" };
const NUMBERS = new Set(["given", "suggested", "predicted"]);

/** Return the part of an address after # that says which view this is; an untouched view gives "". */
export function viewToHash({ filters, sort = "noise", hide = false, item = null }) {
  const parts = new URLSearchParams();
  for (const [name, code] of Object.entries(CODES)) if (filters[name] !== null && filters[name] !== "") parts.set(code, filters[name]);
  if (filters.scope === "all") parts.set("all", "1");
  if (filters.score) parts.set("r", filters.score.map((value) => (Number.isFinite(value) ? value : "")).join("~"));
  if (filters.sample) parts.set("n", `${filters.sample.count}.${filters.sample.seed}`);
  if (filters.lasso) parts.set("l", `${filters.lasso.layout}:${filters.lasso.polygon.map((corner) => corner.join(".")).join("_")}`);
  if (sort !== "noise") parts.set("sort", sort);
  if (hide) parts.set("hide", "1");
  if (item !== null) parts.set("item", item);
  return parts.toString();
}

function lassoOf(text) {
  const found = /^(before|after):((?:\d{1,6}\.\d{1,6}_?){3,64})$/.exec(text ?? "");
  return found
    ? {
        layout: found[1],
        polygon: found[2]
          .split("_")
          .filter(Boolean)
          .map((corner) => corner.split(".").map(Number)),
      }
    : null;
}

/** Return {filters, sort, hide, item} as an address says it; what it says wrongly is left out. */
export function hashToView(hash, classes) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const filters = noFilters();
  for (const [name, code] of Object.entries(CODES)) {
    const value = parts.get(code);
    if (value === null || (NUMBERS.has(name) && !/^\d+$/.test(value))) continue;
    if (!NUMBERS.has(name)) filters[name] = value;
    else if (Number(value) < classes) filters[name] = Number(value);
  }
  const allowed = { action: ["forget", "retain", "review"], status: STATUSES, truth: ["wrong", "right"], set: ["fixed", "broken"] };
  for (const [name, values] of Object.entries(allowed)) if (!values.includes(filters[name])) filters[name] = null;
  filters.scope = parts.get("all") === "1" ? "all" : "suspects";
  const range = (parts.get("r") ?? "").split("~");
  if (range.length === 2 && range.every((value) => value === "" || Number.isFinite(Number(value)))) {
    filters.score = [range[0] === "" ? -Infinity : Number(range[0]), range[1] === "" ? Infinity : Number(range[1])];
  }
  const sample = /^(\d{1,4})\.(\d{1,9})$/.exec(parts.get("n") ?? "");
  if (sample) filters.sample = { count: Number(sample[1]), seed: Number(sample[2]) };
  filters.lasso = lassoOf(parts.get("l"));
  const sort = parts.get("sort");
  return { filters, sort: sort && Object.hasOwn(SORTS, sort) ? sort : "noise", hide: parts.get("hide") === "1", item: parts.get("item") };
}
