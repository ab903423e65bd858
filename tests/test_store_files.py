"""The run folder: what a run is doing, and its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ddpo.config import RunConfig
from ddpo.files import write_file
from ddpo.lock import WorkerLock
from ddpo.records import ENDED_STATES, LIVE_STATES
from ddpo.store import RunStore, StoreError, delete_run, runs_in
from tests.test_store import ids, one_round

# --- status -----------------------------------------------------------------------------------------------------------------------


def test_status_tells_new_loading_live_interrupted_and_ended_apart(tmp_path: Path) -> None:
    """From the folder alone: the lock says who lives, the rows say what was last done."""
    store = RunStore.create(tmp_path / "run", RunConfig())
    assert store.status().state == "new" and not store.status().alive
    for state in LIVE_STATES:
        lock = WorkerLock(store.folder / "worker.lock")
        store.set_progress(state, 2, 3, 8)
        assert (store.status().state, store.status().alive, store.status().done) == (state, True, 3)
        lock.release()
        assert (store.status().state, store.status().alive) == ("interrupted", False)
    for state in ENDED_STATES:
        store.add_event(state, f"It is {state}.")
        store.set_progress(state, 2)
        assert (store.status().state, store.status().message) == (state, f"It is {state}.")
        lock = WorkerLock(store.folder / "worker.lock")
        assert (store.status().state, store.status().message) == ("loading", "")
        lock.release()


def test_a_new_worker_shows_as_loading_at_once(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", RunConfig())
    lock = WorkerLock(store.folder / "worker.lock")
    assert store.status().state == "loading" and store.status().pid
    lock.release()


def test_pending_requests_are_those_without_an_answer(tmp_path: Path) -> None:
    store = one_round(tmp_path / "run")
    one, two = store.add_request("pause"), store.add_request("apply", round=3)
    store.add_event("answer", "paused", one)
    assert [(r.id, r.kind, r.payload) for r in store.pending_requests()] == [(two, "apply", {"round": 3})]
    assert store.status().pending == ("apply",)
    with pytest.raises(ValueError, match="format"):
        store.add_request("format c:")


def test_revision_changes_with_every_write_of_this_or_another_process_and_with_nothing_else(tmp_path: Path) -> None:
    store = one_round(tmp_path / "run")
    other = RunStore(store.folder)
    seen = store.revision
    assert store.revision == seen and store.samples(1) and store.revision == seen
    for write in (
        lambda: store.add_event("note", "mine"), lambda: other.add_event("note", "theirs"), lambda: other.set_progress("sampling", 1),
        lambda: other.add_rating("c", ids(store)[0], "anna", "thumbs", 1),
    ):  # fmt: skip
        write()
        assert store.revision != seen
        seen = store.revision


# --- files ------------------------------------------------------------------------------------------------------------------------


def test_write_file_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before the rename leaves the old content; no reader ever sees the new name with half the bytes."""
    file = tmp_path / "state"
    write_file(file, b"old")

    def power_cut(self: Path, target: Path) -> None:
        assert file.read_bytes() == b"old"
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            write_file(file, b"new" * 1000)
    assert file.read_bytes() == b"old"
    write_file(file, b"new")
    assert file.read_bytes() == b"new" and [f.name for f in tmp_path.iterdir()] == ["state"]


def test_a_living_run_is_not_deleted_and_a_dead_one_is(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", RunConfig())
    lock = WorkerLock(store.folder / "worker.lock")
    with pytest.raises(StoreError, match=r"is running\. Stop it first"):
        delete_run(store.folder)
    assert runs_in(tmp_path) == [store.folder]
    lock.release()
    store.close()
    delete_run(store.folder)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "holiday").mkdir()
    with pytest.raises(StoreError, match="is no run folder"):
        delete_run(tmp_path / "holiday")


def test_what_a_failed_deletion_left_is_in_no_new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore.create(tmp_path / "run", RunConfig())
    store.start_round(1)
    store.close()
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", lambda *_, **__: None)  # the power goes, or a file is open elsewhere
        delete_run(tmp_path / "run")
    assert runs_in(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1
    again = RunStore.create(tmp_path / "run", RunConfig())
    assert again.rounds() == []
    again.close()
    delete_run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_configuration_is_gone_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", RunConfig()).close()
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(StoreError, match="left of another run"):
        RunStore.create(tmp_path / "run", RunConfig())


def test_the_log_s_tail_is_short_and_survives_odd_bytes(tmp_path: Path) -> None:
    store = one_round(tmp_path / "run")
    assert store.log_tail() == ""
    (store.folder / "worker.log").write_bytes(b"".join(b"line %d \xff\n" % n for n in range(5000)))
    lines = store.log_tail(lines=3).splitlines()
    assert [line.split()[1] for line in lines] == ["4997", "4998", "4999"]
