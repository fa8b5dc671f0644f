"use strict";
/* The page: light and dark theme, current section in the contents, study files, printing, resizing.
   wirePage(root) adds the handlers to all elements in root. */

function wirePage(root) {
  wireTables(root);
  wireStaticTables(root);
  wirePlots(root);
  for (const button of root.querySelectorAll("[data-file]")) {
    button.addEventListener("click", () => supermask.source(button.dataset.file).then((file) =>
      download(button.dataset.name, JSON.stringify(file, null, 2) + "\n", "application/yaml")));
  }
}

function wireTheme() {
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  /* Some browsers refuse localStorage for a page that is opened from disk. */
  const kept = (value) => { try { return value ? localStorage.setItem("theme", value) : localStorage.getItem("theme"); } catch { return null; } };
  const current = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  const show = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    button.textContent = current() === "dark" ? "Light page" : "Dark page";
    redrawPlots();
  };
  show(kept());
  button.hidden = false;
  button.addEventListener("click", () => { show(current() === "dark" ? "light" : "dark"); kept(current()); });
  dark.addEventListener("change", () => show());
}

/* Mark the link of the section that is on the screen. */
function wireContents() {
  const links = [...document.querySelectorAll("#contents a")];
  const seen = new Map();
  const mark = () => {
    const first = links.find((link) => seen.get(link.hash.slice(1)));
    for (const link of links) link === first ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  };
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) seen.set(entry.target.id, entry.isIntersecting);
    mark();
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("main section")) watch.observe(section);
}

/* Printing: light theme, and every figure drawn at the width of a sheet. */
function wirePrinting() {
  let before;
  addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    supermask.printing = true;
    drawEmbedded();
  });
  addEventListener("afterprint", () => {
    if (before) document.documentElement.dataset.theme = before;
    else delete document.documentElement.dataset.theme;
    supermask.printing = false;
    redrawPlots();
  });
}

function wireWidth() {
  let waiting, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redrawPlots, 150);
  });
}

wirePage(document.getElementById("report"));
wireTheme();
wireContents();
wirePrinting();
wireWidth();
