"""What happened in a run, to be drawn on its charts: changes of reward, alarms, the best round so far, where
it came from and what goes on from it; and its metrics, each reward's by themselves. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import rewards
from ddpo.alarms import judged
from ddpo.result import rolled_back
from ddpo.store import RunStore

Points = Sequence[tuple[int, float | None]]
"""(round, value) of a metric, in order of rounds; None where there is no value."""
Metrics = Mapping[str, Points]
"""By name."""


@dataclass(frozen=True)
class Milestone:
    """Something that a chart shows at a round."""

    round: int
    kind: str
    """``change`` lies before its round; ``alarm``, ``best`` and ``fork`` lie at theirs."""
    label: str
    """In a few words, where there is little room."""
    text: str


def milestones(store: RunStore, named: Callable[[str], str], up_to: int | None = None) -> list[Milestone]:
    """Those of a run in order of rounds, up to one. Alarms are those of the watched pictures, each where it began; the best round is the one
    that the run is rolled back to, if it is, and none where people rate and all is well: there it would only be the latest.

    Args:
        named: what a reward is called.
    """
    stretches = store.reward_stretches()
    found = [_change(1, "Goes on from {}, round {}".format(*store.parent))] if store.parent else []
    found += [_change(number, f"From round {number}: {named(reward)}") for number, reward in stretches[1:]]
    watched = judged(store, up_to)
    alarms, best = watched.begun, watched.best
    found += [Milestone(alarm.round, "alarm", "Alarm", f"Alarm: {alarm.text}") for alarm in alarms]
    forks: dict[int, list[str]] = {}
    for name, number in store.forks:
        forks.setdefault(number, []).append(name)
    found += [_fork(number, names) for number, names in forks.items()]
    if result := rolled_back(store):
        found.append(Milestone(result, "best", "Result", "Rolled back to this round: it is taken away"))
    elif best and (alarms or "human" not in rewards.parts(stretches[-1][1])):
        found.append(Milestone(best, "best", "Best so far", "Best round so far"))
    return sorted((one for one in found if up_to is None or one.round <= up_to), key=lambda one: one.round)


def by_reward(metrics: Metrics, stretches: Sequence[tuple[int, str]]) -> Mapping[str, Metrics]:
    """The points of the rounds in which each reward was in force, of metrics that have some: units are not mixed. The base model is the first one's.

    Args:
        stretches: which reward is in force from which round on.
    """
    rounds = {number for points in metrics.values() for number, _ in points}
    force = {number: next(reward for first, reward in reversed(stretches) if first <= max(1, number)) for number in rounds}
    found: dict[str, dict[str, list[tuple[int, float | None]]]] = {reward: {} for _, reward in stretches}
    for name, points in metrics.items():
        for number, value in points:
            found[force[number]].setdefault(name, []).append((number, value))
    return found


def with_blends_apart(metrics: Metrics, stretches: Sequence[tuple[int, str]]) -> Metrics:
    """The metrics with what each blend says of the watched pictures under its own name: another blend says something else."""
    moved = {reward: own.get("moved_blend") for reward, own in by_reward(metrics, stretches).items() if reward.startswith(rewards.BLEND)}
    found = {name: list(points) for name, points in metrics.items() if name != "moved_blend"}
    return found | {f"moved_{reward}": points for reward, points in moved.items() if points}


def _fork(number: int, names: Sequence[str]) -> Milestone:
    if len(names) == 1:
        return Milestone(number, "fork", names[0], f"{names[0]} goes on from here")
    return Milestone(number, "fork", f"{len(names)} runs", f"{', '.join(names)} go on from here")


def _change(number: int, text: str) -> Milestone:
    return Milestone(number, "change", text, text)
