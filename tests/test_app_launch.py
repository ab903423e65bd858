"""Workers are started apart from the server, write their log, and can be ended as a last resort."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TOY_WORKER
from toys import filled_run

from app.launch import Launcher, LaunchError, kill
from ddpo.store import RunStore


def until(true: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path):
    store = filled_run(tmp_path / "run", rounds=0)
    yield store
    kill(store)
    store.close()


def test_a_worker_takes_the_run_and_has_a_session_of_its_own(run: RunStore) -> None:
    launcher = Launcher(TOY_WORKER)
    launcher.start(run.folder)
    until(lambda: run.status().alive)
    pid = run.status().pid
    assert pid and os.getsid(pid) == pid != os.getsid(0)
    launcher.start(run.folder)  # a second press of the button
    assert run.status().pid == pid
    until(lambda: "toy worker at work" in run.log_tail())


def test_an_early_end_is_written_to_the_log(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_WORKER", "broken")
    launcher = Launcher(TOY_WORKER)
    launcher.start(run.folder)
    until(lambda: "exit code 3" in run.log_tail())
    assert "No module named 'torch'" in run.log_tail()
    assert not launcher.starting(run.folder)


def test_a_deaf_worker_can_be_killed_and_leaves_no_zombie(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_WORKER", "deaf")
    Launcher(TOY_WORKER).start(run.folder)
    until(lambda: run.status().alive and run.status().state == "sampling")
    pid = run.status().pid
    assert kill(run)
    until(lambda: run.status().state == "interrupted")
    until(lambda: not Path(f"/proc/{pid}").exists() if sys.platform == "linux" else True)
    until(lambda: "ended by signal 9" in run.log_tail())
    assert not kill(run)


def test_a_program_that_does_not_exist_is_a_launch_error(run: RunStore) -> None:
    with pytest.raises(LaunchError, match="could not be started"):
        Launcher(["/no/such/program"]).start(run.folder)
