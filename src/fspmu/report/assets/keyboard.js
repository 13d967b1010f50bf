// The keys, and the dialogue that shows and changes them.

import { ACTIONS, actionFor, bindingsWith, keyWords, rebind } from "./bindings.js";
import { likelyClasses } from "./data.js";
import { announce, button, byId, h, takesKeys } from "./dom.js";
import { exportAs } from "./importing.js";
import { clearFilter, closeDrawer, decideItems, isFiltered, move, nextOpen, openItem, refreshList, targets, toggleSelected, travel } from "./state.js";

/** Return whether keys that decide may act: never while the person is elsewhere on the page. */
function reviewing(app) {
  if (app.drawer || byId("review").contains(document.activeElement)) return true;
  const box = byId("grid").getBoundingClientRect();
  const seen = Math.min(box.bottom, window.innerHeight) - Math.max(box.top, 0);
  return document.activeElement === document.body && seen > 0.4 * Math.min(box.height, window.innerHeight);
}

function flip(app, map) {
  app.model = app.model === "before" ? "after" : "before";
  map.flip(app.model);
  app.emit("model");
  announce(`Model ${app.model} the repair`);
}

function escape(app) {
  if (byId("drawer").classList.contains("full")) byId("drawer-zoom").click();
  else if (app.drawer) closeDrawer(app);
  else if (app.selected.size) byId("bulk-none").click();
  else if (isFiltered(app)) clearFilter(app);
}

function handlersFor(app, { grid, drawer, map, pick }) {
  const { page } = app;
  const decided = (choice) => () => page.reviewable && targets(app).length && decideItems(app, targets(app), choice);
  return {
    previous: () => move(app, -1),
    next: () => move(app, 1),
    up: () => move(app, -grid.columns()),
    down: () => move(app, grid.columns()),
    details: () => !app.drawer && app.list.length && openItem(app, app.placeInList.has(app.current) ? app.current : app.list[0]),
    accept: decided((item) => ({ decision: "accept", label: page.items.suggested[item] })),
    keep: decided(() => ({ decision: "keep" })),
    drop: decided(() => ({ decision: "drop" })),
    unsure: decided(() => ({ decision: "unsure" })),
    pick: () => page.reviewable && targets(app).length && pick(targets(app)),
    undo: () => travel(app, "undo"),
    redo: () => travel(app, "redo"),
    select: (event) => app.current !== null && toggleSelected(app, app.current, event.shiftKey),
    open: () => nextOpen(app),
    zoom: () => app.drawer && drawer.zoom(),
    bigger: () => app.drawer && drawer.bigger(1.25),
    smaller: () => app.drawer && drawer.bigger(0.8),
    flip: () => flip(app, map),
    near: () => drawer.neighbours(),
    map: () => byId("map")?.scrollIntoView({ block: "center" }),
    hide: () => refreshList(Object.assign(app, { hide: !app.hide })),
    export: () => page.reviewable && exportAs(app, "corrections"),
    escape: () => escape(app),
    help: () => byId("help").showModal(),
    digit: (event, digit) => {
      if (!page.reviewable || app.current === null) return;
      const label = likelyClasses(page, app.current, app.model)[digit - 1];
      if (label === undefined) announce(`No class number ${digit} here`);
      else decideItems(app, [app.current], () => ({ decision: "accept", label })); // a selection may have other classes in that place
    },
  };
}

/** Let the keys work. */
export function startKeyboard(app, parts) {
  let bindings = bindingsWith(app.prefs.get("keys"));
  const handlers = handlersFor(app, parts);
  const needsGrid = new Set([...ACTIONS.filter(([, , , grid]) => grid).map(([action]) => action), "digit"]);
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]") || takesKeys(event.target)) return;
    const found = actionFor(event, bindings);
    if (!found) return;
    const [action, digit] = found;
    const onControl = event.target.closest?.("button, a, summary");
    if (onControl && (event.key === "Enter" || event.key === " ")) return;
    if (needsGrid.has(action) && !reviewing(app)) return;
    event.preventDefault();
    handlers[action](event, digit);
  });
  const fill = () => {
    const rows = ACTIONS.map(([action, words]) =>
      h(
        "li",
        {},
        h(
          "span",
          {},
          bindings[action].map((key) => h("kbd", {}, keyWords(key))),
        ),
        h("span", {}, words),
        button("Change", ({ currentTarget }) => listen(action, currentTarget), { class: "quiet small", "aria-label": `Change the key: ${words}` }),
      ),
    );
    const digits = h("li", {}, h("span", {}, h("kbd", {}, "1"), "– ", h("kbd", {}, "9")), h("span", {}, "the image's n-th likeliest class"));
    const after = ACTIONS.findIndex(([action]) => action === "keep") + 1;
    byId("help-body").replaceChildren(...rows.slice(0, after), digits, ...rows.slice(after));
  };
  const listen = (action, control) => {
    control.textContent = "Press a key…";
    control.addEventListener("keydown", (event) => {
      if (["Shift", "Control", "Alt", "Meta", "Tab"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.key !== "Escape" && !/^[1-9]$/.test(event.key)) {
        bindings = rebind(bindings, action, event.key);
        app.prefs.set("keys", bindings);
      }
      fill();
    });
  };
  byId("help-reset").addEventListener("click", () => {
    bindings = bindingsWith();
    app.prefs.set("keys", undefined);
    fill();
  });
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  fill();
}
