// A blind test: pairs chosen ahead, judged by keys without knowing which picture is whose, revealed at the end. Uses the state of widget.js.
const TRY_AGAIN_MS = 1500;
const ENOUGH = { 10: 9, 20: 15, 40: 27, 80: 50 }; // wins of as many decided pairs that equal models reach less than one time in twenty
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "tie", ArrowDown: "bad" };
const SAYS = { left: "Left is better", tie: "Equally good", bad: "Both are bad", right: "Right is better" };
const trial = { view: null, rater: rater(), tests: [], count: 20, shownAt: 0, sending: "", trouble: "", beside: false, beginning: false };
let trialTimer = null;

function rater() {
  try { return raterName(localStorage.getItem(RATER) ?? ""); } catch { return NOBODY; }
}

// Whether it is over by itself soon: nobody answers, or the server cannot reach its folder just now.
const passes = (error) => error instanceof TypeError || error.status >= 502;

// --- what is asked ---

async function listTests() {
  const answer = await fetch(`/studio/blind?rater=${encodeURIComponent(rater())}`).then((r) => r.json()).catch(() => ({ tests: [] }));
  trial.tests = answer.tests;
  draw();
}

function openBlind(id = null) {
  Object.assign(state, { blind: { id } });
  Object.assign(trial, { view: null, trouble: "", sending: "", beside: false });
  keep();
  if (id) look();
  else listTests();
  draw();
  element.querySelector(".blind")?.focus({ preventScroll: true });
}

function leaveBlind() {
  clearTimeout(trialTimer);
  state.blind = null;
  keep();
  draw();
}

async function begin() {
  if (trial.beginning) return;
  Object.assign(trial, { trouble: "", beginning: true });
  draw();
  const prompts = rows().map((r) => r.prompt).filter(Boolean);
  try {
    const answer = await post("blind", { sides: [side(0), side(1)].map((s) => JSON.parse(s)), prompts, pairs: trial.count, rater: rater() });
    if (state.blind && !state.blind.id) openBlind(answer.id); // else somebody has gone on meanwhile: it waits among the earlier ones
  } catch (error) {
    trial.trouble = error instanceof TypeError ? "The server does not answer. Try again." : error.message;
  }
  trial.beginning = false;
  draw();
}

// Only of a test that nobody has answered.
async function removeTest(id) {
  trial.trouble = "";
  try { await post(`blind/${id}/delete`, {}); } catch (error) {
    trial.trouble = error instanceof TypeError ? "The server does not answer. Try again." : error.message;
  }
  await listTests();
  element.querySelector(".blind")?.focus({ preventScroll: true }); // its button is gone
}

// The next pair, or that at an earlier place; while pictures are made, again and again.
async function look(at = null) {
  clearTimeout(trialTimer);
  const { id } = state.blind || {}, name = rater(), overtaken = () => state.blind?.id !== id || trial.rater !== name || trial.sending;
  if (!id || !element.isConnected) return;
  trial.rater = name;
  let more = open();
  if (more) {
    try {
      const view = await post(`blind/${id}`, { rater: name, at, beside: trial.beside });
      if (overtaken()) return;
      more = view.made !== undefined && !view.failure;
      present(view);
    } catch (error) {
      if (overtaken()) return;
      trial.trouble = error instanceof TypeError ? "The server does not answer. It is asked again." : error.message;
      more = passes(error);
      draw();
    }
  } else more = true;
  if (more) trialTimer = setTimeout(look, TRY_AGAIN_MS);
}

function present(view) {
  Object.assign(trial, { view, trouble: "", sending: "", shownAt: Date.now() / 1000 });
  for (const url of [view.next?.left, view.next?.right]) if (url) new Image().src = url;
  draw();
}

// Both pictures of the pair are on the screen.
function seen() {
  const pictures = [...element.querySelectorAll(".blind-picture img")];
  return pictures.length === 2 && pictures.every((image) => image.complete && image.naturalWidth);
}

// An answer, of the one to whom the pair was shown, is sent until it is on disk; only then the next pair comes. Of a pair not yet seen there is none.
async function say(answer) {
  const { pair, rater: who } = trial.view || {}, { id } = state.blind;
  if (!pair || trial.sending || !seen()) return;
  trial.sending = answer;
  draw();
  const event = { rater: who, at: pair.at, left: pair.left, answer, client_id: `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`, shown_at: trial.shownAt, answered_at: Date.now() / 1000 };
  const send = async () => {
    if (state.blind?.id !== id || !element.isConnected) return;
    try {
      const said = await post(`blind/${id}/answers`, event);
      if (state.blind?.id === id) present(said.view);
    } catch (error) {
      trial.trouble = error instanceof TypeError ? "Not saved yet: the server does not answer. It is tried again." : error.message;
      if (passes(error)) setTimeout(send, TRY_AGAIN_MS);
      else trial.sending = "";
      draw();
    }
  };
  await send();
}

// --- what is shown ---

function blindView() {
  const { view } = trial, { id } = state.blind;
  const inside = !id ? setupView() : !view ? [h("p", { class: "s-muted", key: "wait", role: "status" }, trial.trouble || "Loading…"), leaveView("Back to the grid")] : view.result ? resultView(view) : view.pair ? judgeView(view) : makingView(view);
  return h("section", { class: "blind", key: "blind", tabindex: -1, "aria-label": "Blind test" }, inside);
}

const troubleView = () => h("p", { class: "blind-trouble", role: "alert", key: "trouble" }, trial.trouble);
const leaveView = (text) => h("button", { class: "s-button s-small s-ghost", "data-act": "leave", key: "leave" }, text);

function setupView() {
  const prompts = rows().filter((r) => r.prompt).length;
  return [h("div", { class: "cmp-head", key: "head" }, h("h2", {}, "Blind test"), h("p", { class: "s-muted" }, "Pairs of pictures, and nothing that says which model made which. How many pairs there are is fixed before; at the end you learn whether one is better.")),
    h("div", { class: "s-card blind-setup", key: "setup" },
      h("ul", { class: "blind-sides" }, [0, 1].map((i) => h("li", {}, h("b", { class: "cmp-letter" }, "AB"[i]), ` ${titleOf(i)}`))),
      h("div", { class: "cmp-asks" },
        h("label", { class: "cmp-field" }, h("span", {}, "Pairs"), h("select", { "data-pairs": "" }, Object.keys(ENOUGH).map((n) => h("option", { value: n, key: n }, n)))),
        h("label", { class: "cmp-field" }, h("span", {}, "Your name"), h("input", { type: "text", "data-rater": "", "data-own": "", maxlength: 40, autocomplete: "off" })),
        h("button", { class: "s-button s-primary", "data-act": "begin", disabled: trial.beginning || !prompts || side(0) === side(1) }, "Begin")),
      h("p", { class: "s-muted" }, `${trial.count} pairs of ${promptsText(prompts)}, with noise that nobody has seen. If every pair is decided, it takes ${ENOUGH[trial.count]} wins of ${trial.count} to be more than chance.`), troubleView()),
    trial.tests.length ? h("div", { class: "s-card blind-tests", key: "tests" }, h("h3", {}, "Earlier tests"), h("ul", {}, trial.tests.map((t) => h("li", { key: t.id },
      h("span", {}, `${clock(t.created_at)}${t.by && t.by !== NOBODY ? `, ${t.by}` : ""}: ${t.total} pairs of ${promptsText(t.prompts)}${t.titles ? `, ${t.titles.join(" and ")}` : ""}`),
      h("div", { class: "s-row" }, t.answered ? null : h("button", { class: "s-button s-small s-ghost s-quiet-danger", "data-act": "remove-test", "data-id": t.id }, "Delete"),
        h("button", { class: "s-button s-small", "data-act": "test", "data-id": t.id }, t.done === t.total ? "Result" : t.done ? `Go on at ${t.done + 1} of ${t.total}` : "Judge it")))))) : null,
    leaveView("Back to the grid")];
}

function makingView(view) {
  const held = view.busy && !trial.beside;
  return [h("h2", { key: "h" }, "Blind test"), h("div", { class: "s-card blind-making", key: "making" },
    h("p", { role: "status" }, view.failure || (held ? "Waiting for the run." : view.now?.loading ? "Loading the model…" : `Making the pictures: ${view.made} of ${view.total} pairs.`)),
    h("progress", { max: view.total, value: view.made, "aria-label": "Pairs made" }),
    view.failure ? h("button", { class: "s-button s-small", "data-act": "again" }, "Try again") : null,
    held ? h("div", { class: "s-note s-inline cmp-busy", role: "alert" }, h("span", {}, "A run is at work. Pictures that are made now slow it down, and take memory beside it."), h("button", { class: "s-button s-small", "data-act": "trial-beside" }, "Make them anyway")) : null),
  troubleView(), leaveView("Back to the grid")];
}

function judgeView(view) {
  const { pair } = view;
  const picture = (where) => h("button", { class: "blind-picture", "data-act": "say", "data-answer": where, key: where, "aria-label": SAYS[where], "data-said": trial.sending === where },
    h("img", { src: pair[where], alt: `The ${where} picture`, key: pair[where], draggable: "false" }));
  const button = (answer, sign) => h("button", { class: "s-button", "data-act": "say", "data-answer": answer, key: answer, "aria-disabled": Boolean(trial.sending) }, h("kbd", {}, sign), SAYS[answer]);
  return [h("div", { class: "blind-top", key: "top" }, h("p", { role: "status" }, h("b", {}, `Pair ${pair.at + 1}`), ` of ${view.total}`), h("progress", { max: view.total, value: view.done, "aria-label": "Pairs judged" })),
    h("p", { class: "blind-prompt", key: "prompt" }, short(pair.prompt, 300)),
    h("div", { class: "blind-pair", key: "pair" }, picture("left"), picture("right")),
    h("div", { class: "blind-says", key: "says" }, button("left", "←"), button("tie", "↑"), button("bad", "↓"), button("right", "→")),
    troubleView(),
    h("div", { class: "s-row blind-foot", key: "foot" }, h("button", { class: "s-button s-small s-ghost", "data-act": "back", disabled: pair.at === 0 }, "Back (Z)"), leaveView("Leave: it goes on here later"))];
}

const promptsText = (n) => (n === 1 ? "one prompt" : `${n} prompts`);
const percent = (share) => `${Math.round(100 * share)} %`;
const chance = (p) => (p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(p < 0.1 ? 3 : 2)}`);
const upper = (text) => text[0].toUpperCase() + text.slice(1);

function sentence({ titles, total }) {
  if (!total.decided) return "No pair was decided: neither is better.";
  const [winner, wins] = total.b >= total.a ? [titles[1], total.b] : [titles[0], total.a];
  if (total.p_value < 0.05) return `${upper(winner)} is better: it won ${wins} of ${total.decided} decided pairs.`;
  return `No difference is shown: ${total.b} to ${total.a} of ${total.decided} decided pairs could well be chance.`;
}

function resultView({ result }) {
  const { titles, total, left, raters, waiting: others } = result, cells = (o) => [o.b, o.a, o.tie, o.bad].map((n) => h("td", {}, n));
  const head = (first) => h("thead", {}, h("tr", {}, [first, "B is better", "A is better", "Equal", "Both bad"].map((text) => h("th", { scope: "col" }, text))));
  const table = (label, rowsOf) => h("table", { class: "blind-table", "aria-label": label, key: label }, head(label), h("tbody", {}, rowsOf.map((o) => h("tr", {}, h("th", { scope: "row" }, short(o.prompt || o.name, 120)), cells(o)))));
  return [h("div", { class: "cmp-head", key: "head" }, h("h2", {}, "Result of the blind test"), h("ul", { class: "blind-sides" }, titles.map((t, i) => h("li", {}, h("b", { class: "cmp-letter" }, "AB"[i]), ` ${upper(t)}`)))),
    h("div", { class: "s-card blind-result", key: "result", role: "status" }, h("p", { class: "blind-sentence" }, sentence(result)),
      total.decided ? h("div", { class: "blind-rate" }, h("p", {}, h("b", {}, percent(total.win_rate)), " of decided pairs go to B"),
        h("div", { class: "blind-track", role: "img", "aria-label": `95 % interval ${percent(total.interval[0])} to ${percent(total.interval[1])}` },
          h("i", { class: "blind-band", style: `left: ${100 * total.interval[0]}%; right: ${100 - 100 * total.interval[1]}%` }), h("i", { class: "blind-half" }), h("i", { class: "blind-dot", style: `left: ${100 * total.win_rate}%` })),
        h("p", { class: "s-muted" }, `95 % interval ${percent(total.interval[0])} to ${percent(total.interval[1])} · two-sided sign test ${chance(total.p_value)}. Both speak of these prompts, with other noise; of other prompts they say little.`)) : null,
      h("p", { class: "s-muted" }, `${total.tie} equal, ${total.bad} both bad: these are no wins, and left out of rate, interval and test.`),
      h("p", { class: "s-muted" }, left.left + left.right ? `The left picture was chosen ${left.left} of ${left.left + left.right} times (${chance(left.p_value)}): ${left.p_value < 0.05 ? "somebody may favour a side; sides were drawn, so this costs sharpness, not fairness." : "no sign that somebody favours a side."}` : ""),
      others.length ? h("p", { class: "s-muted" }, `Not at the end yet, and not counted: ${others.join(", ")}.`) : null),
    h("div", { class: "s-card blind-tables", key: "tables" }, table("Prompt", result.prompts), raters.length > 1 ? table("Rater", raters) : null,
      raters.length > 1 ? h("p", { class: "s-muted" }, "A pair goes to the model that more of the raters called better.") : null),
    h("ul", { class: "blind-pairs", key: "pairs" }, result.pairs.map((p, at) => h("li", { key: at }, h("div", { class: "cmp-pair" }, ["a", "b"].map((s) => h("img", { src: p[s], alt: `${s.toUpperCase()}: ${short(p.prompt, 80)}`, width: 128, height: 128, loading: "lazy", "data-better": p.verdict === s }))),
      h("p", { class: "s-muted" }, short(p.prompt, 60), h("b", {}, { a: "A", b: "B", tie: "equal", bad: "both bad" }[p.verdict]))))),
    leaveView("Back to the grid")];
}

// --- what people do ---

const TRIAL_DEEDS = {
  blind: () => openBlind(), leave: leaveBlind, begin, back: () => trial.view?.pair && !trial.sending && look(trial.view.pair.at - 1), again: () => look(),
  test: ({ id }) => openBlind(id), "remove-test": ({ id }) => removeTest(id), say: ({ answer }) => say(answer), "trial-beside": () => { trial.beside = true; look(); },
};

const onKey = (event) => {
  if (!element.isConnected) return window.removeEventListener("keydown", onKey);
  if (!state.blind || !trial.view?.pair || !open() || event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches?.("input, select, textarea") || document.querySelector("dialog[open]")) return;
  if (KEYS[event.key]) say(KEYS[event.key]);
  else if (event.key.toLowerCase() === "z" && trial.view.pair.at > 0 && !trial.sending) look(trial.view.pair.at - 1);
  else return;
  event.preventDefault();
};
window.addEventListener("keydown", onKey);
const onName = (event) => {
  if (!element.isConnected) return window.removeEventListener("storage", onName);
  if (event.key === RATER && state.blind) state.blind.id ? draw() : listTests();
};
window.addEventListener("storage", onName); // another tab gave another name

element.addEventListener("change", ({ target }) => {
  if (target.matches("[data-pairs]")) { trial.count = Number(target.value); draw(); }
  if (!target.matches("[data-rater]")) return;
  const name = raterName(target.value);
  try { localStorage.setItem(RATER, name); } catch { /* private windows */ }
  target.value = name;
  listTests();
});

function afterBlind() {
  loadPrompts();
  if (state.blind.id && trial.rater !== rater() && !trial.sending) look(); // somebody else judges now
  const pairs = element.querySelector("[data-pairs]"), name = element.querySelector("[data-rater]");
  if (pairs) pairs.value = String(trial.count);
  if (name && document.activeElement !== name) name.value = rater();
}
