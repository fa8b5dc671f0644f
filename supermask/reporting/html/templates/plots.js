"use strict";
/* Figures. drawPlot(id, figure) draws or redraws the figure in the element [data-plot=id] and keeps its view and hidden
   treatments. wirePlots(root) draws the figures in root when they are about to be scrolled into view. */

window.supermask = window.supermask || {};

/* Promise of the data of a figure or table by id; a page without data blocks sets its own function. */
supermask.source = supermask.source || ((id) => {
  const block = document.getElementById("data-" + id);
  return Promise.resolve(block && JSON.parse(block.textContent));
});

const plotStates = new Map();
const PAPER_WIDTH = 680;
const MOST_LINES = 6;
const LEAST_CONTRAST = 3;

function drawPlot(id, figure) {
  const place = plotPlace(id);
  if (!place || !figure) return;
  const all = [figure, ...(figure.views || [])];
  const state = plotStates.get(id) || { view: 0, hidden: firstHidden(all) };
  state.figure = figure;
  state.all = all;
  state.view = Math.min(state.view, state.all.length - 1);
  plotStates.set(id, state);
  if (!place.querySelector(".canvas")) {
    place.replaceChildren(element("div", "views"), element("div", "canvas"), element("div", "legend"));
    place.querySelector(".views").setAttribute("role", "group");
    place.querySelector(".views").setAttribute("aria-label", "What is shown");
    place.querySelector(".legend").setAttribute("role", "group");
    place.querySelector(".legend").setAttribute("aria-label", "Switch off and on");
  }
  showViews(place, id, state);
  showLegend(place, id, state);
  showCanvas(place, state);
  place.style.minHeight = "";
}

/* Treatments that are switched off at first: all after the first MOST_LINES of a figure whose layout asks for it. */
function firstHidden(all) {
  const groups = new Set();
  for (const view of all) {
    if (!view.layout?.meta?.few_at_first) continue;
    for (const trace of view.data) if (trace.name && !(trace.meta && trace.meta.ink)) groups.add(trace.legendgroup);
  }
  const rest = [...groups].filter((group) => group !== all[0].layout?.meta?.reference);
  return new Set(rest.slice(MOST_LINES - (rest.length < groups.size ? 1 : 0)));
}

function wirePlots(root) {
  const near = new IntersectionObserver((seen) => {
    for (const entry of seen) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      drawFrom(entry.target.dataset.plot);
    }
  }, { rootMargin: "500px" });
  for (const place of root.querySelectorAll("[data-plot]")) near.observe(place);
}

function drawFrom(id) {
  return supermask.source(id).then((figure) => drawPlot(id, figure));
}

/* Draw all figures whose data is in the page, for printing. */
function drawEmbedded() {
  for (const place of document.querySelectorAll("[data-plot]")) {
    const block = document.getElementById("data-" + place.dataset.plot);
    if (block) drawPlot(place.dataset.plot, JSON.parse(block.textContent));
  }
}

function redrawPlots() {
  for (const [id, state] of plotStates) drawPlot(id, state.figure);
}

function plotPlace(id) {
  return [...document.querySelectorAll("[data-plot]")].find((place) => place.dataset.plot === id);
}

function showViews(place, id, state) {
  const buttons = state.all.length < 2 ? [] : state.all.map((view, index) => {
    const button = element("button", "", view.label);
    button.type = "button";
    button.setAttribute("aria-pressed", String(index === state.view));
    button.addEventListener("click", () => {
      state.view = index;
      drawPlot(id, state.figure);
      place.querySelectorAll(".views button")[index].focus();
    });
    return button;
  });
  place.querySelector(".views").replaceChildren(...buttons);
}

function showLegend(place, id, state) {
  const traces = state.all[state.view].data.filter((trace) => trace.name && trace.showlegend !== false);
  const buttons = traces.length < 2 ? [] : traces.map((trace) => {
    const button = element("button");
    button.type = "button";
    button.setAttribute("aria-pressed", String(!state.hidden.has(trace.legendgroup)));
    const name = element("bdi", "", visibleText(trace.name));
    button.append(swatch(trace), name);
    button.addEventListener("click", () => {
      const group = trace.legendgroup;
      if (!state.hidden.delete(group)) state.hidden.add(group);
      showLegend(place, id, state);
      place.querySelectorAll(".legend button:not(.all)")[traces.indexOf(trace)].focus();
      showCanvas(place, state);
    });
    return button;
  });
  if (traces.length > 3) {
    const off = traces.filter((trace) => state.hidden.has(trace.legendgroup)).length;
    const all = off ? `All (${off} more)` : "All";
    for (const [word, hidden] of [["None", traces.map((trace) => trace.legendgroup)], [all, []]]) {
      const button = element("button", "all", word);
      button.type = "button";
      button.addEventListener("click", () => {
        state.hidden = new Set(hidden);
        showLegend(place, id, state);
        place.querySelector(".legend .all").focus();
        showCanvas(place, state);
      });
      buttons.unshift(button);
    }
  }
  place.querySelector(".legend").replaceChildren(...buttons);
}

function showCanvas(place, state) {
  const canvas = place.querySelector(".canvas");
  const view = structuredClone(state.all[state.view]);
  const meta = view.layout.meta || {};
  const narrow = place.clientWidth < 560;
  const look = pageLook();
  for (const trace of view.data) {
    trace.visible = !state.hidden.has(trace.legendgroup);
    applyTheme(trace, look);
  }
  const layout = view.layout;
  layout.height = meta.height || (narrow ? 380 : 470);
  layout.width = supermask.printing ? PAPER_WIDTH : Math.max(place.clientWidth, meta.least_width || 0);
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = { family: look.family, size: 13, color: look.ink };
  layout.hoverlabel = { bgcolor: look.raised, bordercolor: look.rule, font: { family: look.family, size: 13, color: look.ink }, align: "left" };
  layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: look.quiet, activecolor: look.ink };
  layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  for (const axis of [layout.xaxis, layout.yaxis]) {
    Object.assign(axis, { gridcolor: look.grid, linecolor: look.rule, tickfont: { size: 12 }, zerolinecolor: look.rule });
    if (narrow && axis === layout.yaxis && axis.ticktext) axis.ticktext = shortened(axis.ticktext);
    if (narrow && axis === layout.xaxis && layout.width < 560 && (axis.tickvals || []).length > 7) thin(axis);
    axis.title = Object.assign({ standoff: 8 }, axis.title, { font: { size: 13 } });
  }
  /* A figure that is wider than its place scrolls, which needs the focus where there is no mouse. */
  if (layout.width > place.clientWidth) canvas.tabIndex = 0;
  else canvas.removeAttribute("tabindex");
  const config = { displaylogo: false, responsive: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] };
  Plotly.react(canvas, view.data, layout, config);
  describe(canvas, place.dataset.label || "Figure");
}

/* The drawing is one image with a label; the other layers of Plotly are hidden from screen readers. */
function describe(canvas, label) {
  for (const [index, layer] of [...canvas.querySelectorAll("svg.main-svg")].entries()) {
    if (index) layer.setAttribute("aria-hidden", "true");
    else {
      layer.setAttribute("role", "img");
      layer.setAttribute("aria-label", label);
    }
  }
}

/* Shorten names that are escaped for Plotly to 18 displayed letters, in the middle; number those that become equal. */
function shortened(texts) {
  const used = new Set();
  return texts.map((text) => {
    const plain = [...text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&#36;", "$").replaceAll("&amp;", "&")];
    let cut, number = 1, suffix = "";
    do {
      const kept = 17 - suffix.length;
      const short = plain.length > kept + 1 ? [...plain.slice(0, Math.ceil(kept / 2)), "…", ...plain.slice(plain.length - Math.floor(kept / 2))] : plain;
      cut = short.join("") + suffix;
      suffix = ` (${++number})`;
    } while (used.has(cut));
    used.add(cut);
    return cut.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");
  });
}

function thin(axis) {
  const stays = (_, place) => place % 2 === 0;
  axis.tickvals = axis.tickvals.filter(stays);
  axis.ticktext = axis.ticktext.filter(stays);
  axis.tickangle = 0;
}

function applyTheme(trace, look) {
  if (trace.meta && trace.meta.ink) trace.line.color = look.ink;
  if (look.dark && trace.type === "heatmap") trace.colorscale[1][1] = look.raised;
  for (const part of [trace.line, trace.marker, trace.textfont, trace.error_x]) {
    if (part && part.color) part.color = readable(part.color, look);
  }
  if (look.dark && trace.fillcolor) trace.fillcolor = readable(trace.fillcolor, look).replace("rgb(", "rgba(").replace(")", ",0.16)");
}

/* Mix a color with black or white until its contrast to the page is at least LEAST_CONTRAST (WCAG 2, 1.4.11). */
function readable(color, look) {
  const hex = color.match(/^#(..)(..)(..)$/);
  const rgb = hex ? hex.slice(1).map((digits) => parseInt(digits, 16)) : (color.match(/[\d.]+/g) || []).slice(0, 3).map(Number);
  if (rgb.length < 3) return color;
  const end = look.dark ? 255 : 0;
  for (let share = 0; share <= 1; share += 0.02) {
    const mixed = rgb.map((channel) => Math.round(channel + (end - channel) * share));
    if (contrast(mixed, look.paper) >= LEAST_CONTRAST) return `rgb(${mixed})`;
  }
  return `rgb(${[end, end, end]})`;
}

function contrast(a, b) {
  const luminance = (rgb) => rgb.reduce((sum, channel, index) => {
    const share = channel / 255;
    return sum + [0.2126, 0.7152, 0.0722][index] * (share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4);
  }, 0);
  const [light, dark] = [luminance(a), luminance(b)].sort((one, other) => other - one);
  return (light + 0.05) / (dark + 0.05);
}

function pageLook() {
  const probe = element("span");
  document.body.append(probe);
  const colorOf = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
  const look = { ink: colorOf("ink"), grid: colorOf("grid"), rule: colorOf("rule"), raised: colorOf("raised"), quiet: colorOf("quiet"), family: getComputedStyle(document.body).fontFamily };
  const paper = colorOf("paper").match(/[\d.]+/g).map(Number);
  look.paper = paper.slice(0, 3);
  look.dark = paper[0] + paper[1] + paper[2] < 380;
  probe.remove();
  return look;
}

const SHAPES = {
  circle: "M20,7m-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
  "triangle-up": "M20,2.6L24.4,10.4L15.6,10.4Z",
  "triangle-down": "M20,11.4L24.4,3.6L15.6,3.6Z",
  "triangle-left": "M15.2,7L23,2.6L23,11.4Z",
  "triangle-right": "M24.8,7L17,2.6L17,11.4Z",
  square: "M16.4,3.4H23.6V10.6H16.4Z",
  diamond: "M20,1.8L25.2,7L20,12.2L14.8,7Z",
  pentagon: "M20,2.4L24.6,5.8L22.8,11L17.2,11L15.4,5.8Z",
  cross: "M18.4,2.6h3.2v2.8h2.8v3.2h-2.8v2.8h-3.2v-2.8h-2.8v-3.2h2.8Z",
  x: "M17,2.2L20,5.2L23,2.2L24.8,4L21.8,7L24.8,10L23,11.8L20,8.8L17,11.8L15.2,10L18.2,7L15.2,4Z",
};
const PATTERNS = { solid: "", dash: "6 3", dot: "2 3", dashdot: "7 2.5 2 2.5" };

function swatch(trace) {
  const look = pageLook();
  const copy = structuredClone({ line: trace.line, marker: trace.marker, meta: trace.meta, type: trace.type });
  applyTheme(copy, look);
  const drawing = svg("svg", { width: 40, height: 14, viewBox: "0 0 40 14", "aria-hidden": "true" });
  const line = trace.mode.includes("lines");
  const color = (copy.line && copy.line.color) || (copy.marker && copy.marker.color) || look.ink;
  if (line) drawing.append(svg("path", { d: "M2,7H38", stroke: color, "stroke-width": trace.line.width, "stroke-dasharray": PATTERNS[trace.line.dash] || "", fill: "none" }));
  if (trace.marker) drawing.append(svg("path", { d: SHAPES[trace.marker.symbol] || SHAPES.circle, fill: color }));
  return drawing;
}

function svg(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

/* Text with control and invisible characters written as escapes, as labels.escape_invisible in Python does. */
function visibleText(text) {
  return text.replace(/[\p{C}\p{Z}]/gu, (character) => {
    if (character === " ") return character;
    const code = character.codePointAt(0);
    const [prefix, digits] = code < 0x100 ? ["\\x", 2] : code < 0x10000 ? ["\\u", 4] : ["\\U", 8];
    return prefix + code.toString(16).padStart(digits, "0");
  });
}

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}
