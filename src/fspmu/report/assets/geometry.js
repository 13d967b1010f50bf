// Points in a plane: what lies inside a lasso, and what is near.

/** Return whether (x, y) lies inside a polygon [[x, y], ...] by the even-odd rule. */
export function insidePolygon(polygon, x, y) {
  let inside = false;
  for (let at = 0, before = polygon.length - 1; at < polygon.length; before = at, at += 1) {
    const [ax, ay] = polygon[at];
    const [bx, by] = polygon[before];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

/** Return at most `most` corners of a drawn line, evenly chosen, as whole numbers: short enough for an address. */
export function thinPolygon(polygon, most = 48) {
  const step = Math.max(1, polygon.length / most);
  const thin = [];
  for (let at = 0; at < polygon.length; at += step) thin.push(polygon[Math.floor(at)].map(Math.round));
  return thin;
}

/** Return a polygon of 24 corners around (x, y). */
export function circlePolygon(x, y, radius) {
  return Array.from({ length: 24 }, (_, at) => [
    Math.round(x + radius * Math.cos((at * Math.PI) / 12)),
    Math.round(y + radius * Math.sin((at * Math.PI) / 12)),
  ]);
}

/** Return the place of the point of flat coordinates [x0, y0, x1, ...] nearest to (x, y) within `reach`, or -1. */
export function nearestPoint(flat, x, y, reach) {
  let best = -1;
  let least = reach * reach;
  for (let at = 0; at < flat.length; at += 2) {
    const distance = (flat[at] - x) ** 2 + (flat[at + 1] - y) ** 2;
    if (distance < least) [best, least] = [at / 2, distance];
  }
  return best;
}
