// What the points of the map look like: a colour and a shape each, never the colour alone.

import { className, whole } from "./data.js";
import { SHAPES } from "./raster.js";

export const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", "#777777"];
const LEVELS = [
  ["#56b4e9", "0 to 0.2"],
  ["#0072b2", "0.2 to 0.4"],
  ["#9a9a9a", "0.4 to 0.6"],
  ["#e69f00", "0.6 to 0.8"],
  ["#d55e00", "0.8 to 1"],
];

/** The flag of a point whose label nobody judged. */
export const UNJUDGED = 16;
const NOT_JUDGED = { words: "not judged", colour: "#858585", shape: "plus", size: 0.9 };

// Eight colours and six shapes make 24 looks; of more classes, some share theirs.
const LOOKS = 24;

function byClass(page, labels, field) {
  const shared = page.classes.length > LOOKS;
  const entries = Array.from({ length: Math.min(LOOKS, page.classes.length) }, (_, label) => {
    const look = { colour: COLOURS[label % COLOURS.length], shape: SHAPES[label % SHAPES.length], size: 1 };
    return { ...look, label, field, words: `${className(page, label)}${shared ? " …" : ""}` };
  });
  return { entries, legend: entries, kindOf: Uint8Array.from(labels, (label) => label % LOOKS) };
}

/** Return {entries, legend, kindOf} for one way of colouring: the looks, their words, and the look of each point. */
export function colouring(page, mode) {
  const { map } = page;
  if (mode === "given" || mode === "suggested") return byClass(page, map[mode], mode);
  if (mode === "noise") {
    const entries = LEVELS.map(([colour, words], level) => ({
      words: `P(wrong) ${words}`,
      colour,
      shape: ["disc", "disc", "square", "diamond", "triangle"][level],
      size: 1 + 0.07 * level,
    }));
    const kindOf = Uint8Array.from(map.noise, (noise, point) => (map.flags[point] & UNJUDGED ? 5 : Math.min(4, Math.floor((noise / 256) * 5))));
    return { entries: [...entries, NOT_JUDGED], legend: kindOf.includes(5) ? [...entries, NOT_JUDGED] : entries, kindOf };
  }
  const entries = [
    { words: "label kept", colour: "#6d8fb0", shape: "disc", size: 0.8, alpha: 210 },
    { words: "issue, forgotten", colour: "#d55e00", shape: "triangle", size: 1.2 },
    { words: "issue, for review", colour: "#e69f00", shape: "diamond", size: 1.1 },
    { words: "wrong in truth, not found", colour: "#cc79a7", shape: "cross", size: 1.2 },
    NOT_JUDGED,
  ];
  const kindOf = Uint8Array.from(map.flags, (flags) => (flags & 2 ? 1 : flags & 1 ? 2 : flags & UNJUDGED ? 4 : flags & 8 ? 3 : 0));
  const counts = entries.map(() => 0);
  for (const kind of kindOf) counts[kind] += 1;
  const legend = entries.map((entry, kind) => ({ ...entry, words: `${entry.words} (${whole(counts[kind])})` })).filter((_, kind) => counts[kind] > 0);
  return { entries, legend, kindOf };
}
