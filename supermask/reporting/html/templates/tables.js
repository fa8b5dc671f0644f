"use strict";
/* Tables. wireTables(root) fills the elements [data-table] in root, with sorting by column, a filter, pages, and a CSV
   download of all columns. A table in a closed `details.lazy` is filled when it is opened. */

const PAGE_ROWS = 20;
const NOTHING = "–";

function wireTables(root) {
  for (const place of root.querySelectorAll("[data-table]")) {
    const closed = place.closest("details.lazy:not([open])");
    if (closed) closed.addEventListener("toggle", () => fillTable(place), { once: true });
    else fillTable(place);
  }
}

/* Fold the rare columns of the tables in a place; the button shows and folds them. */
function wireUnfold(button, place) {
  place.classList.add("folded");
  button.addEventListener("click", () => {
    const folded = place.classList.toggle("folded");
    button.setAttribute("aria-pressed", String(!folded));
  });
}

/* Rare columns of tables that are part of the page: a button for each. */
function wireStaticTables(root) {
  for (const place of root.querySelectorAll(".clause > .scroll")) {
    if (!place.querySelector(".rare")) continue;
    const button = element("button", "unfold", "All columns");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    place.after(button);
    wireUnfold(button, place);
  }
}

function fillTable(place) {
  return supermask.source(place.dataset.table).then((data) => {
    if (data && place.table) place.table.update(unpacked(data));
    else if (data) place.table = new DataTable(place, unpacked(data));
  });
}

/* Unpack columns to functions of the row number; supermask/reporting/html/tables.py documents the format. */
function unpacked(data) {
  const columns = {};
  for (const [name, packed] of Object.entries(data.columns)) {
    if ("like" in packed) {
      const like = columns[packed.like];
      const exceptions = new Map(packed.rows.map((row, index) => [row, packed.values[index]]));
      columns[name] = (row) => (exceptions.has(row) ? exceptions.get(row) : like(row));
    }
    else if ("of" in packed) {
      const indices = packed.at || data.columns[packed.as].at;
      columns[name] = (row) => packed.of[indices[row]];
    }
    else if ("values" in packed) columns[name] = (row) => packed.values[row];
    else columns[name] = () => packed.all;
  }
  return { ...data, columns };
}

class DataTable {
  constructor(place, data) {
    Object.assign(this, { place, page: 0, sorted: null, descending: false });
    this.heads = [...place.querySelectorAll("thead th")];
    this.heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => this.sort(index)));
    const tools = place.querySelector(".tools");
    tools.hidden = false;
    tools.querySelector("input").addEventListener("input", (event) => this.filter(event.target.value));
    tools.querySelector(".csv").addEventListener("click", () => download(this.data.file, csvOf(this.data), "text/csv"));
    const unfold = tools.querySelector(".unfold");
    if (unfold) wireUnfold(unfold, place);
    place.querySelector(".before").addEventListener("click", () => this.turn(-1));
    place.querySelector(".after").addEventListener("click", () => this.turn(1));
    this.update(data);
  }

  /* Replace the rows; sorting, filter and, if it exists, the page stay. */
  update(data) {
    this.data = data;
    this.order = Array.from({ length: data.rows }, (_, row) => row);
    this.place.querySelector(".filter").hidden = data.rows <= PAGE_ROWS;
    const page = this.page;
    this.arrange();
    this.page = Math.min(page, Math.max(0, Math.ceil(this.rows.length / PAGE_ROWS) - 1));
    this.show();
  }

  sort(index) {
    if (this.sorted !== index) [this.sorted, this.descending] = [index, false];
    else if (!this.descending) this.descending = true;
    else [this.sorted, this.descending] = [null, false];
    this.heads.forEach((head, column) => {
      const direction = this.descending ? "descending" : "ascending";
      head.setAttribute("aria-sort", column === this.sorted ? direction : "none");
    });
    this.arrange();
  }

  filter(text) {
    this.query = text.trim().toLowerCase();
    this.arrange();
  }

  arrange() {
    const { columns, shown } = this.data;
    const texts = shown.filter(({ kind }) => kind === "text" || kind === "id").map(({ column }) => columns[column]);
    const query = this.query;
    let rows = this.order;
    if (query) rows = rows.filter((row) => texts.some((value) => String(value(row) ?? "").toLowerCase().includes(query)));
    if (this.sorted !== null) {
      const value = columns[shown[this.sorted].column];
      const sign = this.descending ? -1 : 1;
      rows = [...rows].sort((a, b) => compareValues(value(a), value(b), sign) || a - b);
    }
    this.rows = rows;
    this.page = 0;
    this.show();
  }

  turn(pages) {
    this.page += pages;
    this.show();
  }

  show() {
    const { columns, shown } = this.data;
    const from = this.page * PAGE_ROWS;
    const body = this.rows.slice(from, from + PAGE_ROWS).map((row) => {
      const line = document.createElement("tr");
      for (const column of shown) {
        line.append(cell(column, columns, row));
        line.lastChild.classList.toggle("rare", column.rare);
      }
      return line;
    });
    this.place.querySelector("tbody").replaceChildren(...body);
    const pages = this.place.querySelector(".pages");
    pages.hidden = this.order.length <= PAGE_ROWS;
    const count = (n) => n.toLocaleString("en");
    const to = Math.min(from + PAGE_ROWS, this.rows.length);
    const range = this.rows.length ? `${count(from + 1)} to ${count(to)} of ${count(this.rows.length)}` : "no matching row";
    pages.querySelector(".place").textContent = range;
    pages.querySelector(".before").disabled = this.page === 0;
    pages.querySelector(".after").disabled = to >= this.rows.length;
  }
}

/* Order of two values: numbers by size, others as text, missing values last in both directions. */
function compareValues(a, b, sign) {
  if (a === null || a === undefined || b === null || b === undefined) return ((a ?? null) === null) - ((b ?? null) === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

function cell(shown, columns, row) {
  const value = columns[shown.column] ? columns[shown.column](row) : null;
  const td = document.createElement("td");
  if (shown.kind === "text") {
    const name = document.createElement("bdi");
    name.textContent = value === null || value === undefined ? NOTHING : visibleText(String(value));
    if (shown.bold && columns[shown.bold](row) === true) name.className = "bold";
    td.append(name);
    return td;
  }
  if (shown.kind === "flag") {
    td.textContent = value === true ? "yes" : value === false ? "no" : NOTHING;
    return td;
  }
  if (shown.kind === "id") {
    const code = document.createElement("code");
    code.textContent = String(value ?? NOTHING).slice(0, 8);
    code.title = String(value ?? "");
    td.append(code);
    return td;
  }
  td.className = "num";
  const isPresent = (number) => number !== null && number !== undefined;
  td.textContent = isPresent(value) ? numberText(shown, value) : NOTHING;
  if (shown.interval) {
    const [low, high] = shown.interval.map((name) => columns[name](row));
    const ends = document.createElement("span");
    ends.className = "ends";
    if (isPresent(low)) ends.textContent = `[${numberText(shown, low)}, ${numberText(shown, high)}]`;
    td.append(" ", ends);
  }
  return td;
}

function numberText(shown, value) {
  if (shown.kind === "p") return value < 0.001 ? "< 0.001" : value.toFixed(value < 0.1 ? 3 : 2);
  const signDisplay = shown.kind === "signed" ? "exceptZero" : "negative";
  const style = { minimumFractionDigits: shown.digits, maximumFractionDigits: shown.digits, signDisplay };
  return (shown.kind === "share" ? 100 * value : value).toLocaleString("en", style).replace("-", "−");
}

/* CSV of all columns with every digit. */
function csvOf(data) {
  const names = Object.keys(data.columns);
  const field = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [names.join(",")];
  for (let row = 0; row < data.rows; row++) lines.push(names.map((name) => field(data.columns[name](row))).join(","));
  return lines.join("\n") + "\n";
}

function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
