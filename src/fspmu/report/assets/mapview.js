// How the feature map is drawn: from places between 0 and 65535 to pixels.

import { colouring } from "./colouring.js";
import { circlePolygon, insidePolygon, nearestPoint } from "./geometry.js";
import { drawPoints, pixelOf, placePoints, shapePixels } from "./raster.js";

const EDGE = 14;
const FAINT = 254;
const HIDDEN = 255;

/** Return the test of points for the filters that a point can answer, or null where none is set. */
function pointTest(map, { given, suggested, lasso }) {
  if (given === null && suggested === null && !lasso) return null;
  const places = lasso ? map[lasso.layout] : null;
  return (point) =>
    (given === null || map.given[point] === given) &&
    (suggested === null || map.suggested[point] === suggested) &&
    (!lasso || insidePolygon(lasso.polygon, places[2 * point], places[2 * point + 1]));
}

/** Return how many pixels of the canvas make one of the page. */
export function ratio() {
  return Math.min(2, window.devicePixelRatio || 1);
}

/** Return a view of the map on a canvas: `time` 0 is before and 1 after the repair, `line` a lasso being drawn, `cross` the place for the keys. */
export function newMapView(app, canvas) {
  const { page } = app;
  const cross = { x: 32768, y: 32768, radius: 5000, shown: false };
  return {
    app,
    map: page.map,
    canvas,
    context: canvas.getContext("2d"),
    places: new Float32Array(2 * page.map.n),
    mode: "changed",
    time: 0,
    line: null,
    cross,
    ready: false,
  };
}

/** Return which of the two layouts the view shows, or is nearer to. */
export function layoutOf(view) {
  return view.time < 0.5 ? "before" : "after";
}

/** Work out the looks of the points, after another way of colouring or another filter. */
export function prepareView(view) {
  const { app, map } = view;
  const look = colouring(app.page, view.mode);
  const radius = map.n > 4000 ? 2.6 : 4; // below 2.6 pixels some shapes are the same
  view.styles = look.entries.map(({ colour, shape, size, alpha }) => ({ pixels: shapePixels(shape, radius * size * ratio()), colour: pixelOf(colour, alpha) }));
  view.styles[FAINT] = { pixels: shapePixels("disc", 1.1 * ratio()), colour: pixelOf("#8a9299", 110) };
  const test = pointTest(map, app.filters);
  const kinds = test ? look.kindOf.map((kind, point) => (test(point) ? kind : FAINT)) : look.kindOf;
  // What is common goes below what is rare: what the filters leave out, then labels that were kept or not judged, then issues.
  const layers = [...(test ? [[FAINT]] : []), ...(view.mode === "changed" ? [[0, 4], [3, 2, 1]] : [look.entries.map((_, kind) => kind)])];
  view.layers = layers.map((layer) => kinds.map((kind) => (layer.includes(kind) ? kind : HIDDEN)));
  view.legend = look.legend;
  view.ready = true;
  view.canvas.dataset.shown = String(test ? kinds.reduce((sum, kind) => sum + (kind === FAINT ? 0 : 1), 0) : map.n);
}

function span(view) {
  const edge = EDGE * ratio();
  return { edge, across: view.canvas.width - 2 * edge, down: view.canvas.height - 2 * edge };
}

/** Return the pixel of a place on the map. */
export function toScreen(view, [x, y]) {
  const { edge, across, down } = span(view);
  return [edge + (x / 65535) * across, edge + ((65535 - y) / 65535) * down];
}

/** Return the place on the map of a pixel. */
export function toMap(view, [x, y]) {
  const { edge, across, down } = span(view);
  return [((x - edge) / across) * 65535, 65535 - ((y - edge) / down) * 65535];
}

/** Return the point nearest to a pixel, within `reach` pixels of the page, or -1. */
export function pointAt(view, [x, y], reach) {
  return nearestPoint(view.places, x, y, reach * ratio());
}

function outline(view, corners, width) {
  const { context } = view;
  context.beginPath();
  corners.forEach((corner, at) => (at ? context.lineTo(...toScreen(view, corner)) : context.moveTo(...toScreen(view, corner))));
  context.closePath();
  context.lineWidth = width * ratio();
  context.stroke();
}

function ring(view, [x, y], radius) {
  const { context } = view;
  context.beginPath();
  context.arc(x, y, radius * ratio(), 0, 2 * Math.PI);
  context.lineWidth = 2 * ratio();
  context.stroke();
}

/** Draw the view. */
export function drawView(view) {
  const { app, canvas, context, map, places, cross, line } = view;
  const [width, height] = [Math.round(canvas.clientWidth * ratio()), Math.round(canvas.clientHeight * ratio())];
  if (!view.ready || !width || !height) return;
  if (canvas.width !== width || canvas.height !== height || !view.image) {
    Object.assign(canvas, { width, height });
    view.image = context.createImageData(width, height);
  }
  const pixels = new Uint32Array(view.image.data.buffer).fill(0);
  placePoints(places, map.before, map.after, view.time, width, height, EDGE * ratio());
  for (const kinds of view.layers) drawPoints(pixels, width, height, places, kinds, view.styles);
  context.putImageData(view.image, 0, 0);
  context.strokeStyle = getComputedStyle(canvas).color;
  const { lasso } = app.filters;
  if (line?.length > 1) outline(view, line, 1.5);
  else if (lasso?.layout === layoutOf(view) && Number.isInteger(view.time)) outline(view, lasso.polygon, 1.5);
  const current = app.current === null ? -1 : app.page.items.map[app.current];
  if (current >= 0) ring(view, [places[2 * current], places[2 * current + 1]], 9);
  if (!cross.shown) return;
  outline(view, circlePolygon(cross.x, cross.y, cross.radius), 1);
  ring(view, toScreen(view, [cross.x, cross.y]), 4);
}
