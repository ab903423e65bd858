"""The run folder between processes: writers at once, and writers that die."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ddpo.config import RunConfig
from ddpo.store import RunStore
from tests.toys import add_pictures, picture

ROOT = Path(__file__).parent.parent


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that has the store and no model."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_with_images(folder: Path) -> RunStore:
    store = RunStore.create(folder, RunConfig())
    store.start_round(1)
    add_pictures(store, 1, range(8), ["a cat"] * 8, range(8), [picture(i, 8) for i in range(8)])
    return store


DIE_AFTER_RATING = """
import os, sys
from pathlib import Path
from ddpo.store import RunStore
store = RunStore(Path(sys.argv[1]))
for n, sample in enumerate(store.samples(1)):
    store.add_rating(f"click-{n}", sample.id, "anna", "thumbs", 1 if n % 2 else -1)
    print(n, flush=True)
    if n == 5:
        os._exit(9)
"""


def test_a_rating_is_on_disk_when_add_rating_returns(tmp_path: Path) -> None:
    """Defect 8: the process dies in the next instruction, closing nothing; every rating that returned is there, and no other."""
    store = run_with_images(tmp_path / "run")
    process = python(DIE_AFTER_RATING, store.folder)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 9, errors
    assert said.splitlines() == [str(n) for n in range(6)]
    rows = store.samples(1)
    assert [(r.client_id, r.sample, r.value) for r in store.ratings(1)] == [(f"click-{n}", rows[n].id, 1 if n % 2 else -1) for n in range(6)]


WRITE_MANY = """
import sys
from pathlib import Path
from ddpo.store import RunStore
folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = RunStore(folder)
rows = store.samples(1)
for n in range(count):
    store.add_rating(f"{name}-{n}", rows[n % 8].id, name, "thumbs", 1)
    store.add_metrics(n, {name: float(n)})
    store.set_progress("sampling", 1, n, count)
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Three processes, 50 ratings and metrics each, interleaved by the database's lock: all 150 are there."""
    store = run_with_images(tmp_path / "run")
    processes = [python(WRITE_MANY, store.folder, name, 50) for name in ("anna", "bob", "carol")]
    for process in processes:
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert len(store.ratings(1)) == 150 and {r.client_id for r in store.ratings(1)} == {
        f"{n}-{i}" for n in ("anna", "bob", "carol") for i in range(50)
    }
    assert {name: len(points) for name, points in store.metrics().items()} == dict(anna=50, bob=50, carol=50)


OPEN = """
import sys, time
from pathlib import Path
from ddpo.store import RunStore
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
for _ in range(40):
    store = RunStore(Path(sys.argv[1]))
    store.add_event("opened", "here")
    store.close()
"""


def test_processes_that_open_a_new_run_at_once_all_succeed(tmp_path: Path) -> None:
    """The first one in makes the tables; nobody makes them twice, and nobody is turned away while the database changes its mode."""
    folder = tmp_path / "run"
    folder.mkdir()
    RunConfig().save(folder / "config.json")
    go, ready = tmp_path / "go", [tmp_path / f"ready{i}" for i in range(3)]
    processes = [python(OPEN, folder, flag, go) for flag in ready]
    while not all(flag.exists() for flag in ready):
        assert all(process.poll() is None for process in processes)
    os.close(os.open(go, os.O_CREAT))
    for process in processes:
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert len(RunStore(folder).events()) == 120
