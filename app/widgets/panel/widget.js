// What the selected run does, and the buttons that steer it.
const QUESTIONS = {
  stop: { title: "Stop now?", text: "The phase that is under way is begun again when you resume. Everything finished is kept.", yes: "Stop now", no: "Keep running" },
  kill: { title: "Force quit the worker?", text: "It has not answered for a while. Its process is ended at once; everything finished is kept.", yes: "Force quit", no: "Wait" },
};
const PENDING = { pause: "Pausing…", resume: "Resuming…", stop: "Stopping…", stop_after_round: "Asked…", retry: "Trying again…" };
const DOTS_AT_MOST = 40;

function empty(v) {
  const titles = { none: "No run yet", missing: "This run is gone", broken: "This run cannot be read" };
  const text = v.text || "Choose a starting point below and press Start. Images appear here as the model makes them; you rate them, and it learns.";
  return h("section", { class: "s-card panel-empty", key: `empty-${v.kind}` },
    h("svg", { viewBox: "0 0 64 40", class: "panel-art", "aria-hidden": "true" },
      [0, 1, 2, 3, 4].map((i) => h("rect", { x: 2 + 12.5 * i, y: 24 - 4 * i, width: 10, height: 12 + 4 * i, rx: 3, opacity: 0.25 + 0.18 * i }))),
    h("h2", {}, titles[v.kind] || titles.none), h("p", {}, text));
}

function roundsView(v) {
  const part = (i) => (i < v.rounds_done ? 1 : i === v.rounds_done && v.phase !== null ? (v.phase + (v.total ? v.done / v.total : 0)) / 4 : 0);
  const bars = v.rounds <= DOTS_AT_MOST
    ? Array.from({ length: v.rounds }, (_, i) => h("span", { class: "panel-round" }, h("i", { style: `width:${(100 * part(i)).toFixed(1)}%` })))
    : [h("span", { class: "panel-round" }, h("i", { style: `width:${(100 * (v.rounds_done + part(v.rounds_done))) / v.rounds}%` }))];
  return h("div", { class: "panel-rounds", role: "img", "aria-label": `${v.rounds_done} of ${v.rounds} rounds done` }, bars);
}

function phasesView(v) {
  if (v.phase === null) return null;
  return h("ol", { class: "panel-phases", "aria-label": "Phases of the round" }, v.phases.map((name, i) =>
    h("li", { "data-now": i === v.phase, "data-done": i < v.phase, "aria-current": i === v.phase ? "step" : null }, h("i", {}), name)));
}

function detail(v) {
  const round = v.round ? `Round ${v.round} of ${v.rounds}` : words(v.rounds, "round");
  const counted = v.total > 1 ? `${v.done} of ${v.total} ${v.unit}` : "";
  const soon = [v.stops_soon && "stops after this round", v.wanted && `from the next scores on: ${v.wanted}`].filter(Boolean).join(" · ");
  const whole = v.run_left ? `whole run about ${duration(v.run_left)}` : "";
  return [round, counted, timeLeft(v), whole, soon].filter(Boolean).join(" · ");
}

function words(n, one) { return `${n} ${one}${n === 1 ? "" : "s"}`; }

// What shall score: one reward, or several with a weight each. Resolves to the setting that names it, or to nothing.
function chooseReward(v) {
  return new Promise((answer) => {
    const back = document.activeElement, single = v.blend ? null : Object.keys(v.weights)[0];
    const option = (value, label, chosen) => h("option", { value, selected: chosen }, label);
    const select = h("select", { id: "reward-name", "aria-describedby": "reward-asks" }, v.rewards.map((r) => option(r.name, r.label, r.name === single)), option("blend", "A blend of several", v.blend));
    const asks = h("p", { id: "reward-asks" });
    const parts = h("fieldset", { class: "reward-parts" }, h("legend", {}, "Weights; empty is no part"), v.rewards.map((r) => h("label", {}, h("span", {}, r.label),
      h("input", { type: "number", step: "any", name: r.name, value: v.blend ? v.weights[r.name] : null, inputmode: "decimal" }))));
    const dialog = h("dialog", { class: "s-dialog reward-dialog", "aria-labelledby": "reward-title" }, h("form", { method: "dialog" },
      h("h3", { id: "reward-title" }, "What shall score?"), h("label", { class: "s-muted", for: "reward-name" }, "From the next scores on, in this run"), select, asks, parts,
      h("div", { class: "s-row s-end" }, h("button", { class: "s-button", type: "button", "data-cancel": "" }, "Cancel"), h("button", { class: "s-button s-primary", value: "yes" }, "Change"))));
    const told = () => {
      const chosen = v.rewards.find((r) => r.name === select.value);
      asks.textContent = chosen ? chosen.asks : "A weighted sum, each reward in its own standard deviations.";
      parts.hidden = Boolean(chosen);
    };
    const weights = () => [...parts.querySelectorAll("input")].filter((i) => Number(i.value)).map((i) => `${i.value} ${i.name}`);
    select.addEventListener("change", told);
    dialog.querySelector("form").addEventListener("submit", (event) => {
      if (select.value !== "blend" || weights().length) return;
      event.preventDefault();
      asks.textContent = "Give at least one reward a weight other than 0.";
      parts.querySelector("input").focus();
    });
    dialog.querySelector("[data-cancel]").addEventListener("click", () => dialog.close()); // no submit button, so that Enter changes
    dialog.addEventListener("close", () => {
      const reward = select.value === "blend" ? `blend: ${weights().join(", ")}` : select.value;
      answer(dialog.returnValue === "yes" ? reward : null);
      dialog.remove();
      back?.focus?.();
    });
    document.body.append(dialog);
    told();
    dialog.showModal();
    select.focus();
  });
}

function controlsView(v) {
  return h("div", { class: "panel-controls", role: "group", "aria-label": "Steer the run", key: "controls" },
    v.your_turn ? h("button", { class: "s-button s-primary", "data-act": "rate", key: "rate" }, "Rate images") : null,
    v.controls.map((c) => h("button", {
      class: `s-button${c.primary ? " s-primary" : ""}${c.danger ? " s-danger" : ""}`, key: `${c.kind}`, "data-act": c.kind, disabled: !c.enabled, "aria-busy": c.pending,
    }, c.pending ? PENDING[c.kind] || c.label : c.label)),
    v.rounds_done && ["good", "idle"].includes(v.tone) ? h("button", { class: `s-button${v.tone === "good" ? " s-primary" : ""}`, "data-act": "take", key: "take" }, "Take away") : null);
}

function failureView(v) {
  if (!v.failure) return null;
  return h("div", { class: "s-note", "data-tone": "bad", role: "alert", key: "failure" },
    h("h3", {}, v.failure.title), h("p", {}, v.failure.text), v.failure.log ? h("pre", { tabindex: 0, "aria-label": "Last lines of the log" }, v.failure.log) : null);
}

function timeView(v) {
  const all = v.time.reduce((sum, t) => sum + t.seconds, 0);
  if (!all) return null;
  return h("section", { class: "panel-part", key: "time" }, h("h3", {}, "Where the time went"),
    h("div", { class: "panel-split", "aria-hidden": "true" }, v.time.map((t, i) => h("i", { "data-c": i, style: `flex-grow:${(t.seconds / all).toFixed(4)}` }))),
    h("ul", { class: "panel-legend" }, v.time.map((t, i) => h("li", {}, h("i", { "data-c": i }), h("span", {}, t.label), h("b", {}, duration(t.seconds))))));
}

function countOf(r) {
  return r.counts ? (r.half ? "halve" : "count") : "leave_out";
}

function ratersView(v) {
  const { raters, agreement } = v.raters;
  if (!raters.length) return null;
  const line = (r) => [words(r.ratings, "rating"), r.seconds !== null && `${r.seconds} s each`,
    r.pairs && `agrees with themselves on ${Math.round(100 * r.same)} % of ${words(r.pairs, "pair")} shown again`,
    r.decided && `the left one better in ${r.left} of ${words(r.decided, "pair")}${r.left_p < 0.01 ? `, which is hardly chance (p ${r.left_p < 0.001 ? "< 0.001" : r.left_p.toFixed(3)})` : ""}`].filter(Boolean).join(" · ");
  return h("section", { class: "panel-part", key: "raters" }, h("h3", {}, "Raters"),
    h("ul", { class: "panel-raters" }, raters.map((r) => h("li", { key: `rater-${r.name}`, "data-out": !r.counts },
      h("div", {}, h("b", {}, short(r.name, 40)), h("span", {}, line(r)), r.tired ? h("span", { class: "panel-tired" }, r.tired) : null),
      h("select", { "data-rater": r.name, "data-now": countOf(r), "aria-label": `How much ${short(r.name, 40)} counts`,
        title: "The open round and the model of taste are worked out anew; rounds that are learned from stay as they are" },
        [["count", "Counts"], ["halve", "Counts half"], ["leave_out", "Left out"]].map(([kind, text]) => h("option", { value: kind }, text)))))),
    agreement ? h("p", { class: "s-muted" }, `${agreement}.`) : null);
}

function historyView(v) {
  return h("section", { class: "panel-part", key: "history" }, h("h3", {}, "History"),
    v.events.length ? h("ol", { class: "panel-events", tabindex: 0, "aria-label": "History, newest first" }, v.events.map((e) =>
      h("li", { key: e.id, "data-kind": e.kind }, h("time", {}, clock(e.at)), h("span", {}, e.text)))) : h("p", { class: "s-muted" }, "Nothing has happened yet."));
}

function view(v) {
  if (!v.kind) return waiting();
  if (v.kind !== "run") return empty(v);
  return h("div", { class: "panel", key: v.run },
    h("section", { class: "s-card panel-main", "data-tone": v.tone },
      h("div", { class: "panel-top" },
        h("div", {}, h("p", { class: "s-over" }, v.run), h("h2", {}, v.headline), h("p", { class: "panel-detail", "aria-live": "off" }, detail(v))),
        controlsView(v)),
      roundsView(v), phasesView(v), failureView(v),
      v.images.length ? h("div", { class: "panel-strip", key: "strip" }, v.images.map((i) =>
        h("img", { src: i.url, alt: short(i.prompt), title: short(i.prompt, 300), key: i.url, width: 64, height: 64 }))) : null),
    h("div", { class: "panel-grid" },
      h("section", { class: "s-card", key: "left" }, ratersView(v), timeView(v),
        h("section", { class: "panel-part", key: "facts" }, h("h3", {}, "Settings"), h("dl", { class: "panel-facts" }, v.facts.map(([k, t]) => [h("dt", {}, k), h("dd", {}, t)])))),
      h("section", { class: "s-card", key: "right" }, historyView(v),
        v.log ? h("details", { class: "panel-log", key: "log" }, h("summary", {}, "Worker's log"), h("pre", { tabindex: 0 }, v.log)) : null)));
}

onAct(async ({ act: kind, rater }, button) => {
  const { run } = props.value; // that whose button was pressed, whatever is chosen while a question is open
  if (kind === "rate") return openTab("Rate");
  if (kind === "take") return takeAway(run);
  if (kind === "reward") {
    const reward = await chooseReward(props.value);
    return reward && act({ kind, reward, run }, button);
  }
  if (QUESTIONS[kind] && !(await ask(QUESTIONS[kind]))) return;
  act({ kind, run, ...(rater === undefined ? {} : { rater }) }, button);
});
element.addEventListener("change", (event) => {
  const select = event.target.closest("select[data-rater]");
  if (select) act({ kind: select.value, rater: select.dataset.rater, run: props.value.run });
});
show(view, () => {
  for (const select of element.querySelectorAll("select[data-rater]")) select.value = select.dataset.now;
});
everySecond(() => { if (props.value?.left) redraw(); });
