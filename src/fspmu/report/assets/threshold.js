// What a threshold on the score means, from the counts of the histogram alone.

/** Return the places where a threshold can stand: the edges of the bins, where counts are exact, and the run's own threshold. */
export function thresholdStops(scores) {
  return [...new Set([...scores.edges, scores.threshold])].filter(Number.isFinite).sort((a, b) => a - b);
}

/** Return the stop nearest to a value. */
export function nearestStop(stops, value) {
  return stops.reduce((best, stop) => (Math.abs(stop - value) < Math.abs(best - value) ? stop : best), stops[0]);
}

function above(edges, counts, threshold) {
  let sum = 0;
  for (let bin = 0; bin < counts.length; bin += 1) {
    const width = edges[bin + 1] - edges[bin];
    const share = threshold <= edges[bin] ? 1 : threshold >= edges[bin + 1] ? 0 : (edges[bin + 1] - threshold) / width;
    sum += counts[bin] * share;
  }
  return sum;
}

/** Return {suspects, share, exact, wrong, precision, recall, noise}: samples above a threshold, and how good and how sure that cut is. */
export function atThreshold(scores, threshold) {
  const suspects = above(scores.edges, scores.counts, threshold);
  const bin = Math.max(0, Math.min(scores.counts.length - 1, scores.edges.findIndex((edge, place) => place > 0 && threshold < edge) - 1));
  const last = threshold >= scores.edges[scores.edges.length - 1];
  const found = { suspects: Math.round(suspects), share: scores.total ? suspects / scores.total : 0, exact: scores.edges.includes(threshold) };
  found.noise = scores.noise_at[last ? scores.counts.length - 1 : bin] ?? null;
  if (!scores.wrong) return { ...found, wrong: null, precision: null, recall: null };
  const wrong = above(scores.edges, scores.wrong, threshold);
  const all = scores.wrong.reduce((sum, n) => sum + n, 0);
  return { ...found, wrong: Math.round(wrong), precision: suspects > 0 ? wrong / suspects : null, recall: all > 0 ? wrong / all : null };
}

/** Return the height of a fitted component at x, in samples per bin of the given width. */
export function componentAt(curve, x, total, width) {
  const distance = (x - curve.mean) / curve.sd;
  return (total * width * curve.weight * Math.exp(-0.5 * distance * distance)) / (curve.sd * Math.sqrt(2 * Math.PI));
}
