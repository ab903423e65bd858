// The board itself: one state, what people do to it, and how it is painted. Runs with `element`, `props` and `watch` from Gradio.

const refs = Object.fromEntries([...element.querySelectorAll("[data-ref]")].map((node) => [node.dataset.ref, node]));
const root = refs.board;
const storage = safeStorage();
const leaving = new AbortController();
const FAST = 250;
const SLOW = 1500;

const state = {
  run: null, prefix: "", rater: raterName(storage.get(RATER) ?? ""),
  board: null, images: [], pairs: [], cards: [], groups: [], shape: "", current: 0,
  said: new Map(), // what people who sat here before said, as far as this page knows, by run and name
  history: [], shown: new Map(), touched: new Map(), clock: 0, // clock counts what happened here, to tell old answers from new
  armed: false, applied: 0, appliedAt: 0, learned: 0, pressed: -1, nudged: -Infinity,
  reachable: true, gone: "", notice: "", late: 0, visible: false, timer: 0, asking: false, again: false,
};
const outbox = new Outbox(storage, paintSaved, acknowledged);
const listen = (target, type, heard, options = {}) => target.addEventListener(type, heard, { signal: leaving.signal, ...options });
const say = (text) => { refs.live.textContent = ""; requestAnimationFrame(() => setText(refs.live, text)); };
const address = (what) => `${state.prefix}/studio/runs/${encodeURIComponent(state.run)}/${what}`;
/** Whether what is here is this rater's: pairs and images that are shown once more are everybody's own. */
const isTheirs = () => state.board.rater === state.rater || !(isPairs() || state.images.some((image) => image?.again));
const isOpen = () => Boolean(state.board && state.board.rated_by_people && isTheirs() && !state.board.closed && !state.board.applying && state.applied !== state.board.round);
const whyClosed = () => (state.board && !isTheirs() ? "One moment: your own images are coming." : state.board?.rated_by_people ? "This round's ratings are applied." : "There is nothing to rate here.");
const signalNow = () => signalOf(state);
const isPairs = () => Boolean(state.board?.rated_by_people && state.board.rating === "pairs");
const COMPARES = ["best", "best-worst", "pairs"];

// --- asking the server ----------------------------------------------------------------------------------------------------------

/** Another run, or the first. */
function select(value) {
  const run = value?.run ?? null;
  if (run === state.run && state.prefix === (value?.url_prefix ?? "")) return;
  Object.assign(state, { run, prefix: value?.url_prefix ?? "", board: null, gone: "", notice: "", late: 0, applied: 0, current: 0, history: [], images: [], pairs: [], shown: new Map(), touched: new Map() });
  closeDialogs();
  state.shape = "";
  paint();
  refresh();
}

async function refresh() {
  clearTimeout(state.timer);
  if (state.asking) { state.again = true; return; }
  if (!root.isConnected) return leave();
  if (state.run && state.visible && !document.hidden) await ask();
  if (state.again) { state.again = false; return refresh(); }
  state.timer = setTimeout(refresh, pace());
}

/** How soon to look again. A hidden board looks only whether it is still on the page. */
function pace() {
  const { board } = state;
  if (!state.visible || document.hidden || !state.reachable || !board) return SLOW;
  const waiting = board.alive && (BUSY.includes(board.state) || board.images.length < board.expected || board.closed);
  return waiting || board.applying || state.applied === board.round ? FAST : SLOW;
}

async function ask() {
  const { run, rater, clock } = state;
  const since = state.board?.rater === rater ? state.board.revision : "";
  state.asking = true;
  try {
    const answer = await fetch(address(`board?rater=${encodeURIComponent(rater)}&since=${encodeURIComponent(since)}`), { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    const board = answer.status === 200 ? await answer.json() : null;
    if (run !== state.run || rater !== state.rater) { state.again = true; return; }
    reached(answer.status < 500);
    if (board) take({ ...board, rater, prefix: state.prefix }, clock);
    else if (answer.status >= 400 && answer.status < 500) lose(answer.status);
  } catch {
    reached(false);
  } finally {
    state.asking = false;
  }
}

function reached(yes) {
  if (yes && !state.reachable) outbox.flush();
  state.reachable = yes;
  paintSaved();
}

function lose(status) {
  const signedOut = status === 401 || status === 403;
  state.gone = status === 404 ? "This run is not there any more. Choose another."
    : signedOut ? "You are signed out. Sign in again; your ratings wait here." : `The studio does not understand this page (${status}). Load it anew; your ratings wait here.`;
  Object.assign(state, { board: null, images: [], pairs: [], shape: "" });
  paint();
}

/** What a rater has said of a run's images and pairs that the server does not know yet, by key. */
const waitingOf = ({ run, rater }) => new Map(outbox.entries().filter((each) => each.run === run && each.event.rater === rater).map(({ event }) => [keyOf(event), ratingOf(event)]));

/** A board as the server knows it, with what it cannot know yet laid over it: ratings made here since it was asked. */
function take(board, asked) {
  const before = state.board;
  const fresh = !before || before.round !== board.round;
  const here = new Map([...state.images, ...state.pairs].filter(Boolean).map((item) => [item.key, item.rating]));
  const waiting = waitingOf(board);
  const images = Array.from({ length: board.expected }, () => null);
  const known = new Map(board.images.map((image) => [image.id, image]));
  const pairs = board.pairs.map(({ left, right, rating }) => ({ key: keyOf({ sample: left, other: right }), left: known.get(left), right: known.get(right), rating }));
  for (const image of board.images) images[image.position] = Object.assign(image, { key: keyOf({ sample: image.id }) });
  for (const item of [...board.images, ...pairs]) {
    if (waiting.has(item.key)) item.rating = waiting.get(item.key);
    else if ((state.touched.get(item.key) ?? -1) > asked && here.has(item.key)) item.rating = here.get(item.key);
  }
  compare(images, pairs);
  const turned = before && before.rating !== board.rating;
  const at = pairs.findIndex((pair) => pair.key === state.pairs[state.current]?.key);
  const waits = state.pairs.every(isSettled) && state.history.at(-1)?.[0]?.key === pairs[at]?.key; // who has just judged the last one that was there
  const next = waits ? nextOpen(pairs, at) : at;
  if (state.applied && (board.closed || board.applying || (state.appliedAt && asked >= state.appliedAt))) state.applied = 0;
  Object.assign(state, { board, images, pairs, gone: "" });
  const items = itemsOf(state);
  if (fresh) turnTo(before);
  else if (turned || before.rater !== board.rater)
    Object.assign(state, { history: turned ? [] : state.history, armed: false, current: nextOpen(items, items.length - 1) });
  else if (isPairs() && at >= 0) { // pairs may come in before it while images are made
    if (next !== at) say("The next pair is here.");
    state.current = next;
  }
  paint();
}

/** A new round, or the first look at one: begin at the first image without a rating. */
function turnTo(before) {
  const items = itemsOf(state);
  const open = nextOpen(items, items.length - 1);
  const current = before || isSettled(items[open]) ? 0 : open; // where all is settled there is no open one
  Object.assign(state, { history: [], armed: false, notice: state.late ? state.notice : "", applied: 0, learned: 0, current });
  for (const { key } of [...state.images, ...state.pairs].filter(Boolean)) state.shown.delete(key); // of an earlier board that is shown again
  if (before && before.run === state.board.run) {
    closeDialogs();
    say(`Round ${state.board.round}. ${state.images.includes(null) ? "New images are coming" : "The next images are here"}.`);
    if (holdsFocus()) focusCurrent();
  }
}

const ratingOf = (event) => (event.kind === "clear" ? null : { kind: event.kind, value: event.value });

/** What an event is about: an image, or a pair of them. */
const keyOf = ({ sample, other }) => (other ? `${sample}-${other}` : `${sample}`);

// --- rating ---------------------------------------------------------------------------------------------------------------------

/** Give an image or a pair a rating (null takes it back), here at once and on the server right after. */
function put(item, rating) {
  const image = item.left ?? item;
  item.rating = rating;
  Object.assign(state, { armed: false, notice: "", late: 0, nudged: -Infinity });
  state.touched.set(item.key, ++state.clock);
  outbox.add(address("ratings"), state.run, {
    client_id: newId(), sample: image.id, image: image.image, ...(item.right ? { other: item.right.id } : {}),
    rater: state.rater, board: state.board.round, kind: rating?.kind ?? "clear", value: rating?.value ?? null, shown_at: state.shown.get(item.key) ?? null, answered_at: Date.now() / 1000,
  });
  paintRating(itemsOf(state).indexOf(item));
}

function acknowledged(entry, result) {
  if (entry.run === state.run && entry.event.rater === state.rater) state.touched.set(keyOf(entry.event), ++state.clock);
  if (entry.run !== state.run) return;
  if (result.status === 200) return result.late ? tellLate() : undefined;
  const why = typeof result.detail === "string" ? result.detail : "The server gives no reason.";
  state.notice = `A rating was not taken. ${why}`;
  say(state.notice);
  paint();
  state.touched.delete(keyOf(entry.event));
  if (state.board) state.board.revision = ""; // ask for everything again
  refresh();
}

/** The board was applied by somebody else before this browser's ratings arrived. */
function tellLate() {
  state.late += 1;
  state.notice = `${count(state.late, "rating")} came after the board was applied: kept, and not learned from with it.`;
  say(state.notice);
  paint();
}

/** Can this image or pair be rated now: is the round open, and the picture on the page? Says why not. */
function ratable(index) {
  if (!isOpen()) { say(whyClosed()); return false; }
  const cards = isPairs() ? state.cards : [state.cards[index]];
  if (itemsOf(state)[index] && cards.every((card) => ["here", "lost"].includes(card.dataset.state))) return true;
  say(`${isPairs() ? "The pair" : `Image ${index + 1}`} is still to come.`);
  return false;
}

const named = (index) => `${isPairs() ? "Pair" : "Image"} ${index + 1}`;

function same(a, b) {
  return a === b || Boolean(a && b && a.kind === b.kind && a.value === b.value);
}

function rate(index, rating, advance) {
  if (!ratable(index)) return;
  const items = itemsOf(state);
  const before = items[index].rating;
  if (!same(before, rating)) {
    const changes = [...(isPairs() ? [] : given(state.images, items[index], rating)), [items[index], rating]];
    state.history.push(changes.map(([item]) => ({ key: item.key, before: item.rating })));
    for (const [item, now] of changes) put(item, now);
  }
  const left = signalNow().open;
  say(`${named(index)} ${inWords(rating, isPairs() ? "pair" : "")}. ${left ? `${left} left` : "All rated. Press Enter to apply"}.`);
  goTo(advance ? nextOpen(items, index) : index);
}

function undo() {
  if (!isOpen()) return say(whyClosed());
  const items = itemsOf(state);
  const last = (state.history.pop() ?? []).map(({ key, before }) => [items.findIndex((item) => item?.key === key), before]).filter(([index]) => index >= 0);
  if (!last.length) return say("Nothing to undo.");
  for (const [index, before] of [...last].reverse()) put(items[index], before);
  const [index, before] = last.at(-1);
  say(`Undone: ${named(index).toLowerCase()} ${inWords(before, isPairs() ? "pair" : "")}.`);
  goTo(index);
}

/** Enter: apply what was rated, after a second Enter where images are left without a rating. */
async function apply() {
  if (!state.board) return;
  const signal = signalNow();
  const reason = state.applied ? "These ratings are applied already." : whyNotApply(state.board, signal);
  if (reason) { say(reason); return nudge(); }
  if (signal.open && !state.armed) {
    state.armed = true;
    say(`${signal.open} unrated: press Enter again to apply.`);
    return paint();
  }
  Object.assign(state, { armed: false, notice: "", applied: state.board.round, appliedAt: 0, learned: signal.rated });
  paint();
  say(`Learning from your ${count(signal.rated, "rating")}.`);
  await requestApply(state.board.round);
}

async function requestApply(number) {
  try {
    if (!(await outbox.flush())) throw new Error("Your ratings are not saved yet. Press Enter again when the server answers.");
    await request("apply", { round: number });
    state.appliedAt = ++state.clock;
  } catch (error) {
    state.applied = 0;
    say(error.message);
    state.notice = error.message;
    paint();
  }
  refresh();
}

const post = (where, content) =>
  fetch(address(where), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal: AbortSignal.timeout(PATIENCE_MS) }).catch(() => null);

async function request(kind, payload = {}) {
  const answer = await post("requests", { kind, payload });
  if (!answer) throw new Error("The server does not answer. Try again in a moment.");
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? "The server refused.");
}

// --- moving ---------------------------------------------------------------------------------------------------------------------

/** Does the board have the keyboard, rather than a text field or another part of the page? */
const holdsFocus = () => state.visible && (document.activeElement === document.body || root.contains(document.activeElement)) && document.activeElement !== refs.rater;

function focusCurrent() {
  const card = isPairs() ? state.groups[0] : state.cards[state.current];
  if (!card || refs.zoom.open || refs.help.open) return;
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function goTo(index) {
  state.current = index;
  if (isPairs()) turnPair();
  paintCurrent();
  if (refs.zoom.open) paintLarge();
  else focusCurrent();
}

/** Show the pair that is the current one now. */
function turnPair() {
  paintCards();
  paintGroups(signalNow());
  noteSide();
}

/** In the grid the arrows go by sight; in the large view they go through the images in order. */
function move(key) {
  if (!state.cards.length) return;
  if (isPairs()) return goTo(Math.max(0, Math.min(state.pairs.length - 1, state.current + (key === "ArrowLeft" ? -1 : 1))));
  if (!refs.zoom.open) return goTo(neighbour(state.cards, state.current, key));
  const step = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
  const next = state.current + step;
  if (state.images[next]) goTo(next);
}

function toggleZoom() {
  if (refs.zoom.open) return refs.zoom.close();
  if (isPairs()) return; // its pictures are large
  if (!state.images[state.current]) return say("This image is still to come.");
  paintLarge();
  openDialog(refs.zoom);
}

function toggleHelp() {
  if (refs.help.open) return refs.help.close();
  paintHelp(refs, state.board?.rating ?? "thumbs");
  openDialog(refs.help);
}

function closeDialogs() {
  for (const dialog of [refs.zoom, refs.help]) if (dialog.open) dialog.close();
}

const asRating = (value) => (value === "bad" ? { kind: "bad", value: null } : { kind: state.board.rating, value });

/** Rate in another mode from now on; what was said before stays. */
async function changeMode() {
  const mode = refs.mode.value;
  refs.mode.blur();
  const answer = await post("choices", { rating: mode });
  if (!answer?.ok) say("The mode was not changed. Try again in a moment.");
  await refresh();
  paintModes(); // the server may have nothing new to tell
  focusCurrent();
}

const ACTS = {
  move: ({ key }) => move(key),
  rate: ({ value }) => rate(state.current, asRating(value), true),
  skip: () => rate(state.current, { kind: "skip", value: null }, true),
  clear: () => rate(state.current, null, false),
  undo, zoom: toggleZoom, help: toggleHelp, close: closeDialogs,
  apply: () => (refs.zoom.open ? undefined : apply()),
  left: () => move("ArrowLeft"),
  right: () => move("ArrowRight"),
};

function onKey(event) {
  if (!root.isConnected) return leave();
  if (!state.visible || !state.board || belongsElsewhere(event, root)) return;
  const wish = meaning(event, state.board.rating);
  if (!wish || (wish.act === "close" && !refs.zoom.open && !refs.help.open)) return;
  if (refs.help.open && !["help", "close"].includes(wish.act)) return;
  event.preventDefault();
  if (!event.repeat) ACTS[wish.act](wish);
}

function onClick(event) {
  const button = event.target.closest("button");
  const card = event.target.closest(".card");
  if (button?.dataset.act) return ACTS[button.dataset.act]({});
  if (button?.dataset.rate) return clickRate(button, card);
  if ([refs.zoom, refs.help].includes(event.target)) return isBeside(event.target, event) && closeDialogs();
  if (!card || !state.board) return;
  const index = Number(card.dataset.index);
  if (isPairs()) return event.target.closest(".frame") && rate(state.current, asRating(index ? -1 : 1), true);
  const again = state.pressed === index && event.target.closest(".frame"); // it was the current one before the press
  goTo(index);
  if (again) toggleZoom();
}

/** Was it pressed beside the window, rather than on its rim? */
function isBeside(dialog, { clientX: x, clientY: y }) {
  const box = dialog.getBoundingClientRect();
  return x < box.left || x > box.right || y < box.top || y > box.bottom;
}

/** A button of a card rates that card; pressed again, it takes the rating back. In the large view the next image follows. */
function clickRate(button, card) {
  const index = card ? Number(card.dataset.index) : state.current;
  const wish = asRating(button.dataset.rate === "bad" ? "bad" : Number(button.dataset.rate));
  const held = card && same(state.images[index]?.rating ?? null, wish);
  if (itemsOf(state)[index]) rate(index, held ? null : wish, !card);
}

function renameRater() {
  const name = raterName(refs.rater.value);
  refs.rater.value = name;
  if (name === state.rater) return;
  storage.set(RATER, name);
  const there = [...state.images, ...state.pairs].filter(Boolean);
  if (there.length) state.said.set(`${state.run} ${state.rater}`, new Map(there.map((item) => [item.key, item.rating])));
  Object.assign(state, { rater: name, history: [], armed: false });
  const waiting = waitingOf(state), said = state.said.get(`${state.run} ${name}`) ?? new Map(); // what was there is the former person's
  for (const item of there) item.rating = waiting.has(item.key) ? waiting.get(item.key) : said.get(item.key) ?? null;
  if (state.board) state.board.revision = ""; // back under the first name, all is asked anew
  const items = itemsOf(state);
  state.current = nextOpen(items, items.length - 1); // a key pressed before the answer comes rates where this person begins
  paint();
  refresh();
}

function leave() {
  clearTimeout(state.timer);
  leaving.abort();
  outbox.stop();
  watcher.disconnect();
  sizer.disconnect();
}

const watcher = new IntersectionObserver((seen) => {
  const visible = seen.some((each) => each.isIntersecting);
  if (visible === state.visible) return;
  state.visible = visible;
  if (visible) { arrangeCards(); refresh(); }
});
const sizer = new ResizeObserver(() => arrangeCards());

function begin() {
  refs.rater.value = state.rater;
  listen(document, "keydown", onKey);
  listen(root, "click", onClick);
  listen(root, "mousedown", (event) => {
    state.pressed = state.current;
    if (event.target.closest("button")) event.preventDefault(); // keeps the focus on the card
  });
  listen(root, "focusin", (event) => { const card = event.target.closest(".card"); if (card && !isPairs() && Number(card.dataset.index) !== state.current) goTo(Number(card.dataset.index)); });
  listen(refs.rater, "change", renameRater);
  listen(refs.mode, "change", changeMode);
  listen(refs.rater, "keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); refs.rater.blur(); focusCurrent(); } });
  listen(refs.zoom, "close", focusCurrent);
  listen(refs.help, "close", focusCurrent);
  listen(refs.notice_button, "click", () => request("resume").then(refresh, (error) => say(error.message)));
  listen(document, "visibilitychange", () => { if (!document.hidden) refresh(); });
  listen(window, "online", () => { outbox.flush(); refresh(); });
  listen(window, "offline", () => reached(false));
  listen(window, "resize", () => arrangeCards());
  watcher.observe(root);
  sizer.observe(refs.grid);
  watch("value", () => select(props.value));
  outbox.flush();
  paint();
  select(props.value);
}
