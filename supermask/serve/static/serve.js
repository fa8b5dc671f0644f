"use strict";
/* Shared by all pages: elements built from text (never from HTML), JSON requests, the theme. */

/** Create an element with properties and children; strings become text nodes. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Fetch JSON from this server; throws its error message. */
async function getJson(address) {
  const response = await fetch(address);
  const data = await response.json();
  if (!response.ok) throw new Error(data.error || `The server answers ${response.status}.`);
  return data;
}

/** Show a message above the page; an empty text hides it. */
function notice(text) {
  const place = document.getElementById("notice");
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
  place.className = "notice";
}

function formatCount(value) {
  return value.toLocaleString("en");
}

{
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* storage is blocked: use the theme of the system */ }
  if (theme) document.documentElement.dataset.theme = theme;
}
