// Which key does what. Nothing here touches the page.

/** The actions: [name, words, keys, whether it is one of reviewing and so needs the grid or the details in sight]. */
export const ACTIONS = [
  ["previous", "previous", ["ArrowLeft", "k"], true],
  ["next", "next", ["ArrowRight", "j"], true],
  ["up", "row up", ["ArrowUp"], true],
  ["down", "row down", ["ArrowDown"], true],
  ["details", "open the details", ["Enter"], true],
  ["accept", "accept the suggestion", ["a"], true],
  ["keep", "keep the given label", ["x"], true],
  ["pick", "choose another class", ["c"], true],
  ["drop", "drop the image", ["d"], true],
  ["unsure", "unsure, look later", ["u"], true],
  ["undo", "undo", ["z"], false],
  ["redo", "redo", ["Z"], false],
  ["select", "select; with Shift, a range", [" "], true],
  ["open", "next not reviewed", ["g"], true],
  ["zoom", "full screen", ["f"], false],
  ["bigger", "bigger picture", ["+"], false],
  ["smaller", "smaller picture", ["-"], false],
  ["flip", "model before / after", ["b"], false],
  ["near", "nearest images", ["n"], true],
  ["map", "feature map", ["m"], false],
  ["hide", "hide reviewed", ["h"], false],
  ["export", "export corrections", ["e"], false],
  ["escape", "close; clear filters", ["Escape"], false],
  ["help", "these keys", ["?"], false],
];

/** Return the keys of each action, {action: [key, ...]}: those chosen by the person, else the usual ones. */
export function bindingsWith(chosen = {}) {
  return Object.fromEntries(ACTIONS.map(([action, , keys]) => [action, Array.isArray(chosen[action]) ? chosen[action] : keys]));
}

/** Return bindings in which `key` does `action` and nothing else. */
export function rebind(bindings, action, key) {
  const freed = Object.fromEntries(Object.entries(bindings).map(([other, keys]) => [other, keys.filter((taken) => taken !== key)]));
  return { ...freed, [action]: [key] };
}

/** Return [action, digit] of a pressed key: "digit" with 1 to 9, an action with null, or null for keys that mean nothing here. */
export function actionFor(event, bindings) {
  // Combinations belong to the browser and the system.
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return null;
  const found = Object.entries(bindings).find(([, keys]) => keys.includes(event.key));
  if (found) return [found[0], null];
  return /^[1-9]$/.test(event.key) ? ["digit", Number(event.key)] : null;
}

/** Return how a key is written on the page. */
export function keyWords(key) {
  return { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "Space", Escape: "Esc", Z: "Shift+z" }[key] ?? key;
}
