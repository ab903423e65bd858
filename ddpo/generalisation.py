"""How far what a run has learned reaches: what its reward gains on prompts that are trained, and on prompts that never are.

(Black et al. 2023, section 6.3.) Every picture after a round has its twin of the base model, by the same prompt and seed; no seed was trained on. A
group's gain is the mean over its prompts of what each gained, with Student's 95 % interval: a prompt's pictures are averaged first, since they are no
independent prompts. With one prompt it is over its pictures. What is measured is kept in the run's folder, ``generalisation/<round>.json``, where the
model card and the report read it. Imports torch for the measuring alone.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ddpo.config import RunConfig, prompt_sets
from ddpo.dataset import public_reward
from ddpo.markup import shown
from ddpo.store import RunStore, write_file

if TYPE_CHECKING:
    from PIL import Image

FOLDER = "generalisation"
SCHEMA_VERSION = 1
TRAINED = "trained"
OTHERS = {
    "animals": ("unseen_animals", "objects"),
    "activities": ("unseen_activities", "unseen_animals"),
    "activities_seen": ("activities_unseen", "unseen_activities"),
}
"""Which prompt sets show how far what is learned from a set reaches."""
CONFIDENCE = 0.95

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Gain:
    """What a reward says of a group's pictures by the base model and after the round, and the mean over prompts of the difference."""

    before: float
    after: float
    gain: float
    low: float | None
    """The interval of the gain; None where there is one picture only."""
    high: float | None


@dataclass(frozen=True)
class Group:
    """Prompts that are told together."""

    name: str
    prompts: int
    pictures: int
    gains: Mapping[str, Gain]
    """By reward, that which is optimised first where it needs no people."""


@dataclass(frozen=True)
class Generalisation:
    """What was measured after a round, the trained prompts first."""

    round: int
    reward: str
    """What was optimised."""
    groups: tuple[Group, ...]

    @property
    def rewards(self) -> list[str]:
        return list(dict.fromkeys(name for group in self.groups for name in group.gains))

    def share(self, group: Group, reward: str) -> float | None:
        """A group's gain as a share of that on trained prompts; None where the latter is not told from 0."""
        own = self.groups[0].gains.get(reward)
        if own is None or own.low is None or own.high is None or own.low <= 0 <= own.high or reward not in group.gains:
            return None
        return group.gains[reward].gain / own.gain

    def words(self) -> list[str]:
        """What it says of the reward that was optimised, a sentence a group of prompts that are not trained."""
        told = []
        for group in self.groups[1:]:
            gain, share = group.gains.get(self.reward), self.share(group, self.reward)
            if gain is None or gain.low is None or gain.high is None:
                continue
            what = "rises" if gain.low > 0 else "falls" if gain.high < 0 else "does not surely change"
            kept = f", {100 * share:.0f} % of what it gains on trained prompts" if share is not None else ""
            told.append(f"On {words_of(group.name)} it {what}: {interval(gain)}{kept}.")
        return told


def words_of(group: str) -> str:
    """A group's name in a sentence."""
    return f"{group} prompts" if group == TRAINED else group.replace("_", " ")


def interval(gain: Gain) -> str:
    """A gain with its interval, such as ``+1.2 (0.9 to 1.5)``."""
    around = f" ({shown(gain.low)} to {shown(gain.high)})" if gain.low is not None else ""
    return f"{'+' if gain.gain > 0 else ''}{shown(gain.gain)}{around}"


def rows_of(found: Generalisation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What was measured as a table: its head, and a row a reward and group."""
    head = ("reward", "prompts", "pictures", "base model", f"round {found.round}", "gain (95 % interval)", "of the trained prompts' gain")
    rows: list[tuple[str, ...]] = []
    for reward in found.rewards:
        for group in found.groups:
            if gain := group.gains.get(reward):
                share = found.share(group, reward) if group is not found.groups[0] else None
                kept = "" if share is None else f"{100 * share:.0f} %"
                of = f"{words_of(group.name)} ({group.prompts})"
                rows.append((public_reward(reward), of, str(group.pictures), shown(gain.before), shown(gain.after), interval(gain), kept))
    return head, rows


# --- arithmetic -----------------------------------------------------------------------------------------------------------------


def gain_of(prompts: Sequence[str], before: Sequence[float | None], after: Sequence[float | None]) -> Gain | None:
    """A group's gain from the values of its pictures and of their twins, by position; None where no pair is known."""
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for prompt, a, b in zip(prompts, before, after, strict=True):
        if a is not None and b is not None:
            by_prompt.setdefault(prompt, []).append((a, b))
    if not by_prompt:
        return None
    pairs = [(fmean(a for a, _ in each), fmean(b for _, b in each)) for each in by_prompt.values()]
    if len(pairs) == 1:
        pairs = next(iter(by_prompt.values()))
    changes = [b - a for a, b in pairs]
    gain, half = fmean(changes), half_width(changes)
    low, high = (None, None) if half is None else (gain - half, gain + half)
    return Gain(fmean(a for a, _ in pairs), fmean(b for _, b in pairs), gain, low, high)


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of a mean's interval by Student's t; None of a single value."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # here, since it takes a second

    return float(t.isf((1 - CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def groups_of(config: RunConfig, unseen: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The groups of prompts: the run's own, those that were named, and by default the sets that are kept from training for the run's set."""
    own = tuple(dict.fromkeys(config.prompts))
    named = dict(unseen) or {
        other: prompt_sets()[other] for name, prompts in prompt_sets().items() if set(prompts) == set(own) for other in OTHERS.get(name, ())
    }
    left = {name: tuple(prompt for prompt in dict.fromkeys(prompts) if prompt not in own) for name, prompts in named.items()}
    return {TRAINED: own} | {name: prompts for name, prompts in left.items() if prompts}


# --- measuring ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """Two pictures of one prompt and seed, and what rewards say of either."""

    group: str
    prompt: str
    seed: int
    before: Image.Image
    after: Image.Image
    values: dict[str, tuple[float | None, float | None]]


def measure(
    store: RunStore, number: int, place: Path, count: int, unseen: Mapping[str, Sequence[str]], report: Report = lambda done, total: None
) -> tuple[Generalisation, list[Twin], list[str]]:
    """Make a number of pictures of each group, by the base model and by a round's weights, and score them.

    Args:
        place: the round's checkpoint.
        count: pictures of each group; prompts in turn, a set's drawn by a fixed seed where there are more.
        unseen: prompts that were not trained on, by a name for them; none is those that belong to the run's prompt set.

    Returns:
        What was measured, which is in the run's folder too; the pictures; and why a reward could not be asked, if one could not.

    Raises:
        ConfigError: the model cannot be loaded.
        CheckpointError: the weights cannot be read, or are of another base model.
    """
    from ddpo.checkpoint import load_state
    from ddpo.monitor import drawn, panel, scorer
    from ddpo.policy import StableDiffusionPolicy
    from ddpo.rollout import batches, derive_seed, rollout
    from ddpo.worker import reward_source
    from rewards.base import RewardError, Sample
    from rewards.cache import Cached

    config, reward = store.config, store.reward_at(number)
    chosen = {name: drawn(prompts, count) for name, prompts in groups_of(config, unseen).items()}
    items = [(name, prompts[i % len(prompts)], derive_seed("generalisation", i)) for name, prompts in chosen.items() for i in range(count)]
    policy = StableDiffusionPolicy.load(config)
    load_state(place, policy.parameters(), base=policy.fingerprint, averaged=True)
    sides: tuple[list[Image.Image], list[Image.Image]] = ([], [])
    for side, made in enumerate(sides):
        with policy.base() if side == 0 else contextlib.nullcontext():
            for batch in batches(len(items), config.microbatch):
                report(side * len(items) + batch.start, 2 * len(items))
                made += rollout(policy, [items[i][1] for i in batch], [items[i][2] for i in batch])[1]
    del policy  # a reward's networks may need its memory
    report(2 * len(items), 2 * len(items))
    make, failures = reward_source(config), []
    values: list[dict[str, tuple[float | None, float | None]]] = [{} for _ in items]
    for name in panel(config, reward):
        try:
            asked = scorer(name, store, lambda part: Cached(make(part)))
            both = [asked.score([Sample(i, items[i][1], image) for i, image in enumerate(made)]) for made in sides]
        except RewardError as error:
            failures.append(f"{public_reward(name)} could not be asked: {error}")
            continue
        for i, (a, b) in enumerate(zip(*both, strict=True)):
            values[i][name] = (a.value, b.value)
    twins = [Twin(*item, before, after, said) for item, before, after, said in zip(items, *sides, values, strict=True)]
    found = Generalisation(number, reward, tuple(_group(name, [twin for twin in twins if twin.group == name]) for name in chosen))
    save(store, found)
    return found, twins, failures


def _group(name: str, twins: Sequence[Twin]) -> Group:
    prompts = [twin.prompt for twin in twins]
    gains = {reward: gain_of(prompts, *zip(*(twin.values[reward] for twin in twins), strict=True)) for reward in twins[0].values}
    return Group(name, len(set(prompts)), len(twins), {reward: gain for reward, gain in gains.items() if gain is not None})


# --- keeping --------------------------------------------------------------------------------------------------------------------


def save(store: RunStore, found: Generalisation) -> None:
    """Keep what was measured in the run's folder; of a round the latest."""
    folder = store.folder / FOLDER
    folder.mkdir(exist_ok=True)
    write_file(folder / f"{found.round:04d}.json", json.dumps(asdict(found) | dict(version=SCHEMA_VERSION), indent=1).encode())


def measured(store: RunStore, number: int) -> Generalisation | None:
    """What was measured last up to a round; None where nothing was, or its file cannot be read."""
    files = {int(file.stem): file for file in (store.folder / FOLDER).glob("*.json") if file.stem.isdigit() and int(file.stem) <= number}
    for at in sorted(files, reverse=True):
        try:
            return _read(json.loads(files[at].read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _read(told: dict[str, Any]) -> Generalisation:
    groups = tuple(
        Group(each["name"], each["prompts"], each["pictures"], {name: Gain(**gain) for name, gain in each["gains"].items()})
        for each in told["groups"]
    )
    return Generalisation(told["round"], told["reward"], groups)
