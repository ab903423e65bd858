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

/** The name of a rating's look: up, down, skip, s1 to s5, or nothing. */
function markOf(rating) {
  if (!rating) return "";
  if (rating.kind === "skip") return "skip";
  return rating.kind === "thumbs" ? (rating.value > 0 ? "up" : "down") : `s${rating.value}`;
}

/** The buttons that rate: two thumbs, or five stars. They are for pointers; the card itself takes the keys. */
function ratingButtons(mode) {
  const row = make("div", `buttons ${mode}`);
  const choices = mode === "thumbs" ? [[-1, "down", "Rate down (D)"], [1, "up", "Rate up (U)"]] : [1, 2, 3, 4, 5].map((n) => [n, "star", `Rate ${n} of 5${STARS[n] ?? ""} (${n})`]);
  for (const [value, shape, label] of choices) {
    const button = make("button", `rate ${shape}`);
    Object.assign(button, { type: "button", tabIndex: -1, title: label });
    button.setAttribute("aria-label", label);
    button.dataset.rate = value;
    button.append(icon(shape));
    row.append(button);
  }
  return row;
}

function paintButtons(row, rating) {
  const value = rating && rating.kind !== "skip" ? rating.value : null;
  for (const button of row.children) {
    const own = Number(button.dataset.rate);
    const on = value !== null && (rating.kind === "stars" ? own <= value : own === value);
    button.classList.toggle("on", on);
    button.setAttribute("aria-pressed", String(own === value));
  }
}

function paintBadge(badge, rating) {
  const mark = markOf(rating);
  if (badge.dataset.mark === mark) return;
  badge.dataset.mark = mark;
  badge.replaceChildren();
  if (!mark) return;
  badge.append(icon(mark.startsWith("s") && mark !== "skip" ? "star" : mark));
  if (rating.kind === "stars") badge.append(String(rating.value));
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
  const foot = ratable ? ratingButtons(mode) : make("div", "score");
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

/** Bring a card up to date with its image; `onShown` hears when a new picture is on the page. */
function paintCard(card, image, board, onShown) {
  const { parts } = card;
  const index = Number(card.dataset.index);
  setData(card, "mark", markOf(image && image.rating));
  const place = `image ${index + 1} of ${board.expected}`;
  if (!image) {
    card.dataset.state = "wait";
    card.dataset.id = "";
    card.setAttribute("aria-label", `${place}, still to come`);
    card.setAttribute("aria-busy", "true");
    paintBadge(parts.badge, null);
    if (board.rated_by_people) paintButtons(parts.foot, null);
    else setText(parts.foot, "");
    return;
  }
  card.removeAttribute("aria-busy");
  const told = board.rated_by_people ? inWords(image.rating) : image.score === null ? "no score yet" : `score ${figure(image.score)}`;
  card.setAttribute("aria-label", `${place}, ${clip(image.prompt, 200) || "no text"}, ${told}`);
  setText(parts.caption, image.prompt);
  parts.caption.title = image.prompt;
  if (board.rated_by_people) {
    paintButtons(parts.foot, image.rating);
    paintBadge(parts.badge, image.rating);
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

/** Bring a group's prompt and its signal up to date. */
function paintGroup(group, prompt, signal) {
  const { parts } = group;
  setText(parts.prompt, prompt === null ? "" : prompt.trim() || "(no text)");
  parts.prompt.title = prompt ?? "";
  group.setAttribute("aria-label", prompt === null ? "prompt still to come" : clip(prompt, 200));
  const known = prompt === null ? null : signal.prompts.find((each) => each.prompt === prompt);
  const look = !known ? "" : known.carries ? "yes" : known.open ? "" : "no";
  if (parts.teach.dataset.look === look) return;
  parts.teach.dataset.look = look;
  parts.teach.title = look === "yes" ? "Teaches: its images are rated differently" : look === "no" ? `Teaches nothing: ${whyFlat(known)}` : "";
  parts.teach.replaceChildren(...(look ? [icon(look === "yes" ? "check" : "dash"), make("span", "", look === "yes" ? "signal" : whyFlat(known))] : []));
}

/** One tick for each image, in the colour of its rating. */
function paintMeter(meter, images) {
  while (meter.children.length < images.length) meter.append(make("i"));
  while (meter.children.length > images.length) meter.lastChild.remove();
  images.forEach((image, i) => setData(meter.children[i], "mark", image ? markOf(image.rating) || "open" : ""));
}
