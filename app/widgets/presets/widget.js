// Starting points, as cards of one radio group.
function view(v) {
  return h("fieldset", { class: "presets" }, h("legend", {}, "Start from"),
    (v.presets || []).map((p) => h("label", { class: "preset", key: p.name },
      h("input", { type: "radio", name: "studio-preset", value: p.name, checked: p.name === v.chosen }),
      h("span", { class: "preset-title" }, p.title), h("span", { class: "preset-text" }, p.description))));
}
element.addEventListener("change", (event) => {
  if (event.target.name === "studio-preset") trigger("act", { kind: "preset", name: event.target.value });
});
show(view);
