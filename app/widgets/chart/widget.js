// Charts over rounds, of the selected run and of others beside it. Hover or arrow keys read one round in all charts at once.
const COLOURS = 6, KEEP = "studio-charts", SMOOTH = [0, 3, 5, 10, 20, 50, 100, 200], STRIPS_KEPT = 200;
const chosen = { axis: "round", smooth: 0, hidden: [], log: [], ...stored() }; // what a person prefers, in any run; log: the charts whose axis is not as they come
const beside = { of: null, runs: [] }; // the runs that are drawn beside the selected one: {name, stamp, value}
const strips = new Map(); // images of rounds that were read lately
let at = null, over = null; // where the axis is read, and in which chart
let drawn = new Map(); // what each chart shows, by its key

function stored() {
  try { return JSON.parse(localStorage.getItem(KEEP)) || {}; } catch { return {}; }
}

function choose(changes) {
  Object.assign(chosen, changes);
  try { localStorage.setItem(KEEP, JSON.stringify(chosen)); } catch { /* a browser that keeps nothing */ }
  at = null;
  redraw();
}

function toggled(list, item) { return list.includes(item) ? list.filter((other) => other !== item) : [...list, item]; }

// --- what is drawn ---
function nameOf(chart, label) { return `${chart.title}: ${label}`; }

function allRuns() { return [{ name: props.value.run, value: props.value }, ...beside.runs]; }

// Whether a chart is 0 throughout, in each of the runs that have it.
function isStill(chart) {
  const others = beside.runs.map((run) => run.value?.charts?.find((c) => c.title === chart.title)).filter(Boolean);
  return [chart, ...others].every((c) => c.still);
}

// A chart of the selected run with all that lies on its axes: its own lines, and those of the same chart of the other runs.
function prepare(chart) {
  const several = beside.runs.length > 0, lines = [], sides = [];
  allRuns().forEach((run, index) => {
    const of = index ? run.value?.charts?.find((c) => c.title === chart.title && (c.unit || "") === (chart.unit || "")) : chart;
    if (!of) return;
    const places = new Map(of.places), place = of.places ? (number) => places.get(number) ?? NaN : placer(run.value, chosen.axis), seen = new Set();
    const round = (rows) => rows?.map(([number, ...rest]) => [place(number), ...rest]);
    of.series.forEach((s, i) => {
      const points = s.points.map(([number, y]) => [place(number), y, number]);
      for (const [x] of points) seen.add(x);
      if (chosen.hidden.includes(nameOf(chart, s.label))) return;
      const smooth = SMOOTH[chosen.smooth] && s.style !== "dots" && points.length > 2 ? smoothed(points, SMOOTH[chosen.smooth]) : null;
      const band = round(s.band), error = round(s.error), spread = new Map([...(band || []), ...(error || [])].map((b) => [b[0], b.slice(1)]));
      const values = new Map(points.map(([x, y, number], j) => [x, { y, number, smooth: smooth?.[j][1], spread: y === null ? null : spread.get(x) ?? null }]));
      lines.push({ run: index, label: s.label, style: s.style, points, band, error, smooth, values, byRound: new Map([...values.values()].map((v) => [v.number, v])),
        colour: (several ? index : i) % COLOURS, dash: several ? i : Math.floor(i / COLOURS) });
    });
    const byStop = new Map(of.series.flatMap((s) => s.points.map(([number]) => [place(number), number])));
    sides.push({ index, name: run.name, place, byStop, marks: of.marks || [], stops: [...seen].sort((a, b) => a - b), images: placer(run.value, "images"), seconds: placer(run.value, "time") });
  });
  const stops = [...new Set(sides.flatMap((side) => side.stops))].sort((a, b) => a - b), place = sides[0].place;
  const counts = chart.counts && !chosen.hidden.includes(nameOf(chart, chart.counts.label)) ? chart.counts.points.map(([number, n]) => [place(number), n]) : null;
  const marks = sides.flatMap((side) => side.marks.filter((m) => side.place(m.round) >= (stops[0] ?? 0)).map((m) => ({ ...m, run: side, at: side.place(m.round),
    x: m.kind === "change" ? Math.max(stops[0] ?? 0, (side.place(m.round - 1) + side.place(m.round)) / 2) : side.place(m.round) })));
  const logs = offersLog(chart), axis = chart.places ? OWN : chosen.axis;
  const curves = (chart.curves || []).map((points, i) => ({ points, colour: several ? 0 : i })).filter((c, i) => c.points.length && !chosen.hidden.includes(nameOf(chart, chart.series[i].label)));
  const ends = curves.map((c) => c.points[c.points.length - 1][0]), span = ends.length ? [Math.min(0, stops[0]), Math.max(...stops, ...ends)] : stops;
  return { chart, lines, runs: sides, stops, counts, marks, logs, log: logs && chosen.log.includes(chart.title) !== Boolean(chart.log), axis, curves, span, seen: [...lines, ...curves] };
}

// What can be hidden: the lines, where there are several; with several runs each line stands once, and the runs are named above.
function legendOf(of) {
  const { chart } = of, several = beside.runs.length > 0;
  const items = chart.series.map((s, i) => ({ text: s.label, style: s.style, colour: several ? null : i % COLOURS, dash: several ? i : Math.floor(i / COLOURS) }));
  if (chart.counts) items.push({ text: chart.counts.label, style: "count" });
  const own = items.length > 1 ? items.map((item) => ({ ...item, hidden: chosen.hidden.includes(nameOf(chart, item.text)) })) : [];
  return several ? [...of.runs.map((run) => ({ text: run.name, colour: run.index, run: true })), ...own] : own;
}

// --- words ---
// Where a chart is read: where the axis is, or on its own axis the round that lies nearest to that.
function here(of, run = of.runs[0]) {
  if (!of.chart.places || at === null) return at;
  const rounds = [...run.byStop.values()], far = (number) => Math.abs(placer(props.value, chosen.axis)(number) - at);
  return rounds.length ? run.place(rounds.reduce((a, b) => (far(b) < far(a) ? b : a))) : null;
}

// And back: where the axis is read when a chart is read at one of its stops.
function axisAt(of, x) { return of.chart.places && x !== null ? placer(props.value, chosen.axis)(of.runs[0].byStop.get(x) ?? 0) : x; }

function said(of, run) {
  const x = nearest(run.stops, here(of, run)), lines = of.lines.filter((s) => s.run === run.index);
  if (x === null) return null;
  const known = lines.map((s) => [s, s.values.get(x)]).filter(([, v]) => v && v.y !== null);
  const number = lines.map((s) => s.values.get(x)?.number).find((n) => n !== undefined);
  if (number === undefined) return null;
  const parts = known.map(([s, v]) => `${of.chart.series.length > 1 ? `${s.label} ` : ""}${text(v.y)}${spreadText(v)}${of.chart.unit ? ` ${of.chart.unit}` : ""}${v.smooth ? `, smoothed ${text(v.smooth)}` : ""}`);
  const n = run.index ? null : of.chart.counts?.points.find((p) => p[0] === number)?.[1] ?? null;
  const cost = placeText(x, of.axis);
  return { number, words: [`Round ${number}${cost ? ` (${cost})` : ""}: ${parts.join(" · ") || "no value"}`, n === null ? "" : `${n} ${of.chart.counts.label}`].filter(Boolean).join(" · ") };
}

// What happened in a run where a chart is read: at the round that is read, and of another run what lies nearest to it, for the arrow keys go by this one's.
function happenedHere(of, run, number) {
  const own = of.runs[0].stops, x = here(of), near = (m) => (nearest(own, Math.min(own[own.length - 1], Math.max(own[0], m.at))) === x);
  return of.marks.filter((m) => m.run === run && (m.round === number || (run.index && near(m)))).map((m) => (m.round === number ? m.text : `round ${m.round}: ${m.text}`));
}

function latest(of, run) {
  const parts = of.lines.filter((s) => s.run === run.index).map((s) => [s, s.points.findLast((p) => p[1] !== null)]).filter(([, p]) => p);
  return parts.length ? `latest ${parts.slice(0, 2).map(([s, p]) => `${parts.length > 1 ? `${s.label} ` : ""}${text(p[1])}`).join(" · ")}` : of.lines.length ? "no value yet" : "hidden";
}

function summary(of) {
  const rounds = of.runs[0].stops.length ? of.chart.series.flatMap((s) => s.points.map((p) => p[0])) : [];
  if (!rounds.length) return `${of.chart.title}: no value yet`;
  return `${of.chart.title}${of.chart.told ? `. ${of.chart.told} R` : ", r"}ounds ${rounds.reduce((a, b) => Math.min(a, b))} to ${rounds.reduce((a, b) => Math.max(a, b))}; ${latest(of, of.runs[0])}. ${happenings(of)}Left and right arrow keys read single rounds, Enter shows the round's images.`;
}

// Alarms and the best round, for those who cannot see them drawn.
function happenings(of) { return of.marks.filter((m) => m.kind !== "change").map((m) => `${m.run.index ? `${m.run.name}: ` : ""}${m.label}: round ${m.round}. `).join(""); }

function table(of) {
  const rounds = [...new Set(of.lines.flatMap((s) => s.points.map((p) => p[2])))].sort((a, b) => a - b).slice(-500);
  const columns = of.lines.map((s) => ({ label: of.runs.length > 1 ? `${of.runs.find((run) => run.index === s.run).name}: ${s.label}` : s.label, at: (round) => s.byRound.get(round)?.y }));
  const counts = of.counts && new Map(of.chart.counts.points);
  if (of.chart.across) columns.unshift({ label: of.chart.across, at: of.runs[0].place });
  if (counts) columns.push({ label: of.chart.counts.label, at: (round) => counts.get(round) });
  const happened = (round) => of.marks.filter((m) => m.round === round).map((m) => (m.run.index ? `${m.run.name}: ${m.text}` : m.text)).join(" · "), any = rounds.some(happened);
  return h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Round"), columns.map((c) => h("th", { scope: "col" }, c.label)), any ? h("th", { scope: "col" }, "What happened") : null)),
    h("tbody", {}, rounds.map((round) => h("tr", {}, h("th", { scope: "row" }, String(round)), columns.map((c) => h("td", {}, text(c.at(round)))), any ? h("td", {}, happened(round)) : null))));
}

// --- the figures ---
function sample(item) {
  if (item.style === "dots" || item.style === "count") return h("i", { "data-c": item.colour ?? null, "data-style": item.style });
  return h("svg", { class: "chart-sample", viewBox: "0 0 18 6", width: 18, height: 6, "aria-hidden": "true" }, h("line", { class: "chart-line", "data-c": item.colour ?? null, "data-dash": item.dash || null, x1: 1, x2: 17, y1: 3, y2: 3 }));
}

function figure(chart) {
  const of = drawn.get(chart.key), items = legendOf(of).filter((item) => !item.run);
  const tool = (name, label, more = {}) => h("button", { class: "s-button s-small s-ghost", "data-act": name, "data-chart": chart.key, ...more }, label);
  return h("figure", { class: `s-card chart${chart.wide ? " chart-wide" : ""}`, key: chart.key, "data-chart": chart.key },
    h("figcaption", {}, h("h3", {}, chart.title), chart.told ? h("p", { class: "chart-told" }, chart.told) : null, h("p", { class: "s-muted" }, chart.hint), h("div", { class: "chart-strip", "data-own": "" })),
    items.length ? h("ul", { class: "chart-legend" }, items.map((item) => h("li", {},
      h("button", { "data-act": "hide", "data-name": nameOf(chart, item.text), "aria-pressed": String(!item.hidden), title: item.hidden ? "Show" : "Hide" }, sample(item), item.text)))) : null,
    h("div", { class: "chart-plot", "data-chart": chart.key, "data-own": "", tabindex: 0, role: "img", "aria-label": summary(of) }),
    h("p", { class: "chart-reading", "data-own": "", "aria-live": "off", style: `--runs: ${of.runs.length}`, "data-long": String(of.runs.length === 1 && (chart.series.length > 1 || Boolean(chart.counts))) }),
    h("div", { class: "chart-foot" },
      h("details", { class: "chart-table" }, h("summary", {}, "As a table"), h("div", { class: "chart-scroll", tabindex: 0, role: "region", "aria-label": `${chart.title}, as a table`, "data-own": "" })),
      h("div", { class: "chart-tools" },
        of.logs ? tool("log", "Log axis", { "aria-pressed": String(of.log) }) : null,
        tool("csv", "CSV", { "aria-label": `${chart.title} as CSV`, title: "The values that are drawn" }), tool("png", "PNG", { "aria-label": `${chart.title} as a picture`, title: "A picture for a page or a paper" }))));
}

function draw(plot) {
  const of = drawn.get(plot.dataset.chart), width = plot.clientWidth;
  if (!of || width < 40) return;
  const height = of.chart.wide ? (width < 520 ? 240 : 320) : 180, l = layout(of.seen, of.span, of.log, width, height);
  plot.layout = l;
  morphChildren(plot, [h("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, plotMarks(of, l), h("g", { class: "chart-live" }))]);
  point(plot, of);
}

function point(plot, of) {
  const live = plot.querySelector(".chart-live"), line = plot.parentElement.querySelector(".chart-reading");
  if (live) live.replaceChildren(...(at === null ? [] : cursor(of, plot.layout, here(of))));
  line.setAttribute("aria-live", of.chart.key === over ? "polite" : "off"); // one chart speaks, not all of them
  const several = of.runs.length > 1;
  const read = of.runs.map((run) => {
    const found = at === null ? null : said(of, run), then = at === null ? [] : happenedHere(of, run, found?.number);
    const words = [found?.words || (several ? latest(of, run) : latest(of, run).replace(/^./, (c) => c.toUpperCase())), ...then].join(" · ");
    return several ? [run, `${run.name}: ${words}`] : [null, words];
  });
  if (line.textContent !== read.map(([, words]) => words).join("")) line.replaceChildren(...read.map(([run, words]) => h("span", {}, run ? h("i", { "data-c": run.index }) : null, words)));
}

function eachPlot(work) {
  for (const plot of element.querySelectorAll(".chart-plot")) if (drawn.has(plot.dataset.chart) && plot.layout) work(plot, drawn.get(plot.dataset.chart));
}

function read(x, key = null) {
  if (x === at && key === over) return;
  at = x;
  over = x === null ? null : key;
  eachPlot(point);
  showStrip();
}

// --- the images of the round that is read ---
function roundRead() {
  const of = over && drawn.get(over);
  return of && at !== null ? said(of, of.runs[0])?.number || null : null;
}

function showStrip() {
  const round = roundRead(), run = props.value.run, known = strips.get(`${run}/${round}`);
  for (const strip of element.querySelectorAll(".chart-strip")) {
    const here = strip.closest(".chart").dataset.chart === over && round !== null && known?.length;
    strip.parentElement.toggleAttribute("data-strip", Boolean(here));
    if (!here) { if (strip.firstChild) strip.replaceChildren(); continue; }
    morphChildren(strip, [h("div", { class: "chart-images" }, known.map((url) => h("img", { src: url, alt: "", width: 40, height: 40, key: url }))),
      h("button", { class: "s-button s-small", "data-act": "gallery", "data-round": round, "aria-label": `Show round ${round} in the gallery` }, "Gallery ›")]);
  }
  if (round === null || known) return;
  clearTimeout(showStrip.soon);
  showStrip.soon = setTimeout(async () => {
    if (roundRead() !== round) return;
    const told = await server.round_strip({ run, round });
    if (!told) return; // the studio has just gone, perhaps: ask again when the round is read again
    strips.set(`${run}/${round}`, told.images);
    if (strips.size > STRIPS_KEPT) strips.delete(strips.keys().next().value);
    showStrip();
  }, 80);
}

function showGallery(round, go) {
  window.dispatchEvent(new CustomEvent("studio:round", { detail: round }));
  if (!go) return;
  const range = document.querySelector("#studio-gallery input[type=range]");
  range?.closest("section").scrollIntoView({ block: "start" });
  range?.focus({ preventScroll: true });
}

// --- other runs beside this one ---
async function fetchRuns() {
  for (const run of [...beside.runs]) {
    const answer = await server.run_curves({ run: run.name, stamp: run.stamp || "" });
    if (!beside.runs.includes(run) || !("value" in answer)) continue;
    Object.assign(run, answer);
    redraw();
  }
}

function compare(name) {
  if (name) beside.runs.push({ name });
  redraw();
  fetchRuns();
}

// --- the page ---
function tools(v) {
  const left = (v.runs || []).filter((name) => name !== v.run && !beside.runs.some((run) => run.name === name)), rounds = SMOOTH[chosen.smooth];
  return h("div", { class: "charts-tools" },
    h("label", { class: "charts-tool" }, h("span", {}, "Horizontal axis"), h("select", { "data-axis": "" }, Object.entries(AXES).map(([value, name]) => h("option", { value }, name)))),
    h("label", { class: "charts-tool charts-smooth" }, h("span", {}, "Smoothing"),
      h("input", { type: "range", "data-own": "", min: 0, max: SMOOTH.length - 1, step: 1, "data-smooth": "", "aria-valuetext": rounds ? `over ${rounds} rounds` : "off" }), h("output", {}, rounds ? `${rounds} rounds` : "off")),
    left.length && beside.runs.length < COLOURS - 1 ? h("label", { class: "charts-tool" }, h("span", {}, "Compare with"),
      h("select", { "data-compare": "" }, h("option", { value: "" }, "a run…"), left.map((name) => h("option", { value: name, key: `run-${name}` }, short(name, 40))))) : null,
    h("a", { class: "s-button s-small charts-csv", href: v.csv, download: "" }, "Download CSV"));
}

function runChips(v) {
  if (!beside.runs.length) return null;
  return h("ul", { class: "charts-runs", "aria-label": "Runs in these charts" }, allRuns().map((run, i) => h("li", { key: `run-${run.name}` }, h("i", { "data-c": i }), h("span", {}, short(run.name, 40)),
    i && run.value && !run.value.charts?.length ? h("span", { class: "s-muted" }, run.value.run ? "no curves yet" : "cannot be read") : null,
    i ? h("button", { "data-act": "remove", "data-run": run.name, "aria-label": `Take ${run.name} out of the charts` }, "✕") : null)));
}

function view(v) {
  if (!("run" in v)) return waiting();
  if (!v.run) return h("section", { class: "s-card panel-empty", key: "empty" }, h("h2", {}, "Nothing to show yet"), h("p", {}, "Choose a run above, or start one on the Run page. Its curves grow here, round by round."));
  if (!(v.charts || []).length) return h("section", { class: "s-card panel-empty", key: "empty" }, h("h2", {}, "No curves yet"), h("p", {}, "They begin with the first scored round."));
  if (beside.of !== v.run) { Object.assign(beside, { of: v.run, runs: [] }); strips.clear(); }
  const still = v.charts.filter(isStill);
  drawn = new Map(v.charts.filter((chart) => !still.includes(chart)).map((chart) => [chart.key, prepare(chart)]));
  return h("div", { class: "charts", key: v.run },
    h("div", { class: "charts-head" }, h("h2", {}, "Progress"), tools(v)), runChips(v),
    v.thinned ? h("p", { class: "s-muted charts-thinned" }, "This run is long: of each stretch of rounds the charts show the lowest and the highest. The CSV has all of them.") : null,
    h("div", { class: "charts-grid" }, v.charts.filter((chart) => drawn.has(chart.key)).map(figure)),
    still.length ? h("p", { class: "s-muted charts-still" }, `All 0 so far, and not drawn: ${still.map((chart) => chart.title).join("; ")}.`) : null);
}

function fillTable(details) {
  const of = drawn.get(details.closest(".chart").dataset.chart);
  if (of) morphChildren(details.querySelector(".chart-scroll"), details.open ? [table(of)] : []);
}

const observer = new ResizeObserver((entries) => entries.forEach((e) => draw(e.target)));
show(view, () => {
  observer.disconnect();
  for (const plot of element.querySelectorAll(".chart-plot")) { observer.observe(plot); draw(plot); }
  for (const details of element.querySelectorAll(".chart-table[open]")) fillTable(details);
  const axis = element.querySelector("[data-axis]"), smooth = element.querySelector("[data-smooth]"), other = element.querySelector("[data-compare]");
  if (axis) axis.value = chosen.axis;
  if (smooth) smooth.value = chosen.smooth;
  if (other) other.value = "";
});
let ticks = 0;
everySecond(() => { if (beside.runs.length && element.offsetParent && ++ticks % 3 === 0) fetchRuns(); });

// --- what people do ---
onAct(({ act: kind, name, chart, round, run }) => {
  const of = drawn.get(chart), file = of && `${props.value.run}-${chart}`.replace(/[^\w.-]+/g, "-");
  if (kind === "hide") choose({ hidden: toggled(chosen.hidden, name) });
  if (kind === "log") choose({ log: toggled(chosen.log, of.chart.title) });
  if (kind === "csv") save(new Blob([csvOf(of)], { type: "text/csv" }), `${file}.csv`);
  if (kind === "png") savePicture(of, `${file}.png`);
  if (kind === "gallery") showGallery(Number(round), true);
  if (kind === "remove") { beside.runs = beside.runs.filter((other) => other.name !== run); redraw(); element.querySelector("[data-compare]")?.focus(); }
});
element.addEventListener("input", (event) => {
  const { target } = event;
  if (target.matches("[data-axis]")) choose({ axis: target.value });
  if (target.matches("[data-smooth]")) choose({ smooth: Number(target.value) });
  if (target.matches("[data-compare]")) compare(target.value);
});
element.addEventListener("toggle", (event) => { if (event.target.matches(".chart-table")) fillTable(event.target); }, true);
function readUnder(event) {
  const plot = event.target.closest?.(".chart-plot"), of = plot && drawn.get(plot.dataset.chart);
  if (!of) return event.target.closest?.(".chart")?.dataset.chart === over ? null : read(null); // within the chart: on the way to its images
  if (!plot.layout || !of.stops.length) return read(null);
  const x = event.clientX - plot.getBoundingClientRect().left, l = plot.layout, span = l.x(l.last) - l.x(l.first);
  const asked = span ? l.first + ((x - l.x(l.first)) / span) * (l.last - l.first) : l.first;
  read(axisAt(of, nearest(of.stops, Math.min(of.stops[of.stops.length - 1], Math.max(of.stops[0], asked)))), of.chart.key);
}
element.addEventListener("pointermove", readUnder);
element.addEventListener("pointerdown", readUnder); // a finger that taps does not move
element.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") read(null); });
element.addEventListener("focusout", (event) => { if (!event.relatedTarget?.closest?.(".chart") || event.relatedTarget.closest(".chart").dataset.chart !== over) read(null); });
element.addEventListener("click", (event) => { if (event.target.closest(".chart-plot") && roundRead()) showGallery(roundRead(), false); });
element.addEventListener("keydown", (event) => {
  const of = drawn.get(event.target.closest(".chart-plot")?.dataset.chart), by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (of && event.key === "Enter" && roundRead()) { event.preventDefault(); return showGallery(roundRead(), true); }
  const stops = of?.runs[0].stops;
  if (!stops?.length || by === undefined) return;
  event.preventDefault();
  const from = at === null ? (by > 0 ? -1 : stops.length) : stops.indexOf(nearest(stops, here(of)));
  read(axisAt(of, stops[Math.min(stops.length - 1, Math.max(0, from + by))]), of.chart.key);
});
