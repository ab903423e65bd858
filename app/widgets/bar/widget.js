// The strip above all pages: which run, what it does, how far it is.
const ICON = "M4 17c4.500 0 4.500-9 9-9s3.500 6 7-2";

function select(v) {
  const names = v.runs || [];
  const missing = v.run && !names.includes(v.run);
  return h("label", { class: "bar-pick", key: "pick" }, h("span", { class: "s-visually-hidden" }, "Run"),
    h("select", { "data-pick": "", "aria-label": "Run", disabled: !names.length },
      !names.length && h("option", { value: "" }, v.runs ? "No runs yet" : "…"),
      names.length && !v.run ? h("option", { value: "" }, "Choose a run") : null,
      missing && h("option", { value: v.run }, `${v.run} (missing)`),
      names.map((name) => h("option", { value: name }, name))));
}

function state(v) {
  if (!v.state) return h("div", { class: "bar-state", key: "state", role: "status" });
  const counted = v.total > 1 ? (v.unit === "rated" ? `${v.done} of ${v.total} rated` : `${v.done} of ${v.total}`) : "";
  const parts = [v.round ? `round ${v.round} of ${v.rounds}` : "", counted, timeLeft(v)].filter(Boolean);
  return h("div", { class: "bar-state", key: "state" },
    h("span", { class: "s-pill", "data-tone": v.tone, role: "status" }, h("i", { class: "s-dot" }), v.headline),
    h("span", { class: "bar-detail" }, parts.join(" · ")));
}

function view(v) {
  const fraction = v.total ? v.done / v.total : 0;
  return h("header", { class: "bar", "data-tone": v.tone || "idle" },
    h("div", { class: "bar-row" },
      h("div", { class: "bar-brand", key: "brand" },
        h("svg", { viewBox: "0 0 24 24", class: "bar-mark", "aria-hidden": "true" }, h("path", { d: ICON }), h("circle", { cx: 19.5, cy: 4.500, r: 1.800 })),
        h("h1", {}, "DDPO Studio")),
      select(v), state(v),
      h("span", { class: "bar-go", key: "alarm", role: "status" },
        v.alarm ? h("button", { class: "s-button s-small bar-alarm", "data-act": "alarm", title: v.alarm }, v.alive ? "Going wrong" : "Went wrong") : null),
      h("span", { class: "bar-go", key: "go" },
        v.your_turn ? h("button", { class: "s-button s-primary s-small", "data-act": "rate" }, "Rate now") : null),
      h("button", { class: "s-button s-ghost bar-theme", key: "theme", "data-act": "theme", title: "Light or dark", "aria-label": "Switch between light and dark" }, "◐")),
    h("div", { class: "bar-progress", key: "progress", role: "progressbar", "aria-label": "Progress of this phase",
      "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * fraction) },
      h("i", { style: `transform: scaleX(${fraction.toFixed(4)})` })));
}

function after(v) {
  const pick = element.querySelector("[data-pick]");
  if (pick && document.activeElement !== pick) pick.value = v.run || "";
  const url = new URL(location.href);
  if (v.run && url.searchParams.get("run") !== v.run) {
    url.searchParams.set("run", v.run);
    history.replaceState(history.state, "", url);
  }
  const waiting = v.your_turn ? "● " : "";
  const title = v.run ? `${waiting}${v.run} · ${v.headline || ""} · DDPO Studio` : "DDPO Studio";
  if (document.title !== title) document.title = title;
}

function paint(dark) {
  document.body.classList.toggle("dark", dark);
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
}

function theme() {
  const dark = !document.body.classList.contains("dark");
  paint(dark);
  try { localStorage.setItem("studio-theme", dark ? "dark" : "light"); } catch { /* private windows keep nothing */ }
}

// Once a second: has anything changed of the selected run? Only then are the page's values asked for; where no answer comes, again after a while.
// (What the strip shows may be of another run: an answer that was on its way when this one was chosen.)
const LOST_MS = 5000;
const selected = () => document.querySelector("#studio-run :is(input, textarea)")?.value ?? "";
let listening = false, asked = null;
async function pulse() {
  const shown = props.value?.token;
  if (listening || !shown) return;
  listening = true;
  try {
    const answer = await fetch(`/studio/pulse?run=${encodeURIComponent(selected())}`, { cache: "no-store", signal: AbortSignal.timeout(LOST_MS) });
    const token = answer.ok ? await answer.text() : shown;
    const waits = asked && asked.shown === props.value.token && Date.now() - asked.at < LOST_MS;
    if (token === props.value.token || shown !== props.value.token || waits) return;
    asked = { shown, at: Date.now() };
    trigger("act", { kind: "changed" });
  } catch { /* no server just now */ } finally { listening = false; }
}

try {
  const kept = new URL(location.href).searchParams.has("__theme") ? null : localStorage.getItem("studio-theme");
  if (kept) paint(kept === "dark");
} catch { /* nothing kept */ }

element.addEventListener("change", (event) => {
  if (!event.target.matches("[data-pick]") || !event.target.value) return;
  const url = new URL(location.href);
  url.searchParams.set("run", event.target.value);
  history.replaceState(history.state, "", url);
  trigger("act", { kind: "pick", run: event.target.value });
  event.target.blur();
});
onAct(({ act: kind }) => {
  if (kind === "theme") return theme();
  openTab(kind === "alarm" ? "Progress" : "Rate");
  if (kind === "alarm") requestAnimationFrame(() => document.querySelector("#studio-alarm h3")?.focus());
});
show(view, after);
everySecond(() => { if (props.value?.left) redraw(); });
everySecond(pulse);
