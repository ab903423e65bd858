// Painting the state onto the page. Every function may be called at any time; each writes only what changed.

function paint() {
  const { board } = state;
  root.dataset.view = viewName();
  root.dataset.mode = board?.rating ?? "";
  paintTop();
  paintSaved();
  if (!board) { refs.grid.replaceChildren(); state.cards = []; return; }
  const signal = signalNow();
  buildGrid();
  paintCards();
  paintGroups(signal);
  paintDock(signal);
  paintCurrent();
  if (refs.zoom.open) paintLarge();
}

function paintCards() {
  if (isPairs()) paintPair(state.groups[0], state.pairs[state.current], `pair ${state.current + 1} of ${state.pairs.length}`, state.board, noteSide);
  else state.images.forEach((image, i) => paintCard(state.cards[i], image, state.board, noteShown));
}

function paintGroups(signal) {
  const of = (group) => (isPairs() ? state.pairs[state.current]?.left : state.images[group.start]);
  for (const group of state.groups) paintGroup(group, of(group), signal);
}

/** What one rating changes, and no more: this is what happens at a key. By itself it changes its own card, among siblings theirs too. */
function paintRating(index) {
  const signal = signalNow();
  if (COMPARES.includes(state.board.rating)) paintCards();
  else paintCard(state.cards[index], state.images[index], state.board, noteShown);
  paintGroups(signal);
  paintDock(signal);
  paintTop();
  if (refs.zoom.open && index === state.current) paintLarge();
}

/** Remember when a picture, or a pair of them, was first on the page. */
function noteShown(item) {
  if (!state.shown.has(item.key)) state.shown.set(item.key, Date.now() / 1000);
}

/** One side of the pair is there; once both are, the pair is, and the pictures of the next pairs are fetched. */
function noteSide() {
  if (!state.cards.every((card) => card.dataset.state === "here")) return;
  const pair = state.pairs[state.current];
  if (pair) noteShown(pair);
  for (const { left, right } of state.pairs.slice(state.current + 1, state.current + 3)) {
    for (const image of [left, right]) new Image().src = state.prefix + image.url;
  }
}

function viewName() {
  const { board } = state;
  if (!board) return "empty";
  if (!board.rated_by_people) return "watch";
  return isLearning(board, state.applied) ? "learning" : "rate";
}

function paintTop() {
  const { board } = state;
  const learning = board && isLearning(board, state.applied);
  setText(refs.title, board?.round ? `Round ${board.round} of ${board.rounds}` : "Rate");
  setText(refs.phase, !board ? "" : learning ? "The next images appear here by themselves." : capital(phaseText(board, false)));
  const share = board ? phaseShare(board) : null;
  refs.progress.dataset.moving = share === null ? "no" : share < 0 ? "yes" : "measured";
  refs.progress.style.setProperty("--share", Math.max(0, share ?? 0));
  const text = board ? state.notice || noticeText(board) : state.gone || (state.run ? "" : "Choose a run above, or start one on the Run page.");
  refs.notice.hidden = !text;
  setText(refs.notice_text, text);
  paintModes();
  refs.notice_button.hidden = !(board?.state === "paused");
  setText(refs.notice_button, "Resume");
}

/** The choice of modes, for those who rate. */
function paintModes() {
  const modes = state.board?.modes ?? [];
  refs.mode_label.hidden = modes.length < 2;
  const known = [...refs.mode.options].map((option) => option.value).join();
  if (known !== modes.map(([mode]) => mode).join()) refs.mode.replaceChildren(...modes.map(([mode, label]) => new Option(label, mode)));
  if (document.activeElement !== refs.mode && refs.mode.value !== state.board?.rating) refs.mode.value = state.board?.rating ?? "";
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Make the cards anew when the board has another shape; a new round of the same shape keeps them, so nothing jumps. */
function buildGrid() {
  const { board } = state;
  const size = groupSize();
  const shape = isPairs() ? "pairs" : [board.expected, size, board.rating, board.rated_by_people].join();
  if (shape === state.shape) return;
  state.shape = shape;
  state.cards = Array.from({ length: isPairs() ? 2 : state.images.length }, (_, i) => makeCard(i, board.rating, board.rated_by_people));
  state.groups = isPairs() ? [makePair(state.cards)] : [];
  for (let start = 0; start < state.cards.length && !isPairs(); start += size) {
    state.groups.push(Object.assign(makeGroup(state.cards.slice(start, start + size)), { start }));
  }
  refs.grid.dataset.grouped = isPairs() || size < state.cards.length || oneprompt() ? "yes" : "no";
  refs.grid.setAttribute("role", isPairs() ? "group" : "grid");
  refs.grid.replaceChildren(...state.groups);
  const foot = board.rated_by_people && !isPairs() ? ratingButtons(board.rating) : make("div");
  foot.dataset.ref = "zoom_buttons";
  refs.zoom_buttons.replaceWith(foot);
  refs.zoom_buttons = foot;
  arrangeCards();
}

const oneprompt = () => new Set(state.images.filter(Boolean).map((image) => image.prompt)).size < 2;

/** Images of a prompt come in a row; where they do not, one frame holds all and each card tells its prompt. */
function groupSize() {
  const { per_set: size, expected } = state.board;
  const mixed = state.images.some((image, i) => image && state.images[i - (i % size)] && image.prompt !== state.images[i - (i % size)].prompt);
  return mixed ? expected : size;
}

/** Give the cards the largest size that fits the window. */
function arrangeCards() {
  if (!state.cards.length || !refs.grid.clientWidth) return;
  const above = refs.grid.getBoundingClientRect().top + window.scrollY;
  const taken = refs.dock.offsetHeight + Math.min(above, window.innerHeight * 0.35) + 24;
  const { across, columns, side } = isPairs() ? besides(refs.grid.clientWidth, window.innerHeight - taken) : arrange(refs.grid.clientWidth, window.innerHeight - taken, state.cards.length, state.groups[0].cards.length);
  refs.grid.style.setProperty("--across", across);
  refs.grid.style.setProperty("--columns", columns);
  refs.grid.style.setProperty("--side", `${side}px`);
}

function paintCurrent() {
  if (isPairs()) return;
  state.cards.forEach((card, i) => {
    const current = i === state.current;
    if (card.tabIndex !== (current ? 0 : -1)) card.tabIndex = current ? 0 : -1;
    if (card.classList.contains("current") !== current) card.classList.toggle("current", current);
  });
}

function paintLarge() {
  const image = state.images[state.current];
  if (image) paintZoom(refs, image, state.current, state.board);
}

const NUDGE_MS = 4000;

function paintDock(signal) {
  const { board } = state;
  const learning = isLearning(board, state.applied);
  const learned = state.learned || signal.rated;
  paintMeter(refs.meter, itemsOf(state));
  setText(refs.counts, learning ? learningText(board, learned) : countsText(signal, board.rating));
  const ask = state.armed ? `${signal.open} unrated: press Enter again to apply.` : "";
  const reason = whyNotApply(board, signal);
  const nudged = performance.now() - state.nudged < NUDGE_MS ? reason : "";
  setText(refs.hint, learning ? capital(phaseText(board, true)) : ask || nudged || hintText(board, signal));
  refs.hint.classList.toggle("asks", Boolean(ask));
  refs.apply.setAttribute("aria-disabled", String(Boolean(reason) || learning));
  refs.apply.title = reason || "Apply these ratings (Enter)";
  setText(refs.apply_text, state.armed ? "Apply anyway" : "Apply");
}

function paintSaved() {
  const [look, text] = savedText(outbox, state.reachable);
  setData(refs.saved, "state", look);
  setText(refs.saved, text);
}

/** Point at the reason why nothing happened, and leave it there for a while, whatever is drawn meanwhile. */
function nudge() {
  state.nudged = performance.now();
  setText(refs.hint, whyNotApply(state.board, signalNow()));
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    refs.hint.animate([{ transform: "none" }, { transform: "translateX(4px)" }, { transform: "translateX(-3px)" }, { transform: "none" }], 220);
  }
}

begin();
