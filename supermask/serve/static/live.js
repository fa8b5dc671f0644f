// The live panel, and the report below it: asks what has changed, and fetches that alone.
'use strict';

const EVERY = 2000;
const have = { sections: {}, plots: {} };

const STATES = {
  running: 'running',
  interrupted: 'interrupted: it says nothing more',
  stopped: 'stopped',
  failed: 'failed',
  ended: 'ended',
};

function number(value) {
  return value.toLocaleString('en');
}

function bar(done, total, label) {
  const share = total ? (100 * done) / total : 0;
  const filled = element('span', { class: 'filled' });
  filled.style.width = `${share}%`;
  return element('div', { class: 'progress', role: 'progressbar', 'aria-label': label, 'aria-valuenow': done, 'aria-valuemin': 0, 'aria-valuemax': total }, filled);
}

/** A curve as a small drawing: values over iterations from 0 to `of`. */
function sparkline(iterations, values, of, name) {
  const [width, height] = [180, 44];
  const known = values.map((value, place) => [iterations[place], value]).filter(([, value]) => value !== null);
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('role', 'img');
  svg.setAttribute('class', `sparkline ${name}`);
  if (known.length) {
    const all = known.map(([, value]) => value);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const x = (iteration) => 1 + ((width - 2) * iteration) / Math.max(of, ...iterations, 1);
    const y = (value) => 2 + (height - 4) * (1 - (value - low) / (high - low || 1));
    const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline');
    line.setAttribute('points', known.map(([i, v]) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(' '));
    svg.append(line);
    svg.setAttribute('aria-label', `${name}, now ${all.at(-1).toPrecision(4)}`);
  }
  return svg;
}

function curveOf(curve) {
  if (!curve || !curve.iterations.length) return element('p', { class: 'quiet' }, 'no measurement yet');
  const { iterations, validation_loss: loss, validation_accuracy: accuracy } = curve;
  const last = (values) => values.filter((value) => value !== null).at(-1);
  const told = (value, text) => (value === undefined ? 'not finite' : text(value));
  return element('div', { class: 'curves' },
    element('figure', {}, sparkline(iterations, loss, curve.of, 'loss'),
      element('figcaption', {}, `validation loss ${told(last(loss), (v) => v.toPrecision(3))}`)),
    element('figure', {}, sparkline(iterations, accuracy, curve.of, 'accuracy'),
      element('figcaption', {}, `validation accuracy ${told(last(accuracy), (v) => `${(100 * v).toFixed(2)}%`)}`)),
    element('p', { class: 'quiet' }, `iteration ${number(iterations.at(-1))} of ${number(curve.of)}`));
}

function inFlight(run) {
  const which = [run.level === null ? '' : `level ${run.level}`, run.seed === null ? '' : `seed ${run.seed}`];
  const name = [run.label || run.run.slice(0, 8), ...which].filter(Boolean).join(', ');
  return element('li', { class: 'card' },
    element('p', {}, element('strong', {}, name), ` for ${run.for}`), curveOf(run.curve));
}

function failure(each) {
  const name = `${each.label ? `${each.label}, ` : ''}${each.run.slice(0, 8)}`;
  const run = each.stored ? element('a', { href: `/run/${each.run}` }, name) : name;
  return element('li', {}, run, `: ${each.status.replaceAll('_', ' ')}${each.message ? `: ${each.message}` : ''}`);
}

function command(told) {
  const names = told.names.length ? told.names.join(', ') : 'a study';
  const done = told.tasks - told.left;
  const facts = [`${number(done)} of ${number(told.tasks)} trainings`];
  if (told.state === 'running') facts.push(told.time_left ? `${told.time_left} left` : '', `${told.workers} workers`);
  else facts.push(`last heard of ${told.since} ago`);
  const parts = [
    element('h2', {}, names, ' ', element('span', { class: `state ${told.state}` }, STATES[told.state])),
    bar(done, told.tasks, names),
    element('p', {}, facts.filter(Boolean).join(' · ')),
  ];
  if (told.message) parts.push(element('p', { class: 'message' }, told.message));
  if (told.in_flight.length) parts.push(element('ul', { class: 'flight' }, ...told.in_flight.map(inFlight)));
  if (told.failures.length) {
    const more = told.more_failures ? [element('li', {}, `and ${number(told.more_failures)} before`)] : [];
    parts.push(element('h3', {}, 'Failures'), element('ul', { class: 'failures' }, ...told.failures.map(failure), ...more));
  }
  return element('section', { class: `command ${told.state}` }, ...parts);
}

function studyRow(study) {
  const name = element('th', { scope: 'row' }, study.name, study.title ? element('span', { class: 'quiet' }, ` ${study.title}`) : '');
  if (study.why_not) return element('tr', {}, name, element('td', { colspan: 3 }, `cannot be shown: ${study.why_not}`));
  return element('tr', {}, name, element('td', {}, study.subject),
    element('td', { class: 'number' }, `${number(study.done)} of ${number(study.total)}`),
    element('td', { class: 'how-far' }, bar(study.done, study.total, study.name), study.counts));
}

function studies(told) {
  if (!told.length) return [];
  const heads = ['study', 'network and data', 'runs', 'how far'].map((head) => element('th', { scope: 'col' }, head));
  return [element('div', { class: 'scroll' }, element('table', {},
    element('thead', {}, element('tr', {}, ...heads)), element('tbody', {}, ...told.map(studyRow))))];
}

function sentence(news) {
  if (news.trouble) return news.trouble;
  if (news.reading) return `Reading ${number(news.reading.of)} runs: ${number(news.reading.read)} so far.`;
  if (news.damaged.length) return news.damaged[0] + (news.damaged.length > 1 ? ` And ${news.damaged.length - 1} more.` : '');
  if (!news.runs && !news.commands.length) {
    return 'No run is in this store yet. In another terminal: supermask run mask-criteria scale=digits, with the same --store.';
  }
  if (!news.studies.length && news.runs) return 'The runs of this store belong to no study that it knows of: look at them under Explore.';
  return '';
}

/** Replaces what a place holds, where it would look otherwise: focus and selection stay. */
function replace(id, nodes) {
  const place = document.getElementById(id);
  const fresh = element('div', {}, ...nodes);
  if (place.innerHTML !== fresh.innerHTML) place.replaceChildren(...fresh.childNodes);
}

let shown = '';

async function look() {
  const news = await getJson('/live.json');
  const { revision, ...told } = news;
  if (JSON.stringify(told) !== shown) {
    shown = JSON.stringify(told);
    notice(sentence(news));
    replace('commands', news.commands.map(command));
    replace('studies', studies(news.studies));
  }
  await showReport(news, have);
  document.documentElement.dataset.revision = revision;
}

async function follow() {
  try {
    if (!document.hidden) await look();
  } catch (error) {
    shown = '';
    notice(`The server does not answer (${error.message}). It is asked again.`);
  }
  setTimeout(follow, EVERY);
}

async function showReport() {}

follow();
