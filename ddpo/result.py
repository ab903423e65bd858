"""Which round of a run is taken away where none is named: the last one, or the one that the run was rolled back to. Imports no torch.

**Rolling back** stops a run and makes an earlier round its result. Nothing is deleted and no round is made anew: rounds and ratings are never
unwritten. To train on from there is another run (:mod:`ddpo.fork`). People roll back with a button; with the setting ``on_alarm rollback`` the run
does it by itself, by the rule of :mod:`ddpo.alarms`.
"""

from __future__ import annotations

import re

from ddpo.alarms import Alarm
from ddpo.records import RESULT
from ddpo.store import RunStore, StoreError

ROLLBACK = "rollback"
"""The kind of event with which a run rolls back by its rule; it holds from then on, until people say otherwise."""
RULE = "the watched round at which no alarm was on and the present reward is highest (where people rate, the latest without an alarm)"
HALF_WAY = "half way to the first alarm, since no watched round was without one"


def rolled_back(store: RunStore) -> int | None:
    """The round that a run is rolled back to: by what was said last, by people or by the run's own rule; None where it is not, or that round's
    checkpoint is gone."""
    by_people, by_rule = store.last_decision(RESULT), store.last_event(ROLLBACK)
    if by_people and not (by_rule and by_rule.created_at > by_people.created_at):
        number = int(by_people.value or 0)
    else:
        number = best_of(by_rule.message) if by_rule else 0
    place = store.checkpoints().get(number)
    return number if place is not None and place.is_dir() else None


def result_until(store: RunStore, number: int) -> int:
    """What is taken away of the rounds up to one: the round that the run is rolled back to, or else that one."""
    result = rolled_back(store)
    return number if result is None or result > number else result


def roll_back(store: RunStore, number: int | None) -> None:
    """Make a round the result of a run; None takes it back. A run that is at work is to be stopped beside.

    Raises:
        StoreError: the round has no checkpoint.
    """
    if number is not None and number not in store.checkpoints():
        raise StoreError(f"Round {number} of {store.name} has no checkpoint, so there is nothing to roll back to.")
    store.choose(RESULT, "" if number is None else str(number))


def words_of(alarm: Alarm) -> str:
    """What a run says of itself that rolls back by its rule."""
    if not alarm.back:
        return "No watched round was without an alarm: nothing to roll back to. The last round is taken away, unless you choose another."
    why = RULE if alarm.best else HALF_WAY
    return f"Rolled back to round {alarm.back}, {why}: it is taken away, unless you choose another. Later rounds are kept."


def best_of(words: str) -> int:
    """The round of :func:`words_of`."""
    found = re.match(r"Rolled back to round (\d+), ", words)
    return int(found[1]) if found else 0
