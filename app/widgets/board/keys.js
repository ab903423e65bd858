// From a key to what is meant by it. Returns a name and perhaps a value, or null for keys that are not ours.

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
const TYPING = "input, textarea, select, [contenteditable]:not([contenteditable=false]), [role=textbox], [role=combobox], [role=slider]";

/** The digit of a key, wherever a keyboard layout puts it. */
function digitOf(event) {
  if (/^[0-9]$/.test(event.key)) return Number(event.key);
  const place = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  return place && !event.shiftKey && event.key.length === 1 ? Number(place[1]) : null;
}

function meaning(event, mode) {
  if (MOVES.includes(event.key)) return event.shiftKey ? null : { act: "move", key: event.key };
  if (event.key === "?") return { act: "help" };
  const digit = digitOf(event);
  if (digit !== null) return meaningOfDigit(digit, mode);
  if (event.shiftKey) return null;
  const act = { " ": "skip", Enter: "apply", z: "undo", f: "zoom", Escape: "close" }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act) return { act };
  const thumb = { u: 1, d: -1 }[event.key.toLowerCase()];
  return thumb && mode === "thumbs" ? { act: "rate", value: thumb } : null;
}

function meaningOfDigit(digit, mode) {
  if (digit === 0) return { act: "clear" };
  if (mode === "stars") return digit <= 5 ? { act: "rate", value: digit } : null;
  return digit <= 2 ? { act: "rate", value: digit === 1 ? -1 : 1 } : null;
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
