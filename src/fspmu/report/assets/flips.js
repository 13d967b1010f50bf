// What the repair changed: pictures that are now classified rightly, and those that no longer are.

import { className } from "./data.js";
import { button, byId, h, name, whenSeen } from "./dom.js";
import { openItem, setFilters } from "./state.js";
import { newTile } from "./tiles.js";

const STEP = 36;

function figureOf(app, item) {
  const { items } = app.page;
  const top = (chances) => (chances[item]?.length ? className(app.page, chances[item][0][0]) : "–");
  const truth = items.true && items.true[item] !== null ? items.true[item] : items.given[item];
  return h(
    "button",
    { type: "button", class: "flip", on: { click: () => openItem(app, item) } },
    newTile(app.page, item, 72),
    h("span", {}, name(top(items.before)), " → ", name(top(items.after))),
    h("span", { class: "soft" }, items.true && items.true[item] !== null ? "true: " : "label: ", name(className(app.page, truth))),
  );
}

function fill(app, kind) {
  const place = byId(`flips-${kind}`);
  if (!place) return;
  const all = app.page.flips[kind];
  let count = 0;
  const row = h("div", { class: "flips" });
  const more = button("Show more", () => extend(), { class: "quiet" });
  const extend = () => {
    row.append(...all.slice(count, count + STEP).map((item) => figureOf(app, item)));
    count = Math.min(all.length, count + STEP);
    more.hidden = count >= all.length;
  };
  const filter = button(
    "Show in the grid",
    () => {
      setFilters(app, { set: kind });
      byId("review").scrollIntoView();
    },
    { class: "quiet" },
  );
  if (all.length) place.append(row, h("p", { class: "row" }, more, filter));
  else place.append(h("p", { class: "soft" }, "None."));
  whenSeen(place, extend);
}

/** Fill both rows of flips when they are about to be seen. */
export function startFlips(app) {
  if (!app.page.flips) return;
  fill(app, "fixed");
  fill(app, "broken");
}
