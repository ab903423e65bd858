"""The charts of a run's metrics: what each is called, what it means, and what its lines show. Progress draws them all, the report all but what a run
takes. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ddpo.alarms import diversity_by_prompt
from ddpo.beliefs import LEADS_FROM
from ddpo.fork import BEFORE
from ddpo.milestones import Metrics, Points, by_reward
from ddpo.records import ProbeRow

Named = Callable[[str], str]
"""What a reward is called."""


@dataclass(frozen=True)
class Chart:
    """One chart of metrics: what it is called, what it means, and its lines (metric, label)."""

    key: str
    title: str
    hint: str
    lines: tuple[tuple[str, str], ...]
    unit: str = ""
    used: tuple[str, ...] = field(default=())
    """Metrics that the chart shows in another way than as a line, or that are told elsewhere in words."""
    rounding: float = 0.0
    """Values that are no further from 0 are 0 but for rounding."""
    log: bool = False
    """Whether its axis is logarithmic until somebody wants another one."""


LABEL = 40
"""Characters of a line's label."""
MOST_PROMPTS = 8
"""How many prompts a chart has a line each for at most."""
WATCHED: tuple[Chart, ...] = (
    Chart(
        "watched-kl", "Distance from the base model", "KL over a picture's whole denoising. The same gain for fewer nats is the better one.",
        (("watched_kl", "KL"),), unit="nats",
    ),
    Chart(
        "diversity", "Diversity", "How much pictures differ, as a share of the base model's. Below 0.7 those of a prompt grow alike.",
        (("watched_diversity", "within a prompt"), ("watched_vendi", "of all (Vendi score)")),
    ),
    Chart(
        "artefacts", "Signs of damage", "Watched pictures, in the base model's standard deviations. Beyond 1 it shows.",
        (("moved_noise", "noise"), ("moved_flatness", "flat places"), ("moved_clipping", "clipped colours")),
    ),
)  # fmt: skip
"""Charts of what is watched every so many rounds (:mod:`ddpo.monitor`), beside those of the rewards."""
GROUPS = (
    ("reward_on_trained", "trained"), ("reward_on_unseen_animals", "unseen animals"), ("reward_on_activities_unseen", "unseen pairs"),
    ("reward_on_unseen_activities", "unseen activities"), ("reward_on_objects", "objects"),
    ("reward_on_unseen_animals_counted", "unseen animals counted"), ("reward_on_held_out", "held-out prompts"),
)  # fmt: skip
"""The reward on watched pictures, by group of prompts."""


def quarters(metric: str) -> tuple[tuple[str, str], ...]:
    """The lines of a metric that is told by quarter of the trained denoising steps."""
    return tuple((f"{metric}_quarter_{i}", label) for i, label in enumerate(("first quarter, noisiest", "second", "third", "last"), 1))


HEALTH: tuple[Chart, ...] = (
    Chart(
        "taste", "The model of your taste", "Of two images of a prompt it picks the one you like better so often; 0.5 is chance.",
        (
            ("preference_accuracy", "picks the better one"), ("preference_least", "at least"),
            ("preference_likely", f"expected; leads above {LEADS_FROM}"), ("preference_known", "share of your taste known"),
        ),
        used=("preference_ratings", "preference_earlier", "preference_pairs", "preference_more"),
    ),
    Chart(
        "kl", "Distance moved per update", "KL: how far an update moves a step's policy. Small and steady is healthy.",
        (("kl_update", "KL"),), unit="nats",
    ),
    Chart(
        "clip", "Clipped steps", "Share of steps that the clip held back. Near 0 is gentle; above 0.5, lower the learning rate.",
        (("clip_fraction_up", "upwards"), ("clip_fraction_down", "downwards")),
    ),
    Chart(
        "ratio", "Ratio, mean", "New over old probability of the same steps; stays close to 1.",
        (("ratio_mean", "all steps"), *quarters("ratio_mean")), used=("ratio_std",),
    ),
    Chart(
        "quarters", "Ratio, spread along the denoising", "Standard deviation by quarter of the trained steps. The clip binds where it is wide.",
        quarters("ratio_std"), log=True,
    ),
    Chart("deviation", "Ratio, largest deviation", "The step that moved furthest from 1.", (("ratio_max_deviation", "largest deviation"),)),
    Chart(
        "base", "Distance that the penalty sees", "KL of a trained step to the base model; with a KL penalty only.",
        (("kl_base", "KL"),), unit="nats",
    ),
    Chart("grad", "Gradient norm", "Before it is scaled down. Sudden jumps announce trouble.", (("grad_norm", "norm"),)),
    Chart("loss", "Loss", "The objective itself. With DDPO around 0 by design; it need not fall.", (("loss", "loss"),), rounding=1e-7),
    Chart("signal", "Prompts that teach nothing", "All images alike, or unrated.", (("zero_spread_prompts", "prompts"),)),
    Chart(
        "pays", "What the reward pays for", "How the scores go with it among a prompt's images: near 1 it will spread, near -1 it will vanish.",
        (("pays_for_texture", "texture"), ("pays_for_noise", "noise"), ("pays_for_clipping", "clipped colours")),
    ),
    Chart("advantage", "Advantage, mean size", "How strongly a round's images are told apart.", (("advantage_abs_mean", "mean size"),)),
    Chart(
        "saturation", "Advantages cut", "Share of scored images whose advantage is at its limit. Beyond it none counts for more.",
        (("advantage_saturation", "share"),),
    ),
    Chart(
        "behind", "Rounds behind", "How many rounds were learned since the first of the images that a round learns from; the ratio corrects for it.",
        (("updates_behind", "rounds"),),
    ),
)  # fmt: skip
"""Charts of what the reward says and whether the optimiser is well."""
COST: tuple[Chart, ...] = (
    Chart(
        "seconds", "Seconds per phase", "Where each round's time goes.",
        (
            ("seconds_sampling", "making images"), ("seconds_scoring", "scoring"), ("seconds_updating", "learning"),
            ("seconds_checkpointing", "saving"), ("seconds_watching", "watching"),
        ),
        unit="s",
    ),
    Chart("pace", "Images per second", "Made, while images are made.", (("images_per_second", "images"),)),
    Chart("memory", "Memory, peak", "The most a process has taken so far: its GPU's, or else its own.", (("memory_gb", "peak"),), unit="GB"),
)  # fmt: skip
"""Charts of what a run takes."""
HERO = (
    "reward_mean", "reward_std", "scored_images", "held_out_reward", "held_out_reward_std_error", "held_out_base", "held_out_base_std_error",
)  # fmt: skip
"""Metrics that the chart of the reward itself shows."""


def panel(metrics: Metrics, reward: str, named: Named) -> Chart:
    """What rewards say of the watched pictures, the one that is optimised first: all of them on one axis."""
    artefacts = {metric for chart in WATCHED for metric, _ in chart.lines}
    names = [name.removeprefix("moved_") for name in metrics if name.startswith("moved_") and name not in artefacts]
    names.sort(key=lambda name: name != reward)
    lines = [(f"moved_{name}", named(name) + (" (optimised)" if name == reward else "")) for name in names]
    return Chart(
        "panel", "Other rewards", "Watched pictures, in the base model's standard deviations. One rises, the others fall: it is gamed.",
        tuple(lines), used=tuple(name for name in metrics if name.startswith("watched_")),
    )  # fmt: skip


def diversity_of(rows: Sequence[ProbeRow]) -> list[tuple[Chart, Metrics]]:
    """How much the watched pictures of each prompt differ, where the prompts are few enough to tell their lines apart."""
    found = diversity_by_prompt(rows)
    if not 1 < len(found) <= MOST_PROMPTS:
        return []
    lines = tuple(labelled(found))
    hint = "How much the watched pictures of a prompt differ, as a share of the base model's by the same seeds."
    return [(Chart("diversity-prompts", "Diversity, by prompt", hint, lines), found)]


def labelled(prompts: Iterable[str]) -> list[tuple[str, str]]:
    """Prompts with a label each, short and unlike the others."""
    found, used = list[tuple[str, str]](), Counter[str]()
    for prompt in prompts:
        line = " ".join(prompt.split())
        label = line if len(line) <= LABEL else f"{line[: LABEL - 1]}…"
        used[label] += 1
        found.append((prompt, label if used[label] == 1 else f"{label} ({used[label]})"))
    return found


def groups(metrics: Metrics, stretches: Sequence[tuple[int, str]], named: Named) -> list[tuple[Chart, Metrics]]:
    """The reward on prompts that are trained and on others, one chart for each reward, of its own rounds, the present one first. Its title says
    which, so that no run by another reward shares its axis."""
    hint = "Watched pictures of prompts that are trained, and of prompts that never are."
    return [
        (Chart(f"groups-{i}" if i else "groups", f"{named(reward)}, on other prompts", hint, GROUPS), own)
        for i, (reward, own) in enumerate(present_first(metrics, stretches, [metric for metric, _ in GROUPS]))
        if own
    ]


def present_first(metrics: Metrics, stretches: Sequence[tuple[int, str]], names: Sequence[str]) -> list[tuple[str, Metrics]]:
    """Each reward with some metrics in its own rounds, the present one first."""
    own = by_reward({name: points for name, points in metrics.items() if name in names}, stretches)
    return [(reward, own[reward]) for reward in dict.fromkeys(reward for _, reward in reversed(stretches))]


def others(metrics: Metrics, named: Named) -> list[Chart]:
    """One for each metric that no chart was made for."""
    charts = (*WATCHED, *HEALTH, *COST)
    known = {name for chart in charts for name in (*chart.used, *(metric for metric, _ in chart.lines))}
    known |= {*HERO, *BEFORE, "updates", *(metric for metric, _ in GROUPS)}
    names = [name for name in sorted(metrics) if name not in known and not name.startswith(("watched_", "moved_"))]
    return [Chart(name, title_of(name, named), "", ((name, title_of(name, named)),)) for name in names]


def title_of(metric: str, named: Named) -> str:
    """A title for a metric that no chart was made for; a blend's parts have their names."""
    if metric.startswith("mean_of_"):
        return f"Mean by {named(metric.removeprefix('mean_of_'))}"
    return metric.replace("_", " ").capitalize()


def spread_of(metrics: Metrics, metric: str) -> Mapping[int, float | None]:
    """The standard deviations, by round, of a metric that is a mean; of the others none."""
    return dict(metrics.get("ratio_std", ())) if metric == "ratio_mean" else {}


def around(points: Points, spread: Mapping[int, float | None]) -> list[tuple[int, float, float]]:
    """(round, low, high) where both the middle and the spread, by round, are known."""
    return [(x, y - s, y + s) for x, y in points if y is not None and (s := spread.get(x)) is not None]


def is_measured(chart: Chart, metrics: Metrics) -> bool:
    """Whether any of a chart's lines was measured."""
    return any(metric in metrics for metric, _ in chart.lines)


def is_still(chart: Chart, metrics: Metrics) -> bool:
    """Whether all that a chart would show is 0."""
    values = _values(chart, metrics)
    return all(value is not None and abs(value) <= chart.rounding for value in values)


def constant(chart: Chart, metrics: Metrics) -> float | None:
    """The one value of all that a chart would show; None where there are several, or a band around them, or one round."""
    values = _values(chart, metrics)
    rounds = {number for metric, _ in chart.lines for number, _ in metrics.get(metric, ())}
    spread = any(value for metric, _ in chart.lines for value in spread_of(metrics, metric).values())
    return values[0] if len(rounds) > 1 and len(set(values)) == 1 and not spread else None


def _values(chart: Chart, metrics: Metrics) -> list[float | None]:
    return [value for metric, _ in chart.lines for _, value in metrics.get(metric, ())]
