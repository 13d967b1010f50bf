// The parts of the page that touch no document, run by `node --test tests/report/js`.

import assert from "node:assert/strict";
import { test } from "node:test";

const assets = new URL("../../../src/fspmu/report/assets/", import.meta.url);
const load = (name) => import(new URL(`${name}.js`, assets));
const { actionFor, bindingsWith, rebind } = await load("bindings");
const { colouring, UNJUDGED } = await load("colouring");
const { counted, readMap, whole } = await load("data");
const { insidePolygon, nearestPoint, thinPolygon } = await load("geometry");
const { drawSample, samplePrecision, wilson } = await load("interval");
const { drawPoints, pixelOf, placePoints, shapePixels, SHAPES } = await load("raster");
const { sortedRows } = await load("tables");
const { atThreshold, componentAt, nearestStop, thresholdStops } = await load("threshold");

test("the Wilson interval agrees with the textbook and stays within 0 and 1", () => {
  const { low, high } = wilson(8, 10); // Brown, Cai and DasGupta's form: 0.4902 to 0.9433
  assert.ok(Math.abs(low - 0.4902) < 5e-4 && Math.abs(high - 0.9433) < 5e-4);
  assert.equal(wilson(0, 0), null);
  assert.equal(wilson(0, 20).low, 0);
  assert.equal(wilson(20, 20).high, 1);
  assert.ok(wilson(20, 20).low < 0.9);
});

test("a drawn sample is without repetition, the same for a seed, and not the same for another", () => {
  const drawn = drawSample(1000, 50, 7);
  assert.equal(new Set(drawn).size, 50);
  assert.ok(drawn.every((item) => Number.isInteger(item) && item >= 0 && item < 1000));
  assert.deepEqual(drawSample(1000, 50, 7), drawn);
  assert.notDeepEqual(drawSample(1000, 50, 8), drawn);
  assert.deepEqual(drawSample(5, 50, 1).sort(), [0, 1, 2, 3, 4]);
});

test("every place is drawn about as often as every other", () => {
  const counts = new Array(20).fill(0);
  for (let seed = 0; seed < 4000; seed += 1) for (const item of drawSample(20, 5, seed)) counts[item] += 1;
  assert.ok(
    counts.every((n) => Math.abs(n - 1000) < 150),
    String(counts),
  );
});

test("precision counts accepted and kept alone", () => {
  const decisions = ["accept", "accept", "keep", "drop", "unsure", undefined];
  const found = samplePrecision([0, 1, 2, 3, 4, 5], (item) => decisions[item] && { decision: decisions[item] });
  assert.deepEqual([found.judged, found.wrong, found.skipped], [3, 2, 2]);
});

const scores = { edges: [0, 1, 2, 3], counts: [60, 30, 10], wrong: [3, 15, 9], noise_at: [0.05, 0.5, 0.9], threshold: 1.5, total: 100, curves: [] };

test("counts at an edge are exact, precision and recall follow", () => {
  const found = atThreshold(scores, 1);
  assert.deepEqual([found.suspects, found.wrong, found.exact, found.noise], [40, 24, true, 0.5]);
  assert.equal(found.precision, 24 / 40);
  assert.equal(found.recall, 24 / 27);
  assert.deepEqual([atThreshold(scores, 0).suspects, atThreshold(scores, 3).suspects], [100, 0]);
  assert.equal(atThreshold(scores, 3).precision, null);
  assert.equal(atThreshold(scores, 3).noise, 0.9);
});

test("within a bin counts are shared out and marked as not exact; raising the threshold never finds more", () => {
  assert.deepEqual([atThreshold(scores, 1.5).suspects, atThreshold(scores, 1.5).exact], [25, false]);
  let before = Infinity;
  for (let threshold = -0.5; threshold < 3.5; threshold += 0.05) {
    assert.ok(atThreshold(scores, threshold).suspects <= before);
    before = atThreshold(scores, threshold).suspects;
  }
  assert.equal(atThreshold({ ...scores, wrong: null }, 1).precision, null);
});

test("a threshold stops at edges and at the run's own value", () => {
  assert.deepEqual(thresholdStops(scores), [0, 1, 1.5, 2, 3]);
  assert.equal(nearestStop(thresholdStops(scores), 1.3), 1.5);
});

test("a component's bins sum to its share of the samples", () => {
  let sum = 0;
  for (let x = -5; x < 6; x += 0.01) sum += componentAt({ weight: 0.3, mean: 0.4, sd: 0.2 }, x, 1000, 0.01);
  assert.ok(Math.abs(sum - 300) < 0.01);
});

test("points in and out of a hollow shape", () => {
  const letterC = [
    [0, 0],
    [10, 0],
    [10, 3],
    [3, 3],
    [3, 7],
    [10, 7],
    [10, 10],
    [0, 10],
  ];
  assert.ok(insidePolygon(letterC, 1, 5) && insidePolygon(letterC, 9, 1));
  assert.ok(!insidePolygon(letterC, 8, 5) && !insidePolygon(letterC, -1, 5));
  const circle = Array.from({ length: 500 }, (_, at) => [1000 * Math.cos(at / 80), 1000 * Math.sin(at / 80)]);
  assert.ok(thinPolygon(circle).length <= 48);
  assert.equal(nearestPoint([0, 0, 5, 5], 4, 4, 3), 1);
  assert.equal(nearestPoint([0, 0, 5, 5], 40, 4, 3), -1);
});

test("all shapes look different, at the sizes in use", () => {
  for (const radius of [2.6, 4, 5.2, 6]) assert.equal(new Set(SHAPES.map((shape) => String(shapePixels(shape, radius)))).size, SHAPES.length);
});

test("points are drawn where they are and never outside the picture", () => {
  const places = placePoints(new Float32Array(4), [0, 0, 65535, 65535], [65535, 65535, 0, 0], 0, 20, 10, 2);
  assert.deepEqual([...places], [2, 8, 18, 2]);
  assert.deepEqual([...placePoints(new Float32Array(4), [0, 0, 65535, 65535], [65535, 65535, 0, 0], 1, 20, 10, 2)], [18, 2, 2, 8]);
  const pixels = new Uint32Array(200);
  drawPoints(pixels, 20, 10, new Float32Array([0, 0, 19.9, 9.9, 5, 5]), new Uint8Array([0, 0, 255]), [
    { pixels: shapePixels("square", 2), colour: pixelOf("#ff8000") },
  ]);
  assert.equal(pixels[0], 0xff0080ff); // alpha, blue, green, red
  assert.equal(pixels[199], 0xff0080ff);
  assert.equal(pixels[5 * 20 + 5], 0);
});

test("a map is read as it was packed", () => {
  const pack = (array) => Buffer.from(array.buffer).toString("base64");
  const short = pack(new Uint16Array([1, 65535]));
  const map = readMap({
    n: 1,
    method: "m",
    before: short,
    after: short,
    item: pack(new Int32Array([-1])),
    given: pack(new Uint16Array([3])),
    suggested: pack(new Uint16Array([4])),
    flags: "Aw==",
    noise: "/w==",
  });
  assert.deepEqual([...map.before, ...map.item, ...map.given, ...map.suggested, ...map.flags, ...map.noise], [1, 65535, -1, 3, 4, 3, 255]);
  assert.equal(readMap(null), null);
});

test("points that nobody judged are neither kept nor surely right", () => {
  const map = { n: 4, flags: Uint8Array.of(4, UNJUDGED, UNJUDGED | 8, 1), noise: Uint8Array.of(0, 0, 0, 255) };
  for (const mode of ["noise", "changed"]) {
    const { entries, legend, kindOf } = colouring({ map }, mode);
    assert.deepEqual(
      [...kindOf].map((kind) => entries[kind].words === "not judged"),
      [false, true, true, false],
    );
    assert.ok(legend.some(({ words }) => words.startsWith("not judged")));
    const judged = { ...map, flags: Uint8Array.of(4, 4, 4, 1) };
    assert.ok(!colouring({ map: judged }, mode).legend.some(({ words }) => words.startsWith("not judged")));
  }
});

test("keys: combinations are left alone, digits give a place, a new key is taken from its old action", () => {
  const usual = bindingsWith();
  assert.deepEqual(actionFor({ key: "a" }, usual), ["accept", null]);
  assert.deepEqual(actionFor({ key: "Z", shiftKey: true }, usual), ["redo", null]);
  assert.deepEqual(actionFor({ key: "7" }, usual), ["digit", 7]);
  for (const held of ["ctrlKey", "metaKey", "altKey"]) assert.equal(actionFor({ key: "a", [held]: true }, usual), null);
  assert.equal(actionFor({ key: "q" }, usual), null);
  const own = rebind(usual, "keep", "a");
  assert.deepEqual(actionFor({ key: "a" }, own), ["keep", null]);
  assert.equal(actionFor({ key: "a" }, usual)[0], "accept");
  assert.deepEqual(actionFor({ key: "Enter" }, usual), ["details", null]);
  assert.deepEqual(actionFor({ key: "Enter" }, bindingsWith({ accept: ["a", "Enter"] })), ["details", null], "keys that were kept when Enter accepted");
  assert.equal(actionFor({ key: "x" }, own), null);
});

test("rows sort by number or alphabet, with what is unknown last both ways", () => {
  const order = (values, descending) => sortedRows(values, (value) => value, descending);
  assert.deepEqual(order(["10", "9", "", "-1"], true), ["10", "9", "-1", ""]);
  assert.deepEqual(order(["10", "9", "", "-1"], false), ["-1", "9", "10", ""]);
  assert.deepEqual(order(["b", "a"], false), ["a", "b"]);
});

test("numbers in words", () => {
  assert.equal(whole(1234567), "1,234,567");
  assert.deepEqual([counted(1, "image"), counted(2, "class"), counted(2, "copy")], ["1 image", "2 classes", "2 copies"]);
});
