// What can be taken away from the run: a choice, a round, and a download that starts when the file is made.
const chosen = { run: null, kind: null, round: "", strength: 1, names: false, repo: "", isPublic: false };
let told = { text: "", tone: "" }, busy = false, typedFor = null;

function choice(v) {
  const open = v.choices.filter((c) => c.enabled);
  return open.find((c) => c.kind === chosen.kind) || open[0] || null;
}

// Rounds of the choice, newest first, but the result of a roll-back before all; "" is the result of a model, and all of data.
function rounds(v, c) {
  const found = [...(c.data ? v.made : v.saved)].reverse();
  return c.data ? [["", "All rounds"], ...found.map((n) => [String(n), `${c.kind === "report" ? "Up to round" : "Round"} ${n}`])]
    : [...(v.rolled ? [["", `Round ${v.result}, the result`]] : []),
      ...found.map((n, i) => [i || v.rolled ? String(n) : "", i ? `Round ${n}` : `Round ${n}, the latest`]).filter(([n]) => !v.rolled || Number(n) !== v.result)];
}

function card(c, now) {
  return h("label", { class: "preset takeaway-choice", key: c.kind, "data-off": !c.enabled },
    h("input", { type: "radio", name: "takeaway-kind", value: c.kind, disabled: !c.enabled, checked: c === now, "aria-describedby": `takeaway-${c.kind}` }),
    h("span", { class: "preset-title" }, c.title), h("span", { class: "preset-text", id: `takeaway-${c.kind}` }, c.text));
}

function options(v, c) {
  return h("div", { class: "takeaway-options" },
    h("label", { class: "takeaway-field", key: "round" }, h("span", {}, "Round"),
      h("select", { "data-round": "" }, rounds(v, c).map(([value, name]) => h("option", { value, key: `r${value}` }, name)))),
    !c.strong ? null : h("label", { class: "takeaway-field takeaway-strength", key: "strength" }, h("span", {}, "Strength"),
      h("input", { type: "range", min: 0.05, max: 2, step: 0.05, "data-strength": "", "aria-valuetext": percent() }), h("output", {}, percent())),
    c.people ? h("label", { class: "takeaway-names", key: "names" }, h("input", { type: "checkbox", "data-names": "" }), h("span", {}, "With the raters' names, not a code for each")) : null,
    h("button", { class: "s-button s-primary takeaway-download", key: "download", "data-act": "download", "aria-disabled": busy, "aria-busy": busy }, busy ? "Preparing…" : "Download"));
}

// The token stays in its field until it is sent, and is kept nowhere.
function hub() {
  return h("details", { class: "takeaway-hub", key: "hub" }, h("summary", {}, "Send it to the Hugging Face Hub"),
    h("div", { class: "takeaway-options" },
      h("label", { class: "takeaway-field", key: "repo" }, h("span", {}, "Repository"),
        h("input", { type: "text", "data-repo": "", placeholder: "your-name/its-name", autocomplete: "off", spellcheck: "false", maxlength: 200 })),
      h("label", { class: "takeaway-field", key: "token" }, h("span", {}, "Token"),
        h("input", { type: "password", "data-token": "", placeholder: "hf_…", autocomplete: "new-password", "aria-describedby": "takeaway-token" })),
      h("label", { class: "takeaway-names", key: "public" }, h("input", { type: "checkbox", "data-public": "" }), h("span", {}, "Everybody may see it")),
      h("button", { class: "s-button", key: "push", "data-act": "push", "aria-disabled": busy }, busy ? "Working…" : "Send")),
    h("p", { class: "s-muted", id: "takeaway-token" }, "A token with write access, from huggingface.co/settings/tokens. It is used once and not kept. Files of the same names that are there are replaced; the Hub keeps what they were."));
}

function percent() { return `${Math.round(100 * chosen.strength)} %`; }

function view(v) {
  if (!v.run) return null;
  if (v.run !== chosen.run) { Object.assign(chosen, { run: v.run, kind: null, round: "", strength: 1, names: false, repo: "", isPublic: false }); told = { text: "", tone: "" }; }
  const c = choice(v);
  return h("section", { class: "s-card takeaway", key: "takeaway", "aria-labelledby": "takeaway-title" },
    h("div", { class: "takeaway-head" }, h("h2", { id: "takeaway-title", tabindex: -1 }, "Take away"),
      h("p", { class: "s-muted" }, "The model for other programs, a report, or your ratings. What you take carries a description of how it was made.")),
    v.rolled ? h("div", { class: "s-row takeaway-rolled", key: "rolled" }, h("p", {}, `This run is rolled back to round ${v.result}: that is what you take away, unless you choose another round.`),
      h("button", { class: "s-button s-small", "data-act": "latest" }, "Take the latest again")) : null,
    h("fieldset", { class: "presets", disabled: busy }, h("legend", { class: "s-visually-hidden" }, "What to take away"), v.choices.map((one) => card(one, c))),
    c ? options(v, c) : null,
    c && !c.page ? hub() : null,
    c ? h("p", { class: "takeaway-told", role: "status", "data-tone": told.tone }, told.text) : null);
}

function after(v) {
  const c = v.run ? choice(v) : null;
  for (const input of element.querySelectorAll("[name=takeaway-kind]")) input.checked = !!c && input.value === c.kind;
  const round = element.querySelector("[data-round]"), strength = element.querySelector("[data-strength]"), names = element.querySelector("[data-names]");
  if (round) round.value = rounds(v, c).some(([value]) => value === chosen.round) ? chosen.round : "";
  if (strength) strength.value = chosen.strength;
  if (names) names.checked = chosen.names;
  const repo = element.querySelector("[data-repo]"), everybody = element.querySelector("[data-public]"), token = element.querySelector("[data-token]");
  if (token && typedFor !== v.run) token.value = "";
  typedFor = v.run;
  if (repo && repo.value !== chosen.repo) repo.value = chosen.repo;
  if (everybody) everybody.checked = chosen.isPublic;
  arrive(v);
}

// Somebody pressed "Take away" elsewhere: go there once this run is shown and its page is open.
function arrive(v, tries = 40) {
  if (!window.studioTakeAway || window.studioTakeAway !== v.run) return;
  const title = element.querySelector("h2");
  if (title && title.offsetParent) {
    window.studioTakeAway = null;
    title.scrollIntoView({ block: "start" });
    title.focus({ preventScroll: true });
  } else if (tries) setTimeout(() => arrive(props.value || {}, tries - 1), 50);
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

// Have the server make it, and take it or send it to the Hub; what to say afterwards comes from `then`.
async function make(v, to, then) {
  const c = choice(v), run = v.run;
  if (busy || !c) return;
  busy = true;
  told = { text: `${c.slow || "The file is being made."}${c.slow || to === "push" ? " Leave this page open." : ""}`, tone: "" };
  const known = rounds(v, c).some(([value]) => value === chosen.round) && chosen.round, token = element.querySelector("[data-token]");
  const question = { kind: c.kind, round: known ? Number(known) : null, strength: c.strong ? chosen.strength : 1, names: c.people && chosen.names };
  if (to === "push") Object.assign(question, { repo: chosen.repo.trim(), token: token.value.trim(), public: chosen.isPublic });
  redraw();
  try {
    const answer = await fetch(`/studio/runs/${encodeURIComponent(run)}/${to}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });
    const made = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(made.detail || "The studio gave no answer that can be read. Try again.");
    told = { text: then(made), tone: "good" };
    if (to === "push") token.value = "";
  } catch (error) {
    told = { text: error instanceof TypeError ? "The studio cannot be reached. Is it still running?" : error.message, tone: "bad" };
  }
  busy = false;
  redraw();
}

function fetched(file) {
  const link = h("a", { href: file.url, download: file.name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  return `${file.name} (${size(file.bytes)}) is on its way to your downloads.`;
}

function push(v) {
  const token = element.querySelector("[data-token]");
  if (!chosen.repo.trim() || !token.value.trim()) {
    told = { text: chosen.repo.trim() ? "Give a token." : "Name the repository, such as anna/warm-animals.", tone: "bad" };
    redraw();
    element.querySelector(chosen.repo.trim() ? "[data-token]" : "[data-repo]").focus();
    return;
  }
  make(v, "push", (made) => `It is at ${made.url}`);
}

element.addEventListener("input", (event) => {
  const at = event.target;
  if (at.name === "takeaway-kind") chosen.kind = at.value;
  if (at.matches("[data-round]")) chosen.round = at.value;
  if (at.matches("[data-strength]")) chosen.strength = Number(at.value);
  if (at.matches("[data-names]")) chosen.names = at.checked;
  if (at.matches("[data-repo]")) chosen.repo = at.value;
  if (at.matches("[data-public]")) chosen.isPublic = at.checked;
  if (at.matches("[data-token]")) return;
  told = { text: "", tone: "" };
  redraw();
});
element.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("[data-repo], [data-token]")) push(props.value);
});
onAct(({ act: kind }, pressed) => {
  if (kind === "download") make(props.value, "exports", fetched);
  if (kind === "push") push(props.value);
  if (kind === "latest") act({ kind, run: props.value.run }, pressed);
});
const onTakeAway = () => {
  if (!element.isConnected) return window.removeEventListener("studio:take-away", onTakeAway);
  arrive(props.value || {});
};
window.addEventListener("studio:take-away", onTakeAway);
show(view, after);
