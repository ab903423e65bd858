"""A run's measures in trackers: every one once, at its round, and nothing of a run depends on them."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
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
        assert set(told) == ({"id", "dir", "settings"} if self.__name__ == "wandb" else set())
        self.begun.append(dict(project=project, name=name, resume=resume, **told))
        return self

    def update(self, values: dict[str, Any], **_: Any) -> None:
        self.settings |= values

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if self.breaks_at == len(self.logged):
            raise ConnectionError("no route")
        assert (step is None) == ("round" in values) == (self.__name__ == "wandb")
        self.logged.append({"round": step, **values})

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


WORKER = """
import os, sys
from pathlib import Path
from ddpo.store import RunStore
from ddpo.tracker import Tracker
store = RunStore(Path(sys.argv[1]))
tracker = Tracker(store.config, store)
tracker.start()
tracker.send()
if "killed" in sys.argv:
    store.add_metrics(2, dict(reward_mean=0.5))
    tracker.send()
    os.kill(os.getpid(), 9)
tracker.close()
"""
"""Begins or goes on with a run's tracker; told to, it ends as a worker that is killed a moment after its second round."""


def wandb_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """What W&B's files of a run hold, a dictionary a call of ``log``: LevelDB's log format in blocks of 32 KiB, after a header of 7 bytes. A record
    is its checksum, length and kind (whole 1, first 2, middle 3, last 4) and a message."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, message = file.read_bytes(), 7, b""
        assert str(folder).encode() not in data
        while at + 7 <= len(data):
            if (left := -at % 32768) and left < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            message = (message if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4) and (items := Record.FromString(message).history.item):
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def trackio_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """What trackio's database of the project holds, a dictionary a call of ``log``, with its step as the round."""
    (file,) = folder.glob("*.db")
    with closing(sqlite3.connect(file)) as database:
        for step, values in database.execute("select step, metrics from metrics order by id"):
            yield json.loads(values) | {"round": step}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_package_itself_has_every_measure_at_its_round_after_a_worker_was_killed(tmp_path: Path, name: str) -> None:
    """Nothing that it was sent is lost, though it had not written that; a second worker makes the same run go on; one value comes late."""
    if not find_spec(name):
        pytest.skip(f"{name} is not installed, so it is not known to take what it is sent: make trackers")
    store = filled_run(tmp_path / "taste", rounds=1, tracker=name)
    environment = os.environ | dict(WANDB_MODE="offline", WANDB_SILENT="true", TRACKIO_DIR=str(tmp_path / "trackio"))
    for word in ("killed", "resumed"):
        subprocess.run([sys.executable, "-c", WORKER, str(store.folder), word], env=environment, check=word == "resumed", timeout=120)
        store.add_metrics(1, dict(watched_noise=0.25))
    assert not [row for row in store.events() if row.kind == "tracker"]
    found = list(wandb_rows(store.folder) if name == "wandb" else trackio_rows(tmp_path / "trackio"))
    told = {(key, values["round"]): value for values in found for key, value in values.items() if key != "round" and not key.startswith("_")}
    assert told == stored(store)
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
    """It is said once, and not tried again; the next worker sends what is missing, and what was sent just before."""
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
    assert sent == set(stored(trainer.store)) and sum(len(values) - 1 for values in package.logged[1:]) == len(sent)
    trainer.store.close()


def test_what_a_killed_worker_sent_in_its_last_minute_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B writes every 15 seconds: what it was sent a minute ago it has, of the rest nobody knows."""
    monkeypatch.setitem(sys.modules, "wandb", package := Recorder("wandb"))
    monkeypatch.setattr(tracker, "find_spec", lambda package: True)
    store, clock = filled_run(tmp_path / "taste", rounds=1, tracker="wandb"), [0.0]
    monkeypatch.setattr(tracker.time, "monotonic", lambda: clock[0])
    (killed := Tracker(store.config, store)).start()
    for number, clock[0] in ((2, 0.0), (3, 50.0), (4, 70.0)):
        store.add_metrics(number, dict(reward_mean=0.5))
        killed.send()
    package.logged.clear()
    clock[0] = -1e6  # another process's clock, or machine's
    for expected in ([3, 4], []):
        (again := Tracker(store.config, store)).start()
        again.close()
        assert [values["round"] for values in package.logged] == expected
        package.logged.clear()
    store.close()


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
