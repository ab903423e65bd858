// Where the cards go: the largest images that fit the window, with the images of a prompt side by side.

const GAP = 10;
const FRAME = 26; // a group's padding and border, both sides
const HEAD = 44; // a group's prompt and its padding
const FOOT = 52; // a card's buttons
const SMALLEST = 124;
const LARGEST = 300;
const PAIR = 620; // an image of a pair

/** How many groups go side by side, and how many cards within each, for `count` images in groups of `size`. */
function arrange(width, height, count, size) {
  const groups = Math.ceil(count / size);
  let best = null;
  for (let across = 1; across <= Math.min(groups, 6); across += 1) {
    for (let columns = Math.min(size, 2); columns <= Math.min(size, 16); columns += 1) {
      const option = measure(width, height, across, columns, groups, size);
      if (option.side >= SMALLEST && (!best || isBetter(option, best))) best = option;
    }
  }
  return best ?? { across: 1, columns: Math.min(size, 2), side: Math.floor((width - FRAME - GAP) / 2) };
}

/** The two cards of a pair, side by side, as large as the window allows. */
function besides(width, height) {
  const wide = Math.floor((width - FRAME - GAP) / 2);
  return { across: 1, columns: 2, side: Math.max(SMALLEST, Math.min(wide, PAIR, height - HEAD - FRAME - FOOT - GAP)) };
}

/** One way to lay the cards out: as large as the width allows, and as the height allows where that leaves them large enough. */
function measure(width, height, across, columns, groups, size) {
  const rows = Math.ceil(size / columns);
  const lines = Math.ceil(groups / across);
  const wide = Math.min(LARGEST, Math.floor(((width - GAP * (across - 1)) / across - FRAME - GAP * (columns - 1)) / columns));
  const high = Math.floor((height / lines - HEAD - FRAME) / rows - FOOT - GAP);
  const fits = high >= SMALLEST;
  const side = fits ? Math.min(wide, high) : wide;
  const filled = (groups * size) / (lines * across * rows * columns);
  return { across, columns, side, fits, worth: side * Math.sqrt(filled), height: lines * (HEAD + FRAME + rows * (side + FOOT + GAP)) };
}

/** What fits the window beats what does not; then large images without holes between them, or else the shorter board. */
function isBetter(a, b) {
  if (a.fits !== b.fits) return a.fits;
  if (!a.fits && Math.abs(a.height - b.height) > 40) return a.height < b.height;
  return a.worth > b.worth;
}

/** The card that an arrow key leads to, by where the cards lie on the page: left and right go along a line of cards and on to the next. */
function neighbour(cards, from, key) {
  const boxes = cards.map((card, i) => ({ i, ...place(card.getBoundingClientRect()) }));
  const here = boxes[from];
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const order = boxes.sort((a, b) => a.top - b.top || a.left - b.left);
    return order[order.indexOf(here) + (key === "ArrowRight" ? 1 : -1)]?.i ?? from;
  }
  const beyond = boxes.filter((box) => (key === "ArrowDown" ? box.top > here.top : box.top < here.top));
  const distance = (box) => Math.abs(box.top - here.top) * 1e4 + Math.abs(box.left - here.left);
  return beyond.sort((a, b) => distance(a) - distance(b))[0]?.i ?? from;
}

/** Whole pixels, so that cards of one line have one height on the page. */
const place = (box) => ({ top: Math.round(box.top / 8), left: Math.round(box.left) });
