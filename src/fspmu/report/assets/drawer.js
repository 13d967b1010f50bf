// Everything about one sample, beside the grid.

import { className, likelyClasses, percent, whole } from "./data.js";
import { button, byId, copyText, h, name } from "./dom.js";
import { statusOf } from "./filters.js";
import { MARKS } from "./grid.js";
import { closeDrawer, decideItems, move, openItem, setFilters } from "./state.js";
import { largePicture, newTile } from "./tiles.js";

const DIGITS = 9;
const SIDES = { forget: "forget: its label is unlearned", retain: "retain: trained on", review: "review: neither unlearned nor trained on" };

function labelsOf(app, item) {
  const { items } = app.page;
  const decision = app.decisionOf(item);
  const rows = [
    ["Given", items.given[item], "given"],
    ["Predicted", items.predicted[item], "", items.confidence[item]],
    ["Suggested", items.suggested[item], "suggested"],
  ];
  if (items.true && items.true[item] !== null) rows.push(["True", items.true[item], "truth"]);
  const lines = rows.map(([term, label, kind, chance]) => [
    h("dt", {}, term),
    h(
      "dd",
      { class: kind || null },
      name(className(app.page, label)),
      chance === undefined || chance === null ? null : h("span", { class: "soft" }, ` ${percent(chance, 1)}`),
    ),
  ]);
  const status = statusOf(decision, items.suggested[item]);
  const said = { open: "not reviewed", keep: "keep the given label", drop: "drop the image", unsure: "unsure" }[status] ?? null;
  const mine = said ? h("span", {}, said) : h("span", {}, "new label ", name(className(app.page, decision.label)));
  return h(
    "dl",
    { class: "labels" },
    lines.flat(),
    h("dt", {}, "Decision"),
    h("dd", { class: "decision", "data-status": status }, h("b", {}, MARKS[status][0] || "○", " "), mine),
  );
}

function decisionButtons(app, item, pick) {
  const { items } = app.page;
  const say = (decision) => decideItems(app, [item], () => decision);
  const key = (letter) => h("kbd", { "aria-hidden": "true" }, letter);
  const wanted = app.decisionOf(item);
  const clear = wanted ? button("Clear", () => say(null), { class: "quiet" }) : null;
  const suggestion =
    items.suggested[item] === items.given[item]
      ? null
      : button([key("a"), "Accept ", name(className(app.page, items.suggested[item]))], () => say({ decision: "accept", label: items.suggested[item] }), {
          class: "accept",
        });
  return h(
    "div",
    { class: "actions", role: "group", "aria-label": "Decide" },
    suggestion,
    button(h("span", {}, key("x"), "Keep ", name(className(app.page, items.given[item]))), () => say({ decision: "keep" })),
    button(h("span", {}, key("c"), "Other class…"), () => pick([item])),
    button(h("span", {}, key("d"), "Drop"), () => say({ decision: "drop" })),
    button(h("span", {}, key("u"), "Unsure"), () => say({ decision: "unsure" })),
    clear,
  );
}

function bar(share, shade) {
  const drawn = h("svg:svg", { class: `chance ${shade}`, viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
  drawn.append(h("svg:rect", { width: 100 * Math.max(0, Math.min(1, share)), height: 6 }));
  return drawn;
}

function chancesOf(app, item, pick) {
  const { items } = app.page;
  const [before, after] = [new Map(items.before[item] ?? []), new Map(items.after[item] ?? [])];
  if (!before.size && !after.size) return null;
  // The digits beside the classes are those of the keys, so both come from the same list.
  const order = likelyClasses(app.page, item, app.model);
  const cell = (chances, label, shade) =>
    h("td", {}, bar(chances.get(label) ?? 0, shade), h("span", { class: "figure" }, chances.has(label) ? percent(chances.get(label), 1) : "–"));
  const rows = order.slice(0, DIGITS).map((label, at) =>
    h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        button(h("span", {}, h("kbd", { "aria-hidden": "true" }, String(at + 1)), name(className(app.page, label))), () => pick.direct(item, label), {
          class: "bare",
          title: "Make this the label",
        }),
      ),
      cell(before, label, "before"),
      after.size ? cell(after, label, "after") : null,
    ),
  );
  const mark = (model, words) => h("th", { scope: "col", "data-on": app.model === model ? "1" : null }, words);
  const head = h("tr", {}, h("th", { scope: "col" }, "Class"), mark("before", "before"), after.size ? mark("after", "after") : null);
  return h(
    "section",
    {},
    h("h3", {}, "Probabilities, before and after the repair"),
    h("table", { class: "chances" }, h("thead", {}, head), h("tbody", {}, rows)),
  );
}

function neighboursOf(app, item) {
  const { items } = app.page;
  const near = items.near[item] ?? [];
  const share = items.near_same[item];
  if (!near.length && share === null) return null;
  const words = share === null ? null : `Of its nearest images, at most ten, ${percent(share)} carry the given label.`;
  const figure = (other) => {
    const same = items.given[other] === items.given[item] ? "given" : items.given[other] === items.suggested[item] ? "suggested" : "other";
    const sign = { given: "=", suggested: "↪", other: "·" }[same];
    return h(
      "button",
      { type: "button", class: `near ${same}`, on: { click: () => openItem(app, other) } },
      newTile(app.page, other, 64),
      h("span", {}, `${sign} `, name(className(app.page, items.given[other]))),
    );
  };
  return h(
    "section",
    { id: "neighbours", tabindex: "-1" },
    h("h3", {}, "Nearest images, with the labels they were given"),
    words ? h("p", { class: "soft" }, words) : null,
    h("div", { class: "nears" }, near.map(figure)),
    h("p", { class: "soft small" }, "= the label given here, ↪ the one suggested here, · another"),
  );
}

function whereabouts(app, item) {
  const { items } = app.page;
  const link = () => `${location.href.split("#")[0]}#${new URLSearchParams({ item: items.id[item] })}`;
  const path = items.path[item];
  const rows = [["Id", items.id[item]], path ? ["Path", path] : null]
    .filter(Boolean)
    .map(([term, text]) => [h("dt", {}, term), h("dd", { class: "path" }, name(text))]);
  const more = [
    items.action[item] && ["Split", SIDES[items.action[item]]],
    items.score[item] === null ? null : ["Score", String(items.score[item])],
    items.noise[item] === null ? null : ["P(wrong)", items.noise[item].toFixed(2)],
    items.evaluation[item] ? ["Used for", "evaluation alone"] : null,
    items.aside[item] ? ["Held out", "when the model was trained"] : null,
  ];
  return h(
    "section",
    {},
    h("h3", {}, "Where it is"),
    h(
      "dl",
      {},
      rows.flat(),
      more
        .filter(Boolean)
        .map(([term, text]) => [h("dt", {}, term), h("dd", {}, text)])
        .flat(),
    ),
    h(
      "p",
      { class: "row" },
      path ? button("Copy path", () => copyText(path, "Path")) : null,
      button("Copy link", () => copyText(link(), "Link")),
    ),
  );
}

/** Set the details up; `pick` asks for a class. Returns what the keys need: zoom, bigger, neighbours. */
export function startDrawer(app, pick) {
  const [drawer, body] = [byId("drawer"), byId("drawer-body")];
  let [size, shownItem, cameFrom] = [320, -1, null];

  const draw = () => {
    const wasOpen = !drawer.hidden;
    const top = byId("grid").getBoundingClientRect().top;
    drawer.hidden = !app.drawer || app.current === null;
    document.body.classList.toggle("with-drawer", !drawer.hidden);
    // The page gets narrower or wider: what is looked at stays where it is.
    if (wasOpen === drawer.hidden && window.scrollY > 0) window.scrollBy(0, byId("grid").getBoundingClientRect().top - top);
    if (drawer.hidden) {
      if (wasOpen) (cameFrom?.isConnected ? cameFrom : byId("grid")).focus({ preventScroll: true });
      return;
    }
    if (!wasOpen) cameFrom = document.activeElement === document.body ? byId("grid") : document.activeElement;
    const item = app.current;
    const place = app.placeInList.get(item);
    const { items } = app.page;
    byId("drawer-place").textContent = place === undefined ? "not in this view" : `${whole(place + 1)} of ${whole(app.list.length)}`;
    byId("drawer-title").replaceChildren(name(items.id[item]));
    const reasons = items.reasons[item].map((reason) =>
      h(
        "li",
        {},
        button(reason, () => setFilters(app, { reason }), { class: "tag", title: "Show all with this reason" }),
      ),
    );
    const focused = drawer.contains(document.activeElement) ? document.activeElement.textContent : null;
    const sections = [
      h("div", { class: "picture" }, largePicture(app.page, item, size)),
      labelsOf(app, item),
      app.page.reviewable ? decisionButtons(app, item, pick) : null,
      reasons.length ? h("ul", { class: "tags", "aria-label": "Reasons" }, reasons) : null,
      chancesOf(app, item, pick),
      neighboursOf(app, item),
      whereabouts(app, item),
    ];
    body.replaceChildren(...sections.filter(Boolean));
    drawer.style.setProperty("--picture", `${size}px`);
    if (shownItem !== item) body.scrollTop = 0;
    else if (focused) [...drawer.querySelectorAll("button")].find((other) => other.textContent === focused)?.focus();
    shownItem = item;
    if (!wasOpen) drawer.focus({ preventScroll: true });
  };
  byId("drawer-close").addEventListener("click", () => closeDrawer(app));
  byId("drawer-before").addEventListener("click", () => move(app, -1));
  byId("drawer-next").addEventListener("click", () => move(app, 1));
  byId("drawer-zoom").addEventListener("click", () => zoom());
  const zoom = () => {
    drawer.classList.toggle("full");
    size = drawer.classList.contains("full") ? Math.min(window.innerHeight - 120, Math.max(320, window.innerWidth * 0.55)) : 320;
    byId("drawer-zoom").setAttribute("aria-pressed", String(drawer.classList.contains("full")));
    draw();
  };
  const bigger = (factor) => {
    size = Math.max(96, Math.min(1200, size * factor));
    draw();
  };
  app.on("current review model adopted list", draw);
  return { zoom, bigger, neighbours: () => byId("neighbours")?.scrollIntoView({ block: "start" }), redraw: draw };
}
