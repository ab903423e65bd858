"""The Progress page: reward and health of training over the rounds, and the images of any round. Pure reads of the store."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from functools import lru_cache
from statistics import fmean
from typing import Any

import gradio as gr

import rewards
from app import words
from app.board import board_round, is_closed, is_rated
from app.curves import clock, thin
from app.pages.run import image_url
from app.raters import rated_rounds
from app.runs import Runs
from app.widgets.kit import widget
from ddpo import blind
from ddpo.charts import (
    COST,
    HEALTH,
    HERO,
    MOST_PROMPTS,
    WATCHED,
    Chart,
    around,
    diversity_of,
    groups,
    is_measured,
    is_still,
    labelled,
    others,
    panel,
    present_first,
    spread_of,
)
from ddpo.config import ConfigError
from ddpo.gold import ProxyAndGold, Won, proxy_and_gold, sides, win_rates, words_of
from ddpo.milestones import Metrics, milestones, with_blends_apart
from ddpo.records import SampleRow
from ddpo.result import rolled_back
from ddpo.store import RunStore, StoreError
from rewards.base import Score
from rewards.human import scores

MOST_RATERS = 8
"""How many raters a chart has a line each for at most."""
STRIP = 8
"""How many images of a round stand beside its values."""


Answer = Callable[[dict[str, Any]], dict[str, Any]]


def build(round_images: Answer, round_strip: Answer, run_curves: Answer) -> tuple[gr.HTML, gr.HTML]:
    """The charts and the gallery. They ask for all images of a round or a strip of them, and for the curves of a run to draw beside this one."""
    return widget("chart", server_functions=[round_strip, run_curves]), widget("gallery", server_functions=[round_images])


# --- charts ---------------------------------------------------------------------------------------------------------------------


def charts_value(store: RunStore) -> dict[str, Any]:
    """All charts of a run that have something to show, the reward first. What is ``still`` is 0 so far: the page names it, and draws it only where
    another run beside this one has more."""
    measured, stretches = store.metrics(), store.reward_stretches()
    if not measured:
        return dict(run=store.name, charts=[])
    metrics = with_blends_apart(measured, stretches)
    watched = [panel(metrics, stretches[-1][1], words.reward), *WATCHED]
    charts = heroes(metrics, stretches) + gold_chart(store) + win_chart(store) + by_prompt(store, stretches[-1][1])
    charts += with_people(line_charts(watched, metrics), store)
    charts += [line_chart(chart, own) for chart, own in _diversity(store, store.probed)] + rater_charts(store)
    charts += [line_chart(chart, own) for chart, own in groups(metrics, stretches, words.reward)]
    health = [chart for chart in (*HEALTH, *COST, *others(metrics, words.reward)) if is_measured(chart, metrics)]
    charts += [line_chart(chart, metrics) | (dict(still=True) if is_still(chart, metrics) else {}) for chart in health]
    thinned = thin(charts)
    marks = [asdict(one) for one in milestones(store, words.reward)]
    charts = [chart | dict(marks=marks) for chart in charts]
    return dict(run=store.name, charts=charts, clock=clock(metrics), thinned=thinned, csv=f"/studio/runs/{store.name}/metrics.csv")


def answer_curves(runs: Runs, question: object) -> dict[str, Any]:
    """The charts of another run, to draw beside the selected one's: ``{"run", "stamp"}`` with the stamp of what is known of it already, answered
    with a new stamp and the charts, or with the stamp alone where nothing is new; of what is no run, without charts."""
    asked = question if isinstance(question, dict) else {}
    try:
        store = runs.open(asked.get("run", ""))
        stamp = f"{store.revision}.{blind.stamp(store.folder)}"
        return dict(stamp=stamp) if asked.get("stamp") == stamp else dict(stamp=stamp, value=charts_value(store))
    except (StoreError, ConfigError, sqlite3.Error):
        return dict(stamp="", value=dict(run=None, charts=[]))


def with_people(charts: list[dict[str, Any]], store: RunStore) -> list[dict[str, Any]]:
    """The charts, that of the rewards with people's ratings on the same axis, where these are gold (:mod:`ddpo.gold`): the gain of each new board's
    mean over the first one's, in the spread of the first one's scores. The base model made that board, so this is its standard deviation, of what
    people say. A board lies at the round that made its model, as the watched pictures do. No automatic reward is asked about the boards' pictures:
    its line is of the watched ones."""
    both = _known_gold(store)
    if both is None or both.names != ("human",) or both.gold[0].distance:
        return charts
    points, band = [], []
    for after in dict.fromkeys(p.after for p in both.gold):  # boards that were made ahead are of one model
        of_one = [p for p in both.gold if p.after == after]
        gain, error = fmean(p.gain for p in of_one), math.hypot(*(p.error for p in of_one)) / len(of_one)
        points.append((after, gain))
        band.append((after, gain - error, gain + error))
    line = dict(label="your ratings", points=points, band=band)
    hint = "Watched pictures and rated boards (± standard error), in the base model’s standard deviations. One rises, the others fall: it is gamed."
    return [chart | dict(series=[line, *chart["series"]], hint=hint) if chart["key"] == "panel" else chart for chart in charts]


def heroes(metrics: Metrics, stretches: list[tuple[int, str]]) -> list[dict[str, Any]]:
    """The reward over the rounds; where it was changed, one chart for each, of its own rounds: units are not mixed. The present one is first."""
    found = []
    for i, (reward, own) in enumerate(present_first(metrics, stretches, HERO)):
        if i == 0 or own.get("reward_mean"):
            found.append(hero(own, reward, "human" in rewards.parts(reward)) | dict(key=f"reward-{i}" if i else "reward"))
    return found


def hero(metrics: Metrics, reward: str, rated: bool) -> dict[str, Any]:
    """Reward over the rounds: the mean with a band of one standard deviation, held-out points with their error, and how many images count."""
    spread, error = dict(metrics.get("reward_std", [])), dict(metrics.get("held_out_reward_std_error", []))
    mean, held = metrics.get("reward_mean", []), metrics.get("held_out_reward", [])
    series = [dict(label="mean of the round", points=mean, band=around(mean, spread))]
    if held:
        series.append(dict(label="held-out (seeds never trained on)", points=held, error=around(held, error), style="dots"))
    if base := metrics.get("held_out_base", []):
        error = dict(metrics.get("held_out_base_std_error", []))
        series.append(dict(label="base model, by this reward", points=base, error=around(base, error), style="dots"))
    untrained = " Round 0: not trained." if any(number == 0 for number, _ in held) else ""
    return dict(
        key="reward", title=words.reward(reward) if reward != "human" else "Your ratings, as reward",
        hint="Mean and spread (± one standard deviation) of each round's images" + (", from −1 to 1." if reward == "human" else f".{untrained}"),
        wide=True, series=series, counts=dict(label="images rated" if rated else "images scored", points=metrics.get("scored_images", [])),
    )  # fmt: skip


def by_prompt(store: RunStore, reward: str) -> list[dict[str, Any]]:
    """The present reward by prompt, where the prompts are few enough to tell their lines apart."""
    prompts = dict.fromkeys(store.config.prompts)
    if not 1 < len(prompts) <= MOST_PROMPTS:
        return []
    means = _prompt_means(store, reward, tuple(row.number for row in store.rounds() if row.scored_at is not None))
    series = [dict(label=label, points=means[prompt]) for prompt, label in labelled(prompt for prompt in prompts if prompt in means)]
    hint = "The mean of each round's images of a prompt: one that falls while others rise is what the model gives up."
    return [dict(key="prompts", title=f"{words.reward(reward)}, by prompt", hint=hint, series=series)] if series else []


@lru_cache(maxsize=32)
def _prompt_means(store: RunStore, reward: str, _scored: tuple[int, ...]) -> dict[str, list[tuple[int, float]]]:
    """Made anew when a round was scored."""
    return store.prompt_means(reward)


@lru_cache(maxsize=32)
def _diversity(store: RunStore, _stamp: object) -> list[tuple[Chart, Metrics]]:
    """Made anew when a round was watched."""
    return diversity_of(store.probes())


def gold_chart(store: RunStore) -> list[dict[str, Any]]:
    """The gain of what is optimised and of gold over the distance from the base model, each with its fitted curve, and where gold is predicted to
    peak. Points are named by their rounds; ``places`` says where these lie, and ``curves`` are (distance, gain)."""
    both = _known_gold(store)
    if both is None:
        return []
    proxy, gold, peak = sides(both)
    series, curves = [], []
    for label, side in ((f"proxy: {words.reward(both.reward)}", proxy), (f"gold: {gold_name(both.names)}", gold)):
        if side.points:
            error = [(p.round, p.gain - p.error, p.gain + p.error) for p in side.error]
            series.append(dict(label=label, points=[(p.round, p.gain) for p in side.points], error=error, style="dots"))
            curves.append(side.line)
    return [
        dict(
            key="gold", title=f"Proxy against gold: {words.reward(both.reward)}", wide=True, unit="sd", series=series, curves=curves, across="√KL",
            told=words_of(both.gold, both.now),
            hint="Gains in the base model's standard deviations, by d = √KL from it, in nats. Lines: d (α − β log d), fitted (Gao et al. 2022).",
            places=[(p.round, p.distance) for p in {p.round: p for p in (*both.proxy, *both.gold)}.values()], peak=peak and astuple(peak),
        )
    ]  # fmt: skip


def _known_gold(store: RunStore) -> ProxyAndGold | None:
    """What is known of proxy and gold."""
    scored = tuple(row.number for row in store.rounds() if row.scored_at is not None)
    return _proxy_and_gold(store, store.probed, tuple(store.reward_stretches()), scored, frozenset(store.left_out))


@lru_cache(maxsize=32)
def _proxy_and_gold(store: RunStore, *_stamps: object) -> ProxyAndGold | None:
    """Made anew when a round was watched or scored, or a rater is left out."""
    return proxy_and_gold(store)


def win_chart(store: RunStore) -> list[dict[str, Any]]:
    """How often people preferred a round to the base model in blind tests, from 0 to 1 with Wilson's interval, over the distance from it; dotted,
    what chance would give."""
    found, reach = _win_rates(store, store.probed, blind.stamp(store.folder))
    if not found:
        return []
    error = [(each.round, *each.interval) for each in found]
    return [
        dict(
            key="won", title="Human win rate", across="√KL", places=[(each.round, each.distance) for each in found],
            hint="Blind tests against the base model: the share of decided pairs that the round wins, with Wilson's 95 % interval. Dotted: chance.",
            series=[dict(label="won by the round", points=[(each.round, each.rate) for each in found], error=error, style="dots")],
            curves=[[(0.0, 0.5), (reach, 0.5)]],
            counts=dict(label="decided pairs", points=[(each.round, each.outcome.decided) for each in found]),
        )
    ]  # fmt: skip


@lru_cache(maxsize=32)
def _win_rates(store: RunStore, *_stamps: object) -> tuple[list[Won], float]:
    """Made anew when a round was watched, or a blind test has come out."""
    return win_rates(store)


def gold_name(names: Sequence[str]) -> str:
    """What gold is, in words."""
    if list(names) == ["human"]:
        return "your ratings of each new board"
    return words.reward(names[0]) if len(names) == 1 else f"mean of {', '.join(map(words.reward, names))}"


def rater_charts(store: RunStore) -> list[dict[str, Any]]:
    """How fast people rated each closed board, how far they agreed, and how far with themselves where images were shown once more; what has something
    to show."""
    found = rated_rounds(store)
    by_rater = found.seconds if len(found.seconds) <= MOST_RATERS else {"all raters": found.everyone}
    speed = [dict(label=words.short(rater, 40), points=points) for rater, points in by_rater.items()]
    same = "The share of pairs of a round’s images that were put in the same order when they were shown once more. 0.5 is chance."
    charts: list[dict[str, Any]] = [
        dict(
            key="rater-speed", title="Seconds per image", hint="The median of each board: from one rating to the next. Of pairs, per pair.", unit="s",
            series=speed, counts=dict(label="ratings", points=found.acts),
        ),
        dict(
            key="rater-agreement", title="Agreement between raters", hint="Krippendorff’s α of each board: 1 is full agreement, 0 is chance.",
            series=[dict(label="α", points=found.agreement)], counts=dict(label="images that several rated", points=found.shared),
        ),
        dict(
            key="rater-repeats", title="Agreement with oneself", hint=same,
            series=[dict(label="same order", points=found.same)], counts=dict(label="pairs", points=found.pairs),
        ),
    ]  # fmt: skip
    return [chart for chart in charts if any(value is not None for series in chart["series"] for _, value in series["points"])]


def line_charts(charts: Sequence[Chart], metrics: Metrics) -> list[dict[str, Any]]:
    """Those of which something was measured."""
    return [line_chart(chart, metrics) for chart in charts if is_measured(chart, metrics)]


def line_chart(chart: Chart, metrics: Metrics) -> dict[str, Any]:
    series = [
        dict(label=label, points=points, band=around(points, spread_of(metrics, metric)))
        for metric, label in chart.lines
        if (points := metrics.get(metric)) is not None
    ]
    return dict(key=chart.key, title=chart.title, hint=chart.hint, unit=chart.unit, series=series, log=chart.log)


# --- gallery --------------------------------------------------------------------------------------------------------------------


def gallery_value(store: RunStore) -> dict[str, Any]:
    """Which rounds have images, and to which the run is rolled back; ``stamp`` changes when the latest of them may look different."""
    rounds = [row.number for row in store.rounds() if row.sampled_at is not None]
    present = store.rounds()[-1:] if store.rounds() else []
    if present and present[0].number not in rounds and store.samples(present[0].number):
        rounds.append(present[0].number)
    if not rounds:
        return dict(run=store.name, rounds=[], stamp="")
    last = rounds[-1]
    closed = is_closed(store.round(last))
    stamp = f"{len(store.samples(last))}.{len(store.scores(last, store.reward_at(last)))}.{len(store.ratings(last))}.{closed}"
    return dict(run=store.name, rounds=rounds, stamp=stamp, saved=list(store.checkpoints()), alive=store.status().alive, result=rolled_back(store))


def images_of_round(store: RunStore, number: int, samples: Sequence[SampleRow] | None = None) -> dict[str, Any]:
    """A round's images, by default all, with what is known of each."""
    known = store.scores(number, store.reward_at(number))
    said = scores(store.asked(number), store.last_words(number), store.weights)
    images: list[dict[str, Any]] = []
    for sample in store.samples(number) if samples is None else samples:
        score = known.get(sample.id) or said.get(sample.id, Score(None))
        notes = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in score.explanation.items() if isinstance(value, (int, float))]
        images.append(
            dict(id=sample.id, url=image_url(store, sample), prompt=sample.prompt, seed=sample.seed, score=score.value, note=", ".join(notes))
        )
    values = [image["score"] for image in images if image["score"] is not None]
    mean = sum(values) / len(values) if values else None
    return dict(round=number, images=images, summary=f"{words.count(len(images), 'image')}, {len(values)} scored, mean {words.number(mean)}")


def answer_round(runs: Runs, question: object) -> dict[str, Any]:
    """The gallery's question ``{"run", "round"}``, answered; anything else gets an empty round. While people rate a round, it tells neither seeds nor
    what others said."""
    try:
        store, number = _asked(runs, question)
        found, row = images_of_round(store, number), store.round(number)
        if row is None or not is_rated(store, number) or is_closed(row):
            return found
        images = [image | dict(seed=None, score=None, note="") for image in found["images"]]
        shown = board_round(store)
        now = "being rated" if shown and shown.number == number else "not rated yet"  # a board that was made ahead
        return found | dict(images=images, summary=f"{words.count(len(images), 'image')}, {now}")
    except (StoreError, TypeError, ValueError):
        return dict(round=0, images=[], summary="")


def answer_strip(runs: Runs, question: object) -> dict[str, Any]:
    """The same question, answered with a few of the round's images, evenly chosen."""
    try:
        store, number = _asked(runs, question)
        samples = store.samples(number)
        return dict(images=[image_url(store, sample) for sample in samples[:: max(1, -(-len(samples) // STRIP))]])
    except (StoreError, TypeError, ValueError):
        return dict(images=[])


def _asked(runs: Runs, question: object) -> tuple[RunStore, int]:
    asked = question if isinstance(question, dict) else {}
    return runs.open(asked.get("run", "")), int(asked.get("round", 0))
