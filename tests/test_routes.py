"""The routes that the rating board talks to, without a browser."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ddpo.lock import WorkerLock
from ddpo.store import RunStore
from tests.toys import ODD_PROMPTS, add_images, add_pictures, filled_run, picture


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """A run whose second round of eight images, four of each prompt, waits for ratings."""
    made = filled_run(tmp_path / "toy", rounds=1, awaiting=True)
    yield made
    made.close()


@pytest.fixture
def worker(store: RunStore) -> Iterator[WorkerLock]:
    """What makes the run look alive."""
    lock = WorkerLock(store.folder / "worker.lock")
    yield lock
    lock.release()


def event(store: RunStore, position: int = 0, number: int = 2, **changes: object) -> dict[str, object]:
    sample = store.samples(number)[position]
    return dict(client_id=f"c{number}-{position}", sample=sample.id, rater="me", kind="thumbs", value=1, shown_at=1.0, answered_at=2.0) | changes


def rate(client: TestClient, store: RunStore, values: list[int]) -> None:
    events = [event(store, i, value=value) for i, value in enumerate(values)]
    assert all(each["status"] == 200 for each in client.post("/studio/runs/toy/ratings", json=events).json()["results"])


# --- images ---------------------------------------------------------------------------------------------------------------------


def test_an_image_is_served_for_ever_under_its_hash(client: TestClient, store: RunStore) -> None:
    board = client.get("/studio/runs/toy/board").json()
    first = board["images"][0]
    answer = client.get(first["url"])
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert answer.content == (store.folder / store.samples(2)[0].image).read_bytes()
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert first["url"].endswith(f"?v={first['image']}") and first["image"] in answer.headers["etag"]
    assert client.get(first["url"], headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..", ".hidden", "nothing", "a b", "x" * 100, "caf%C3%A9"])
@pytest.mark.parametrize("what", ["image/1", "board"])
def test_a_name_that_is_no_run_is_not_found(client: TestClient, store: RunStore, name: str, what: str) -> None:
    assert client.get(f"/studio/runs/{name}/{what}").status_code == 404


@pytest.mark.parametrize("sample", ["0", "-1", "999", str(2**63), "9" * 60])
def test_an_image_that_is_not_there_is_not_found(client: TestClient, store: RunStore, sample: str) -> None:
    assert client.get(f"/studio/runs/toy/image/{sample}").status_code == 404


def test_an_image_whose_file_is_gone_is_not_found(client: TestClient, store: RunStore) -> None:
    shutil.rmtree(store.folder / "samples")
    assert client.get(f"/studio/runs/toy/image/{store.samples(2)[0].id}").status_code == 404


# --- the board ------------------------------------------------------------------------------------------------------------------


def test_the_board_shows_the_newest_round(client: TestClient, store: RunStore, worker: WorkerLock) -> None:
    board = client.get("/studio/runs/toy/board").json()
    assert (board["round"], board["rounds"], board["expected"], board["per_prompt"]) == (2, 3, 8, 4)
    assert (board["state"], board["alive"], board["awaiting"], board["closed"], board["can_apply"]) == ("awaiting", True, True, False, False)
    assert [image["position"] for image in board["images"]] == list(range(8))
    assert all(image["rating"] is None and image["others"] == [0, 0] for image in board["images"])
    assert board["signal"] == {"prompts": 2, "carrying": 0, "rated": 0}


def test_the_board_tells_own_ratings_from_those_of_others(client: TestClient, store: RunStore) -> None:
    store.add_rating("a", store.samples(2)[0].id, "anna", "thumbs", -1)
    store.add_rating("b", store.samples(2)[0].id, "me", "thumbs", 1)
    store.add_rating("c", store.samples(2)[1].id, "me", "skip", None)
    first, second, *_ = client.get("/studio/runs/toy/board", params={"rater": "me"}).json()["images"]
    assert (first["rating"], first["others"]) == ({"kind": "thumbs", "value": 1.0}, [-1.0, 1])
    assert second["rating"] == {"kind": "skip", "value": None}
    assert client.get("/studio/runs/toy/board", params={"rater": "anna"}).json()["images"][0]["rating"]["value"] == -1


def test_a_board_that_is_known_already_is_not_sent_again(client: TestClient, store: RunStore) -> None:
    revision = client.get("/studio/runs/toy/board").json()["revision"]
    assert client.get("/studio/runs/toy/board", params={"since": revision}).status_code == 204
    rate(client, store, [1])
    assert client.get("/studio/runs/toy/board", params={"since": revision}).status_code == 200


def test_a_worker_that_dies_changes_the_board(client: TestClient, store: RunStore) -> None:
    lock = WorkerLock(store.folder / "worker.lock")
    revision = client.get("/studio/runs/toy/board").json()["revision"]
    lock.release()
    assert client.get("/studio/runs/toy/board", params={"since": revision}).json()["state"] == "interrupted"


def test_a_run_made_again_under_its_name_is_another_board(client: TestClient, store: RunStore, tmp_path: Path) -> None:
    old = client.get("/studio/runs/toy/board").json()
    shutil.rmtree(tmp_path / "toy")
    assert client.get("/studio/runs/toy/board").status_code == 404
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.toys.picture", lambda seed: picture(seed + 5000))
        again = filled_run(tmp_path / "toy", rounds=1, awaiting=True)
    new = client.get("/studio/runs/toy/board", params={"since": old["revision"]}).json()
    assert new["images"][0]["id"] == old["images"][0]["id"] and new["images"][0]["url"] != old["images"][0]["url"]
    late = event(again, client_id="late", image=old["images"][0]["image"])
    assert client.post("/studio/runs/toy/ratings", json=late).status_code == 404, "a rating of the old run's image"
    assert not [row for row in again.ratings() if row.client_id == "late"]
    again.close()


def test_odd_prompts_come_through_unchanged(client: TestClient, tmp_path: Path) -> None:
    store = filled_run(tmp_path / "odd", rounds=0, awaiting=True, images_per_prompt=2, prompts=ODD_PROMPTS)
    prompts = [row.prompt for row in store.samples(1)]
    store.close()
    assert [image["prompt"] for image in client.get("/studio/runs/odd/board").json()["images"]] == prompts


def test_an_automatic_run_shows_its_scores(client: TestClient, tmp_path: Path) -> None:
    filled_run(tmp_path / "auto", rounds=2, reward="jpeg_compressibility").close()
    board = client.get("/studio/runs/auto/board").json()
    assert not board["rated_by_people"] and all(image["score"] < 0 for image in board["images"])


@pytest.mark.alone
def test_the_board_is_a_cheap_read(client: TestClient, store: RunStore) -> None:
    """A poll that has nothing new costs a few milliseconds; the bound leaves room for a busy machine."""
    revision = client.get("/studio/runs/toy/board").json()["revision"]
    times = []
    for _ in range(40):
        started = time.perf_counter()
        client.get("/studio/runs/toy/board", params={"since": revision})
        times.append(time.perf_counter() - started)
    assert sorted(times)[20] < 0.05


# --- ratings --------------------------------------------------------------------------------------------------------------------


def test_a_rating_is_a_row_when_it_is_acknowledged(client: TestClient, store: RunStore) -> None:
    answer = client.post("/studio/runs/toy/ratings", json=event(store))
    assert answer.status_code == 200 and answer.json() == {"client_id": "c2-0", "saved": True, "new": True, "late": False}
    row = store.ratings(2)[-1]
    assert (row.client_id, row.rater, row.kind, row.value, row.shown_at, row.answered_at) == ("c2-0", "me", "thumbs", 1.0, 1.0, 2.0)


def test_a_rating_sent_twice_counts_once(client: TestClient, store: RunStore) -> None:
    client.post("/studio/runs/toy/ratings", json=event(store))
    assert client.post("/studio/runs/toy/ratings", json=event(store)).json()["new"] is False
    assert len(store.ratings(2)) == 1


def test_a_list_is_taken_in_order_and_answered_one_by_one(client: TestClient, store: RunStore) -> None:
    events = [event(store, client_id="a"), event(store, client_id="b", value=7), event(store, client_id="c", value=-1), event(store, client_id="a")]
    results = client.post("/studio/runs/toy/ratings", json=events).json()["results"]
    assert [each["status"] for each in results] == [200, 422, 200, 200]
    assert [(row.client_id, row.value) for row in store.ratings(2)] == [("a", 1.0), ("c", -1.0)]
    assert store.latest_ratings(2)[store.samples(2)[0].id][0].value == -1


def test_what_is_sent_again_after_a_refused_write_keeps_its_order(client: TestClient, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database refuses the first of two ratings of one image: the second, the person's last word, counts in the end."""
    add, failures = RunStore.add_rating, [sqlite3.OperationalError("database is locked")]

    def once(*arguments: Any, **more: Any) -> bool:
        if failures:
            raise failures.pop()
        return add(*arguments, **more)

    monkeypatch.setattr(RunStore, "add_rating", once)
    events = [event(store, client_id="a"), event(store, client_id="b", value=-1)]
    for wanted in ([503, 503], [200, 200]):
        results = client.post("/studio/runs/toy/ratings", json=events).json()["results"]
        assert [(each["client_id"], each["status"]) for each in results] == list(zip("ab", wanted, strict=True))
    assert store.latest_ratings(2)[store.samples(2)[0].id][0].value == -1


def test_a_rating_whose_answer_was_lost_is_not_called_refused_when_somebody_has_applied_since(client: TestClient, store: RunStore) -> None:
    client.post("/studio/runs/toy/ratings", json=event(store))
    store.close_round(2)
    answer = client.post("/studio/runs/toy/ratings", json=[event(store), event(store, client_id="other")]).json()["results"]
    assert [each["status"] for each in answer] == [200, 409] and answer[0]["new"] is False
    assert len(store.ratings(2)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        dict(board=0), dict(board="2"), dict(board=True),
        dict(kind="thumbs", value=0), dict(kind="thumbs", value=True), dict(kind="thumbs", value=None), dict(kind="stars", value=6),
        dict(kind="stars", value=2.5), dict(kind="skip", value=1), dict(kind="love", value=None), dict(kind=["thumbs"]), dict(kind=None),
        dict(value="1"), dict(value=10**400), dict(client_id=""), dict(client_id="x" * 81), dict(client_id=5), dict(rater=""), dict(rater="x" * 81),
        dict(rater="a\x00b"), dict(rater="\ud800"), dict(rater=None), dict(shown_at="now"), dict(answered_at=-1), dict(answered_at=1e300),
    ],
)  # fmt: skip
def test_what_is_no_rating_is_refused(client: TestClient, store: RunStore, changes: dict[str, object]) -> None:
    body = json.dumps(event(store, **changes)).encode()
    assert client.post("/studio/runs/toy/ratings", content=body, headers={"Content-Type": "application/json"}).status_code == 422
    assert not store.ratings(2)


def test_a_run_that_cannot_be_read_just_now_is_not_called_gone(client: TestClient, tmp_path: Path) -> None:
    filled_run(tmp_path / "other", rounds=0, awaiting=True).close()
    (tmp_path / "other" / "run.db").write_text("no database")
    assert client.post("/studio/runs/other/ratings", json=[]).status_code == 503
    assert client.post("/studio/runs/nothing/ratings", json=[]).status_code == 404


@pytest.mark.parametrize(
    ("rater", "taken"),
    [("Anna\U0001fae8", True), ("\u00c4nne\u00a0B", True), ("A\x00", False), ("A\u202eB", False), ("A\u2028B", False), ("", False)],
)
def test_people_have_whatever_names_they_like_but_for_signs_that_nobody_sees(client: TestClient, store: RunStore, rater: str, taken: bool) -> None:
    assert client.post("/studio/runs/toy/ratings", json=event(store, rater=rater)).status_code == (200 if taken else 422)


@pytest.mark.parametrize("sample", [0, -1, 999, 2**70, "1", 1.5, None, True])
def test_a_rating_of_no_image_is_refused(client: TestClient, store: RunStore, sample: object) -> None:
    assert client.post("/studio/runs/toy/ratings", json=event(store, sample=sample)).status_code == 404


@pytest.mark.parametrize("board", [None, 3])
def test_a_closed_round_takes_no_rating(client: TestClient, store: RunStore, board: int | None) -> None:
    store.close_round(2)
    answer = client.post("/studio/runs/toy/ratings", json=event(store, board=board))
    assert answer.status_code == 409 and "applied already" in answer.json()["detail"]
    assert client.post("/studio/runs/toy/ratings", json=event(store, number=1, board=board)).status_code == 409
    assert not store.ratings(2)


def test_what_comes_late_is_kept_and_changes_no_score(client: TestClient, store: RunStore) -> None:
    """As of a tab that was offline while somebody else pressed Enter. What had arrived before is not late when it is sent once more."""
    rate(client, store, [1, -1])
    store.close_round(2)
    row = store.round(2)
    assert row and not store.late_rounds() and [len(each) for each in store.last_words(2).values()] == [1, 1]
    sent = [event(store, 0, board=2), event(store, 2, board=2), event(store, 1, client_id="again", value=1, board=2)]
    answer = client.post("/studio/runs/toy/ratings", json=sent).json()
    assert [(each["status"], each["new"], each["late"]) for each in answer["results"]] == [(200, False, False), (200, True, True), (200, True, True)]
    ids = [sample.id for sample in store.samples(2)]
    counted = store.latest_ratings(2, row.closed_rating)
    assert {id: said[0].value for id, said in counted.items()} == {ids[0]: 1.0, ids[1]: -1.0}
    assert {id: said[0].value for id, said in store.last_words(2).items()} == {ids[0]: 1.0, ids[1]: 1.0, ids[2]: 1.0} and store.late_rounds() == {2}
    older = event(store, 0, client_id="older", value=-1, board=2, answered_at=1.5)  # said before what had arrived when the board was applied
    assert client.post("/studio/runs/toy/ratings", json=older).json()["late"] and store.last_words(2)[ids[0]][0].value == 1.0


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
@pytest.mark.parametrize("route", ["ratings", "requests"])
def test_another_site_cannot_post(client: TestClient, store: RunStore, route: str, kind: str) -> None:
    """These are the content types that a browser sends to other sites without asking them first."""
    body = json.dumps(event(store) | {"kind": "thumbs"}).encode()
    assert client.post(f"/studio/runs/toy/{route}", content=body, headers={"Content-Type": kind} if kind else {}).status_code == 415
    assert not store.ratings(2) and not store.pending_requests()


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"value": NaN}', b"null", b"5", b'"text"', b"\xff\xfe"])
def test_what_is_no_event_is_refused(client: TestClient, store: RunStore, body: bytes) -> None:
    assert client.post("/studio/runs/toy/ratings", content=body, headers={"Content-Type": "application/json"}).status_code == 422


def test_too_much_is_refused(client: TestClient, store: RunStore) -> None:
    assert client.post("/studio/runs/toy/ratings", json=[event(store)] * 513).status_code == 413
    assert client.post("/studio/runs/toy/ratings", json={"rater": "x" * 600_000}).status_code == 413


# --- requests -------------------------------------------------------------------------------------------------------------------


def test_apply_needs_a_difference_within_a_prompt(client: TestClient, store: RunStore, worker: WorkerLock) -> None:
    ask = dict(kind="apply", payload=dict(round=2))
    rate(client, store, [1, 1, 1, 1, -1, -1])
    refused = client.post("/studio/runs/toy/requests", json=ask)
    assert refused.status_code == 409 and "differently" in refused.json()["detail"]
    client.post("/studio/runs/toy/ratings", json=event(store, 3, client_id="more", value=-1))
    assert client.get("/studio/runs/toy/board").json()["can_apply"]
    assert client.post("/studio/runs/toy/requests", json=ask).json()["new"]
    assert [(r.kind, r.payload) for r in store.pending_requests()] == [("apply", {"round": 2})]
    board = client.get("/studio/runs/toy/board").json()
    assert board["applying"] and not board["can_apply"]


def test_a_request_is_not_made_twice(client: TestClient, store: RunStore) -> None:
    first = client.post("/studio/runs/toy/requests", json={"kind": "pause"}).json()
    assert client.post("/studio/runs/toy/requests", json={"kind": "pause"}).json() == {"id": first["id"], "new": False}
    store.add_event("answer", "paused", first["id"])
    assert client.post("/studio/runs/toy/requests", json={"kind": "pause"}).json()["new"], "the first was answered"


def test_another_reward_is_not_asked_for_here(client: TestClient, store: RunStore) -> None:
    """The Run page and the named call check what it names."""
    assert client.post("/studio/runs/toy/requests", json={"kind": "reward"}).status_code == 422
    assert not store.pending_requests()


def test_a_late_enter_does_not_close_the_next_round(client: TestClient, store: RunStore) -> None:
    rate(client, store, [1, -1])
    assert client.post("/studio/runs/toy/requests", json=dict(kind="apply", payload=dict(round=1))).status_code == 409
    store.close_round(2)
    assert client.post("/studio/runs/toy/requests", json=dict(kind="apply", payload=dict(round=2))).status_code == 409
    assert not store.pending_requests()


def test_a_round_that_is_still_being_made_cannot_be_applied(client: TestClient, tmp_path: Path) -> None:
    store = filled_run(tmp_path / "toy", rounds=1)
    store.start_round(2)
    add_pictures(store, 2, range(2), ["a cat"] * 2, range(2), [picture(1), picture(2)])
    rate(client, store, [1, -1])
    assert client.post("/studio/runs/toy/requests", json=dict(kind="apply", payload=dict(round=2))).status_code == 409
    store.close()


@pytest.mark.parametrize(
    "body", [{}, [], {"kind": "explode"}, {"kind": None}, {"kind": ["apply"]}, {"kind": "apply"}, {"kind": "apply", "payload": 3}]
)
def test_what_is_no_request_is_refused(client: TestClient, store: RunStore, body: object) -> None:
    assert client.post("/studio/runs/toy/requests", json=body).status_code == 422


def test_a_new_round_is_a_new_board(client: TestClient, store: RunStore) -> None:
    store.close_round(2)
    for mark in ("scored", "updated", "checkpointed"):
        store.mark(2, mark)
    add_images(store, 3)
    assert client.get("/studio/runs/toy/board").json()["round"] == 3
