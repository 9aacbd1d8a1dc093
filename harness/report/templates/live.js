// Pictures that one can point at: the numbers of a figure, drawn by uPlot in place of the picture,
// which stays for paper and where no script runs. Every text becomes a text node or canvas text.
const SHIFT = 4, NEAR = 40, MOST_NAMED = 6; // pixels; lines with a name at their end
const PLACES = Array.from({length: 16}, (_, k) => (k - 2) * Math.PI / 8); // of a name around its mark
// Corners of matplotlib's markers: [degrees clockwise from the right, distance from the middle].
const regular = (count, first) => Array.from({length: count}, (_, k) => [first + 360 * k / count, 1]);
const plus = first => [0, 90, 180, 270].map(turn => turn + first)
  .flatMap(turn => [[turn - 20, 1], [turn + 20, 1], [turn + 45, 0.48]]);
const SHAPES = {
  o: regular(24, 0), s: regular(4, 45), D: regular(4, 0), '^': regular(3, -90), v: regular(3, 90), '<': regular(3, 180),
  '>': regular(3, 0), p: regular(5, -90), h: regular(6, -90), P: plus(0), X: plus(45),
  '*': Array.from({length: 10}, (_, k) => [36 * k - 90, k % 2 ? 0.4 : 1]),
};
const cornersOf = (marker, x, y, size) => SHAPES[marker].map(([turn, far]) =>
  [x + size * far * Math.cos(turn * Math.PI / 180), y + size * far * Math.sin(turn * Math.PI / 180)]);
const tint = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const node = (name, kind, text) => {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};
const short = value => {
  const size = Math.abs(value);
  if (size && size < 0.001) return value.toExponential(1).replace('.0e', 'e').replaceAll('-', '−');
  const text = size >= 1000 ? value.toLocaleString('en') : value.toFixed(size >= 10 ? 1 : size >= 1 ? 2 : 3);
  return text.replace('-', '−');
};
const plots = [];

function span(values, room) { // the range of an axis, with some room
  const known = values.filter(value => value !== null && value !== undefined);
  const low = Math.min(...known), high = Math.max(...known);
  const pad = (high - low || Math.abs(high) || 1) * room;
  return [low - pad, high + pad];
}

const isPlane = panel => panel.lines.some(line => line.left.length); // x is measured as y is

function isQuiet(panel, line, hidden) { // once few lines are shown, all are as the first
  return line.quiet && panel.lines.filter(({label}) => !hidden.has(label)).length > MOST_NAMED;
}

function stamp(ctx, marker, x, y, size) { // a mark in the colour that is set, on an edge of paper
  ctx.beginPath();
  for (const corner of cornersOf(marker, x, y, size)) ctx.lineTo(...corner);
  ctx.closePath();
  ctx.stroke();
  ctx.fill();
}

function pathOf(panel, line, hidden) { // draws one line: uPlot asks for it
  const loud = panel.lines.filter(line => !line.quiet);
  const place = loud.indexOf(line), count = loud.length;
  // Along training lines that coincide stand beside each other; a measured x stays where it is.
  const step = isPlane(panel) ? 0 : Math.min(SHIFT, 20 / Math.max(1, count - 1));
  return u => {
    if (hidden.has(line.label)) return null;
    const {ctx} = u, ratio = devicePixelRatio;
    const move = line.quiet ? 0 : (place - (count - 1) / 2) * step * ratio;
    const at = k => [u.valToPos(line.x[k], 'x', true) + move, u.valToPos(line.y[k], 'y', true)];
    const known = line.x.map((_, k) => k).filter(k => line.x[k] !== null && line.y[k] !== null);
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = line.colour;
    const quiet = isQuiet(panel, line, hidden);
    ctx.globalAlpha = quiet ? 0.6 : 1;
    ctx.lineWidth = (quiet ? 1 : 2) * ratio;
    ctx.setLineDash(line.dash ? [6 * ratio, 3 * ratio] : []);
    ctx.beginPath();
    if (!quiet || !isPlane(panel)) known.forEach((k, first) => ctx[first ? 'lineTo' : 'moveTo'](...at(k)));
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.lineWidth = 1.2 * ratio;
    ctx.beginPath();
    for (const k of quiet ? [] : line.ends) {
      const [x, y] = at(k);
      if (line.low.length && line.low[k] !== null && line.high[k] !== null) {
        ctx.moveTo(x, u.valToPos(line.low[k], 'y', true));
        ctx.lineTo(x, u.valToPos(line.high[k], 'y', true));
      }
      if (line.left.length && line.left[k] !== null && line.right[k] !== null) {
        ctx.moveTo(u.valToPos(line.left[k], 'x', true) + move, y);
        ctx.lineTo(u.valToPos(line.right[k], 'x', true) + move, y);
      }
    }
    ctx.stroke();
    ctx.strokeStyle = tint('--paper');
    for (const k of quiet || known.length > 40 ? line.ends : known)
      stamp(ctx, line.marker, ...at(k), (line.ends.includes(k) && !quiet ? 5 : 3) * ratio);
    ctx.restore();
    return null;
  };
}

function ground(panel) { // what lies under the lines: levels, borders, the stage that is taught
  return u => {
    const {ctx} = u, {left, top, width, height} = u.bbox, ratio = devicePixelRatio;
    ctx.save();
    if (panel.taught) {
      const [from, to] = panel.taught.map(x => u.valToPos(x, 'x', true));
      ctx.fillStyle = tint('--soft');
      ctx.fillRect(from, top, to - from, height);
    }
    ctx.strokeStyle = tint('--muted');
    ctx.lineWidth = ratio;
    ctx.setLineDash([4 * ratio, 3 * ratio]);
    ctx.beginPath();
    for (const x of panel.borders) {
      ctx.moveTo(u.valToPos(x, 'x', true), top);
      ctx.lineTo(u.valToPos(x, 'x', true), top + height);
    }
    for (const [, y] of panel.levels) {
      ctx.moveTo(left, u.valToPos(y, 'y', true));
      ctx.lineTo(left + width, u.valToPos(y, 'y', true));
    }
    ctx.stroke();
    ctx.restore();
  };
}

function meets(box, [x, y, toX, toY]) { // whether a stretch runs through a box
  let from = 0, to = 1;
  for (const [at, by, low, high] of [[x, toX - x, box.left, box.right], [y, toY - y, box.top, box.bottom]]) {
    if (by === 0 && (at < low || at > high)) return false;
    if (by === 0) continue;
    const [enters, leaves] = [(low - at) / by, (high - at) / by].sort((one, other) => one - other);
    [from, to] = [Math.max(from, enters), Math.min(to, leaves)];
  }
  return from <= to;
}

function stretchesOf(u, line) { // of a line of a plane and its whiskers, [x, y, to x, to y]
  const across = x => u.valToPos(x, 'x', true), down = y => u.valToPos(y, 'y', true);
  const known = line.x.map((_, k) => k).filter(k => line.x[k] !== null && line.y[k] !== null);
  const way = known.slice(1).map((k, before) => [known[before], k]);
  const whiskers = line.ends.filter(k => line.low[k] !== null && line.left[k] !== null).flatMap(k => [
    [across(line.x[k]), down(line.low[k]), across(line.x[k]), down(line.high[k])],
    [across(line.left[k]), down(line.y[k]), across(line.right[k]), down(line.y[k])]]);
  return [...way.map(pair => pair.flatMap(k => [across(line.x[k]), down(line.y[k])])), ...whiskers];
}

function nameAround(u, shown, ends) { // in a plane: where no line, whisker or other name is
  const {ctx} = u, ratio = devicePixelRatio, tall = 16 * ratio;
  const taken = shown.flatMap(line => stretchesOf(u, line));
  ctx.textAlign = 'center';
  ctx.strokeStyle = tint('--paper'); // around the letters, where there is no such place
  ctx.lineWidth = 3 * ratio;
  ctx.lineJoin = 'round';
  for (const {text, x, y} of ends) {
    const wide = ctx.measureText(text).width;
    const boxAt = (far, turn) => {
      const at = x + Math.cos(turn) * (far * ratio + wide / 2), on = y + Math.sin(turn) * (far * ratio + tall / 2);
      return {at, on, left: at - wide / 2, right: at + wide / 2, top: on - tall / 2, bottom: on + tall / 2};
    };
    const boxes = [7, 11, 16, 22, 30].flatMap(far => PLACES.map(turn => boxAt(far, turn)))
      .filter(box => box.left > u.bbox.left && box.right < ctx.canvas.width && box.top > 0
        && box.bottom < u.bbox.top + u.bbox.height);
    const crossed = boxes.map(box => taken.filter(stretch => meets(box, stretch)).length);
    const box = boxes[crossed.indexOf(Math.min(...crossed))];
    taken.push([box.left, box.top, box.right, box.bottom], [box.left, box.bottom, box.right, box.top]);
    ctx.strokeText(text, box.at, box.on);
    ctx.fillText(text, box.at, box.on);
  }
}

function nameBeside(u, ends) { // along training: at the side, none on another
  const {ctx} = u, {left, top, width, height} = u.bbox, ratio = devicePixelRatio, row = 14 * ratio;
  const side = left + width + 12 * ratio;
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, k) => { end.at = k ? Math.max(end.y, ends[k - 1].at + row) : Math.max(end.y, top); });
  for (let k = ends.length - 1, most = top + height; k >= 0; k--, most = ends[k + 1].at - row)
    ends[k].at = Math.min(ends[k].at, most);
  ctx.textAlign = 'left';
  ctx.lineWidth = ratio;
  for (const {text, colour, x, y, at} of ends) {
    ctx.strokeStyle = colour;
    ctx.beginPath();
    ctx.moveTo(x + 9 * ratio, y);
    ctx.lineTo(side, at);
    ctx.stroke();
    ctx.fillText(text, side + 3 * ratio, at);
  }
}

function names(panel, hidden) { // of levels, and of lines where these are few
  return u => {
    const {ctx} = u, down = y => u.valToPos(y, 'y', true);
    const shown = panel.lines.filter(line => !hidden.has(line.label) && line.y.some(y => y !== null));
    const ofLines = shown.length > MOST_NAMED ? [] : shown.flatMap(line => {
      const last = line.y.findLastIndex(y => y !== null);
      return (line.names.length ? line.names.map((_, k) => k) : [last]).map(k => {
        const name = line.names[k] || line.label, text = name.length > 14 ? `${name.slice(0, 13)}…` : name;
        return {text, colour: line.colour, x: u.valToPos(line.x[k], 'x', true), y: down(line.y[k])};
      });
    });
    ctx.save();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textBaseline = 'middle';
    ctx.fillStyle = tint('--ink');
    const side = u.bbox.left + u.bbox.width, colour = tint('--muted');
    const levels = panel.levels.map(([text, y]) => ({text, colour, x: side, y: down(y)}));
    if (isPlane(panel)) {
      const bases = panel.bases.map(([x, y]) => ({text: 'base', x: u.valToPos(x, 'x', true), y: down(y)}));
      for (const {x, y} of bases) {
        ctx.strokeStyle = tint('--paper');
        ctx.fillStyle = colour;
        stamp(ctx, '*', x, y, 8 * devicePixelRatio);
      }
      ctx.fillStyle = tint('--ink');
      nameAround(u, shown, [...ofLines, ...bases]);
      nameBeside(u, levels);
    } else {
      nameBeside(u, [...ofLines, ...levels]);
    }
    ctx.restore();
  };
}

function words(panel, line, k) { // what a point says
  const bounds = (low, high) => low.length && low[k] !== null && high[k] !== null
    ? ` [${short(low[k])}, ${short(high[k])}]` : '';
  const asked = n => n.length && n[k] !== null ? `, n = ${n[k]}` : '';
  const facts = [
    `${panel.x} ${short(line.x[k])}${bounds(line.left, line.right)}${asked(line.n_across)}`,
    `${panel.y} ${short(line.y[k])}${bounds(line.low, line.high) || (line.low.length ? ', no interval' : '')}${asked(line.n)}`,
  ];
  if (line.runs.length && line.runs[k]) facts.push(line.runs[k] === 1 ? '1 run' : `${line.runs[k]} runs`);
  return `${line.names[k] || line.label}\n${facts.join('\n')}`;
}

function reading(u, panel, hidden, tip) { // pointing, touching, and the arrow keys
  const at = {line: 0, k: -1};
  const visible = () => panel.lines.filter(line => !hidden.has(line.label));
  const show = (line, k) => {
    const x = u.valToPos(line.x[k], 'x'), y = u.valToPos(line.y[k], 'y');
    tip.textContent = words(panel, line, k);
    tip.style.borderColor = line.colour;
    tip.hidden = false;
    const width = u.over.clientWidth, box = u.over.getBoundingClientRect();
    const frame = tip.parentElement.getBoundingClientRect();
    const inside = x > width / 2 ? x - tip.offsetWidth - 10 : x + 10;
    tip.style.left = `${Math.max(0, box.left - frame.left + inside)}px`;
    tip.style.top = `${Math.max(0, box.top - frame.top + y - tip.offsetHeight / 2)}px`;
  };
  const point = event => {
    const box = u.over.getBoundingClientRect();
    let best = NEAR, found = null;
    for (const line of visible()) line.x.forEach((value, k) => {
      if (value === null || line.y[k] === null) return;
      if (isPlane(panel) && isQuiet(panel, line, hidden) && !line.ends.includes(k)) return;
      const dx = u.valToPos(value, 'x') - event.clientX + box.left;
      const dy = u.valToPos(line.y[k], 'y') - event.clientY + box.top;
      const far = Math.hypot(dx, dy);
      if (far < best) [best, found] = [far, [line, k]];
    });
    if (found) show(...found); else tip.hidden = true;
  };
  u.over.addEventListener('pointermove', point);
  u.over.addEventListener('pointerdown', point);
  u.over.addEventListener('pointerleave', () => { tip.hidden = true; });
  const focus = tip.parentElement;
  focus.addEventListener('blur', () => { tip.hidden = true; });
  focus.addEventListener('keydown', event => {
    const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
    const lines = visible();
    if (!step || !lines.length) return;
    event.preventDefault();
    at.line = (at.line + step[0] + lines.length) % lines.length;
    const line = lines[at.line];
    const known = line.x.map((_, k) => k).filter(k => line.x[k] !== null && line.y[k] !== null);
    at.k = Math.min(Math.max(at.k + step[1], 0), known.length - 1);
    if (known.length) show(line, known[at.k]);
  });
}

function frameOf(panel, box) {
  const frame = node('div', 'panel');
  frame.tabIndex = 0;
  frame.setAttribute('role', 'group');
  frame.setAttribute('aria-label', `${panel.title || 'All'}: arrow keys read the ${panel.columns ? 'cells' : 'points'}`);
  if (panel.title) frame.append(node('h4', '', panel.title));
  box.append(frame);
  return frame;
}

function drawPanel(panel, hidden, frame) { // as wide as the frame is
  const place = node('div'), tip = node('div', 'tip');
  tip.hidden = true;
  tip.setAttribute('role', 'status');
  frame.append(place, tip);
  const all = (...keys) => panel.lines.flatMap(line => keys.flatMap(key => line[key]));
  const ranges = {
    x: span([...all('x', 'left', 'right'), ...panel.bases.map(base => base[0])], 0.03),
    y: span([...all('y', 'low', 'high'), ...panel.bases.map(base => base[1]),
      ...panel.levels.map(level => level[1])], 0.06),
  };
  const named = panel.lines.length <= MOST_NAMED ? panel.lines.map(line => line.label) : [];
  const written = [...named, ...panel.levels.map(level => level[0])];
  const longest = Math.min(14, Math.max(0, ...written.map(name => name.length)));
  const axis = {stroke: () => tint('--muted'), grid: {stroke: () => tint('--line'), width: 1},
    ticks: {stroke: () => tint('--line'), width: 1}, font: '11px system-ui, sans-serif',
    labelFont: '11px system-ui, sans-serif', labelSize: 16, labelGap: 0};
  const ticks = (_, marks) => marks.map(mark => mark && Math.abs(mark) < 0.001 ? short(mark)
    : mark.toLocaleString('en', {maximumSignificantDigits: 4}));
  const isTitled = panel.y === panel.title, label = isTitled ? {} : {label: panel.y};
  const size = () => ({width: Math.max(200, frame.clientWidth), height: panel.title ? 220 : 340});
  const drawn = [...panel.lines].sort((a, b) => b.quiet - a.quiet); // what is thin lies below
  const u = new uPlot({
    mode: 2, ...size(), legend: {show: false}, cursor: {show: false},
    padding: [8, panel.title ? 20 + longest * 6.4 : 40, 0, 0],
    scales: {x: {time: false, range: () => ranges.x}, y: {range: () => ranges.y}},
    axes: [{...axis, label: panel.x, size: 30}, {...axis, ...label, values: ticks, size: isTitled ? 50 : 42}],
    series: [null, ...drawn.map(line => ({
      label: line.label, stroke: line.colour,
      facets: [{scale: 'x', auto: true}, {scale: 'y', auto: true}],
      paths: pathOf(panel, line, hidden), points: {show: false},
    }))],
    hooks: {drawAxes: [ground(panel)], draw: [names(panel, hidden)]},
  }, [null, ...drawn.map(line => [line.x, line.y])], place);
  plots.push({u, size});
  reading(u, panel, hidden, tip);
  return u;
}

function heatOf(panel, value) { // [paper, ink] of a cell
  const at = Math.min(1, value / panel.highest) * (panel.colours.length - 1), below = Math.floor(at);
  const [from, to] = [below, Math.min(below + 1, panel.colours.length - 1)].map(k =>
    [1, 3, 5].map(place => parseInt(panel.colours[k].slice(place, place + 2), 16)));
  const mixed = from.map((part, k) => Math.round(part + (to[k] - part) * (at - below)));
  return [`rgb(${mixed})`, value > 0.55 * panel.highest ? '#fffffe' : '#111418'];
}

function drawCells(panel, frame) { // a heat map as a table of links to the answers
  const few = panel.columns.length <= 10, tip = node('div', 'tip'), table = node('table', few ? 'heat' : 'heat fine');
  tip.hidden = true;
  tip.setAttribute('role', 'status');
  const row = (name, cells) => {
    const line = node('tr'), head = node('th', 'stub', name);
    head.scope = 'row';
    line.append(head, ...cells);
    return line;
  };
  const heads = panel.columns.map(name => {
    const head = node('th');
    head.scope = 'col';
    head.append(node('span', '', name));
    return head;
  });
  const body = panel.rows.map((name, k) => row(name, panel.columns.map((column, i) => {
    const cell = node('td'), value = panel.values[k][i];
    if (k === i + 1) cell.style.boxShadow = `inset 0 0 0 2px ${panel.frame}`;
    if (value === null) return cell;
    const link = node('a', '', few ? value.toFixed(1) : ''), known = panel.low[k][i] !== null;
    const facts = [`${panel.y} ${value.toFixed(1)}` + (known
      ? ` [${short(panel.low[k][i])}, ${short(panel.high[k][i])}]` : ', no interval')
      + (panel.n[k][i] ? `, n = ${panel.n[k][i]}` : '')];
    if (panel.runs[k][i]) facts.push(panel.runs[k][i] === 1 ? '1 run' : `${panel.runs[k][i]} runs`);
    link.href = panel.addresses[i] + k;
    link.tabIndex = -1;
    link.dataset.place = `${k} ${i}`;
    link.setAttribute('aria-label', `${column} after ${name}: ${facts.join(', ')}`);
    [link.style.background, link.style.color] = heatOf(panel, value);
    const tell = () => {
      tip.textContent = `${column}, after ${name}\n${facts.join('\n')}`;
      tip.hidden = false;
      const box = frame.getBoundingClientRect(), at = cell.getBoundingClientRect();
      tip.style.left = `${Math.max(0, Math.min(at.left - box.left, box.width - tip.offsetWidth))}px`;
      tip.style.top = `${at.top - box.top - tip.offsetHeight - 4}px`;
    };
    for (const kind of ['pointerenter', 'focus']) link.addEventListener(kind, tell);
    for (const kind of ['pointerleave', 'blur']) link.addEventListener(kind, () => { tip.hidden = true; });
    cell.append(link);
    return cell;
  })));
  const head = node('thead'), rows = node('tbody'), scroll = node('div', 'cells');
  head.append(row('', heads));
  rows.append(...body);
  table.append(head, rows);
  scroll.append(table);
  frame.append(scroll, tip);
  const at = place => table.querySelector(`[data-place="${place.join(' ')}"]`);
  frame.addEventListener('keydown', event => {
    const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
    if (!step) return;
    event.preventDefault();
    const here = document.activeElement.dataset.place;
    if (!here) return table.querySelector('a')?.focus();
    let place = here.split(' ').map(Number);
    do place = place.map((part, k) => part + step[k]); while (!at(place) && panel.values[place[0]]?.[place[1]] === null);
    at(place)?.focus();
  });
}

function markOf({colour, marker}) { // as it stands in the legend
  const [drawing, shape] = ['svg', 'polygon'].map(name => document.createElementNS('http://www.w3.org/2000/svg', name));
  drawing.setAttribute('viewBox', '-6 -6 12 12');
  drawing.setAttribute('aria-hidden', 'true');
  shape.setAttribute('points', cornersOf(marker, 0, 0, 6).join(' '));
  shape.setAttribute('fill', colour);
  drawing.append(shape);
  return drawing;
}

function bring(box) { // draws a figure once it comes near
  const panels = JSON.parse(document.getElementById(box.dataset.of).textContent);
  if (panels[0].columns) {
    const drawn = node('div', 'panels maps');
    drawn.style.setProperty('--map', `${panels[0].columns.length > 4 ? 520 : 310}px`);
    box.append(drawn);
    box.hidden = false;
    box.parentElement.classList.add('alive');
    panels.forEach(panel => drawCells(panel, frameOf(panel, drawn)));
    return;
  }
  const hidden = new Set(), looks = new Map(), own = [];
  for (const panel of panels) for (const line of panel.lines) looks.set(line.label, line);
  const keys = node('div', 'keys'), drawn = node('div', panels.length > 1 ? 'panels' : 'panels one');
  const button = (text, act) => {
    const key = node('button', '', text);
    key.type = 'button';
    key.addEventListener('click', act);
    keys.append(key);
    return key;
  };
  const pressed = [...looks].map(([label, line]) => {
    const key = button(label, () => {
      if (!hidden.delete(label)) hidden.add(label);
      show();
    });
    key.prepend(markOf(line));
    key.title = `hide or show ${label}`;
    return [label, key];
  });
  const show = () => {
    pressed.forEach(([label, key]) => key.setAttribute('aria-pressed', String(!hidden.has(label))));
    own.forEach(u => u.redraw());
  };
  if (looks.size > MOST_NAMED) {
    button('hide all', () => { [...looks.keys()].forEach(label => hidden.add(label)); show(); });
    button('show all', () => { hidden.clear(); show(); });
  }
  show();
  box.append(keys, drawn);
  box.hidden = false;
  box.parentElement.classList.add('alive');
  const frames = panels.map(panel => frameOf(panel, drawn)); // all first: they share the width
  panels.forEach((panel, k) => own.push(drawPanel(panel, hidden, frames[k])));
}

const near = new IntersectionObserver(entries => entries.forEach(({isIntersecting, target}) => {
  if (!isIntersecting) return;
  near.unobserve(target);
  bring(target.querySelector('.live'));
}), {rootMargin: '300px'});
document.querySelectorAll('figure:has(.live)').forEach(figure => near.observe(figure));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => plots.forEach(({u}) => u.redraw()));
let resized = 0;
addEventListener('resize', () => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(() => plots.forEach(({u, size}) => u.setSize(size())));
});
