// Draws what viewer_data.js finds; a report has both in one file.

// -- drawing

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {}))
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

const percent = value => (100 * value).toFixed(1);
const small = value => Number.isInteger(value) ? String(value) : value.toPrecision(4);

function valueOf(what, value) { // a mean as people read it
  return value === null ? "–" : what.fraction ? `${percent(value)} %` : value.toFixed(3);
}

function mark(what, score) { // a score of one item
  if (score === null) return el("span", {class: "muted", title: "no verdict"}, "·");
  if (!what.fraction) return el("span", {}, score.toFixed(3));
  const right = score >= RIGHT;
  const sign = el("span", {class: right ? "good" : "bad", role: "img", "aria-label": right ? "right" : "wrong"}, right ? "✓" : "✗");
  return score === 0 || score === 1 ? sign : el("span", {}, sign, ` ${small(score)}`);
}

function fill(select, options, value) { // {value: words}; left alone where it has them already
  const has = [...select.options].map(o => [o.value, o.text]);
  if (JSON.stringify(has) !== JSON.stringify(options.map(([v, t]) => [v, t])))
    select.replaceChildren(...options.map(([v, t]) => el("option", {value: v}, t)));
  select.value = value;
  select.closest("label").hidden = options.length < 2 && select.id.endsWith("r");
}

// options normalise white space in `text`, so that names with it are compared as they are shown
const shown = text => String(text).replace(/\s+/g, " ").trim();

function drawChoice(v) {
  const stages = side => [...side.numbers[v.what.place].keys()].sort((x, y) => x - y).map(k => [String(k), shown(whenOf(side, k))]);
  const methods = v.index.methods.map(m => [m.name, shown(m.name)]);
  const runs = side => side.method.runs.map(run => [run.key, shown(run.key)]);
  fill($("m"), methods, v.a.method.name);
  fill($("r"), runs(v.a), v.a.run.key);
  const asked = v.index.measured.filter(w => v.a.numbers[w.place].size).map(w => [w.name, shown(w.name)]);
  fill($("n"), [["", "everything"], ...asked], v.what ? v.what.name : "");
  $("s").closest("label").hidden = $("beside").hidden = !v.what;
  if (!v.what) return;
  fill($("s"), stages(v.a), String(v.a.stage));
  fill($("vm"), [["", "nothing"], ...methods], v.b ? v.b.method.name : "");
  fill($("vr"), v.b ? runs(v.b) : [], v.b ? v.b.run.key : "");
  fill($("vs"), v.b ? stages(v.b) : [], v.b ? String(v.b.stage) : "");
  $("vs").closest("label").hidden = !v.b;
}

function drawOverview(v) {
  const stages = [...new Set(v.a.numbers.flatMap(of => [...of.keys()]))].sort((x, y) => x - y);
  const head = el("tr", {}, el("th", {scope: "col"}, ""), ...stages.map(k => el("th", {scope: "col"}, whenOf(v.a, k))));
  let none = true;
  const rows = v.index.measured.filter(what => v.a.numbers[what.place].size).map(what =>
    el("tr", {}, el("th", {scope: "row", title: what.about}, what.name), ...stages.map(k => {
      const number = v.a.numbers[what.place].get(k);
      if (!number) return el("td", {}, "–");
      if (number.file) none = false;
      return el("td", {}, el("a", {href: link({n: what.name, s: k})}, valueOf(what, number.value)));
    })));
  const words = none ? "Answers are not kept in this results folder: it has scores alone." : "Choose a number to read the answers behind it.";
  $("overview").replaceChildren(
    el("p", {}, `What ${withRun(v.a)} was asked, and when. ${words}`),
    el("div", {class: "scroll", tabindex: "0"}, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
}

const earlier = v => v.b && v.b.run === v.a.run && v.b.stage < v.a.stage;
const sidesOf = v => !v.b ? [v.a] : earlier(v) ? [v.b, v.a] : [v.a, v.b];

function drawSum(v) {
  const say = side => {
    const {value, n} = side.number;
    return [el("strong", {}, withRun(side)), ` ${whenOf(side, side.stage)}: ${valueOf(v.what, value)}` + (n ? ` of ${n}` : "")];
  };
  const better = v.what.fraction ? "" : v.what.higher ? ", higher is better" : ", lower is better";
  $("sum").replaceChildren(
    el("a", {id: "up", href: link({n: null, s: null, i: null, p: null, f: null, q: null})}, "everything"), " › ",
    el("strong", {title: v.what.about}, v.what.name), ` (${v.what.metric}${better}). `,
    ...say(v.a), ...(v.b ? [" · beside it ", ...say(v.b)] : []));
}

function drawFilters(v, g) {
  const filters = filtersOf(v);
  const have = document.activeElement && document.activeElement.id;
  $("filters").replaceChildren(...Object.entries(filters)
    .filter(([name]) => name !== "none" || v.counts.none || v.filter === "none")
    .map(([name, words]) => el("a", {
      id: `f-${name}`,
      href: link({f: name === "all" ? null : name, i: null, p: null}),
      "aria-current": name === v.filter ? "true" : null,
    }, words, el("span", {}, String(v.counts[name] || 0)))));
  if (have && have.startsWith("f-") && $(have)) $(have).focus();
  if (document.activeElement !== $("q")) $("q").value = g.q || "";
  fill($("o"), Object.entries(sortsOf(v)), v.sort);
}

function drawList(v, g) {
  const last = Math.max(0, Math.ceil(v.order.length / ROWS) - 1);
  const at = v.order.indexOf(v.item);
  const wanted = g.p ? Number(g.p) - 1 : at >= 0 ? Math.floor(at / ROWS) : 0;
  const page = Math.min(last, Math.max(0, Math.trunc(wanted) || 0));
  const inside = $("list").contains(document.activeElement);
  const rows = v.order.slice(page * ROWS, (page + 1) * ROWS);
  const {ids, briefs} = v.a.of.questions;
  const sides = sidesOf(v).filter(side => side === v.a || v.at);
  $("list").replaceChildren(...rows.map(place => el("li", {}, el("a", {
    href: link({i: ids[place], p: null}),
    title: ids[place],
    "aria-current": place === v.item ? "true" : null,
  },
  el("span", {class: "marks"}, ...sides.map(side => mark(v.what, side === v.a ? scoreA(v, place) : scoreB(v, place)))),
  el("span", {class: "brief"}, briefs[place] || ids[place]),
  el("span", {class: "said"}, v.a.of.head.briefs[place])))));
  const current = $("list").querySelector("[aria-current]");
  if (inside) (current || $("list").querySelector("a") || document.body).focus({preventScroll: true});
  if (current && wide()) {
    const box = $("listed");
    const top = current.offsetTop - box.clientHeight / 3;
    if (current.offsetTop < box.scrollTop || current.offsetTop > box.scrollTop + box.clientHeight - 60) box.scrollTop = top;
  }
  const legend = sides.length > 1 ? ` Marks: ${sides.map(side => shortOf(v, side)).join(", then ")}.` : "";
  $("count").textContent = v.order.length
    ? `${page * ROWS + 1} to ${page * ROWS + rows.length} of ${v.order.length.toLocaleString("en")}.${legend}`
    : "No answer is of this kind.";
  const turn = (id, words, to) => to < 0 || to > last ? el("span") : el("a", {id, href: link({p: to + 1})}, words);
  const middle = el("span", {class: "muted"}, `page ${page + 1} of ${last + 1}`);
  $("pages").replaceChildren(...(last ? [turn("page-before", "← before", page - 1), middle, turn("page-next", "next →", page + 1)] : []));
}

// -- one item

const LABELS = {completion: "", response: "", answer: "without its thoughts", completions: "all answers", verdict: "the judge's verdict",
  reply: "the judge's words", error: "why there is no verdict"};
const HIDDEN = ["choice", "right choice"];

function choices(texts, head, row_) { // of a retention task: their likelihoods
  const of = field => row_[head.fields.indexOf(field)];
  return el("table", {}, el("caption", {class: "muted"}, "log-likelihoods, nats"), el("tbody", {}, ...of("response").map((value, k) => {
    const [chosen, right] = [of("choice") === k + 1, of("right choice") === k + 1];
    return el("tr", {class: right ? "right" : null},
      el("td", {class: "text"}, texts && texts[k] !== undefined ? texts[k].trim() : `choice ${k + 1}`),
      el("td", {}, value.toFixed(2)),
      el("td", {class: "text"}, [chosen ? "chosen" : "", right ? "right" : ""].filter(Boolean).join(", ")));
  })));
}

function body(v, side, row_, texts_) { // the answer of one side; texts_: of choices
  if (!side.of) return [el("p", {class: "muted"}, side.number.file === "" ? `The viewer holds ${v.index.answers.toLocaleString("en")} answers, and not these.`
    : "This answer is not kept in the results folder.")];
  if (!row_) return [el("p", {class: "muted"}, "This question was not asked here.")];
  const parts = [], facts = [];
  side.of.head.fields.forEach((field, k) => {
    const value = row_[k];
    if (value === null || HIDDEN.includes(field)) return;
    if (Array.isArray(value) && field === "response") parts.push(choices(texts_, side.of.head, row_));
    else if (typeof value === "string" || Array.isArray(value)) {
      const label = Object.hasOwn(LABELS, field) ? LABELS[field] : field;
      if (label) parts.push(el("h4", {}, label));
      parts.push(value === "" ? el("p", {class: "muted"}, "(empty)") : el("pre", {tabindex: "0"}, String(value)));
    } else if (field === "finished") { if (!value) facts.push("cut at the limit"); }
    else facts.push(`${field === "response" ? "log-likelihood" : field} ${typeof value === "number" ? small(value) : value}`);
  });
  if (!parts.length && !facts.length) parts.push(el("p", {class: "muted"}, "The results folder keeps the score of this answer, not its words."));
  return [...parts, facts.length ? el("p", {class: "muted facts"}, facts.join(" · ")) : null];
}

async function itemOf(v) { // what is read of the item before it is drawn
  const place = v.item, there = v.at ? v.at(place) : -1;
  const {head, questions} = v.a.of;
  const question = await row(head.questions, questions.starts, place);
  const rowA = await row(v.a.of.file, head.starts, place);
  if (there < 0) return {question, rowA, rowB: null, other: null};
  const rowB = await row(v.b.of.file, v.b.of.head.starts, there);
  const other = v.b.of.questions === questions ? null : await row(v.b.of.head.questions, v.b.of.questions.starts, there);
  return {question, rowA, rowB, other};
}

function drawItem(v, parts) {
  if (!parts) {
    $("item").replaceChildren(el("p", {class: "muted"}, "Choose an answer to read it."));
    return;
  }
  const {question, rowA, rowB, other} = parts;
  const id = v.a.of.questions.ids[v.item];
  const at = v.order.indexOf(v.item);
  const step = (words, name, to) => v.order[to] === undefined ? null : el("a", {id: name, href: link({i: v.a.of.questions.ids[v.order[to]], p: null})}, words);
  const lasting = {m: v.a.method.name, r: v.a.run.key, s: v.a.stage, i: id, p: null, f: null, o: null, q: null,
    ...(v.b ? {vm: v.b.method.name, vr: v.b.run.key, vs: v.b.stage} : {vm: null, vr: null, vs: "none"})};
  const pre = text => el("pre", {tabindex: "0"}, text);
  const asked = other && other[0] !== question[0] ? [el("h4", {}, "asked as"), pre(other[0] || "")] : [];
  const answers = sidesOf(v).map(side => {
    const ofA = side === v.a;
    const score = ofA ? scoreA(v, v.item) : scoreB(v, v.item);
    return el("div", {class: "answer"},
      el("h3", {}, side.of && (ofA || rowB) ? mark(v.what, score) : "", ` ${withRun(side)}, ${whenOf(side, side.stage)}`),
      ...(ofA ? [] : asked), ...body(v, side, ofA ? rowA : rowB, (!ofA && other || question)[2]).filter(Boolean));
  });
  const prompt = pre(question[0] || "");
  $("item").replaceChildren(
    el("a", {id: "back", href: link({i: null, p: Math.floor(Math.max(0, at) / ROWS) + 1})}, "← All answers"),
    el("h2", {}, id),
    el("div", {class: "turn"}, at < 0 ? el("span", {class: "muted"}, "not in the list") : el("span", {class: "muted"}, `${at + 1} of ${v.order.length.toLocaleString("en")}`),
      ...[step("← before", "before", at - 1), step("next →", "next", at + 1)].filter(Boolean), el("a", {id: "permanent", href: link(lasting)}, "permanent link")),
    ...(question[0] ? [el("h3", {}, "Question"), prompt] : question[1] || question[2] ? [] : [el("p", {class: "muted"}, v.what.kind === "skill"
      ? "The results folder does not keep this question." : "The results folder is from before questions of retention tasks were kept.")]),
    ...(question[1] ? [el("h3", {}, v.what.kind === "skill" ? "Reference" : v.what.fraction ? "Right answer" : "Text whose likelihood is measured"), pre(question[1])] : []),
    el("h3", {}, v.b ? "Answers" : "Answer"), el("div", {class: "answers"}, ...answers),
    el("div", {id: "elsewhere"}));
  prompt.scrollTop = prompt.scrollHeight; // examples stand before the question
}

async function drawElsewhere(v, turn) { // the same item after all stages, by all methods
  const sides = [];
  for (const method of v.index.methods) {
    const run = method.runs.find(r => r.key === v.a.run.key) || method.runs[0];
    const numbers = await numbersOf(v.index, run);
    const cells = [...numbers[v.what.place]].filter(([, number]) => number.file);
    if (cells.length) sides.push({method, run, cells});
  }
  const count = sides.reduce((sum, side) => sum + side.cells.length, 0);
  if (turn !== turns || count < 2 || count * v.n > MOST_SCORES) return;
  const id = v.a.of.questions.ids[v.item];
  const stages = [...new Set(sides.flatMap(side => side.cells.map(([k]) => k)))].sort((x, y) => x - y);
  const rows = await Promise.all(sides.map(async side => {
    const cells = new Map(await Promise.all(side.cells.map(async ([k, number]) => [k, await evaluation(number.file)])));
    return el("tr", {}, el("th", {scope: "row"}, withRun(side)), ...stages.map(k => {
      const of = cells.get(k);
      const place = of ? placesOf(of.questions).get(id) : undefined;
      if (place === undefined) return el("td", {}, "");
      const is = other => other && other.run === side.run && other.stage === k;
      return el("td", {}, el("a", {
        href: link({i: id, vm: side.method.name, vr: side.run.key, vs: k}), title: `${withRun(side)} ${whenOf(side, k)}`,
        "aria-current": is(v.a) ? "true" : null, class: is(v.b) ? "there" : null,
      }, mark(v.what, of.head.scores[place])));
    }));
  }));
  if (turn !== turns || !$("elsewhere")) return;
  const head = el("tr", {}, el("th", {}, ""), ...stages.map(k => el("th", {scope: "col"}, k ? `stage ${k}` : "before")));
  $("elsewhere").replaceChildren(el("h3", {}, "The same question, by all: choose an answer to read it beside"),
    el("div", {class: "scroll", tabindex: "0"}, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
}

// -- showing an address

const wide = () => matchMedia("(min-width:861px)").matches;
let turns = 0;
let view = null; // what is on the page

async function show() {
  const turn = ++turns;
  const hash = location.hash;
  const g = given();
  $("main").setAttribute("aria-busy", "true");
  try {
    const v = await find(g);
    let parts = null;
    if (turn !== turns) return;
    if (v.what && v.a.of) {
      const going = share => {
        if (turn === turns && share) $("count").textContent = `searching: ${Math.round(100 * share)} %`;
        return turn === turns;
      };
      const matches = g.q ? await search(v, g.q, going) : null;
      if (turn !== turns) return;
      arrange(v, g, matches);
      const place = placesOf(v.a.of.questions).get(g.i);
      if (g.i && place === undefined) v.notes.push(`${v.what.name} has no question ${g.i}.`);
      v.item = place ?? (wide() ? v.order[0] : undefined);
      if (v.item !== undefined) parts = await itemOf(v);
      if (turn !== turns) return;
    }
    draw(v, g, parts);
    $("main").dataset.shown = hash;
    if (parts) await drawElsewhere(v, turn);
  } catch (error) {
    if (turn === turns) $("message").replaceChildren(el("p", {}, error.message));
  } finally {
    if (turn === turns) $("main").setAttribute("aria-busy", "false");
  }
}

function draw(v, g, parts) {
  const focused = document.activeElement ? document.activeElement.id : "";
  const before = view ? view.g : null;
  view = v;
  v.g = g;
  const notes = [...v.notes];
  const reading = Boolean(v.what && v.a.of);
  if (v.what && !v.a.of) notes.push(v.a.number.file === ""
    ? `The viewer holds ${v.index.answers.toLocaleString("en")} answers, and not these: those at the ends of runs come first.`
    : "The answers behind this number are not kept in the results folder.");
  $("message").replaceChildren(...notes.map(note => el("p", {}, note)));
  document.title = [v.what && v.what.name, v.a && v.a.method.name, v.index.title].filter(Boolean).join(" · ");
  $("title").textContent = `Answers: ${v.index.title}`;
  $("choose").hidden = !v.a;
  $("overview").hidden = !v.a || Boolean(v.what);
  $("answers").hidden = !v.what;
  $("narrow").hidden = $("panes").hidden = !reading;
  document.body.classList.toggle("reading", reading && Boolean(g.i) && v.item !== undefined);
  if (!v.a) return;
  drawChoice(v);
  if (!v.what) return drawOverview(v);
  drawSum(v);
  if (!reading) return;
  drawFilters(v, g);
  drawList(v, g);
  drawItem(v, parts);
  if (before && before.i !== g.i) scroll(before.i, g.i);
  if (focused && document.activeElement === document.body && $(focused)) $(focused).focus({preventScroll: true});
}

function scroll(before, now) { // to the item, or on a narrow page back to where it was in the list
  if (wide()) {
    if ($("item").getBoundingClientRect().top < 0) $("item").scrollIntoView();
  } else if (now) window.scrollTo(0, 0);
  else [...$("list").querySelectorAll("a")].filter(a => a.title === before).forEach(a => a.scrollIntoView({block: "center"}));
}

// -- what people do

const NEXT = { // what else changes with a choice
  m: {r: null, p: null}, r: {p: null}, n: {q: null, f: null, i: null, p: null}, s: {p: null}, o: {p: null},
  vm: {vr: null, vs: null, p: null}, vr: {p: null}, vs: {p: null},
};
for (const [id, others] of Object.entries(NEXT)) $(id).addEventListener("change", () => {
  const value = $(id).value;
  if (id === "vm" && !value) go({...others, vm: null, vs: "none"});
  else if (id === "vs" || id === "vr") go({vm: view.b.method.name, vr: view.b.run.key, ...others, [id]: value});
  else go({...others, [id]: value});
});

let pause = 0;
$("q").addEventListener("input", () => { // typing leaves no trail in the history
  clearTimeout(pause);
  pause = setTimeout(() => location.replace(link({q: $("q").value, i: null, p: null})), 150);
});

function move(by) {
  const at = view.order.indexOf(view.item);
  const to = at < 0 ? 0 : at + by;
  if (view.order[to] !== undefined) go({i: view.a.of.questions.ids[view.order[to]], p: null});
}

function stage(by) {
  const stages = [...$("s").options].map(option => option.value);
  const to = stages[stages.indexOf(String(view.a.stage)) + by];
  if (to !== undefined) go({s: to, p: null});
}

const KEYS = {
  j: () => move(1), k: () => move(-1), "[": () => stage(-1), "]": () => stage(1),
  "/": () => $("q").focus(), "?": () => { $("keys").open = !$("keys").open; if ($("keys").open) $("keys").scrollIntoView({block: "nearest"}); },
  u: () => go(given().i ? {i: null, p: null} : {n: null, s: null, f: null, q: null, p: null}),
  x: () => view.b && go({m: view.b.method.name, r: view.b.run.key, s: view.b.stage, vm: view.a.method.name, vr: view.a.run.key, vs: view.a.stage, p: null}),
};

document.addEventListener("keydown", event => {
  const tag = event.target.tagName;
  if (event.key === "Escape" && event.target === $("q")) $("q").blur();
  if (event.ctrlKey || event.metaKey || event.altKey || tag === "INPUT" || tag === "SELECT") return;
  const chip = /^[1-9]$/.test(event.key) ? $("filters").children[Number(event.key) - 1] : null;
  if (chip && !$("narrow").hidden) chip.click();
  else if (Object.hasOwn(KEYS, event.key) && view && ("/?u".includes(event.key) || (view.what && view.a.of))) KEYS[event.key]();
  else return;
  event.preventDefault();
});

addEventListener("hashchange", show);
matchMedia("(min-width:861px)").addEventListener("change", show);
show();
