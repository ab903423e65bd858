"""kill -9 at any moment: nothing that was finished is done again, nothing that was acknowledged is lost, and the end is the same."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddpo.records import MARKS
from ddpo.store import RunStore
from tests.models import save_tiny_model
from tests.toys_ddpo import PROJECT, brightness, finish, forks, in_memory, kill_after, outcome, rate_rounds, tiny_config, work


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with a tiny model in it."""
    with in_memory() as folder:
        save_tiny_model(folder / "model")
        yield folder


def promises(folder: Path) -> dict[object, object]:
    """Every durable promise with its time: marks, images and their files, checkpoints."""
    store = RunStore(folder)
    rows = store.rounds()
    found: dict[object, object] = {(row.number, mark): at for row in rows for mark in MARKS if (at := getattr(row, f"{mark}_at")) is not None}
    for row in (sample for each in rows for sample in store.samples(each.number)):
        found["sample", row.id] = (row, (folder / row.image).stat().st_mtime_ns)
    store.close()
    return found


def start(folder: Path) -> Any:
    """A worker, in a process of its own."""
    process = forks().Process(target=work, args=(folder,))
    process.start()
    return process


def kill_again_and_again(folder: Path, draw: random.Random, kills: int) -> int:
    """Start a worker and kill it after some writes, over and over, then let one finish; how often the kill came in time."""
    hits, kept = 0, promises(folder)
    for _ in range(kills):
        hits += kill_after(folder, start(folder), draw.randrange(1, 30))
        now = promises(folder)
        assert {key: now.get(key) for key in kept} == kept, "a finished phase was done again"
        kept = now
    assert finish(folder) == 0, (folder / "worker.log").read_text()[-2000:]
    now = promises(folder)
    assert {key: now.get(key) for key in kept} == kept
    return hits


@pytest.fixture(scope="module")
def straight(place: Path) -> dict[str, Any]:
    """The run that nobody disturbed."""
    RunStore.create(place / "straight", tiny_config(place / "model", held_out_every=2)).close()
    assert finish(place / "straight") == 0, (place / "straight" / "worker.log").read_text()[-2000:]
    return outcome(place / "straight")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_automatic_run_killed_again_and_again_equals_the_straight_one(place: Path, straight: dict[str, Any], seed: int) -> None:
    """Defect 3: six kills at moments drawn from 30 writes each; weights, AdamW moments, metrics, images and scores are equal bit for bit."""
    folder = place / f"killed-{seed}"
    RunStore.create(folder, tiny_config(place / "model", held_out_every=2)).close()
    assert kill_again_and_again(folder, random.Random(seed), kills=6) >= 1
    again = outcome(folder)
    assert {key for key in straight if again[key] != straight[key]} == set()
    assert RunStore(folder).status().state == "finished"


def thumb(file: Path) -> float:
    """Up for what is brighter than most; the tiny model's pictures differ by their file names."""
    with Image.open(file) as image:
        return 1.0 if brightness(image) > 0.5 or int(file.stem, 16) % 3 == 0 else -1.0


def human_run(folder: Path, model: Path, draw: random.Random | None) -> dict[str, Any]:
    """A run rated by a scripted person who clicks on whatever the worker does; killed by ``draw``."""
    RunStore.create(folder, tiny_config(model, reward="human", rounds=2)).close()
    acknowledged: list[tuple[str, int]] = []
    stop = threading.Event()
    rater = threading.Thread(target=rate_rounds, args=(folder, thumb, acknowledged, stop))
    rater.start()
    try:
        if draw:
            assert kill_again_and_again(folder, draw, kills=5) >= 1
        else:
            assert finish(folder) == 0, (folder / "worker.log").read_text()[-2000:]
    finally:
        stop.set()
        rater.join()
    store = RunStore(folder)
    assert [(r.client_id, r.sample) for r in store.ratings()] == acknowledged and len(acknowledged) == 16
    store.close()
    return outcome(folder)


def test_a_human_run_killed_again_and_again_loses_no_rating_and_equals_the_straight_one(place: Path) -> None:
    """Defects 3 and 8: every rating that was acknowledged is there, once, of its image; and what was learned from them is the same."""
    undisturbed = human_run(place / "human", place / "model", None)
    killed = human_run(place / "human-killed", place / "model", random.Random(5))
    assert {key for key in undisturbed if killed[key] != undisturbed[key]} == set()


def test_the_worker_as_the_studio_starts_it_is_killed_and_resumed(place: Path, straight: dict[str, Any]) -> None:
    """`python -m ddpo.worker`, a whole interpreter: killed while it makes images, it shows as interrupted, and a second one finishes the run."""
    folder = place / "module"
    RunStore.create(folder, tiny_config(place / "model", held_out_every=2)).close()
    command = [sys.executable, "-m", "ddpo.worker", str(folder)]
    store = RunStore(folder)
    with open(folder / "worker.log", "ab") as log:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)
        while not store.samples(1):
            assert process.poll() is None, store.log_tail()
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert store.status().state == "interrupted" and store.rounds()[0].checkpointed_at is None
        assert subprocess.run(command, cwd=PROJECT, stdout=log, stderr=log, timeout=250).returncode == 0
    assert store.status().state == "finished" and outcome(folder) == straight
