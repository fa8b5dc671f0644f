"use strict";
/* Page of a run: its curve, and a command to copy. */
{

const run = document.getElementById("run-id").textContent;
const curve = document.querySelector("[data-plot]");

if (curve) {
  getJson(`/run/${run}/curve.json`)
    .then((figure) => drawPlot("curve", figure))
    .catch((error) => curve.replaceChildren(error.message));
}

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copies).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.copies));
    }
  });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawPlots);
}
