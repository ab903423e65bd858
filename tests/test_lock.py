"""The worker's lock: whoever lives holds it, however others die."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Barrier, Thread

import pytest

from ddpo.lock import AlreadyRunning, WorkerLock, holder
from tests.toys_ddpo import forks


def hold(file: Path, seconds: float) -> None:
    lock = WorkerLock(file)
    (file.parent / "held").touch()
    time.sleep(seconds)
    lock.release()


def held_elsewhere(file: Path):
    """A process that holds the lock for a minute, if nobody kills it."""
    process = forks().Process(target=hold, args=(file, 60.0))
    process.start()
    while not (file.parent / "held").exists():
        time.sleep(0.005)
    return process


def test_nobody_holds_a_lock_that_was_never_made_or_was_given_back(tmp_path: Path) -> None:
    file = tmp_path / "worker.lock"
    assert holder(file) is None and not file.exists()
    lock = WorkerLock(file)
    assert holder(file) == os.getpid()
    lock.release()
    assert holder(file) is None


def test_another_process_is_seen_by_its_id_and_keeps_us_out_until_it_is_killed(tmp_path: Path) -> None:
    """kill -9 frees the lock at once: no timeout, no file to remove by hand."""
    file = tmp_path / "worker.lock"
    process = held_elsewhere(file)
    assert holder(file) == process.pid
    with pytest.raises(AlreadyRunning, match="Another worker already runs"):
        WorkerLock(file, patience=0.1)
    process.kill()
    process.join()
    assert holder(file) is None
    WorkerLock(file, patience=0.1).release()


def test_many_looks_at_once_never_see_a_worker_that_is_gone(tmp_path: Path) -> None:
    """A look must not take another look for a worker: it would show a dead process as alive, and `kill` would hit whoever has its id now."""
    file = tmp_path / "worker.lock"
    WorkerLock(file).release()
    assert file.read_text() == str(os.getpid())  # the id of a worker that is gone
    seen: set[int | None] = set()
    barrier = Barrier(4)

    def look() -> None:
        barrier.wait()
        seen.update(holder(file) for _ in range(2000))

    threads = [Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {None}


def test_looks_do_not_keep_a_worker_out(tmp_path: Path) -> None:
    """Studios poll a thousand times a second while workers start: within its patience each gets the lock."""
    file, stop = tmp_path / "worker.lock", []
    WorkerLock(file).release()

    def look() -> None:
        while not stop:
            holder(file)
            time.sleep(0.001)

    threads = [Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            WorkerLock(file).release()
    finally:
        stop.append(True)
        for thread in threads:
            thread.join()
