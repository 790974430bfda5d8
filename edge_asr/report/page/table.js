"use strict";
// The table: sorted by a click on a title, rows picked for the utterances below.

const FIRST_ROWS = 250;
const MOST_PICKED = 4;
const made = new Map(); // the elements of the rows of this table, made once
const sorting = { column: null, down: false, all: false };

function compareRows(column) {
  const keys = column.values || column.texts;
  const order = new Intl.Collator(undefined, { numeric: true });
  const missing = (key) => key === null || key === "–";
  const sign = sorting.down ? -1 : 1;
  return (one, other) => {
    const [a, b] = [keys[one], keys[other]];
    if (missing(a) || missing(b)) return missing(a) - missing(b); // last, either way
    return sign * (typeof a === "number" ? a - b : order.compare(a, b));
  };
}

function sortBy(column) {
  sorting.down = sorting.column === column && !sorting.down;
  sorting.column = column;
  sorting.all = false; // to lay out thousands of rows takes longer than to sort them
  renderTable();
}

const classOf = (column) => (column.text ? "text" : column.heading === "Failures" ? "text long" : "");

function titleCell(column) {
  const direction = sorting.down ? "descending" : "ascending";
  const cell = element("th", { scope: "col", className: classOf(column) });
  if (column === sorting.column) cell.setAttribute("aria-sort", direction);
  const button = element("button", { type: "button", textContent: column.heading });
  button.addEventListener("click", () => {
    sortBy(column);
    const shown = [...byId("table").tHead.querySelectorAll("button")];
    shown.find((one) => one.textContent === column.heading).focus();
  });
  cell.append(button);
  return cell;
}

function pickBox(row) {
  const box = element("input", { type: "checkbox", checked: view.picked.has(row) });
  box.setAttribute("aria-label", `Show the utterances of ${nameOf(row)}`);
  box.addEventListener("change", () => {
    if (box.checked) view.picked.add(row);
    else view.picked.delete(row);
    if (view.picked.size > MOST_PICKED) {
      const [first] = view.picked; // makes room
      view.picked.delete(first);
      made.get(first).querySelector("input").checked = false;
    }
    document.dispatchEvent(new Event("picked"));
  });
  return box;
}

/** A name may go on in another line behind a plus, not within a word. */
const cellParts = (column, row) =>
  column.text ? column.texts[row].split(/(?<=\+)/).flatMap((part) => [part, element("wbr")]) : [column.texts[row]];

function tableRow(row) {
  if (!made.has(row)) made.set(row, newRow(row));
  return made.get(row);
}

function newRow(row) {
  const [name, ...others] = view.table.columns;
  const link = element("button", { type: "button", className: "link", textContent: name.texts[row] });
  link.setAttribute("aria-label", `Details of ${nameOf(row)}`);
  link.addEventListener("click", () => showRun(row));
  return element("tr", { className: isFloat(row) ? "float" : "" },
    element("td", { className: "pick" }, pickBox(row)),
    element("th", { scope: "row", className: "text" }, link),
    ...others.map((column) => element("td", { className: classOf(column) }, ...cellParts(column, row))));
}

function renderTable() {
  const rows = [...view.rows];
  if (sorting.column) rows.sort(compareRows(sorting.column));
  const shown = sorting.all ? rows : rows.slice(0, FIRST_ROWS);
  const pick = element("td", { className: "pick", textContent: "Hear" });
  fill(byId("table").tHead, element("tr", {}, pick, ...view.table.columns.map(titleCell)));
  fill(byId("table").tBodies[0], ...shown.map(tableRow));
  byId("count").textContent = `${shown.length} of ${view.table.size} rows`;
  byId("more").hidden = shown.length === rows.length;
  byId("more").textContent = `Show all ${rows.length}`;
}

document.addEventListener("table", () => {
  sorting.column = null;
  sorting.all = false;
  made.clear();
});
byId("more").addEventListener("click", () => {
  sorting.all = true;
  renderTable();
});
renderers.push(renderTable);
