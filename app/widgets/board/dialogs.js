// The two windows over the board: one image large, and the keys.

/** Show one image large, with its whole prompt. */
function paintZoom(refs, image, index, board) {
  const large = refs.zoom_image;
  const address = board.prefix + image.url;
  if (large.getAttribute("src") !== address) large.src = address;
  large.alt = clip(image.prompt, 200);
  setData(refs.zoom, "mark", markOf(image.rating));
  setText(refs.zoom_place, `Image ${index + 1} of ${board.expected} · ${inWords(image.rating)}`);
  setText(refs.zoom_text, image.prompt);
  paintBadge(refs.zoom_badge, image.rating);
  paintButtons(refs.zoom_buttons, image.rating);
}

/** The keys of a mode, as pairs of key and meaning. */
function keysOf(mode) {
  const rate = mode === "thumbs" ? [["U or 2", "rate up"], ["D or 1", "rate down"]] : [["1 – 5", "rate: 1 poor, 3 fair, 5 excellent"]];
  return [
    ...rate, ["← → ↑ ↓", "move"], ["Space", "skip: no opinion"], ["0", "clear the rating"], ["Z", "undo, step by step"],
    ["F", "look closely"], ["Enter", "apply the ratings"], ["?", "these keys"],
  ];
}

function paintHelp(refs, mode) {
  const rows = keysOf(mode).flatMap(([keys, meaning]) => {
    const term = make("dt");
    term.append(make("kbd", "", keys));
    return [term, make("dd", "", meaning)];
  });
  refs.help_keys.replaceChildren(...rows);
}

/** Open a window and put the focus on it, so that no button in it catches the keys. */
function openDialog(dialog) {
  dialog.tabIndex = -1;
  dialog.showModal();
  dialog.focus();
}
