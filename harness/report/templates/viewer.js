// Draws what viewer_data.js finds; a report has both in one file.

// -- drawing

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {}))
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
}

const muted = words => el("span", {class: "muted"}, words);
const remark = words => el("p", {class: "muted"}, words);
const pre = text => el("pre", {tabindex: "0"}, text); // a long one scrolls, by keyboard as well
const counted = number => number.toLocaleString("en");
const minus = digits => digits.replace("-", "−");
const small = value => minus(Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4))));

// A name may go on in the next line behind an underscore.
const breakable = name => name.split(/(?<=_)/).flatMap(part => [part, el("wbr")]);

function scrolled(head, rows) { // a table that is scrolled within the page
  const table = el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
  return el("div", {class: "scroll", tabindex: "0"}, table);
}

function valueOf(what, value) { // a mean as people read it
  if (value === null) return "–";
  return what.fraction ? `${(100 * value).toFixed(1)} %` : minus(value.toFixed(3));
}

const MARKS = { // of a class of scores: class of the style, words, sign
  right: ["good", "right", "✓"], partly: ["partly", "partly right", "◐"], wrong: ["bad", "wrong", "✗"],
};

function mark(what, score) { // a score of one item
  if (score === null) return el("span", {class: "muted", title: "no verdict"}, "·");
  if (!what.fraction) return el("span", {}, minus(score.toFixed(3)));
  const [name, words, sign] = MARKS[classOf(score)];
  const node = el("span", {class: name, role: "img", "aria-label": words}, sign);
  return score === 0 || score === 1 ? node : el("span", {}, node, ` ${small(score)}`);
}

// A browser shows the words of an option with single spaces, and gives them back so.
const shown = text => String(text).replace(/\s+/g, " ").trim();

function fill(id, options, value) { // options: [[value, words]]; one that has them is left alone
  const select = $(id);
  const wanted = options.map(([name, words]) => [name, shown(words)]);
  const has = [...select.options].map(option => [option.value, option.text]);
  if (JSON.stringify(has) !== JSON.stringify(wanted))
    select.replaceChildren(...wanted.map(([name, words]) => el("option", {value: name}, words)));
  select.value = value;
  hide(id, options.length === 0);
}

function hide(id, hidden) { // a choice with its label
  $(id).closest("label").hidden = hidden;
}

function drawChoice(v) {
  const methods = v.index.methods.map(method => [method.name, method.name]);
  const fillSide = (side, m, r, s, others) => {
    fill(m, [...others, ...methods], side ? side.method.name : "");
    fill(r, side ? side.method.runs.map(run => [run.key, run.key]) : [], side ? side.run.key : "");
    hide(r, !side || side.method.runs.length < 2);
    const stages = side && v.what ? stagesOf(side, v.what) : [];
    fill(s, stages.map(k => [String(k), whenOf(side, k)]), side ? String(side.stage) : "");
  };
  fillSide(v.a, "m", "r", "s", []);
  fillSide(v.b, "vm", "vr", "vs", [["", "nothing"]]);
  const asked = v.index.measured.filter(what => v.a.numbers[what.place].size);
  const names = asked.map(what => [what.name, what.name]);
  fill("n", [["", "everything"], ...names], v.what ? v.what.name : "");
  $("beside").hidden = !v.what;
}

function drawOverview(v) {
  const asked = v.index.measured.filter(what => v.a.numbers[what.place].size);
  const stages = [...new Set(asked.flatMap(what => stagesOf(v.a, what)))].sort((x, y) => x - y);
  const cell = (what, k) => {
    const number = v.a.numbers[what.place].get(k);
    if (!number) return el("td", {}, "–");
    return el("td", {}, el("a", {href: link({n: what.name, s: k})}, valueOf(what, number.value)));
  };
  const rows = asked.map(what => el("tr", {},
    el("th", {scope: "row", class: "stub", title: what.about}, breakable(what.name)),
    stages.map(k => cell(what, k))));
  const heads = stages.map(k => el("th", {scope: "col"}, breakable(whenOf(v.a, k))));
  const head = [el("th", {class: "stub"}), ...heads];
  const kept = v.a.numbers.some(of => [...of.values()].some(number => number.file !== null));
  const words = kept ? "Choose a number to read the answers behind it."
    : "Answers are not kept in this results folder: it has scores alone.";
  $("overview").replaceChildren(
    el("p", {}, `What ${withRun(v.a)} was asked, and when. ${words}`), scrolled(head, rows));
}

function sidesOf(v) { // the earlier stage of one run is on the left
  if (!v.b) return [v.a];
  return v.b.run === v.a.run && v.b.stage < v.a.stage ? [v.b, v.a] : [v.a, v.b];
}

function drawSum(v) {
  const say = side => {
    const n = side.number.n, of = !n ? "" : v.what.fraction ? ` of ${n}` : `, n = ${n}`;
    const value = valueOf(v.what, side.number.value);
    return [el("strong", {}, withRun(side)), ` ${whenOf(side, side.stage)}: ${value}${of}`];
  };
  const way = v.what.fraction ? "" : `, ${v.what.higher ? "higher" : "lower"} is better`;
  const up = link({n: null, s: null, i: null, p: null, f: null, q: null});
  $("sum").replaceChildren(
    el("a", {id: "up", href: up}, "everything"), " › ",
    el("strong", {title: v.what.about}, v.what.name), " (",
    el("span", {title: v.what.metric}, v.what.words), `${way}). `,
    ...say(v.a), ...(v.b ? [" · beside it ", ...say(v.b)] : []));
}

function drawFilters(v, g) {
  const is = name => !["none", "partly"].includes(name) || v.counts[name] || v.filter === name;
  const focused = document.activeElement ? document.activeElement.id : "";
  const filters = Object.entries(filtersOf(v)).filter(([name]) => is(name));
  $("filters").replaceChildren(...filters.map(([name, words]) => el("a", {
    id: `f-${name}`,
    href: link({f: name === "all" ? null : name, i: null, p: null}),
    "aria-current": name === v.filter ? "true" : null,
  }, words, el("span", {}, counted(v.counts[name] || 0)))));
  if (focused.startsWith("f-") && $(focused)) $(focused).focus();
  if (document.activeElement !== $("q")) $("q").value = g.q || "";
  fill("o", Object.entries(sortsOf(v)), v.sort);
}

// -- the list

function drawList(v, g) {
  const last = Math.max(0, Math.ceil(v.order.length / ROWS) - 1);
  const at = v.order.indexOf(v.item);
  const wanted = g.p ? Number(g.p) - 1 : at >= 0 ? Math.floor(at / ROWS) : 0;
  const page = Math.min(last, Math.max(0, Math.trunc(wanted) || 0));
  const places = v.order.slice(page * ROWS, (page + 1) * ROWS);
  const sides = sidesOf(v).filter(side => side === v.a || v.at);
  const {ids, briefs} = v.a.of.questions;
  const focused = $("list").contains(document.activeElement);
  $("list").replaceChildren(...places.map(place => el("li", {}, el("a", {
    href: link({i: ids[place], p: null}),
    title: ids[place],
    "aria-current": place === v.item ? "true" : null,
  },
  el("span", {class: "marks"}, sides.map(side => mark(v.what, scoreOf(v, side, place)))),
  el("span", {class: "brief"}, briefs[place] || ids[place]),
  el("span", {class: "said"}, v.a.of.head.briefs[place])))));
  const current = $("list").querySelector("[aria-current]");
  if (focused && places.length)
    (current || $("list").querySelector("a")).focus({preventScroll: true});
  if (current && wide()) {
    const box = $("listed");
    const under = current.offsetTop - box.scrollTop;
    if (under < 0 || under > box.clientHeight - 60)
      box.scrollTop = current.offsetTop - box.clientHeight / 3;
  }
  const marks = sides.length < 2 ? ""
    : ` Marks: ${sides.map(side => shortOf(v, side)).join(", then ")}.`;
  const span = `${counted(page * ROWS + 1)} to ${counted(page * ROWS + places.length)}`;
  $("count").textContent = !places.length ? "No answer is of this kind."
    : `${span} of ${counted(v.order.length)}.${marks}`;
  drawPages(page, last);
}

function drawPages(page, last) {
  const turn = (id, words, to) => to < 0 || to > last ? el("span")
    : el("a", {id, href: link({p: to + 1})}, words);
  $("pages").replaceChildren(...(last ? [
    turn("page-before", "← before", page - 1),
    muted(`page ${counted(page + 1)} of ${counted(last + 1)}`),
    turn("page-next", "next →", page + 1)] : []));
}

// -- one item

const LABELS = { // of what items hold; other keys are their own
  completion: "", response: "", answer: "without its thoughts", completions: "all answers",
  verdict: "the judge's verdict", reply: "the judge's words", error: "why there is no verdict",
};
const IN_TABLE = ["choice", "right choice"]; // numbers from 1, in the table of the choices

function choices(texts, head, found) { // of a retention task: their likelihoods
  const of = field => found[head.fields.indexOf(field)];
  const rows = of("response").map((value, k) => {
    const right = of("right choice") === k + 1;
    const is = [of("choice") === k + 1 ? "chosen" : "", right ? "right" : ""];
    return el("tr", {class: right ? "right" : null},
      el("td", {class: "text"}, texts && k < texts.length ? texts[k].trim() : `choice ${k + 1}`),
      el("td", {}, minus(value.toFixed(2))),
      el("td", {class: "is"}, is.filter(Boolean).join(", ")));
  });
  const caption = el("caption", {class: "muted"}, "log-likelihoods, nats");
  return el("table", {}, caption, el("tbody", {}, rows));
}

function absent(v, side) { // why a side has no answers
  return side.number.file === ""
    ? `The viewer holds ${counted(v.index.answers)} answers, those at the ends of runs first, `
      + "and not these."
    : "The answers behind this number are not kept in the results folder.";
}

function body(v, side, found, texts) { // the answer of one side; texts: of choices
  if (!side.of) return [remark(absent(v, side))];
  if (!found) return [remark("This question was not asked here.")];
  const parts = [], facts = [];
  side.of.head.fields.forEach((field, k) => {
    const value = found[k];
    if (value === null || IN_TABLE.includes(field)) return;
    const label = Object.hasOwn(LABELS, field) ? LABELS[field] : field;
    if (Array.isArray(value) && field === "response")
      parts.push(choices(texts, side.of.head, found));
    else if (typeof value === "string" || Array.isArray(value)) {
      if (label) parts.push(el("h4", {}, label));
      parts.push(value === "" ? remark("(empty)") : pre(String(value)));
    } else if (field !== "finished") {
      const words = typeof value === "number" ? small(value) : String(value);
      facts.push(`${label || "log-likelihood"} ${words}`);
    } else if (!value) facts.push("cut at the limit");
  });
  if (!parts.length && !facts.length)
    return [remark("The results folder keeps the score of this answer, not its words.")];
  return [...parts, facts.length ? el("p", {class: "muted facts"}, facts.join(" · ")) : null];
}

async function itemOf(v) { // what is read of the item before it is drawn
  const there = v.at ? v.at(v.item) : -1;
  const question = await row(v.a.of.head.questions, v.a.of.questions.starts, v.item);
  const foundA = await row(v.a.of.file, v.a.of.head.starts, v.item);
  if (there < 0) return {question, foundA, foundB: null, other: null};
  const {file, head, questions} = v.b.of;
  const foundB = await row(file, head.starts, there);
  const other = questions === v.a.of.questions ? null
    : await row(head.questions, questions.starts, there);
  return {question, foundA, foundB, other};
}

function drawItem(v, parts) {
  if (!parts) {
    $("item").replaceChildren(remark("Choose an answer to read it."));
    return;
  }
  const {question, foundA, foundB, other} = parts;
  const asked = other && other[0] !== question[0]
    ? [el("h4", {}, "asked as"), pre(other[0] || "")] : [];
  const answers = sidesOf(v).map(side => {
    const ofA = side === v.a;
    const found = ofA ? foundA : foundB;
    const sign = side.of && found ? mark(v.what, scoreOf(v, side, v.item)) : null;
    const texts = (ofA || !other ? question : other)[2];
    return el("div", {class: "answer"},
      el("h3", {}, sign, ` ${withRun(side)}, ${whenOf(side, side.stage)}`),
      ofA ? [] : asked, body(v, side, found, texts));
  });
  $("item").replaceChildren(
    ...heading(v), ...questionOf(v, question),
    el("h3", {}, v.b ? "Answers" : "Answer"), el("div", {class: "answers"}, answers),
    el("div", {id: "elsewhere"}));
  const prompt = $("prompt");
  if (prompt) prompt.scrollTop = prompt.scrollHeight; // examples stand before the question
}

function heading(v) { // of an item: its id, its neighbours, its link
  const {ids} = v.a.of.questions;
  const at = v.order.indexOf(v.item);
  const step = (id, words, to) => v.order[to] === undefined ? null
    : el("a", {id, href: link({i: ids[v.order[to]], p: null})}, words);
  const beside = v.b ? {vm: v.b.method.name, vr: v.b.run.key, vs: v.b.stage}
    : {vm: null, vr: null, vs: "none"};
  const lasting = {
    m: v.a.method.name, r: v.a.run.key, s: v.a.stage, i: ids[v.item], ...beside,
    p: null, f: null, o: null, q: null,
  };
  const list = link({i: null, p: Math.floor(Math.max(0, at) / ROWS) + 1});
  return [
    el("a", {id: "back", href: list}, "← All answers"),
    el("h2", {}, ids[v.item]),
    el("div", {class: "turn"},
      muted(at < 0 ? "not in the list" : `${counted(at + 1)} of ${counted(v.order.length)}`),
      step("before", "← before", at - 1), step("next", "next →", at + 1),
      el("a", {id: "permanent", href: link(lasting)}, "permanent link")),
  ];
}

function questionOf(v, [prompt, reference, texts]) {
  const skill = v.what.kind === "skill";
  const parts = [];
  if (prompt) {
    const node = pre(prompt);
    node.id = "prompt";
    parts.push(el("h3", {}, "Question"), node);
  }
  if (reference) {
    const words = skill ? "Reference" : v.what.fraction ? "Right answer" : "Text that is measured";
    const node = pre(reference);
    node.className = "reference";
    parts.push(el("h3", {}, words), node);
  }
  if (parts.length || texts) return parts;
  return [remark(skill ? "The results folder does not keep this question."
    : "The results folder is from before questions of retention tasks were kept.")];
}

async function drawElsewhere(v, turn) { // the same item after all stages, by all methods
  const sides = [];
  for (const method of v.index.methods) {
    const run = method.runs.find(r => r.key === v.a.run.key) || method.runs[0];
    const numbers = await numbersOf(v.index, run);
    const kept = [...numbers[v.what.place]].filter(([, number]) => number.file);
    if (kept.length) sides.push({method, run, kept});
  }
  const count = sides.reduce((sum, side) => sum + side.kept.length, 0);
  if (turn !== turns || count < 2 || count * v.n > MOST_SCORES) return;
  for (const side of sides) {
    const read = side.kept.map(async ([k, number]) => [k, await evaluation(number.file)]);
    side.of = new Map(await Promise.all(read));
  }
  if (turn !== turns) return;
  const id = v.a.of.questions.ids[v.item];
  const is = (other, side, k) => other && other.run === side.run && other.stage === k;
  const cell = (side, k) => {
    const of = side.of.get(k);
    const place = of ? placesOf(of.questions).get(id) : undefined;
    if (place === undefined) return el("td");
    return el("td", {}, el("a", {
      href: link({i: id, vm: side.method.name, vr: side.run.key, vs: k}),
      title: `${withRun(side)} ${whenOf(side, k)}`,
      "aria-current": is(v.a, side, k) ? "true" : null,
      class: is(v.b, side, k) ? "there" : null,
    }, mark(v.what, of.head.scores[place])));
  };
  const stages = [...new Set(sides.flatMap(side => [...side.of.keys()]))].sort((x, y) => x - y);
  const words = stages.map(k => el("th", {scope: "col"}, k ? `stage ${k}` : "before"));
  const rows = sides.map(side => el("tr", {},
    el("th", {scope: "row", class: "stub"}, withRun(side)), stages.map(k => cell(side, k))));
  $("elsewhere").replaceChildren(
    el("h3", {}, "The same question, by all: choose an answer to read it beside"),
    scrolled([el("th", {class: "stub"}), ...words], rows));
}

// -- showing an address

const wide = () => matchMedia("(min-width:861px)").matches; // as in viewer.css
let turns = 0; // addresses asked for: only the last is shown
let view = null; // what is on the page

async function show() {
  const turn = ++turns;
  const hash = location.hash;
  const g = given();
  $("main").setAttribute("aria-busy", "true");
  try {
    const v = await find(g);
    if (turn !== turns) return;
    const parts = v.what && v.a.of ? await prepare(v, g, turn) : null;
    if (turn !== turns) return;
    draw(v, g, parts);
    $("main").dataset.shown = hash;
    if (parts) await drawElsewhere(v, turn);
  } catch (error) {
    if (turn === turns) $("message").replaceChildren(el("p", {}, error.message));
  } finally {
    if (turn === turns) $("main").setAttribute("aria-busy", "false");
  }
}

async function prepare(v, g, turn) { // adds order and item; returns what the item holds
  const goOn = share => {
    if (turn === turns && share) $("count").textContent = `searching: ${Math.round(100 * share)} %`;
    return turn === turns;
  };
  const matches = g.q ? await search(v, g.q, goOn) : null;
  if (turn !== turns) return null;
  arrange(v, g, matches);
  const place = placesOf(v.a.of.questions).get(g.i);
  if (g.i && place === undefined) v.notes.push(`${v.what.name} has no question ${g.i}.`);
  v.item = place ?? (wide() ? v.order[0] : undefined);
  return v.item === undefined ? null : itemOf(v);
}

function draw(v, g, parts) {
  const focused = document.activeElement ? document.activeElement.id : "";
  const before = view ? view.g : null;
  view = v;
  v.g = g;
  const listed = Boolean(v.what && v.a.of);
  const notes = v.what && !listed ? [...v.notes, absent(v, v.a)] : v.notes;
  $("message").replaceChildren(...notes.map(note => el("p", {}, note)));
  const names = [v.what && v.what.name, v.a && v.a.method.name, v.index.title];
  document.title = names.filter(Boolean).join(" · ");
  $("title").textContent = `Answers: ${v.index.title}`;
  $("choose").hidden = !v.a;
  $("overview").hidden = !v.a || Boolean(v.what);
  $("answers").hidden = !v.what;
  $("narrow").hidden = $("panes").hidden = !listed;
  document.body.classList.toggle("reading", listed && Boolean(g.i) && v.item !== undefined);
  if (!v.a) return;
  drawChoice(v);
  if (!v.what) return drawOverview(v);
  drawSum(v);
  if (!listed) return;
  drawFilters(v, g);
  drawList(v, g);
  drawItem(v, parts);
  if (before && before.i !== g.i) bring(before.i, g.i);
  if (focused && document.activeElement === document.body && $(focused))
    $(focused).focus({preventScroll: true});
}

function bring(before, now) { // the item into sight, or on a narrow page its place in the list
  const rows = [...$("list").querySelectorAll("a")];
  if (wide()) {
    if ($("item").getBoundingClientRect().top < 0) $("item").scrollIntoView();
  } else if (now) window.scrollTo(0, 0);
  else rows.filter(a => a.title === before).forEach(a => a.scrollIntoView({block: "center"}));
}

// -- what people do

const CHOICES = { // and what else changes with a choice
  m: {r: null, p: null}, r: {p: null}, s: {p: null}, o: {p: null},
  n: {q: null, f: null, i: null, p: null},
  vm: {vr: null, vs: null, p: null}, vr: {p: null}, vs: {p: null},
};
for (const [id, others] of Object.entries(CHOICES)) $(id).addEventListener("change", () => {
  const value = $(id).value;
  if (id === "vm" && !value) go({...others, vm: null, vs: "none"});
  else if (id === "vs" || id === "vr")
    go({vm: view.b.method.name, vr: view.b.run.key, ...others, [id]: value});
  else go({...others, [id]: value});
});

let pause = 0;
$("q").addEventListener("input", () => { // typing leaves no trail in the history
  clearTimeout(pause);
  const address = () => location.replace(link({q: $("q").value, i: null, p: null}));
  pause = setTimeout(address, 150);
});

function move(by) {
  const at = view.order.indexOf(view.item);
  const to = view.order[at < 0 ? 0 : at + by];
  if (to !== undefined) go({i: view.a.of.questions.ids[to], p: null});
}

function toStage(by) {
  const stages = stagesOf(view.a, view.what);
  const to = stages[stages.indexOf(view.a.stage) + by];
  if (to !== undefined) go({s: to, p: null});
}

function changeSides() {
  const {a, b} = view;
  if (b) go({
    m: b.method.name, r: b.run.key, s: b.stage, vm: a.method.name, vr: a.run.key, vs: a.stage,
    p: null,
  });
}

function up() {
  if (given().i) go({i: null, p: null});
  else go({n: null, s: null, f: null, q: null, p: null});
}

function toggleKeys() {
  $("keys").open = !$("keys").open;
  if ($("keys").open) $("keys").scrollIntoView({block: "nearest"});
}

const KEYS = {"?": toggleKeys, u: up};
const KEYS_OF_A_LIST = {
  j: () => move(1), k: () => move(-1), "[": () => toStage(-1), "]": () => toStage(1),
  "/": () => $("q").focus(), x: changeSides,
};

document.addEventListener("keydown", event => {
  const {key, target} = event;
  if (key === "Escape" && target === $("q")) $("q").blur();
  const typing = target.tagName === "INPUT" || target.tagName === "SELECT";
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !view) return;
  const listed = Boolean(view.what && view.a.of);
  const chip = /^[1-9]$/.test(key) ? $("filters").children[Number(key) - 1] : null;
  if (Object.hasOwn(KEYS, key)) KEYS[key]();
  else if (listed && Object.hasOwn(KEYS_OF_A_LIST, key)) KEYS_OF_A_LIST[key]();
  else if (listed && chip) chip.click();
  else return;
  event.preventDefault();
});

addEventListener("hashchange", show);
matchMedia("(min-width:861px)").addEventListener("change", show);
show();
