// All runs, newest first.
function actions(c, open) {
  return h("div", { class: "s-row library-actions" },
    open && h("button", { class: "s-button", "data-act": "open", "data-run": c.run }, "Open"),
    c.resumable && h("button", { class: "s-button", "data-act": "resume", "data-run": c.run }, c.state === "new" ? "Start" : "Resume"),
    open && (c.done > 0 || c.images.length > 0) && h("button", { class: "s-button", "data-act": "take", "data-run": c.run, "aria-label": `Take away from ${c.run}` }, "Take away"),
    h("button", { class: "s-button s-ghost s-quiet-danger", "data-act": "delete", "data-run": c.run, disabled: !!c.alive, "aria-label": `Delete ${c.run}`,
      title: c.alive ? "Stop the run first" : "Delete this run and its images" }, "Delete"));
}

function rewardLine(c) {
  if (c.held) return `${c.reward}: held-out ${c.held[0]} → ${c.held[1]}`;
  if (c.last === null) return c.reward;
  return c.first === c.last ? `${c.reward}: ${c.last}` : `${c.reward}: ${c.first} → ${c.last}`;
}

function card(c) {
  if (c.kind === "broken") {
    return h("article", { class: "s-card library-card", key: c.run, "aria-label": c.run },
      h("div", { class: "library-body" }, h("h3", {}, c.run), h("p", { class: "s-pill", "data-tone": "bad" }, h("i", { class: "s-dot" }), "Unreadable"), h("p", { class: "s-muted library-reason" }, c.reason)), actions(c, false));
  }
  return h("article", { class: "s-card library-card", key: c.run, "data-selected": c.run === props.value.run, "aria-label": c.run },
    h("div", { class: "library-strip", "aria-hidden": "true" }, Array.from({ length: 6 }, (_, i) => {
      const image = c.images[i];
      return image ? h("img", { src: image.url, alt: "", width: 64, height: 64, loading: "lazy", key: image.url }) : h("span", { key: `gap${i}` });
    })),
    h("div", { class: "library-body" },
      h("h3", {}, c.run),
      h("p", { class: "library-state" }, h("span", { class: "s-pill", "data-tone": c.tone }, h("i", { class: "s-dot" }), c.headline), ` ${c.done} of ${c.rounds} rounds`),
      h("p", { class: "s-muted" }, rewardLine(c)), h("p", { class: "s-muted" }, `Made ${clock(c.created)}`),
      c.parent && h("p", { class: "s-muted" }, `Goes on from ${c.parent}`),
      c.rolled && h("p", { class: "s-muted" }, `Rolled back to round ${c.rolled}`)),
    actions(c, true));
}

function view(v) {
  if (!v.cards) return waiting();
  const cards = v.cards;
  if (!cards.length) {
    return h("section", { class: "s-card panel-empty" }, h("h2", {}, "No runs yet"), h("p", {}, "Runs that you start appear here, with their latest images."),
      h("button", { class: "s-button s-primary", "data-act": "first" }, "Start the first one"));
  }
  return h("div", { class: "library" }, h("h2", { class: "s-visually-hidden" }, "Runs"), cards.map(card));
}

onAct(async ({ act: kind, run }, button) => {
  if (kind === "first") return openTab("Run");
  if (kind === "delete" && !(await ask({ title: `Delete ${run}?`, text: "Its images, ratings and checkpoints are deleted for good.", yes: "Delete", no: "Keep it" }))) return;
  if (kind === "take") {
    act({ kind: "open", run }, button);
    return takeAway(run);
  }
  act({ kind, run }, button);
  if (kind === "open" || kind === "resume") openTab("Run");
});
show(view);
