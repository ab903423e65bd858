// The page's pieces: cards, groups, buttons. Texts go in as textContent only, so that no prompt is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#board-${name}`);
  svg.append(use);
  return svg;
}

/** Write only what changed: a board of 64 images is painted at every key. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setData(node, key, value) {
  if (node.dataset[key] !== String(value)) node.dataset[key] = value;
}

/** The name of a rating's look: up, down, good, best, worst, left, right, tie, bad, skip, s1 to s5, or nothing. */
function markOf(rating) {
  if (!rating) return "";
  const looks = { thumbs: { 1: "up", "-1": "down" }, best: { 1: "good", 2: "best" }, "best-worst": { 1: "best", "-1": "worst" }, pairs: { 1: "left", 0: "tie", "-1": "right" } };
  if (rating.value === null) return rating.kind;
  return looks[rating.kind]?.[rating.value] ?? `s${rating.value}`;
}

/** How an image or a pair looks: by its own rating, or by those of its siblings. */
const lookOf = (item) => (item ? markOf(item.rating) || item.implied || "" : "");

const ICONS = { good: "check", best: "star", worst: "close", tie: "equal", bad: "down" };

/** What can be said in each mode: value, look, and what it means. */
const CHOICES = {
  thumbs: [[-1, "down", "Rate down (D)"], [1, "up", "Rate up (U)"]],
  stars: [1, 2, 3, 4, 5].map((n) => [n, "star", `Rate ${n} of 5${STARS[n] ?? ""} (${n})`]),
  best: [[1, "good", "A good one (G)"], [2, "best", "The best of its prompt (B)"]],
  "best-worst": [[-1, "worst", "The worst of its set (W)"], [1, "best", "The best of its set (B)"]],
  pairs: [[1, "left", "Left is better (←)", "Left"], [0, "tie", "Equally good (↑)", "Equal"], ["bad", "bad", "Both are bad (↓)", "Both bad"], [-1, "right", "Right is better (→)", "Right"]],
};

/** The buttons that rate. They are for pointers; the card itself takes the keys. */
function ratingButtons(mode) {
  const row = make("div", `buttons ${mode}`);
  for (const [value, shape, label, text] of CHOICES[mode]) {
    const button = make("button", `rate ${shape}`);
    Object.assign(button, { type: "button", tabIndex: -1, title: label });
    button.setAttribute("aria-label", label);
    Object.assign(button.dataset, { rate: value, look: shape });
    button.append(icon(ICONS[shape] ?? shape), ...(text ? [make("span", "", text)] : []));
    row.append(button);
  }
  row.dataset.mode = mode;
  return row;
}

function paintButtons(row, rating) {
  const mark = markOf(rating);
  for (const button of row.children) {
    const stars = row.dataset.mode === "stars" && rating?.kind === "stars";
    const on = stars ? Number(button.dataset.rate) <= rating.value : button.dataset.look === mark;
    button.classList.toggle("on", on);
    button.setAttribute("aria-pressed", String(stars ? Number(button.dataset.rate) === rating.value : on));
  }
}

function paintBadge(badge, mark) {
  if (badge.dataset.mark === mark) return;
  badge.dataset.mark = mark;
  badge.replaceChildren();
  if (!mark || mark === "passed" || mark === "middle") return;
  const star = /^s\d$/.exec(mark);
  badge.append(icon(star ? "star" : ICONS[mark] ?? mark));
  if (star) badge.append(mark.slice(1));
}

/** An empty place of the grid, ready for an image. */
function makeCard(index, mode, ratable) {
  const card = make("div", "card");
  card.setAttribute("role", "gridcell");
  Object.assign(card.dataset, { index, state: "wait", mark: "" });
  card.tabIndex = -1;
  const frame = make("div", "frame");
  const image = make("img");
  Object.assign(image, { alt: "", draggable: false, decoding: "async" });
  const badge = make("span", "badge");
  frame.append(image, badge);
  const foot = !ratable ? make("div", "score") : mode === "pairs" ? make("div") : ratingButtons(mode);
  const caption = make("p", "caption");
  card.append(frame, caption, foot);
  return Object.assign(card, { parts: { image, badge, foot, caption } });
}

/** A prompt's frame, with its cards inside. */
function makeGroup(cards) {
  const group = make("div", "group");
  group.setAttribute("role", "row");
  const head = make("div", "head");
  head.setAttribute("role", "presentation");
  const prompt = make("p", "prompt");
  const teach = make("span", "teach");
  head.append(prompt, teach);
  const cells = make("div", "cells");
  cells.setAttribute("role", "presentation");
  cells.append(...cards);
  group.append(head, cells);
  return Object.assign(group, { parts: { prompt, teach }, cards });
}

/** The frame of a pair: two cards without buttons of their own, and the verdicts on both. It takes the keys. */
function makePair(cards) {
  const group = makeGroup(cards);
  const verdicts = ratingButtons("pairs");
  for (const card of cards) card.setAttribute("role", "presentation");
  group.classList.add("pair");
  group.setAttribute("role", "group");
  group.append(verdicts);
  return Object.assign(group, { parts: { ...group.parts, verdicts } });
}

/** Bring the two cards and the verdicts up to date with a pair; null where none is there yet. */
function paintPair(group, pair, place, board, onShown) {
  const mark = lookOf(pair);
  const looks = { left: ["best", "passed"], right: ["passed", "best"], tie: ["tie", "tie"], bad: ["bad", "bad"], skip: ["skip", "skip"] }[mark] ?? ["", ""];
  group.setAttribute("aria-label", pair ? `${place}, ${clip(pair.left.prompt, 200) || "no text"}, ${inWords(pair.rating, "pair")}` : "pair still to come");
  group.tabIndex = 0;
  paintButtons(group.parts.verdicts, pair?.rating);
  group.cards.forEach((card, side) => {
    const image = pair && (side ? pair.right : pair.left);
    setData(card, "mark", looks[side]);
    paintBadge(card.parts.badge, looks[side]);
    card.parts.image.alt = image ? ["left image", "right image"][side] : "";
    setText(card.parts.caption, image?.prompt ?? "");
    if (!image) Object.assign(card.dataset, { state: "wait", id: "" });
    else if (card.dataset.id !== `${image.id}-${image.image}`) showPicture(card, image, board.prefix, onShown);
  });
}

/** Bring a card up to date with its image; `onShown` hears when a new picture is on the page. */
function paintCard(card, image, board, onShown) {
  const { parts } = card;
  const index = Number(card.dataset.index);
  setData(card, "mark", lookOf(image));
  const place = `image ${index + 1} of ${board.expected}`;
  if (!image) {
    card.dataset.state = "wait";
    card.dataset.id = "";
    card.setAttribute("aria-label", `${place}, still to come`);
    card.setAttribute("aria-busy", "true");
    paintBadge(parts.badge, "");
    if (board.rated_by_people) paintButtons(parts.foot, null);
    else setText(parts.foot, "");
    return;
  }
  card.removeAttribute("aria-busy");
  const told = board.rated_by_people ? inWords(image.rating, image.implied) : image.score === null ? "no score yet" : `score ${figure(image.score)}`;
  card.setAttribute("aria-label", `${place}, ${clip(image.prompt, 200) || "no text"}, ${told}`);
  setText(parts.caption, image.prompt);
  parts.caption.title = image.prompt;
  if (board.rated_by_people) {
    paintButtons(parts.foot, image.rating);
    paintBadge(parts.badge, markOf(image.rating));
  } else setText(parts.foot, image.score === null ? "–" : figure(image.score));
  if (card.dataset.id !== `${image.id}-${image.image}`) showPicture(card, image, board.prefix, onShown);
}

/** Load an image off the page and let it appear when it is decoded. */
function showPicture(card, image, prefix, onShown) {
  const picture = card.parts.image;
  const id = `${image.id}-${image.image}`;
  card.dataset.id = id;
  card.dataset.state = "load";
  picture.src = prefix + image.url;
  picture.decode().then(
    () => {
      if (card.dataset.id !== id) return;
      card.dataset.state = "here";
      card.dataset.size = picture.naturalWidth <= 128 ? "small" : "large";
      onShown(image);
    },
    () => { if (card.dataset.id === id) Object.assign(card.dataset, { state: "lost", id: "" }); },
  );
}

const figure = (value) => (Math.abs(value) >= 1000 || Number.isInteger(value) ? value.toFixed(0) : value.toPrecision(3));

/** Bring a group's prompt and its signal up to date with one of its images. */
function paintGroup(group, image, signal) {
  const { parts } = group;
  const prompt = image?.prompt ?? null;
  setText(parts.prompt, prompt === null ? "" : prompt.trim() || "(no text)");
  parts.prompt.title = prompt ?? "";
  if (!parts.verdicts) group.setAttribute("aria-label", prompt === null ? "prompt still to come" : clip(prompt, 200));
  const known = image ? signal.prompts.find((each) => each.key === promptOf(image)) : null;
  const look = !known ? "" : known.carries ? "yes" : known.open ? "" : "no";
  if (parts.teach.dataset.look === look) return;
  parts.teach.dataset.look = look;
  parts.teach.title = look === "yes" ? "Teaches: its images are rated differently" : look === "no" ? `Teaches nothing: ${whyFlat(known)}` : "";
  parts.teach.replaceChildren(...(look ? [icon(look === "yes" ? "check" : "dash"), make("span", "", look === "yes" ? "teaches" : whyFlat(known))] : []));
}

/** One tick for each image or pair, in the colour of its rating. */
function paintMeter(meter, items) {
  while (meter.children.length < items.length) meter.append(make("i"));
  while (meter.children.length > items.length) meter.lastChild.remove();
  items.forEach((item, i) => setData(meter.children[i], "mark", item ? lookOf(item) || "open" : ""));
}
