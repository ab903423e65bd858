// The images of any round, with their scores; follows the latest round, or shows the one that the run is rolled back to, until a person chooses another.
const state = { round: null, follow: true, order: "made", shown: null, asked: "", run: null };

function home(v) { return v.rounds.includes(v.result) ? v.result : v.rounds[v.rounds.length - 1] ?? null; }

function wanted(v) {
  const rounds = v.rounds || [];
  if (v.run !== state.run) Object.assign(state, { run: v.run, round: null, follow: true, shown: null, asked: "" });
  if (state.follow || !rounds.includes(state.round)) state.round = rounds.length ? home(v) : null;
  return state.round;
}

async function load(v) {
  const round = wanted(v);
  if (round === null) return;
  const latest = round === v.rounds[v.rounds.length - 1];
  const key = `${v.run}/${round}/${latest ? v.stamp : ""}`;
  if (state.asked === key) return;
  state.asked = key;
  const answer = await server.round_images({ run: v.run, round });
  if (state.asked !== key) return;
  if (!answer) return setTimeout(() => { if (state.asked === key) { state.asked = null; redraw(); } }, 1500); // it was lost: ask again
  state.shown = answer;
  redraw();
}

function score(value) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3, signDisplay: "negative" }).format(value);
}

function ordered() {
  const images = [...state.shown.images];
  const value = (i) => i.score ?? -Infinity;
  if (state.order === "best") images.sort((a, b) => value(b) - value(a));
  if (state.order === "worst") images.sort((a, b) => (a.score ?? Infinity) - (b.score ?? Infinity));
  return images;
}

function tools(v) {
  const at = v.rounds.indexOf(state.round);
  return h("div", { class: "gallery-tools" },
    h("div", { class: "s-row" },
      h("button", { class: "s-button s-small", "data-act": "step", "data-by": -1, disabled: at <= 0, "aria-label": "Earlier round" }, "‹"),
      h("label", { class: "gallery-round" }, h("span", {}, `Round ${state.round}`),
        h("input", { type: "range", "data-own": "", min: 0, max: v.rounds.length - 1, "aria-label": "Round", "aria-valuetext": `Round ${state.round}` })),
      h("button", { class: "s-button s-small", "data-act": "step", "data-by": 1, disabled: at >= v.rounds.length - 1, "aria-label": "Later round" }, "›"),
      h("button", { class: "s-button s-small s-ghost", "data-act": "latest", disabled: at >= v.rounds.length - 1 }, "Latest"),
      v.rounds.includes(v.result) ? h("button", { class: "s-button s-small s-ghost", "data-act": "result", disabled: state.round === v.result, title: `The run is rolled back to round ${v.result}` }, "Result") : null,
      h("button", { class: "s-button s-small s-ghost", "data-act": "compare", title: "The base model and this round, side by side" }, "Compare"),
      h("button", { class: "s-button s-small s-ghost", "data-act": "fork", disabled: !v.saved.includes(state.round), title: "Start a new run from this round" }, "Go on from here"),
      h("button", { class: "s-button s-small s-ghost", "data-act": "rollback", disabled: !v.saved.includes(state.round) || state.round === home(v), title: "Take this round away, and no later one" }, "Roll back to here")),
    h("label", { class: "gallery-order" }, h("span", {}, "Order"),
      h("select", { "data-order": "" }, [["made", "as made"], ["best", "best first"], ["worst", "worst first"]].map(([value, name]) => h("option", { value }, name)))));
}

function view(v) {
  if (!(v.rounds || []).length) return h("p", { class: "s-muted gallery-none" }, v.run ? "No images yet: they appear here with the first round." : "");
  wanted(v);
  return h("section", { class: "gallery", key: v.run, "aria-label": "Images by round" },
    h("div", { class: "gallery-head" }, h("h2", {}, "Images"), h("p", { class: "s-muted", "aria-live": "polite" }, state.shown ? `Round ${state.shown.round}: ${state.shown.summary}` : "Loading…")),
    tools(v),
    h("ul", { class: "gallery-grid" }, state.shown ? ordered().map((i) => h("li", { key: `${i.id}` },
      h("button", { class: "gallery-tile", "data-act": "zoom", "data-id": i.id, "aria-label": `Enlarge: ${short(i.prompt)}, score ${score(i.score)}` },
        h("img", { src: i.url, alt: "", loading: "lazy", width: 128, height: 128 }), h("b", {}, score(i.score)), h("span", {}, short(i.prompt)))))
      : Array.from({ length: 8 }, (_, i) => h("li", { key: `gap${i}` }, h("span", { class: "gallery-tile gallery-gap" })))));
}

function after(v) {
  const range = element.querySelector("input[type=range]"), order = element.querySelector("[data-order]");
  if (range && document.activeElement !== range) range.value = v.rounds.indexOf(state.round);
  if (order) order.value = state.order;
  load(v);
}

function go(round) {
  state.round = round;
  state.follow = round === home(props.value);
  redraw();
}

function zoom(id) {
  const images = ordered(), back = document.activeElement;
  let at = images.findIndex((i) => String(i.id) === String(id));
  const dialog = h("dialog", { class: "s-dialog gallery-zoom", "aria-label": "Image, large" });
  const draw = () => {
    const i = images[at];
    morphChildren(dialog, [
      h("img", { src: i.url, alt: short(i.prompt, 300) }),
      h("div", { class: "gallery-caption" }, h("p", { class: "s-muted" }, `${at + 1} of ${images.length} · score ${score(i.score)}${i.note ? ` (${i.note})` : ""}${i.seed === null ? "" : ` · seed ${i.seed}`}`),
        h("p", { class: "gallery-prompt", tabindex: 0 }, i.prompt),
        h("div", { class: "s-row" }, h("button", { class: "s-button", "data-go": -1, "aria-label": "Previous image" }, "‹"),
          h("button", { class: "s-button", "data-go": 1, "aria-label": "Next image" }, "›"), h("button", { class: "s-button", "data-go": 0 }, "Close"))),
    ]);
  };
  const move = (by) => { at = (at + by + images.length) % images.length; draw(); };
  dialog.addEventListener("click", (event) => {
    const by = event.target.closest("[data-go]")?.dataset.go;
    if (event.target === dialog || by === "0") dialog.close();
    else if (by) move(Number(by));
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  dialog.addEventListener("close", () => { dialog.remove(); back?.focus?.(); });
  draw();
  document.body.append(dialog);
  dialog.showModal();
}

element.addEventListener("input", (event) => {
  if (event.target.type === "range") go(props.value.rounds[Number(event.target.value)]);
  if (event.target.matches("[data-order]")) { state.order = event.target.value; redraw(); }
});
onAct(async (data, pressed) => {
  const rounds = props.value.rounds;
  if (data.act === "fork") {
    const { run, alive } = props.value, round = state.round;
    if (!(await askToGoOn(round, alive))) return;
    act({ kind: "fork", run, round }, pressed);
    openTab("Run");
  }
  if (data.act === "rollback") {
    const { run, alive } = props.value, round = state.round;
    if (await askToRollBack(round, alive)) act({ kind: "rollback", run, round }, pressed);
  }
  if (data.act === "zoom") zoom(data.id);
  if (data.act === "compare") compareWith(props.value.run, state.round);
  if (data.act === "result") go(props.value.result);
  if (data.act === "latest") go(rounds[rounds.length - 1]);
  if (data.act === "step") go(rounds[rounds.indexOf(state.round) + Number(data.by)] ?? state.round);
});
const onRound = (event) => {
  if (!element.isConnected) return window.removeEventListener("studio:round", onRound);
  if ((props.value.rounds || []).includes(event.detail)) go(event.detail);
};
window.addEventListener("studio:round", onRound);
show(view, after);
