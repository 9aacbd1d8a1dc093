"use strict";
// The viewer of a report. All of its state is the address behind #, so that every view has a link:
//   m, r   method and run          vm, vr, vs  the same of the answers beside them, vs=none: none
//   n, s   what was asked, stage   f, q, o     which answers, what they hold, how they are sorted
//   i      one item by its id      p           page of the list
// A stage is a number, "own" (which taught the skill) or "end". Data are scripts in data/, which
// are read when they are shown. Every text becomes a text node: what a model wrote is never markup.

const ROWS = 50; // of the list
const MOST_SCORES = 100000; // read for one table of all stages
const $ = id => document.getElementById(id);

// -- data

const viewer = (() => {
  const waiting = new Map();
  const files = new Map();
  const read = name => new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const end = problem => {
      script.remove();
      if (waiting.delete(name)) {
        files.delete(name);
        const remedy = "load the page again, or make the report again";
        reject(new Error(`data/${name}.js ${problem}: ${remedy}.`));
      }
    };
    waiting.set(name, resolve);
    script.onload = () => end("is of another report");
    script.onerror = () => end("is not there");
    script.src = `data/${name}.js`;
    document.head.append(script);
  });
  return {
    load(name, value) { // called by the files of data
      const resolve = waiting.get(name);
      waiting.delete(name);
      if (resolve) resolve(value);
    },
    file(name) {
      if (!files.has(name)) files.set(name, read(name));
      return files.get(name);
    },
  };
})();

function pageOf(starts, place) { // number of the page that holds the place-th row
  let low = 0;
  for (let high = starts.length; high - low > 1;) {
    const middle = (low + high) >> 1;
    if (starts[middle] <= place) low = middle; else high = middle;
  }
  return low;
}

async function row(name, starts, place) {
  const page = pageOf(starts, place);
  return (await viewer.file(`${name}-${page}`))[place - starts[page]];
}

async function numbersOf(index, run) { // {what was measured: {stage: {value, n, file}}}
  if (!run.numbers) {
    const numbers = index.measured.map(() => new Map());
    for (const [what, stage, value, n, file] of await viewer.file(run.file))
      numbers[what].set(stage, {value, n, file});
    run.numbers = numbers;
  }
  return run.numbers;
}

async function evaluation(file) { // null where it has no answers
  if (!file) return null;
  const head = await viewer.file(file);
  const questions = await viewer.file(head.questions);
  return {file, head, questions};
}

function placesOf(questions) { // {id: place}
  if (!questions.places) {
    questions.places = new Map();
    questions.ids.forEach((id, place) => {
      if (!questions.places.has(id)) questions.places.set(id, place);
    });
  }
  return questions.places;
}

// -- the address

const given = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function link(changes) { // of the present address with changes; null takes a key away
  const pairs = Object.entries({...given(), ...changes});
  const empty = [null, undefined, ""];
  return "#" + new URLSearchParams(pairs.filter(([, value]) => !empty.includes(value)));
}

const go = changes => { location.hash = link(changes); };

// -- what the address names

async function sideOf(index, name, key, like, notes) { // a method and one of its runs
  let method = index.methods.find(m => m.name === name);
  if (!method) {
    if (name) notes.push(`This report has no method ${name}: here is ${index.methods[0].name}.`);
    method = index.methods[0];
  }
  const find = wanted => method.runs.find(run => run.key === wanted);
  if (key && !find(key))
    notes.push(`${method.name} has no run ${key}: here is ${method.runs[0].key}.`);
  const run = find(key) || find(like) || method.runs[0];
  return {method, run, numbers: await numbersOf(index, run)};
}

const ownStage = (side, what) => what.kind === "skill" ? side.run.order.indexOf(what.name) + 1 : 0;

const stagesOf = (side, what) => [...side.numbers[what.place].keys()].sort((x, y) => x - y);

function stageOf(side, what, wanted, notes) { // null where nothing was measured
  const measured = stagesOf(side, what);
  const end = side.run.order.length;
  const own = ownStage(side, what) || end;
  const number = wanted === "own" ? own : !wanted || wanted === "end" ? end : Number(wanted);
  if (measured.includes(number)) return number;
  const last = measured.length ? measured[measured.length - 1] : null;
  if (!side.run.reference && last !== null) {
    const when = Number.isInteger(number) ? whenOf(side, number) : `after stage ${wanted}`;
    const other = `here are those ${whenOf(side, last)}`;
    notes.push(`${side.method.name} has no answers to ${what.name} ${when}: ${other}.`);
  }
  return last;
}

function whenOf(side, stage) { // in words
  if (side.run.reference === "joint") return "after all skills at once";
  if (side.run.reference) return "after this skill alone";
  if (stage === 0) return "before training";
  const order = side.run.order;
  return `after stage ${stage}` + (order[stage - 1] ? `, ${order[stage - 1]}` : "");
}

function withRun(side) { // its name, and which run of several
  return side.method.name + (side.method.runs.length > 1 ? `, run ${side.run.key}` : "");
}

async function besideOf(index, g, a, what, notes) { // the other side, null without one
  if (g.vs === "none") return null;
  let b = a;
  if (g.vm || g.vr) b = await sideOf(index, g.vm || a.method.name, g.vr, a.run.key, notes);
  const own = ownStage(a, what);
  const before = own && own < a.stage ? own : 0;
  const wanted = g.vs || String(b.run === a.run ? before : a.stage);
  const stage = stageOf(b, what, b.run.reference ? "end" : wanted, g.vs ? notes : []);
  if (stage === null || (b.run === a.run && stage === a.stage)) return null;
  return {...b, stage};
}

async function find(g) { // everything that the page shows
  const index = await viewer.file("index");
  const notes = [];
  index.measured.forEach((what, place) => { what.place = place; });
  if (!index.methods.length) return {index, notes: ["Nothing was measured yet."]};
  const a = await sideOf(index, g.m, g.r, null, notes);
  const what = index.measured.find(w => w.name === g.n) || null;
  if (g.n && !what) notes.push(`Nothing in this report is called ${g.n}.`);
  if (!what) return {index, notes, a};
  a.stage = stageOf(a, what, g.s, notes);
  if (a.stage === null)
    return {index, notes: [...notes, `${withRun(a)} has no answers to ${what.name}.`], a};
  const b = await besideOf(index, g, a, what, notes);
  for (const side of [a, b]) if (side) {
    side.number = side.numbers[what.place].get(side.stage);
    side.of = await evaluation(side.number.file);
  }
  return {index, notes, a, b, what, ...joined(a, b)};
}

function joined(a, b) { // scores of both sides, by the places of a's items
  if (!a.of) return {n: 0, at: null};
  const n = a.of.questions.ids.length;
  if (!b || !b.of) return {n, at: null};
  if (a.of.questions === b.of.questions) return {n, at: place => place};
  const places = placesOf(b.of.questions);
  return {n, at: place => places.get(a.of.questions.ids[place]) ?? -1};
}

// -- which answers, in which order

const scoreA = (v, place) => v.a.of.head.scores[place];

function scoreB(v, place) { // null without a verdict, and where the other side has no such item
  const there = v.at ? v.at(place) : -1;
  return there < 0 ? null : v.b.of.head.scores[there];
}

// Of a score between 0 and 1; instructions and words may be right in part.
const classOf = score => score >= 1 ? "right" : score <= 0 ? "wrong" : "partly";

const scoreOf = (v, side, place) => side === v.a ? scoreA(v, place) : scoreB(v, place);

function kindsOf(v, place) { // names of the filters that let an item through
  const x = scoreA(v, place), y = scoreB(v, place);
  const kinds = ["all"];
  if (x === null) kinds.push("none");
  else if (v.what.fraction) kinds.push(classOf(x));
  if (x === null || y === null) return kinds;
  const change = v.what.higher ? x - y : y - x;
  if (change < 0) kinds.push("lost");
  if (change > 0) kinds.push("gained");
  return kinds;
}

function shortOf(v, side) { // in a few words what sets one side apart from the other
  const other = side === v.a ? v.b : v.a;
  if (side.method !== other.method) return side.method.name;
  if (side.run !== other.run) return `run ${side.run.key}`;
  return side.stage === 0 ? "the base model" : `stage ${side.stage}`;
}

function filtersOf(v) { // {filter: its words}
  const filters = {all: "All"};
  if (v.what.fraction) Object.assign(filters, {right: "Right", partly: "Partly right", wrong: "Wrong"});
  if (v.at) {
    const since = v.what.fraction && v.a.run === v.b.run && v.b.stage < v.a.stage;
    const [fell, rose] = since ? ["Forgotten since", "Gained since"] : ["Worse than", "Better than"];
    const there = shortOf(v, v.b);
    Object.assign(filters, {lost: `${fell} ${there}`, gained: `${rose} ${there}`});
  }
  return Object.assign(filters, {none: "Without a verdict"});
}

function sortsOf(v) {
  const sorts = {"": "as asked", worst: "worst first", best: "best first", text: "by question"};
  return v.at ? {...sorts, lost: "most lost first", gained: "most gained first"} : sorts;
}

function arrange(v, g, matches) { // adds `order`, places of the items, and `counts` of the filters
  v.filter = Object.hasOwn(filtersOf(v), g.f) ? g.f : "all";
  v.sort = Object.hasOwn(sortsOf(v), g.o) ? g.o : "";
  v.counts = {};
  v.order = [];
  for (let place = 0; place < v.n; place++) {
    if (matches && !matches[place]) continue;
    const kinds = kindsOf(v, place);
    for (const kind of kinds) v.counts[kind] = (v.counts[kind] || 0) + 1;
    if (kinds.includes(v.filter)) v.order.push(place);
  }
  if (v.sort === "text") {
    const briefs = v.a.of.questions.briefs;
    v.order.sort((x, y) => briefs[x] < briefs[y] ? -1 : briefs[x] > briefs[y] ? 1 : x - y);
  } else if (v.sort) {
    const sign = (v.what.higher ? 1 : -1) * (v.sort === "best" || v.sort === "gained" ? -1 : 1);
    const change = v.sort === "lost" || v.sort === "gained";
    const keys = new Float64Array(v.n);
    for (const place of v.order) {
      const x = scoreA(v, place), y = change ? scoreB(v, place) : 0;
      keys[place] = x === null || y === null ? Infinity : sign * (x - y);
    }
    v.order.sort((x, y) => keys[x] < keys[y] ? -1 : keys[x] > keys[y] ? 1 : x - y);
  }
}

const texts = new Map(); // {name of a page of data: its rows in small letters}

async function textsOf(name, page) {
  const file = `${name}-${page}`;
  if (!texts.has(file)) {
    const rows = await viewer.file(file);
    const words = cells => cells.flat().filter(cell => typeof cell === "string").join("\n");
    texts.set(file, rows.map(cells => words(cells).toLowerCase()));
  }
  return texts.get(file);
}

async function search(v, words, goOn) { // 1 for each item that holds the words; null if given up
  const wanted = words.toLowerCase();
  const {file, head, questions} = v.a.of;
  const matches = Uint8Array.from(questions.ids, id => id.toLowerCase().includes(wanted) ? 1 : 0);
  const there = new Uint8Array(v.at ? v.b.of.questions.ids.length : 0);
  const pages = [];
  const add = (name, starts, into) =>
    starts.forEach((start, page) => pages.push({name, start, page, into}));
  add(head.questions, questions.starts, matches);
  add(file, head.starts, matches);
  if (v.at) add(v.b.of.file, v.b.of.head.starts, there);
  const read = async ({name, start, page, into}) => {
    const found = await textsOf(name, page);
    found.forEach((text, k) => { if (text.includes(wanted)) into[start + k] = 1; });
  };
  for (let done = 0; done < pages.length; done += 8) {
    if (!goOn(done / pages.length)) return null;
    await Promise.all(pages.slice(done, done + 8).map(read));
  }
  for (let place = 0; v.at && place < v.n; place++)
    if (there[v.at(place)]) matches[place] = 1;
  return matches;
}
