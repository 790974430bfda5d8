"use strict";
// WER against cost, and method by scheme.

const AXES = {
  size_mb: "file, MB",
  memory_io_mb: "memory traffic, MB an utterance",
  gbops: "arithmetic, GBOPs an utterance",
  effective_bits: "stored bits a quantized weight",
};

// Dark enough on white and light enough on black; the symbol and the pointer's text tell as well.
const METHOD_COLORS = ["#4269d0", "#c98a00", "#e0503c", "#3a9f87", "#d65db1", "#8f5be8", "#7a9a01", "#9c6b4e",
  "#0f8fb8", "#b8486a", "#5f7fa8", "#c2661a", "#2f9e44", "#a77bca", "#8a8f98"];
const methodsShown = () => [...new Set(view.table.values.method.map((one) => one.split("+")[0]))].filter((one) => one !== "float").sort();

function widthOf(chart) {
  return Math.max(320, chart.clientWidth);
}

/** Room for names beside a plot, at most part of its width; what they lose is in the pointer's text. */
function namesBeside(names, chart) {
  const longest = d3.max(names, (name) => name.length);
  const most = Math.max(14, Math.min(longest, Math.floor((0.45 * widthOf(chart)) / 6.8)));
  const short = (name) => (name.length > most ? `…${name.slice(1 - most)}` : name);
  return { marginLeft: 20 + 6.8 * Math.min(most, longest), tickFormat: short };
}

/** Put a plot in its place, one picture to those who do not see it. */
function drawn(chart, plot, label) {
  const svg = plot.tagName === "svg" ? plot : [...plot.querySelectorAll(":scope > svg")].at(-1); // legends come first
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  for (const group of plot.querySelectorAll("g[aria-label]")) group.removeAttribute("aria-label");
  fill(chart, plot);
}

function scatterPoints() {
  const { values } = view.table;
  const axis = byId("axis").value;
  const rate = view.table.rates[Number(byId("rate").value)];
  return view.rows
    .filter((row) => values[axis][row] !== null && rate.value[row] !== null)
    .map((row) => ({
      row,
      x: values[axis][row],
      y: rate.value[row],
      low: rate.low[row],
      high: rate.high[row],
      method: recipeOf(row),
      model: values.model[row],
    }));
}

/** The points that no other of the same model beats in both. */
function frontier(points) {
  return d3.groups(points, (point) => point.model).flatMap(([, own]) => {
    const ordered = d3.sort(own, (point) => point.x, (point) => point.y);
    let least = Infinity;
    return ordered.filter((point) => point.y < least && ((least = point.y), true));
  });
}

/** Where rates that say nothing but "broken" would flatten all others. */
function usualCeiling(points) {
  const floats = points.filter((point) => isFloat(point.row)).map((point) => point.y);
  const base = d3.min(floats.length ? floats : points.map((point) => point.y)) || 0;
  const top = d3.max(points, (point) => point.y) || 1;
  return Math.min(top * 1.05, Math.max(3 * base + 10, 5));
}

function pointTitle(point) {
  const interval = point.low === null ? "" : ` [${number(point.low)}, ${number(point.high)}]`;
  return `${nameOf(point.row)}\n${number(point.y)}${interval} % WER\n${significant(point.x)}: ${AXES[byId("axis").value]}`;
}

function renderScatter() {
  const chart = byId("scatter");
  const points = scatterPoints();
  const ceiling = Number(byId("ceiling").value) || usualCeiling(points);
  const shown = points.filter((point) => point.y <= ceiling);
  const cut = (value) => Math.min(value, ceiling);
  const intervals = shown.filter((point) => point.low !== null);
  const plot = Plot.plot({
    width: widthOf(chart), height: 420, marginLeft: 48, marginBottom: 40, grid: true, insetLeft: 10, insetRight: 10,
    x: { label: AXES[byId("axis").value], type: "log", tickFormat: "~g" },
    y: { label: "WER, %", domain: [0, ceiling] },
    color: { legend: true, domain: methodsShown(), range: METHOD_COLORS, unknown: "currentColor" },
    symbol: { legend: new Set(points.map((point) => point.model)).size > 1 },
    marks: [
      Plot.ruleY(shown.filter((point) => isFloat(point.row)), { y: "y", strokeDasharray: "5 4", strokeOpacity: 0.6 }),
      Plot.line(frontier(shown), { x: "x", y: "y", z: "model", strokeOpacity: 0.6, curve: "step-after" }),
      Plot.ruleX(intervals, { x: "x", y1: "low", y2: (point) => cut(point.high), stroke: "method", strokeOpacity: 0.45 }),
      Plot.dot(shown, { x: "x", y: "y", stroke: "method", symbol: "model", r: 4, strokeWidth: 1.8 }),
      Plot.tip(shown, Plot.pointer({ x: "x", y: "y", title: pointTitle })),
    ],
  });
  plot.addEventListener("click", () => plot.value && showRun(plot.value.row));
  drawn(chart, plot, `WER against ${AXES[byId("axis").value]} of ${shown.length} runs; the table has the same figures`);
  const above = points.length - shown.length;
  byId("scatter-note").textContent =
    "Dashed: float models. Bars: 95 % intervals. The stepped line joins the runs that no other of their model beats in both." +
    (above ? ` ${above} runs above ${number(ceiling, 0)} % are not shown.` : "");
}

const MEASURES = {
  wer_average: "WER, %",
  delta_wer: "difference to float, points of WER",
  rare_wer: "WER of rare words, %",
  size_mb: "file, MB",
  memory_io_mb: "memory traffic, MB an utterance",
  gbops: "arithmetic, GBOPs an utterance",
};

/** Of every method and scheme of a model the row with the lowest WER. */
function heatCells() {
  const { values } = view.table;
  const measure = byId("measure").value;
  const known = view.rows.filter((row) => values[measure][row] !== null && !isFloat(row));
  const groups = d3.group(known, (row) => JSON.stringify([values.model[row], values.method[row], values.scheme[row]]));
  return [...groups.values()].map((rows) => {
    const row = d3.least(rows, (one) => values.wer_average[one] ?? Infinity);
    return { row, model: values.model[row], method: values.method[row], scheme: values.scheme[row], value: values[measure][row] };
  });
}

function renderHeat() {
  const chart = byId("heat");
  const cells = heatCells();
  if (!cells.length) {
    fill(chart, element("p", {}, "No quantized run among the chosen rows has this figure."));
    byId("heat-note").textContent = "";
    return;
  }
  const schemes = d3.sort(new Set(cells.map((cell) => cell.scheme)), (one, other) =>
    d3.descending(...[one, other].map((name) => d3.mean(cells.filter((cell) => cell.scheme === name), (cell) => view.table.values.effective_bits[cell.row]))));
  // Recipes with most of their cells first, so that rare mixtures do not interrupt them.
  const methods = d3.sort(d3.groups(cells, (cell) => cell.method),
    ([, own]) => -own.length, ([, own]) => d3.median(own, (cell) => cell.value)).map(([name]) => name);
  const models = new Set(cells.map((cell) => cell.model)).size;
  const { marginLeft, tickFormat } = namesBeside(methods, chart);
  const least = d3.min(cells, (cell) => cell.value);
  const most = Math.max(d3.quantile(cells, 0.8, (cell) => cell.value), least + 1e-6);
  const dark = (cell) => (cell.value - least) / (most - least) > 0.55;
  const plot = Plot.plot({
    width: Math.max(widthOf(chart), marginLeft + 56 * schemes.length),
    height: 90 + models * (30 + 22 * methods.length), marginLeft, marginTop: 80, marginRight: models > 1 ? 110 : 10,
    x: { domain: schemes, axis: "top", label: null, tickRotate: -35 },
    y: { domain: methods, label: null, tickFormat }, fy: { label: null },
    color: { scheme: "YlOrRd", domain: [least, most], clamp: true, label: MEASURES[byId("measure").value], legend: true },
    marks: [
      Plot.cell(cells, { x: "scheme", y: "method", fy: models > 1 ? "model" : undefined, fill: "value", inset: 0.5 }),
      Plot.text(cells, { x: "scheme", y: "method", fy: models > 1 ? "model" : undefined,
        text: (cell) => (Math.abs(cell.value) >= 100 ? number(cell.value, 0) : number(cell.value)),
        fill: (cell) => (dark(cell) ? "white" : "black") }),
      Plot.tip(cells, Plot.pointer({ x: "scheme", y: "method", fy: models > 1 ? "model" : undefined,
        title: (cell) => `${nameOf(cell.row)}\n${number(cell.value, 2)}: ${MEASURES[byId("measure").value]}` })),
    ],
  });
  drawn(chart, plot, `${MEASURES[byId("measure").value]} of ${cells.length} methods and schemes; the table has the same figures`);
  byId("heat-note").textContent = "Colours end at the upper fifth, so that broken runs do not hide the differences between good ones.";
}

document.addEventListener("table", () => {
  options(byId("rate"), view.table.rates.map((rate, index) => [index, rate.name]));
  byId("ceiling").value = "";
});
options(byId("axis"), Object.entries(AXES));
options(byId("measure"), Object.entries(MEASURES));
byId("measure").value = "delta_wer";
for (const id of ["axis", "rate", "ceiling"]) byId(id).addEventListener("input", renderScatter);
byId("measure").addEventListener("input", renderHeat);
renderers.push(renderScatter, renderHeat);
let resized = null;
window.addEventListener("resize", () => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(() => { renderScatter(); renderHeat(); renderProfile(); });
});
