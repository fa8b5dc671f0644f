"use strict";
/* The explorer. The selection is kept in the address, so that a view can be bookmarked and shared. */
{

const $ = (id) => document.getElementById(id);
const state = { subjects: [], subject: null, chosen: [], sort: "treatment", order: "ascending", page: 0, pages: 1 };
// Number of the latest request: an answer to an earlier one comes too late and is dropped.
const latest = { table: 0, curves: 0 };

function query(extra) {
  const parameters = new URLSearchParams({ network: state.subject.network, dataset: state.subject.dataset });
  for (const key of state.chosen) parameters.append("treatment", key);
  for (const [name, value] of Object.entries(extra || {})) parameters.set(name, value);
  return parameters.toString();
}

function saveSelection() {
  history.replaceState(null, "", `/explore?${query({ metric: $("metric").value })}`);
}

function restoreSelection() {
  const parameters = new URLSearchParams(location.search);
  const match = state.subjects.find((subject) => subject.network === parameters.get("network") && subject.dataset === parameters.get("dataset"));
  state.subject = match || state.subjects.reduce((most, subject) => (subject.runs > most.runs ? subject : most), state.subjects[0]);
  const keys = new Set(state.subject.treatments.map((treatment) => treatment.key));
  state.chosen = parameters.getAll("treatment").filter((key) => keys.has(key));
  if (!state.chosen.length) state.chosen = [...state.subject.first];
  if ([...$("metric").options].some((option) => option.value === parameters.get("metric"))) $("metric").value = parameters.get("metric");
}

function drawChoices() {
  $("subject").replaceChildren(...state.subjects.map((subject, index) =>
    make("option", { value: index, selected: subject === state.subject }, `${subject.network} on ${subject.dataset} (${formatCount(subject.runs)} runs)`)));
  drawTreatments();
}

function drawTreatments() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = state.subject.treatments.filter((treatment) => words.every((word) => treatment.label.toLowerCase().includes(word)));
  // Selected treatments come first, in the order of selection.
  const order = ({ key }) => (state.chosen.includes(key) ? state.chosen.indexOf(key) : Infinity);
  matches.sort((a, b) => (order(a) === order(b) ? 0 : order(a) - order(b)));
  $("treatments").replaceChildren(...matches.map(({ key, label, runs }) => {
    const box = make("input", { type: "checkbox", value: key, onchange: choose });
    box.checked = state.chosen.includes(key);
    return make("label", {}, box, make("span", {}, label), make("span", { class: "quiet" }, formatCount(runs)));
  }));
  $("chosen").textContent = `${state.chosen.length} of ${state.subject.treatments.length} selected`;
}

function choose(event) {
  const key = event.target.value;
  state.chosen = state.chosen.filter((chosen) => chosen !== key);
  if (event.target.checked) state.chosen.push(key);
  $("chosen").textContent = `${state.chosen.length} of ${state.subject.treatments.length} selected`;
  state.page = 0;
  show();
}

function cell(column, value) {
  if (value === null) return make("td", { class: "quiet" }, "–");
  if (column === "id") return make("td", {}, make("a", { href: `/run/${value}` }, make("code", {}, value.slice(0, 8))));
  if (typeof value !== "number") return make("td", {}, String(value));
  const percent = column.endsWith("accuracy") || column === "density";
  const text = percent ? `${column === "density" ? (100 * value).toPrecision(3) : (100 * value).toFixed(2)}%`
    : Number.isInteger(value) ? formatCount(value) : value.toPrecision(4);
  return make("td", { class: "number" }, text);
}

function drawTable(page) {
  const heads = [...$("runs").tHead.rows[0].cells];
  for (const head of heads) {
    if (head.dataset.column === state.sort) head.setAttribute("aria-sort", state.order);
    else head.removeAttribute("aria-sort");
  }
  $("runs").tBodies[0].replaceChildren(...page.rows.map((row) =>
    make("tr", {}, ...row.map((value, index) => cell(heads[index].dataset.column, value)))));
  state.pages = Math.max(page.pages, 1);
  $("count").textContent = `${formatCount(page.total)} runs${state.chosen.length ? " of the selected treatments" : ""}`;
  $("page").textContent = `page ${page.page + 1} of ${state.pages}`;
  $("before").disabled = page.page === 0;
  $("after").disabled = page.page + 1 >= page.pages;
  $("csv").href = `/explore/runs.csv?${query()}`;
}

async function showTable() {
  const request = ++latest.table;
  const page = await getJson(`/explore/runs.json?${query({ sort: state.sort, order: state.order, page: state.page })}`);
  if (request === latest.table) drawTable(page);
}

async function showCurves() {
  const request = ++latest.curves;
  if (!state.chosen.length) {
    drawPlot("curves", { data: [], layout: { xaxis: {}, yaxis: {} } });
    $("curves-note").textContent = "Select a treatment to see its curve. The table has all runs.";
    return;
  }
  const figure = await getJson(`/explore/curves.json?${query({ metric: $("metric").value })}`);
  if (request !== latest.curves) return;
  drawPlot("curves", figure);
  $("curves-note").textContent = figure.data.length
    ? "Mean over seeds; band: 95% t-interval of the mean. "
    : "No finished run of this selection has this metric.";
}

async function show() {
  saveSelection();
  try {
    await Promise.all([showTable(), showCurves()]);
    notice("");
  } catch (error) {
    notice(error.message);
  }
}

async function start() {
  try {
    const choices = await getJson("/explore/choices.json");
    if (!choices.subjects.length) {
      notice("The store has no run yet, or is still being read. This page retries.");
      setTimeout(start, 2000);
      return;
    }
    state.subjects = choices.subjects;
    restoreSelection();
    drawChoices();
    await show();
  } catch (error) {
    notice(error.message);
  }
}

$("subject").addEventListener("change", () => {
  state.subject = state.subjects[Number($("subject").value)];
  state.chosen = [...state.subject.first];
  state.page = 0;
  drawTreatments();
  show();
});
$("metric").addEventListener("change", show);
$("filter").addEventListener("input", drawTreatments);
$("clear").addEventListener("click", () => {
  state.chosen = [];
  state.page = 0;
  drawTreatments();
  show();
});
for (const [id, step] of [["before", -1], ["after", 1]]) {
  $(id).addEventListener("click", () => {
    state.page = Math.min(Math.max(state.page + step, 0), state.pages - 1);
    showTable().catch((error) => notice(error.message));
  });
}
for (const head of $("runs").tHead.rows[0].cells) {
  head.firstElementChild.addEventListener("click", () => {
    const column = head.dataset.column;
    state.order = state.sort === column && state.order === "ascending" ? "descending" : "ascending";
    state.sort = column;
    state.page = 0;
    showTable().catch((error) => notice(error.message));
  });
}

start();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawPlots);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) redrawPlots();
  width = innerWidth;
});
}
