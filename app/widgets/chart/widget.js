// Charts over rounds as SVG: lines with bands, dots with error bars, gaps as gaps. Hover or arrow keys read one round in all charts at once.
const PAD = { top: 10, right: 12, bottom: 24, left: 52 };
let at = null; // the round under the pointer

// --- numbers ---
function steps(low, high, wanted) {
  const raw = (high - low) / wanted || 1, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * size >= raw * 0.999) * size;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { step, found };
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

function near(chart, step) { return step && step < 1e-3 && Math.abs(chart.y1) > 0.5 ? Math.ceil(-Math.log10(step)) : null; }

// --- scales ---
function extent(chart) {
  const ys = [], xs = new Set();
  for (const s of chart.series) {
    for (const [x, y] of s.points) { xs.add(x); if (y !== null) ys.push(y); }
    for (const [, low, high] of [...(s.band || []), ...(s.error || [])]) ys.push(low, high);
  }
  let low = ys.length ? ys.reduce((a, b) => Math.min(a, b)) : 0, high = ys.length ? ys.reduce((a, b) => Math.max(a, b)) : 1;
  if (low === high) { const room = Math.abs(low) * 0.1 || 1; low -= low ? room : 0; high += room; }
  const room = (high - low) * 0.08, positive = low >= 0;
  const rounds = [...xs].sort((a, b) => a - b);
  return { rounds, y0: positive && low < 0.35 * high ? 0 : low - room, y1: high + room };
}

function layout(chart, width, height) {
  const e = extent(chart), first = e.rounds[0] ?? 0, last = e.rounds[e.rounds.length - 1] ?? 1;
  const span = Math.max(1, last - first), inner = width - PAD.left - PAD.right - 12, tall = height - PAD.top - PAD.bottom;
  return { ...e, width, height, first, last,
    x: (v) => PAD.left + 6 + (last === first ? inner / 2 : ((v - first) / span) * inner),
    y: (v) => PAD.top + tall - ((v - e.y0) / (e.y1 - e.y0)) * tall };
}

// --- marks ---
const f = (v) => v.toFixed(1);

function runs(points) {
  const found = [[]];
  for (const p of points) { if (p[1] === null) found.push([]); else found[found.length - 1].push(p); }
  return found.filter((run) => run.length);
}

function seriesMarks(s, i, l) {
  const marks = [];
  if (s.band?.length) {
    const known = new Set(s.band.map((b) => b[0])), byRound = new Map(s.band.map((b) => [b[0], b]));
    for (const run of runs(s.points.map(([x, y]) => [x, known.has(x) ? y : null]))) {
      const edge = (side) => run.map(([x]) => `${f(l.x(x))},${f(l.y(byRound.get(x)[side]))}`);
      if (run.length > 1) marks.push(h("path", { class: "chart-band", "data-c": i, d: `M${edge(1).join("L")}L${edge(2).reverse().join("L")}Z` }));
      else marks.push(h("line", { class: "chart-error", "data-c": i, x1: f(l.x(run[0][0])), x2: f(l.x(run[0][0])), y1: f(l.y(byRound.get(run[0][0])[1])), y2: f(l.y(byRound.get(run[0][0])[2])) }));
    }
  }
  for (const [x, low, high] of s.error || []) marks.push(h("line", { class: "chart-error", "data-c": i, x1: f(l.x(x)), x2: f(l.x(x)), y1: f(l.y(low)), y2: f(l.y(high)) }));
  const parts = runs(s.points), dense = s.points.length > 40;
  if (s.style !== "dots") for (const run of parts) if (run.length > 1) marks.push(h("path", { class: "chart-line", "data-c": i, d: `M${run.map(([x, y]) => `${f(l.x(x))},${f(l.y(y))}`).join("L")}` }));
  for (const run of parts) for (const [x, y] of run) {
    if (s.style === "dots" || !dense || run.length === 1) marks.push(h("circle", { class: "chart-dot", "data-c": i, cx: f(l.x(x)), cy: f(l.y(y)), r: s.style === "dots" ? 4 : 2.5 }));
  }
  return marks;
}

function countMarks(chart, l) {
  const points = (chart.counts?.points || []).filter(([, n]) => n);
  if (!points.length) return [];
  const most = Math.max(...points.map(([, n]) => n)), base = l.height - PAD.bottom, wide = Math.max(1.5, Math.min(14, (0.5 * (l.width - PAD.left)) / Math.max(1, l.last - l.first + 1)));
  return points.map(([x, n]) => h("rect", { class: "chart-count", x: f(l.x(x) - wide / 2), width: f(wide), y: f(base - (26 * n) / most), height: f((26 * n) / most), rx: 1 }));
}

function axes(l) {
  const ys = steps(l.y0, l.y1, Math.max(2, Math.min(5, (l.height - 30) / 44))), xs = steps(l.first, l.last, Math.max(2, Math.min(10, l.width / 90)));
  const whole = xs.found.filter((x) => Number.isInteger(Math.round(x * 1e6) / 1e6));
  const precise = near(l, ys.step);
  return [
    ys.found.map((y) => [h("line", { class: "chart-grid", x1: PAD.left, x2: l.width - PAD.right, y1: f(l.y(y)), y2: f(l.y(y)), "data-zero": Math.abs(y) < ys.step * 1e-6 }),
      h("text", { class: "chart-tick", x: PAD.left - 8, y: f(l.y(y) + 4), "text-anchor": "end" }, precise ? `1${y < 1 - ys.step / 2 ? "−" : y > 1 + ys.step / 2 ? "+" : ""}${Math.abs(y - 1) < ys.step / 2 ? "" : Math.abs(y - 1).toExponential(0).replace("-", "−")}` : text(Math.abs(y) < ys.step * 1e-6 ? 0 : y, ys.step))]),
    (l.first === l.last ? [l.first] : whole).map((x) => h("text", { class: "chart-tick", x: f(l.x(x)), y: l.height - 6, "text-anchor": "middle" }, String(Math.round(x)))),
  ];
}

// Where the reward was changed: a line between the rounds.
function changes(chart, l) {
  return (chart.marks || []).filter((m) => m.round >= l.first && m.round <= l.last).map((m) => {
    const x = f(l.x(Math.max(l.first, m.round - 0.5)));
    return h("g", { class: "chart-change" }, h("title", {}, m.text), h("line", { x1: x, x2: x, y1: PAD.top, y2: l.height - PAD.bottom }),
      chart.wide ? h("text", { class: "chart-tick", x: Number(x) + 5, y: PAD.top + 10 }, m.text) : null);
  });
}

function cursor(chart, l) {
  if (at === null || !l.rounds.includes(at)) return [];
  const dots = chart.series.flatMap((s, i) => s.points.filter(([x, y]) => x === at && y !== null).map(([x, y]) => h("circle", { class: "chart-dot chart-now", "data-c": i, cx: f(l.x(x)), cy: f(l.y(y)), r: 5 })));
  return [h("line", { class: "chart-cursor", x1: f(l.x(at)), x2: f(l.x(at)), y1: PAD.top, y2: l.height - PAD.bottom }), ...dots];
}

// --- words ---
function valueAt(points, x) { return (points || []).find((p) => p[0] === x)?.[1] ?? null; }

function reading(chart) {
  const rounds = chart.series.flatMap((s) => s.points.map((p) => p[0]));
  if (at === null || !rounds.includes(at)) return "";
  const parts = chart.series.filter((s) => valueAt(s.points, at) !== null).map((s) => {
    const band = [...(s.band || []), ...(s.error || [])].find((b) => b[0] === at), y = valueAt(s.points, at);
    return `${chart.series.length > 1 ? `${s.label} ` : ""}${text(y)}${band ? ` ± ${text(band[2] - y)}` : ""}${chart.unit ? ` ${chart.unit}` : ""}`;
  });
  const n = valueAt(chart.counts?.points, at);
  const change = (chart.marks || []).find((m) => m.round === at)?.text;
  return [`Round ${at}: ${parts.join(" · ") || "no value"}`, n !== null ? `${n} ${chart.counts.label}` : "", change].filter(Boolean).join(" · ");
}

function latest(chart) {
  const parts = chart.series.map((s) => [s, [...s.points].reverse().find((p) => p[1] !== null)]).filter(([, p]) => p);
  return parts.length ? `latest ${parts.slice(0, 2).map(([s, p]) => `${parts.length > 1 ? `${s.label} ` : ""}${text(p[1])}`).join(" · ")}` : "no value yet";
}

function summary(chart) {
  const rounds = chart.series.flatMap((s) => s.points.map((p) => p[0]));
  if (!rounds.length) return `${chart.title}: no value yet`;
  return `${chart.title}, rounds ${Math.min(...rounds)} to ${Math.max(...rounds)}; ${latest(chart)}. Left and right arrow keys read single rounds.`;
}

function table(chart) {
  const rounds = [...new Set(chart.series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b).slice(-500);
  const columns = [...chart.series.map((s) => ({ label: s.label, points: s.points })), ...(chart.counts ? [chart.counts] : [])];
  return h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Round"), columns.map((c) => h("th", { scope: "col" }, c.label)))),
    h("tbody", {}, rounds.map((x) => h("tr", {}, h("th", { scope: "row" }, String(x)), columns.map((c) => h("td", {}, text(valueAt(c.points, x))))))));
}

// --- the figures ---
function figure(chart) {
  return h("figure", { class: `s-card chart${chart.wide ? " chart-wide" : ""}`, key: chart.key },
    h("figcaption", {}, h("h3", {}, chart.title), h("p", { class: "s-muted" }, chart.hint)),
    chart.series.length > 1 || chart.counts ? h("ul", { class: "chart-legend" }, chart.series.map((s, i) => h("li", {}, h("i", { "data-c": i, "data-style": s.style }), s.label)),
      chart.counts ? h("li", {}, h("i", { "data-style": "count" }), chart.counts.label) : null) : null,
    h("div", { class: "chart-plot", "data-chart": chart.key, "data-own": "", tabindex: 0, role: "img", "aria-label": summary(chart) }),
    h("p", { class: "chart-reading", "data-own": "", "aria-live": "polite" }),
    h("details", { class: "chart-table" }, h("summary", {}, "As a table"), h("div", { class: "chart-scroll", tabindex: 0, role: "region", "aria-label": `${chart.title}, as a table` }, table(chart))));
}

function draw(plot) {
  const chart = (props.value.charts || []).find((c) => c.key === plot.dataset.chart), width = plot.clientWidth;
  if (!chart || width < 40) return;
  const height = chart.wide ? (width < 520 ? 240 : 320) : 180, l = layout(chart, width, height);
  plot.layout = l;
  const svg = h("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, countMarks(chart, l), axes(l), changes(chart, l), chart.series.map((s, i) => seriesMarks(s, i, l)), h("g", { class: "chart-live" }));
  morphChildren(plot, [svg]);
  point(plot, chart);
}

function point(plot, chart) {
  const live = plot.querySelector(".chart-live"), said = plot.parentElement.querySelector(".chart-reading");
  if (live) live.replaceChildren(...cursor(chart, plot.layout));
  const words = reading(chart) || latest(chart).replace(/^./, (c) => c.toUpperCase());
  if (said.textContent !== words) said.textContent = words;
}

function read(round) {
  if (round === at) return;
  at = round;
  for (const plot of element.querySelectorAll(".chart-plot")) {
    const chart = (props.value.charts || []).find((c) => c.key === plot.dataset.chart);
    if (chart && plot.layout) point(plot, chart);
  }
}

function view(v) {
  if (!("run" in v)) return waiting();
  if (!v.run) return h("section", { class: "s-card panel-empty", key: "empty" }, h("h2", {}, "Nothing to show yet"), h("p", {}, "Choose a run above, or start one on the Run page. Its curves grow here, round by round."));
  if (!(v.charts || []).length) return h("section", { class: "s-card panel-empty", key: "empty" }, h("h2", {}, "No curves yet"), h("p", {}, "They begin with the first scored round."));
  return h("div", { class: "charts", key: v.run },
    h("div", { class: "charts-head" }, h("h2", {}, "Progress"), h("a", { class: "s-button s-small", href: v.csv, download: "" }, "Download CSV")),
    h("div", { class: "charts-grid" }, v.charts.map(figure)));
}

const observer = new ResizeObserver((entries) => entries.forEach((e) => draw(e.target)));
show(view, () => {
  observer.disconnect();
  for (const plot of element.querySelectorAll(".chart-plot")) { observer.observe(plot); draw(plot); }
});

element.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".chart-plot");
  if (!plot?.layout?.rounds.length) return read(null);
  const x = event.clientX - plot.getBoundingClientRect().left, l = plot.layout;
  read(l.rounds.reduce((a, b) => (Math.abs(l.x(b) - x) < Math.abs(l.x(a) - x) ? b : a)));
});
element.addEventListener("pointerleave", () => read(null));
element.addEventListener("focusout", () => read(null));
element.addEventListener("click", (event) => {
  if (event.target.closest(".chart-plot") && at) window.dispatchEvent(new CustomEvent("studio:round", { detail: at }));
});
element.addEventListener("keydown", (event) => {
  const rounds = event.target.closest(".chart-plot")?.layout?.rounds;
  const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!rounds?.length || by === undefined) return;
  event.preventDefault();
  const from = at === null ? (by > 0 ? -1 : rounds.length) : rounds.indexOf(at);
  read(rounds[Math.min(rounds.length - 1, Math.max(0, from + by))]);
});
