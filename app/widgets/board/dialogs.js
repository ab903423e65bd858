// The two windows over the board: one image large, and the keys.

/** Show one image large, with its whole prompt. */
function paintZoom(refs, image, index, board) {
  const large = refs.zoom_image;
  const address = board.prefix + image.url;
  if (large.getAttribute("src") !== address) large.src = address;
  large.alt = clip(image.prompt, 200);
  setData(refs.zoom, "mark", lookOf(image));
  setText(refs.zoom_place, `Image ${index + 1} of ${board.expected} · ${inWords(image.rating, image.implied)}`);
  setText(refs.zoom_text, image.prompt);
  paintBadge(refs.zoom_badge, markOf(image.rating));
  paintButtons(refs.zoom_buttons, image.rating);
}

/** The keys of a mode, as pairs of key and meaning. */
function keysOf(mode) {
  const last = [["Z", "undo, step by step"], ...(mode === "pairs" ? [] : [["F", "look closely"]]), ["Enter", "apply the ratings"], ["?", "these keys"]];
  if (mode === "pairs") return [...RATE[mode], ["P   N", "previous pair, next pair"], ["Space", "skip: no opinion"], ["0", "clear the verdict"], ...last];
  return [...RATE[mode], ["← → ↑ ↓", "move"], ["Space", "skip: no opinion"], ["0", "clear the rating"], ...last];
}

const RATE = {
  thumbs: [["U or 2", "rate up"], ["D or 1", "rate down"]],
  stars: [["1 – 5", "rate: 1 poor, 3 fair, 5 excellent"]],
  best: [["G or 1", "a good one"], ["B or 2", "the best of its prompt: one only"]],
  "best-worst": [["B or 2", "the best of its set"], ["W or 1", "the worst of its set"]],
  pairs: [["← or 1", "the left one is better"], ["→ or 2", "the right one is better"], ["↑ or T", "equally good"], ["↓ or B", "both are bad"]],
};

/** What a mode asks for, in a sentence or two. */
const ASKS = {
  thumbs: "Thumbs up for what you like, down for what you do not.",
  stars: "One to five stars: 1 poor, 3 fair, 5 excellent.",
  best: "Pick the good ones of each prompt, and star the best one. Once a best one is starred, those that you did not pick count as passed over.",
  "best-worst": "Name the best and the worst image of each set. Once both are named, the others count as in between.",
  pairs: "Two images of one prompt: which one is better? A few pairs connect all images of a prompt, so each verdict counts for more than its two.",
};

function paintHelp(refs, mode) {
  const rows = keysOf(mode).flatMap(([keys, meaning]) => {
    const term = make("dt");
    term.append(make("kbd", "", keys));
    return [term, make("dd", "", meaning)];
  });
  refs.help_keys.replaceChildren(...rows);
  setText(refs.help_asks, ASKS[mode]);
}

/** Open a window and put the focus on it, so that no button in it catches the keys. */
function openDialog(dialog) {
  dialog.tabIndex = -1;
  dialog.showModal();
  dialog.focus();
}
