// The histogram of scores, its two fitted components, and a threshold that can be moved.

import { baseLayout, drawChart, ink, plain } from "./charts.js";
import { percent, whole } from "./data.js";
import { byId, framed } from "./dom.js";
import { setFilters } from "./state.js";
import { atThreshold, componentAt, nearestStop, thresholdStops } from "./threshold.js";

function tracesOf(scores) {
  const { edges, counts, wrong, total } = scores;
  const middle = counts.map((_, bin) => (edges[bin] + edges[bin + 1]) / 2);
  const width = counts.map((_, bin) => edges[bin + 1] - edges[bin]);
  const bars = (name, y, colour, pattern) => ({
    type: "bar",
    name,
    meta: name,
    x: middle,
    y,
    width,
    marker: {
      color: ink(colour),
      line: { width: 0.5, color: ink("--paper") },
      pattern: { shape: pattern, size: 5, fillmode: "overlay", fgcolor: ink("--paper") },
    },
  });
  const traces = wrong
    ? [
        bars(
          "label right (truth)",
          counts.map((n, bin) => n - wrong[bin]),
          "--bar",
          "",
        ),
        bars("label wrong (truth)", wrong, "--bar-wrong", "/"),
      ]
    : [bars("samples", counts, "--bar", "")];
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const mean = (high - low) / counts.length;
  const xs = Array.from({ length: 241 }, (_, step) => low + ((high - low) * step) / 240);
  for (const curve of scores.curves) {
    const style = curve.label === "wrong" ? { color: ink("--red"), dash: "dash" } : { color: ink("--blue"), dash: "solid" };
    traces.push({
      type: "scatter",
      mode: "lines",
      name: `fitted: ${plain(curve.label)}`,
      meta: `fitted: ${curve.label}`,
      x: xs,
      y: xs.map((x) => componentAt(curve, x, total, mean)),
      line: { ...style, width: 2.2 },
      hoverinfo: "skip",
    });
  }
  return traces;
}

function chartLayout(scores) {
  const layout = baseLayout(scores.axis, "samples");
  const { edges, counts } = scores;
  // A component much narrower than a bin would squash the bars.
  const top = 1.3 * Math.max(1, ...counts);
  Object.assign(layout, { barmode: "stack", bargap: 0 });
  Object.assign(layout.xaxis, { range: [edges[0], edges[edges.length - 1]], autorange: false });
  Object.assign(layout.yaxis, { range: [0, top], autorange: false });
  return layout;
}

function sentences(page, found, threshold) {
  const { scores, known, items } = page;
  const about = found.exact ? "" : "about ";
  const own = threshold === scores.threshold;
  const first = `${whole(found.suspects)} of ${whole(scores.total)} samples (${percent(found.share, 1)}) lie above`;
  const noise =
    found.noise === null
      ? ""
      : ` A sample right at this threshold is wrong with probability about ${found.noise.toFixed(2)}: ` +
        "lower it to find more wrong labels, raise it to raise fewer false alarms.";
  const truth =
    known && found.precision !== null
      ? ` Against the true labels: precision ${percent(found.precision, 1)} (how many of them are wrong), ` +
        `recall ${percent(found.recall, 1)} (how many of the wrong ones are among them).`
      : "";
  const lower =
    threshold < scores.threshold && items.suspects < found.suspects
      ? " This page holds pictures of its suspects only; samples below the run's own threshold are counted here but not shown."
      : "";
  return `${about ? "About " : ""}${first}${own ? ", the run's own threshold" : ""}.${noise}${truth}${lower}`;
}

/** Set the histogram up: the threshold at once, the chart when it is about to be seen. Returns the function that draws the chart. */
export function startHistogram(app) {
  const { scores } = app.page;
  const [slider, line, field] = [byId("threshold"), byId("threshold-line"), byId("histogram")];
  if (!slider || !scores?.counts.length) return () => {};
  const stops = thresholdStops(scores);
  const [low, high] = [scores.edges[0], scores.edges[scores.edges.length - 1]];
  let value = scores.threshold;
  Object.assign(slider, { min: String(low), max: String(high), step: "any" });

  const show = () => {
    const found = atThreshold(scores, value);
    const share = Math.max(0, Math.min(1, (value - low) / (high - low)));
    slider.value = String(value);
    line.style.setProperty("--at", String(share));
    const number = Number(value.toPrecision(4));
    byId("threshold-value").textContent = String(number);
    byId("threshold-words").textContent = sentences(app.page, found, value);
    const figures = {
      suspects: whole(found.suspects),
      noise: found.noise === null ? "–" : found.noise.toFixed(2),
      precision: percent(found.precision, 1),
      recall: percent(found.recall, 1),
    };
    for (const [key, text] of Object.entries(figures)) if (byId(`threshold-${key}`)) byId(`threshold-${key}`).textContent = text;
    slider.setAttribute("aria-valuetext", `${number}: ${whole(found.suspects)} samples above`);
  };
  const showSoon = framed(show);
  const set = (wanted) => {
    value = nearestStop(stops, wanted);
    showSoon();
  };
  slider.addEventListener("input", () => set(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    value = stops[Math.max(0, Math.min(stops.length - 1, stops.indexOf(value) + by))];
    showSoon();
    event.preventDefault();
  });
  const drag = (event) => {
    const box = byId("threshold-track").getBoundingClientRect();
    set(low + ((event.clientX - box.left) / box.width) * (high - low));
  };
  line.addEventListener("pointerdown", (event) => {
    line.setPointerCapture(event.pointerId);
    line.addEventListener("pointermove", drag);
    event.preventDefault();
  });
  for (const end of ["pointerup", "pointercancel"]) line.addEventListener(end, () => line.removeEventListener("pointermove", drag));
  byId("threshold-reset").addEventListener("click", () => set(scores.threshold));
  byId("threshold-filter").addEventListener("click", () => {
    setFilters(app, { score: [value, Infinity], scope: "all" });
    byId("review").scrollIntoView();
  });
  show();
  return async () => {
    const drawn = await drawChart(app, field, () => [tracesOf(scores), chartLayout(scores)], "scores");
    byId("histogram-frame").classList.toggle("drawn", drawn);
    if (!drawn) byId("scores").querySelector("details").open = true;
  };
}
