// Painting the state onto the page. Every function may be called at any time; each writes only what changed.

function paint() {
  const { board } = state;
  root.dataset.view = viewName();
  paintTop();
  paintSaved();
  if (!board) { refs.grid.replaceChildren(); state.cards = []; return; }
  buildGrid();
  const signal = signalNow();
  state.images.forEach((image, i) => paintCard(state.cards[i], image, board, noteShown));
  for (const group of state.groups) paintGroup(group, state.images[group.start]?.prompt ?? null, signal);
  paintDock(signal);
  paintCurrent();
  if (refs.zoom.open) paintLarge();
}

/** What one rating changes, and no more: this is what happens at a key. */
function paintRating(index) {
  const signal = signalNow();
  paintCard(state.cards[index], state.images[index], state.board, noteShown);
  for (const group of state.groups) paintGroup(group, state.images[group.start]?.prompt ?? null, signal);
  paintDock(signal);
  paintTop();
  if (refs.zoom.open && index === state.current) paintLarge();
}

/** Remember when a picture was first on the page. */
function noteShown(image) {
  if (!state.shown.has(image.id)) state.shown.set(image.id, Date.now() / 1000);
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
  refs.notice_button.hidden = !(board?.state === "paused");
  setText(refs.notice_button, "Resume");
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Make the cards anew when the board has another shape; a new round of the same shape keeps them, so nothing jumps. */
function buildGrid() {
  const { board } = state;
  const size = groupSize();
  const shape = [board.expected, size, board.rating, board.rated_by_people].join();
  if (shape === state.shape) return;
  state.shape = shape;
  state.cards = state.images.map((_, i) => makeCard(i, board.rating, board.rated_by_people));
  state.groups = [];
  for (let start = 0; start < state.cards.length; start += size) {
    state.groups.push(Object.assign(makeGroup(state.cards.slice(start, start + size)), { start }));
  }
  refs.grid.dataset.grouped = size < state.cards.length || oneprompt() ? "yes" : "no";
  refs.grid.replaceChildren(...state.groups);
  refs.zoom_buttons.replaceChildren(...(board.rated_by_people ? [ratingButtons(board.rating)] : []));
  arrangeCards();
}

const oneprompt = () => new Set(state.images.filter(Boolean).map((image) => image.prompt)).size < 2;

/** Images of a prompt come in a row; where they do not, one frame holds all and each card tells its prompt. */
function groupSize() {
  const { per_prompt: size, expected } = state.board;
  const mixed = state.images.some((image, i) => image && state.images[i - (i % size)] && image.prompt !== state.images[i - (i % size)].prompt);
  return mixed ? expected : size;
}

/** Give the cards the largest size that fits the window. */
function arrangeCards() {
  if (!state.cards.length || !refs.grid.clientWidth) return;
  const above = refs.grid.getBoundingClientRect().top + window.scrollY;
  const taken = refs.dock.offsetHeight + Math.min(above, window.innerHeight * 0.35) + 24;
  const { across, columns, side } = arrange(refs.grid.clientWidth, window.innerHeight - taken, state.cards.length, state.groups[0].cards.length);
  refs.grid.style.setProperty("--across", across);
  refs.grid.style.setProperty("--columns", columns);
  refs.grid.style.setProperty("--side", `${side}px`);
}

function paintCurrent() {
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

function paintDock(signal) {
  const { board } = state;
  const learning = isLearning(board, state.applied);
  const learned = state.learned || signal.rated;
  paintMeter(refs.meter, state.images);
  setText(refs.counts, learning ? `Learning from your ${count(learned, "rating")}…` : countsText(signal, board.expected));
  const ask = state.armed ? `${signal.open} unrated: press Enter again to apply.` : "";
  const reason = whyNotApply(board, signal);
  setText(refs.hint, learning ? capital(phaseText(board, true)) : ask || hintText(board, signal));
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

/** Point at the reason why nothing happened. */
function nudge() {
  setText(refs.hint, whyNotApply(state.board, signalNow()));
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    refs.hint.animate([{ transform: "none" }, { transform: "translateX(4px)" }, { transform: "translateX(-3px)" }, { transform: "none" }], 220);
  }
}

begin();
