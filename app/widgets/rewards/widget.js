// Any pictures, any rewards: every value with what it was made from, to sort, to compare, and to take away.
const AT_ONCE_MS = 700, TYPING_MS = 500, LARGEST_BYTES = 20 * 1024 * 1024, KEPT = "studio-rewards";
const fresh = () => ({
  pictures: [], prompt: "", typed: false, chosen: ["jpeg_compressibility"], models: "pocket", device: "auto", vlm: "", sort: null, marked: [],
});
const state = { ...fresh(), values: new Map(), failures: {}, now: null, stopped: false, said: "", problems: [], bringing: 0, told: "", round: null };
let timer = null, typing = null, asking = false, number = 0;

// --- what is remembered until the tab is closed ---

function keep() {
  const kept = Object.fromEntries(Object.keys(fresh()).map((key) => [key, state[key]]));
  try { sessionStorage.setItem(KEPT, JSON.stringify(kept)); } catch { /* private windows keep nothing */ }
}

function recall() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) || "{}");
    for (const key of Object.keys(fresh())) if (key in kept) state[key] = kept[key];
  } catch { /* nothing kept */ }
}

// --- values ---

const card = (name) => (props.value.cards || []).find((c) => c.name === name);
const columns = () => (props.value.cards || []).filter((c) => state.chosen.includes(c.name));
const promptOf = (p) => (p.run && !state.typed ? p.prompt : state.prompt.trim());
const settings = () => `${state.models}|${state.device}`;
const column = (name) => JSON.stringify([name, card(name)?.version, settings(), card(name)?.looks ? state.vlm : ""]);
const cells = new Map(); // their keys, from one drawing to the next
function cell(p, name) {
  const short = `${name} ${p.key}`;
  if (!cells.has(short)) cells.set(short, JSON.stringify([column(name), p.key, promptOf(p)]));
  return cells.get(short);
}
const found = (p, name) => state.values.get(cell(p, name));
const failure = (name) => state.failures[column(name)];
// The value to show: the present one, or, while that is on its way, the one before it.
function shown(p, name) {
  const present = found(p, name);
  if (present) state.values.set(`last ${name} ${p.key}`, present);
  return present || state.values.get(`last ${name} ${p.key}`);
}
const pending = () => columns().filter((c) => !failure(c.name) && state.pictures.some((p) => !found(p, c.name)));

const networks = () => ({ models: state.models, device: state.device, vlm: state.vlm });

async function post(path, body) {
  const answer = await fetch(`/studio/rewards/${path}`, { method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body) });
  const read = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(read.detail || `The server answered ${answer.status}.`);
  return read;
}

// Ask for what is missing, and again until all is there.
async function score() {
  clearTimeout(timer);
  timer = null;
  cells.clear();
  if (asking || typing || state.stopped || !element.isConnected || !pending().length) return;
  asking = true;
  const pictures = [...state.pictures], names = pending().map((c) => c.name);
  const places = names.map((name) => pictures.map((p) => cell(p, name))), heads = names.map(column);
  const items = pictures.map((p) => (p.run ? { run: p.run, sample: p.sample, image: p.image, typed: state.typed } : { picture: p.picture }));
  try {
    const answer = await post("scores", { rewards: names, prompt: state.prompt.trim(), ...networks(), items });
    names.forEach((name, at) => {
      answer.scores[name].values.forEach((value, i) => { if (value) state.values.set(places[at][i], value); });
      if (answer.scores[name].failure) state.failures[heads[at]] = answer.scores[name].failure;
    });
    state.now = answer.now;
    if (answer.gone.length) lose(answer.gone.map((at) => pictures[at].key));
    state.trouble = "";
  } catch (error) {
    state.trouble = error instanceof TypeError ? "The server does not answer; trying again." : error.message;
  }
  asking = false;
  cells.clear();
  if (pending().length) timer = setTimeout(score, state.trouble ? 3 * AT_ONCE_MS : AT_ONCE_MS);
  else state.now = null;
  redraw();
}

function drop(keys) {
  state.pictures = state.pictures.filter((p) => !keys.includes(p.key));
  state.marked = state.marked.filter((key) => !keys.includes(key));
}

function lose(keys) {
  drop(keys);
  const name = keys.length === 1 ? "One picture" : `${keys.length} pictures`;
  state.problems.push({ name, text: "no longer on the server. Bring them again.", id: ++number });
}

function go() {
  state.stopped = false;
  keep();
  redraw();
  score();
}

// --- pictures ---

async function bring(files) {
  const { most } = props.value;
  state.problems = [];
  for (const [at, file] of files.entries()) {
    if (state.pictures.length >= most) {
      leaveOut(files.length - at);
      redraw();
      break;
    }
    state.bringing += 1;
    redraw();
    try {
      if (file.size > LARGEST_BYTES) throw new Error("This file has more than 20 MB. Save the picture smaller, or as a JPEG.");
      const answer = await fetch("/studio/rewards/pictures", { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
      const read = await answer.json().catch(() => ({}));
      if (!answer.ok) throw new Error(read.detail || `The server answered ${answer.status}.`);
      const url = `/studio/rewards/pictures/${read.picture}`;
      add([{ key: read.picture, picture: read.picture, name: file.name || "pasted picture", url, small: `${url}?small=true` }]);
    } catch (error) {
      state.problems.push({ name: file.name || "This picture",
        text: error instanceof TypeError ? "The server does not answer. Try again." : error.message, id: ++number });
    }
    state.bringing -= 1;
    go();
  }
}

// Said once, however many they are.
function leaveOut(left) {
  state.problems.push({ name: left === 1 ? "1 picture" : `${left} pictures`,
    text: `${left === 1 ? "was" : "were"} left out: there is room for ${props.value.most}.`, id: ++number });
}

function add(pictures) {
  for (const picture of pictures) if (!state.pictures.some((p) => p.key === picture.key)) state.pictures.push(picture);
}

// The round that was chosen of the present run, or its last one.
function roundOf(v) {
  const rounds = v.rounds || [];
  return state.round && state.round.run === v.run && rounds.includes(state.round.number) ? state.round.number : rounds.at(-1);
}

async function takeRound() {
  const { run, most } = props.value;
  state.problems = [];
  try {
    const answer = await server.round_pictures({ run, round: roundOf(props.value) });
    const found = answer.pictures.map((p) => ({ ...p, key: `${p.run}/${p.url}`, small: p.url }));
    const pictures = found.filter((p) => !state.pictures.some((q) => q.key === p.key));
    const room = Math.max(0, most - state.pictures.length), left = Math.max(0, pictures.length - room) + answer.more;
    if (left) leaveOut(left);
    add(pictures.slice(0, room));
  } catch {
    state.problems = [{ name: "The round's pictures", text: "The server does not answer. Try again.", id: ++number }];
  }
  go();
}

// --- numbers ---

function figure(value) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat("en", { maximumSignificantDigits: Math.abs(value) >= 1000 ? 6 : 4 }).format(value).replace("-", "−");
}
const known = (score) => score && score.value !== null && score.value !== undefined;
const difference = (a, b) => (known(a) && known(b) ? `${a.value > b.value ? "+" : ""}${figure(a.value - b.value)}` : "–");

// The best and the worst of a column, where one picture alone is it.
function extremes(name) {
  const all = state.pictures.map((p) => found(p, name)?.value).filter((v) => v !== null && v !== undefined);
  const alone = (value) => (all.filter((v) => v === value).length === 1 ? value : undefined);
  return all.length > 1 ? { best: alone(Math.max(...all)), worst: alone(Math.min(...all)) } : {};
}

function ordered() {
  const { sort } = state;
  if (!sort || !state.chosen.includes(sort.by)) return state.pictures;
  const value = (p) => shown(p, sort.by)?.value;
  return [...state.pictures].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || x === undefined || y === null || y === undefined) return (x === null || x === undefined) - (y === null || y === undefined);
    return sort.down ? y - x : x - y;
  });
}

// --- the page: what to score ---

function dropView(v) {
  const rounds = v.rounds || [];
  return h("div", { class: "rw-drop", "data-drop": "" },
    h("svg", { viewBox: "0 0 48 36", class: "rw-art", "aria-hidden": "true" },
      h("rect", { x: 2, y: 6, width: 26, height: 26, rx: 6 }), h("rect", { x: 20, y: 2, width: 26, height: 26, rx: 6, class: "rw-art-top" }),
      h("path", { d: "M24 23l7-8 5 5 3-3 4 6" }), h("circle", { cx: 29, cy: 10, r: 2 })),
    h("p", { class: "rw-drop-text" }, h("b", {}, "Drop pictures here, or paste them")),
    h("div", { class: "s-row rw-drop-row" },
      h("button", { class: "s-button", "data-act": "choose" }, state.bringing ? "Reading…" : "Choose files"),
      h("input", { type: "file", "data-files": "", multiple: true, accept: "image/*", class: "s-visually-hidden", tabindex: -1,
        "aria-label": "Pictures", "data-own": "" })),
    rounds.length ? h("div", { class: "rw-round" }, h("label", {}, h("span", {}, `or from ${short(v.run, 24)}`),
      h("select", { "data-round": "", "aria-label": "Round" }, [...rounds].reverse().map((n) => h("option", { value: n, key: n }, `Round ${n}`)))),
      h("button", { class: "s-button s-small", "data-act": "round" }, "Take its pictures"))
      : h("p", { class: "rw-round s-muted" }, v.run ? "The selected run has no pictures yet." : ""));
}

function chipsView(v) {
  return h("fieldset", { class: "rw-part rw-rewards" }, h("legend", {}, "Rewards"),
    h("div", { class: "rw-chips" }, v.cards.map((c) => h("label", { class: "rw-chip", key: c.name, "data-about": c.name },
      h("input", { type: "checkbox", "data-reward": c.name, "aria-describedby": `rw-about-${c.name}`, checked: state.chosen.includes(c.name) }),
      h("span", {}, c.title), h("small", {}, c.unit), h("span", { class: "s-visually-hidden", id: `rw-about-${c.name}` },
        `${c.asks} Fooled by ${c.fooled_by}. ${needs(c)}`)))),
    aboutView(card(state.told)));
}

function needs(c) {
  if (!c.networks) return "No networks.";
  return `Published networks: ${c.download}. ${c.pocket ? "Comes with pocket networks. " : ""}Licence: ${c.licence}.`;
}

function aboutView(c) {
  if (!c) return h("p", { class: "rw-about s-muted", "aria-hidden": "true" },
    "Point at a reward, or move to it with Tab, to read what it asks for and what fools it.");
  return h("p", { class: "rw-about", "aria-hidden": "true" }, h("span", {}, `${c.asks} Fooled by ${c.fooled_by}.`),
    h("span", { class: "s-muted" }, needs(c)));
}

function radio(name, value, text) {
  return h("label", { class: "rw-radio" }, h("input", { type: "radio", name: `studio-rewards-${name}`, "data-set": name, value }),
    h("span", {}, text));
}

function settingsView() {
  const looks = columns().some((c) => c.looks);
  return h("div", { class: "rw-settings" },
    h("fieldset", { class: "rw-part" }, h("legend", {}, "Networks that score"), h("div", { class: "rw-switch" },
      radio("models", "pocket", "Pocket"), radio("models", "published", "Published"))),
    h("fieldset", { class: "rw-part" }, h("legend", {}, "Where they run"), h("div", { class: "rw-switch" },
      radio("device", "auto", "GPU if there is one"), radio("device", "cpu", "CPU"))),
    looks ? h("label", { class: "rw-part rw-vlm", key: "vlm" }, h("span", { class: "rw-label" }, "What looks at images"),
      h("input", { type: "text", "data-vlm": "", "data-own": "", placeholder: `${state.models === "pocket" ? "The pocket's LLaVA" : "LLaVA 1.5"}, or http://host/v1#model`, spellcheck: "false",
        autocomplete: "off" })) : null);
}

function promptView() {
  const own = state.pictures.some((p) => p.run);
  return h("div", { class: "rw-part" },
    h("label", { class: "rw-label", for: "rw-prompt" }, "Prompt"),
    h("textarea", { id: "rw-prompt", "data-prompt": "", "data-own": "", rows: 2, maxlength: 10000, placeholder: "What the pictures should show" }),
    h("label", { class: "rw-check", "data-off": !own }, h("input", { type: "checkbox", "data-typed": "", disabled: !own }),
      h("span", {}, "For pictures of a round, too (they have their own)")));
}

// --- the page: what was scored ---

function status() {
  const n = state.pictures.length, waits = pending();
  if (state.trouble) return state.trouble;
  if (!n || !columns().length) return "";
  if (waits.length && state.stopped) return "Stopped.";
  if (waits.length) {
    const now = state.now && card(state.now.reward);
    if (!now) return "Starting…";
    if (state.now.downloading) return `${now.title}: downloading ${state.now.download}…`;
    return `${now.title}: ${state.now.loading ? "loading its networks" : "scoring"}…`;
  }
  const failed = columns().filter((c) => failure(c.name)).length;
  const bad = state.pictures.filter((p) => columns().some((c) => found(p, c.name)?.error)).length;
  return `${n === 1 ? "1 picture" : `${n} pictures`} scored${failed ? `; ${failed === 1 ? "one reward" : `${failed} rewards`} cannot` : ""}${
    bad ? `; ${bad === 1 ? "one picture lacks" : `${bad} pictures lack`} a value` : ""}.`;
}

function toolsView() {
  const waits = pending().length > 0;
  return h("div", { class: "rw-tools" },
    h("p", { class: "s-muted rw-status", "data-busy": waits && !state.stopped }, h("span", { role: "status" }, state.said || status()),
      h("span", { "aria-hidden": "true" }, waits && !state.stopped && state.now?.seconds >= 2 ? ` ${duration(state.now.seconds)}` : "")),
    h("div", { class: "s-row rw-actions" },
      state.stopped && waits ? h("button", { class: "s-button s-small", "data-act": "go", key: "go" }, "Go on")
        : h("button", { class: "s-button s-small s-ghost", "data-act": "stop", key: "stop", "aria-disabled": waits ? null : "true" }, "Stop"),
      h("button", { class: "s-button s-small", "data-act": "compare", key: "compare", disabled: state.marked.length !== 2,
        title: "Tick two pictures first" }, `Compare ${state.marked.length} of 2`),
      h("button", { class: "s-button s-small", "data-act": "copy", key: "copy" }, "Copy as CSV"),
      h("button", { class: "s-button s-small", "data-act": "download-csv", key: "csv" }, "Download CSV"),
      h("button", { class: "s-button s-small s-ghost s-quiet-danger", "data-act": "clear", key: "clear" }, "Clear")));
}

function headView(c) {
  const down = state.sort?.by === c.name ? state.sort.down : null;
  return h("th", { scope: "col", key: `h-${c.name}`, "aria-sort": down === null ? "none" : down ? "descending" : "ascending" },
    h("button", { class: "rw-sort", "data-act": "sort", "data-by": c.name, title: `Sort by ${c.title}` },
      h("span", {}, c.title), h("i", { "aria-hidden": "true" }, down === null ? "" : down ? "↓" : "↑")),
    h("small", {}, [c.unit, c.range].filter(Boolean).join(", ")));
}

function valueView(p, c, edge) {
  const now = found(p, c.name), value = shown(p, c.name);
  if (!value) {
    const wait = state.stopped ? h("span", { class: "s-muted" }, "–") : h("span", { class: "rw-wait", role: "img", "aria-label": "Being scored" });
    return h("td", { key: c.name, class: "rw-value" }, wait);
  }
  if (value.error) return h("td", { key: c.name, class: "rw-value" }, h("p", { class: "rw-unread s-muted" }, value.error));
  const counts = now && value.value !== null;
  const rank = counts && value.value === edge.best ? "best" : counts && value.value === edge.worst ? "lowest" : null;
  return h("td", { key: c.name, class: "rw-value", "data-rank": rank, "data-old": !now },
    h("p", { class: "rw-number" }, h("b", {}, figure(value.value)), h("span", {}, ` ${c.unit} `), rank && h("em", {}, rank)),
      notesView(value.notes, "rw-notes"));
}

function notesView(notes, kind) {
  if (!notes.length) return null;
  return h("ul", { class: kind, title: notes.map((n) => n.text).join("\n") },
    notes.map((n) => h("li", { "data-right": n.right === undefined ? null : String(n.right) },
    n.right === undefined ? null : h("b", {}, n.right ? "yes " : "no "), n.text)));
}

function failureView(c, rows) {
  const problem = failure(c.name);
  return h("td", { key: c.name, rowspan: rows, class: "rw-value" }, h("div", { class: "rw-failure" },
    h("div", { role: "alert" }, h("h4", {}, "Cannot score"), h("p", {}, problem.text)),
    h("div", { class: "s-row" },
      problem.download ? h("button", { class: "s-button s-small", "data-act": "download", "data-reward": c.name,
        "aria-label": `Download for ${c.title}` }, "Download") : null,
      problem.retry ? h("button", { class: "s-button s-small", "data-act": "retry", "data-reward": c.name, "aria-label": `Retry ${c.title}` },
        "Retry") : null),
    problem.commands.length ? h("details", { class: "rw-how" }, h("summary", {}, "Without network"),
      h("p", {}, "On a computer with network, then copy its cache of the Hub:"), problem.commands.map((text) => h("code", {}, text))) : null));
}

function rowView(p, at, rows, edges) {
  const name = promptOf(p) ? short(promptOf(p), 60) : p.name;
  return h("tr", { key: p.key, "data-marked": state.marked.includes(p.key) },
    h("th", { scope: "row", class: "rw-picture" }, h("label", { title: p.name },
      h("input", { type: "checkbox", "data-mark": p.key, checked: state.marked.includes(p.key), "aria-label": `Compare ${p.name}, ${name}` }),
      h("img", { src: p.small, alt: "", width: 76, height: 76, decoding: "async", draggable: "false" }))),
    h("td", { class: "rw-prompt", key: "prompt" }, h("p", { class: promptOf(p) ? "" : "s-muted", title: short(promptOf(p), 600) },
      promptOf(p) ? short(promptOf(p), 300) : "no prompt"),
      h("small", {}, short(p.name, 40)), h("button", { class: "rw-remove", "data-act": "remove", "data-picture": p.key,
        "aria-label": `Remove ${p.name}` }, "Remove")),
    columns().map((c) => (failure(c.name) ? (at === 0 ? failureView(c, rows) : null) : valueView(p, c, edges[c.name]))));
}

function tableView() {
  const list = ordered(), edges = Object.fromEntries(columns().map((c) => [c.name, extremes(c.name)]));
  return h("div", { class: "s-card rw-box" },
    h("div", { class: "rw-scroll", tabindex: 0, role: "region", "aria-label": "Values" },
      h("table", { class: "rw-table", "data-tall": columns().some((c) => c.looks), style: `--columns: ${columns().length}` },
        h("caption", { class: "s-visually-hidden" }, "Every picture with its values"),
        h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "rw-picture" }, h("span", { class: "s-visually-hidden" }, "Picture")),
          h("th", { scope: "col", class: "rw-prompt" }, "Prompt"), columns().map(headView))),
        h("tbody", {}, list.map((p, at) => rowView(p, at, list.length, edges))))));
}

function resultsView() {
  if (!state.pictures.length) return h("p", { class: "rw-none s-muted", key: "none" },
    "Bring some pictures, and every reward that you tick says here what it thinks of them, with its reasons.");
  return h("section", { class: "rw-results", key: "results", "aria-label": "Scores" }, toolsView(),
    columns().length ? null : h("p", { class: "s-muted" }, "Tick a reward above."), tableView());
}

let held = null; // what has the focus, while the page is drawn anew

function view(v) {
  cells.clear();
  held = element.contains(document.activeElement) ? document.activeElement : null;
  if (!v.cards) return waiting();
  return h("div", { class: "rw" },
    h("div", { class: "rw-head" }, h("h2", {}, "What would a reward say?"), h("p", { class: "s-muted" },
      "Any pictures, any rewards, side by side. It works while a run trains, which goes first.")),
    h("section", { class: "s-card rw-ask", "aria-label": "What to score" },
      h("div", { class: "rw-left" }, dropView(v), promptView()), h("div", { class: "rw-right" }, chipsView(v), settingsView())),
    h("ul", { class: "rw-problems", role: "alert", key: "problems" },
      state.problems.map((p) => h("li", { class: "s-note s-inline", "data-tone": "bad", key: `p${p.id}` }, h("b", {}, `${short(p.name, 60)}: `),
      p.text))),
    resultsView());
}

function after(v) {
  const put = (selector, value) => {
    const node = element.querySelector(selector);
    if (node && document.activeElement !== node && node.value !== value) node.value = value;
  };
  put("[data-prompt]", state.prompt);
  put("[data-vlm]", state.vlm);
  put("[data-round]", String(roundOf(v) ?? ""));
  for (const node of element.querySelectorAll("input")) {
    if (node.dataset.set) node.checked = state[node.dataset.set] === node.value;
    if (node.dataset.reward) node.checked = state.chosen.includes(node.dataset.reward);
    if (node.dataset.mark) node.checked = state.marked.includes(node.dataset.mark);
    if ("typed" in node.dataset) node.checked = state.typed;
  }
  if (held?.isConnected && lost()) held.focus({ preventScroll: true }); // its row was moved
  if (!timer) score(); // the first value from the server has come, or another one
}

const lost = () => !document.activeElement || document.activeElement === document.body;
// Give the focus to the first of these that is there, unless it is somewhere already.
function focus(...selectors) {
  if (lost()) selectors.map((each) => element.querySelector(each)).find(Boolean)?.focus({ preventScroll: true });
}

// --- two beside each other ---

function compare() {
  const pair = state.marked.map((key) => state.pictures.find((p) => p.key === key)), back = document.activeElement;
  const values = columns().filter((c) => !failure(c.name)).map((c) => ({ c, both: pair.map((p) => found(p, c.name)) }));
  const dialog = h("dialog", { class: "s-dialog rw-compare", autofocus: true, tabindex: -1, "aria-label": "Two pictures compared" },
    h("div", { class: "rw-pair" }, pair.map((p, i) => h("figure", {}, h("img", { src: p.url, alt: `Picture ${"AB"[i]}: ${short(p.name, 100)}` }),
      h("figcaption", {}, h("b", {}, `${"AB"[i]} `), short(promptOf(p) || p.name, 300))))),
    h("table", { class: "rw-both" }, h("caption", { class: "s-visually-hidden" }, "What each reward says of A, of B, and the difference"),
      h("thead", { class: "s-visually-hidden" }, h("tr", {}, h("th", { scope: "col" }, "A"), h("th", { scope: "col" }, "B"))),
      values.map(({ c, both: [a, b] }) => h("tbody", {},
        h("tr", {}, h("th", { scope: "rowgroup", colspan: 2 }, h("span", {}, h("b", {}, c.title), h("small", {}, c.unit)),
          h("span", {}, "A − B ", h("b", {}, difference(a, b))))),
        h("tr", {}, [[a, b], [b, a]].map(([x, y]) => h("td", { "data-rank": known(x) && known(y) && x.value > y.value ? "best" : null },
          h("b", {}, figure(x?.value)), x ? notesView(x.notes, "rw-reasons") : null)))))),
    h("form", { method: "dialog", class: "s-row s-end" }, h("button", { class: "s-button" }, "Close")));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { dialog.remove(); back?.focus?.(); });
  document.body.append(dialog);
  dialog.showModal();
}

// --- CSV ---

function csv() {
  const text = (value) => (/^[=+\-@\t\r]/.test(value) ? `'${value}` : value); // a spreadsheet would take it for a formula
  const quoted = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const head = ["image", "prompt", ...columns().flatMap((c) => [c.name, `${c.name}_explanation`])];
  const rows = ordered().map((p) => [text(p.run ? `${p.run}, ${p.name}` : p.name), text(promptOf(p)), ...columns().flatMap((c) => {
    const value = found(p, c.name);
    if (value?.error) return ["", text(value.error)];
    return value ? [value.value ?? "", JSON.stringify(value.explanation)] : ["", ""];
  })]);
  return [head, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
}

function say(text) {
  state.said = text;
  redraw();
  setTimeout(() => { state.said = ""; redraw(); }, 2500);
}

async function copy() {
  const text = csv();
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch { // refused, or a page without a secure address
    const area = h("textarea", { readonly: true, rows: 12, "aria-label": "The table as CSV", autofocus: true }), back = document.activeElement;
    const dialog = h("dialog", { class: "s-dialog rw-csv", "aria-labelledby": "rw-csv-title" }, h("h3", { id: "rw-csv-title" }, "Copy this"),
      h("p", {}, "The browser does not let the page copy by itself."), area,
      h("form", { method: "dialog", class: "s-row s-end" }, h("button", { class: "s-button" }, "Close")));
    area.value = text;
    dialog.addEventListener("close", () => { dialog.remove(); back?.focus?.(); });
    document.body.append(dialog);
    dialog.showModal();
    area.select();
  }
}

function download() {
  const link = h("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "rewards.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- what people do ---

function sortBy(name) {
  const { sort } = state;
  state.sort = sort?.by !== name ? { by: name, down: true } : sort.down ? { by: name, down: false } : null;
}

async function steer(kind, reward) {
  const head = reward && column(reward);
  try {
    await post("steer", { kind, reward, ...networks() });
  } catch (error) {
    state.trouble = error instanceof TypeError ? "The server does not answer. Try again." : error.message;
    redraw();
    return;
  }
  if (!reward) return;
  delete state.failures[head]; // only now: what is asked before the server knows brings the old failure back
  state.trouble = "";
  go();
  focus(`[data-act=sort][data-by="${CSS.escape(reward)}"]`);
}

function remove(key) {
  const list = ordered(), at = list.findIndex((p) => p.key === key), next = list[at + 1] || list[at - 1];
  drop([key]);
  go();
  focus(`[data-act=remove][data-picture="${CSS.escape(next?.key || "")}"]`, "[data-act=choose]");
}

const DEEDS = {
  choose: () => element.querySelector("[data-files]").click(),
  round: takeRound, compare, copy, "download-csv": download,
  go: () => { go(); focus("[data-act=stop]"); },
  stop: () => { state.stopped = true; redraw(); focus("[data-act=go]"); steer("stop"); },
  sort: (data) => { sortBy(data.by); keep(); redraw(); },
  remove: (data) => remove(data.picture),
  clear: () => {
    Object.assign(state, { pictures: [], marked: [], sort: null, problems: [], failures: {}, now: null });
    state.values.clear();
    keep();
    redraw();
    element.querySelector("[data-act=choose]").focus();
  },
  retry: (data) => steer("retry", data.reward),
  download: (data) => steer("download", data.reward),
};
onAct((data) => DEEDS[data.act](data));

element.addEventListener("change", ({ target }) => {
  if (target.matches("[data-files]")) { bring([...target.files]); target.value = ""; return; }
  const { reward, mark, set } = target.dataset;
  if (reward) state.chosen = target.checked ? [...state.chosen, reward] : state.chosen.filter((name) => name !== reward);
  else if (mark) state.marked = target.checked ? [...state.marked, mark].slice(-2) : state.marked.filter((key) => key !== mark);
  else if (set) state[set] = target.value;
  else if ("typed" in target.dataset) state.typed = target.checked;
  else if ("round" in target.dataset) state.round = { run: props.value.run, number: Number(target.value) };
  else if ("vlm" in target.dataset) state.vlm = target.value.trim(); // when it is whole: half an address is somebody else's
  else return;
  go();
});
element.addEventListener("input", ({ target }) => {
  if (!target.matches("[data-prompt]")) return;
  state.prompt = target.value;
  cells.clear();
  clearTimeout(typing);
  typing = setTimeout(() => { typing = null; go(); }, TYPING_MS);
});
for (const kind of ["pointerover", "focusin"]) {
  element.addEventListener(kind, ({ target }) => {
    const about = target.closest?.("[data-about]")?.dataset.about;
    if (about && about !== state.told) { state.told = about; redraw(); }
  });
}

// Dropped anywhere on the tab, or pasted while it is open.
const open = () => element.isConnected && element.offsetParent !== null;
const pictures = (data) => [...(data?.files || [])];
function listen(kind, work) {
  const heard = (event) => {
    if (!element.isConnected) return window.removeEventListener(kind, heard);
    if (open() && !document.querySelector("dialog[open]")) work(event);
  };
  window.addEventListener(kind, heard);
}
const lit = (on) => element.querySelector("[data-drop]")?.toggleAttribute("data-lit", on);
const carries = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
listen("dragover", (event) => { if (carries(event)) { event.preventDefault(); lit(true); } });
listen("dragleave", (event) => { if (!event.relatedTarget) lit(false); });
listen("drop", (event) => { if (carries(event)) { event.preventDefault(); lit(false); bring(pictures(event.dataTransfer)); } });
listen("paste", (event) => {
  const files = pictures(event.clipboardData), writes = event.target.isContentEditable || event.target.matches?.("textarea, input[type=text]");
  if (writes && event.clipboardData.types.includes("text/plain")) return; // a text with a picture of it, as word processors give
  if (files.length) { event.preventDefault(); bring(files); }
});

recall();
show(view, after);
const draw = redraw;
redraw = () => { if (open()) draw(); }; // nobody sees a hidden tab; it is drawn when it is shown
new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting)) draw(); }).observe(element);
