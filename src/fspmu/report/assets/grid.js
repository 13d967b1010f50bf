// The review grid: thousands of tiles, of which only those in sight exist.

import { className } from "./data.js";
import { byId, framed, h } from "./dom.js";
import { statusOf } from "./filters.js";
import { openItem, toggleSelected } from "./state.js";
import { describe, paintTile } from "./tiles.js";

export const MARKS = {
  open: ["", "not reviewed"],
  accept: ["✓", "accepted"],
  relabel: ["↪", "relabelled"],
  keep: ["=", "kept"],
  drop: ["✕", "dropped"],
  unsure: ["?", "unsure"],
};
const GAP = 10;
const CAPTION = 44;

/** Return {columns, width, rowHeight, rows} of a grid. */
export function gridShape(available, size, count) {
  const columns = Math.max(1, Math.floor((available + GAP) / (size + GAP)));
  return { columns, width: size + GAP, rowHeight: size + CAPTION + GAP, rows: Math.ceil(count / columns) };
}

function newCell() {
  const parts = {
    thumb: h("span", { class: "thumb" }),
    mark: h("span", { class: "mark" }),
    given: h("bdi"),
    suggested: h("bdi"),
    noise: h("span", { class: "noise" }),
  };
  parts.pick = h("span", { class: "pick", "aria-hidden": "true" });
  const change = h("span", { class: "change" }, parts.given, h("span", { class: "arrow", "aria-label": "to" }, "→"), parts.suggested);
  const cell = h("div", { class: "tile", role: "option" }, parts.thumb, parts.pick, parts.mark, change, parts.noise);
  return Object.assign(cell, { parts, item: -1 });
}

function fillCell(app, cell, item, size) {
  const { page } = app;
  const decision = app.decisionOf(item);
  const status = statusOf(decision, page.items.suggested[item]);
  if (cell.item !== item || cell.size !== size) {
    paintTile(cell.parts.thumb, page, item, size);
    cell.parts.given.textContent = className(page, page.items.given[item]);
    cell.parts.noise.textContent = page.items.noise[item] === null ? "" : `P(wrong) ${page.items.noise[item].toFixed(2)}`;
    cell.id = `tile-${item}`;
    cell.style.setProperty("--size", `${size}px`);
    Object.assign(cell, { item, size });
  }
  cell.parts.suggested.textContent = className(page, status === "relabel" ? decision.label : page.items.suggested[item]);
  cell.parts.mark.textContent = MARKS[status][0];
  cell.dataset.status = status;
  cell.dataset.action = page.items.action[item];
  cell.classList.toggle("current", app.current === item);
  cell.setAttribute("aria-selected", String(app.selected.has(item)));
  cell.setAttribute("aria-label", `${describe(page, item)}, ${MARKS[status][1]}`);
  const place = app.placeInList.get(item);
  cell.setAttribute("aria-posinset", String(place + 1));
  cell.setAttribute("aria-setsize", String(app.list.length));
  return place;
}

/** Set the grid up; returns {columns} for the keys, and `reveal` to bring the current sample into sight. */
export function startGrid(app) {
  const frame = byId("grid");
  const canvas = byId("grid-canvas");
  const cells = new Map();
  const spare = [];
  let shape = gridShape(600, 96, 0);

  const draw = () => {
    const size = app.prefs.get("size") ?? 96;
    shape = gridShape(canvas.clientWidth || frame.clientWidth, size, app.list.length);
    canvas.style.setProperty("height", `${Math.max(0, shape.rows * shape.rowHeight)}px`);
    const first = Math.max(0, Math.floor(frame.scrollTop / shape.rowHeight) - 1) * shape.columns;
    const last = Math.min(app.list.length, (Math.ceil((frame.scrollTop + frame.clientHeight) / shape.rowHeight) + 1) * shape.columns);
    const wanted = new Set(app.list.slice(first, last));
    for (const [item, cell] of cells) {
      if (wanted.has(item)) continue;
      cells.delete(item);
      spare.push(cell);
    }
    for (const item of wanted) {
      const cell = cells.get(item) ?? spare.pop() ?? newCell();
      const place = fillCell(app, cell, item, size);
      const [x, y] = [(place % shape.columns) * shape.width, Math.floor(place / shape.columns) * shape.rowHeight];
      cell.style.setProperty("transform", `translate(${x}px, ${y}px)`);
      if (!cells.has(item)) cells.set(item, cell);
      if (cell.parentNode !== canvas) canvas.append(cell);
    }
    for (const cell of spare) cell.remove();
    byId("grid-empty").hidden = app.list.length > 0;
    if (app.current !== null && cells.has(app.current)) frame.setAttribute("aria-activedescendant", `tile-${app.current}`);
    else frame.removeAttribute("aria-activedescendant");
  };
  const drawSoon = framed(draw);

  const reveal = () => {
    const place = app.placeInList.get(app.current);
    if (place !== undefined) {
      const top = Math.floor(place / shape.columns) * shape.rowHeight;
      if (top < frame.scrollTop) frame.scrollTop = top;
      else if (top + shape.rowHeight > frame.scrollTop + frame.clientHeight) frame.scrollTop = top + shape.rowHeight - frame.clientHeight;
    }
    drawSoon();
  };

  frame.addEventListener("scroll", drawSoon, { passive: true });
  canvas.addEventListener("click", (event) => {
    const cell = event.target.closest(".tile");
    if (!cell) return;
    app.current = cell.item;
    if (event.target.closest(".pick") || event.shiftKey) {
      toggleSelected(app, cell.item, event.shiftKey);
      app.emit("current");
    } else {
      app.anchor = cell.item;
      openItem(app, cell.item);
    }
  });
  new ResizeObserver(drawSoon).observe(frame);
  app.on("list", (stay) => {
    if (!stay && !app.placeInList.has(app.current)) frame.scrollTop = 0;
    drawSoon();
  });
  app.on("review selection adopted size", drawSoon);
  app.on("current", reveal);
  return { columns: () => shape.columns, page: () => Math.max(1, Math.floor(frame.clientHeight / shape.rowHeight)) };
}
