// The tools above the grid: filters as chips and choices, order, size, progress, actions on many.

import { className, counted, percent, whole } from "./data.js";
import { button, byId, debounced, h, name } from "./dom.js";
import { activeFilters, inScope, noFilters, SORTS, statusOf } from "./filters.js";
import { drawSample, samplePrecision } from "./interval.js";
import { progress } from "./review.js";
import { clearFilter, decideItems, isFiltered, refreshList, selection, selectOnly, setFilters, testsFor } from "./state.js";

const STATUS_WORDS = { open: "not reviewed", accept: "accepted", relabel: "relabelled", keep: "kept", drop: "dropped", unsure: "unsure" };

function wordsOf(app, filter) {
  const { page, filters } = app;
  const value = filters[filter];
  const short = (number) => Number(number.toPrecision(4));
  const range = ([low, high]) => (high === Infinity ? `≥ ${short(low)}` : low === -Infinity ? `≤ ${short(high)}` : `${short(low)} to ${short(high)}`);
  if (["given", "suggested", "predicted"].includes(filter)) return [`${filter}: `, name(className(page, value))];
  const words = {
    action: () => `split: ${value}`,
    status: () => STATUS_WORDS[value],
    truth: () => `truly ${value}`,
    reason: () => `reason: ${value}`,
    scope: () => "all images of this page",
    text: () => `“${value}”`,
    score: () => `score ${range(value)}`,
    set: () => (value === "fixed" ? "wrong → right" : "right → wrong"),
    sample: () => `random ${value.count}, seed ${value.seed}`,
    lasso: () => `lasso on the map (${value.layout})`,
  };
  return [words[filter]()];
}

function drawChips(app) {
  const scope = inScope(app.page, app.filters);
  const tests = testsFor(app, app.filters);
  const chips = activeFilters(app.filters).map((filter) => {
    const count = filter === "scope" || !tests[filter] ? scope.length : scope.filter(tests[filter]).length;
    const parts = [h("span", {}, wordsOf(app, filter)), h("span", { class: "figure" }, whole(count)), h("span", { "aria-hidden": "true" }, "×")];
    return h(
      "li",
      {},
      button(parts, () => clearFilter(app, filter), { class: "chip", title: "Remove this filter" }),
    );
  });
  if (chips.length > 1)
    chips.push(
      h(
        "li",
        {},
        button("Clear all", () => clearFilter(app), { class: "quiet" }),
      ),
    );
  byId("chips").replaceChildren(...chips);
  byId("shown-count").textContent = `${counted(app.list.length, "image")} shown`;
}

/** Return how many samples each choice of a facet would leave, given all the other filters: a Map from value to count. */
export function facetCounts(app, facet, valuesOf) {
  const others = { ...app.filters, [facet]: noFilters()[facet] };
  const tests = Object.values(testsFor(app, others));
  const counts = new Map();
  for (const item of inScope(app.page, others)) {
    if (!tests.every((test) => test(item))) continue;
    for (const value of valuesOf(item)) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  return counts;
}

function fillFacet(app, facet, valuesOf, words) {
  const select = byId(`facet-${facet}`);
  if (!select) return;
  const counts = facetCounts(app, facet, valuesOf);
  const chosen = app.filters[facet];
  if (chosen !== null && !counts.has(chosen)) counts.set(chosen, 0);
  const order = [...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1));
  const option = ([value, n]) => Object.assign(h("option", { value: String(value) }, `${words(value)} (${n})`), { selected: value === chosen });
  select.replaceChildren(h("option", { value: "" }, "any"), ...order.map(option));
  select.classList.toggle("set", chosen !== null);
}

function fillFacets(app) {
  const { items } = app.page;
  const label = (value) => className(app.page, value);
  fillFacet(app, "given", (item) => [items.given[item]], label);
  fillFacet(app, "suggested", (item) => [items.suggested[item]], label);
  fillFacet(
    app,
    "action",
    (item) => [items.action[item]].filter(Boolean), // an evaluation image is on no side of the split
    (value) => value,
  );
  fillFacet(
    app,
    "status",
    (item) => [statusOf(app.decisionOf(item), items.suggested[item])],
    (value) => STATUS_WORDS[value],
  );
  fillFacet(
    app,
    "reason",
    (item) => items.reasons[item],
    (value) => value,
  );
  if (items.true)
    fillFacet(
      app,
      "truth",
      (item) => (items.true[item] === null ? [] : [items.true[item] === items.given[item] ? "right" : "wrong"]),
      (value) => `truly ${value}`,
    );
}

function drawProgress(app) {
  const scope = Array.from({ length: app.page.items.suspects }, (_, item) => item);
  const [all, view] = [progress(app.review, scope), progress(app.review, app.list)];
  const meter = byId("progress");
  Object.assign(meter, { max: Math.max(1, all.total), value: all.decided });
  const parts = [`${whole(all.decided)} of ${counted(all.total, "suspect")} reviewed`];
  if (all.decided) parts.push(`${counted(all.accept, "new label")}, ${all.keep} kept, ${all.drop} dropped, ${all.unsure} unsure`);
  if (isFiltered(app)) parts.push(`in this view ${whole(view.decided)} of ${whole(view.total)}`);
  byId("progress-words").textContent = parts.join(" · ");
  meter.setAttribute("aria-valuetext", parts[0]);
}

function drawSelection(app) {
  const n = app.selected.size;
  byId("bulk").hidden = n === 0;
  byId("bulk-count").textContent = `${whole(n)} selected`;
  byId("select-all").textContent = `Select all ${whole(app.list.length)}${isFiltered(app) ? " in this view" : ""}`;
  byId("select-all").disabled = !app.list.length || n === app.list.length;
}

function drawSample50(app) {
  const { sample } = app.filters;
  byId("sample-result").hidden = !sample;
  byId("sample-start").setAttribute("aria-pressed", String(Boolean(sample)));
  if (!sample) return;
  const { suspects, suspects_total: total } = app.page.items;
  const drawn = drawSample(suspects, sample.count, sample.seed);
  const { judged, wrong, skipped, interval } = samplePrecision(drawn, app.decisionOf);
  const left = drawn.length - judged - skipped;
  const of = total > suspects ? ` Drawn from the ${whole(suspects)} worst of ${whole(total)} suspects, so it speaks for these alone.` : "";
  const verdict = interval
    ? `Of the ${judged} you judged, ${wrong} had a wrong label: precision ${percent(interval.share)}, ` +
      `95 % interval ${percent(interval.low)} to ${percent(interval.high)} (Wilson).`
    : "Judge these images (a: the label is wrong, x: it is right) to estimate how many suspects really are wrong.";
  byId("sample-result").textContent = `${verdict} ${left ? `${left} left.` : "Done."}${skipped ? ` ${skipped} dropped or unsure, not counted.` : ""}${of}`;
}

/** Set the tools up; `pick(items)` asks for a class for samples. */
export function startControls(app, pick) {
  for (const facet of ["given", "suggested", "action", "status", "reason", "truth"]) {
    byId(`facet-${facet}`)?.addEventListener("change", ({ target }) => {
      const value = target.value === "" ? null : ["given", "suggested"].includes(facet) ? Number(target.value) : target.value;
      setFilters(app, { [facet]: value });
    });
  }
  const typed = debounced((text) => setFilters(app, { text }), 180);
  byId("search").addEventListener("input", ({ target }) => typed(target.value));
  byId("scope").addEventListener("change", ({ target }) => setFilters(app, { scope: target.checked ? "all" : "suspects" }));
  byId("sort").replaceChildren(...Object.entries(SORTS).map(([value, words]) => h("option", { value }, words)));
  byId("sort").addEventListener("change", ({ target }) => refreshList(Object.assign(app, { sort: target.value })));
  const size = byId("tile-size");
  size.value = app.prefs.get("size") ?? 96;
  size.addEventListener("input", () => {
    app.prefs.set("size", Number(size.value));
    app.emit("size");
  });
  byId("hide").addEventListener("change", ({ target }) => refreshList(Object.assign(app, { hide: target.checked })));
  byId("advance").checked = app.prefs.get("advance") !== false;
  byId("advance").addEventListener("change", ({ target }) => app.prefs.set("advance", target.checked));
  byId("select-all").addEventListener("click", () => selectOnly(app, app.list));
  byId("bulk-none").addEventListener("click", () => selectOnly(app, []));
  const choices = {
    accept: (item) => ({ decision: "accept", label: app.page.items.suggested[item] }),
    keep: () => ({ decision: "keep" }),
    drop: () => ({ decision: "drop" }),
    unsure: () => ({ decision: "unsure" }),
    clear: () => null,
  };
  for (const [choice, make] of Object.entries(choices)) byId(`bulk-${choice}`)?.addEventListener("click", () => decideItems(app, selection(app), make));
  byId("bulk-pick")?.addEventListener("click", () => pick(selection(app)));
  byId("sample-start").addEventListener("click", () => {
    const seed = Math.max(0, Math.floor(Number(byId("sample-seed").value) || 0));
    setFilters(app, app.filters.sample ? { sample: null } : { ...noFilters(), sample: { count: 50, seed } });
  });
  byId("sample-seed").addEventListener(
    "change",
    ({ target }) => app.filters.sample && setFilters(app, { sample: { count: 50, seed: Math.max(0, Math.floor(Number(target.value) || 0)) } }),
  );

  const facetsSoon = debounced(() => fillFacets(app), 60);
  app.on("list", () => {
    Object.assign(byId("sort"), { value: app.sort });
    Object.assign(byId("hide"), { checked: app.hide });
    Object.assign(byId("scope"), { checked: app.filters.scope === "all" });
    if (document.activeElement !== byId("search")) byId("search").value = app.filters.text;
    if (app.filters.sample) byId("sample-seed").value = app.filters.sample.seed;
    drawChips(app);
  });
  app.on("list review adopted", () => {
    drawProgress(app);
    drawSample50(app);
    facetsSoon();
  });
  app.on("list selection", () => drawSelection(app));
}
