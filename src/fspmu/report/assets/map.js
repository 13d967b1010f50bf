// The feature map: every point as the model sees it, before and after the repair.

import { UNJUDGED } from "./colouring.js";
import { className, counted, percent, whole } from "./data.js";
import { announce, button, byId, calm, framed, h, name } from "./dom.js";
import { circlePolygon, insidePolygon, thinPolygon } from "./geometry.js";
import { drawView, layoutOf, newMapView, pointAt, prepareView, ratio, toMap, toScreen } from "./mapview.js";
import { shapePixels } from "./raster.js";
import { lassoTest, openItem, setFilters } from "./state.js";
import { paintTile } from "./tiles.js";

const clamp = (value) => Math.max(0, Math.min(65535, value));

function swatchOf({ colour, shape }) {
  const drawing = h("svg:svg", { viewBox: "0 0 15 15", width: 15, height: 15, "aria-hidden": "true" });
  const dots = shapePixels(shape, 6);
  for (let at = 0; at < dots.length; at += 2) drawing.append(h("svg:rect", { x: dots[at] + 7, y: dots[at + 1] + 7, width: 1.05, height: 1.05, fill: colour }));
  return drawing;
}

function drawLegend(app, view) {
  const entryOf = (entry) => {
    if (!entry.field) return h("span", {}, swatchOf(entry), entry.words);
    const on = app.filters[entry.field] === entry.label;
    return button([swatchOf(entry), name(entry.words)], () => setFilters(app, { [entry.field]: on ? null : entry.label }), {
      class: "bare",
      "aria-pressed": String(on),
    });
  };
  byId("map-legend").replaceChildren(...view.legend.map((entry) => h("li", {}, entryOf(entry))));
}

/** Filter by a polygon of the layout that is shown, and say how much of it this page can show. */
function takeLasso(app, view, polygon) {
  const { map } = view;
  const lasso = { layout: layoutOf(view), polygon: thinPolygon(polygon.map(([x, y]) => [clamp(x), clamp(y)])) };
  const places = map[lasso.layout];
  let points = 0;
  for (let point = 0; point < map.n; point += 1) points += insidePolygon(lasso.polygon, places[2 * point], places[2 * point + 1]) ? 1 : 0;
  if (!points) return announce("No point lies inside");
  setFilters(app, { lasso }, { quiet: true });
  const test = lassoTest(app.page, lasso);
  const pictures = app.page.items.map.reduce((sum, _, item) => sum + (test(item) ? 1 : 0), 0);
  const words = `${counted(points, "point")} inside; ${whole(pictures)} have a picture on this page, ${whole(app.list.length)} of them in the view.`;
  const more = app.filters.scope === "all" ? "" : button("Include all images of this page", () => setFilters(app, { scope: "all" }), { class: "quiet" });
  byId("map-result").replaceChildren(
    words,
    " ",
    more,
    button("Review them", () => byId("review").scrollIntoView(), { class: "quiet" }),
  );
  return announce(words);
}

function openPoint(app, view, point) {
  const item = point < 0 ? -1 : view.map.item[point];
  if (item >= 0) openItem(app, item);
  else announce(point < 0 ? "No point here" : "This sample has no picture on this page");
}

function showHint(app, view, point) {
  const [hint, { map, places, canvas }] = [byId("map-hint"), view];
  hint.hidden = point < 0;
  if (point < 0) return;
  const label = (which) => name(className(app.page, map[which][point]));
  const picture = map.item[point] >= 0 ? [paintTile(h("span"), app.page, map.item[point], 72)] : [];
  const change = map.flags[point] & 1 ? [" → ", label("suggested")] : null;
  const chance = map.flags[point] & UNJUDGED ? "not judged" : `P(wrong) ${percent(map.noise[point] / 255)}`;
  hint.replaceChildren(...picture, h("span", {}, label("given"), change, h("br"), h("span", { class: "soft" }, chance)));
  hint.style.setProperty("left", `${Math.min(places[2 * point] / ratio() + 14, canvas.clientWidth - 170)}px`);
  hint.style.setProperty("top", `${Math.max(0, places[2 * point + 1] / ratio() - 30)}px`);
}

function listenToPointer(app, view, drawSoon, settle) {
  const { canvas } = view;
  let dragged = false;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * ratio(), (event.clientY - box.top) * ratio()];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || (event.pointerType === "touch" && !canvas.classList.contains("catching"))) return;
    settle();
    canvas.setPointerCapture(event.pointerId);
    view.line = [toMap(view, at(event))];
    view.cross.shown = false;
    byId("map-hint").hidden = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!view.line) return showHint(app, view, pointAt(view, at(event), 12));
    view.line.push(toMap(view, at(event)));
    return drawSoon();
  });
  canvas.addEventListener("pointerup", () => {
    const drawn = view.line;
    view.line = null;
    dragged = Boolean(drawn && drawn.length > 7);
    if (dragged) takeLasso(app, view, drawn);
    drawSoon();
  });
  canvas.addEventListener("click", (event) => {
    if (!dragged) openPoint(app, view, pointAt(view, at(event), 10));
    dragged = false;
  });
  canvas.addEventListener("pointercancel", () => Object.assign(view, { line: null }));
  canvas.addEventListener("pointerleave", () => showHint(app, view, -1));
}

function listenToKeys(app, view, drawSoon, settle) {
  const { canvas, cross } = view;
  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 5000 : 1200;
    const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (by) Object.assign(cross, { x: clamp(cross.x + by[0]), y: clamp(cross.y + by[1]) });
    else if (event.key === "[" || event.key === "]") cross.radius = Math.max(800, Math.min(30_000, cross.radius * (event.key === "]" ? 1.25 : 0.8)));
    else if (event.key === "r" || event.key === "Enter") {
      settle();
      if (event.key === "r") takeLasso(app, view, circlePolygon(cross.x, cross.y, cross.radius));
      else openPoint(app, view, pointAt(view, toScreen(view, [cross.x, cross.y]), 60));
    } else return;
    cross.shown = true;
    drawSoon();
    event.preventDefault();
    event.stopPropagation();
  });
  canvas.addEventListener("blur", () => {
    cross.shown = false;
    drawSoon();
  });
}

/** Return a function that moves the view to a time, at once or, unless the person asked for less motion, in 0.7 seconds. */
function newMorph(view, setTime) {
  let motion = 0;
  return (end) => {
    cancelAnimationFrame(motion);
    if (calm() || !view.ready) return setTime(end);
    const [from, begun] = [view.time, performance.now()];
    const step = (now) => {
      const share = Math.max(0, Math.min(1, (now - begun) / 700));
      setTime(share === 1 ? end : from + (end - from) * share * share * (3 - 2 * share));
      if (share < 1) motion = requestAnimationFrame(step);
    };
    motion = requestAnimationFrame(step);
    return undefined;
  };
}

/** Set the map up; returns {start, flip}: it draws nothing until `start`, when it is about to be seen. */
export function startMap(app) {
  const canvas = byId("map");
  if (!canvas || !app.page.map) return { flip: () => {}, start: () => {} };
  const view = newMapView(app, canvas);
  const drawSoon = framed(() => drawView(view));
  const setTime = (time) => {
    view.time = time;
    byId("map-state").textContent = time === 0 ? "before the repair" : time === 1 ? "after the repair" : "in between";
    byId("map-morph").value = String(Math.round(100 * time));
    byId("map-flip").textContent = time < 0.5 ? "Show after (b)" : "Show before (b)";
    drawSoon();
  };
  const settle = () => !Number.isInteger(view.time) && setTime(Math.round(view.time));
  const morph = newMorph(view, setTime);
  const refresh = () => {
    prepareView(view);
    drawLegend(app, view);
    drawSoon();
  };
  listenToPointer(app, view, drawSoon, settle);
  listenToKeys(app, view, drawSoon, settle);
  byId("map-colour").addEventListener("change", ({ target }) => {
    view.mode = target.value;
    refresh();
  });
  byId("map-morph").addEventListener("input", ({ target }) => setTime(Number(target.value) / 100));
  byId("map-flip").addEventListener("click", () => morph(view.time < 0.5 ? 1 : 0));
  byId("map-lasso").addEventListener("click", ({ currentTarget }) => currentTarget.setAttribute("aria-pressed", String(canvas.classList.toggle("catching"))));
  const start = () => {
    refresh();
    setTime(view.time);
    new ResizeObserver(drawSoon).observe(canvas);
  };
  app.on("list", () => view.ready && refresh());
  app.on("current theme", drawSoon);
  return { start, flip: (model) => morph(model === "after" ? 1 : 0) };
}
