"""Rolling back: which round is taken away, by people's word or by the run's own rule; and that nothing is lost by it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.pages.run import stops_soon
from ddpo.alarms import Alarm, Sign
from ddpo.control import StopRun
from ddpo.export import checkpoint_of, round_to_take
from ddpo.result import RULE, result_until, roll_back, rolled_back, words_of
from ddpo.store import RunStore, StoreError
from ddpo.trainer import Trainer, summary
from tests.test_monitor import watched_config
from tests.toys import add_lora, add_watched, filled_run
from tests.toys_ddpo import rate_rounds, toy_trainer


def gone_wrong(folder: Path, **changes: Any) -> RunStore:
    """Well at 5, an alarm at 10."""
    store = filled_run(folder, rounds=10, **changes)
    for number, fallen in ((0, 0.0), (5, 0.0), (10, 1.5)):
        add_watched(store, number, fallen)
    for number in store.checkpoints():
        add_lora(store, number)
    return store


def test_people_roll_back_and_take_it_back(tmp_path: Path) -> None:
    store = gone_wrong(tmp_path / "a")
    assert rolled_back(store) is None and round_to_take(store) == 10
    before = (store.checkpoints(), store.metrics(), store.samples(10))
    roll_back(store, 3)
    assert rolled_back(store) == 3 and round_to_take(store) == 3 and checkpoint_of(store, None)[0] == 3 and checkpoint_of(store, 10)[0] == 10
    assert (store.checkpoints(), store.metrics(), store.samples(10)) == before, "nothing is lost"
    assert (result_until(store, 10), result_until(store, 2)) == (3, 2)
    roll_back(store, None)
    assert rolled_back(store) is None and round_to_take(store) == 10
    with pytest.raises(StoreError, match="Round 99 of a has no checkpoint"):
        roll_back(store, 99)


def alarm_of(best: int, began: int = 10) -> Alarm:
    return Alarm(began, began, (), None, best)


def test_what_was_said_last_holds_by_people_or_by_the_rule(tmp_path: Path) -> None:
    """The rule's word is an event; people's comes after it and is kept, until the rule speaks again. 0 is the base model, which is no round."""
    store = gone_wrong(tmp_path / "a", on_alarm="rollback")
    assert rolled_back(store) is None
    for say, wanted in (
        (lambda: store.add_event("rollback", words_of(alarm_of(5))), 5),
        (lambda: roll_back(store, 2), 2),
        (lambda: roll_back(store, None), None),
        (lambda: store.add_event("rollback", words_of(alarm_of(10))), 10),
        (lambda: store.add_event("rollback", words_of(alarm_of(0, began=6))), 3),
        (lambda: store.add_event("rollback", words_of(alarm_of(0, began=1))), None),
    ):
        say()
        time.sleep(0.002)  # a clock's tick
        assert rolled_back(store) == wanted
    assert words_of(alarm_of(0, began=1)).startswith("No watched round was without an alarm"), "which is not to say that none is better"
    assert words_of(alarm_of(0, began=6)).startswith("Rolled back to round 3, half way to the first alarm, since no watched round was without one")


def test_a_checkpoint_that_is_gone_is_none_to_roll_back_to(tmp_path: Path) -> None:
    store = gone_wrong(tmp_path / "a")
    roll_back(store, 5)
    assert rolled_back(store) == 5
    shutil.rmtree(store.checkpoints()[5])
    assert rolled_back(store) is None and result_until(store, 10) == 10 and round_to_take(store) == 10


def test_the_summary_speaks_of_the_result_and_of_its_reward() -> None:
    """Base -4 by the first reward, 5 by the second, from round 6 on. Rolled back to 5 the gain is by the first; a result that was not measured has
    none."""
    metrics = dict(
        held_out_reward=[(0, -4.0), (5, -2.0), (10, 6.0)], held_out_base=[(6, 5.0)], seconds_checkpointing=[(n, 1.0) for n in range(1, 11)]
    )
    assert (summary(metrics)["reward_before"], summary(metrics)["reward_after"]) == (5.0, 6.0)
    found = summary(metrics, 5)
    assert (found["reward_before"], found["reward_after"], found["gain_percent"], found["result"]) == (-4.0, -2.0, 50.0, 5)
    assert summary(metrics, 7)["reward_after"] is None


def paling(folder: Path) -> Trainer:
    """A toy run whose pictures grow white, and so alike, but not at once."""
    return toy_trainer(folder, watched_config(learning_rate=0.5, watch_every=1, rounds=6, on_alarm="rollback"))


def test_a_ruined_run_stops_rolls_back_and_measures_what_is_taken_away(tmp_path: Path) -> None:
    """The toy run that goes white: it stops at the alarm, says by which rule, and the held-out reward is that of the best round's own weights."""
    trainer = paling(tmp_path / "run")
    assert not trainer.run()
    store, last = trainer.store, max(trainer.store.checkpoints())
    best = rolled_back(store)
    said = {event.kind: event.message for event in store.events()}
    alarm = trainer.monitor.alarm(last)
    assert alarm is not None and best == alarm.best and 0 < best < last < 6
    assert said["rollback"].startswith(f"Rolled back to round {best}, {RULE}")
    trainer.conclude()
    held = dict(store.metrics()["held_out_reward"])
    assert set(held) == {0, best}
    again = paling(tmp_path / "run")
    again.crew.together("load", place=store.checkpoints()[best].relative_to(store.folder).as_posix())
    assert (again.engine.policy.shift == trainer.engine.policy.shift).all(), "the weights that were measured"
    found = summary(store.metrics() | {"held_out_reward": [*held.items(), (last, 0.0)]}, best)
    assert (found["rounds"], found["result"], found["reward_after"]) == (last, best, held[best])
    resumed = paling(tmp_path / "run")
    assert resumed.run() and max(store.checkpoints()) == 6 and rolled_back(store) == best, "nobody is kept from going on"


@contextlib.contextmanager
def alarmed_while_people_rate(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An alarm is on after round 2, and somebody rates every board while this lasts."""
    found, stop = Alarm(2, 2, (Sign("noise", 0, 3.0, (0,)),), None, 1), threading.Event()
    monkeypatch.setattr(trainer.monitor, "alarm", lambda number: found if number == 2 else None)
    person = threading.Thread(target=rate_rounds, args=(trainer.store.folder, lambda image: (-1.0) ** (image.stat().st_size % 2), [], stop))
    person.start()
    try:
        yield
    finally:
        stop.set()
        person.join()


def test_people_are_not_asked_to_rate_what_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm is found while the board of the next round waits: the run stops there and then."""
    config = watched_config(reward="human", watch_every=1, on_alarm="rollback", held_out_images=0)
    trainer = toy_trainer(tmp_path / "run", config)
    with alarmed_while_people_rate(trainer, monkeypatch), pytest.raises(StopRun):
        trainer.run()
    assert max(trainer.store.checkpoints()) == 2 and [event.kind for event in trainer.store.events()][-2:] == ["alarm", "rollback"]
    assert trainer.store.round(3) is not None, "its board is kept"


def test_an_alarm_while_people_rate_stops_the_run_after_their_round_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = watched_config(reward="human", watch_every=1, on_alarm="stop", held_out_images=0)
    trainer = toy_trainer(tmp_path / "run", config)
    with alarmed_while_people_rate(trainer, monkeypatch):
        assert not trainer.run()
    assert max(trainer.store.checkpoints()) == 3 and stops_soon(trainer.store)
