// Numbers of a chart: ticks, words, scales, and moving averages. Nothing here draws.
const PAD = { top: 10, right: 12, bottom: 24, left: 52 };
const OWN = "distance"; // the horizontal axis of a chart that does not lie over rounds
const AXES = { round: "Rounds", images: "Images scored", time: "Time" };

function steps(low, high, wanted) {
  const raw = (high - low) / wanted || 1, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * size >= raw * 0.999) * size;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { step, found };
}

// Ticks of a logarithmic axis: powers of ten, with 2 and 5 between them where there are few, thinned where there are many.
function decades(low, high, wanted) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), inside = Math.floor(Math.log10(high)) - Math.ceil(Math.log10(low)) + 1, every = Math.max(1, Math.ceil(inside / wanted));
  const found = [];
  for (let power = first; power <= last; power += every) found.push(...(last - first <= 2 ? [1, 2, 5] : [1]).map((m) => m * 10 ** power));
  return found.filter((y) => y >= low && y <= high);
}

function text(value, step) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.max(Math.abs(value), step || 0);
  if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(Math.abs(value) < 1e-3 && !step ? 2 : 1).replace(/-/g, "−");
  if (!step && value !== 1 && Math.abs(value - 1) < 1e-3) return value.toFixed(6); // a ratio
  const digits = step ? Math.min(8, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (Math.round(step / 10 ** Math.floor(Math.log10(step)) * 10) % 10 ? 1 : 0))) : size < 1 ? 4 : size < 100 ? 3 : 1;
  const shown = value.toFixed(digits);
  return (step ? shown : shown.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "")).replace("-", "−");
}

// What is around a value: the same to both sides, or from where to where.
function spreadText({ y, spread }) {
  if (!spread) return "";
  const [low, high] = spread, even = Math.abs(high - y - (y - low)) <= 1e-6 * (high - low) + 1e-9 * Math.abs(y);
  return even ? ` ± ${text(high - y)}` : ` (${text(low)} to ${text(high)})`;
}

// A tick of the vertical axis; near 1, what is above or below it.
function tickText(y, l) {
  if (l.log) return y >= 1e-3 && y < 1e4 ? String(Number(y.toPrecision(1))) : y.toExponential(0).replace("-", "−").replace("+", "");
  if (l.step < 1e-3 && Math.abs(l.y1) > 0.5) {
    const over = Math.abs(y - 1) < l.step / 2 ? "" : Math.abs(y - 1).toExponential(0).replace("-", "−");
    return `1${over && (y < 1 ? "−" : "+")}${over}`;
  }
  return text(Math.abs(y) < l.step * 1e-6 ? 0 : y, l.step);
}

// --- the horizontal axis ---

// Where a round lies: its number, or what it had cost by its end.
function placer(run, axis) {
  const at = { round: 0, images: 1, time: 2 }[axis], rows = run.clock || [];
  if (!at) return (round) => round;
  return (round) => {
    let low = -1, high = rows.length;
    while (high - low > 1) { const middle = (low + high) >> 1; if (rows[middle][0] <= round) low = middle; else high = middle; }
    if (low < 0) return 0;
    if (high === rows.length || rows[low][0] === round) return rows[low][at];
    return rows[low][at] + ((rows[high][at] - rows[low][at]) * (round - rows[low][0])) / (rows[high][0] - rows[low][0]);
  };
}

// The unit of the horizontal axis: [what it is called, how much of what is counted it holds].
function unitOf(axis, last, across) {
  if (axis === OWN) return [across, 1];
  if (axis === "round") return ["round", 1];
  if (axis === "images") return last >= 20000 ? ["1,000 img.", 1000] : ["images", 1];
  return last < 180 ? ["s", 1] : last < 10800 ? ["min", 60] : ["h", 3600];
}

function placeText(x, axis) { return axis === OWN ? `√KL ${text(x)}` : axis === "images" ? `${Math.round(x).toLocaleString("en")} images` : axis === "time" ? duration(x) : ""; }

// The nearest of some sorted numbers; none where x is beyond their ends.
function nearest(sorted, x) {
  if (!sorted.length || x < sorted[0] || x > sorted[sorted.length - 1]) return null;
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (sorted[middle] <= x) low = middle; else high = middle; }
  return x - sorted[low] <= sorted[high] - x ? sorted[low] : sorted[high];
}

// --- the vertical axis ---

function offersLog(chart) {
  const ys = chart.series.flatMap((s) => s.points.map((p) => p[1])).filter((y) => y !== null);
  return ys.length > 1 && ys.every((y) => y > 0) && Math.max(...ys) >= 3 * Math.min(...ys);
}

function extent(lines, log) {
  const ys = [];
  for (const s of lines) {
    for (const [, y] of s.points) if (y !== null) ys.push(y);
    for (const [, low, high] of [...(s.band || []), ...(s.error || [])]) ys.push(low, high);
  }
  const known = log ? ys.filter((y) => y > 0) : ys;
  let low = known.length ? known.reduce((a, b) => Math.min(a, b)) : log ? 0.1 : 0, high = known.length ? known.reduce((a, b) => Math.max(a, b)) : 1;
  if (log) return { y0: low / 1.25, y1: high * 1.25 };
  if (low === high) { const room = Math.abs(low) * 0.1 || 1; low -= low ? room : 0; high += room; }
  const room = (high - low) * 0.08;
  return { y0: low >= 0 && low < 0.35 * high ? 0 : low - room, y1: high + room };
}

// Scales of a plot of so many pixels. `lines` are the lines to be seen, with x in what the axis counts.
function layout(lines, stops, log, width, height) {
  const e = extent(lines, log), first = stops[0] ?? 0, last = stops[stops.length - 1] ?? 1;
  const inner = width - PAD.left - PAD.right - 12, tall = height - PAD.top - PAD.bottom, up = log ? Math.log10 : (v) => v;
  const wanted = Math.max(2, Math.min(5, (height - 30) / 44)), plain = steps(e.y0, e.y1, wanted);
  return { ...e, width, height, first, last, log, step: plain.step, ticks: log ? decades(e.y0, e.y1, wanted) : plain.found,
    x: (v) => PAD.left + 6 + (last === first ? inner / 2 : ((v - first) / (last - first)) * inner),
    y: (v) => PAD.top + tall - ((up(Math.max(v, log ? e.y0 : -Infinity)) - up(e.y0)) / (up(e.y1) - up(e.y0))) * tall };
}

// --- smoothing ---
// Local linear regression: at each round the line that fits its neighbours best, weighted by a Gaussian whose standard deviation is half of so many
// rounds (Cleveland 1979, with a Gaussian for his tricube). Unlike an exponential average it does not lag: a straight line stays itself, at its ends too.
function smoothed(points, rounds) {
  const known = points.filter((p) => p[1] !== null), sigma = rounds / 2;
  let first = 0;
  return points.map(([x, y, round]) => {
    if (y === null) return [x, null, round];
    while (known[first][2] < round - 3 * sigma) first++;
    let w = 0, d = 0, dd = 0, v = 0, dv = 0; // sums of weights, distances and values
    for (let j = first; j < known.length && known[j][2] <= round + 3 * sigma; j++) {
      const far = known[j][2] - round, weight = Math.exp((-far * far) / (2 * sigma * sigma));
      w += weight; d += weight * far; dd += weight * far * far; v += weight * known[j][1]; dv += weight * far * known[j][1];
    }
    const spread = w * dd - d * d;
    return [x, spread > 1e-9 * w * dd ? (dd * v - d * dv) / spread : v / w, round];
  });
}
