// Decisions, exports, filters and addresses, run by `node --test tests/report/js`.

import assert from "node:assert/strict";
import { test } from "node:test";

const assets = new URL("../../../src/fspmu/report/assets/", import.meta.url);
const load = (name) => import(new URL(`${name}.js`, assets));
const { csvCell, toCsv } = await load("csv");
const { correctionsCsv, labelsCsv, metadataCsv } = await load("exports");
const { activeFilters, filterTests, hashToView, inScope, noFilters, sortKey, statusOf, viewToHash } = await load("filters");
const { drawSample, seededNumbers } = await load("interval");
const { likelyClasses, readPage } = await load("data");
const { matrixShape, wordsOfRest } = await load("matrix");
const { fittingClasses } = await load("picker");
const { decide, latest, mergeDecisions, newReview, normalDecision, progress, readDocument, redo, reviewDocument, takeIn, undo } = await load("review");
const { newPrefs } = await load("storage");

const CLASSES = ["cat", "=dog", 'a,"b"', "line\nbreak"];
const items = {
  suspects: 3,
  suspects_total: 5,
  id: ["i0", "-1", "i2", "i3", "__proto__"],
  path: ["x/0.png", "=x/1.png", "", "x/3.png", "x/4.png"],
  given: [0, 1, 2, 3, 0],
  predicted: [1, 1, 0, 3, 0],
  suggested: [1, 0, 3, 3, 0],
  confidence: [0.9, 0.8, 0.7, 0.6, 0.5],
  noise: [0.9, 0.8, 0.7, 0.1, null],
  score: [0.9, 0.8, 0.7, 0.2, 0.1],
  action: ["forget", "forget", "review", "retain", "retain"],
  true: [1, 1, 3, 3, null],
  reasons: [["r"], [], ["r", "s"], [], []],
  before: [
    [
      [1, 0.9],
      [0, 0.1],
    ],
    [],
    [],
    [],
    [],
  ],
  after: [[], [], [], [], []],
  near: [[], [], [], [], []],
  near_same: [0.1, 0.9, null, 1, 1],
  tile: [null, null, null, null, null],
  map: [-1, -1, -1, -1, -1],
  evaluation: [false, false, false, true, true],
};
const page = readPage({ key: "k", classes: CLASSES, items, map: null, flips: { fixed: [3], broken: [4] } });
const accept = (label, time = "") => ({ decision: "accept", label, reviewer: "Ann", time });
const keep = { decision: "keep", label: null, reviewer: "", time: "" };

/** Read RFC 4180 text back: an independent, slow reader. */
function readCsv(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|$)/g)) {
    rows.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === "\r\n") rows.push([]);
    if (end === "") break;
  }
  return rows.slice(0, -1);
}

test("cells are quoted where they must be and never begin a formula", () => {
  assert.equal(csvCell('a,"b"'), '"a,""b"""');
  assert.equal(csvCell("two\nlines"), '"two\nlines"');
  assert.equal(csvCell(null), "");
  assert.equal(csvCell(0), "0");
  for (const first of ["=", "+", "-", "@", "\t", "\r"]) assert.match(csvCell(`${first}1+1`), /^"?'/);
});

test("tables read back whatever they held", () => {
  const next = seededNumbers(3);
  const signs = [..."ab,\"\n\r'=-@\t é🐈\u2028"];
  const cell = () => Array.from({ length: Math.floor(next() * 6) }, () => signs[Math.floor(next() * signs.length)]).join("");
  const unprefixed = (text) => (/^'+[=+\-@\t\r]/.test(text) ? text.slice(1) : text);
  for (let round = 0; round < 300; round += 1) {
    const rows = Array.from({ length: 3 }, () => [cell(), cell(), `${cell()}.`]);
    assert.deepEqual(
      readCsv(toCsv(["a", "b", "c"], rows))
        .slice(1)
        .map((row) => row.map(unprefixed)),
      rows,
    );
  }
});

test("corrections hold decided samples alone, with names that survive", () => {
  const review = newReview();
  decide(review, [
    [2, accept(3, "2026-01-02T03:04:05.000Z")],
    [1, keep],
    [0, { decision: "drop", label: null }],
  ]);
  const rows = readCsv(correctionsCsv(page, review));
  assert.deepEqual(rows[0], ["id", "path", "given_label", "new_label", "decision", "reviewer", "time"]);
  assert.deepEqual(rows.slice(1), [
    ["i0", "x/0.png", "cat", "", "drop", "", ""],
    ["'-1", "'=x/1.png", "'=dog", "'=dog", "keep", "", ""],
    ["i2", "", 'a,"b"', "line\nbreak", "accept", "Ann", "2026-01-02T03:04:05.000Z"],
  ]);
  assert.deepEqual(
    readCsv(labelsCsv(page, review)).map(([id]) => id),
    ["id", "'-1", "i2", "i3", "__proto__"],
  );
  assert.deepEqual(readCsv(metadataCsv(page, review)), [
    ["file_name", "label"],
    ["'-1", "'=dog"],
    ["i3", "line\nbreak"],
    ["__proto__", "cat"],
  ]);
});

test("undo and redo go through any history exactly", () => {
  const next = seededNumbers(11);
  const review = newReview();
  const snapshot = () => JSON.stringify([...review.decisions].map(([item, made]) => [item, made.decision, made.label]).sort());
  const states = [snapshot()];
  for (let step = 0; step < 60; step += 1) {
    const changes = Array.from({ length: 1 + Math.floor(next() * 3) }, (_, at) => [
      (Math.floor(next() * 5) + at) % 5,
      next() < 0.2 ? null : next() < 0.5 ? keep : accept(Math.floor(next() * 4)),
    ]);
    if (decide(review, [...new Map(changes)])) states.push(snapshot());
  }
  for (const state of states.slice(0, -1).reverse()) {
    assert.ok(undo(review));
    assert.equal(snapshot(), state);
  }
  assert.equal(undo(review), null);
  for (const state of states.slice(1)) {
    assert.ok(redo(review));
    assert.equal(snapshot(), state);
  }
  assert.equal(redo(review), null);
});

test("a new decision forgets what could be redone; deciding the same is no step", () => {
  const review = newReview();
  decide(review, [[0, keep]]);
  undo(review);
  decide(review, [[1, keep]]);
  assert.equal(redo(review), null);
  assert.equal(decide(review, [[1, { ...keep, time: "later" }]]), null);
  assert.equal(review.revision, 3);
});

test("accepting the given label is keeping it", () => {
  assert.equal(normalDecision(accept(2), 2).decision, "keep");
  assert.equal(normalDecision(accept(1), 2).label, 1);
  assert.equal(statusOf(accept(1), 1), "accept");
  assert.equal(statusOf(accept(2), 1), "relabel");
  assert.equal(statusOf(undefined, 1), "open");
});

test("a review survives its document, and foreign rows are counted, not taken", () => {
  const review = newReview();
  decide(review, [
    [0, accept(1, "t")],
    [4, keep],
  ]);
  const document = JSON.parse(JSON.stringify(reviewDocument(page, review)));
  const read = readDocument(page, document);
  assert.deepEqual(
    read.changes.map(([item, made]) => [item, made.decision, made.label]),
    [
      [0, "accept", 1],
      [4, "keep", null],
    ],
  );
  const given = 'a,"b"';
  document.decisions.push({ id: "nobody", given_label: "cat", decision: "keep" }, { id: "i2", given_label: given, decision: "toString" });
  document.decisions.push({ id: "i2", given_label: given, decision: "accept", new_label: "wolf" }, null);
  assert.equal(readDocument(page, document).unknown, 4);
  assert.throws(() => readDocument(page, { schema: 2, decisions: [] }), /schema/);
  assert.throws(() => readDocument(page, []), /schema/);
});

test("a decision that was made for another label does not fit", () => {
  const row = { id: "i2", given_label: "cat", decision: "keep" };
  assert.deepEqual(readDocument(page, { schema: 1, decisions: [row] }), { changes: [], unknown: 1 });
  assert.equal(readDocument(page, { schema: 1, decisions: [{ ...row, given_label: 'a,"b"' }] }).unknown, 0);
});

test("of two pages nobody's decision is lost, and the later word counts", () => {
  const merged = (base, mine, theirs) => {
    const review = { ...newReview(), decisions: new Map(mine) };
    const count = takeIn(review, new Map(base), new Map(theirs));
    assert.equal(review.revision, count ? 1 : 0);
    return [...review.decisions].map(([item, made]) => [item, made.decision === "keep" ? "keep" : made.label]).sort();
  };
  const [early, late] = [accept(1, "2026-01-01"), accept(3, "2026-01-02")];
  assert.deepEqual(merged([], [[0, early]], [[1, late]]).length, 2, "both decided");
  assert.deepEqual(merged([], [[0, late]], [[0, early]]), [[0, 3]]);
  assert.deepEqual(merged([], [[0, early]], [[0, late]]), [[0, 3]]);
  assert.deepEqual(merged([[0, early]], [], [[0, early]]), [], "I took it back, the other page did not touch it");
  assert.deepEqual(merged([[0, early]], [[0, early]], []), [], "the other page took it back");
  assert.deepEqual(merged([[0, early]], [[0, keep]], []), [[0, "keep"]], "I decided otherwise, the other page took it back");
  assert.deepEqual(merged([[0, early]], [], [[0, late]]), [[0, 3]], "the other page decided otherwise, I took it back");
});

test("merging lists contradictions; of two stores the later word counts", () => {
  const review = newReview();
  decide(review, [
    [0, keep],
    [1, accept(2)],
  ]);
  const merged = mergeDecisions(review, [
    [0, keep],
    [1, accept(3)],
    [2, keep],
  ]);
  assert.deepEqual([merged.fresh.length, merged.agreeing, merged.conflicts.map(([item]) => item)], [1, 1, [1]]);
  assert.equal(latest([[0, accept(1, "2026-01-02")]], [[0, accept(2, "2026-01-01")]])[0][1].label, 1);
  assert.deepEqual(progress(review, [0, 1, 2]), { accept: 1, keep: 1, drop: 0, unsure: 0, decided: 2, total: 3 });
});

test("every view survives its address", () => {
  const views = [
    {},
    { given: 3 },
    { suggested: 0, action: "forget" },
    { status: "relabel", truth: "wrong" },
    { text: "a&b=c#d é" },
    { reason: "high loss & more" },
    { score: [0.25, Infinity] },
    { score: [-Infinity, 0.5], scope: "all" },
    { set: "broken" },
    { sample: { count: 50, seed: 7 } },
    {
      lasso: {
        layout: "after",
        polygon: [
          [0, 1],
          [65535, 2],
          [3, 65535],
        ],
      },
    },
  ].map((filters) => ({ filters: { ...noFilters(), ...filters }, sort: "pair", hide: true, item: "train/é&1" }));
  for (const view of views) assert.deepEqual(hashToView(`#${viewToHash(view)}`, 4), view);
  assert.equal(viewToHash({ filters: noFilters() }), "");
});

test("an address that was tampered with gives a harmless view", () => {
  const view = hashToView("#g=99&s=-1&p=x&a=__proto__&d=constructor&t=maybe&r=a~b&n=50.&l=before:1.2&sort=constructor&set=all", 4);
  assert.deepEqual(view, { filters: noFilters(), sort: "noise", hide: false, item: null });
});

test("filters let through what they say", () => {
  const shown = (filters, more = {}) => {
    const all = { ...noFilters(), ...filters };
    const tests = Object.values(filterTests(page, all, { decisionOf: (item) => (item === 1 ? keep : undefined), ...more }));
    return inScope(page, all).filter((item) => tests.every((check) => check(item)));
  };
  assert.deepEqual(shown({}), [0, 1, 2]);
  assert.deepEqual(shown({ scope: "all" }), [0, 1, 2, 3, 4]);
  assert.deepEqual(shown({ given: 0, scope: "all" }), [0, 4]);
  assert.deepEqual(shown({ status: "keep" }), [1]);
  assert.deepEqual(shown({ status: "open" }), [0, 2]);
  assert.deepEqual(shown({ truth: "wrong", scope: "all" }), [0, 2]);
  assert.deepEqual(shown({ truth: "right", scope: "all" }), [1, 3]);
  assert.deepEqual(shown({ reason: "s" }), [2]);
  assert.deepEqual(shown({ text: " DOG " }), [0, 1]);
  assert.deepEqual(shown({ score: [0.75, Infinity] }), [0, 1]);
  const unscored = { ...page, items: { ...items, score: [null, 0.8, -0.3, null, 0.1] } };
  assert.deepEqual(
    [0, 1, 2, 3, 4].filter(filterTests(unscored, { ...noFilters(), score: [-0.3, Infinity] }, {}).score),
    [1, 2, 4],
    "what has no score lies nowhere",
  );
  assert.deepEqual(shown({ set: "fixed" }), [3]);
  assert.deepEqual(shown({ sample: { count: 1, seed: 0 } }, { drawn: new Set(drawSample(3, 1, 0)) }).length, 1);
  assert.deepEqual(activeFilters({ ...noFilters(), given: 0, text: "x" }), ["given", "text"]);
});

test("orders", () => {
  const order = (name) => [0, 1, 2, 3, 4].sort(sortKey(page, name));
  assert.deepEqual(order("noise"), [0, 1, 2, 3, 4]);
  assert.deepEqual(order("near"), [0, 1, 3, 4, 2]);
  assert.deepEqual(order("id"), [1, 4, 0, 2, 3]);
  assert.deepEqual(order("margin")[0], 0 + (0.9 - 0.1 < 0.8 - 0 ? 1 : 0));
  assert.deepEqual(order("given"), [4, 0, 1, 2, 3]);
});

test("the picker puts names that begin with the letters first", () => {
  const classes = ["wildcat", "cat", "catfish", "dog"];
  assert.deepEqual(fittingClasses(classes, "cat"), [1, 2, 0]);
  assert.deepEqual(fittingClasses(classes, "", [3]), [3, 0, 1, 2]);
  assert.deepEqual(fittingClasses(classes, "zebra"), []);
});

test("the n-th likeliest class: the chosen model first, then the other, then the labels; each class once", () => {
  const some = {
    ...items,
    before: [
      [
        [2, 0.6],
        [0, 0.4],
      ],
    ],
    after: [
      [
        [3, 0.9],
        [2, 0.1],
      ],
    ],
    suggested: [1],
    given: [0],
  };
  assert.deepEqual(likelyClasses({ classes: CLASSES, items: some }, 0, "before"), [2, 0, 3, 1]);
  assert.deepEqual(likelyClasses({ classes: CLASSES, items: some }, 0, "after"), [3, 2, 0, 1]);
  assert.deepEqual(likelyClasses({ classes: CLASSES, items: { ...some, before: [[]], after: [[]] } }, 0, "before"), [1, 0]);
});

test("a matrix of very many classes keeps the busiest and counts the rest", () => {
  const shape = matrixShape(
    [
      [0, 1, 5],
      [900, 901, 50],
      [3, 4, 1],
    ],
    1000,
    2,
  );
  assert.deepEqual([shape.classes, shape.left, shape.most], [[900, 901], 6, 50]);
  assert.equal(matrixShape([[0, 1, 5]], 3).classes.length, 3);
  assert.match(wordsOfRest(30, 1000, 1), /of 1,000 classes .* 1 issue between other classes is not/);
  assert.match(wordsOfRest(30, 1000, 6), /6 issues between other classes are not/);
});

test("preferences work without storage and with a broken one", () => {
  const broken = {
    getItem: () => "{not json",
    setItem: () => {
      throw new Error("full");
    },
  };
  for (const storage of [null, broken]) {
    const prefs = newPrefs(storage);
    prefs.set("size", 64);
    assert.equal(prefs.get("size"), 64);
    assert.equal(prefs.get("constructor"), undefined);
  }
});
