"use strict";
/* The live panel, and the report below it: asks what has changed, and fetches that alone. */
{

const EVERY = 2000;
let latest = { contents: "", sections: {}, data: {} };
const have = { contents: "", sections: new Map(), data: new Map() };

supermask.source = (id) => {
  have.data.set(id, latest.data[id]);
  return getJson(`/report/data/${id}.json`);
};

const STATES = {
  running: "running",
  interrupted: "interrupted: it says nothing more",
  stopped: "stopped",
  failed: "failed",
  ended: "ended",
};

function bar(done, total, label) {
  const share = total ? (100 * done) / total : 0;
  const filled = make("span", { class: "filled" });
  filled.style.width = `${share}%`;
  return make("div", { class: "progress", role: "progressbar", "aria-label": label, "aria-valuenow": done, "aria-valuemin": 0, "aria-valuemax": total }, filled);
}

/** A curve as a small drawing: values over iterations from 0 to `of`. */
function sparkline(iterations, values, of, name) {
  const [width, height] = [180, 44];
  const known = values.map((value, place) => [iterations[place], value]).filter(([, value]) => value !== null);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("class", `sparkline ${name}`);
  if (known.length) {
    const all = known.map(([, value]) => value);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const x = (iteration) => 1 + ((width - 2) * iteration) / Math.max(of, ...iterations, 1);
    const y = (value) => 2 + (height - 4) * (1 - (value - low) / (high - low || 1));
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    line.setAttribute("points", known.map(([i, v]) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" "));
    svg.append(line);
    svg.setAttribute("aria-label", `${name}, now ${all.at(-1).toPrecision(4)}`);
  }
  return svg;
}

function curveOf(curve) {
  if (!curve || !curve.iterations.length) return make("p", { class: "quiet" }, "no measurement yet");
  const { iterations, validation_loss: loss, validation_accuracy: accuracy } = curve;
  const last = (values) => values.filter((value) => value !== null).at(-1);
  const told = (value, text) => (value === undefined ? "not finite" : text(value));
  return make("div", { class: "curves" },
    make("figure", {}, sparkline(iterations, loss, curve.of, "loss"),
      make("figcaption", {}, `validation loss ${told(last(loss), (v) => v.toPrecision(3))}`)),
    make("figure", {}, sparkline(iterations, accuracy, curve.of, "accuracy"),
      make("figcaption", {}, `validation accuracy ${told(last(accuracy), (v) => `${(100 * v).toFixed(2)}%`)}`)),
    make("p", { class: "quiet" }, `iteration ${counted(iterations.at(-1))} of ${counted(curve.of)}`));
}

function inFlight(run) {
  const which = [run.level === null ? "" : `level ${run.level}`, run.seed === null ? "" : `seed ${run.seed}`];
  const name = [run.label || run.run.slice(0, 8), ...which].filter(Boolean).join(", ");
  return make("li", { class: "card" },
    make("p", {}, make("strong", {}, name), ` for ${run.for}`), curveOf(run.curve));
}

function failure(each) {
  const name = `${each.label ? `${each.label}, ` : ""}${each.run.slice(0, 8)}`;
  const run = each.stored ? make("a", { href: `/run/${each.run}` }, name) : name;
  return make("li", {}, run, `: ${each.status.replaceAll("_", " ")}${each.message ? `: ${each.message}` : ""}`);
}

function command(told) {
  const names = told.names.length ? told.names.join(", ") : "a study";
  const done = told.tasks - told.left;
  const facts = [`${counted(done)} of ${counted(told.tasks)} trainings`];
  if (told.state === "running") facts.push(told.time_left ? `${told.time_left} left` : "", `${told.workers} workers`);
  else facts.push(`last heard of ${told.since} ago`);
  const parts = [
    make("h2", {}, names, " ", make("span", { class: `state ${told.state}` }, STATES[told.state])),
    bar(done, told.tasks, names),
    make("p", {}, facts.filter(Boolean).join(" · ")),
  ];
  if (told.message) parts.push(make("p", { class: "message" }, told.message));
  if (told.in_flight.length) parts.push(make("ul", { class: "flight" }, ...told.in_flight.map(inFlight)));
  if (told.failures.length) {
    const more = told.more_failures ? [make("li", {}, `and ${counted(told.more_failures)} before`)] : [];
    parts.push(make("h3", {}, "Failures"), make("ul", { class: "failures" }, ...told.failures.map(failure), ...more));
  }
  return make("section", { class: `going-on ${told.state}` }, ...parts);
}

function studyRow(study) {
  const name = make("th", { scope: "row" }, study.name, study.title ? make("span", { class: "quiet" }, ` ${study.title}`) : "");
  if (study.why_not) return make("tr", {}, name, make("td", { colspan: 3 }, `cannot be shown: ${study.why_not}`));
  return make("tr", {}, name, make("td", {}, study.subject),
    make("td", { class: "number" }, `${counted(study.done)} of ${counted(study.total)}`),
    make("td", { class: "how-far" }, bar(study.done, study.total, study.name), study.counts));
}

function studies(told) {
  if (!told.length) return [];
  const heads = ["study", "network and data", "runs", "how far"].map((head) => make("th", { scope: "col" }, head));
  return [make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...told.map(studyRow))))];
}

function sentence(news) {
  if (news.trouble || news.report.trouble) return news.trouble || news.report.trouble;
  if (news.reading) return `Reading ${counted(news.reading.of)} runs: ${counted(news.reading.read)} so far.`;
  if (news.damaged.length) return news.damaged[0] + (news.damaged.length > 1 ? ` And ${news.damaged.length - 1} more.` : "");
  if (!news.runs && !news.commands.length) {
    return "No run is in this store yet. In another terminal: supermask run mask-criteria scale=digits, with the same --store.";
  }
  if (!news.studies.length && news.runs) return "The runs of this store belong to no study that it knows of: look at them under Explore.";
  return "";
}

/** Replaces what a place holds, where it would look otherwise: focus and selection stay. */
function replace(id, nodes) {
  const place = document.getElementById(id);
  const fresh = make("div", {}, ...nodes);
  if (place.innerHTML !== fresh.innerHTML) place.replaceChildren(...fresh.childNodes);
}

let shown = "";

async function look() {
  const news = await getJson("/live.json");
  const { revision, report, ...told } = news;
  notice(sentence(news));
  if (JSON.stringify(told) !== shown) {
    shown = JSON.stringify(told);
    replace("commands", news.commands.map(command));
    replace("studies", studies(news.studies));
  }
  latest = news.report;
  await showReport();
  document.documentElement.dataset.revision = revision;
}

async function follow() {
  try {
    if (!document.hidden) await look();
  } catch (error) {
    shown = "";
    notice(`The server does not answer (${error.message}). It is asked again.`);
  }
  setTimeout(follow, EVERY);
}

/** Brings the report up to date: its contents, the sections that changed, and of figures and tables what is shown. */
async function showReport() {
  const report = latest;
  const root = document.getElementById("report");
  if (report.contents !== have.contents) {
    const { html } = await getJson("/report/contents.json");
    document.getElementById("contents-place").innerHTML = html;
    have.contents = report.contents;
  }
  const names = Object.keys(report.sections);
  for (const old of [...root.children]) {
    if (!names.includes(old.id)) {
      old.remove();
      have.sections.delete(old.id);
    }
  }
  let before = null;
  let changed = false;
  for (const name of names) {
    if (have.sections.get(name) !== report.sections[name]) {
      const { html } = await getJson(`/report/section/${name}.json`);
      showSection(root, name, html);
      have.sections.set(name, report.sections[name]);
      changed = true;
    }
    const shown = document.getElementById(name);
    if ((before ? before.nextSibling : root.firstChild) !== shown) root.insertBefore(shown, before ? before.nextSibling : root.firstChild);
    before = shown;
  }
  if (changed) wireContents();
  await showData(report);
}

/** Figures and tables that are on the page already stay where they are, and get their new data by showData. */
function showSection(root, name, html) {
  const parsed = document.createElement("template");
  parsed.innerHTML = html;
  const fresh = parsed.content.firstElementChild;
  const old = document.getElementById(name);
  if (!old) {
    wirePage(fresh);
    root.append(fresh);
    return;
  }
  const kept = [...old.querySelectorAll("[data-plot], [data-table]")].filter((place) => place.table || place.querySelector(".canvas"));
  const moved = [];
  for (const place of kept) {
    const key = place.dataset.plot ? "plot" : "table";
    const twin = [...fresh.querySelectorAll(`[data-${key}]`)].find((each) => each.dataset[key] === place.dataset[key]);
    if (!twin) continue;
    const marker = document.createComment("");
    twin.replaceWith(marker);
    moved.push([marker, place]);
  }
  const [open, now] = [old, fresh].map((each) => [...each.querySelectorAll("details")]);
  if (open.length === now.length) now.forEach((each, place) => { each.open = open[place].open; });
  wirePage(fresh);
  for (const [marker, place] of moved) marker.replaceWith(place);
  old.replaceChildren(...fresh.childNodes);
}

async function showData(report) {
  for (const [id, revision] of [...have.data]) {
    if (report.data[id] === undefined || report.data[id] === revision) continue;
    const places = [...document.querySelectorAll("[data-plot], [data-table]")];
    const place = places.find((each) => each.dataset.plot === id || each.dataset.table === id);
    if (!place) have.data.delete(id);
    else if (place.dataset.table) await fillTable(place);
    else drawPlot(id, await supermask.source(id));
  }
}

follow();
}
