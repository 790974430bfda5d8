"use strict";
// One run: where its error comes from, and where it comes from itself.

function profileRows(layers) {
  return layers.map(([name, stack, role, weights, bits, before, after, format]) => ({ name, stack, role, weights, bits, before, after, format }));
}

/** Encoder and decoder beside one another. */
function stackTable(layers) {
  const titles = ["Stack", "Layers", "Weights", "Stored bits", "Output error", "of rounding to nearest"];
  const total = (own, field) => (own.some((one) => one[field] === null) ? null : d3.sum(own, (one) => one[field]));
  const rows = d3.groups(layers, (one) => one.stack).map(([stack, own]) => {
    const weights = d3.sum(own, (one) => one.weights);
    const bits = d3.sum(own, (one) => one.bits * one.weights) / weights;
    return [stack, own.length, weights.toLocaleString("en"), number(bits, 2), number(total(own, "after"), 3), number(total(own, "before"), 3)];
  });
  return figureTable(titles, rows, "Encoder and decoder");
}

/** A table whose first column names its rows, in a box of its own that can be scrolled. */
function figureTable(titles, rows, label) {
  const head = titles.map((title, place) => element("th", { scope: "col", className: place ? "" : "text", textContent: title }));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell, place) =>
    place ? element("td", { textContent: cell }) : element("th", { scope: "row", className: "text", textContent: cell }))));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  const box = element("div", { className: "scroll", tabIndex: 0, role: "region" }, table);
  box.setAttribute("aria-label", label);
  return box;
}

function layerTitle(one) {
  const error = (value) => (value === null ? "not measured" : value.toPrecision(3));
  return `${one.name}\n${one.role}, ${one.format || ""} ${number(one.bits, 2)} stored bits\noutput error ${error(one.after)}\nrounding to nearest ${error(one.before)}`;
}

function layerChart(layers, chart) {
  const measured = layers.filter((one) => one.after > 0);
  const nearest = measured.filter((one) => one.before > 0);
  const rows = measured.length ? measured : layers;
  const value = measured.length ? "after" : "bits";
  const { marginLeft, tickFormat } = namesBeside(rows.map((one) => one.name), chart);
  const plot = Plot.plot({
    width: widthOf(chart), height: 80 + 15 * rows.length, marginTop: 50, marginLeft, marginRight: 20,
    x: measured.length
      ? { label: "output error, in units of the output's variance", type: "log", tickFormat: "~g", ticks: widthOf(chart) / 120, grid: true, axis: "top", inset: 8, labelOffset: 40 }
      : { label: "stored bits a weight", grid: true, axis: "top", zero: true },
    y: { domain: rows.map((one) => one.name), label: null, grid: true, tickFormat },
    color: { legend: true, domain: [...new Set(rows.map((one) => one.stack))], range: ["#4269d0", "#d0641e"] },
    marks: [
      Plot.link(nearest, { y: "name", x1: "before", x2: "after", stroke: "stack", strokeOpacity: 0.5 }),
      Plot.tickX(nearest, { y: "name", x: "before", strokeWidth: 2 }),
      Plot.dot(rows, { y: "name", x: value, fill: "stack", r: 4 }),
      Plot.tip(rows, Plot.pointerY({ y: "name", x: value, title: layerTitle })),
    ],
  });
  drawn(chart, plot, `${measured.length ? "Output error" : "Stored bits"} of ${rows.length} layers`);
}

async function renderProfile() {
  const row = Number(byId("profiled").value);
  const all = await details;
  const run = all && all.runs[view.table.values.run_id[row]];
  if (!run || !run.layers.length) {
    fill(byId("profile"), element("p", {}, run ? "The float model: nothing is quantized." : "Nothing is known of its layers here."));
    return;
  }
  const layers = profileRows(run.layers);
  const chart = element("div", { className: "chart" });
  fill(byId("profile"), stackTable(layers), chart, element("p", { className: "note" },
    "Dots: what a layer's stored weights change in its output, behind the quantized blocks before it. Ticks: rounding to nearest on the same inputs, where it was measured."));
  layerChart(layers, chart);
}

function renderProfiled() {
  const kept = byId("profiled").value;
  const rows = view.rows.filter((row) => !isFloat(row));
  options(byId("profiled"), (rows.length ? rows : view.rows).map((row) => [row, nameOf(row)]));
  if (rows.includes(Number(kept))) byId("profiled").value = kept;
  renderProfile();
}

function factList(facts) {
  const children = facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]);
  return element("dl", { className: "facts" }, ...children);
}

function copyButton(text) {
  const button = element("button", { type: "button", textContent: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  });
  return navigator.clipboard ? button : null;
}

/** Where a row comes from and how it is made again. */
async function showRun(row) {
  byId("run-title").textContent = nameOf(row);
  fill(byId("run-body"), element("p", {}, figuresOf(row)));
  if (!byId("run").open) byId("run").showModal();
  const all = await details;
  const run = all && all.runs[view.table.values.run_id[row]];
  if (!run) return;
  const children = [
    element("h3", {}, "Make it again"),
    run.command ? element("pre", { textContent: run.command }) : element("p", {}, "Its record is of an older schema, whose options were called otherwise; its settings are below."),
    run.command ? copyButton(run.command) : null,
    run.warnings.length ? element("h3", {}, "Warnings") : null,
    run.warnings.length ? element("ul", {}, ...run.warnings.map((one) => element("li", { textContent: one }))) : null,
    element("h3", {}, "Results"), figureTable(["Clips", "Scored", "WER % [95 %]", "Float", "Difference", "CER"], run.results, "Results by condition and length"),
    element("h3", {}, "Provenance"), factList(run.facts),
    element("details", {}, element("summary", {}, "All settings"), element("pre", { textContent: JSON.stringify(run.config, null, 1) })),
  ];
  byId("run-body").append(...children.filter(Boolean));
}

byId("profiled").addEventListener("input", renderProfile);
renderers.push(renderProfiled);
