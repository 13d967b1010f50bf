// What a key is about, and how decisions reach the server, run by `node --test tests/report/js`.

import assert from "node:assert/strict";
import { test } from "node:test";

const said = [];
const live = {
  dataset: {},
  classList: { add() {}, remove() {} },
  set textContent(text) {
    said.push(text);
  },
};
globalThis.document = { getElementById: () => live };
globalThis.window = { addEventListener() {} };

const assets = new URL("../../../src/fspmu/report/assets/", import.meta.url);
const load = (name) => import(new URL(`${name}.js`, assets));
const { readPage } = await load("data");
const { decideItems, newApp, refreshList, selection, selectOnly, targets, travel } = await load("state");
const { keepReview, newPrefs, saveTo } = await load("storage");

function newPage() {
  const five = (value) => Array.from({ length: 5 }, () => value);
  const labels = { given: five(0), suggested: five(1), predicted: five(1), before: five([]), after: five([]), reasons: five([]), true: null };
  const figures = { noise: five(0.9), score: five(null), action: five("forget"), map: five(-1) };
  const items = { suspects: 5, id: ["a", "b", "c", "d", "e"], path: five(""), ...labels, ...figures };
  return readPage({ key: "k", classes: ["cat", "dog", "owl"], items, map: null, flips: null });
}

function start() {
  const app = newApp(newPage(), newPrefs(null));
  refreshList(app);
  return app;
}

const keep = () => ({ decision: "keep" });
const row = { id: "e", path: "", given_label: "cat", new_label: "owl", decision: "accept", reviewer: "", time: "2026-01-01" };

test("with the details open a key is about the image they show, else about the selection", () => {
  const app = start();
  Object.assign(app, { current: 4 });
  assert.deepEqual(targets(app), [4]);
  selectOnly(app, [3, 1]);
  assert.deepEqual(targets(app), [1, 3]);
  app.drawer = true;
  assert.deepEqual([targets(app), selection(app)], [[4], [1, 3]]);
});

test("what was decided together is no longer selected, and is taken back in one step", () => {
  const app = start();
  selectOnly(app, [0, 1, 2]);
  decideItems(app, targets(app), keep);
  assert.deepEqual([app.selected.size, app.review.decisions.size, said.at(-1)], [0, 3, "3 decisions made; z takes them back"]);
  app.current = 4;
  assert.deepEqual(targets(app), [4], "the next key is about the current image again");
  travel(app, "undo");
  assert.equal(app.review.decisions.size, 0);
});

test("what is said of one image is not said of another", () => {
  const app = start();
  app.current = 4;
  selectOnly(app, [2]);
  decideItems(app, targets(app), keep);
  assert.equal(said.at(-1), "1 decision made; z takes it back");
  decideItems(app, targets(app), keep);
  assert.equal(said.at(-1), "Kept: cat");
});

test("decisions that a page came with and that no longer fit are left out, and that is said", () => {
  for (const given_label of ["cat", "dog"]) {
    const states = [];
    const app = newApp({ ...newPage(), review: { schema: 1, key: "k", decisions: [{ ...row, given_label }] } }, newPrefs(null));
    keepReview(app, { storage: null, server: null, report: (...state) => states.push(state) });
    const fits = given_label === "cat";
    assert.deepEqual([app.review.decisions.size, states.some(([place]) => place === "left out")], [fits ? 1 : 0, !fits]);
  }
});

/** Let a page save to a server that answers each message by `reply(document, revision)`: {status, body}. */
function saving(reply) {
  const [app, sent, states] = [start(), [], []];
  globalThis.fetch = async (_, { headers, body }) => {
    sent.push({ revision: headers["X-Fspmu-Revision"], ids: JSON.parse(body).decisions.map(({ id }) => id) });
    const { status = 200, body: answer } = reply(sent.length);
    const text = typeof answer === "string" ? answer : JSON.stringify(answer);
    return { ok: status === 200, status, text: async () => text, json: async () => JSON.parse(text) };
  };
  saveTo(app, { save: "/review", token: "t", revision: "7" }, (...state) => states.push(state), [], false);
  const settled = () => new Promise((resolve) => setTimeout(resolve, 400));
  return { app, sent, states, settled };
}

test("what another page saved is taken in and sent along", async () => {
  const theirs = { schema: 1, key: "k", decisions: [row] };
  const { app, sent, states, settled } = saving((n) => (n === 1 ? { status: 409, body: { revision: "8", review: theirs } } : { body: { revision: "9" } }));
  app.current = 0;
  decideItems(app, [0], keep);
  await settled();
  assert.deepEqual(sent, [
    { revision: "7", ids: ["a"] },
    { revision: "8", ids: ["a", "e"] },
  ]);
  assert.deepEqual([app.decisionOf(4).label, said.at(-1), states.at(-1)], [2, "1 decision taken in from another page", ["server", "saved"]]);
  travel(app, "undo");
  await settled();
  assert.deepEqual(sent.at(-1), { revision: "9", ids: ["e"] }, "taking back is of one's own decisions");
});

test("what the server refuses is told in its words and not sent again before the next change", async () => {
  const { app, sent, states, settled } = saving((n) => (n === 1 ? { status: 403, body: "the token is missing\n" } : { body: { revision: "8" } }));
  app.current = 0;
  decideItems(app, [0], keep);
  await settled();
  await settled();
  assert.deepEqual([sent.length, states.at(-1)], [1, ["server", "refused", "the token is missing"]]);
  decideItems(app, [1], keep);
  await settled();
  assert.deepEqual([sent.length, states.at(-1)], [2, ["server", "saved"]]);
});
