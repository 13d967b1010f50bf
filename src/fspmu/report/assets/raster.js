// Tens of thousands of points as pixels: a shape is a list of offsets, a colour a number.

export const SHAPES = ["disc", "square", "triangle", "diamond", "cross", "plus"];

const INSIDE = {
  disc: (x, y) => x * x + y * y <= 1.02,
  square: (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 0.85,
  triangle: (x, y) => y <= 0.85 && y >= -1 && Math.abs(x) <= (y + 1) * 0.6,
  diamond: (x, y) => Math.abs(x) + Math.abs(y) <= 1.02,
  cross: (x, y) => Math.abs(Math.abs(x) - Math.abs(y)) <= 0.4,
  plus: (x, y) => Math.min(Math.abs(x), Math.abs(y)) <= 0.3,
};

/** Return the pixels [dx, dy, ...] of a shape of some radius in pixels around its middle. */
export function shapePixels(shape, radius) {
  if (radius < 1.5) return [0, 0, 1, 0, 0, 1, 1, 1]; // too small for a shape
  const pixels = [];
  const reach = Math.ceil(radius);
  for (let y = -reach; y <= reach; y += 1) {
    for (let x = -reach; x <= reach; x += 1) {
      const [u, v] = [x / radius, y / radius];
      if (Math.max(Math.abs(u), Math.abs(v)) <= 1.05 && INSIDE[shape](u, v)) pixels.push(x, y);
    }
  }
  return pixels;
}

/** Return the number that a pixel of a colour #rrggbb has in memory (little endian: alpha, blue, green, red). */
export function pixelOf(colour, alpha = 255) {
  const value = Number.parseInt(colour.slice(1), 16);
  return ((alpha << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

/** Draw points into pixels (Uint32Array of width × height): places are flat, `styles[kindOf[point]]` is {pixels, colour}; kind 255 is left out. */
export function drawPoints(pixels, width, height, places, kindOf, styles) {
  for (let point = 0; point < kindOf.length; point += 1) {
    const kind = kindOf[point];
    if (kind === 255) continue;
    const { pixels: shape, colour } = styles[kind];
    const [cx, cy] = [places[2 * point] | 0, places[2 * point + 1] | 0];
    for (let at = 0; at < shape.length; at += 2) {
      const [x, y] = [cx + shape[at], cy + shape[at + 1]];
      if (x >= 0 && x < width && y >= 0 && y < height) pixels[y * width + x] = colour;
    }
  }
}

/** Write the places between two layouts (0..65535) at `t` in [0, 1] into `out`, as pixels of a picture with a margin. */
export function placePoints(out, before, after, t, width, height, margin) {
  const [across, down] = [(width - 2 * margin) / 65535, (height - 2 * margin) / 65535];
  for (let at = 0; at < out.length; at += 2) {
    out[at] = margin + across * (before[at] + t * (after[at] - before[at]));
    out[at + 1] = margin + down * (65535 - (before[at + 1] + t * (after[at + 1] - before[at + 1])));
  }
  return out;
}
