"use strict";
/* The explorer: what is chosen is in the address, so that a view can be kept and sent. */
{

const $ = (id) => document.getElementById(id);
const state = { subjects: [], subject: null, chosen: [], sort: "treatment", order: "ascending", page: 0 };
let asked = 0;

function query(extra) {
  const found = new URLSearchParams({ network: state.subject.network, dataset: state.subject.dataset });
  for (const key of state.chosen) found.append("treatment", key);
  for (const [name, value] of Object.entries(extra || {})) found.set(name, value);
  return found.toString();
}

function remember() {
  history.replaceState(null, "", `/explore?${query({ metric: $("metric").value })}`);
}

function recall() {
  const given = new URLSearchParams(location.search);
  const subject = state.subjects.find((each) => each.network === given.get("network") && each.dataset === given.get("dataset"));
  state.subject = subject || state.subjects.reduce((most, each) => (each.runs > most.runs ? each : most), state.subjects[0]);
  const keys = new Set(state.subject.treatments.map((each) => each.key));
  state.chosen = given.getAll("treatment").filter((key) => keys.has(key));
  if (!state.chosen.length) state.chosen = [...state.subject.first];
  if ([...$("metric").options].some((option) => option.value === given.get("metric"))) $("metric").value = given.get("metric");
}

function drawChoices() {
  $("subject").replaceChildren(...state.subjects.map((each, place) =>
    make("option", { value: place, selected: each === state.subject }, `${each.network} on ${each.dataset} (${counted(each.runs)} runs)`)));
  drawTreatments();
}

function drawTreatments() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = state.subject.treatments.filter((each) => words.every((word) => each.label.toLowerCase().includes(word)));
  // What is chosen comes first, as it was chosen.
  const place = (each) => (state.chosen.includes(each.key) ? state.chosen.indexOf(each.key) : Infinity);
  fits.sort((one, other) => (place(one) === place(other) ? 0 : place(one) - place(other)));
  $("treatments").replaceChildren(...fits.map((each) => {
    const box = make("input", { type: "checkbox", value: each.key, onchange: choose });
    box.checked = state.chosen.includes(each.key);
    return make("label", {}, box, make("span", {}, each.label), make("span", { class: "quiet" }, counted(each.runs)));
  }));
  $("chosen").textContent = `${state.chosen.length} of ${state.subject.treatments.length} chosen`;
}

function choose(event) {
  const key = event.target.value;
  state.chosen = state.chosen.filter((each) => each !== key);
  if (event.target.checked) state.chosen.push(key);
  $("chosen").textContent = `${state.chosen.length} of ${state.subject.treatments.length} chosen`;
  state.page = 0;
  show();
}

function cell(column, value) {
  if (value === null) return make("td", { class: "quiet" }, "–");
  if (column === "id") return make("td", {}, make("a", { href: `/run/${value}` }, make("code", {}, value.slice(0, 8))));
  if (typeof value !== "number") return make("td", {}, String(value));
  const percent = column.endsWith("accuracy") || column === "density";
  const text = percent ? `${column === "density" ? (100 * value).toPrecision(3) : (100 * value).toFixed(2)}%`
    : Number.isInteger(value) ? counted(value) : value.toPrecision(4);
  return make("td", { class: "number" }, text);
}

function drawTable(told) {
  const heads = [...$("runs").tHead.rows[0].cells];
  for (const head of heads) {
    if (head.dataset.column === state.sort) head.setAttribute("aria-sort", state.order);
    else head.removeAttribute("aria-sort");
  }
  $("runs").tBodies[0].replaceChildren(...told.rows.map((row) =>
    make("tr", {}, ...row.map((value, place) => cell(heads[place].dataset.column, value)))));
  $("count").textContent = `${counted(told.total)} runs${state.chosen.length ? " of the chosen treatments" : ""}`;
  $("page").textContent = `page ${told.page + 1} of ${Math.max(told.pages, 1)}`;
  $("before").disabled = told.page === 0;
  $("after").disabled = told.page + 1 >= told.pages;
  $("csv").href = `/explore/runs.csv?${query()}`;
}

async function showTable() {
  drawTable(await getJson(`/explore/runs.json?${query({ sort: state.sort, order: state.order, page: state.page })}`));
}

async function showCurves() {
  if (!state.chosen.length) {
    drawPlot("curves", { data: [], layout: { xaxis: {}, yaxis: {} } });
    $("curves-note").textContent = "Choose a treatment to see its curve. The table has all runs.";
    return;
  }
  const mine = ++asked;
  const figure = await getJson(`/explore/curves.json?${query({ metric: $("metric").value })}`);
  if (mine !== asked) return;
  drawPlot("curves", figure);
  $("curves-note").textContent = figure.data.length
    ? "Mean over seeds; band: 95% t-interval of the mean. "
    : "No finished run of these has this metric.";
}

async function show() {
  remember();
  try {
    await Promise.all([showTable(), showCurves()]);
    notice("");
  } catch (error) {
    notice(error.message);
  }
}

async function start() {
  try {
    const told = await getJson("/explore/choices.json");
    if (!told.subjects.length) {
      notice("No run is in this store yet, or it is still being read. This page looks again.");
      setTimeout(start, 2000);
      return;
    }
    state.subjects = told.subjects;
    recall();
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
    state.page += step;
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
