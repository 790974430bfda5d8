"use strict";
// Which recipe to ship within a budget. Comparisons clip by clip were made by the report and are only
// looked up here.

const FIRST_RIVALS = 8;
const LIMITS = { size_mb: "MB", memory_io_mb: "MB of traffic", gbops: "GBOPs" };

function limitsGiven() {
  const given = Object.keys(LIMITS).map((column) => [column, byId(`budget-${column}`).value]);
  return given.filter(([, value]) => value !== "").map(([column, value]) => [column, Number(value)]);
}

function rowsWithin(limits) {
  const { values, size } = view.table;
  const model = byId("model").value;
  const rows = [];
  for (let row = 0; row < size; row += 1) {
    if (model && values.model[row] !== model) continue;
    const fits = ([column, most]) => values[column][row] !== null && values[column][row] <= most;
    if (values.wer_average[row] !== null && limits.every(fits)) rows.push(row);
  }
  return rows.sort((one, other) => values.wer_average[one] - values.wer_average[other]);
}

function figuresOf(row) {
  const { values } = view.table;
  const interval = `[${number(values.wer_low[row])}, ${number(values.wer_high[row])}]`;
  const costs = Object.entries(LIMITS).map(([column, unit]) => `${significant(values[column][row])} ${unit}`);
  return `${number(values.wer_average[row])} ${interval} % WER, ${costs.join(", ")}`;
}

function runLink(row) {
  const link = element("button", { type: "button", className: "link", textContent: nameOf(row) });
  link.addEventListener("click", () => showRun(row));
  return link;
}

/** How a row stands to the winner: [row, difference, low, high, share of draws, paired]. */
function rivalOf(winner, row) {
  const { values, paired, rivals } = view.table;
  const difference = values.wer_average[row] - values.wer_average[winner];
  if (rivals[winner] && paired.includes(row)) {
    const close = rivals[winner].find((one) => one[0] === row);
    return close ? { row, difference, low: close[1], high: close[2], better: close[3], paired: true } : null;
  }
  const widths = [winner, row].map((one) => (values.wer_low[one] === null ? NaN : values.wer_high[one] - values.wer_low[one]));
  const half = Math.hypot(...widths) / 2; // as edge_asr/report/ship.py has it
  if (Number.isNaN(half)) return { row, difference, low: null };
  return difference - half > 0 ? null : { row, difference, low: difference - half, high: difference + half };
}

function rivalLine({ row, difference, low, high, better, paired }) {
  const interval = low === null ? "" : ` [${number(low)}, ${number(high)}]`;
  const often = paired ? `, worse in ${number(100 * better, 0)} % of draws` : ", unpaired";
  return element("li", {}, runLink(row), `: ${signed(difference)}${interval}${often}; ${figuresOf(row)}`);
}

function leastCosts() {
  const costs = Object.entries(LIMITS).map(([column, unit]) => {
    const known = view.table.values[column].filter((value) => value !== null);
    return `${significant(known.length ? d3.min(known) : null)} ${unit}`;
  });
  return `Nothing is within this budget; the least of each: ${costs.join(", ")}.`;
}

/** The smallest file among those that cannot be told from the lowest, where that is smaller. */
function smallestOf(winner, close) {
  const { size_mb: size } = view.table.values;
  const row = d3.least(close.map((one) => one.row), (one) => size[one] ?? Infinity);
  if (row === undefined || !(size[row] < size[winner])) return null;
  return element("p", {}, "The smallest file of them: ", runLink(row), `, ${significant(size[row])} MB.`);
}

function renderAdvice() {
  const [winner, ...others] = rowsWithin(limitsGiven());
  if (winner === undefined) {
    fill(byId("advice"), element("p", {}, leastCosts()));
    return;
  }
  const close = others.map((row) => rivalOf(winner, row)).filter(Boolean);
  const worse = others.length - close.length;
  const lines = close.map(rivalLine);
  const [first, rest] = [lines.slice(0, FIRST_RIVALS), lines.slice(FIRST_RIVALS)];
  fill(
    byId("advice"),
    element("p", {}, element("strong", {}, runLink(winner)), `: ${figuresOf(winner)}; the lowest WER of ${others.length + 1} within the budget.`),
    close.length ? element("p", {}, `Not distinguishable from it on these clips: ${close.length} (difference in WER [95 %])`) : null,
    close.length ? element("ul", {}, ...first) : null,
    rest.length ? element("details", {}, element("summary", {}, `${rest.length} more`), element("ul", {}, ...rest)) : null,
    smallestOf(winner, close),
    worse ? element("p", {}, `Worse by more than chance explains: ${worse}.`) : null,
    others.length ? element("p", { className: "note" }, close.every((one) => one.paired) ? report.paired : report.unpaired) : null,
  );
}

for (const column of Object.keys(LIMITS)) byId(`budget-${column}`).addEventListener("input", renderAdvice);
renderers.push(renderAdvice);
