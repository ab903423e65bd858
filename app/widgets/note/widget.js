// A sentence beside a button: what went wrong, or what was done.
show((v) => h("p", { class: "s-note s-inline", "data-tone": v.tone || "bad", role: v.tone === "good" ? "status" : "alert", hidden: !v.text }, v.text || ""));
