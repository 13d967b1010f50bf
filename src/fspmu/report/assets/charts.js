// The glue to Plotly, which stays packed until a chart is about to be seen. Without it the tables beside the charts say the same.

import { bytesOf } from "./data.js";
import { byId, h } from "./dom.js";

export const MARGIN = { l: 56, r: 18, t: 10, b: 44 };
let loading = null;

async function unpack() {
  const packed = byId("plotly-packed");
  if (!packed || typeof DecompressionStream === "undefined") return null;
  const stream = new Blob([bytesOf(packed.textContent.trim())]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = h("script", {});
  // The page's security policy knows the hash of exactly this text.
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  packed.remove();
  return window.Plotly ?? null;
}

/** Return a promise of Plotly, or of null where it cannot run. */
export function loadPlotly() {
  loading ??= unpack().catch(() => null);
  return loading;
}

/** Return a name as Plotly shows it as it is: without its little markup language. */
export function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Return a colour of the style sheet by its name. */
export function ink(variable) {
  return getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
}

/** Return the layout that all charts share. */
export function baseLayout(x, y) {
  const axis = {
    gridcolor: ink("--line"),
    zerolinecolor: ink("--line"),
    linecolor: ink("--line-strong"),
    tickcolor: ink("--line-strong"),
    automargin: false,
    fixedrange: true,
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: ink("--soft") },
    margin: MARGIN,
    hovermode: "x unified",
    xaxis: { ...axis, title: { text: plain(x), standoff: 8 } },
    yaxis: { ...axis, title: { text: plain(y), standoff: 6 }, rangemode: "tozero" },
    hoverlabel: { bgcolor: ink("--raised"), bordercolor: ink("--line-strong"), font: { color: ink("--ink") } },
    dragmode: false,
    showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("--soft"), activecolor: ink("--ink") },
  };
}

const STROKES = { solid: null, dash: "5 3", dot: "1.5 2.5", dashdot: "5 2 1.5 2" };

/** Return a little picture of a trace for the legend, which stands outside the chart so that it can wrap. */
function sampleOf(trace) {
  const box = h("svg:svg", { width: 26, height: 10, viewBox: "0 0 26 10" });
  if (trace.type === "bar") {
    box.append(h("svg:rect", { x: 8, width: 12, height: 10, fill: trace.marker.color }));
    if (trace.marker.pattern.shape) box.append(h("svg:path", { d: "M8 10 18 0M13 10 20 3M8 5 13 0", stroke: ink("--paper"), "stroke-width": 1.2 }));
    return box;
  }
  box.append(h("svg:path", { d: "M0 5H26", stroke: trace.line.color, "stroke-width": 2.2, "stroke-dasharray": STROKES[trace.line.dash], fill: "none" }));
  const marks = {
    circle: "M13 1.5a3.5 3.5 0 1 0 .01 0",
    square: "M9.5 1.5h7v7h-7z",
    "triangle-up": "M13 1 17 8.5H9z",
    diamond: "M13 .5 17.5 5 13 9.5 8.5 5z",
    x: "M10 2 16 8M16 2 10 8",
    cross: "M13 1V9M9 5H17",
  };
  if (trace.marker) box.append(h("svg:path", { d: marks[trace.marker.symbol], fill: trace.line.color, stroke: trace.line.color, "stroke-width": 1 }));
  return box;
}

/** Draw traces into an element, again when the colours change; `make()` returns [traces, layout]. */
export async function drawChart(app, element, make, fileName) {
  const plotly = await loadPlotly();
  element.hidden = !plotly;
  if (!plotly) return false;
  const icons = {
    modeBarButtons: [
      [
        {
          name: "svg",
          title: "Download as SVG",
          icon: plotly.Icons.disk,
          click: (graph) => plotly.downloadImage(graph, { format: "svg", filename: fileName }),
        },
      ],
    ],
  };
  const draw = () => {
    const [traces, layout] = make();
    byId(`${element.id}-legend`).replaceChildren(...traces.map((trace) => h("li", {}, sampleOf(trace), trace.meta)));
    return plotly.react(element, traces, layout, { displaylogo: false, responsive: true, ...icons });
  };
  await draw();
  app.on("theme", draw);
  return true;
}

const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "x", "cross"];

/** Draw the curves over epochs, one chart for each panel of the data. */
export async function drawCurves(app) {
  for (const [at, curve] of app.page.curves.entries()) {
    const element = byId(`curve-${at}`);
    const make = () => {
      const colours = ["--blue", "--orange", "--green", "--purple", "--sky", "--red"].map(ink);
      const traces = curve.series.map((series, row) => ({
        type: "scatter",
        mode: "lines+markers",
        name: plain(series.label),
        meta: series.label,
        x: series.x,
        y: series.y,
        line: { color: colours[row % colours.length], width: 2, dash: DASHES[row % DASHES.length] },
        marker: { symbol: SYMBOLS[row % SYMBOLS.length], size: series.x.length > 60 ? 3 : 6 },
      }));
      return [traces, baseLayout("epoch", curve.unit)];
    };
    if (await drawChart(app, element, make, `curve-${curve.panel}`)) element.closest("figure").classList.add("drawn");
  }
}
