// Given × suggested labels: a table whose cells are shaded by the logarithm of their counts and filter when chosen.

import { className, counted, whole } from "./data.js";
import { button, byId, h, name } from "./dom.js";
import { setFilters } from "./state.js";

const MOST = 30;
/** The depth in percent above which the other ink is easier to read; see --ink-low and --ink-deep. */
export const DEEP = 70;

/** Return {classes, cells, left, most}: the classes with the most issues (in class order), counts by "given,suggested", and issues left out. */
export function matrixShape(matrix, count, most = MOST) {
  const weight = new Map();
  for (const [given, suggested, n] of matrix) for (const label of [given, suggested]) weight.set(label, (weight.get(label) ?? 0) + n);
  const all =
    count <= most
      ? [...Array(count).keys()]
      : [...weight]
          .sort(([a, n], [b, m]) => m - n || a - b)
          .slice(0, most)
          .map(([label]) => label);
  const classes = all.sort((a, b) => a - b);
  const kept = new Set(classes);
  const cells = new Map();
  let left = 0;
  for (const [given, suggested, n] of matrix) {
    if (kept.has(given) && kept.has(suggested)) cells.set(`${given},${suggested}`, n);
    else left += n;
  }
  return { classes, cells, left, most: Math.max(1, ...cells.values()) };
}

/** Return in words what a matrix of `shown` of `all` classes leaves out: issues between the others. */
export function wordsOfRest(shown, all, left) {
  const verb = left === 1 ? "is" : "are";
  return `The ${shown} of ${whole(all)} classes with the most issues; ${counted(left, "issue")} between other classes ${verb} not in this table.`;
}

function depthOf(n, most) {
  return Math.round(10 + (90 * Math.log1p(n)) / Math.log1p(most));
}

function moveFocus(event, table) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step) return;
  const [row, column] = [Number(event.target.dataset.row) + step[0], Number(event.target.dataset.column) + step[1]];
  const next = table.querySelector(`[data-row="${row}"][data-column="${column}"]`);
  if (next) {
    table.querySelector('[tabindex="0"][data-row]')?.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  }
  event.preventDefault();
  event.stopPropagation();
}

/** Draw the matrix, and keep the chosen cell marked. */
export function startMatrix(app) {
  const { page } = app;
  const place = byId("matrix-place");
  if (!place) return;
  if (!page.matrix.length) {
    place.replaceChildren(h("p", { class: "soft" }, "No label is called into question."));
    return;
  }
  const { classes, cells, left, most } = matrixShape(page.matrix, page.classes.length);
  const choose = (given, suggested) => {
    const again = app.filters.given === given && app.filters.suggested === suggested;
    setFilters(app, again ? { given: null, suggested: null } : { given, suggested });
    if (!again) byId("review").scrollIntoView();
  };
  let first = true;
  const cell = (given, row) => (suggested, column) => {
    const n = cells.get(`${given},${suggested}`) ?? 0;
    const place = { "data-row": row, "data-column": column };
    const isFirst = first;
    first = false;
    const label = `given ${className(page, given)}, suggested ${className(page, suggested)}: ${counted(n, "issue")}`;
    const shown = button(n ? whole(n) : "·", () => n && choose(given, suggested), {
      ...place,
      title: label,
      "aria-label": label,
      tabindex: isFirst ? "0" : "-1",
      "aria-disabled": n ? null : "true",
    });
    const box = h("td", { class: given === suggested ? "same" : null }, shown);
    const depth = n ? depthOf(n, most) : 0;
    shown.style.setProperty("--depth", `${depth}%`);
    shown.classList.toggle("deep", depth > DEEP);
    Object.assign(shown, { given, suggested });
    return box;
  };
  const head = h(
    "tr",
    {},
    h("td", { class: "corner" }, h("span", {}, "given ↓"), " ", h("span", {}, "suggested →")),
    classes.map((label) => h("th", { scope: "col" }, h("span", {}, name(className(page, label))))),
  );
  const rows = classes.map((given, row) => h("tr", {}, h("th", { scope: "row" }, name(className(page, given))), classes.map(cell(given, row))));
  const table = h(
    "table",
    { class: "matrix", "aria-label": "Issues by given and suggested class", on: { keydown: (event) => moveFocus(event, table) } },
    h("thead", {}, head),
    h("tbody", {}, rows),
  );
  const note = left || classes.length < page.classes.length ? h("p", { class: "soft small" }, wordsOfRest(classes.length, page.classes.length, left)) : null;
  const steps = [1, Math.round(Math.sqrt(most)), most].filter((n, at, all) => all.indexOf(n) === at);
  const key = h(
    "p",
    { class: "matrix-key small soft" },
    "Shade: ",
    steps
      .map((n) => {
        const swatch = h("span", { class: "swatch" });
        swatch.style.setProperty("--depth", `${depthOf(n, most)}%`);
        return [swatch, ` ${whole(n)}  `];
      })
      .flat(),
    "(logarithmic)",
  );
  const most10 = [...page.matrix].sort((a, b) => b[2] - a[2] || a[0] - b[0] || a[1] - b[1]).slice(0, 10);
  const pairs = h(
    "ol",
    { class: "pairs", "aria-label": "The most frequent" },
    most10.map(([given, suggested, n]) =>
      h(
        "li",
        {},
        button([name(className(page, given)), " → ", name(className(page, suggested))], () => choose(given, suggested), { class: "bare" }),
        h("span", { class: "figure" }, whole(n)),
      ),
    ),
  );
  const grid = h("div", {}, h("div", { class: "wide", tabindex: "-1" }, table), key, note);
  place.replaceChildren(h("div", { class: "matrix-row" }, grid, h("div", {}, h("h3", {}, "Most frequent"), pairs)));
  const mark = () =>
    table.querySelectorAll("button").forEach((shown) => {
      const on = shown.given === app.filters.given && (app.filters.suggested === null || shown.suggested === app.filters.suggested);
      shown.setAttribute("aria-pressed", String(on));
    });
  app.on("list", mark);
}
