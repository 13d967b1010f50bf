// How much a small sample says about a share.

/** Return the Wilson score interval {low, high, share} of `hits` among `n` at about 95 %, or null where nothing was counted. */
export function wilson(hits, n, z = 1.959964) {
  if (n <= 0) return null;
  const share = hits / n;
  const centre = share + (z * z) / (2 * n);
  const spread = z * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  const scale = 1 + (z * z) / n;
  return { share, low: hits === 0 ? 0 : Math.max(0, (centre - spread) / scale), high: hits === n ? 1 : Math.min(1, (centre + spread) / scale) };
}

/** Return a generator of numbers in [0, 1) that a 32-bit seed determines (mulberry32). */
export function seededNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Return `count` different numbers below `n` in the order they were drawn; the same seed draws the same. */
export function drawSample(n, count, seed) {
  const next = seededNumbers(seed);
  const moved = new Map();
  const drawn = [];
  // Fisher and Yates' shuffle, of which only the places that moved are kept.
  for (let place = 0; place < Math.min(count, n); place += 1) {
    const other = place + Math.floor(next() * (n - place));
    drawn.push(moved.get(other) ?? other);
    moved.set(other, moved.get(place) ?? place);
  }
  return drawn;
}

/** Return {judged, wrong, skipped, interval} of the drawn samples: the share of them whose given label a person found wrong. */
export function samplePrecision(drawn, decisionOf) {
  let [judged, wrong, skipped] = [0, 0, 0];
  for (const item of drawn) {
    const decision = decisionOf(item)?.decision;
    if (decision === "accept" || decision === "keep") {
      judged += 1;
      wrong += decision === "accept" ? 1 : 0;
    } else if (decision) {
      skipped += 1; // a dropped or doubtful image says nothing about its label
    }
  }
  return { judged, wrong, skipped, interval: wilson(wrong, judged) };
}
