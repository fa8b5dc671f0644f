// What all pages share: elements made of text (never of markup), JSON, plots in the page's colours.
'use strict';

/** An element: properties, then children; a string becomes text. */
function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === 'class') made.className = value;
    else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ''));
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
  const place = document.getElementById('notice');
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
  place.classList.add('notice');
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A figure in the colours of the page. What a reader has switched off stays off (uirevision). */
function plotInto(place, figure) {
  place.figure = figure;
  const ink = colour('--ink');
  const axis = { gridcolor: colour('--line'), linecolor: colour('--line'), zeroline: false, color: ink };
  const layout = {
    autosize: true,
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: 'system-ui, sans-serif', size: 13, color: ink },
    hoverlabel: { align: 'left', bgcolor: colour('--paper'), font: { color: ink } },
    ...figure.layout,
  };
  for (const name of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(name)) layout[name] = { automargin: true, ...axis, ...layout[name] };
  }
  return Plotly.react(place, figure.data, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ['select2d', 'lasso2d'] });
}

matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  for (const place of document.querySelectorAll('.plot')) if (place.figure) plotInto(place, place.figure);
});
