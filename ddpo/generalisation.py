"""How far what a run has learned reaches: what its reward gains on prompts that are trained, and on prompts that never are.

(Black et al. 2023, section 6.3.) Every picture after a round has its twin of the base model, by the same prompt and seed; no seed was trained on. A
group's gain is the mean over its prompts of what each gained, with Student's 95 % interval. Prompts that were not trained stand for others like them:
theirs is the interval over prompts, whose pictures are averaged first, since they are no independent prompts. Of the trained prompts all are known,
where all were measured: with two pictures each at least, theirs is the interval over pictures, prompt by prompt; and so is a single prompt's. What is
measured is kept in the run's folder, ``generalisation/<round>.json``, where the model card and the report read it. Imports torch for the measuring
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

import rewards
from ddpo.alarms import mean_and_error, student_t
from ddpo.config import RunConfig, prompt_sets
from ddpo.dataset import public_reward
from ddpo.files import read_json, write_json
from ddpo.markup import shown
from ddpo.store import RunStore, is_reward
from ddpo.twins import Failure, Report, Twin, make

FOLDER = "generalisation"
TRAINED = "trained"
HELD_OUT = "held_out"
OTHERS = {
    "animals": ("unseen_animals", "objects"),
    "activities": ("unseen_activities", "unseen_animals"),
    "activities_seen": ("activities_unseen", "unseen_activities"),
    "counting": ("unseen_animals_counted",),
}
"""Which prompt sets show how far what is learned from a set reaches."""
CONFIDENCE = 0.95


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
        """A group's gain as a share of that on trained prompts; None where the latter is not surely above 0."""
        own = self.groups[0].gains.get(reward)
        if own is None or own.low is None or own.low <= 0 or reward not in group.gains:
            return None
        return group.gains[reward].gain / own.gain

    def words(self) -> list[str]:
        """What it says of the reward that was optimised: a sentence a group of prompts that are not trained."""
        if "human" in rewards.parts(self.reward):
            return ["People's ratings cannot be asked about these pictures, so that only other rewards are told; a blind test asks people."]
        told = []
        for group in self.groups[1:]:
            gain, share = group.gains.get(self.reward), self.share(group, self.reward)
            if gain is None or gain.low is None or gain.high is None:
                continue
            what = "rises" if gain.low > 0 else "falls" if gain.high < 0 else "does not surely change"
            kept = f", {100 * share:.0f} % of what it gains on trained prompts" if share is not None else ""
            told.append(f"After round {self.round}, {public_reward(self.reward)} {what} on {described(group)}: {interval(gain)}{kept}.")
        return told


def words_of(group: str) -> str:
    """A group's name in a sentence."""
    return {TRAINED: "trained prompts", HELD_OUT: "held-out prompts"}.get(group, group.replace("_", " "))


def described(group: Group) -> str:
    """A group in a sentence, with its prompts where they are so few that they stand for themselves only."""
    return f"{words_of(group.name)} (one prompt)" if group.prompts == 1 else words_of(group.name)


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
                rows.append((reward, of, str(group.pictures), shown(gain.before), shown(gain.after), interval(gain), kept))
    return head, rows


# --- arithmetic -----------------------------------------------------------------------------------------------------------------


def gain_of(prompts: Sequence[str], before: Sequence[float | None], after: Sequence[float | None], all_known: bool = False) -> Gain | None:
    """A group's gain from the values of its pictures and of their twins, by position; None where no pair is known.

    Args:
        all_known: the prompts are all that the group has, and stand for no others.
    """
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for prompt, a, b in zip(prompts, before, after, strict=True):
        if a is not None and b is not None:
            by_prompt.setdefault(prompt, []).append((a, b))
    if not by_prompt:
        return None
    changes = [[b - a for a, b in each] for each in by_prompt.values()]
    means = [(fmean(a for a, _ in each), fmean(b for _, b in each)) for each in by_prompt.values()]
    gain = fmean(map(fmean, changes))
    half = _within(changes) if (all_known and min(map(len, changes)) > 1) or len(changes) == 1 else _between(list(map(fmean, changes)))
    low, high = (None, None) if half is None else (gain - half, gain + half)
    return Gain(fmean(a for a, _ in means), fmean(b for _, b in means), gain, low, high)


def _between(values: Sequence[float]) -> float | None:
    """Half the width of a mean's interval; None of a single value."""
    return _quantile(len(values) - 1) * mean_and_error(values)[1] if len(values) > 1 else None


def _within(groups: Sequence[Sequence[float]]) -> float | None:
    """The same of the mean of several groups' means, where only what is in the groups is drawn: √(Σ s² / n) / groups; None of a single value."""
    freedom = sum(map(len, groups)) - len(groups)
    if not freedom:
        return None
    return _quantile(freedom) * math.sqrt(math.fsum(variance(each) / len(each) for each in groups)) / len(groups)


def _quantile(freedom: int) -> float:
    return student_t((1 + CONFIDENCE) / 2, freedom)


def others_of(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """The prompts that are kept from training, by group: the run's held-out ones, or else the sets that are kept for the smallest prompt set that its
    prompts are of; none where they are of none, since nothing is known that would be like them."""
    if config.held_out_prompts:
        return {HELD_OUT: tuple(dict.fromkeys(config.held_out_prompts))}
    known = prompt_sets()
    sets = [name for name in OTHERS if set(config.prompts) <= set(known[name])]
    return {other: known[other] for other in OTHERS[min(sets, key=lambda name: len(known[name]))]} if sets else {}


def groups_of(config: RunConfig, unseen: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The groups of prompts: the run's own, those that were named, and by default those that are kept from training (:func:`others_of`)."""
    own = tuple(dict.fromkeys(config.prompts))
    named = dict(unseen) or others_of(config)
    left = {name: tuple(prompt for prompt in dict.fromkeys(prompts) if prompt not in own) for name, prompts in named.items()}
    return {TRAINED: own} | {name: prompts for name, prompts in left.items() if prompts}


# --- measuring ------------------------------------------------------------------------------------------------------------------


def measure(
    store: RunStore,
    number: int,
    place: Path,
    folder: Path,
    count: int,
    unseen: Mapping[str, Sequence[str]],
    report: Report = lambda done, total: None,
) -> tuple[Generalisation, list[Twin], list[Failure]]:
    """Make a number of pictures of each group, by the base model and by a round's weights, and score them.

    Args:
        place: the round's checkpoint.
        folder: where the pictures go, as they are made.
        count: pictures of each group; prompts in turn, a set's drawn by a fixed seed where there are more.
        unseen: prompts that were not trained on, by a name for them; none is the run's held-out ones, or those that belong to its prompt set.

    Returns:
        What was measured, which is in the run's folder too unless what is optimised could not be asked; the pictures; and the rewards that could
        not be asked.

    Raises:
        ConfigError: the model cannot be loaded, or what is optimised cannot be asked.
        CheckpointError: the weights cannot be read, or are of another base model.
    """
    from ddpo.monitor import drawn
    from ddpo.rollout import derive_seed

    reward, groups = store.reward_at(number), groups_of(store.config, unseen)
    chosen = {name: drawn(prompts, count) for name, prompts in groups.items()}
    items = [(name, prompts[i % len(prompts)], derive_seed("generalisation", i)) for name, prompts in chosen.items() for i in range(count)]
    twins, failures = make(store, number, place, folder, items, dict(before=0.0, after=1.0), report)
    told_groups = tuple(
        _group(name, [twin for twin in twins if twin.group == name], all_known=name == TRAINED and len(chosen[name]) == len(groups[name]))
        for name in chosen
    )
    found = Generalisation(number, public_reward(reward), told_groups)
    if "human" in rewards.parts(reward) or found.reward in found.rewards:
        save(store, found)
    return found, twins, failures


def _group(name: str, twins: Sequence[Twin], all_known: bool) -> Group:
    prompts, gains = [twin.prompt for twin in twins], dict[str, Gain]()
    for reward in twins[0].values:
        before, after = ([twin.values[reward][side] for twin in twins] for side in (0, 1))
        if gain := gain_of(prompts, before, after, all_known):
            gains[reward] = gain
    return Group(name, len(set(prompts)), len(twins), gains)


# --- keeping --------------------------------------------------------------------------------------------------------------------


def save(store: RunStore, found: Generalisation) -> None:
    """Keep what was measured in the run's folder; of a round the latest."""
    write_json(store.folder / FOLDER / f"{found.round:04d}.json", found)


def measured(store: RunStore, number: int) -> Generalisation | None:
    """What was measured last up to a round, by a reward that there is; None where nothing was, or no file can be read."""
    files = {int(file.stem): file for file in (store.folder / FOLDER).glob("*.json") if file.stem.isdecimal() and int(file.stem) <= number}
    told = (read_json(files[at], Generalisation) for at in sorted(files, reverse=True))
    return next((found for found in told if found is not None and found.groups and is_reward(found.reward)), None)
