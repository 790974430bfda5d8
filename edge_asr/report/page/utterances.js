"use strict";
// What chosen runs heard, beside what was said, the worst first.

const PAGE = 20;
let shownUtterances = PAGE;
let found = [];

/** The runs to show: those picked in the table, else the float model and the best quantized ones. */
function pickedRows(heard) {
  const has = (row) => heard.runs[view.table.values.run_id[row]];
  const picked = [...view.picked].filter(has);
  if (picked.length) return picked;
  const rows = view.rows.filter(has);
  return [...rows.filter(isFloat).slice(0, 1), ...rows.filter((row) => !isFloat(row)).slice(0, 2)];
}

const errorsIn = (edits) => d3.sum(edits, ([, count, words]) => Math.max(count, words ? words.split(" ").length : 0));

/** A hypothesis as the reference's words, those not recognised struck out, the wrong ones inserted. */
function heardLine(reference, edits) {
  const line = element("dd", { dir: "auto" });
  let place = 0;
  const plain = (end) => {
    if (end > place) line.append(`${reference.slice(place, end).join(" ")} `);
  };
  for (const [start, count, words] of edits) {
    plain(start);
    const said = reference.slice(start, start + count);
    const heard = words ? words.split(" ") : [];
    for (let index = 0; index < Math.max(said.length, heard.length); index += 1) {
      if (index < said.length) line.append(element("del", { textContent: said[index] }));
      if (index < heard.length) line.append(element("ins", { textContent: heard[index] }));
      line.append(" ");
    }
    place = start + count;
  }
  plain(reference.length);
  if (!line.textContent.trim()) line.append("(nothing)");
  return line;
}

function utteranceItem(one) {
  const counts = one.runs.map(({ row, errors }) => `${view.table.values.method[row]} ${errors}`).join(", ");
  const list = element("dl", {}, element("dt", {}, "said"), element("dd", { dir: "auto", textContent: one.words.join(" ") }));
  for (const { row, edits, errors } of one.runs) {
    list.append(element("dt", {}, `${nameOf(row)} (${errors})`), heardLine(one.words, edits));
  }
  return element("li", {}, element("h3", {}, element("bdi", { textContent: one.id }), `, ${one.words.length} words; errors: ${counts}`), list);
}

function collect(heard, rows) {
  const query = byId("words").value.toLowerCase().trim();
  const utterances = heard.utterances.map(([id, text, given], place) => {
    const runs = rows.map((row) => {
      const edits = heard.runs[view.table.values.run_id[row]][place] || [];
      return { row, edits, errors: errorsIn(edits) };
    });
    const total = d3.sum(runs, (run) => run.errors);
    const apart = d3.max(runs, (run) => run.errors) - d3.min(runs, (run) => run.errors);
    return { id, text, words: text.split(" "), runs, total, apart, given };
  });
  const matches = ({ id, text, runs }) =>
    [id, text, ...runs.flatMap((run) => run.edits.map((edit) => edit[2]))].some((one) => one.toLowerCase().includes(query));
  const order = { worst: (one) => -one.total, apart: (one) => -one.apart, given: (one) => one.given }[byId("order").value];
  return d3.sort(query ? utterances.filter(matches) : utterances, order, (one) => one.given);
}

function showUtterances() {
  fill(byId("heard"), ...found.slice(0, shownUtterances).map(utteranceItem));
  byId("more-heard").hidden = found.length <= shownUtterances;
}

async function renderUtterances() {
  const all = await details;
  const heard = all && all.heard[view.table.slug];
  shownUtterances = PAGE;
  const rows = heard ? pickedRows(heard) : [];
  if (!rows.length) {
    found = [];
    byId("heard-count").textContent = heard
      ? "None of the chosen rows has its hypotheses here."
      : "No hypotheses lay beside these records, or this browser cannot unpack them.";
  } else {
    found = collect(heard, rows);
    const left = heard.total > heard.utterances.length ? ` of the ${heard.utterances.length} with most errors (of ${heard.total}; all would not fit in this page)` : "";
    byId("heard-count").textContent = `${found.length} utterances${left}, heard by ${rows.map(nameOf).join(", ")}`;
  }
  showUtterances();
}

byId("more-heard").addEventListener("click", () => {
  shownUtterances += PAGE;
  showUtterances();
});
for (const id of ["order", "words"]) byId(id).addEventListener("input", renderUtterances);
document.addEventListener("picked", renderUtterances);
renderers.push(renderUtterances);
start();
