"""Rolling back: which round is taken away, by people's word or by the run's own rule; and that nothing is lost by it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ddpo.alarms import Alarm, Sign
from ddpo.control import StopRun
from ddpo.export import checkpoint_of, round_to_take
from ddpo.result import RULE, result_until, roll_back, rolled_back
from ddpo.store import RESULT, RunStore, StoreError
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


def test_the_rule_holds_only_where_it_is_set_and_an_alarm_was_on(tmp_path: Path) -> None:
    """`stop` rolls nothing back; `rollback` takes the best round once an alarm was on, however the run goes on; what people say comes first."""
    assert rolled_back(gone_wrong(tmp_path / "stop", on_alarm="stop")) is None
    calm = filled_run(tmp_path / "calm", rounds=10, on_alarm="rollback")
    for number in (0, 5):
        add_watched(calm, number)
    assert rolled_back(calm) is None
    store = gone_wrong(tmp_path / "a", on_alarm="rollback")
    assert rolled_back(store) == 5
    roll_back(store, 2)
    assert rolled_back(store) == 2
    store.choose(RESULT, "")
    assert rolled_back(store) is None
    nothing = filled_run(tmp_path / "never", rounds=5, on_alarm="rollback")
    add_watched(nothing, 0)
    add_watched(nothing, 5, 2.0)
    assert rolled_back(nothing) is None, "the base model is no round to roll back to"


def paling(folder: Path) -> Trainer:
    """A toy run whose pictures grow white, and so alike, but not at once."""
    return toy_trainer(folder, watched_config(learning_rate=0.4, watch_every=1, rounds=6, on_alarm="rollback"))


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


def test_people_are_not_asked_to_rate_what_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm is found while the board of the next round waits: the run stops there and then."""
    config = watched_config(reward="human", watch_every=1, on_alarm="rollback", held_out_images=0)
    trainer, stop = toy_trainer(tmp_path / "run", config), threading.Event()
    found = Alarm(2, 2, (Sign("noise", 0, 3.0, (0,)),), None, 1)
    monkeypatch.setattr(trainer.monitor, "alarm", lambda number: found if number == 2 else None)
    person = threading.Thread(target=rate_rounds, args=(tmp_path / "run", lambda image: (-1.0) ** (image.stat().st_size % 2), [], stop))
    person.start()
    try:
        with pytest.raises(StopRun):
            trainer.run()
    finally:
        stop.set()
        person.join()
    assert max(trainer.store.checkpoints()) == 2 and [event.kind for event in trainer.store.events()][-2:] == ["alarm", "rollback"]
    assert trainer.store.round(3) is not None, "its board is kept"
