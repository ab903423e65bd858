// One pair, large: as a slider, flickering, side by side, or as its difference. Uses the state of widget.js.

let large = null;
const MODES = ["Slider", "Flicker", "Side by side", "Difference"];

function enlarge(at, c) {
  const r = rows()[at], seed = seeds()[c];
  if (!r?.prompt || ![0, 1].some((i) => shown(i, r.prompt, seed).key)) return;
  const dialog = h("dialog", { class: "s-dialog cmp-large", "aria-label": "One pair, large", tabindex: -1 });
  large = { dialog, row: r.key, prompt: r.prompt, seed, wipe: 50, held: false, zoom: 1, x: 0, y: 0, gain: 4 };
  state.at = [at, c];
  wire(dialog);
  document.body.append(dialog);
  drawLarge();
  dialog.showModal();
  dialog.focus(); // not its first button
}

function step(rowsBy, seedsBy) {
  const list = rows(), all = seeds();
  let at = list.findIndex((r) => r.key === large.row), c = all.indexOf(large.seed);
  do { at += rowsBy; } while (list[at] && !list[at].prompt && rowsBy);
  c += seedsBy;
  if (!list[at] || all[c] === undefined) return;
  Object.assign(large, { row: list[at].key, prompt: list[at].prompt, seed: all[c] });
  state.at = [at, c];
  draw();
  ask();
}

function stageView() {
  const image = (i, more) => {
    const { key: found, old } = shown(i, large.prompt, large.seed);
    return found ? h("img", { src: `/studio/compare/picture/${found}`, alt: `${"AB"[i]}: ${titleOf(i)}`, "data-old": old, draggable: "false", ...more }) : h("span", { class: "cmp-gap", "data-waits": true, ...more });
  };
  const tag = (i, place) => h("b", { class: "cmp-letter cmp-tag", "data-place": place, key: `t${place}` }, "AB"[i]);
  if (state.mode === 1) return h("div", { class: "cmp-stage", key: "wipe", "data-wipe": "", style: `--at: ${large.wipe}%` }, image(0, { key: "a" }), image(1, { key: "b", class: "cmp-over" }), h("i", { class: "cmp-line" }), tag(0, "left"), tag(1, "right"));
  if (state.mode === 2) return h("div", { class: "cmp-stage", key: "flicker", "data-hold": "" }, image(0, { key: "a" }), image(1, { key: "b", hidden: !large.held }), tag(large.held ? 1 : 0, "left"));
  if (state.mode === 3) return h("div", { class: "cmp-both", key: "both", style: `--z: ${large.zoom}; --x: ${large.x}px; --y: ${large.y}px` }, [0, 1].map((i) =>
    h("div", { class: "cmp-stage", key: `p${i}`, "data-pan": "", "data-sharp": large.zoom > 2 }, image(i, { key: "i" }), tag(i, "left"))));
  return h("div", { class: "cmp-stage", key: "difference" }, h("canvas", { "data-difference": "", "data-own": "", role: "img", "aria-label": "Where the two differ" }));
}

function handleView() {
  if (state.mode === 1) return h("label", { class: "cmp-handle", key: "h1" }, h("span", {}, "A"), h("input", { type: "range", min: 0, max: 100, "data-own": "", "data-at": "", "aria-label": "How much of A is shown" }), h("span", {}, "B"));
  if (state.mode === 2) return h("p", { class: "cmp-handle s-muted", key: "h2" }, "Hold Space, or press on the picture, to see B.");
  if (state.mode === 3) return h("div", { class: "cmp-handle s-muted", key: "h3" }, h("button", { class: "s-button s-small", "data-zoom": 1 / 1.5, "aria-label": "Zoom out" }, "−"),
    h("button", { class: "s-button s-small", "data-zoom": 1.5, "aria-label": "Zoom in" }, "+"), h("span", {}, "Both zoom and move together: wheel or two fingers, drag, keys + − 0."));
  return h("p", { class: "cmp-handle s-muted", key: "h4" }, h("span", { "data-mean": "", "data-own": "", role: "status" }), h("label", {}, " Brightened ", h("input", { type: "range", min: 1, max: 16, "data-gain": "", "data-own": "", "aria-label": "How much differences are brightened" })));
}

function drawLarge() {
  if (!large) return;
  const [a, b] = [0, 1].map((i) => key(i, large.prompt, large.seed));
  morphChildren(large.dialog, [
    h("div", { class: "cmp-bar" },
      h("div", { class: "rw-switch", role: "group", "aria-label": "How to look" }, MODES.map((name, i) => h("button", { class: "cmp-mode", "data-mode": i + 1, "aria-pressed": String(state.mode === i + 1), key: name }, name, h("kbd", {}, String(i + 1))))),
      h("div", { class: "s-row" }, h("button", { class: "s-button s-small", "data-go": "-1", "aria-label": "Previous pair" }, "‹"), h("button", { class: "s-button s-small", "data-go": "1", "aria-label": "Next pair" }, "›"),
        h("button", { class: "s-button s-small", "data-go": "0" }, "Close"))),
    stageView(), handleView(),
    h("div", { class: "cmp-told" }, h("p", { class: "cmp-names" }, h("span", {}, h("b", { class: "cmp-letter" }, "A"), ` ${titleOf(0)}`), h("span", {}, h("b", { class: "cmp-letter" }, "B"), ` ${titleOf(1)}`)), valuesView(a, b)),
    h("div", { class: "cmp-strengths" }, [0, 1].map((i) => (isBase(state.sides[i]) ? null : strengthView(i, `Strength of ${"AB"[i]}`)))),
    h("p", { class: "cmp-caption" }, short(large.prompt, 400), h("small", { class: "s-muted" }, ` seed ${large.seed}`)),
  ]);
  const range = large.dialog.querySelector("[data-at]"), gain = large.dialog.querySelector("[data-gain]");
  if (range) range.value = large.wipe;
  if (gain) gain.value = large.gain;
  if (state.mode === 4) drawDifference();
}

const MOST_IMAGES = 64, images = new Map();
// A picture's pixels, kept while they are among those used last; one that does not come is asked for anew the next time.
function loaded(picture) {
  const found = images.get(picture) || new Promise((done, fail) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => { images.delete(picture); fail(); };
    image.src = `/studio/compare/picture/${picture}`;
  });
  images.delete(picture);
  images.set(picture, found);
  if (images.size > MOST_IMAGES) images.delete(images.keys().next().value);
  return found;
}

async function drawDifference() {
  const now = () => (large ? [0, 1].map((i) => shown(i, large.prompt, large.seed).key) : []);
  const pictures = now();
  if (!pictures.every(Boolean)) return;
  const both = await Promise.all(pictures.map(loaded)).catch(() => null), canvas = large?.dialog.querySelector("[data-difference]");
  if (!both || !canvas || pictures.join() !== now().join()) return; // another pair is shown by now
  const width = Math.max(...both.map((i) => i.naturalWidth)), height = Math.max(...both.map((i) => i.naturalHeight));
  const pixels = both.map((image) => {
    const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height);
  });
  const [a, b] = pixels.map((p) => p.data), out = new ImageData(width, height);
  let sum = 0;
  for (let i = 0; i < a.length; i += 1) {
    const by = Math.abs(a[i] - b[i]);
    if (i % 4 < 3) sum += by;
    out.data[i] = i % 4 === 3 ? 255 : by * large.gain;
  }
  Object.assign(canvas, { width, height }).getContext("2d").putImageData(out, 0, 0);
  const mean = large.dialog.querySelector("[data-mean]"), text = `Mean difference ${((100 * sum) / (255 * width * height * 3)).toFixed(1)} %.`;
  if (mean && mean.textContent !== text) mean.textContent = text;
}

function wire(dialog) {
  const changed = () => drawLarge();
  dialog.addEventListener("click", (event) => {
    const { mode, go: by, zoom: factor } = event.target.closest("button")?.dataset || {};
    if (event.target === dialog || by === "0") dialog.close();
    else if (mode) { state.mode = Number(mode); keep(); changed(); } else if (factor) zoom(Number(factor));
    else if (by) next(Number(by));
  });
  const next = (by) => {
    const c = seeds().indexOf(large.seed) + by;
    if (seeds()[c] !== undefined) step(0, by);
    else step(by, -by * (state.count - 1));
  };
  // Zoom both pictures; what lies at a place, seen from the middle of its picture, stays there.
  const zoom = (by, at = { x: 0, y: 0 }) => {
    const was = large.zoom;
    large.zoom = Math.min(16, Math.max(1, was * by));
    if (large.zoom === 1) Object.assign(large, { x: 0, y: 0 });
    else for (const axis of ["x", "y"]) large[axis] = at[axis] - ((at[axis] - large[axis]) * large.zoom) / was;
    changed();
  };
  const within = (stage, x, y) => {
    const box = stage.getBoundingClientRect();
    return { x: x - box.left - box.width / 2, y: y - box.top - box.height / 2 };
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const slides = event.target.matches("[data-strength], [data-gain]"), arrow = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if ("1234".includes(event.key)) { state.mode = Number(event.key); keep(); changed(); } else if (event.key === " " && state.mode === 2 && !event.target.closest("button:not([data-mode='2'])")) { large.held = true; changed(); } else if (arrow && !(slides && arrow[1])) {
      if (state.mode === 1 && arrow[1]) { large.wipe = Math.min(100, Math.max(0, large.wipe + arrow[1] * (event.shiftKey ? 10 : 2))); changed(); } else step(...arrow);
    } else if (state.mode === 3 && "+=".includes(event.key)) zoom(1.5);
    else if (state.mode === 3 && event.key === "-") zoom(1 / 1.5);
    else if (state.mode === 3 && event.key === "0") zoom(0);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("keyup", (event) => { if (event.key === " " && large.held) { event.preventDefault(); large.held = false; changed(); } });
  let held = null;
  const fingers = new Map(); // on a picture that can be moved: where each is
  const grip = () => {
    const [a, b] = fingers.values();
    return { apart: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  };
  const pinch = (event) => {
    const was = grip();
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const now = grip(), at = within(held.stage, was.x, was.y);
    Object.assign(large, { x: large.x + now.x - was.x, y: large.y + now.y - was.y });
    zoom(now.apart / Math.max(1, was.apart), { x: at.x + now.x - was.x, y: at.y + now.y - was.y });
  };
  dialog.addEventListener("pointerdown", (event) => {
    const stage = event.target.closest("[data-wipe], [data-hold], [data-pan]");
    if (!stage) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    if ("pan" in stage.dataset) fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    held = { stage, x: event.clientX - large.x, y: event.clientY - large.y };
    if ("hold" in stage.dataset) { large.held = true; changed(); } else move(event);
  });
  const move = (event) => {
    if (!held) return;
    if (fingers.size > 1) return fingers.has(event.pointerId) && fingers.size === 2 ? pinch(event) : null;
    const box = held.stage.getBoundingClientRect();
    if ("wipe" in held.stage.dataset) large.wipe = Math.round(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
    else if ("pan" in held.stage.dataset && large.zoom > 1) Object.assign(large, { x: event.clientX - held.x, y: event.clientY - held.y });
    else return;
    changed();
  };
  dialog.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel"]) {
    dialog.addEventListener(kind, (event) => {
      if (held && "hold" in held.stage.dataset) { large.held = false; changed(); }
      fingers.delete(event.pointerId);
      const [left] = fingers.values();
      held = left ? { stage: held.stage, x: left.x - large.x, y: left.y - large.y } : null; // the finger that is still there goes on
    });
  }
  dialog.addEventListener("wheel", (event) => {
    const stage = event.target.closest("[data-pan]");
    if (!stage) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, within(stage, event.clientX, event.clientY));
  }, { passive: false });
  dialog.addEventListener("input", ({ target }) => {
    if (target.matches("[data-at]")) { large.wipe = Number(target.value); changed(); } else if (target.matches("[data-gain]")) { large.gain = Number(target.value); changed(); } else if (target.matches("[data-strength]")) strength(target);
  });
  dialog.addEventListener("close", () => {
    state.at = [rows().findIndex((r) => r.key === large.row), seeds().indexOf(large.seed)]; // the browser has gone back to where it began
    dialog.remove();
    large = null;
    draw();
    focusCell();
    ask();
  });
}
