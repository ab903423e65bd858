"""Boards of a few images, boards made ahead and rounds without one: what people see, rate and apply, on the page and through the named calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from gradio_client import Client
from playwright.sync_api import Page, expect

from app.launch import Launcher
from app.pages import run
from ddpo import beliefs
from ddpo.config import RunConfig
from ddpo.control import Control, StopRun
from ddpo.lock import WorkerLock
from ddpo.store import RunStore
from ddpo.trainer import Trainer
from tests.conftest import TOY_WORKER, Studio
from tests.test_board import card, look, press
from tests.toys import add_images, add_pictures, picture
from tests.toys_ddpo import LinearPolicy, toy_config

IDLE = Launcher(TOY_WORKER)
FEW: dict[str, Any] = dict(reward="human", rounds=4, images_per_round=8, images_per_update=8, images_per_prompt=4, preference="lead", board_images=4)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., RunStore]]:
    """Make a run with a board of 4 of 8 images in its first round, which waits for ratings; its worker seems to live."""
    made: list[RunStore] = []
    locks: list[WorkerLock] = []

    def run_with(**changes: Any) -> RunStore:
        made.append(RunStore.create(tmp_path / "toy", RunConfig(**(FEW | changes))))
        locks.append(WorkerLock(made[-1].folder / "worker.lock"))
        add_images(made[-1], 1)
        made[-1].set_progress("awaiting", 1, 0, len(made[-1].board(1)))
        return made[-1]

    yield run_with
    for lock in locks:
        lock.release()
    for store in made:
        store.close()


def board(client: TestClient) -> dict[str, Any]:
    return dict(client.get("/studio/runs/toy/board").json())


def rate_board(client: TestClient) -> None:
    """One image up, the next down: all that is on the board."""
    shown = board(client)["images"]
    events = [dict(client_id=f"c{each['id']}", sample=each["id"], rater="me", kind="thumbs", value=1 - 2 * (i % 2)) for i, each in enumerate(shown)]
    assert all(each["status"] == 200 for each in client.post("/studio/runs/toy/ratings", json=events).json()["results"])


def apply(client: TestClient, number: int) -> str:
    """Press Enter; returns why not."""
    answer = client.post("/studio/runs/toy/requests", json=dict(kind="apply", payload=dict(round=number)))
    return str(answer.json().get("detail", ""))


def rate_and_learn(client: TestClient, store: RunStore, likely: float) -> None:
    """The first board is rated and applied, and learned from; the model of taste is then likely to be right so often."""
    rate_board(client)
    assert apply(client, 1) == ""
    learn(store, 1)
    store.add_metrics(1, dict(preference_likely=likely))


def learn(store: RunStore, number: int) -> None:
    """What a worker does once a round's ratings are applied."""
    for request in store.pending_requests():
        store.close_round(number)
        store.add_event("answer", "applied", request.id)
    for mark in ("scored", "updated", "checkpointed"):
        store.mark(number, mark)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# --- a few of a round's images --------------------------------------------------------------------------------------------------


def test_only_the_images_on_the_board_are_shown_counted_and_needed(client: TestClient, make: Callable[..., RunStore]) -> None:
    store = make()
    shown = board(client)
    assert [row.position for row in store.board(1)] == [0, 1, 4, 5]
    assert [image["id"] for image in shown["images"]] == [row.id for row in store.board(1)]
    assert [image["position"] for image in shown["images"]] == [0, 1, 2, 3], "one after another"
    assert (shown["expected"], shown["per_prompt"], shown["awaiting"]) == (4, 2, True)
    beside = dict(client_id="beside", sample=store.samples(1)[7].id, rater="anna", kind="thumbs", value=1)
    assert client.post("/studio/runs/toy/ratings", json=beside).status_code == 409 and not store.ratings(1)
    store.add_rating("beside", store.samples(1)[7].id, "anna", "thumbs", 1)
    assert board(client)["signal"] == {"prompts": 2, "carrying": 0, "rated": 0}, "an image beside the board counts for nothing on it"
    rate_board(client)
    shown = board(client)
    assert shown["signal"] == {"prompts": 2, "carrying": 2, "rated": 4} and shown["can_apply"]
    bar = run.bar_value(store, IDLE)
    assert (bar["done"], bar["total"], bar["unit"], bar["your_turn"]) == (4, 4, "rated", True)
    assert apply(client, 1) == "" and board(client)["applying"]


def test_a_small_board_waits_for_all_images_of_its_round(client: TestClient, make: Callable[..., RunStore]) -> None:
    """Which images are on it may be known last."""
    store = make()
    rate_board(client)
    assert apply(client, 1) == ""
    learn(store, 1)
    store.start_round(2)
    store.set_progress("sampling", 2, 0, 8)
    for start, shown in ((0, set[int]()), (4, {4, 5, 6})):
        add_pictures(store, 2, range(start, start + 4), ["a cat"] * 4, range(4), [picture(start + i) for i in range(4)], shown)
        found = board(client)
        assert (found["round"], found["expected"], found["made"], found["making"], found["awaiting"]) == (2, 4, start + 4, 8, False)
        assert len(found["images"]) == len(shown)
    rate_board(client)
    assert apply(client, 2) == "Round 2 is still making images."
    store.mark(2, "sampled")
    store.set_progress("awaiting", 2, 0, 3)
    assert board(client)["expected"] == 3 and board(client)["can_apply"] and apply(client, 2) == ""


def test_where_nobody_is_asked_all_images_are_watched(client: TestClient, make: Callable[..., RunStore]) -> None:
    make(reward="jpeg_compressibility")
    found = board(client)
    assert not found["rated_by_people"] and found["expected"] == 8 and [image["position"] for image in found["images"]] == list(range(8))


# --- boards made ahead ----------------------------------------------------------------------------------------------------------


def test_the_open_board_stays_while_the_next_one_is_made(client: TestClient, make: Callable[..., RunStore]) -> None:
    store = make(ahead=32)
    store.start_round(2)
    add_pictures(store, 2, range(2), ["a cat"] * 2, range(2), [picture(1), picture(2)])
    rate_board(client)
    found = board(client)
    assert (found["round"], found["state"], found["awaiting"], found["can_apply"]) == (1, "awaiting", True, True)
    bar = run.panel_value(store, IDLE)
    assert (bar["state"], bar["round"], bar["done"], bar["total"], bar["your_turn"]) == ("awaiting", 1, 4, 4, True)
    assert "no board that waits" in apply(client, 2) and not store.pending_requests()
    assert apply(client, 1) == "" and [r.payload for r in store.pending_requests()] == [dict(round=1)]


def test_the_next_board_is_there_at_once_and_can_be_applied_early(client: TestClient, make: Callable[..., RunStore]) -> None:
    store = make(ahead=32)
    add_images(store, 2)
    rate_board(client)
    assert apply(client, 1) == ""
    store.close_round(1)
    store.add_event("answer", "applied", store.pending_requests()[0].id)
    for state in ("awaiting", "scoring", "updating", "checkpointing"):
        store.set_progress(state, 1, 1, 4)
        found = board(client)
        assert (found["round"], found["state"], found["awaiting"], len(found["images"])) == (2, "awaiting", True, 4)
        assert run.bar_value(store, IDLE)["your_turn"]
    assert run.bar_value(store, IDLE)["state"] == "checkpointing", "what the worker does is told beside it"
    late = dict(client_id="late", sample=store.board(1)[0].id, rater="me", kind="clear", value=None)
    assert client.post("/studio/runs/toy/ratings", json=late).status_code == 409, "the first board is closed"
    assert apply(client, 1) == "Round 1 takes no ratings any more." and "Nothing to learn" in apply(client, 2)
    rate_board(client)
    assert board(client)["can_apply"] and apply(client, 2) == ""
    assert (board(client)["applying"], board(client)["state"]) == (True, "checkpointing"), "from here on people wait for the worker"
    store.set_progress("paused", 1, 1, 4)
    assert not board(client)["awaiting"] and not run.bar_value(store, IDLE)["your_turn"]


def test_a_board_that_is_partly_made_is_rated_while_the_model_changes(client: TestClient, make: Callable[..., RunStore]) -> None:
    """Its first images were made ahead, and are there with Enter; the others come once the model has learned."""
    store = make(ahead=4, board_images=0, preference="off")
    store.start_round(2)
    add_pictures(store, 2, range(4), ["a cat"] * 4, range(4), [picture(i) for i in range(4)])
    rate_board(client)
    assert board(client)["round"] == 1 and apply(client, 1) == ""
    store.close_round(1)
    store.add_event("answer", "applied", store.pending_requests()[0].id)
    for state in ("scoring", "updating", "checkpointing"):
        store.set_progress(state, 1, 1, 4)
        found = board(client)
        assert (found["round"], found["state"], found["closed"], found["expected"], len(found["images"])) == (2, state, False, 8, 4)
    rate_board(client)
    assert board(client)["signal"]["rated"] == 4 and not board(client)["can_apply"] and apply(client, 2) == "Round 2 is still making images."
    learn(store, 1)
    add_pictures(store, 2, range(4, 8), ["a dog"] * 4, range(4), [picture(9 + i) for i in range(4)])
    store.mark(2, "sampled")
    store.set_progress("awaiting", 2, 0, 8)
    assert board(client)["signal"]["rated"] == 4 and board(client)["can_apply"] and apply(client, 2) == ""


def test_a_board_of_what_is_made_ahead_is_whole_before_its_round_is(client: TestClient, make: Callable[..., RunStore]) -> None:
    """The rest of the round's images are for learning: nobody waits for them, be they made before the board's turn or in it."""
    store = make(ahead=4, microbatch=4, board_every=2)
    rate_board(client)
    store.start_round(3)
    add_pictures(store, 3, range(2), ["a cat"] * 2, range(2), [picture(1), picture(2)], set())
    assert apply(client, 1) == ""
    store.close_round(1)
    store.add_event("answer", "applied", store.pending_requests()[0].id)
    found, bar = board(client), run.panel_value(store, IDLE)
    assert (found["round"], found["closed"], found["awaiting"]) == (1, True, False)
    assert (bar["headline"], bar["done"], bar["total"], bar["your_turn"]) == ("Making images", 2, 4, False)
    add_pictures(store, 3, range(2, 4), ["a cat"] * 2, range(2), [picture(3), picture(4)], set())
    assert not board(client)["awaiting"], "it is not chosen yet"
    store.show(3, [row.id for row in store.samples(3)])
    for mark in ("scored", "updated", "checkpointed"):
        store.mark(1, mark)
    store.add_metrics(1, dict(preference_likely=0.6))
    store.start_round(2)
    for state, number, made in (("sampling", 2, 0), ("updating", 2, 0), ("sampling", 3, 0), ("sampling", 3, 6), ("scoring", 3, 8)):
        store.set_progress(state, number, made, 8)
        if number == 3 and not store.round(2).updated_at:  # type: ignore[union-attr]
            add_images(store, 2)
            learn(store, 2)
            store.add_metrics(2, dict(preference_likely=0.6))
        found = board(client)
        assert (found["round"], found["state"], found["awaiting"]) == (3, "awaiting", True)
        assert (found["expected"], found["made"], found["making"]) == (4, 4, 4)
        assert run.bar_value(store, IDLE)["your_turn"]
    rate_board(client)
    assert board(client)["can_apply"] and apply(client, 3) == ""
    assert board(client)["applying"] and store.round(3).sampled_at is None  # type: ignore[union-attr]
    assert not run.bar_value(store, IDLE)["your_turn"], "they have done their part"


def test_an_early_enter_shows_the_next_images_as_they_come(client: TestClient, make: Callable[..., RunStore]) -> None:
    """The worker says that it waits for ratings until the next board is made; once these are applied, the page says that images are made."""
    store = make(ahead=32)
    rate_board(client)
    assert apply(client, 1) == ""
    store.close_round(1)
    store.add_event("answer", "applied", store.pending_requests()[0].id)
    store.start_round(2)
    add_pictures(store, 2, range(2), ["a cat"] * 2, range(2), [picture(1), picture(2)])
    found = board(client)
    assert (found["round"], found["state"], found["awaiting"], found["made"], found["done"], found["total"]) == (2, "sampling", False, 2, 2, 8)
    bar = run.panel_value(store, IDLE)
    assert (bar["headline"], bar["round"], bar["done"], bar["total"], bar["your_turn"]) == ("Making images", 2, 2, 8, False)
    assert apply(client, 2) == "Round 2 is still making images."


def test_rounds_without_a_board_are_never_shown_as_one(client: TestClient, make: Callable[..., RunStore]) -> None:
    store = make(board_every=2)
    rate_and_learn(client, store, likely=0.6)
    store.start_round(2)
    store.set_progress("sampling", 2, 0, 8)
    assert (board(client)["round"], board(client)["closed"]) == (1, True)
    add_images(store, 2)
    store.set_progress("updating", 2, 1, 4)
    found = board(client)
    assert (found["round"], found["closed"], found["state"], found["awaiting"], len(found["images"])) == (1, True, "updating", False, 4)
    assert "has no board" in apply(client, 2) and not run.bar_value(store, IDLE)["your_turn"]
    learn(store, 2)
    store.start_round(3)
    store.set_progress("sampling", 3, 0, 8)
    assert (board(client)["round"], board(client)["closed"], board(client)["expected"]) == (3, False, 4)


def test_while_the_model_of_taste_knows_nothing_every_round_has_a_board(client: TestClient, make: Callable[..., RunStore]) -> None:
    """The page says so while the round's images are made, before it is known which of them will be shown."""
    store = make(board_every=2)
    rate_and_learn(client, store, likely=0.4)
    store.start_round(2)
    store.set_progress("sampling", 2, 0, 8)
    assert (board(client)["round"], board(client)["closed"], board(client)["expected"]) == (2, False, 4)


def test_a_board_made_ahead_waits_for_those_before_it_that_people_turn_out_to_be_asked_about(
    client: TestClient, make: Callable[..., RunStore]
) -> None:
    """Round 3 was made ahead while round 1 was rated; then the model of taste was not worth asking any more."""
    store = make(board_every=2, ahead=32)
    add_images(store, 3)
    rate_and_learn(client, store, likely=0.4)
    assert (board(client)["round"], board(client)["closed"], board(client)["awaiting"]) == (1, True, False)
    store.start_round(2)
    store.set_progress("sampling", 2, 0, 8)
    assert (board(client)["round"], board(client)["closed"], board(client)["expected"]) == (2, False, 4)


def test_who_has_applied_is_not_asked_again_while_the_board_after_next_is_made(client: TestClient, make: Callable[..., RunStore]) -> None:
    store = make(board_every=2, ahead=32)
    rate_board(client)
    store.start_round(3)
    add_pictures(store, 3, range(2), ["a cat"] * 2, range(2), [picture(1), picture(2)])
    assert run.bar_value(store, IDLE)["your_turn"]
    store.close_round(1)
    found, bar = board(client), run.panel_value(store, IDLE)
    assert (found["round"], found["closed"], found["state"], found["between"]) == (1, True, "sampling", False)
    assert (bar["headline"], bar["done"], bar["total"], bar["your_turn"]) == ("Making images", 2, 8, False)


def test_a_board_made_ahead_over_a_round_without_one_is_peoples_turn(client: TestClient, make: Callable[..., RunStore]) -> None:
    store = make(board_every=2, ahead=32)
    add_images(store, 3)
    rate_and_learn(client, store, likely=0.6)
    store.start_round(2)
    store.set_progress("sampling", 2, 0, 8)
    found = board(client)
    assert (found["round"], found["state"], found["awaiting"]) == (3, "awaiting", True) and run.bar_value(store, IDLE)["your_turn"]
    rate_board(client)
    assert apply(client, 3) == ""


@pytest.mark.parametrize("ahead", [4, 32])
@pytest.mark.parametrize(("every", "led"), [(1, False), (2, True), (2, False)])
def test_a_run_with_boards_ahead_is_rated_to_its_end(
    tmp_path: Path, client: TestClient, every: int, led: bool, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real rounds, and a model of taste that is worth asking from the first board on, or never: nobody waits for anybody for ever, and no
    board is shown before its turn."""
    monkeypatch.setattr(beliefs, "leads", lambda store, config, number: led)
    people: dict[str, Any] = dict(reward="human", preference="lead", board_images=4, advantage="centred", ahead=ahead, board_every=every)
    config = toy_config(**people, rounds=4, microbatch=4)
    store = RunStore.create(tmp_path / "toy", config)
    lock = WorkerLock(store.folder / "worker.lock")
    trainer, done = Trainer(config, store, LinearPolicy(config), Control(store)), list[bool]()

    def work() -> None:
        with suppress(StopRun):
            done.append(trainer.run())

    thread = threading.Thread(target=work)
    thread.start()
    boards = []
    try:
        for number in range(1, 5, every if led else 1):
            until(lambda number=number: (found := board(client))["round"] == number and found["awaiting"])  # type: ignore[misc]
            boards.append(len(board(client)["images"]))
            rate_board(client)
            assert apply(client, number) == ""
        thread.join(60)
    finally:
        if thread.is_alive():
            store.add_request("stop")
            thread.join()
        lock.release()
    assert done == [True] and boards == [4] * (4 // every if led else 4)
    store.close()


# --- through the named calls and in a browser -----------------------------------------------------------------------------------


def test_a_script_sees_the_same_board(toy_studio: Studio) -> None:
    store = RunStore.create(toy_studio.runs / "toy", RunConfig(**FEW, ahead=32))
    Launcher(TOY_WORKER).start(store.folder)
    client = Client(toy_studio.url, verbose=False, analytics_enabled=False)
    for number in range(1, 4):
        until(lambda number=number: client.predict("toy", api_name="/list_batch")["round"] == number)  # type: ignore[misc]
        until(lambda number=number: (row := store.round(min(number + 1, 4))) and row.sampled_at)  # type: ignore[misc]
        batch = client.predict("toy", api_name="/list_batch")
        assert batch["round"] == number and [image["id"] for image in batch["images"]] == [row.id for row in store.board(number)]
        with pytest.raises(Exception, match="Nothing to learn"):
            client.predict("toy", number, api_name="/apply")
        for i, image in enumerate(batch["images"]):
            assert client.predict("toy", image["id"], 1 - 2 * (i % 2), api_name="/rate")
        assert client.predict("toy", number, api_name="/apply")["run"] == "toy"
        until(lambda number=number: (row := store.round(number)) and row.closed_at)  # type: ignore[misc]
        with pytest.raises(Exception, match="takes no ratings any more"):
            client.predict("toy", number, api_name="/apply")
    client.close()
    store.close()


def test_the_page_goes_from_board_to_board(page: Page, toy_studio: Studio) -> None:
    store = RunStore.create(toy_studio.runs / "toy", RunConfig(**(FEW | dict(rounds=3)), ahead=32))
    Launcher(TOY_WORKER).start(store.folder)
    until(lambda: (row := store.round(2)) and row.sampled_at)
    look(page, toy_studio, pictures=False)
    for number in (1, 2, 3):
        expect(page.locator("[data-ref=title]")).to_have_text(f"Round {number} of 3")
        expect(page.locator(".card[data-state=here][data-mark='']")).to_have_count(4)
        expect(page.locator("[data-ref=phase]")).to_contain_text("Waiting for your ratings")
        expect(page.locator("[data-ref=counts]")).to_have_text("4 images to rate")
        assert page.locator(".group").count() == 2 and "image 4 of 4" in (card(page, 4).get_attribute("aria-label") or "")
        press(page, *"udud")
        expect(page.locator("[data-ref=counts]")).to_have_text("4 of 4 rated; 2 of 2 prompts teach")
        page.keyboard.press("Enter")
    expect(page.locator("[data-ref=notice]")).to_contain_text("All rounds are done")
    assert [len(store.latest_ratings(number)) for number in (1, 2, 3)] == [4, 4, 4]
    store.close()


def test_between_boards_the_page_says_what_is_learned_from(page: Page, toy_studio: Studio) -> None:
    store = RunStore.create(toy_studio.runs / "toy", RunConfig(**FEW, board_every=2))
    add_images(store, 1)
    for i, row in enumerate(store.board(1)):
        store.add_rating(f"click-{i}", row.id, "me", "thumbs", 1 - 2 * (i % 2))
    store.close_round(1)
    learn(store, 1)
    store.add_metrics(1, dict(preference_likely=0.6))
    lock = WorkerLock(store.folder / "worker.lock")
    store.start_round(2)
    store.set_progress("sampling", 2, 4, 8)
    look(page, toy_studio, pictures=False)
    expect(page.locator("[data-ref=title]")).to_have_text("Round 1 of 4")
    expect(page.locator("[data-ref=counts]")).to_have_text("Learning from what the model of your taste says…")
    expect(page.locator("[data-ref=hint]")).to_contain_text("Round 2: making images, 4 of 8")
    store.set_progress("updating", 2, 1, 4)
    expect(page.locator("[data-ref=hint]")).to_contain_text("Round 2: changing the model 25 %")
    lock.release()
    store.close()
