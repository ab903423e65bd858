"""Which round of a run is taken away where none is named: the last one, or the one that the run was rolled back to. Imports no torch.

**Rolling back** stops a run and makes an earlier round its result. Nothing is deleted and no round is made anew: rounds and ratings are never
unwritten. To train on from there is another run (:mod:`ddpo.fork`). People roll back with a button; with the setting ``on_alarm rollback`` the run
does it by itself, by the rule of :mod:`ddpo.alarms`.
"""

from __future__ import annotations

from ddpo.alarms import judged
from ddpo.store import RESULT, RunStore, StoreError

RULE = "the watched round with the highest reward at which no alarm was on (where people rate, the latest of these)"


def rolled_back(store: RunStore) -> int | None:
    """The round that a run is rolled back to: what people said last, or else, with ``on_alarm rollback`` and once an alarm was on, the best one; None
    where it is not, or that round's checkpoint is gone."""
    chosen = store.choices().get(RESULT)
    if chosen is not None:
        number = int(chosen or 0)
    elif store.config.on_alarm == "rollback":
        watched = judged(store)
        number = watched.best if watched.alarms else 0
    else:
        return None
    return number if number in store.checkpoints() else None


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


def words_of(best: int) -> str:
    """What a run says of itself that rolls back to a round by its rule; 0 is the base model."""
    if not best:
        return "No watched round is better than the base model: nothing to roll back to. The last round is taken away, unless you choose another."
    return f"Rolled back to round {best}, {RULE}: it is taken away, unless you choose another. Later rounds are kept."
