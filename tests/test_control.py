"""How a worker listens: every request is answered, in time, and after a crash as well."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpo.control import Control, StopRun
from ddpo.store import RunStore
from rewards.human import scores
from tests.toys_ddpo import spread_scores, toy_config, toy_trainer


def store_at(tmp_path: Path, **changes: object) -> RunStore:
    return RunStore.create(tmp_path / "run", toy_config(**changes))


def waiting_round(tmp_path: Path) -> RunStore:
    """A human run whose first round is sampled."""
    trainer = toy_trainer(tmp_path / "run", toy_config(reward="human"))
    trainer.store.start_round(1)
    trainer.sample(1)
    return trainer.store


def answers(store: RunStore) -> dict[int, str]:
    """What was answered to each request."""
    return {event.request: event.message for event in store.events() if event.request is not None}


def later(seconds: float, action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_pause_holds_the_worker_until_resume_and_both_are_answered(tmp_path: Path) -> None:
    store, told = store_at(tmp_path), []
    control = Control(store, lambda *now: told.append(now[0]))
    pause = store.add_request("pause")
    timer = later(0.2, lambda: store.add_request("resume"))
    started = time.monotonic()
    control.report("sampling", 1, 2, 8)
    timer.join()
    assert time.monotonic() - started > 0.15
    assert told == ["sampling", "paused", "sampling"] and list(answers(store).values()) == ["paused", "resumed"] and pause in answers(store)
    assert store.pending_requests() == []


def test_what_was_asked_of_this_worker_while_it_loaded_is_done_and_what_was_asked_before_is_not(tmp_path: Path) -> None:
    """A worker takes the lock, then loads for a while; who presses Stop meanwhile means this one."""
    store = store_at(tmp_path)
    before = store.add_request("pause")
    time.sleep(0.01)
    since = time.time()
    stop = store.add_request("stop")
    control = Control(store, since=since)
    assert "before this worker" in answers(store)[before] and stop not in answers(store)
    with pytest.raises(StopRun):
        control.report("loading", 0)


@pytest.mark.parametrize("paused", [False, True])
def test_stop_ends_the_run_now_also_while_paused(tmp_path: Path, paused: bool) -> None:
    store = store_at(tmp_path)
    control = Control(store)
    if paused:
        store.add_request("pause")
    stop = store.add_request("stop")
    with pytest.raises(StopRun):
        control.report("updating", 1, 0, 8)
    assert answers(store)[stop] == "stopping"


def test_stop_after_round_ends_the_run_at_the_round_s_end(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "run", toy_config(rounds=3))
    trainer.control.watcher = lambda state, number, done, total: state == "updating" and done == 0 and trainer.store.add_request("stop_after_round")
    assert trainer.run() is False
    assert [row.next_mark for row in trainer.store.rounds()] == [None] and len(trainer.store.checkpoints()) == 1


def test_requests_to_a_worker_that_is_gone_are_not_obeyed_by_the_next(tmp_path: Path) -> None:
    """Yesterday's stop must not end today's Resume."""
    store = store_at(tmp_path)
    stop = store.add_request("stop")
    Control(store).report("sampling", 1)
    assert "before this worker started" in answers(store)[stop]


def test_apply_fixes_the_ratings_that_count(tmp_path: Path) -> None:
    """What is rated before Apply counts; what comes after it is kept and does not."""
    store = waiting_round(tmp_path)
    control, first, second = Control(store), *[row.id for row in store.samples(1)[:2]]
    store.add_rating("one", first, "anna", "thumbs", 1)
    later(0.1, lambda: store.add_request("apply", round=1)).join()
    collected = control.collect(1)([])
    store.add_rating("two", second, "anna", "thumbs", 1)
    assert list(collected) == [first] and list(control.collect(1)([])) == [first] and len(store.ratings(1)) == 2


def test_apply_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    """A worker killed right after its answer must not wait for Apply again: when the answer is there, so is closed_at."""
    store, other = waiting_round(tmp_path), RunStore(tmp_path / "run")
    control = Control(store)
    request = store.add_request("apply", round=1)
    add_event = store.add_event

    def watched(kind: str, message: str, of: int | None = None) -> None:
        if of == request:
            row = other.round(1)
            assert row and row.closed_at is not None
        add_event(kind, message, of)

    store.add_event = watched  # type: ignore[method-assign]
    control.wait_until_applied(1, 8)
    assert answers(store)[request] == "ratings of round 1 applied"


def test_an_early_apply_waits_for_its_round_and_a_wrong_one_is_answered(tmp_path: Path) -> None:
    store = waiting_round(tmp_path)
    control = Control(store)
    control.report("sampling", 1, 8, 8)
    early, wrong = store.add_request("apply", round=1), store.add_request("apply", round=7)
    control.report("scoring", 1)
    assert answers(store) == {wrong: "round 7 is not waiting for ratings"}
    control.wait_until_applied(1, 8)
    assert answers(store)[early] == "ratings of round 1 applied"


def test_a_closed_round_is_not_waited_for_again(tmp_path: Path) -> None:
    """After a crash between Apply and scoring, the next worker goes straight on."""
    store = waiting_round(tmp_path)
    store.close_round(1)
    Control(store).wait_until_applied(1, 8)


def test_ratings_name_their_images_whatever_the_board_s_order(tmp_path: Path) -> None:
    """Defect 8: rated backwards, by two people, one of whom changes her mind: each image's score is what was said of that image."""
    store = waiting_round(tmp_path)
    ids = [row.id for row in store.samples(1)]
    said = {id: 1.0 if k % 3 == 0 else -1.0 for k, id in enumerate(ids)}
    for k, id in enumerate(reversed(ids)):
        store.add_rating(f"anna-first-{id}", id, "anna", "thumbs", -said[id])
        store.add_rating(f"anna-{id}", id, "anna", "thumbs", said[id])
        if k % 2:
            store.add_rating(f"bob-{id}", id, "bob", "thumbs", said[id])
    found = scores(store.asked(1), store.latest_ratings(1))
    assert {id: found[id].value for id in ids} == said


def test_people_s_scores_reach_the_trainer_by_image(tmp_path: Path) -> None:
    """Defect 8 through the shipped path: thumbs given by id in reverse order come out as the advantages of those positions; unrated is 0."""
    store = waiting_round(tmp_path)
    rows = store.samples(1)
    for row in reversed(rows[:7]):
        store.add_rating(f"c{row.id}", row.id, "anna", "thumbs", 1 if row.position in (0, 5) else -1)
    store.close_round(1)
    store.close()
    trainer = toy_trainer(tmp_path / "run", toy_config(reward="human"))
    spread_scores(trainer)
    assert trainer.weights(1).values.sign().tolist() == [1, -1, -1, -1, -1, 1, -1, 0]


def test_verdicts_on_pairs_reach_the_trainer_by_image(tmp_path: Path) -> None:
    """In a round of which people see some images only: the two that won, the two that lost, and the others, which nobody was asked about."""
    store = waiting_round(tmp_path)
    rows = store.samples(1)
    store.show(1, [row.id for row in rows if row.position in (0, 1, 4, 5)])
    store.add_rating("one", rows[1].id, "anna", "pairs", -1, other=rows[0].id)
    store.add_rating("two", rows[4].id, "anna", "pairs", 1, other=rows[5].id)
    store.close_round(1)
    store.close()
    trainer = toy_trainer(tmp_path / "run", toy_config(reward="human"))
    spread_scores(trainer)
    assert trainer.weights(1).values.sign().tolist() == [1, -1, 0, 0, 1, -1, 0, 0]


def test_who_was_not_asked_about_was_not_passed_over(tmp_path: Path) -> None:
    """One image is starred: of its prompt's others, those on the board were passed over, those beside it were not."""
    store = waiting_round(tmp_path)
    rows = store.samples(1)
    store.show(1, [row.id for row in rows if row.position in (0, 1)])
    store.add_rating("one", rows[1].id, "anna", "best", 2)
    store.close_round(1)
    store.close()
    trainer = toy_trainer(tmp_path / "run", toy_config(reward="human"))
    spread_scores(trainer)
    scores = trainer.store.scores(1, "human")
    assert [scores[row.id].value for row in rows[:4]] == [-0.5, 1.0, None, None]
