// The page's data as the rest reads it; see render_page for where it comes from.

/** Return the bytes of a base64 text. */
export function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

/** Return the map with its columns as typed arrays, or null. */
export function readMap(map) {
  if (!map || !map.n) return null;
  const short = (text) => new Uint16Array(bytesOf(text).buffer);
  const columns = { before: short(map.before), after: short(map.after), given: short(map.given), suggested: short(map.suggested) };
  return { n: map.n, method: map.method, ...columns, item: new Int32Array(bytesOf(map.item).buffer), flags: bytesOf(map.flags), noise: bytesOf(map.noise) };
}

/** Return the payload ready for use: the map decoded, and places of samples by their id. */
export function readPage(payload) {
  const items = payload.items;
  const placeOf = new Map(items.id.map((id, place) => [id, place]));
  const fixed = new Set(payload.flips?.fixed ?? []);
  const broken = new Set(payload.flips?.broken ?? []);
  return { ...payload, items, count: items.id.length, map: readMap(payload.map), placeOf, fixed, broken };
}

/** Return the name of a class, or a dash. */
export function className(page, label) {
  return page.classes[label] ?? "–";
}

/** Return the classes of a sample from the likeliest on, as one model sees it, then as the other does, then suggested and given; no class twice. */
export function likelyClasses(page, item, model) {
  const { before, after, suggested, given } = page.items;
  const chances = model === "after" ? [after[item], before[item]] : [before[item], after[item]];
  const labels = chances.flatMap((list) => (list ?? []).map(([label]) => label));
  return [...new Set([...labels, suggested[item], given[item]])].filter((label) => label >= 0 && label < page.classes.length);
}

/** Return a fraction as a percentage with `digits` decimals, or a dash. */
export function percent(share, digits = 0) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)}\u202f%`;
}

/** Return a whole number with commas between thousands, as the rest of the page has them. */
export function whole(n) {
  return String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Return `n` things in words: 1 image, 2 images. */
export function counted(n, noun) {
  const many = noun.endsWith("s") ? `${noun}es` : noun.endsWith("y") ? `${noun.slice(0, -1)}ies` : `${noun}s`;
  return `${whole(n)} ${n === 1 ? noun : many}`;
}
