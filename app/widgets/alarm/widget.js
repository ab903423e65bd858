// What goes wrong in the run, the pictures that show it, and what can be done.
function pair(p, v) {
  const side = (url, when) => h("div", {}, h("img", { src: url, alt: `${short(p.prompt)}, ${when}`, width: 96, height: 96 }), h("span", {}, when));
  return h("li", { key: p.now }, h("figure", {}, h("div", { class: "alarm-pair" }, side(p.before, v.before), side(p.now, v.now)), h("figcaption", {}, short(p.prompt))));
}

function button(v, kind, label, more = {}) {
  return h("button", { class: `s-button${more.primary ? " s-primary" : more.ghost ? " s-ghost" : ""}`, "data-act": kind, key: kind, disabled: v.pending.includes(kind) || (kind === "fork" && v.pending.includes("stop")) }, label);
}

function view(v) {
  if (!v.text) return h("div", { key: "none", hidden: true });
  return h("section", { class: "s-card alarm", key: `${v.run}-${v.round}`, role: "status", "aria-label": "Alarm" },
    h("div", { class: "alarm-words" }, h("h3", {}, "Something goes wrong"), h("p", {}, v.text),
      h("details", {}, h("summary", {}, "What was measured"), h("ul", {}, v.details.map((d) => h("li", {}, d)))),
      h("div", { class: "s-row" },
        v.forks ? button(v, "fork", `Go on from round ${v.best}`, { primary: true }) : null,
        v.paused ? button(v, "resume", "Continue") : v.alive ? button(v, "pause", "Pause") : null,
        v.alive ? button(v, "stop", "Stop now") : null,
        button(v, "dismiss", "Dismiss", { ghost: true }))),
    h("ul", { class: "alarm-pictures", "aria-label": "Pictures that show it" }, v.pictures.map((p) => pair(p, v))));
}

onAct(async ({ act: kind }, pressed) => {
  const v = props.value;
  if (kind === "fork" && !(await askToGoOn(v.best, v.alive))) return;
  act({ kind, run: v.run, round: kind === "fork" ? v.best : v.round }, pressed);
  if (kind === "fork") openTab("Run");
});
show(view);
