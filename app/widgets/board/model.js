// What the board knows, as plain functions: opinions, signal, where to go next. Nothing here touches the page.

const STARS = { 1: ", poor", 3: ", fair", 5: ", excellent" }; // the anchors

/** Is this image dealt with: rated or skipped? */
const isSettled = (image) => Boolean(image && image.rating);

const isRated = (image) => isSettled(image) && image.rating.kind !== "skip";

/** A rating on the common scale from -1 to 1, or null where it says nothing. */
function opinion(rating) {
  if (!rating || rating.value === null) return null;
  return rating.kind === "thumbs" ? rating.value : (rating.value - 3) / 2;
}

/** An image's score over all raters: this one's rating, as it stands here, with what the others said. */
function score(image) {
  const own = opinion(image.rating);
  const [sum, count] = image.others;
  const raters = count + (own === null ? 0 : 1);
  return raters ? (sum + (own ?? 0)) / raters : null;
}

/** A rating in words, as people read and hear it. */
function inWords(rating) {
  if (!rating) return "not rated";
  if (rating.kind === "skip") return "skipped";
  if (rating.kind === "thumbs") return rating.value > 0 ? "rated up" : "rated down";
  return `rated ${rating.value} of 5 stars${STARS[rating.value] ?? ""}`;
}

/** What the ratings teach so far, by prompt: only differences within a prompt do. */
function signalOf(images, expected, perPrompt) {
  const prompts = new Map();
  for (const image of images.filter(Boolean)) {
    const found = prompts.get(image.prompt) ?? { prompt: image.prompt, values: [], open: 0 };
    const value = score(image);
    if (value !== null) found.values.push(value);
    if (!isSettled(image)) found.open += 1;
    prompts.set(image.prompt, found);
  }
  const all = [...prompts.values()].map((each) => ({ ...each, carries: new Set(each.values).size > 1 }));
  const missing = images.filter((image) => !image).length;
  return {
    prompts: all,
    total: missing ? Math.max(all.length, Math.ceil(expected / perPrompt)) : all.length,
    carrying: all.filter((each) => each.carries).length,
    rated: images.filter(isRated).length,
    skipped: images.filter((image) => isSettled(image) && !isRated(image)).length,
    open: images.filter((image) => image && !isSettled(image)).length,
    missing,
  };
}

/** Why a prompt teaches nothing. */
const whyFlat = (prompt) => (prompt.values.length < 2 ? `${prompt.values.length || "none"} rated` : "all the same");

/** The next place without a rating, going round: one with an image first, else one that an image is coming to. */
function nextOpen(images, from) {
  const order = images.map((_, step) => (from + 1 + step) % images.length);
  const found = order.find((i) => images[i] && !isSettled(images[i])) ?? order.find((i) => !images[i]);
  return found ?? from;
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
