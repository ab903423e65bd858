// A chart as files: its values as CSV, and itself as a PNG in the light palette at twice its size. Made in the browser; nothing is sent.
const PICTURE = { width: 900, plot: 420, margin: 28, scale: 2 };

function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// What is shown: one row a run and round, one column a line that is not hidden.
function csvOf(drawn) {
  const quoted = (cell) => (/[",\n]/.test(String(cell)) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell));
  const labels = [...new Set(drawn.lines.map((s) => s.label))], smooth = drawn.lines.some((s) => s.smooth) ? labels.filter((label) => drawn.lines.some((s) => s.label === label && s.smooth)) : [];
  const own = drawn.chart.across ? [drawn.chart.across] : [], rows = [["run", "round", "images_scored", "seconds", ...own, ...labels, ...smooth.map((label) => `${label}, smoothed`)]];
  for (const run of drawn.runs) {
    const lines = new Map(drawn.lines.filter((s) => s.run === run.index).map((s) => [s.label, s])), rounds = new Set();
    for (const s of lines.values()) for (const p of s.points) rounds.add(p[2]);
    const cell = (label, round, what) => { const value = lines.get(label)?.byRound.get(round)?.[what]; return value ?? ""; };
    for (const round of [...rounds].sort((a, b) => a - b)) {
      rows.push([run.name, round, run.images(round), run.seconds(round), ...own.map(() => run.place(round)), ...labels.map((label) => cell(label, round, "y")), ...smooth.map((label) => cell(label, round, "smooth"))]);
    }
  }
  return `${rows.map((row) => row.map(quoted).join(",")).join("\n")}\n`;
}

// The rules and colours that the page's own charts have, for a picture that stands by itself.
function lightStyle() {
  const light = getComputedStyle(document.documentElement), rules = [];
  for (const sheet of document.styleSheets) {
    let own = [];
    try { own = [...sheet.cssRules]; } catch { continue; } // another site's sheet; there is none of ours
    rules.push(...own.filter((rule) => rule.selectorText?.includes(".chart")).map((rule) => rule.cssText));
  }
  const colours = ["card", "line", "line-strong", "ink", "muted", "wait", "good", ...Array.from({ length: COLOURS }, (_, i) => `c${i}`)];
  return `svg { ${colours.map((name) => `--s-${name}: ${light.getPropertyValue(`--s-${name}`)}`).join("; ")}; font-family: ui-sans-serif, system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }\n${rules.join("\n")}`;
}

function pictureOf(drawn) {
  const { width, plot, margin } = PICTURE, wide = width - 2 * margin, measure = document.createElement("canvas").getContext("2d");
  const items = legendOf(drawn).filter((item) => !item.hidden), rows = [[]];
  measure.font = "14px system-ui, sans-serif";
  let x = 0;
  for (const item of items) {
    const needs = measure.measureText(item.text).width + 46;
    if (x && x + needs > wide) { rows.push([]); x = 0; }
    rows[rows.length - 1].push([item, x]);
    x += needs;
  }
  const head = margin + 46, top = head + (items.length ? rows.length * 24 + 4 : 0), height = top + plot + margin - 8, l = layout(drawn.seen, drawn.span, drawn.log, wide, plot);
  const legend = rows.flatMap((row, i) => row.map(([item, at]) => h("g", { transform: `translate(${margin + at}, ${head + 24 * i})` },
    item.style === "dots" ? h("circle", { class: "chart-dot", "data-c": item.colour, cx: 11, cy: 0, r: 4.5 })
      : item.style === "count" ? h("rect", { class: "chart-count", x: 7, y: -6, width: 8, height: 12, rx: 1, style: "fill: var(--s-line-strong)" })
        : h("line", { class: "chart-line", "data-c": item.colour, "data-dash": item.dash || null, x1: 0, x2: 22, y1: 0, y2: 0 }),
    h("text", { x: 30, y: 5, style: "font-size: 14px; fill: var(--s-ink)" }, item.text))));
  const unit = [drawn.chart.unit, drawn.axis === "round" ? "" : `over ${(drawn.chart.across || AXES[drawn.axis]).toLowerCase()}`].filter(Boolean).join(" · ");
  return { width, height, svg: h("svg", { viewBox: `0 0 ${width} ${height}`, width: width * PICTURE.scale, height: height * PICTURE.scale }, h("style", {}, lightStyle()),
    h("rect", { width, height, style: "fill: var(--s-card)" }),
    h("text", { x: margin, y: margin + 14, style: "font-size: 19px; font-weight: 640; fill: var(--s-ink)" }, drawn.chart.title),
    h("text", { x: width - margin, y: margin + 14, "text-anchor": "end", style: "font-size: 14px; fill: var(--s-muted)" }, [drawn.runs.length > 1 ? "" : drawn.runs[0].name, unit].filter(Boolean).join(" · ")),
    h("g", { class: "chart" }, legend, h("g", { transform: `translate(${margin}, ${top})` }, plotMarks(drawn, l)))) };
}

async function savePicture(drawn, name) {
  const { svg, width, height } = pictureOf(drawn), image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(svg))}`;
  await image.decode();
  const canvas = h("canvas", { width: width * PICTURE.scale, height: height * PICTURE.scale });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  save(await new Promise((done) => canvas.toBlob(done, "image/png")), name);
}
