// From a key to what is meant by it. Returns a name and perhaps a value, or null for keys that are not ours.

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
const TYPING = "input, textarea, select, [contenteditable]:not([contenteditable=false]), [role=textbox], [role=combobox], [role=slider]";

/** What is said by a letter, and by a digit, in each mode of rating. */
const LETTERS = {
  thumbs: { u: 1, d: -1 },
  stars: {},
  best: { g: 1, b: 2 },
  "best-worst": { b: 1, w: -1 },
  pairs: { ArrowLeft: 1, ArrowRight: -1, ArrowUp: 0, ArrowDown: "bad", t: 0, b: "bad" },
};
const DIGITS = {
  thumbs: { 1: -1, 2: 1 },
  stars: { 1: 1, 2: 2, 3: 3, 4: 4, 5: 5 },
  best: { 1: 1, 2: 2 },
  "best-worst": { 1: -1, 2: 1 },
  pairs: { 1: 1, 2: -1 },
};

/** The digit of a key, wherever a keyboard layout puts it. */
function digitOf(event) {
  if (/^[0-9]$/.test(event.key)) return Number(event.key);
  const place = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  return place && !event.shiftKey && event.key.length === 1 ? Number(place[1]) : null;
}

function meaning(event, mode) {
  if (event.key === "?") return { act: "help" };
  const digit = digitOf(event);
  if (digit !== null) return meaningOfDigit(digit, mode);
  if (event.shiftKey) return null;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const value = LETTERS[mode]?.[key];
  if (value !== undefined) return { act: "rate", value };
  if (MOVES.includes(key)) return { act: "move", key };
  if (mode === "pairs" && ["p", "n", "f"].includes(key)) return { p: { act: "left" }, n: { act: "right" } }[key] ?? null;
  const act = { " ": "skip", Enter: "apply", z: "undo", f: "zoom", Escape: "close" }[key];
  return act ? { act } : null;
}

function meaningOfDigit(digit, mode) {
  if (digit === 0) return { act: "clear" };
  const value = DIGITS[mode]?.[digit];
  return value === undefined ? null : { act: "rate", value };
}

/** Is the key meant for something else: a text field, or a button that Space and Enter press? */
function belongsElsewhere(event, root) {
  const target = event.target instanceof Element ? event.target : document.body;
  if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.altKey || event.metaKey || target.closest(TYPING)) return true;
  if (document.querySelector("dialog[open]:not([data-ref=zoom], [data-ref=help]), [role=dialog][aria-modal=true]")) return true;
  const presses = event.key === "Enter" || event.key === " ";
  const pressable = target.closest("button, a, summary, label, [role=button], [role=tab], [role=menuitem], [role=option]");
  const selectedTab = target.closest("[role=tab][aria-selected=true]") && !root.contains(target); // pressing it again would do nothing
  return Boolean(presses && pressable && !selectedTab);
}
