"use strict";
// Draws the posts that the choice in the bar leaves, and of these only what is on the screen. Data go into the page as
// text nodes and attributes, never as HTML.
const data = JSON.parse(document.getElementById("content").textContent);
const by = (id) => document.getElementById(id);
const ANY = "";
const UNKNOWN = "unknown";

function make(tag, options = {}, ...children) {
  const { style = {}, data: attributes = {}, ...properties } = options;
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// ------------------------------------------------------------------ what a post is chosen by

const overlap = (one, other) => one[0] < other[1] && other[0] < one[1];

// What a run got right or wrong in a post: kind, and the labels that it is about.
function itemsOf(post, found) {
  if (data.task === "re") return [{ kind: found.kind, labels: [post.gold, found.relation] }];
  const gold = post.gold.map((span) => [span.start, span.end, span.label]);
  return [
    ...found.spans.map((span) => ({
      kind: span[4],
      labels: [span[2], ...gold.filter((one) => overlap(one, span)).map((one) => one[2])],
    })),
    ...found.missed.map((index) => ({ kind: "missed", labels: [gold[index][2]] })),
  ];
}

const answerOf = (found) =>
  data.task === "re" ? found.relation : JSON.stringify(found.spans.map((span) => span.slice(0, 3)));

const indexed = data.posts.map((post) => {
  const answers = post.found.map(answerOf);
  return {
    post,
    items: post.found.map((found) => itemsOf(post, found)),
    differs: answers.map((answer) => answer !== answers[0]),
    score: post.scores ? data.classes[post.scores.indexOf(Math.max(...post.scores))] : UNKNOWN,
    text: [post.id, post.tokens.join(" "), ...post.phrases].join("\n").toLowerCase(),
  };
});

const controls = ["search", "run", "kind", "label", "score", "errors", "differ", "gallery"];
const valueOf = (control) => (control.type === "checkbox" ? (control.checked ? "1" : ANY) : control.value);

function chosen() {
  const state = Object.fromEntries(controls.map((name) => [name, valueOf(by(name))]));
  const wanted = state.search.trim().toLowerCase();
  return indexed.filter(({ post, items, differs, score, text }) => {
    if (wanted && !text.includes(wanted)) return false;
    if (state.score && state.score !== score) return false;
    if (state.differ && !differs.some(Boolean)) return false;
    if (state.gallery && !post.generated) return false;
    if (!(state.kind || state.label || state.errors)) return true;
    const runs = state.run === ANY ? items : [items[Number(state.run)]];
    return runs.some((ofRun) =>
      ofRun.some(
        ({ kind, labels }) =>
          (!state.kind || kind === state.kind) &&
          (!state.label || labels.includes(state.label)) &&
          (!state.errors || (kind !== null && kind !== "right")),
      ),
    );
  });
}

// ------------------------------------------------------------------ a post

const hue = (label) => `${Math.round(208 + (360 * data.labels.indexOf(label)) / data.labels.length) % 360}`;
const STYLES = { "span and type": "both" };
const styleOf = (kind) => `c-${kind === null ? "none" : (STYLES[kind] ?? kind)}`;
const percent = (value) => (value === null ? "" : `${(100 * value).toFixed(0)} %`);

function textOf(post) {
  const spans =
    data.task === "ner"
      ? post.gold.map((span) => ({ ...span, hue: hue(span.label) }))
      : [
          { start: post.head[0], end: post.head[1], label: "head", hue: "208" },
          { start: post.tail[0], end: post.tail[1], label: "tail", hue: "28" },
        ];
  // Head and tail may overlap: a word has all its roles.
  const roles = post.tokens.map((_, i) => spans.filter((span) => span.start <= i && i < span.end));
  const same = (one, other) => one.length === other.length && one.every((span, i) => span === other[i]);
  const line = make("bdi");
  for (let start = 0; start < post.tokens.length; ) {
    let end = start + 1;
    while (end < post.tokens.length && same(roles[start], roles[end])) end += 1;
    const words = post.tokens.slice(start, end).join(" ");
    const here = roles[start];
    if (start) line.append(" ");
    line.append(
      here.length
        ? make("mark", { style: { "--hue": here[0].hue } }, words, make("small", {}, here.map((one) => one.label).join(" + ")))
        : words,
    );
    start = end;
  }
  return make("p", { className: "text" }, line);
}

const chip = (kind, className, ...children) => make("span", { className: `found ${styleOf(kind)} ${className}` }, ...children);
const told = (kind) => (kind === null || kind === "right" ? "" : ` ${kind}`);

function foundOf(post, found) {
  if (data.task === "re") {
    const gold = found.gold_probability === null ? "" : `, gold ${percent(found.gold_probability)}`;
    return [
      chip(found.kind, "", make("b", {}, found.relation), make("i", {}, told(found.kind)), make("span", {}, ` ${percent(found.probability)}${gold}`)),
    ];
  }
  const words = (start, end) => make("bdi", {}, post.tokens.slice(start, end).join(" "));
  const chips = found.spans.map(([start, end, label, probability, kind]) =>
    chip(kind, "", words(start, end), " ", make("b", {}, label), make("i", {}, told(kind)), make("span", {}, ` ${percent(probability)}`)),
  );
  const missed = found.missed.map((index) => {
    const span = post.gold[index];
    return chip("missed", "missed", words(span.start, span.end), " ", make("b", {}, span.label), make("i", {}, " missed"));
  });
  return [...chips, ...missed];
}

const nameOf = (run) => (data.runs.filter((one) => one.name === run.name).length > 1 ? `${run.name}, seed ${run.seed}` : run.name);

function runsOf({ post, differs }) {
  const list = make("dl", { className: "runs" });
  post.found.forEach((found, index) => {
    const chips = foundOf(post, found);
    list.append(
      make("dt", { className: differs[index] ? "differs" : "", title: differs[index] ? "other than the first run" : "" }, nameOf(data.runs[index])),
      make("dd", {}, ...(chips.length ? chips : [make("span", { className: "soft" }, "nothing")])),
    );
  });
  return list;
}

function scoresOf(scores) {
  if (!scores) return null;
  const shown = scores.map((value, i) => `${data.classes[i]} ${i === 0 && data.unknown_weaken ? "unknown" : value.toFixed(2)}`);
  const parts = scores.map((value, i) => make("i", { className: `s${i}`, style: { width: `${100 * value}%` } }));
  return make("div", { className: "scores", title: shown.join(", "), data: { role: "img", "aria-label": shown.join(", ") } }, ...parts);
}

const SVG = "http://www.w3.org/2000/svg";

function boxesOf(boxes) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 1 1");
  drawing.setAttribute("preserveAspectRatio", "none");
  boxes.forEach(([x, y, width, height], index) => {
    for (const kind of ["under", `r${index % 3}`]) {
      const box = document.createElementNS(SVG, "rect");
      Object.entries({ class: kind, x, y, width, height }).forEach(([name, value]) => box.setAttribute(name, value));
      drawing.append(box);
    }
  });
  return drawing;
}

function pictureOf(what, picture, scores) {
  const caption = make("figcaption", {}, what);
  if (!picture) return make("figure", {}, make("div", { className: "absent" }, `no ${what}`));
  const source = by(`picture-${picture.number}`);
  if (source.dataset.error) return make("figure", {}, make("div", { className: "absent" }, `can't be read: ${source.dataset.error}`), caption);
  const { width, height } = source.dataset;
  const image = make("img", { width, height, alt: what, src: `data:image/webp;base64,${source.textContent}` });
  picture.boxes.forEach(([, , , , phrase], index) => {
    if (phrase) caption.append(" ", make("b", { className: `r${index % 3}` }, `${index + 1} `), make("bdi", {}, phrase));
  });
  return make("figure", {}, make("div", { className: "frame" }, image, boxesOf(picture.boxes)), caption, scoresOf(scores));
}

function fill(place) {
  if (place.firstChild) return;
  const entry = shown[Number(place.dataset.place)];
  const { post } = entry;
  const gold = data.task === "re" ? make("span", {}, "gold: ", make("b", {}, post.gold)) : null;
  const phrases = make("div", { className: "phrases" }, ...post.phrases.map((phrase) => make("span", {}, make("bdi", {}, phrase))));
  const gallery = by("gallery").checked;
  const prompt = gallery && post.generated ? make("p", { className: "prompt" }, post.prompt ?? "no prompt is recorded", post.made_by ? ` (${post.made_by})` : "") : null;
  place.append(
    make("div", { className: "body" }, make("div", { className: "top" }, make("code", {}, post.id), gold), textOf(post), runsOf(entry), phrases, prompt),
    make(
      "div",
      { className: "pictures" },
      pictureOf("picture", post.picture, post.scores),
      post.generated || gallery ? pictureOf("generated picture", post.generated, post.generated_scores) : null,
    ),
  );
  place.style.height = "";
}

// ------------------------------------------------------------------ the list

let shown = [];
let current = -1;
const list = by("posts");
const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting, boundingClientRect } of entries) {
      if (isIntersecting) fill(target);
      else if (target.firstChild && !target.contains(document.activeElement)) {
        target.style.height = `${boundingClientRect.height}px`; // what is below must not move
        target.replaceChildren();
      }
    }
  },
  { rootMargin: "1000px 0px" },
);

function draw() {
  observer.disconnect();
  shown = chosen();
  current = -1;
  list.className = by("gallery").checked ? "posts gallery" : "posts";
  const places = shown.map((_, place) => make("li", { className: "post", tabIndex: -1, data: { "data-place": place } }));
  list.replaceChildren(...places);
  places.slice(0, 6).forEach(fill);
  places.forEach((place) => observer.observe(place));
  by("nothing").hidden = shown.length > 0;
  const of = data.posts.length.toLocaleString("en");
  by("count").textContent = `${shown.length.toLocaleString("en")} of ${of} posts`;
}

function move(by_) {
  if (!shown.length) return;
  list.children[current]?.classList.remove("current");
  current = Math.min(Math.max(current + by_, 0), shown.length - 1);
  const place = list.children[current];
  fill(place);
  place.classList.add("current");
  place.focus({ preventScroll: true });
  place.scrollIntoView({ block: "start" });
}

// ------------------------------------------------------------------ the choice, also in the address

function keep() {
  const parameters = new URLSearchParams();
  for (const name of controls) if (valueOf(by(name)) !== ANY) parameters.set(name, valueOf(by(name)));
  history.replaceState(null, "", parameters.size ? `#${parameters}` : location.pathname + location.search);
}

function restore() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  for (const name of controls) {
    const [control, value] = [by(name), parameters.get(name) ?? ANY];
    if (control.type === "checkbox") control.checked = value === "1";
    else control.value = value;
    if (control.type === "select-one" && control.selectedIndex < 0) control.value = ANY;
  }
  draw();
}

function change() {
  keep();
  draw();
}

function choose(choice) {
  for (const name of controls) if (by(name).type !== "checkbox") by(name).value = choice[name] ?? ANY;
  for (const name of controls) if (by(name).type === "checkbox") by(name).checked = choice[name] === "1";
  change();
}

function toggle(name) {
  if (by(name).disabled) return;
  by(name).checked = !by(name).checked;
  change();
}

const KEYS = {
  j: () => move(1),
  ArrowDown: () => move(1),
  k: () => move(-1),
  ArrowUp: () => move(-1),
  "/": () => by("search").focus(),
  e: () => toggle("errors"),
  d: () => toggle("differ"),
  g: () => toggle("gallery"),
  "?": () => by("help").showModal(),
  Escape: () => choose({}),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (event.ctrlKey || event.metaKey || event.altKey || by("help").open || !(event.key in KEYS)) return;
  if (typing && event.target.type !== "checkbox") {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  event.preventDefault();
  KEYS[event.key]();
});

// ------------------------------------------------------------------ what the page is made of

function options(name, first, values) {
  by(name).append(new Option(first, ANY), ...values.map(([value, text]) => new Option(text ?? value, value)));
}

options("run", "any", data.runs.map((run, index) => [String(index), nameOf(run)]));
options("kind", "any", data.kinds.map((kind) => [kind]));
options("label", "any", data.labels.map((label) => [label]));
options("score", "anything", [...data.classes, UNKNOWN].map((name) => [name]));
by("differ").disabled = data.runs.length < 2;
by("gallery").disabled = !data.posts.some((post) => post.generated);

by("counts").tHead.append(make("tr", {}, make("th"), ...["seed", "F1", ...data.kinds].map((name) => make("th", { scope: "col" }, name))));
data.runs.forEach((run, index) => {
  const cells = data.kinds.map((kind) => {
    const show = make("button", { type: "button" }, run.counts[kind].toLocaleString("en"));
    show.addEventListener("click", () => choose({ run: String(index), kind }));
    show.setAttribute("aria-label", `${run.counts[kind]} ${kind}, ${nameOf(run)}: show`);
    return make("td", {}, show);
  });
  by("counts").tBodies[0].append(make("tr", {}, make("th", { scope: "row" }, run.name), make("td", {}, String(run.seed)), make("td", {}, (100 * run.f1).toFixed(1)), ...cells));
});

let waiting;
by("search").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(change, 120);
});
for (const name of controls) if (name !== "search") by(name).addEventListener("change", change);
by("bar").addEventListener("submit", (event) => event.preventDefault());
by("bar").addEventListener("reset", (event) => {
  event.preventDefault();
  choose({});
});
by("help-button").addEventListener("click", () => by("help").showModal());
window.addEventListener("hashchange", restore);
restore();
