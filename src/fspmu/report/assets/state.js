// What is shown and what was decided: the one place that changes it, and who is told.

import { counted } from "./data.js";
import { announce } from "./dom.js";
import { activeFilters, filterTests, hashToView, inScope, noFilters, sortKey } from "./filters.js";
import { insidePolygon } from "./geometry.js";
import { drawSample } from "./interval.js";
import { decide, newReview, normalDecision, redo, undo } from "./review.js";

/** Return the state of the page; `on` and `emit` pass events "list", "current", "selection", "review" and "model" on. */
export function newApp(page, prefs) {
  const listeners = {};
  const app = { page, prefs, review: newReview(), filters: noFilters(), sort: "noise", hide: false, model: "before" };
  Object.assign(app, { list: [], current: null, anchor: null, selected: new Set(), drawer: false, exported: 0 });
  app.on = (events, listener) => events.split(" ").forEach((event) => (listeners[event] ??= []).push(listener));
  app.emit = (event, detail) => (listeners[event] ?? []).forEach((listener) => listener(detail));
  app.decisionOf = (item) => app.review.decisions.get(item);
  return app;
}

/** Return the test of a lasso for samples: whether their point on the map lies inside. */
export function lassoTest(page, lasso) {
  if (!lasso || !page.map) return null;
  const places = page.map[lasso.layout];
  return (item) => {
    const point = page.items.map[item];
    return point >= 0 && insidePolygon(lasso.polygon, places[2 * point], places[2 * point + 1]);
  };
}

/** Return the tests by filter name for other filters than those of the page. */
export function testsFor(app, filters) {
  const { sample, lasso } = filters;
  const drawn = sample ? new Set(drawSample(app.page.items.suspects, sample.count, sample.seed)) : null;
  return filterTests(app.page, filters, { decisionOf: app.decisionOf, drawn, inLasso: lassoTest(app.page, lasso) });
}

/** Find out anew which samples are shown, and in which order; `stay` leaves the grid where it is. */
export function refreshList(app, stay = false) {
  const tests = Object.values(testsFor(app, app.filters));
  const open = (item) => !app.hide || !app.decisionOf(item);
  app.list = inScope(app.page, app.filters).filter((item) => open(item) && tests.every((test) => test(item)));
  app.list.sort(sortKey(app.page, app.sort));
  app.placeInList = new Map(app.list.map((item, place) => [item, place]));
  for (const item of app.selected) if (!app.placeInList.has(item)) app.selected.delete(item);
  app.emit("list", stay);
}

/** Change filters, e.g. {given: 3}, and show what they let through. */
export function setFilters(app, changes, { quiet = false } = {}) {
  app.filters = { ...app.filters, ...changes };
  refreshList(app);
  if (!quiet) announce(`${counted(app.list.length, "image")} shown`);
}

/** Take one filter away, or all of them. */
export function clearFilter(app, name) {
  const none = noFilters();
  setFilters(app, name ? { [name]: none[name] } : none);
}

/** Return whether any filter is set. */
export function isFiltered(app) {
  return activeFilters(app.filters).length > 0;
}

/** Go to the view that an address describes. */
export function applyHash(app, hash) {
  const view = hashToView(hash, app.page.classes.length);
  Object.assign(app, { filters: view.filters, sort: view.sort, hide: view.hide });
  refreshList(app);
  const item = view.item === null ? undefined : app.page.placeOf.get(view.item);
  if (item !== undefined) openItem(app, item);
}

/** Make a sample the current one. */
export function goTo(app, item) {
  if (item === undefined || item === null) return;
  app.current = item;
  app.emit("current");
}

/** Make a sample the current one and open its details. */
export function openItem(app, item) {
  app.drawer = true;
  goTo(app, item);
}

/** Close the details. */
export function closeDrawer(app) {
  app.drawer = false;
  app.emit("current");
}

/** Move by so many places in the list, from the first where none is current. */
export function move(app, by) {
  if (!app.list.length) return;
  const place = app.placeInList.get(app.current);
  goTo(app, app.list[place === undefined ? 0 : Math.max(0, Math.min(app.list.length - 1, place + by))]);
}

/** Go to the next sample of the list that nobody has decided, round the end; say so where there is none. */
export function nextOpen(app) {
  const from = (app.placeInList.get(app.current) ?? -1) + 1;
  const order = [...app.list.slice(from), ...app.list.slice(0, from)];
  const next = order.find((item) => !app.decisionOf(item));
  if (next === undefined) announce("Everything in this view is reviewed");
  else goTo(app, next);
}

function changed(app) {
  // Filters by decision must see it; the order stays, as no order depends on decisions.
  if (app.hide || app.filters.status) refreshList(app, true);
  app.emit("review");
}

/** Decide samples as one step: `choice(item)` returns {decision, label}; null takes decisions back. */
export function decideItems(app, items, choice) {
  const time = new Date().toISOString();
  const make = (item) => {
    const made = choice(item);
    return made && normalDecision({ label: null, reviewer: app.prefs.get("reviewer") ?? "", time, ...made }, app.page.items.given[item]);
  };
  const before = app.placeInList.get(app.current);
  const alone = items.length === 1 && items[0] === app.current;
  const step = decide(
    app.review,
    items.map((item) => [item, make(item)]),
  );
  // What was decided is done with: if it stayed selected, the next key would be about it again.
  if (items.filter((item) => app.selected.delete(item)).length) app.emit("selection");
  if (!step) return announce("No change");
  changed(app);
  if (alone && choice(items[0]) && app.prefs.get("advance") !== false) {
    const still = app.placeInList.has(app.current);
    if (still) move(app, 1);
    else goTo(app, app.list[Math.min(before ?? 0, app.list.length - 1)]);
  } else app.emit("current");
  return announce(alone ? sentenceOf(app, items[0]) : `${counted(step.length, "decision")} made; z takes ${step.length === 1 ? "it" : "them"} back`);
}

function sentenceOf(app, item) {
  const decision = app.decisionOf(item);
  const { classes, items } = app.page;
  if (!decision) return "Decision taken back";
  if (decision.decision === "accept") return `New label: ${classes[decision.label]}`;
  return { keep: `Kept: ${classes[items.given[item]]}`, drop: "Dropped from the data", unsure: "Marked unsure" }[decision.decision];
}

/** Take back ("undo") or repeat ("redo") a step, and show the sample that it was about. */
export function travel(app, direction) {
  const step = direction === "undo" ? undo(app.review) : redo(app.review);
  if (!step) return announce(direction === "undo" ? "Nothing to undo" : "Nothing to redo");
  changed(app);
  if (step.length === 1) goTo(app, step[0][0]);
  return announce(`${direction === "undo" ? "Undone" : "Redone"}: ${counted(step.length, "decision")}`);
}

/** Select or deselect a sample; with `range`, everything between it and the last one that was touched. */
export function toggleSelected(app, item, range = false) {
  const [from, to] = [app.placeInList.get(app.anchor), app.placeInList.get(item)];
  if (range && from !== undefined && to !== undefined) for (const other of app.list.slice(Math.min(from, to), Math.max(from, to) + 1)) app.selected.add(other);
  else if (!app.selected.delete(item)) app.selected.add(item);
  app.anchor = item;
  app.emit("selection");
}

/** Select exactly these samples. */
export function selectOnly(app, items) {
  app.selected = new Set(items);
  app.emit("selection");
}

/** Return the samples that are selected, in the order of the list: what the buttons above the grid are about. */
export function selection(app) {
  return app.list.filter((item) => app.selected.has(item));
}

/** Return the samples that a key is about: with the details open the one they show, else the selection, else the current one. */
export function targets(app) {
  if (!app.drawer && app.selected.size) return selection(app);
  return app.current === null ? [] : [app.current];
}
