"""A run as one HTML file that opens offline: what was trained, its curves and pictures, who rated, what it can be fooled by, and how to do it again.

Every figure is the store's. Pictures of the same prompts and seeds before and after are those that were watched, or else they are made from the run's
own weights, of seeds that were never trained on; where that cannot be done the report says why. Imports torch for these alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from PIL import Image

import rewards
from ddpo import beliefs, blind, strengths
from ddpo.alarms import judged
from ddpo.card import METHODS, REACH, base_name, facts, held_out_change, public_settings, rated_images
from ddpo.charts import HEALTH, WATCHED, around, constant, diversity_of, groups, is_measured, is_still, others, panel, spread_of
from ddpo.config import ConfigError, RunConfig, prompt_sets
from ddpo.dataset import Naming, public_reward
from ddpo.document import document, grid, picture, section, short
from ddpo.figure import Line, Panel, chart
from ddpo.files import read_image
from ddpo.fork import KEPT, config_of
from ddpo.generalisation import measured, rows_of
from ddpo.gold import proxy_and_gold, sides, win_rates, words_of
from ddpo.markup import Html, shown, tag, words_for
from ddpo.milestones import Metrics, by_reward, milestones, with_blends_apart
from ddpo.presets import preset_of, presets
from ddpo.records import SampleRow
from ddpo.result import result_until
from ddpo.store import RunStore, StoreError
from rewards.agreement import alpha
from rewards.human import opinions

STRIP = 8
"""How many of a round's pictures the report shows."""
FILES = dict(prompts="prompts.txt", held_out_prompts="held-out.txt")
"""What stands for the prompts of a setting where they are no words of a line."""
RATINGS_FILE = "RATINGS"
POCKET_LICENCE = "Apache-2.0; its training pictures were drawn with Noto Color Emoji, whose artwork is Apache-2.0"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt and seed: by the base model, and after a round."""

    prompt: str
    seed: int
    round: int
    before: Image.Image
    after: Image.Image


def report(store: RunStore, number: int, naming: Naming, pairs: Sequence[Pair], why_no_pairs: str = "") -> str:
    """The file's text, of the run up to a round.

    Args:
        naming: what raters are called.
        pairs: pictures before and after.
        why_no_pairs: what to say where there are none.
    """
    metrics = {name: [point for point in points if point[0] <= number] for name, points in store.metrics().items()}
    parts = [
        head(store, number, metrics),
        before_and_after(store, number, pairs, why_no_pairs),
        generalisation(store, number),
        how_strong(store, number),
        blind_tests(store, number),
        curves(store, number, metrics),
        against_gold(store, number),
        won(store, number),
        rewarded(store, number),
        training_pictures(store, number),
        ratings(store, number, naming),
        believed(store, number),
        health(store, number, metrics),
        settings(store, number),
        again(store, number),
        licences(store, number),
    ]
    return document(f"{store.name} · DDPO Studio", *parts)


# --- what it was, and what came of it -------------------------------------------------------------------------------------------


def head(store: RunStore, number: int, metrics: Metrics) -> Html:
    """The run in a few sentences and figures."""
    config, rated = store.config, rated_images(store, number)
    rounds = [row for row in store.rounds() if row.number <= number]
    made = sum(len(store.samples(row.number)) for row in rounds)
    seconds = sum(value or 0.0 for name, points in metrics.items() if name.startswith("seconds_") for _, value in points)
    tiles = [("rounds", f"{number} of {config.rounds}"), ("images made", f"{made:,}")]
    if rated:
        tiles.append(("images rated", f"{sum(rated.values()):,} by {words_for(len(rated), 'person', 'people')}"))
    result = result_until(store, number)
    unit = unit_of(store.reward_at(result))
    tiles += [("rolled back to, and taken away", f"round {result}")] if result != number else []
    if change := held_out_change(store, result):
        tiles.append((f"mean reward on held-out seeds{unit}", f"{shown(change.before[0])} → {shown(change.after[0])}"))
    tiles += [("time of all phases", span(seconds))] if seconds else []
    begun, ended = rounds[0].started_at, max(row.checkpointed_at or row.scored_at or row.started_at for row in rounds)
    trained = "a LoRA adapter" if config.training == "lora" else "all weights of the denoiser"
    of_each = f"{config.images_per_round} images each, {config.images_per_prompt} of a prompt"
    told = (
        f"Reinforcement learning ({METHODS[config.objective][0]}) trained {trained} of the text-to-image model {base_name(config)}. "
        f"In {words_for(number, 'round')} the model made {of_each}; images were scored, and the model learned to make those that score well."
    )
    stretches = [(first, asks_of(reward)) for first, reward in store.reward_stretches() if first <= max(1, number)]
    scored = [asks if first == 1 else f"From round {first} on: {asks}" for first, asks in stretches]
    return tag(
        "header",
        tag("p", "Report of a run · DDPO Studio", class_="over"),
        tag("h1", store.name),
        tag("p", told, class_="lede"),
        tag("p", f"What scored: {' '.join(scored)}", class_="lede"),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles), class_="tiles"),
        tag("p", f"{day(begun)} to {day(ended)} (UTC).", class_="muted"),
    )


def before_and_after(store: RunStore, number: int, pairs: Sequence[Pair], why_not: str) -> Html:
    """Pictures of the same prompts and seeds, and the held-out reward."""
    parts = []
    if pairs:
        told = f"The same prompts and seeds: on the left the base model, on the right round {pairs[0].round}."
        parts.append(tag("p", f"{told} The seeds were never trained on, and nothing is chosen: they are those that measure a run."))
        parts.append(tag("div", *map(_pair, pairs), class_="pairs"))
    elif why_not:
        parts.append(tag("p", why_not, class_="note"))
    result = result_until(store, number)
    if change := held_out_change(store, result):
        before, after = (f"{shown(value)} ± {shown(error)}" for value, error in (change.before, change.after))
        images = store.config.held_out_images
        told = f"The mean reward (± standard error) of {images} held-out images went from {before} (base model) to {after} (round {change.last})"
        parts.append(tag("p", f"{told}{unit_of(store.reward_at(result))}."))
    return section("Before and after", *parts)


def generalisation(store: RunStore, number: int) -> Html:
    """What the reward gains on prompts that are trained and on others; nothing where it was not measured."""
    found = measured(store, result_until(store, number))
    if found is None:
        return Html("")
    words = tag("p", " ".join([REACH, *found.words()]))
    return section("How far it reaches", words, grid(*rows_of(found)))


def how_strong(store: RunStore, number: int) -> Html:
    """What it is at less than its full strength; nothing where it was not measured."""
    found = strengths.measured(store, result_until(store, number))
    if found is None:
        return Html("")
    return section("How strong it should be", tag("p", " ".join(found.words())), grid(*strengths.rows_of(found)))


def blind_tests(store: RunStore, number: int) -> Html:
    """What people said who did not know whose picture was whose; nothing where nobody did."""
    found = blind.until(blind.results(store.folder), number)
    return section("Blind tests", tag("p", blind.MEANING), grid(blind.COLUMNS, [blind.row_of(result) for result in found])) if found else Html("")


def _pair(pair: Pair) -> Html:
    sides = [picture(image, f"{pair.prompt}, seed {pair.seed}, {when}") for image, when in ((pair.before, "before"), (pair.after, "after"))]
    return tag("figure", tag("div", *sides), tag("figcaption", tag("bdi", short(pair.prompt))), title=f"seed {pair.seed}")


def curves(store: RunStore, number: int, metrics: Metrics) -> Html:
    """The reward over the rounds, one chart for each reward that was in force: units are not mixed."""
    found = [
        tag("figure", tag("h3", panel.title), chart(panel.lines, panel.label, panel.marks, wide=True))
        for panel in reward_panels(store, number, metrics)
    ]
    rows = [(str(n), public_reward(store.reward_at(n)), *(shown(dict(metrics.get(name, [])).get(n)) for name in COLUMNS)) for n in _rounds(metrics)]
    names = ("round", "reward", "mean", "standard deviation", "images scored")
    return section(
        "The reward, round by round",
        tag("p", "The line is the mean of each round's images, the band one standard deviation to both sides, dots are means over held-out seeds."),
        *found,
        tag("details", tag("summary", "As a table"), grid(names, rows)),
    )


def reward_panels(store: RunStore, number: int, metrics: Metrics) -> list[Panel]:
    """The charts of the reward, of metrics up to a round."""
    stretches = [(first, reward) for first, reward in store.reward_stretches() if first <= number]
    found, marks, of_each = [], milestones(store, public_reward, number), by_reward(metrics, stretches)
    for reward in dict.fromkeys(reward for _, reward in stretches):
        own = of_each[reward]
        mean, held, base = (own.get(name, []) for name in ("reward_mean", "held_out_reward", "held_out_base"))
        lines = [Line("mean of the round", mean, around(mean, dict(own.get("reward_std", []))))]
        lines += [Line("held-out seeds", held, around(held, dict(own.get("held_out_reward_std_error", []))), dots=True)] if held else []
        lines += [Line("base model, held-out seeds", base, around(base, dict(own.get("held_out_base_std_error", []))), dots=True)] if base else []
        if mean or held:
            words = f"Reward by {public_reward(reward)} over the rounds"
            found.append(Panel(f"{public_reward(reward)}{unit_of(reward)}", lines, words, marks))
    return found


def against_gold(store: RunStore, number: int) -> Html:
    """The gains of what was optimised and of gold over the distance from the base model; nothing where nothing was watched."""
    both = proxy_and_gold(store, number)
    if both is None:
        return Html("")
    of_many = f"the mean of {', '.join(both.names)}" if len(both.names) > 1 else both.names[0]
    gold = "people's ratings of each new board" if both.names == ("human",) else of_many
    proxy, found, peak = sides(both)
    lines, fitted = list[Line](), list[Line]()
    for label, side in ((f"proxy: {public_reward(both.reward)}", proxy), (f"gold: {gold.removeprefix('the ')}", found)):
        if side.line:
            fitted.append(Line(label, side.line, of=len(lines)))
        if side.points:
            around = [(p.distance, p.gain - p.error, p.gain + p.error) for p in side.error if p.distance]
            lines.append(Line(label, [(p.distance, p.gain) for p in side.points], around, dots=True))
    drawing = chart(
        [*lines, *fitted], "Gains over the distance from the base model", wide=True, across="√KL", band=(peak.low, peak.high) if peak else ()
    )
    meant = f"The proxy is what was optimised; gold is what it stands for, here {gold}."
    units = "Gains are in the base model's standard deviations, the distance is √KL in nats."
    lines_are = "The dotted lines are R(d) = d (α − β log d), by least squares (Gao et al. 2022, arXiv 2210.10760)."
    band = " The shaded band is where gold is predicted to peak (95 % interval)." if peak else ""
    told = tag("p", f"{meant} {units} {lines_are}{band}", class_="muted")
    return section("Proxy against gold", tag("p", words_of(both.gold, both.now)), tag("figure", drawing), told)


def won(store: RunStore, number: int) -> Html:
    """How often people preferred a round to the base model in blind tests, over the distance from it; nothing where nobody said, or no distance is
    known."""
    found, reach = win_rates(store, number)
    if not found:
        return Html("")
    around = [(each.distance, *each.interval) for each in found]
    rates = Line("won by the round", [(each.distance, each.rate) for each in found], around, dots=True)
    drawing = chart([rates, Line("chance", [(0.0, 0.5), (reach, 0.5)], of=0)], "Win rates over the distance from the base model", across="√KL")
    told = (
        "The share of decided pairs in which people who judged blind preferred the round's picture to the base model's, with Wilson's 95 % interval"
    )
    words = tag("p", f"{told}; the distance is √KL in nats, and the dotted line is chance.", class_="muted")
    counts = [(str(each.round), shown(each.distance), str(each.outcome.decided), shown(each.rate)) for each in found]
    table = tag("details", tag("summary", "As a table"), grid(("round", "√KL", "decided pairs", "won by the round"), counts))
    return section("Human win rate over the distance", tag("div", tag("figure", drawing), class_="charts"), words, table)


COLUMNS = ("reward_mean", "reward_std", "scored_images")


def _rounds(metrics: Metrics) -> list[int]:
    return [number for number, _ in metrics.get("reward_mean", [])]


def rewarded(store: RunStore, number: int) -> Html:
    """What was asked for, its changes, and what fools it."""
    stretches = [(first, reward) for first, reward in store.reward_stretches() if first <= number]
    parts = dict.fromkeys(
        name for _, reward in stretches for name in (*(["blend"] if reward.startswith(rewards.BLEND) else []), *rewards.parts(reward))
    )
    rows = []
    for name in parts:
        card = rewards.card(name)
        where = "a Python file of one's own" if rewards.FUNCTION.fullmatch(name) else card.source
        rows.append((public_reward(name) if name != "blend" else name, card.asks.replace("`", ""), card.range, where, card.fooled_by))
    told = [tag("p", "A reward that rises is no proof of better images: every reward can be fooled. Compare with the pictures.")]
    if len(stretches) > 1:
        changes = "; ".join(f"from round {first} on {public_reward(reward)}" for first, reward in stretches)
        told.append(tag("p", f"The reward was changed while the run went on: {changes}."))
    return section("What was rewarded, and what fools it", *told, grid(("reward", "asks for", "range", "source", "can be fooled by"), rows))


def training_pictures(store: RunStore, number: int) -> Html:
    """Pictures of the first and of the last round, as they were made and scored."""
    rounds = [row.number for row in store.rounds() if row.scored_at is not None and row.number <= number]
    shown_rounds = [n for n in dict.fromkeys((rounds[0], rounds[-1])) if store.samples(n)] if rounds else []
    strips = [tag("h3", f"Round {n}") + tag("div", *_strip(store, n), class_="strip") for n in shown_rounds]
    told = "Evenly chosen from a round's images, each with its score. Every round has its own seeds, so these are not the same seeds twice."
    return section("As training saw it", tag("p", told), *map(Html, strips)) if strips else Html("")


def _strip(store: RunStore, number: int) -> Iterator[Html]:
    samples, known = store.samples(number), store.scores(number, store.reward_at(number))
    for sample in samples[:: max(1, -(-len(samples) // STRIP))]:
        score = known.get(sample.id)
        caption = tag("figcaption", tag("b", shown(score.value if score else None)), tag("bdi", short(sample.prompt, 40)))
        yield tag("figure", _stored(store, sample), caption)


def _stored(store: RunStore, sample: SampleRow) -> Html:
    try:
        return picture(read_image(store.folder / sample.image), f"{sample.prompt}, seed {sample.seed}, round {sample.round}")
    except OSError:
        return tag("p", "The picture's file is gone.", class_="note")


def ratings(store: RunStore, number: int, naming: Naming) -> Html:
    """How many images were rated, by whom, and how far people agree; nothing where nobody rated."""
    rated = rated_images(store, number)
    if not rated:
        return Html("")
    told: dict[str, dict[int, float]] = {}
    for row in store.rounds():
        if row.number <= number:
            for rater, opinion in opinions(store.asked(row.number), store.last_words(row.number)).items():
                told.setdefault(rater, {}).update(opinion)
    agreement, images = alpha(told.values())
    rows = [(naming(rater), f"{count:,}", _counts(store, rater)) for rater, count in rated.most_common()]
    words = f"Krippendorff's α is {shown(agreement)}, from {images} images that several people rated (1 is full agreement, 0 what chance would give)."
    return section(
        "Ratings",
        tag("p", f"{sum(rated.values()):,} images were rated, each counted once a person. {words if agreement is not None else ''}"),
        grid(("rater", "images rated", "in the reward"), rows),
    )


def _counts(store: RunStore, rater: str) -> str:
    return "left out" if rater in store.left_out else "counts half" if rater in store.weights else "counts"


BELIEVED = dict(
    liked="What it takes people to like best",
    disliked="What it takes them to like least",
    unsure="Where it is least sure, and a rating would tell most",
)
"""The pictures that a model of taste shows, in words."""


def believed(store: RunStore, number: int) -> Html:
    """What the model of taste believes of the pictures up to this round; nothing where there is none, or it has gone on since."""
    told = beliefs.read(store)
    if told is None or told["round"] > number:
        return Html("")
    parts = [
        tag("p", beliefs.trust(told, "the raters")),
        tag("p", "Under each picture: what would be said of it on average (from −1 to 1, ± in eight of ten cases), and what was."),
    ]
    for name, words in BELIEVED.items():
        parts += [tag("h3", words), tag("div", *(_believed(store, told["images"][str(id)]) for id in told[name]), class_="strip")]
    return section("What the model of taste believes", *parts)


def _believed(store: RunStore, found: Mapping[str, Any]) -> Html:
    try:
        image = picture(read_image(store.folder / found["image"]), f"{found['prompt']}, round {found['round']}")
    except OSError:
        image = tag("p", "The picture's file is gone.", class_="note")
    said = "not rated" if found["said"] is None else f"said: {shown(found['said'])}"
    caption = tag("b", f"{shown(found['mean'])} ± {shown(found['wide'])}") + tag("span", said) + tag("br") + tag("bdi", short(found["prompt"], 40))
    return tag("figure", image, tag("figcaption", Html(caption)))


def health(store: RunStore, number: int, metrics: Metrics) -> Html:
    """Charts of the optimiser's health, and of whatever else was measured; the distances in words."""
    stretches = [(first, reward) for first, reward in store.reward_stretches() if first <= max(1, number)]
    metrics = with_blends_apart(metrics, stretches)
    present = (panel(metrics, stretches[-1][1], public_reward), *WATCHED)
    charts = [(each, metrics) for each in present] + diversity_of([row for row in store.probes() if row.round <= number])
    charts += groups(metrics, stretches, public_reward)
    marks = milestones(store, public_reward, number)
    still, same = list[str](), list[str]()
    for one in (*HEALTH, *others(metrics, public_reward)):
        if not is_measured(one, metrics):
            continue
        if is_still(one, metrics):
            still.append(one.title.lower())
        elif (value := constant(one, metrics)) is not None:
            same.append(f"{one.title.lower()} {shown(value)}")
        else:
            charts.append((one, metrics))
    figures = []
    for one, own in charts:
        lines = [Line(label, own[metric], around(own[metric], spread_of(own, metric))) for metric, label in one.lines if metric in own]
        if lines:
            drawn = chart(lines, f"{one.title} over the rounds", marks)
            title = f"{one.title}, in {one.unit}" if one.unit else one.title
            figures.append(tag("figure", tag("h3", title), tag("p", one.hint, class_="muted"), drawn))
    told = alarm_words(store, number)
    told += [each for name, words in DISTANCES.items() if (each := _distance(metrics, name, words))]
    told += [] if set(DISTANCES) & set(metrics) else ["KL divergence was not measured."]
    told += [f"All 0: {'; '.join(still)}."] if still else []
    told += [f"The same in every round: {'; '.join(same)}."] if same else []
    told += (
        ["With one update a round, what compares the policy with the one that sampled is measured before it moves."]
        if still and not moving(store)
        else []
    )
    return section("Was training healthy?", tag("p", " ".join(told)), tag("div", *figures, class_="charts"))


def alarm_words(store: RunStore, number: int) -> list[str]:
    """What was wrong after the last watched round, in a sentence; nothing where nothing was watched."""
    found = judged(store, number)
    if not found.last:
        return []
    alarm = found.alarms.get(found.last)
    return [f"After round {found.last} the alarm was on: {alarm.text}" if alarm else f"After round {found.last} no alarm was on."]


DISTANCES = dict(
    watched_kl="After round {last}, a picture's whole denoising is {now} nats of KL divergence from the base model's, at most {most} (round {at}).",
    kl_base="After round {last}, a trained step is {now} nats of KL divergence from the base model's, at most {most} (round {at}).",
    kl_update="In the median round an update moved a step's policy by {median} nats of KL divergence, at most {most} (round {at}).",
)
"""Metrics of how far the model has moved, in words."""


def moving(store: RunStore) -> bool:
    """Whether the policy moves between sampling and the last measurement of the update."""
    return store.config.updates_per_round > 1 or any(behind for _, behind in store.metrics().get("updates_behind", []))


def _distance(metrics: Metrics, name: str, words: str) -> str:
    values = [(value, number) for number, value in metrics.get(name, []) if value is not None]
    if not any(value for value, _ in values):
        return ""
    (most, at), (now, last) = max(values), values[-1]
    return words.format(last=last, now=shown(now), most=shown(most), at=at, median=shown(median(value for value, _ in values)))


# --- how it was done ------------------------------------------------------------------------------------------------------------


def settings(store: RunStore, number: int) -> Html:
    """The facts, what was set otherwise than by default, all settings folded, and the prompts."""
    config, values, default = store.config, public_settings(store.config), RunConfig()
    told = {field.name: field.metadata["help"].replace("`", "") for field in fields(RunConfig)}
    rows = [(name, spelled(value), told[name]) for name, value in values.items()]
    changed = [row for row in rows if getattr(config, row[0]) != getattr(default, row[0])]
    columns = ("setting", "value", "what it does")
    return section(
        "How it was made",
        grid(("what", "value"), [(name, value.replace("`", "")) for name, value in facts(store, number)]),
        _prompts(config.prompts, "prompt"),
        *([_prompts(config.held_out_prompts, "held-out prompt")] if config.held_out_prompts else []),
        *([tag("h3", "Set otherwise than by default"), grid(columns, changed)] if changed else []),
        tag("details", tag("summary", "All settings"), grid(columns, rows)),
    )


def _prompts(prompts: Sequence[str], what: str) -> Html:
    """How many there are, and folded which."""
    items = tag("ul", *(tag("li", tag("bdi", prompt)) for prompt in prompts), class_="prompts")
    return tag("details", tag("summary", words_for(len(prompts), what)), items)


def again(store: RunStore, number: int) -> Html:
    """Commands that make the run anew, and take it away."""
    config = store.config
    notes = ["From the folder of DDPO Studio. Names of files stand for the paths to them."]
    if "human" in {name for first, reward in store.reward_stretches() if first <= max(1, number) for name in rewards.parts(reward)}:
        notes.append("People's ratings are no command: rate the run on its page. Those given are taken away with the second command.")
    if len([first for first, _ in store.reward_stretches() if first <= max(1, number)]) > 1:
        notes.append("The reward was changed on the way, as told above; resume --reward does so.")
    if config.ratings_from:
        notes.append(f"{RATINGS_FILE} stands for the ratings from elsewhere.")
    for name, file in FILES.items():
        if prompts_option(config, name) == file:
            notes.append(f"{file} holds the {name.replace('held_out', 'held-out').replace('_', ' ')} above, one a line.")
    if store.parent:
        notes.append(f"It goes on from another run, which is needed: runs/{store.parent[0]}.")
    lines = [fork_command(store, *store.parent) if store.parent else command(config, f"runs/{store.name}")]
    if rated_images(store, number):
        lines.append(f"python -m ddpo export runs/{store.name} --as ratings --out {store.name}-ratings")
    kind, result = "pipeline" if config.training == "full" else "kohya", result_until(store, number)
    which = f" --round {result}" if result != number else ""
    lines.append(f"python -m ddpo export runs/{store.name} --as {kind}{which} --out {store.name}-model")
    return section("Do it again", tag("p", " ".join(notes)), tag("pre", "\n".join(lines)))


def command(config: RunConfig, out: str) -> str:
    """The command that starts such a run."""
    names = {"reward", *differing(config, presets()[preset_of(config.reward)].config)}
    return " ".join(["python -m ddpo run", *options(config, names), f"--out {shlex.quote(out)}"])


def fork_command(store: RunStore, parent: str, number: int) -> str:
    """The command that makes such a run from its parent: with what it has otherwise, or with all settings where the parent is not beside it."""
    config, names = store.config, {field.name for field in fields(RunConfig)}
    with suppress(StoreError, ConfigError), closing(RunStore(store.folder.with_name(parent))) as beside:
        names = differing(config, config_of(beside, number, {}))
    if all(Path(name).name == parent for name in config.ratings_sources):  # which are the new run's by themselves
        names -= {"ratings_from"}
    start = f"python -m ddpo fork {shlex.quote(f'runs/{parent}')} --round {number}"
    return " ".join([start, *options(config, names - set(KEPT)), f"--out {shlex.quote(f'runs/{store.name}')}"])


def differing(config: RunConfig, other: RunConfig) -> set[str]:
    """The names of the settings that are not the same."""
    return {field.name for field in fields(RunConfig) if getattr(config, field.name) != getattr(other, field.name)}


def options(config: RunConfig, names: Container[str]) -> list[str]:
    """Some settings as the command line takes them, and whose Python files may run."""
    values, parts = public_settings(config) | {name: prompts_option(config, name) for name in FILES} | dict(ratings_from=RATINGS_FILE), []
    for name in (field.name for field in fields(RunConfig) if field.name in names):
        value, flag = values[name], name.replace("_", "-")
        parts.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {shlex.quote(spelled(value))}")
    files = [name.partition(":")[0] for name in rewards.parts(values["reward"]) if rewards.FUNCTION.fullmatch(name)]
    return [*parts, *(f"--trust {shlex.quote(file)}" for file in files)]


def prompts_option(config: RunConfig, setting: str) -> str:
    """The prompts of a setting as the command line takes them: a set's name, the texts, or a file where they are many or hold what parts them."""
    prompts: tuple[str, ...] = getattr(config, setting)
    if named := next((name for name, known in prompt_sets().items() if known == prompts), None):
        return named
    line = "; ".join(prompts)
    plain = not any(";" in prompt or "\n" in prompt or prompt != prompt.strip() for prompt in prompts)
    return line if plain and len(line) < 1000 and not line.endswith(".txt") else FILES[setting]


def licences(store: RunStore, number: int) -> Html:
    """Whose licences apply to what was made."""
    config = store.config
    rows = [("DDPO Studio", "Apache-2.0")]
    rows.append(
        (f"base model {base_name(config)}", POCKET_LICENCE if config.model == "pocket" else "its own licence applies to what was made from it")
    )
    names = dict.fromkeys(name for first, reward in store.reward_stretches() if first <= number for name in rewards.parts(reward))
    rows += [
        (f"reward {name}", rewards.card(name).licence) for name in names if name in rewards.REWARDS and rewards.card(name).licence != "no weights"
    ]
    return section("Licences", grid(("what", "licence"), rows))


# --- pictures and words ---------------------------------------------------------------------------------------------------------


def watched_pairs(store: RunStore, number: int, count: int, each_prompt_once: bool = False) -> list[Pair]:
    """Pictures that were watched (:mod:`ddpo.monitor`), by the base model and after the last round up to one at which they were; none where nothing
    was watched, or a file is gone."""
    rows = {(row.round, row.position): row for row in store.probes() if row.round <= number}
    last = max((at for at, _ in rows), default=0)
    positions = sorted(position for at, position in rows if at == last and (0, position) in rows) if last else []
    if each_prompt_once:
        positions = sorted({rows[last, position].prompt: position for position in reversed(positions)}.values())
    found = []
    try:
        for position in evenly(positions, count):
            before, after = rows[0, position], rows[last, position]
            found.append(Pair(after.prompt, after.seed, last, *(read_image(store.folder / row.image) for row in (before, after))))
    except OSError:
        return []
    return found


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """All of some items, or so many of them, evenly chosen."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def held_out_pairs(store: RunStore, number: int, place: Path, count: int) -> list[Pair]:
    """Pictures of the first held-out prompts and seeds, by the base model and by the weights of a round's checkpoint.

    Raises:
        ConfigError: the model cannot be loaded.
        CheckpointError: the weights cannot be read, or are of another base model.
    """
    from ddpo.checkpoint import load_state
    from ddpo.evaluate import held_out_images
    from ddpo.policy import StableDiffusionPolicy
    from ddpo.rollout import derive_seed
    from ddpo.worker import with_own_lora

    policy = StableDiffusionPolicy.load(with_own_lora(store.config, store.folder))
    load_state(place, policy.parameters(), base=policy.fingerprint, averaged=True)
    prompts, before = held_out_images(policy, store.config, base=True, count=count)
    _, after = held_out_images(policy, store.config, base=False, count=count)
    return [Pair(prompts[i], derive_seed("held out", i), number, before[i], after[i]) for i in range(count)]


def asks_of(reward: str) -> str:
    """What a reward asks for, in a sentence; of a blend, its parts with their weights."""
    if not reward.startswith(rewards.BLEND):
        return rewards.card(reward).asks
    parts = (f"{weight:g} × {public_reward(name)} ({rewards.card(name).asks.rstrip('.')})" for name, weight in rewards.parts(reward).items())
    return f"a weighted sum of rewards, each in its own standard deviations: {'; '.join(parts)}."


def unit_of(reward: str) -> str:
    """The unit of a reward, for the end of a title or of a sentence."""
    unit = rewards.card("blend" if reward.startswith(rewards.BLEND) else reward).unit
    return f", in {unit}" if unit and unit not in ("opinion", "logit") else ""


def spelled(value: object) -> str:
    """A setting's value as the command line takes it."""
    return f"{value:.10g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
