"use strict";
/* What all pages share: elements made of text (never of markup), JSON, the theme that the reader has chosen. */

/** An element: properties, then children; a string becomes text. */
function make(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** What an address of this server says; throws with its sentence where it refuses. */
async function getJson(address) {
  const answer = await fetch(address);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error || `The server answers ${answer.status}.`);
  return said;
}

/** Says something above the page; nothing for an empty text. */
function notice(text) {
  const place = document.getElementById("notice");
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
  place.className = "notice";
}

function counted(value) {
  return value.toLocaleString("en");
}

{
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* nothing is kept: the system's then */ }
  if (theme) document.documentElement.dataset.theme = theme;
}
