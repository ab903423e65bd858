// Where the cards go: the largest images that fit the window, with the images of a prompt side by side.

const GAP = 10;
const FRAME = 26; // a group's padding and border, both sides
const HEAD = 44; // a group's prompt and its padding
const FOOT = 52; // a card's buttons
const SMALLEST = 124;
const LARGEST = 300;

/** How many groups go side by side, and how many cards within each, for `count` images in groups of `size`. */
function arrange(width, height, count, size) {
  const groups = Math.ceil(count / size);
  let best = null;
  for (let across = 1; across <= Math.min(groups, 6); across += 1) {
    for (let columns = Math.min(size, 2); columns <= Math.min(size, 16); columns += 1) {
      const option = measure(width, across, columns, groups, size);
      option.fits = option.height <= height;
      if (option.side >= SMALLEST && (!best || isBetter(option, best))) best = option;
    }
  }
  return best ?? { across: 1, columns: Math.min(size, 2), side: Math.floor((width - FRAME - GAP) / 2) };
}

function measure(width, across, columns, groups, size) {
  const inner = (width - GAP * (across - 1)) / across - FRAME;
  const side = Math.min(LARGEST, Math.floor((inner - GAP * (columns - 1)) / columns));
  const rows = Math.ceil(size / columns);
  const height = Math.ceil(groups / across) * (HEAD + FRAME + rows * (side + FOOT + GAP));
  const holes = rows * columns - size + (Math.ceil(groups / across) * across - groups) * size;
  return { across, columns, side, height, holes };
}

/** What fits the window beats what does not; then the largest images where all fit, the shortest board where none does. */
function isBetter(a, b) {
  if (a.fits !== b.fits) return a.fits;
  if (a.fits && a.side !== b.side) return a.side > b.side;
  if (!a.fits && Math.abs(a.height - b.height) > 40) return a.height < b.height;
  return a.holes < b.holes || (a.holes === b.holes && a.side > b.side);
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
