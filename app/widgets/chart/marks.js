// A chart as SVG: lines with bands, dots with error bars, gaps as gaps. `drawn` is what widget.js has prepared: a chart, its lines and their stops.
const ROOMY = 520; // from this width on marks are labelled
const LETTER = 6.6; // about how wide a letter of a tick is, in pixels
const f = (v) => v.toFixed(1);

function runs(points) {
  const found = [[]];
  for (const p of points) { if (p[1] === null) found.push([]); else found[found.length - 1].push(p); }
  return found.filter((run) => run.length);
}

function stroke(points, l) { return `M${points.map(([x, y]) => `${f(l.x(x))},${f(l.y(y))}`).join("L")}`; }

function upright(s, l, x, low, high) {
  return h("line", { class: "chart-error", "data-c": s.colour, x1: f(l.x(x)), x2: f(l.x(x)), y1: f(l.y(low)), y2: f(l.y(high)) });
}

function lineMarks(s, l) {
  const marks = [], inside = (y) => (l.log && y <= 0 ? null : y), points = s.points.map(([x, y, round]) => [x, y === null ? null : inside(y), round]);
  if (s.band?.length) {
    const byX = new Map(s.band.map((b) => [b[0], b]));
    for (const run of runs(points.map(([x, y]) => [x, byX.has(x) ? y : null]))) {
      const edge = (side) => run.map(([x]) => `${f(l.x(x))},${f(l.y(byX.get(x)[side]))}`);
      if (run.length > 1) marks.push(h("path", { class: "chart-band", "data-c": s.colour, d: `M${edge(1).join("L")}L${edge(2).reverse().join("L")}Z` }));
      else marks.push(upright(s, l, ...byX.get(run[0][0])));
    }
  }
  for (const bar of s.error || []) marks.push(upright(s, l, ...bar));
  const parts = runs(points), dense = points.length > 40 || Boolean(s.smooth), look = { "data-c": s.colour, "data-dash": s.dash || null };
  if (s.style !== "dots") for (const run of parts) if (run.length > 1) marks.push(h("path", { class: "chart-line", ...look, "data-raw": s.smooth ? "" : null, d: stroke(run, l) }));
  for (const run of parts) for (const [x, y] of run) {
    if (s.style === "dots" || !dense || run.length === 1) marks.push(h("circle", { class: "chart-dot", "data-c": s.colour, cx: f(l.x(x)), cy: f(l.y(y)), r: s.style === "dots" ? 4 : 2.5 }));
  }
  if (s.smooth) for (const run of runs(s.smooth.map(([x, y]) => [x, y === null ? null : inside(y)]))) if (run.length > 1) marks.push(h("path", { class: "chart-line", ...look, d: stroke(run, l) }));
  return marks;
}

function countMarks(drawn, l) {
  const points = (drawn.counts || []).filter(([, n]) => n);
  if (!points.length) return [];
  const most = Math.max(...points.map(([, n]) => n)), base = l.height - PAD.bottom, wide = Math.max(1.5, Math.min(14, (0.5 * (l.width - PAD.left)) / (drawn.stops.length || 1)));
  return points.map(([x, n]) => h("rect", { class: "chart-count", x: f(l.x(x) - wide / 2), width: f(wide), y: f(base - (26 * n) / most), height: f((26 * n) / most), rx: 1 }));
}

function axes(l, axis, named) {
  const [unit, size] = unitOf(axis, l.last, named), across = steps(l.first / size, l.last / size, Math.max(2, Math.min(10, l.width / 90)));
  const whole = size > 1 || axis === "time" || axis === OWN ? across.found : across.found.filter((x) => Math.abs(x - Math.round(x)) < 1e-6);
  return [
    l.ticks.map((y) => [h("line", { class: "chart-grid", x1: PAD.left, x2: l.width - PAD.right, y1: f(l.y(y)), y2: f(l.y(y)), "data-zero": !l.log && Math.abs(y) < l.step * 1e-6 }),
      h("text", { class: "chart-tick", x: PAD.left - 8, y: f(l.y(y) + 4), "text-anchor": "end" }, tickText(y, l))]),
    h("text", { class: "chart-tick", x: PAD.left - 8, y: l.height - 6, "text-anchor": "end" }, unit),
    (l.first === l.last ? [l.first / size] : whole).map((x) => h("text", { class: "chart-tick", x: f(l.x(x * size)), y: l.height - 6, "text-anchor": "middle" }, Number(x.toFixed(2)).toLocaleString("en"))),
  ];
}

// What happened: where the reward was changed, a broken line between the rounds; an alarm, a line with a triangle on it; the best round, one with a
// diamond. In a wide chart each says in a few words what it is, each kind at its own height. Those of the other runs are small, in the run's colour, and
// each run's in a row of its own.
const ROW = 13, SMALL = 0.7;
const HEADS = { alarm: "M0,8L-6,-3L6,-3Z", best: "M0,-6L5,0L0,6L-5,0Z" }, LINES_DOWN = { change: 0, alarm: 1, best: 2, fork: 3 };
function happened(drawn, l) {
  return drawn.marks.filter((m) => m.x >= l.first && m.x <= l.last).map((m) => {
    if (m.run.index) return happenedBeside(m, l);
    const x = l.x(m.x), right = l.width - PAD.right - x - 8;
    const late = m.kind === "change" ? x > (l.width + PAD.left) / 2 : right < m.label.length * LETTER, room = late ? x - PAD.left - 8 : right;
    return h("g", { class: "chart-mark", "data-kind": m.kind }, h("title", {}, m.text), h("line", { x1: f(x), x2: f(x), y1: PAD.top, y2: l.height - PAD.bottom }),
      HEADS[m.kind] ? h("path", { d: HEADS[m.kind], transform: `translate(${f(x)}, ${PAD.top})` }) : null,
      drawn.chart.wide && l.width >= ROOMY ? h("text", { class: "chart-tick", x: f(x + (late ? -8 : 8)), y: PAD.top + 10 + 15 * LINES_DOWN[m.kind], "text-anchor": late ? "end" : null }, short(m.label, Math.floor(room / LETTER))) : null);
  });
}

function happenedBeside(m, l) {
  const x = f(l.x(m.x)), y = PAD.top + ROW * m.run.index;
  return h("g", { class: "chart-beside", "data-kind": m.kind, "data-c": m.run.index }, h("title", {}, `${m.run.name}, round ${m.round}: ${m.text}`), h("line", { x1: x, x2: x, y1: y - 5, y2: y + 13 }),
    HEADS[m.kind] ? h("path", { d: HEADS[m.kind], transform: `translate(${x}, ${y}) scale(${SMALL})` }) : null);
}

// A fitted curve of each line, and within what the peak of the last one lies.
function fitted(drawn, l) {
  const curves = drawn.curves.map((c) => h("path", { class: "chart-line", "data-c": c.colour, "data-dash": 2, d: stroke(c.points, l) }));
  if (!drawn.chart.peak || !curves.length) return curves;
  const [at, low, high] = drawn.chart.peak.map((d) => l.x(Math.min(l.last, Math.max(l.first, d)))), colour = drawn.curves[drawn.curves.length - 1].colour;
  return [h("g", { class: "chart-peak", "data-c": colour }, h("title", {}, drawn.chart.told), h("rect", { x: f(low), width: f(Math.max(1, high - low)), y: PAD.top, height: l.height - PAD.top - PAD.bottom }),
    h("line", { x1: f(at), x2: f(at), y1: PAD.top, y2: l.height - PAD.bottom })), ...curves];
}

function plotMarks(drawn, l) { return [countMarks(drawn, l), axes(l, drawn.axis, drawn.chart.across), fitted(drawn, l), happened(drawn, l), drawn.lines.map((s) => lineMarks(s, l))].flat(4); }

// The line under the pointer, and the values that it meets: of each run, those of its nearest round.
function cursor(drawn, l, at) {
  const found = drawn.runs.map((run) => nearest(run.stops, at));
  if (found.every((x) => x === null)) return [];
  const x = found[0] ?? found.find((other) => other !== null);
  const dots = drawn.lines.flatMap((s) => {
    const y = found[s.run] === null ? null : s.values.get(found[s.run])?.y ?? null;
    return y === null || (l.log && y <= 0) ? [] : [h("circle", { class: "chart-dot chart-now", "data-c": s.colour, cx: f(l.x(found[s.run])), cy: f(l.y(y)), r: 5 })];
  });
  return [h("line", { class: "chart-cursor", x1: f(l.x(x)), x2: f(l.x(x)), y1: PAD.top, y2: l.height - PAD.bottom }), ...dots];
}
