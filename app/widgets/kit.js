// Shared by all widgets. Gradio gives: element, trigger, props, server, watch. Text is always set as text.
const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title", "style"]);

// An element: h("p", {class: "x", key: "stable identity"}, "text", child, null, [more])
function h(tag, attributes, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "key") node.setAttribute("data-key", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined && child !== false) node.append(child.nodeType ? child : String(child));
  }
  return node;
}

// Make `old` look like `fresh`, keeping what did not change: focus, open details, loaded images and running transitions stay.
function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || (old.nodeType === 1 && old.getAttribute("data-key") !== fresh.getAttribute("data-key"))) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType === 3) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.hasAttribute("data-own")) return; // filled by somebody else
  morphChildren(old, [...fresh.childNodes]);
}

function morphChildren(parent, fresh) {
  const keyed = new Map();
  for (const child of parent.children) if (child.dataset?.key) keyed.set(child.dataset.key, child);
  fresh.forEach((node, at) => {
    const known = node.nodeType === 1 && node.dataset?.key ? keyed.get(node.dataset.key) : null;
    const present = parent.childNodes[at];
    if (known && known !== present) parent.insertBefore(known, present || null);
    const old = parent.childNodes[at];
    if (old) morph(old, node);
    else parent.append(node);
  });
  while (parent.childNodes.length > fresh.length) parent.lastChild.remove();
}

// Show view(value) now, whenever the server sends a value, and on redraw(). Gradio's own template stays empty.
let redraw = () => {};
function show(view, after) {
  redraw = () => {
    morphChildren(element, [view(props.value || {})].flat(3).filter(Boolean));
    after?.(props.value || {});
  };
  watch("value", redraw);
  redraw();
}

// What stands here until the first value has come.
function waiting() {
  return h("div", { class: "s-card s-waiting", key: "waiting", "aria-busy": true, "aria-label": "Loading" });
}

// Clicks on anything with data-act become the widget's one event, with the element's other data as its parameters.
function onAct(handler) {
  element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (!button || !element.contains(button) || button.disabled || button.getAttribute("aria-disabled") === "true") return;
    event.preventDefault();
    handler({ ...button.dataset }, button);
  });
}

function act(what, button) {
  if (button) {
    button.disabled = true; // at once; the next value, or a redraw if none comes, says how it goes on
    setTimeout(() => { button.disabled = false; redraw(); }, 2500);
  }
  trigger("act", what);
}

// A question with a safe answer in focus. Resolves to true only for a clear yes.
function ask({ title, text, yes, no = "Cancel" }) {
  return new Promise((answer) => {
    const back = document.activeElement;
    const dialog = h("dialog", { class: "s-dialog", "aria-labelledby": "s-dialog-title" },
      h("form", { method: "dialog" },
        h("h3", { id: "s-dialog-title" }, title), h("p", {}, text),
        h("div", { class: "s-row s-end" }, h("button", { class: "s-button", value: "no", autofocus: true }, no),
          h("button", { class: "s-button s-danger", value: "yes" }, yes))));
    dialog.addEventListener("close", () => {
      answer(dialog.returnValue === "yes");
      dialog.remove();
      back?.focus?.();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Whether to go on from a round of this run, in a new one.
function askToGoOn(round, alive) {
  return ask({ title: `Go on from round ${round}?`, yes: "Go on",
    text: `A new run begins with what the model had learned after round ${round}. ${alive ? "This run is stopped; e" : "E"}verything that it made is kept.` });
}

function askToRollBack(round, alive) {
  return ask({ title: `Roll back to round ${round}?`, yes: "Roll back",
    text: `${alive ? "This run is stopped. " : ""}Round ${round} is what you take away and compare. Later rounds are kept, and “Take the latest again” undoes it.` });
}

// Run `work` every second until the widget leaves the page.
function everySecond(work) {
  const timer = setInterval(() => (element.isConnected ? work() : clearInterval(timer)), 1000);
}

function openTab(name) {
  for (const tab of document.querySelectorAll('button[role="tab"]')) {
    if (tab.textContent.trim() === name) tab.click();
  }
}

// Go to a run's panel of files. A page that was never open has no panel yet, which looks for the run's name once it has.
function takeAway(run) {
  window.studioTakeAway = run;
  openTab("Progress");
  window.dispatchEvent(new CustomEvent("studio:take-away"));
}

// Go to the comparison of a run's base model with what it was after a round, or with a share of what was trained until then.
function compareWith(run, round, strength = 1) {
  window.studioCompare = { run, round, strength };
  openTab("Compare");
  window.dispatchEvent(new CustomEvent("studio:compare"));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s < 600 && s % 60 ? ` ${s % 60} s` : ""}`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} days`;
}

// Time left now, from an estimate made at a moment in the past.
function timeLeft(value) {
  if (value.left === null || value.left === undefined) return "";
  const left = value.left - Math.max(0, Date.now() / 1000 - value.changed_at);
  if (left < -5) return ""; // the estimate was wrong
  return left < 1 ? "almost done" : `about ${duration(left)} left`;
}

function clock(seconds) {
  const date = new Date(seconds * 1000), today = new Date().toDateString() === date.toDateString();
  return date.toLocaleString(undefined, today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}

function short(text, limit = 160) {
  const letters = [...text];
  return letters.length > limit ? `${letters.slice(0, limit).join("")}…` : text;
}
