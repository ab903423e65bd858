// What the model of taste believes. Pressing a picture shows the rated pictures that look most like it.
const open = { run: null, key: "" };

const at = (value) => `${(50 + 50 * Math.max(-1, Math.min(1, value))).toFixed(1)}%`;

// The guess on a line from -1 to 1: a bar for the interval, a tick for the guess, a dot for what was said.
function range(image) {
  return h("span", { class: "taste-range", "aria-hidden": "true" },
    h("i", { class: "taste-between", style: `left:${at(image.low)};right:calc(100% - ${at(image.high)})` }), h("i", { class: "taste-mean", style: `left:${at(image.mean)}` }),
    image.said === null ? null : h("i", { class: "taste-said", style: `left:${at(image.said)}` }));
}

function tile(list, image, who) {
  const key = `${list.key}-${image.id}`, said = image.opinion === null ? "not rated" : `${who} said ${image.opinion}`;
  return h("li", { key },
    h("button", { class: "taste-tile", "data-act": "near", "data-key-of": key, "aria-expanded": String(open.key === key), title: short(image.prompt, 300),
      "aria-label": `${short(image.prompt)}: guessed ${image.guess}, the mean opinion between ${image.between}, ${said}` },
      h("img", { src: image.url, alt: "", loading: "lazy" }), range(image), h("b", {}, image.guess), h("span", {}, said)));
}

function neighbours(list) {
  const image = list.images.find((one) => `${list.key}-${one.id}` === open.key);
  if (!image) return null;
  return h("div", { class: "taste-near", key: "near", role: "status" },
    h("p", {}, h("b", {}, short(image.prompt, 120)), ` · round ${image.round} · guessed ${image.guess}; what would be said of it on average is in eight of ten cases between ${image.between}`),
    image.near.length ? h("p", { class: "s-muted" }, "Rated pictures that look most like it, in what counts for your taste:") : null,
    h("ul", {}, image.near.map((near, i) => h("li", { key: `near-${i}` },
      h("img", { src: near.url, alt: short(near.prompt), title: short(near.prompt, 300), loading: "lazy" }), h("b", {}, near.opinion),
      h("span", {}, near.alike), near.source ? h("span", {}, `from ${near.source}`) : null))));
}

function part(list, who) {
  return h("section", { class: "taste-part", key: list.key }, h("h3", {}, list.title), h("p", { class: "s-muted" }, list.hint),
    h("ul", { class: "taste-tiles" }, list.images.map((image) => tile(list, image, who))), neighbours(list));
}

function view(v) {
  if (!v.run) return null;
  if (v.run !== open.run) Object.assign(open, { run: v.run, key: "" });
  return h("section", { class: "s-card taste", key: "taste", "aria-labelledby": "taste-title" },
    h("div", { class: "taste-head" }, h("h2", { id: "taste-title" }, "What the model of your taste believes"), h("p", { class: "s-muted" }, v.text),
      v.lists.length ? h("p", { class: "taste-key s-muted" },
        [["mean", "its guess, from −1 to 1"], ["between", "where the mean of what is said of it is in eight of ten cases"], ["said", `what ${v.who} said`]]
          .map(([name, text]) => h("span", {}, h("i", { class: `taste-${name}` }), text))) : null),
    v.lists.map((list) => part(list, v.who)));
}

onAct(({ keyOf }) => {
  open.key = open.key === keyOf ? "" : keyOf;
  redraw();
});
show(view);
