"use strict";
// What the page shows: its data, the rows chosen by the filters, and who draws them.

const report = JSON.parse(document.getElementById("tables").textContent);
const view = { table: null, rows: [], picked: new Set() };
const renderers = [];
const byId = (id) => document.getElementById(id);

/** An element with properties and children; text is never read as HTML. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null));
}

function options(select, entries) {
  fill(select, ...entries.map(([value, text]) => element("option", { value, textContent: text })));
}

const number = (value, digits = 1) =>
  value === null || value === undefined ? "–" : (Math.round(value * 10 ** digits) / 10 ** digits + 0).toFixed(digits);
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const significant = (value) =>
  value === null || value === undefined ? "–" : value === 0 ? "0" : number(value, Math.max(0, 2 - Math.floor(Math.log10(value))));

/** What a row is called: model, method and scheme. */
function nameOf(row) {
  const { model, method, scheme } = view.table.values;
  return `${model[row]} ${method[row]} ${scheme[row]}`;
}

const isFloat = (row) => view.table.values.method[row] === "float";
/** The recipe that a label starts from: `gptq` of `gptq+rounding=adaround`. */
const recipeOf = (row) => view.table.values.method[row].split("+")[0];

/** Details of runs and utterances, unpacked once; null in a browser that cannot. */
const details = (async () => {
  const packed = byId("details").textContent.trim();
  if (!packed || typeof DecompressionStream === "undefined") return null;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
})();

function choose() {
  const { values, size } = view.table;
  const model = byId("model").value;
  const method = byId("method").value;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  view.rows = [];
  for (let row = 0; row < size; row += 1) {
    if (model && values.model[row] !== model) continue;
    if (method && recipeOf(row) !== method && !isFloat(row)) continue;
    const text = `${nameOf(row)} ${values.run_id[row]}`.toLowerCase();
    if (words.every((word) => text.includes(word))) view.rows.push(row);
  }
  for (const render of renderers) render();
}

function openTable(index) {
  view.table = report.tables[index];
  const { model, method } = view.table.values;
  const kept = [byId("model").value, byId("method").value];
  const models = [...new Set(model)];
  const recipes = [...new Set(method.map((one) => one.split("+")[0]))].sort();
  options(byId("model"), [["", "all models"], ...models.map((one) => [one, one])]);
  options(byId("method"), [["", "all methods"], ...recipes.map((one) => [one, one])]);
  if (models.includes(kept[0])) byId("model").value = kept[0];
  if (recipes.includes(kept[1])) byId("method").value = kept[1];
  view.picked = new Set();
  byId("caption").textContent = view.table.caption;
  document.dispatchEvent(new Event("table"));
  choose();
}

function start() {
  options(byId("clips"), report.tables.map((table, index) => [index, table.title]));
  byId("summary").textContent = report.summary;
  byId("footer").textContent = report.footer;
  byId("clips").addEventListener("change", (event) => openTable(Number(event.target.value)));
  for (const id of ["model", "method", "search"]) byId(id).addEventListener("input", choose);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  openTable(0);
}
