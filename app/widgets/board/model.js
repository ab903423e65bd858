// What the board knows, as plain functions: opinions, signal, where to go next. Nothing here touches the page.

const STARS = { 1: ", poor", 3: ", fair", 5: ", excellent" }; // the anchors

/** Is this image or pair dealt with: rated, skipped, or said by what others of its prompt were named? */
const isSettled = (item) => Boolean(item && (item.rating || item.implied));

const isRated = (item) => isSettled(item) && item.rating?.kind !== "skip";

const has = (image, kind) => image.rating?.kind === kind;

/** The images of one prompt on one board: those of an earlier one, shown once more, are among themselves. */
const promptOf = (image) => `${image.again ? "again " : ""}${image.prompt}`;

/** Things by what they have in common, in the order in which they come. */
function groups(things, key) {
  const found = new Map();
  for (const thing of things) found.set(key(thing), [...(found.get(key(thing)) ?? []), thing]);
  return [...found.values()];
}

/** What one's marks and verdicts say of each image, as rewards/human.py has it: `statements` from -1 to 1, and `implied`, what an image without
 * a mark is by those of its siblings: "passed" over, or in the "middle". */
function compare(images, pairs) {
  const here = images.filter(Boolean);
  for (const image of here) Object.assign(image, { statements: [byItself(image.rating)].filter((value) => value !== null), implied: "" });
  const imply = (image, value, look) => {
    if (has(image, "skip")) return;
    image.statements.push(value);
    if (!image.rating) image.implied ||= look;
  };
  for (const siblings of groups(here, promptOf)) {
    const starred = siblings.some((image) => has(image, "best") && image.rating.value === 2);
    if (!siblings.some((image) => has(image, "best"))) continue;
    for (const image of siblings) {
      if (has(image, "best")) image.statements.push(image.rating.value / 2);
      else imply(image, -0.5, starred ? "passed" : "");
    }
  }
  for (const set of groups(here, (image) => image.set)) {
    const named = set.filter((image) => has(image, "best-worst"));
    for (const image of named) image.statements.push(image.rating.value);
    if (new Set(named.map((image) => image.rating.value)).size < 2) continue;
    for (const image of set) if (!named.includes(image)) imply(image, 0, "middle");
  }
  for (const [image, strength] of strengths(pairs)) image.statements.push(strength);
}

/** The strengths of judged images from -1 to 1: Bradley and Terry's model with ties and a ridge, as rewards/pairs.py has it, found one image at a time. */
function strengths(pairs) {
  const told = pairs.filter(({ rating }) => rating?.kind === "pairs").map(({ left, right, rating }) => [left, right, rating.value]);
  const bad = new Set(pairs.filter(({ rating }) => rating?.kind === "bad").flatMap(({ left, right }) => [left, right]));
  const theta = new Map([...told.flatMap(([left, right]) => [left, right]), ...bad].map((image) => [image, 0]));
  const duels = new Map([...theta.keys()].map((image) => [image, [
    ...told.filter(([left]) => left === image).map(([, right, said]) => [right, said]),
    ...told.filter(([, right]) => right === image).map(([left, , said]) => [left, -said]),
    ...(bad.has(image) ? [[null, -1]] : []), // worse than an image of strength 0
  ]]));
  for (let sweep = 0, moved = 1; sweep < 500 && moved > 1e-10; sweep += 1) {
    moved = 0;
    for (const [image, against] of duels) {
      let slope = -theta.get(image) / 4, bend = 1 / 4;
      for (const [rival, said] of against) {
        const d = theta.get(image) - (rival ? theta.get(rival) : 0);
        const z = 2 * Math.cosh(d / 2) + 1;
        slope += said / 2 - Math.sinh(d / 2) / z;
        bend += (1 + Math.cosh(d / 2) / 2) / z ** 2;
      }
      const step = Math.max(-1, Math.min(1, slope / bend));
      theta.set(image, theta.get(image) + step);
      moved = Math.max(moved, Math.abs(step));
    }
  }
  return [...theta].map(([image, strength]) => [image, Math.tanh(strength / 2)]);
}

/** What a mark says of its image by itself, from -1 to 1, or null where it says nothing. */
function byItself(rating) {
  if (rating?.kind === "thumbs") return rating.value;
  return rating?.kind === "stars" ? (rating.value - 3) / 2 : null;
}

/** An image's score over all raters: this one's opinion, as it stands here, with what the others said. */
function score(image) {
  const [sum, count] = image.others;
  const own = image.statements;
  const raters = count + (own.length ? 1 : 0);
  return raters ? (sum + (own.length ? own.reduce((a, b) => a + b) / own.length : 0)) / raters : null;
}

/** What a rating says, as people read and hear it. */
function inWords(rating, implied = "") {
  if (!rating) return { passed: "passed over", middle: "neither best nor worst", pair: "not judged" }[implied] ?? "not rated";
  const { kind, value } = rating;
  if (kind === "skip") return "skipped";
  if (kind === "bad") return "judged: both bad";
  if (kind === "thumbs") return value > 0 ? "rated up" : "rated down";
  if (kind === "best") return value === 2 ? "starred as the best" : "picked as good";
  if (kind === "best-worst") return value > 0 ? "named the best" : "named the worst";
  if (kind === "pairs") return `judged: ${{ 1: "left is better", 0: "equally good", "-1": "right is better" }[value]}`;
  return `rated ${value} of 5 stars${STARS[value] ?? ""}`;
}

/** What is rated one by one: the images, or pairs of them. */
const itemsOf = ({ images, pairs, board }) => (board?.rating === "pairs" ? pairs : images);

/** What the ratings teach so far, by prompt: only differences within a prompt do, and images that are shown once more teach nothing. */
function signalOf(state) {
  const { images, pairs, board } = state;
  const items = itemsOf(state);
  compare(images, pairs);
  const all = groups(images.filter(Boolean), promptOf).map((siblings) => {
    const values = siblings.map(score).filter((value) => value !== null);
    const own = items === pairs ? pairs.filter((pair) => siblings.includes(pair.left)) : siblings;
    const carries = new Set(values.map((value) => value.toFixed(6))).size > 1;
    return { key: promptOf(siblings[0]), prompt: siblings[0].prompt, again: siblings[0].again, values, carries, open: own.filter((each) => !isSettled(each)).length };
  });
  const missing = images.filter((image) => !image).length;
  return {
    prompts: all,
    total: missing ? Math.max(all.length, Math.ceil(board.expected / board.per_prompt)) : all.length,
    carrying: all.filter((each) => each.carries).length,
    teaching: all.filter((each) => each.carries && !each.again).length,
    items: items === pairs ? pairs.length : board.expected,
    rated: items.filter(isRated).length,
    skipped: items.filter((item) => isSettled(item) && !isRated(item)).length,
    open: items.filter((item) => item && !isSettled(item)).length,
    missing,
  };
}

/** Why a prompt teaches nothing. */
const whyFlat = (prompt) => (prompt.values.length < 2 ? `${prompt.values.length || "none"} rated` : "all the same");

/** The next place without a rating, going round: one with an image first, else one that an image is coming to. */
function nextOpen(items, from) {
  const order = items.map((_, step) => (from + 1 + step) % items.length);
  const found = order.find((i) => items[i] && !isSettled(items[i])) ?? order.find((i) => !items[i]);
  return found ?? Math.max(0, from);
}

/** What else changes with a rating, as pairs of image and rating: a prompt has one best, and a set one best and one worst. */
function given(images, image, rating) {
  const rivals = (same) => images.filter((each) => each && each !== image && same(each) && has(each, rating.kind) && each.rating.value === rating.value);
  if (rating?.kind === "best" && rating.value === 2) return rivals((each) => promptOf(each) === promptOf(image)).map((each) => [each, { kind: "best", value: 1 }]);
  if (rating?.kind === "best-worst") return rivals((each) => each.set === image.set).map((each) => [each, null]);
  return [];
}

/** "12 s", "3 min", "2 h": how long, roughly. */
function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

const clip = (text, length) => ([...text].length > length ? `${[...text].slice(0, length - 1).join("")}…` : text);

/** A prompt as one line, for a sentence. */
const quoted = (prompt) => `“${clip(prompt.replace(/\s+/g, " ").trim() || "no text", 32)}”`;
