() => {
  // The contrast of texts and marks on the board with what lies behind them, by the rule of WCAG 2.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const behind = (node) => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255]; };
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const names = [".title", ".phase", ".prompt", ".teach", ".counts", ".hint", ".saved", ".rater", ".tool", ".badge[data-mark=up]", ".badge[data-mark=down]", ".badge[data-mark=skip]", ".badge[data-mark=good]", ".badge[data-mark=best]", ".badge[data-mark=worst]", ".badge[data-mark=tie]", ".badge[data-mark=bad]", ".mode", ".rate.good.on", ".rate.best.on", ".rate.worst.on", ".rate.left.on", ".rate.tie.on", ".rate.bad.on", ".rate.up.on", ".rate.down.on", ".rate.up:not(.on)", ".apply[aria-disabled=false]"];
  const nodes = names.map((name) => [name, document.querySelector(`#rating-board ${name}`)]).filter(([, node]) => node && node.offsetParent);
  return Object.fromEntries(nodes.map(([name, node]) => [name, Math.round(100 * ratio(rgb(getComputedStyle(node).color), behind(node))) / 100]));
}
