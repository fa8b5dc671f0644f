"use strict";
/* Status panel and report: poll the revisions, fetch only the parts that changed. */
{

const POLL_MILLISECONDS = 2000;
let latest = { contents: "", sections: {}, data: {} };
const have = { contents: "", sections: new Map(), data: new Map() };

supermask.source = (id) => {
  have.data.set(id, latest.data[id]);
  return getJson(`/report/data/${id}.json`);
};

const STATES = {
  running: "running",
  interrupted: "interrupted: no update",
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

/** Draw a curve as a small SVG: values over iterations from 0 to `of`. */
function sparkline(iterations, values, of, name) {
  const [width, height] = [180, 44];
  const known = values.map((value, index) => [iterations[index], value]).filter(([, value]) => value !== null);
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
  if (!curve || !curve.iterations.length) return make("p", { class: "quiet" }, "no evaluation yet");
  const { iterations, validation_loss: loss, validation_accuracy: accuracy } = curve;
  const last = (values) => values.filter((value) => value !== null).at(-1);
  const format = (value, text) => (value === undefined ? "not finite" : text(value));
  return make("div", { class: "curves" },
    make("figure", {}, sparkline(iterations, loss, curve.of, "loss"),
      make("figcaption", {}, `validation loss ${format(last(loss), (v) => v.toPrecision(3))}`)),
    make("figure", {}, sparkline(iterations, accuracy, curve.of, "accuracy"),
      make("figcaption", {}, `validation accuracy ${format(last(accuracy), (v) => `${(100 * v).toFixed(2)}%`)}`)),
    make("p", { class: "quiet" }, `iteration ${formatCount(iterations.at(-1))} of ${formatCount(curve.of)}`));
}

function inFlight(run) {
  const details = [run.level === null ? "" : `level ${run.level}`, run.seed === null ? "" : `seed ${run.seed}`];
  const name = [run.label || run.run.slice(0, 8), ...details].filter(Boolean).join(", ");
  return make("li", { class: "card" },
    make("p", {}, make("strong", {}, name), ` for ${run.for}`), curveOf(run.curve));
}

function failure(run) {
  const name = `${run.label ? `${run.label}, ` : ""}${run.run.slice(0, 8)}`;
  const link = run.stored ? make("a", { href: `/run/${run.run}` }, name) : name;
  return make("li", {}, link, `: ${run.status.replaceAll("_", " ")}${run.message ? `: ${run.message}` : ""}`);
}

function command(progress) {
  const names = progress.names.length ? progress.names.join(", ") : "a study";
  // `reproduce` runs a dozen studies: their names are too long for a heading.
  const isLong = progress.names.length > 3;
  const heading = isLong ? `${progress.names.length} studies` : names;
  const done = progress.tasks - progress.left;
  const facts = [`${formatCount(done)} of ${formatCount(progress.tasks)} trainings`];
  if (progress.state === "running") facts.push(progress.time_left ? `${progress.time_left} left` : "", `${formatCount(progress.workers)} worker${progress.workers === 1 ? "" : "s"}`);
  else facts.push(`last update ${progress.since} ago`);
  const parts = [
    make("h2", {}, heading, " ", make("span", { class: `state ${progress.state}` }, STATES[progress.state])),
    bar(done, progress.tasks, names),
    make("p", {}, facts.filter(Boolean).join(" · ")),
  ];
  if (isLong) parts.push(make("p", { class: "quiet" }, names));
  if (progress.message) parts.push(make("p", { class: "message" }, progress.message));
  if (progress.in_flight.length) parts.push(make("ul", { class: "flight" }, ...progress.in_flight.map(inFlight)));
  if (progress.failures.length) {
    const more = progress.more_failures ? [make("li", {}, `and ${formatCount(progress.more_failures)} earlier`)] : [];
    parts.push(make("h3", {}, "Failures"), make("ul", { class: "failures" }, ...progress.failures.map(failure), ...more));
  }
  return make("section", { class: `going-on ${progress.state}` }, ...parts);
}

function studyRow(study) {
  const name = make("th", { scope: "row" }, study.name, study.difference ? make("span", { class: "difference" }, ` ${study.difference}`) : "", study.title ? make("span", { class: "quiet" }, ` ${study.title}`) : "");
  if (study.why_not) return make("tr", {}, name, make("td", { colspan: 3 }, `cannot be shown: ${study.why_not}`));
  return make("tr", {}, name, make("td", {}, study.subject),
    make("td", { class: "number" }, `${formatCount(study.done)} of ${formatCount(study.total)}`),
    make("td", { class: "how-far" }, bar(study.done, study.total, study.name), study.counts));
}

function studies(rows) {
  if (!rows.length) return [];
  const heads = ["study", "network and data", "runs", "progress"].map((head) => make("th", { scope: "col" }, head));
  return [make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows.map(studyRow))))];
}

function message(status) {
  if (status.trouble || status.report.trouble) return status.trouble || status.report.trouble;
  if (status.reading) return `Reading ${formatCount(status.reading.of)} runs: ${formatCount(status.reading.read)} so far.`;
  if (status.damaged.length) return status.damaged[0] + (status.damaged.length > 1 ? ` And ${status.damaged.length - 1} more.` : "");
  if (!status.runs && !status.commands.length) {
    return "The store has no run yet. In another terminal: supermask run mask-criteria scale=digits, with the same --store.";
  }
  if (!status.studies.length && status.runs) return "The runs of this store belong to no known study; Explore shows them.";
  return "";
}

/** Replace the content of an element only if it differs, so that focus and selection stay. */
function replace(id, nodes) {
  const place = document.getElementById(id);
  const fresh = make("div", {}, ...nodes);
  if (place.innerHTML !== fresh.innerHTML) place.replaceChildren(...fresh.childNodes);
}

let shown = "";

async function poll() {
  const status = await getJson("/live.json");
  const { revision, report, ...panel } = status;
  notice(message(status));
  if (JSON.stringify(panel) !== shown) {
    shown = JSON.stringify(panel);
    replace("commands", status.commands.map(command));
    replace("studies", studies(status.studies));
  }
  latest = status.report;
  await showReport();
  document.documentElement.dataset.revision = revision;
}

async function follow() {
  try {
    if (!document.hidden) await poll();
  } catch (error) {
    shown = "";
    notice(`The server does not answer (${error.message}). Retrying.`);
  }
  setTimeout(follow, POLL_MILLISECONDS);
}

/** Update the report: its contents, changed sections, and the figures and tables that are shown. */
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
  let previous = null;
  let changed = false;
  for (const name of names) {
    if (have.sections.get(name) !== report.sections[name]) {
      const { html } = await getJson(`/report/section/${name}.json`);
      showSection(root, name, html);
      have.sections.set(name, report.sections[name]);
      changed = true;
    }
    const shown = document.getElementById(name);
    if ((previous ? previous.nextSibling : root.firstChild) !== shown) root.insertBefore(shown, previous ? previous.nextSibling : root.firstChild);
    previous = shown;
  }
  if (changed) wireContents();
  await showData(report);
}

/** Replace a section. Figures and tables that are drawn already keep their elements; showData updates them. */
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
    const twin = [...fresh.querySelectorAll(`[data-${key}]`)].find((element) => element.dataset[key] === place.dataset[key]);
    if (!twin) continue;
    const marker = document.createComment("");
    twin.replaceWith(marker);
    moved.push([marker, place]);
  }
  const [before, after] = [old, fresh].map((section) => [...section.querySelectorAll("details")]);
  if (before.length === after.length) after.forEach((details, index) => { details.open = before[index].open; });
  wirePage(fresh);
  for (const [marker, place] of moved) marker.replaceWith(place);
  old.replaceChildren(...fresh.childNodes);
}

async function showData(report) {
  for (const [id, revision] of [...have.data]) {
    if (report.data[id] === undefined || report.data[id] === revision) continue;
    const places = [...document.querySelectorAll("[data-plot], [data-table]")];
    const place = places.find(({ dataset }) => dataset.plot === id || dataset.table === id);
    if (!place) have.data.delete(id);
    else if (place.dataset.table) await fillTable(place);
    else drawPlot(id, await supermask.source(id));
  }
}

follow();
}
