"""A run's measures in trackers: every one once, at its round, and nothing of a run depends on them."""

from __future__ import annotations

import math
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from ddpo import tracker
from ddpo.__main__ import main
from ddpo.config import ConfigError, RunConfig
from ddpo.store import RunStore
from ddpo.tracker import Tracker
from tests.toys import filled_run
from tests.toys_ddpo import outcome, toy_config, toy_trainer


def events(folder: Path) -> list[tuple[str, int, float]]:
    """The scalars of all TensorBoard files of a run: name, step and value. (A record is its length, a checksum of it, an event and a checksum.)"""
    found = []
    for file in sorted((folder / "tensorboard").glob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value if value.HasField("simple_value")]
            data = data[16 + length :]
    return found


def stored(store: RunStore) -> dict[tuple[str, int], float]:
    return {(name, number): value for name, points in store.metrics().items() for number, value in points if value is not None}


@pytest.mark.parametrize("killed", [False, True])
def test_every_measure_is_in_tensorboard_whatever_stops_the_run(tmp_path: Path, killed: bool) -> None:
    """A run that stops after its second round, or whose worker is killed then, before it sends, and that goes on: each value of the store, at its
    round; none twice, but where it was killed what was sent last. What was learned is the same."""
    config = toy_config(tracker="tensorboard", held_out_every=1)
    first = toy_trainer(tmp_path / "run", config)
    first.config = config.with_changes(rounds=2)
    if killed:
        sends = iter([first.tracker.send])
        first.tracker.send = lambda: next(sends, int)()  # type: ignore[method-assign, assignment]
    first.run()
    if not killed:
        first.tracker.close()
    first.store.close()
    second = toy_trainer(tmp_path / "run", config)
    second.run()
    second.measure(3)
    second.tracker.close()
    found, wanted = events(tmp_path / "run"), stored(second.store)
    assert {(name, step) for name, step, _ in found} == set(wanted)
    assert all(math.isclose(value, wanted[name, step], rel_tol=1e-6) for name, step, value in found)  # as float32
    twice = {step for name, step, value in found if found.count((name, step, value)) > 1}
    assert twice <= {0, 1} if killed else len(found) == len(wanted)
    second.store.close()
    plain = toy_trainer(tmp_path / "plain", toy_config(held_out_every=1))
    plain.run()
    plain.measure(3)
    plain.store.close()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "plain")


class Recorder(types.ModuleType):
    """Stands for the package of a service: init, config and log as accelerate's trackers use them."""

    def __init__(self, name: str, breaks_at: int | None = None) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        self.breaks_at, self.finished = breaks_at, 0
        self.config = self

    def init(self, project: str, name: str, resume: str, **told: Any) -> Recorder:
        assert set(told) == ({"id", "dir"} if self.__name__ == "wandb" else set())
        self.begun.append(dict(project=project, name=name, resume=resume, **told))
        return self

    def update(self, values: dict[str, Any], **_: Any) -> None:
        self.settings |= values

    def log(self, values: dict[str, Any], **told: Any) -> None:
        if self.breaks_at == len(self.logged):
            raise ConnectionError("no route")
        assert told.get("step") is None
        self.logged.append(dict(values))

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "round")

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_gets_settings_and_each_round_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Through accelerate's own class. What is measured late, as by watching, is sent when it is there; the settings name nothing of the machine."""
    package = Recorder(name)
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(tracker, "find_spec", lambda package: package == name)
    (tmp_path / "model").mkdir()
    store = filled_run(tmp_path / "taste", rounds=1, tracker=name, model=str(tmp_path / "model"))
    sent = Tracker(store.config, store)
    sent.start()
    sent.send()
    store.add_metrics(2, dict(reward_mean=0.5, held_out_reward=math.nan))
    sent.send()
    store.add_metrics(1, dict(watched_noise=0.25))
    sent.close()
    assert package.begun[0]["project"] == "ddpo-studio" and package.begun[0]["name"].startswith("taste") and package.begun[0]["resume"] == "allow"
    assert package.settings["model"] == "model" and package.settings["learning_rate"] == store.config.learning_rate
    assert {value["round"] for value in package.logged[:-2]} <= {0, 1}
    assert package.logged[-2:] == [dict(reward_mean=0.5, round=2), dict(watched_noise=0.25, round=1)]
    assert package.finished == 1
    again, count = Tracker(store.config, store), len(package.logged)
    again.start()
    again.close()
    assert len(package.logged) == count and package.begun[1] == package.begun[0]
    other = filled_run(tmp_path / "elsewhere" / "taste", rounds=1, tracker=name, model=str(tmp_path / "model"))
    third = Tracker(other.config, other)
    third.start()
    assert {key: package.begun[2][key] for key in ("name", "id") if key in package.begun[2]} != {
        key: package.begun[0][key] for key in ("name", "id") if key in package.begun[0]
    }
    other.close()
    store.close()


def test_a_person_s_own_function_is_named_without_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", package := Recorder("wandb"))
    monkeypatch.setattr(tracker, "find_spec", lambda package: True)
    store = filled_run(tmp_path / "taste", rounds=1, tracker="wandb")
    store.add_metrics(1, {f"watched_{tmp_path}/mine.py:warm": 0.5, "watched_kl": 1.0})
    sent = Tracker(store.config, store)
    sent.start()
    sent.close()
    assert package.logged[-1]["watched_mine.py:warm"] == 0.5 and str(tmp_path) not in str(package.logged) + str(package.settings)
    store.close()


def test_a_tracker_that_fails_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and not tried again; the next worker sends what is missing."""
    monkeypatch.setitem(sys.modules, "wandb", package := Recorder("wandb", breaks_at=1))
    monkeypatch.setattr(tracker, "find_spec", lambda package: True)
    trainer = toy_trainer(tmp_path / "run", toy_config(tracker="wandb"))
    assert trainer.run()
    trainer.tracker.close()
    said = [row for row in trainer.store.events() if row.kind == "tracker"]
    assert len(said) == 1 and "no route" in said[0].message and len(package.logged) == 1
    package.breaks_at = None
    again = Tracker(trainer.config, trainer.store)
    again.start()
    again.close()
    sent = {(name, values["round"]) for values in package.logged for name in values if name != "round"}
    assert sent == set(stored(trainer.store)) and sum(len(values) - 1 for values in package.logged) == len(sent)
    trainer.store.close()


def test_one_that_does_not_begin_is_tried_by_the_next_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody was logged in: nothing counts as sent."""
    monkeypatch.setitem(sys.modules, "wandb", package := Recorder("wandb"))
    monkeypatch.setattr(tracker, "find_spec", lambda package: True)
    store = filled_run(tmp_path / "taste", rounds=1, tracker="wandb")
    with monkeypatch.context() as patch:
        patch.setattr(package, "init", lambda **_: 1 / 0)
        (first := Tracker(store.config, store)).start()
        first.close()
    (second := Tracker(store.config, store)).start()
    second.close()
    assert {(name, values["round"]) for values in package.logged for name in values if name != "round"} == set(stored(store))
    store.close()


def test_a_package_that_is_missing_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda package: None)
    assert main(["run", "--out", str(tmp_path / "run"), "--tracker", "trackio"]) == 2
    assert "pip install trackio" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(["run", "--out", str(tmp_path / "run"), "--optimiser", "adamw8bit"]) == 2
    assert "pip install bitsandbytes" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        tracker.require(RunConfig(tracker="tensorboard"))
    tracker.require(RunConfig())
    there = filled_run(tmp_path / "there", rounds=1, tracker="trackio")
    Tracker(there.config, there).start()  # on another machine: the run goes on
    assert ["pip install trackio" in row.message for row in there.events() if row.kind == "tracker"] == [True]
    there.close()
