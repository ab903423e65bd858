"""Who rated, how fast, in how much agreement: images that come again, raters who are left out, and the list on the Run page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from app.again import repeated, said_again
from app.board import apply_refusal, pairs_of
from app.launch import Launcher, LaunchError
from app.pages import run
from app.raters import LATELY, rated_rounds, raters_value, seconds_of, tired
from ddpo.lock import WorkerLock
from ddpo.records import RatingRow
from ddpo.store import RunStore
from ddpo.taster import Taster
from rewards.human import scores
from tests.conftest import Studio
from tests.test_board import card, look, press
from tests.toys import add_images, filled_run

IDLE = Launcher(())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """A run whose fifth board waits, with one prompt of an earlier one shown once more; Anna rated the first four."""
    made = filled_run(tmp_path / "toy", rounds=4, awaiting=True, repeats=1)
    yield made
    made.close()


def board(client: TestClient, rater: str = "anna") -> dict:
    return client.get("/studio/runs/toy/board", params={"rater": rater}).json()


def send(client: TestClient, sample: int, value: int, rater: str = "anna"):
    event = dict(client_id=f"{sample} {value} {rater}", sample=sample, rater=rater, kind="thumbs", value=value)
    return client.post("/studio/runs/toy/ratings", json=event)


# --- images that come again ---------------------------------------------------------------------------------------------------------


def test_a_prompt_of_an_earlier_board_comes_again_unmarked(client: TestClient, store: RunStore) -> None:
    """Of the board three before, without what was said of it, among the others; for those alone who rated it."""
    shown = board(client)
    again = [image for image in shown["images"] if image["again"]]
    old = {row.id for row in store.samples(2)}
    assert len(again) == 4 and {image["id"] for image in again} <= old and len({image["prompt"] for image in again}) == 1
    assert all(image["rating"] is None and image["others"] == [0, 0] for image in again)
    assert (shown["expected"], sorted(image["position"] for image in shown["images"])) == (12, list(range(12)))
    places = sorted(image["position"] for image in again)
    assert places[0] % 4 == 0 and places == list(range(places[0], places[0] + 4)), "a group like all others"
    assert board(client) == shown, "the same ones when asked again"
    assert board(client, "bob")["expected"] == 8


def test_without_the_setting_and_on_the_first_boards_nothing_comes_again(tmp_path: Path, client: TestClient) -> None:
    with_few = filled_run(tmp_path / "toy", rounds=2, awaiting=True, repeats=1)
    assert board(client)["expected"] == 8
    without = filled_run(tmp_path / "without", rounds=4, awaiting=True)
    assert repeated(without, 5, "anna", 4) == []
    for each in (with_few, without):
        each.close()


def test_what_is_said_again_changes_no_score_and_teaches_nothing(client: TestClient, store: RunStore) -> None:
    row = store.round(2)
    assert row
    before = scores(store.asked(2), store.latest_ratings(2, row.closed_rating))
    again = [image["id"] for image in board(client)["images"] if image["again"]]
    for value, sample in zip((1, -1, 1, -1), again, strict=True):
        assert send(client, sample, value).json()["new"]
    shown = board(client)
    assert [image["rating"]["value"] for image in shown["images"] if image["again"]] == [1, -1, 1, -1]
    assert shown["signal"] == {"prompts": 2, "carrying": 0, "rated": 0} and apply_refusal(store, 5)
    assert scores(store.asked(2), store.latest_ratings(2, row.closed_rating)) == before == scores(store.asked(2), store.last_words(2))
    assert not store.late_rounds()


def test_nothing_else_of_a_closed_round_takes_a_rating(client: TestClient, store: RunStore) -> None:
    again = [image["id"] for image in board(client)["images"] if image["again"]]
    other = next(row.id for row in store.samples(2) if row.id not in again)
    assert send(client, other, 1).status_code == 409 and send(client, again[0], 1, "bob").status_code == 409
    store.close_round(5)
    assert send(client, again[0], 1).status_code == 409


def test_what_comes_late_is_not_said_again(client: TestClient, store: RunStore) -> None:
    """It was said of a board that was before somebody all the time, and is agreement with others, not with oneself."""
    row = store.round(2)
    assert row and row.closed_rating
    again = [image["id"] for image in board(client)["images"] if image["again"]]
    others = [sample.id for sample in store.board(2) if sample.id not in again]
    before = board(client)["images"]
    for sample in (*again[:2], *others[:2]):
        late = dict(client_id=f"late {sample}", sample=sample, rater="anna", kind="thumbs", value=-1, board=2, answered_at=9e9)
        assert client.post("/studio/runs/toy/ratings", json=late).json()["late"]
    assert said_again(store, [2]) == {} and board(client)["images"] == before
    assert all(each["same"] is None for each in raters_value(store)["raters"])
    assert {row.value for sample in others[:2] for row in store.last_words(2)[sample] if row.rater == "anna"} == {-1.0}


def test_agreement_with_oneself(client: TestClient, store: RunStore) -> None:
    """Anna's thumbs of four images, turned round on two of them: each pair that she told apart is the same way, level or the other way round."""
    again = [image["id"] for image in board(client)["images"] if image["again"]]
    said = {each.sample: each.value for each in store.ratings(2) if each.sample in again}
    now = {sample: (-said[sample] if i < 2 else said[sample]) for i, sample in enumerate(again)}  # type: ignore[operator]
    for sample, value in now.items():
        send(client, sample, int(value))
    apart = [(a, b) for i, a in enumerate(again) for b in again[i + 1 :] if said[a] != said[b]]
    same = sum(0.5 if now[a] == now[b] else float((now[a] > now[b]) == (said[a] > said[b])) for a, b in apart)  # type: ignore[operator]
    anna = raters_value(store)["raters"][0]
    assert apart and (anna["name"], anna["pairs"], anna["same"]) == ("anna", len(apart), round(same / len(apart), 3))


def test_images_come_again_on_the_page_and_are_rated_like_all_others(page: Page, studio: Studio) -> None:
    store = filled_run(studio.runs / "toy", rounds=4, awaiting=True, repeats=1)
    lock = WorkerLock(store.folder / "worker.lock")
    page.goto(f"{studio.url}/?run=toy")
    page.get_by_role("tab", name="Rate").click()
    page.locator("[data-ref=rater]").fill("anna")
    page.locator("[data-ref=rater]").press("Enter")
    expect(page.locator(".card[data-state=here]")).to_have_count(12)
    press(page, *"ud" * 6)
    expect(page.locator("[data-ref=counts]")).to_have_text("12 of 12 rated; 3 of 3 prompts teach")
    assert len(store.ratings(5)) == 8 and len(store.ratings(2)) == 12
    expect(card(page, 12)).to_have_attribute("data-mark", "down")
    lock.release()
    store.close()


# --- time ---------------------------------------------------------------------------------------------------------------------------


def acts(*seconds: float, rater: str = "anna") -> list[RatingRow]:
    """Events that took so long each, one after another."""
    found, at = [], 1000.0
    for i, took in enumerate(seconds):
        at += took
        found.append(RatingRow(i + 1, str(i), 1, rater, "thumbs", 1.0, 1000.0, at, at))
    return found


def test_an_act_takes_from_the_one_before_it_and_a_pause_is_none() -> None:
    assert seconds_of(acts(3.0, 2.0, 500.0, 1.0)) == pytest.approx([3.0, 2.0, 1.0])
    late = RatingRow(9, "late", 1, "anna", "thumbs", 1.0, 1004.0, 1006.0, 0.0)
    assert seconds_of([*acts(3.0), late]) == pytest.approx([3.0, 2.0]), "since the image was there"
    assert seconds_of([*acts(3.0), RatingRow(9, "api", 1, "anna", "thumbs", 1.0, None, None, 0.0)]) == pytest.approx([3.0])
    assert seconds_of(acts(3.0, 0.001, 2.0)) == pytest.approx([3.0, 2.0]), "one act of two events"


@pytest.mark.parametrize(
    ("lately", "says"), [(1.0, "took a third of the time"), (1.4, "took half of the time"), (0.5, "a quarter or less"), (2.0, ""), (3.0, "")]
)
def test_who_hurries_is_told(store: RunStore, lately: float, says: str) -> None:
    rows, at = [row.id for row in store.samples(5)], 1000.0
    for i in range(2 * LATELY + 10):
        at += 3.0 if i < LATELY + 10 else lately
        store.add_rating(f"c{i}", rows[i % 8], "carl", "thumbs", 1, 1000.0, at)
    said = tired(store, "carl")
    assert (says in said) if says else not said
    assert tired(store, "anna") == ""


def test_speed_and_agreement_are_told_by_round(tmp_path: Path) -> None:
    """Board 1: Anna takes 2 s an image, Ben 4 s, and they agree on every image; board 2: Ben turns all of it round, and Anna's four of board 1 that
    are shown once more among it take 8 s each and are level: half of the pairs that she told apart. Board 3 is open, and tells nothing."""
    store = filled_run(tmp_path / "run", rounds=0)
    for number in (1, 2, 3):
        add_images(store, number)
    first, second, third = ([row.id for row in store.samples(number)] for number in (1, 2, 3))

    def say(rater: str, samples: list[int], took: float, board: int, values: list[int], what: str = "") -> None:
        for i, (sample, value) in enumerate(zip(samples, values, strict=True), start=1):
            at = 1e6 * board + took * i
            store.add_rating(f"{rater}{board}{what}{i}", sample, rater, "thumbs", value, 1e6 * board, at, board=board)

    up_and_down = [1, -1] * 4
    say("anna", first, 2.0, 1, up_and_down)
    say("ben", first, 4.0, 1, up_and_down)
    store.close_round(1)
    say("anna", second, 2.0, 2, up_and_down)
    say("ben", second, 3.0, 2, [-value for value in up_and_down])
    assert rated_rounds(store).everyone == [(1, 3.0)], "board 2 is open"
    store.close_round(2)
    say("anna", third, 1.0, 3, up_and_down)
    found = rated_rounds(store)
    assert found.seconds == dict(anna=[(1, 2.0), (2, 2.0)], ben=[(1, 4.0), (2, 3.0)])
    assert found.everyone == [(1, 3.0), (2, 2.5)] and found.acts == [(1, 16.0), (2, 16.0)]
    assert found.agreement[0] == (1, 1.0) and found.agreement[1][1] < -0.8 and found.shared == [(1, 8.0), (2, 8.0)]
    assert found.same == [(1, None), (2, None)]
    for i, sample in enumerate(first[:4], start=1):
        store.add_rating(f"again{i}", sample, "anna", "thumbs", 1, 2e6, 2e6 + 16 + 8.0 * i, board=2)
    found = rated_rounds(store)
    assert found.same == [(1, 0.5), (2, None)] and found.pairs == [(1, 4.0), (2, 0.0)]
    assert found.seconds["anna"] == [(1, 2.0), (2, 2.0)] and found.acts == [(1, 16.0), (2, 20.0)], "of the board on which it was said"
    for i, sample in enumerate(first[:4], start=1):
        store.add_rating(f"open{i}", sample, "anna", "thumbs", up_and_down[i - 1], 3e6, 3e6 + 16 + 8.0 * i, board=3)
    assert rated_rounds(store) == found, "said of board 1, but on board 3, which is open"
    store.choose("rater anna", "out")
    left = rated_rounds(store)
    assert left.agreement == [(1, None), (2, None)] and left.same == [(1, None), (2, None)] and left.seconds == found.seconds
    store.close()


# --- raters who are left out --------------------------------------------------------------------------------------------------------


def test_a_rater_who_is_left_out_does_not_count_in_the_open_round(client: TestClient, store: RunStore) -> None:
    ids = [row.id for row in store.samples(5)]
    for rater, values in (("anna", (1, -1)), ("bob", (-1, 1))):
        for sample, value in zip(ids, values, strict=False):
            send(client, sample, value, rater)
    assert board(client)["signal"]["carrying"] == 0, "they level each other out"
    assert run.steer(store, IDLE, "leave_out", rater="bob") is None
    shown = board(client)
    assert shown["signal"]["carrying"] == 1 and shown["images"][0]["others"] == [0, 0] and not shown["left_out"]
    bobs = board(client, "bob")
    assert bobs["left_out"] and bobs["images"][0]["rating"]["value"] == -1, "what he said is still his"
    assert {row.rater for rows in store.latest_ratings(5).values() for row in rows} == {"anna"}
    run.steer(store, IDLE, "halve", rater="bob")
    shown = board(client)
    assert shown["signal"]["carrying"] == 1 and shown["images"][0]["others"] == [-0.5, 0.5], "they do not level each other out"
    assert board(client, "bob")["images"][0]["others"] == [2, 2], "beside him others count twice"
    asked, said = store.asked(5), store.latest_ratings(5)
    assert [scores(asked, said, store.weights)[id].value for id in ids[:2]] == [pytest.approx(1 / 3), pytest.approx(-1 / 3)]
    run.steer(store, IDLE, "count", rater="bob")
    assert board(client)["signal"]["carrying"] == 0
    with pytest.raises(LaunchError, match="Nobody called 'eve'"):
        run.steer(store, IDLE, "leave_out", rater="eve")


def test_the_board_says_how_well_a_taste_is_known(tmp_path: Path, client: TestClient) -> None:
    known = dict(preference_accuracy=0.7, preference_least=0.6)
    with_one = filled_run(tmp_path / "toy", rounds=2, awaiting=True, preference="assist")
    with_one.add_metrics(2, known)
    assert board(client)["taste"] == "Of two images it picks the one that you like better in 70 of 100 cases."
    with_one.close()


def test_who_favours_a_side_is_told(tmp_path: Path) -> None:
    """Of each pair the latest verdict, of those that were decided; sides are by lot, so ten of ten are hardly chance."""
    store = filled_run(tmp_path / "run", rounds=1, awaiting=True, rating="pairs")
    pairs = [pair for row in (1, 2) for pair in pairs_of(store.samples(row), "0")][:12]
    for i, (left, right) in enumerate(pairs):
        store.add_rating(f"first {i}", left, "lefty", "pairs", -1.0, other=right)
        store.add_rating(f"then {i}", left, "lefty", *(("pairs", 1.0) if i < 10 else ("pairs", 0.0) if i < 11 else ("bad", None)), other=right)
        store.add_rating(f"fair {i}", left, "fair", "pairs", 1.0 if i % 2 else -1.0, other=right)
    store.add_rating("thumb", pairs[0][0], "thumbs", "thumbs", 1.0)
    found = {each["name"]: (each["left"], each["decided"], each["left_p"]) for each in raters_value(store)["raters"]}
    assert {name: found[name] for name in ("lefty", "fair", "thumbs")} == dict(lefty=(10, 10, 0.002), fair=(6, 12, 1.0), thumbs=(0, 0, 1.0))
    store.close()


def test_taste_is_of_those_who_count(tmp_path: Path) -> None:
    """Also from rounds that were scored before, and from the very same numbers once the rater counts again. What was learned from stays written."""
    store = filled_run(tmp_path / "run", rounds=2, preference="assist")
    for row in store.samples(2):
        store.add_rating(f"late-{row.id}", row.id, "bob", "thumbs", 1)  # after the round was closed
    taster, written = Taster(store.config, store), store.scores(2, "human")
    before = [(each.row.id, each.said) for each in taster._rated(2)]
    store.choose("rater anna", "out")
    assert taster._rated(2) == []
    store.choose("rater anna", "half")
    assert [(each.row.id, each.said) for each in taster._rated(2)] == before, "what she says alone is what is said"
    store.choose("rater anna", "in")
    store.choose("rater bob", "out")
    assert [(each.row.id, each.said) for each in taster._rated(2)] == before
    assert store.scores(2, "human") == written
    store.close()


def test_raters_are_listed_with_their_agreement(store: RunStore) -> None:
    """Bob says of a round what Anna said: full agreement. Odd names are names."""
    odd = "<script>alert(1)</script>"
    for name, sign in (("bob", 1), (odd, -1)):
        for each in [row for row in store.ratings(5) or store.ratings(4) if row.rater == "anna"]:
            store.add_rating(f"{name} {each.id}", each.sample, name, "thumbs", sign * (each.value or 0))
    assert [each["name"] for each in raters_value(store)["raters"]] == ["anna", "bob", odd]
    assert raters_value(store)["agreement"] == "", "what is said of a closed round is none of its ratings"
    for i, sample in enumerate(row.id for row in store.samples(5)):
        for name, sign in (("anna", 1), ("bob", 1), (odd, -1)):
            store.add_rating(f"{name} open {i}", sample, name, "thumbs", sign * (1 if i % 2 else -1))
    assert "8 images" in raters_value(store)["agreement"] and " 1 (" not in raters_value(store)["agreement"]
    store.choose(f"rater {odd}", "out")
    assert raters_value(store)["agreement"].startswith("Agreement between raters: 1 (")
    assert [each["counts"] for each in raters_value(store)["raters"]] == [True, True, False]


def test_a_rater_is_left_out_on_the_run_page(page: Page, studio: Studio) -> None:
    store = filled_run(studio.runs / "toy", rounds=1, awaiting=True)
    store.add_rating("b", store.samples(2)[0].id, "<b>bob</b>", "thumbs", 1)
    page.goto(f"{studio.url}/?run=toy")
    panel = page.locator("#studio-panel")
    expect(panel.locator(".panel-raters li")).to_have_count(2)
    expect(panel.locator(".panel-raters")).to_contain_text("<b>bob</b>")
    choice = panel.get_by_label("How much <b>bob</b> counts")
    expect(choice).to_have_value("count")
    for value, weights, absent in (("leave_out", {}, {"<b>bob</b>"}), ("halve", {"<b>bob</b>": 0.5}, set()), ("count", {}, set())):
        choice.select_option(value)
        expect(choice).to_have_attribute("data-now", value)
        expect(choice).to_have_value(value)
        assert store.weights == weights and store.left_out == absent
    look(page, studio)
    store.close()
