// Two sides, the same prompts, the same noise: a grid of pairs, and one pair large.
const POLL_MS = 600, TYPING_MS = 900, SLIDING_MS = 350, ROWS = 8, KEPT = "studio-compare", AT_ONCE = 64, MOST_PAIRS = 256;
const SEEDS = [1, 2, 3, 4, 6, 8], OF_RUN = { run: true, "held-out": true };
const kept = () => ({ sides: null, of: null, touched: false, set: "run", own: [], typed: "", count: 3, first: 1, rewards: null, going: false, beside: false, mode: 1, blind: null });
const state = { ...kept(), rows: ROWS, prompts: [], promptsOf: "", live: "", at: [0, 0], made: new Map(), last: new Map(), values: new Map(),
  failures: ["", ""], scoring: {}, now: null, busy: null, differ: "", trouble: "" };
let paint = () => {}, timer = null, scoreTimer = null, pause = null, asking = false, scoringNow = false;

// --- what is remembered until the tab is closed ---

function keep() {
  try { sessionStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(Object.keys(kept()).map((key) => [key, state[key]])))); } catch { /* private windows */ }
}

function recall() {
  try {
    const known = JSON.parse(sessionStorage.getItem(KEPT) || "{}");
    for (const key of Object.keys(kept())) if (key in known) state[key] = known[key];
    state.live = state.typed;
  } catch { /* nothing kept */ }
}

// --- sides ---

const runOf = (name) => (props.value.runs || []).find((r) => r.run === name);
const isBase = (side) => !side.round && !side.lora && side.lora !== null;
// Base against the result of the selected run (the latest round, or the one that it is rolled back to), or of the newest one that has a round; kept until a person chooses, or another run is selected.
function fill(v) {
  const gone = state.sides?.some((side) => !runOf(side.run));
  const rolled = runOf(v.run)?.rolled || 0, follows = !state.touched && state.of === v.run && (state.rolled || 0) !== rolled;
  if (state.sides && !gone && !follows && (state.touched || state.of === v.run || !runOf(v.run)?.rounds.length)) return;
  const home = runOf(v.run)?.rounds.length ? runOf(v.run) : v.runs.find((r) => r.rounds.length) || runOf(v.run) || v.runs[0];
  if (!home) return void (state.sides = null);
  against(home.run, home.result || 0);
  Object.assign(state, { of: v.run, rolled });
}

function against(run, round, strength = 1) {
  state.sides = [{ run, round: 0, lora: "", strength: 1 }, { run, round, lora: "", strength }];
  Object.assign(state, { of: run, touched: false, failures: ["", ""], rows: ROWS, set: "run", rewards: null });
}

const pathOf = (lora) => lora.replace(/\.safetensors$/i, "").split(/[\\/]/).filter(Boolean);
// A LoRA by its file's name; where the other side's is called so too, with its folder's.
function loraOf(side, other) {
  if (side.lora === null) return "LoRA file";
  const [path, its] = [side.lora, other.lora || ""].map(pathOf), alike = side.lora !== other.lora && path.at(-1) === its.at(-1);
  return `LoRA ${short(path.slice(alike ? -2 : -1).join("/"), 48)}`;
}
const nameOf = (side, other) => (side.round ? `round ${side.round}` : side.lora || side.lora === null ? loraOf(side, other) : "base model");
function titleOf(i) {
  const [a, b] = state.sides, side = state.sides[i];
  const of = a.run === b.run ? "" : side.lora || side.lora === null ? ` over the base of ${side.run}` : ` of ${side.run}`;
  const told = `${nameOf(side, state.sides[1 - i])}${of}${!isBase(side) && side.strength !== 1 ? ` at ${Math.round(100 * side.strength)} %` : ""}`;
  return upper(told);
}
const cards = () => (props.value.cards || []).filter((c) => !c.networks || !home()?.pocket || c.pocket);
const home = () => runOf(state.sides?.[1].run);
const promptSet = () => (state.set === "held-out" && !home()?.held_out ? "run" : state.set);
function chosen() {
  const wanted = state.rewards || home()?.rewards || [];
  const found = cards().filter((c) => wanted.includes(c.name));
  return found.length || state.rewards ? found : cards().filter((c) => c.name === "image_statistics");
}

// --- the grid ---

const seeds = () => Array.from({ length: state.count }, (_, i) => state.first + i);
// Rows from top to bottom: what is being typed, what was typed, and the run's or a set's prompts.
function rows() {
  const own = state.own.map((prompt) => ({ prompt, key: `own ${prompt}`, own: true }));
  const typed = state.live.trim();
  const set = state.prompts.filter((p) => !state.own.includes(p)).slice(0, state.rows).map((prompt) => ({ prompt, key: `set ${prompt}` }));
  return [{ prompt: typed, key: "live", live: true }, ...own, ...set];
}
const side = (i) => JSON.stringify(state.sides[i]); // a LoRA that is not chosen yet is null, and has no pictures
// A side and when its run was begun, which tells a run from another one of its name.
const model = (i) => `${side(i)} ${runOf(state.sides[i].run)?.created}`;
const cell = (i, prompt, seed) => `${model(i)} ${seed} ${prompt}`;
const key = (i, prompt, seed) => state.made.get(cell(i, prompt, seed));
// The picture to show: the present one, or, while that is made, the one before it.
function shown(i, prompt, seed) {
  const place = `${i} ${seed} ${prompt}`, present = key(i, prompt, seed);
  if (present) state.last.set(place, present);
  return { key: present || state.last.get(place), old: !present };
}
const ready = () => state.sides?.every((s) => s.lora !== null) && !state.failures.some(Boolean);
function missing() {
  if (!state.sides) return [];
  return rows().filter((r) => r.prompt).flatMap((r) => seeds().filter((s) => [0, 1].some((i) => !key(i, r.prompt, s))).map((s) => [r.prompt, s]));
}

async function post(path, body) {
  const answer = await fetch(`/studio/${path}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const read = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(read.detail || `The server answered ${answer.status}.`), { status: answer.status });
  return read;
}

// Ask for what is missing, and again until all is there or a side gives none. While a pair is large, it alone is asked for.
async function ask() {
  clearTimeout(timer);
  timer = null;
  if (state.blind || asking || pause || !ready() || !open()) return;
  const lacks = missing();
  if (!lacks.length) return score();
  const at_once = Math.floor(MOST_PAIRS / state.count);
  const alone = large && lacks.find(([prompt, seed]) => prompt === large.prompt && seed === large.seed);
  const prompts = alone ? [alone[0]] : [...new Set(lacks.map(([prompt]) => prompt))].slice(0, at_once), wanted = alone ? [alone[1]] : seeds();
  const sides = [side(0), side(1)], models = [model(0), model(1)], make = state.going && (!state.busy || state.beside);
  asking = true;
  try {
    const answer = await post("compare/pictures", { sides: sides.map((s) => JSON.parse(s)), prompts, seeds: wanted, make, beside: state.beside });
    answer.grid.forEach((row, r) => row.forEach((pair, c) => pair.forEach((found, i) => {
      if (found) state.made.set(`${models[i]} ${wanted[c]} ${prompts[r]}`, found);
    })));
    if (sides.every((s, i) => s === side(i))) state.failures = answer.failures;
    Object.assign(state, { now: answer.now, busy: answer.busy, differ: answer.differ, trouble: "" });
  } catch (error) {
    state.trouble = error instanceof TypeError ? "The server does not answer. It is asked again." : error.message;
  }
  asking = false;
  if (missing().length && ready()) timer = setTimeout(ask, state.going ? POLL_MS : 4 * POLL_MS); // before it is drawn, which asks where nothing is set
  draw();
  score();
}

// --- values ---

const networks = () => (home()?.pocket ? "pocket" : "published");
// Whose networks score is told where the two sides' runs have others: both sides are scored by those of B's run.
const byWhom = () => (runOf(state.sides[0].run)?.pocket !== home()?.pocket && chosen().some((c) => c.networks) ? `, by ${home()?.pocket ? "the pocket’s" : "published"} networks` : "");
const failed = (name) => state.scoring[`${networks()} ${name}`];
const value = (name, picture) => state.values.get(`${networks()} ${name} ${picture}`);
async function score() {
  if (state.blind || scoringNow || scoreTimer || !state.sides || !open()) return;
  const there = rows().filter((r) => r.prompt).flatMap((r) => seeds().flatMap((s) => [0, 1].map((i) => ({ made: key(i, r.prompt, s), prompt: r.prompt })))).filter((p) => p.made);
  const names = chosen().map((c) => c.name).filter((name) => !failed(name));
  const lacks = there.filter((p) => names.some((name) => !value(name, p.made))).slice(0, AT_ONCE);
  if (!lacks.length) return;
  scoringNow = true;
  const models = networks();
  let again = POLL_MS;
  try {
    const answer = await post("rewards/scores", { rewards: names, prompt: "", items: lacks, models, device: "auto", vlm: "" });
    for (const name of names) {
      const { values, failure } = answer.scores[name];
      if (failure) state.scoring[`${models} ${name}`] = failure.text;
      values.forEach((found, at) => { if (found) state.values.set(`${models} ${name} ${lacks[at].made}`, found); });
    }
    for (const at of answer.gone) for (const [place, made] of state.made) if (made === lacks[at].made) state.made.delete(place);
  } catch { again *= 4; }
  scoringNow = false;
  scoreTimer = setTimeout(() => { scoreTimer = null; score(); }, again);
  draw();
}

function figure(number) {
  if (number === null || number === undefined) return "–";
  return new Intl.NumberFormat("en", { maximumSignificantDigits: Math.abs(number) >= 1000 ? 5 : 3 }).format(number).replace("-", "−");
}

// Each reward's name between what it says of A and of B.
function valuesView(a, b) {
  return h("dl", { class: "cmp-values" }, chosen().map((c) => {
    const [x, y] = [a, b].map((picture) => (picture ? value(c.name, picture)?.value : undefined));
    const both = [x, y].every((n) => n !== null && n !== undefined);
    const one = (n, wins) => h("dd", { "data-better": both && wins }, n === undefined ? "" : figure(n));
    return h("div", { key: c.name, title: `${c.title}, ${c.unit}: A ${figure(x)}, B ${figure(y)}` }, one(x, x > y), h("dt", {}, c.title.replace(/ \(.*/, "")), one(y, y > x));
  }));
}

// --- the page: what is compared ---

function sideView(i, v) {
  const s = state.sides[i], run = runOf(s.run), what = s.lora || s.lora === null ? "lora" : String(s.round || 0);
  const option = (value, text) => h("option", { value, key: value }, text);
  return h("fieldset", { class: "cmp-side", key: `side${i}` }, h("legend", {}, h("b", { class: "cmp-letter" }, "AB"[i])),
    h("div", { class: "cmp-choose" },
      v.runs.length > 1 ? h("select", { "data-side": i, "data-run": "", "aria-label": `Run of ${"AB"[i]}` }, v.runs.map((r) => option(r.run, r.run))) : null,
      h("select", { "data-side": i, "data-what": "", "aria-label": `Model ${"AB"[i]}`, "data-now": what },
        option("0", "Base model"), [...run.rounds].reverse().map((n, at) => option(String(n), `Round ${n}${at ? "" : ", the latest"}${at && n === run.result ? ", the result" : ""}`)), option("lora", "A LoRA file…"))),
    s.lora || s.lora === null ? h("div", { class: "cmp-field", key: "file" },
      h("button", { class: "s-button s-small", "data-act": "file", "data-side": i }, state.bringing ? "Reading…" : "Choose file"),
      h("input", { type: "file", "data-side": i, "data-file": "", accept: ".safetensors", class: "s-visually-hidden", tabindex: -1, "aria-label": `LoRA file of ${"AB"[i]}`, "data-own": "" }),
      h("input", { type: "text", "data-side": i, "data-lora": "", "data-own": "", placeholder: "or its path on the studio’s computer", "aria-label": `Path of the LoRA of ${"AB"[i]}`, spellcheck: "false", autocomplete: "off" })) : null,
    strengthView(i), h("p", { class: "cmp-failure", role: "alert", key: "failure" }, state.failures[i]),
    state.failures[i] && s.lora !== null ? h("button", { class: "s-button s-small cmp-retry", "data-act": "retry", key: "retry" }, "Try again") : null);
}

function strengthView(i, name = "Strength") {
  const s = state.sides[i], off = isBase(s), percent = `${Math.round(100 * s.strength)} %`;
  return h("label", { class: "cmp-field cmp-strength", key: `strength${i}`, "data-off": off }, h("span", {}, name),
    h("input", { type: "range", min: 0, max: props.value.strongest, step: 0.05, "data-side": i, "data-strength": "", disabled: off, "aria-label": `Strength of ${"AB"[i]}`, "aria-valuetext": percent }),
    h("output", {}, off ? "–" : percent));
}

function asksView(v) {
  const option = (value, text) => h("option", { value, key: value }, text);
  return h("div", { class: "cmp-asks" },
    h("label", { class: "cmp-field" }, h("span", {}, "Prompts"), h("select", { "data-set": "" }, option("run", "Those of the run"), home()?.held_out ? option("held-out", "Those that the run holds out") : null, v.sets.map((name) => option(name, `Set: ${name.replaceAll("_", " ")}`)))),
    h("label", { class: "cmp-field" }, h("span", {}, "Pairs a prompt"), h("select", { "data-count": "" }, SEEDS.map((n) => option(n, String(n))))),
    h("button", { class: "s-button s-small", "data-act": "noise", title: "Other seeds, the same for both sides" }, "Other noise"),
    h("details", { class: "cmp-rewards", key: "rewards" }, h("summary", {}, `Rewards: ${chosen().map((c) => c.title.replace(/ \(.*/, "")).join(", ") || "none"}${byWhom()}`),
      h("div", { class: "cmp-chips" }, cards().map((c) => h("label", { class: "rw-chip", key: c.name, title: c.asks },
        h("input", { type: "checkbox", "data-reward": c.name }), h("span", {}, c.title))))));
}

function status() {
  const n = missing().length;
  if (state.trouble) return state.trouble;
  if (!n) return `${rows().filter((r) => r.prompt).length * state.count} pairs.`;
  if (state.failures.some(Boolean)) return "Some pictures cannot be made.";
  if (!state.going) return `${n} ${n === 1 ? "pair is" : "pairs are"} not made yet.`;
  if (state.busy && !state.beside) return "Waiting for the run.";
  const total = rows().filter((r) => r.prompt).length * state.count;
  return state.now?.loading ? "Loading the model…" : `Making pictures: ${total - n} of ${total} pairs are there.`;
}

function toolsView() {
  const n = missing().length, waits = n > 0 && ready(), works = waits && state.going && !(state.busy && !state.beside);
  return h("div", { class: "cmp-tools" },
    h("p", { class: "s-muted rw-status", "data-busy": works }, h("span", { role: "status" }, status())),
    h("div", { class: "s-row" }, h("button", { class: "s-button s-small", "data-act": "blind", key: "blind" }, "Blind test"),
      !waits ? null : state.going ? h("button", { class: "s-button s-small s-ghost", "data-act": "stop", key: "stop" }, "Stop")
        : h("button", { class: "s-button s-primary s-small", "data-act": "go", key: "go" }, "Make the pictures")));
}

function busyView() {
  if (!state.going || !state.busy || state.beside || !missing().length || !ready()) return null;
  return h("div", { class: "s-note s-inline cmp-busy", key: "busy", role: "alert" },
    h("span", {}, h("b", {}, state.busy), " is at work. Pictures that are made now slow it down, and take memory beside it."),
    h("button", { class: "s-button s-small", "data-act": "beside" }, "Make them anyway"));
}

function pictureView(i, r, seed) {
  const { key: found, old } = r.prompt ? shown(i, r.prompt, seed) : {};
  return found ? h("img", { src: `/studio/compare/picture/${found}`, alt: "", key: `i${i}`, "data-old": old, width: 128, height: 128, draggable: "false", decoding: "async" })
    : h("span", { class: "cmp-gap", key: `i${i}`, "data-free": !r.prompt, "data-waits": Boolean(r.prompt && state.going && ready() && (!state.busy || state.beside)) });
}

const typeHint = (text) => h("small", { class: "s-muted", id: "cmp-hint", key: "hint" }, text);
// While nothing is typed, the row to type in is as high as its field.
const low = (r) => r.live && !r.prompt && !state.typed.trim();

function cellView(r, at, seed, c) {
  const [a, b] = [0, 1].map((i) => (r.prompt ? key(i, r.prompt, seed) : undefined));
  const inside = low(r) ? [c ? null : typeHint("Its row is made as you pause")] : [h("div", { class: "cmp-pair" }, pictureView(0, r, seed), pictureView(1, r, seed)), r.prompt ? valuesView(a, b) : h("dl", { class: "cmp-values" })];
  return h("td", { key: `s${c}`, role: "gridcell", class: "cmp-cell", "data-cell": `${at} ${c}`, tabindex: state.at[0] === at && state.at[1] === c ? 0 : -1,
    "aria-label": r.prompt ? `${short(r.prompt, 80)}, seed ${seed}: ${a && b ? "Enter enlarges" : "not made yet"}` : "Type a prompt first" }, inside);
}

function rowView(r, at) {
  const head = r.live ? h("textarea", { "data-typed": "", "data-own": "", rows: low(r) ? 1 : 3, maxlength: 10000, placeholder: "Your own prompt", "aria-label": "A prompt of your own", "aria-describedby": "cmp-hint" })
    : h("p", { title: short(r.prompt, 600) }, short(r.prompt, 300));
  const after = r.live ? (low(r) ? null : typeHint("Enter keeps it"))
    : r.own ? h("button", { class: "rw-remove", "data-act": "remove", "data-prompt": r.prompt, "aria-label": `Remove ${short(r.prompt, 60)}` }, "Remove") : null;
  return h("tr", { key: r.key, role: "row", "data-low": low(r) }, h("th", { scope: "row", role: "rowheader", class: "cmp-prompt" }, head, after), seeds().map((seed, c) => cellView(r, at, seed, c)));
}

function gridView() {
  const head = (seed) => h("th", { scope: "col", role: "columnheader", key: `h${seed}` }, h("div", { class: "cmp-heads" }, [0, 1].map((i) => h("span", { title: titleOf(i) }, h("b", { class: "cmp-letter" }, "AB"[i]), ` ${titleOf(i)}`))),
    h("small", {}, `seed ${seed}`));
  return h("div", { class: "s-card cmp-box", style: `--pairs: ${state.count}; --lines: ${chosen().length}` }, h("div", { class: "cmp-scroll" },
    h("table", { class: "cmp-table", role: "grid", "aria-label": "Pairs of pictures: arrows move, Enter enlarges" },
      h("thead", {}, h("tr", { role: "row" }, h("th", { scope: "col", role: "columnheader", class: "cmp-prompt" }, "Prompt"), seeds().map(head))),
      h("tbody", {}, rows().map(rowView)))));
}

function view(v) {
  if (!v.runs) return waiting();
  if (!v.runs.length) return h("section", { class: "s-card panel-empty" }, h("h2", {}, "Nothing to compare yet"), h("p", {}, "Start a run; after its first round the base model and what it has become stand side by side here."));
  fill(v);
  if (state.blind) return blindView();
  const more = state.prompts.filter((p) => !state.own.includes(p)).length > state.rows;
  return h("div", { class: "cmp" },
    h("div", { class: "cmp-head" }, h("h2", {}, "Compare"), h("p", { class: "s-muted" }, "Two models, the same prompts, the same noise: what differs is what was learned.")),
    h("section", { class: "s-card cmp-controls", "aria-label": "What to compare" },
      h("div", { class: "cmp-sides" }, sideView(0, v), h("button", { class: "s-button s-small cmp-swap", "data-act": "swap", "aria-label": "Swap A and B", title: "Swap A and B" }, "⇄"), sideView(1, v)),
      asksView(v), h("p", { class: "cmp-differ s-muted", key: "differ" }, side(0) === side(1) ? "A and B are the same model. Choose another one." : state.differ)),
    busyView(), toolsView(), chosen().some((c) => failed(c.name)) ? h("p", { class: "s-note s-inline", "data-tone": "bad", key: "scoring" }, chosen().filter((c) => failed(c.name)).map((c) => `${c.name}: ${failed(c.name)} `)) : null,
    gridView(), more ? h("button", { class: "s-button cmp-more", "data-act": "more", key: "more" }, "More prompts") : null);
}

function after(v) {
  if (!v.runs?.length || !state.sides) return;
  if (state.blind) return afterBlind();
  const put = (node, value) => { if (node && document.activeElement !== node && node.value !== String(value)) node.value = value; };
  for (const node of [element, large?.dialog].filter(Boolean).flatMap((each) => [...each.querySelectorAll("[data-side]")])) {
    const s = state.sides[Number(node.dataset.side)];
    if ("run" in node.dataset) put(node, s.run);
    if ("what" in node.dataset) node.value = s.lora || s.lora === null ? "lora" : String(s.round || 0);
    if ("lora" in node.dataset) put(node, s.lora || "");
    if ("strength" in node.dataset) put(node, s.strength);
  }
  put(element.querySelector("[data-set]"), promptSet());
  put(element.querySelector("[data-count]"), state.count);
  put(element.querySelector("[data-typed]"), state.typed);
  for (const node of element.querySelectorAll("[data-reward]")) node.checked = chosen().some((c) => c.name === node.dataset.reward);
  loadPrompts();
  arrive(v);
  if (!timer) ask();
}

async function loadPrompts() {
  const run = state.sides[1].run, set = promptSet(), wanted = JSON.stringify([set, set in OF_RUN ? run : ""]);
  if (state.promptsOf === wanted) return;
  state.promptsOf = wanted;
  const answer = await server.prompts_of({ run, set });
  if (state.promptsOf !== wanted) return;
  if (!answer) return setTimeout(() => { if (state.promptsOf === wanted) { state.promptsOf = ""; loadPrompts(); } }, 1500); // it was lost: ask again
  state.prompts = answer.prompts;
  draw();
}

// Somebody pressed "Compare" elsewhere: show that pair of models, and begin.
function arrive(v) {
  const wanted = window.studioCompare;
  if (!wanted || !runOf(wanted.run) || !open()) return;
  window.studioCompare = null;
  const rounds = runOf(wanted.run).rounds;
  against(wanted.run, rounds.filter((n) => n <= wanted.round).at(-1) || rounds.at(-1) || 0, wanted.strength);
  state.going = true;
  go();
}

// --- what people do ---

function go() { keep(); clearTimeout(timer); timer = null; draw(); }
// Other sides are chosen: other networks may score, and those that failed are tried again.
function otherSides() {
  Object.assign(state, { touched: true, scoring: {} });
  state.last.clear();
}
// What a person did may mend what failed.
function restart() { state.failures = ["", ""]; go(); }

function strength(node) {
  state.sides[Number(node.dataset.side)].strength = Number(node.value);
  later(SLIDING_MS);
}

// Draw now, and ask when nothing has been said for a while.
function later(ms, then = () => {}) {
  clearTimeout(pause);
  pause = setTimeout(() => { pause = null; then(); restart(); }, ms);
  draw();
}

function focusCell() {
  element.querySelector(`[data-cell="${state.at.join(" ")}"]`)?.focus({ preventScroll: false });
}

function pin() {
  const prompt = state.typed.trim();
  if (!prompt) return;
  clearTimeout(pause);
  pause = null;
  if (!state.own.includes(prompt)) state.own = [prompt, ...state.own];
  Object.assign(state, { typed: "", live: "", going: true });
  element.querySelector("[data-typed]").value = "";
  restart();
}

// A LoRA file from this computer: sent to the studio, which says where it lies then.
async function bringFile(i, input) {
  const [file] = input.files;
  if (!file) return;
  state.bringing = true;
  draw();
  try {
    const answer = await fetch(`/studio/compare/loras?name=${encodeURIComponent(file.name)}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
    const read = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(read.detail || `The server answered ${answer.status}.`);
    Object.assign(state.sides[i], { round: 0, lora: read.lora });
    state.failures = ["", ""];
  } catch (error) {
    state.sides[i].lora = null;
    state.failures[i] = error instanceof TypeError ? "The server does not answer. Try again." : error.message;
  }
  input.value = "";
  state.bringing = false;
  state.last.clear();
  go();
}

const DEEDS = {
  go: () => { state.going = true; go(); },
  stop: () => { state.going = false; post("compare/stop", {}).catch(() => {}); go(); },
  beside: () => { state.beside = true; go(); },
  more: () => { state.rows += ROWS; restart(); },
  retry: async () => { await post("compare/stop", {}).catch(() => {}); state.made.clear(); restart(); }, // a file may be another one now
  file: ({ side: i }) => element.querySelector(`[data-file][data-side="${i}"]`).click(),
  noise: () => { state.first += state.count; state.last.clear(); restart(); },
  swap: () => { state.sides.reverse(); otherSides(); restart(); },
  ...TRIAL_DEEDS,
  remove: ({ prompt }) => { state.own = state.own.filter((p) => p !== prompt); go(); element.querySelector("[data-typed]").focus(); },
};
onAct((data) => DEEDS[data.act]?.(data));

element.addEventListener("click", ({ target }) => {
  const place = target.closest("[data-cell]");
  if (place) enlarge(...place.dataset.cell.split(" ").map(Number));
});
element.addEventListener("focusin", ({ target }) => {
  if (!target.matches("[data-cell]")) return;
  state.at = target.dataset.cell.split(" ").map(Number);
  draw();
});
element.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("[data-typed]")) {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); pin(); }
    return;
  }
  if (!event.target.matches("[data-cell]")) return;
  const [at, c] = state.at, to = { ArrowLeft: [at, c - 1], ArrowRight: [at, c + 1], ArrowUp: [at - 1, c], ArrowDown: [at + 1, c], Home: [at, 0], End: [at, state.count - 1] }[event.key];
  if (to) {
    event.preventDefault();
    if (!rows()[to[0]] || seeds()[to[1]] === undefined) return;
    state.at = to;
    draw();
    focusCell();
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    enlarge(at, c);
  }
});
element.addEventListener("input", ({ target }) => {
  if (target.matches("[data-strength]")) return strength(target);
  if (!target.matches("[data-typed]")) return;
  state.typed = target.value;
  later(TYPING_MS, () => { state.live = state.typed; if (state.live.trim()) state.going = true; });
});
element.addEventListener("change", ({ target }) => {
  const data = target.dataset, s = state.sides?.[Number(data.side)];
  if ("run" in data) Object.assign(s, { run: target.value, round: Math.min(s.round, runOf(target.value).rounds.at(-1) || 0) });
  else if ("what" in data) Object.assign(s, target.value === "lora" ? { round: 0, lora: null } : { round: Number(target.value), lora: "" });
  else if ("file" in data) return void bringFile(Number(data.side), target);
  else if ("lora" in data) s.lora = target.value.trim() || null;
  else if ("set" in data) Object.assign(state, { set: target.value, rows: ROWS });
  else if ("count" in data) state.count = Number(target.value);
  else if ("reward" in data) {
    const names = chosen().map((c) => c.name);
    state.rewards = target.checked ? [...names, data.reward] : names.filter((name) => name !== data.reward);
    state.scoring = {};
  } else return;
  if ("side" in data) otherSides();
  restart();
});

const open = () => element.isConnected && element.offsetParent !== null;
const onCompare = () => {
  if (!element.isConnected) return window.removeEventListener("studio:compare", onCompare);
  if (state.blind) leaveBlind();
  draw();
};
window.addEventListener("studio:compare", onCompare);

// The page, and what is large, as things are now.
function draw() {
  paint();
  drawLarge();
}

recall();
show(view, after);
paint = redraw;
redraw = () => { if (open()) draw(); }; // nobody sees a hidden tab; it is drawn when it is shown
draw();
if (state.blind) openBlind(state.blind.id);
new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting)) draw(); }).observe(element);
