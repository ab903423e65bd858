// What goes wrong in the run, the pictures that show it, and what can be done. Nothing that is done here loses anything, so nothing asks twice.
function pair(p, v) {
  const side = (url, when) => h("div", {}, h("img", { src: url, alt: `${short(p.prompt)}, ${when}`, width: 96, height: 96 }), h("span", {}, when));
  return h("li", { key: p.now }, h("figure", {}, h("div", { class: "alarm-pair" }, side(p.before, v.before), side(p.now, v.now)), h("figcaption", {}, short(p.prompt))));
}

// What a button does, beside it.
const TOLD = {
  rollback: (v) => `${v.alive ? "This run stops. " : ""}Round ${v.back} is what you take away and compare${v.best ? "" : ": half way to the first alarm, and not watched"}. Later rounds are kept.`,
  fork: (v) => `A new run begins with what the model had learned by then${v.alive ? "; this one stops" : ""}.`,
  penalty: (v) => `From round ${v.back} too, and each step’s distance from the base model costs ${v.penalty} (kl_weight): the reward rises more slowly, and the pictures stay nearer to the base model’s.`,
  weaker: (v) => `Compare opens with round ${v.round} at half of its strength: much of what was learned is left, and less is harmed.`,
};
const HALF = 0.5;

function button(v, kind, label, look = "") {
  const late = kind in TOLD && kind !== "weaker" && v.pending.includes("stop");
  return h("button", { class: `s-button ${look}`, "data-act": kind, "aria-describedby": kind in TOLD ? `alarm-${kind}` : null, disabled: late || v.pending.includes(kind) }, label);
}

function action(v, kind, label, look) {
  return h("li", { key: kind }, button(v, kind, label, look), h("p", { class: "s-muted", id: `alarm-${kind}` }, TOLD[kind](v)));
}

function view(v) {
  if (!v.text) return h("div", { key: "none", hidden: true });
  const rolled = v.rolled && v.rolled === v.back;
  return h("section", { class: "s-card alarm", key: `${v.run}-${v.round}`, role: "status", "aria-label": "Alarm" },
    h("div", { class: "alarm-words" }, h("h3", { tabindex: -1 }, rolled && !v.alive ? `Rolled back to round ${v.rolled}` : v.alive ? "Something is going wrong" : "Something went wrong"), h("p", {}, v.text, v.stops ? " This run stops after its round." : ""),
      h("details", {}, h("summary", {}, "What was measured"), h("ul", {}, v.details.map((d) => h("li", {}, d))))),
    h("ul", { class: "alarm-pictures", "aria-label": "Pictures that show it" }, v.pictures.map((p) => pair(p, v))),
    h("div", { class: "alarm-do" },
      h("ul", { class: "alarm-actions", "aria-label": "What can be done" },
        v.saved && !rolled ? action(v, "rollback", `Roll back to round ${v.back}`, "s-primary") : null,
        v.saved ? action(v, "fork", `Go on from round ${v.back}`, rolled ? "s-primary" : "") : null,
        v.saved ? action(v, "penalty", "Go on with a KL penalty", "") : null,
        action(v, "weaker", "See it weaker", "")),
      h("div", { class: "s-row" },
        v.alive ? [v.stops && !v.paused ? button(v, "dismiss", "Dismiss") : button(v, "continue", "Continue"), v.paused ? null : button(v, "pause", "Pause"), button(v, "stop", "Stop now")] : button(v, "dismiss", "Dismiss"))));
}

let lost = false; // whether the button that was pressed goes away, and the focus with it
onAct(({ act: kind }, pressed) => {
  lost = kind === "rollback";
  if (kind === "weaker") return compareWith(props.value.run, props.value.round, HALF);
  const v = props.value, starts = ["fork", "penalty"].includes(kind);
  act({ kind, run: v.run, round: starts || kind === "rollback" ? v.back : v.round }, pressed);
  if (starts) openTab("Run");
});
show(view, (v) => {
  if (!lost || !v.rolled) return;
  lost = false;
  element.querySelector("h3")?.focus();
});
