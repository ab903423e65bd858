"""Rating by picking, by best and worst, and by pairs, in a real browser and at the routes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Page, expect

import app.widgets.board
from app.board import pairs_of
from ddpo.config import ConfigError, RunConfig
from ddpo.lock import WorkerLock
from ddpo.records import RatingRow, SampleRow
from ddpo.store import RunStore
from rewards.human import VALUES, scores
from tests.conftest import Studio
from tests.test_board import SKIP, UP, card, current, latest, look, press
from tests.toys import add_images, add_pictures, filled_run, picture

OpenBoard = Callable[..., RunStore]
GOOD, BEST = ("best", 1.0), ("best", 2.0)
TOP, END = ("best-worst", 1.0), ("best-worst", -1.0)


@pytest.fixture
def open_board(studio: Studio, page: Page) -> Iterator[OpenBoard]:
    """Make a run whose first round waits for ratings, with a worker that seems to live, and open its board."""
    stores: list[RunStore] = []
    locks: list[WorkerLock] = []

    def make(**changes: object) -> RunStore:
        stores.append(filled_run(studio.runs / "toy", rounds=0, awaiting=True, **changes))  # type: ignore[arg-type]
        locks.append(WorkerLock(stores[-1].folder / "worker.lock"))
        look(page, studio, pictures=False)
        expect(page.locator(".card[data-state=here]")).to_have_count(2 if stores[-1].rating == "pairs" else 8)
        return stores[-1]

    yield make
    for lock in locks:
        lock.release()
    for store in stores:
        store.close()


def counts(page: Page, text: str) -> None:
    expect(page.locator("[data-ref=counts]")).to_have_text(text)


def judge(page: Page, *keys: str) -> None:
    """Press keys that judge a pair, each once both its pictures are there and until the verdict is acknowledged."""
    for key in keys:
        expect(page.locator(".pair .card[data-state=here]")).to_have_count(2)
        press(page, key)


def verdicts(store: RunStore, number: int = 1) -> list[tuple[str, float | None]]:
    """What is said of pairs now."""
    return [(row.kind, row.value) for rows in store.latest_ratings(number).values() for row in rows if row.other is not None]


# --- picking ------------------------------------------------------------------------------------------------------------------------


def test_the_good_ones_are_picked_and_the_best_is_starred(page: Page, open_board: OpenBoard) -> None:
    """A star settles its prompt: the keys go on in the next one. Another star makes the first a good one, and one undo takes both back."""
    store = open_board(rating="best")
    press(page, "g", "b")
    assert latest(store) == [GOOD, BEST] + [None] * 6
    assert current(page) == 5, "the rest of the prompt is passed over"
    expect(card(page, 3)).to_have_attribute("data-mark", "passed")
    expect(card(page, 3)).to_have_attribute("aria-label", "image 3 of 8, a horse, passed over")
    counts(page, "4 of 8 rated; 1 of 2 prompts teaches")
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert current(page) == 1
    with page.expect_response(lambda answer: answer.url.endswith("/ratings")):
        page.keyboard.press("2")
    expect(page.locator("[data-ref=saved]")).to_have_text("saved")
    assert latest(store)[:2] == [BEST, GOOD], "a prompt has one best"
    page.keyboard.press("z")
    expect(card(page, 2)).to_have_attribute("data-mark", "best")
    expect(page.locator("[data-ref=saved]")).to_have_text("saved")
    assert latest(store)[:2] == [GOOD, BEST] and current(page) == 1
    press(page, "z", "z")
    assert latest(store) == [None] * 8
    expect(page.locator(".card[data-mark='']")).to_have_count(8)


def test_enter_applies_picks(page: Page, open_board: OpenBoard) -> None:
    store = open_board(rating="best")
    page.keyboard.press("Enter")
    expect(page.locator("[data-ref=live]")).to_contain_text("Nothing to learn from yet")
    press(page, "b", "Space", "1")  # in the second prompt: one skipped, one good, two open
    page.keyboard.press("Enter")
    expect(page.locator("[data-ref=hint]")).to_have_text("2 unrated: press Enter again to apply.")
    press(page, "b")
    expect(page.locator("[data-ref=hint]")).to_have_text("All rated. Press Enter and it learns from them.")
    with page.expect_response(lambda answer: answer.url.endswith("/requests")):
        page.keyboard.press("Enter")
    assert [(r.kind, r.payload) for r in store.pending_requests()] == [("apply", {"round": 1})]


# --- best and worst -----------------------------------------------------------------------------------------------------------------


def test_best_and_worst_of_each_set(page: Page, open_board: OpenBoard) -> None:
    """Eight images of one prompt are two sets of four. Both ends named, the rest is in between, and the keys go on in the next set."""
    store = open_board(rating="best-worst", images_per_prompt=8)
    expect(page.locator(".group")).to_have_count(2)
    press(page, "b", "w")
    assert latest(store)[:3] == [TOP, END, None] and current(page) == 5
    expect(card(page, 3)).to_have_attribute("aria-label", "image 3 of 8, a dog, neither best nor worst")
    counts(page, "4 of 8 rated; 1 of 1 prompt teaches")
    press(page, "1", "Space", "2")
    assert latest(store)[4:] == [END, SKIP, TOP, None] and current(page) == 7, "nothing is left open"
    before = latest(store)
    page.keyboard.press("ArrowLeft")
    place = current(page)
    press(page, "w")
    expect(page.locator("[data-ref=saved]")).to_have_text("saved")
    ends = [i for i, said in enumerate(latest(store)) if said == END]
    assert place - 1 in ends and [i // 4 for i in ends] == [0, 1], "each set has one end, wherever it was before"
    press(page, "z")
    expect(page.locator("[data-ref=saved]")).to_have_text("saved")
    assert latest(store) == before


def test_picks_and_ends_by_mouse(page: Page, open_board: OpenBoard) -> None:
    store = open_board(rating="best-worst")

    def click(number: int, name: str) -> None:
        with page.expect_response(lambda answer: answer.url.endswith("/ratings")):
            card(page, number).get_by_role("button", name=name).click()

    click(2, "The worst of its set (W)")
    click(4, "The best of its set (B)")
    expect(card(page, 4).locator(".rate.best")).to_have_attribute("aria-pressed", "true")
    click(4, "The best of its set (B)")  # once more takes it back
    assert latest(store)[:4] == [None, END, None, None]
    expect(card(page, 1)).to_have_attribute("data-mark", "")


# --- pairs --------------------------------------------------------------------------------------------------------------------------


def rows(*prompts: str) -> list[SampleRow]:
    return [SampleRow(id, 1, id, prompt, id, "", 0.0) for id, prompt in enumerate(prompts, start=10)]


def test_few_pairs_connect_the_images_of_each_prompt() -> None:
    """n - 1 of them, within prompts; the same ones when asked again and while more images come; other ones for another rater, and sides at random."""
    images = rows(*["a cat"] * 12, *["a dog"] * 4)
    pairs = pairs_of(images, "0 anna")
    assert len(pairs) == 11 + 3 and pairs == pairs_of(images, "0 anna") != pairs_of(images, "0 bob")
    assert all((a < 22) == (b < 22) for a, b in pairs)
    assert pairs_of(images[:7], "0 anna") == pairs[:6]
    group = {image.id: image.id for image in images}
    for a, b in pairs:
        one, other = group[a], group[b]
        group = {image: one if which == other else which for image, which in group.items()}
    assert len(set(group.values())) == 2, "all connected"
    many = [pair for seed in range(50) for pair in pairs_of(images, str(seed))]
    newer_left = sum(a > b for a, b in many) / len(many)
    assert abs(newer_left - 0.5) < 5 * 0.5 / len(many) ** 0.5


def test_pairs_are_judged_by_keys_alone(page: Page, open_board: OpenBoard) -> None:
    store = open_board(rating="pairs")
    counts(page, "6 pairs to judge")
    judge(page, "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Space")
    assert verdicts(store) == [("pairs", 1.0), ("pairs", -1.0), ("pairs", 0.0), ("bad", None), ("skip", None)]
    counts(page, "4 of 6 judged, 1 skipped; 1 of 2 prompts teaches")
    expect(page.get_by_role("group", name="pair 6 of 6, a fox, not judged")).to_be_focused()
    shown = pairs_of(store.samples(1), "0 me")
    events = store.ratings(1)
    assert [(row.sample, row.other) for row in events] == shown[:5], "each names both images, the left one first"
    assert all(row.shown_at and row.answered_at and row.shown_at <= row.answered_at for row in events)
    judge(page, "z")
    expect(page.get_by_role("group", name="pair 5 of 6, a fox, not judged")).to_be_focused()
    page.keyboard.press("p")
    expect(page.get_by_role("group", name="pair 4 of 6, a fox, judged: both bad")).to_be_visible()
    judge(page, "1")
    assert verdicts(store) == [("pairs", 1.0), ("pairs", -1.0), ("pairs", 0.0), ("pairs", 1.0)]
    judge(page, "t", "2")
    expect(page.locator("[data-ref=hint]")).to_have_text("All rated. Press Enter and it learns from them.")
    with page.expect_response(lambda answer: answer.url.endswith("/requests")):
        page.keyboard.press("Enter")
    assert [(r.kind, r.payload) for r in store.pending_requests()] == [("apply", {"round": 1})]


def test_nobody_judges_the_pairs_of_who_sat_here_before(page: Page, open_board: OpenBoard) -> None:
    """Everybody has pairs of their own: under a new name keys wait for them, and say so."""
    store = open_board(rating="pairs")
    judge(page, "ArrowLeft")
    page.route("**/board?rater=bea*", lambda route: None)
    page.locator("[data-ref=rater]").fill("bea")
    page.locator("[data-ref=rater]").press("Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-ref=live]")).to_have_text("One moment: your own images are coming.")
    page.unroute_all(behavior="ignoreErrors")
    assert verdicts(store) == [("pairs", 1.0)] and {row.rater for row in store.ratings(1)} == {"me"}


def test_pairs_by_mouse_and_on_a_phone(page: Page, open_board: OpenBoard, browser: Browser, studio: Studio) -> None:
    store = open_board(rating="pairs")

    def click(target) -> None:
        expect(target.page.locator(".pair .card[data-state=here]")).to_have_count(2)
        with target.page.expect_response(lambda answer: answer.url.endswith("/ratings")):
            target.click()

    click(page.locator(".pair .frame").nth(1))
    click(page.get_by_role("button", name="Both are bad (↓)"))
    assert verdicts(store) == [("pairs", -1.0), ("bad", None)]
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone = context.new_page()
    look(phone, studio, pictures=False)
    click(phone.locator(".pair .frame").first)
    assert verdicts(store)[2] == ("pairs", 1.0), "it goes on where the other page was"
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    for button in phone.locator(".pair .rate").all():
        box = button.bounding_box()
        assert box and box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 390
    context.close()


def test_verdicts_wait_through_an_outage_and_a_reload(page: Page, open_board: OpenBoard, studio: Studio) -> None:
    store = open_board(rating="pairs")
    judge(page, "ArrowLeft")
    page.route("**/ratings", lambda route: route.abort())
    expect(page.locator(".pair .card[data-state=here]")).to_have_count(2)
    page.keyboard.press("ArrowDown")
    expect(page.locator("[data-ref=saved]")).to_have_text("offline: 1 rating waits here")
    look(page, studio, pictures=False)
    counts(page, "2 of 6 judged; 1 of 2 prompts teaches")
    page.unroute("**/ratings")
    expect(page.locator("[data-ref=saved]")).to_have_text("saved")
    assert verdicts(store) == [("pairs", 1.0), ("bad", None)]


def test_pairs_come_with_their_images(page: Page, open_board: OpenBoard, studio: Studio) -> None:
    store = filled_run(studio.runs / "made", rounds=0, rating="pairs")
    lock = WorkerLock(store.folder / "worker.lock")
    store.start_round(1)
    store.set_progress("sampling", 1, 0, 8)
    page.goto(f"{studio.url}/?run=made")
    page.get_by_role("tab", name="Rate").click()
    expect(page.get_by_role("group", name="pair still to come")).to_be_visible()
    page.keyboard.press("n")  # to no next one
    add_pictures(store, 1, range(3), ["a cat"] * 3, range(3), [picture(n) for n in range(3)])
    expect(page.get_by_role("group", name="pair 1 of 2, a cat, not judged")).to_be_visible()
    judge(page, "ArrowLeft")
    add_pictures(store, 1, range(3, 8), ["a cat"] + ["a dog"] * 4, range(3, 8), [picture(n) for n in range(3, 8)])
    store.set_progress("awaiting", 1, 0, 8)
    counts(page, "1 of 6 judged; 1 of 2 prompts teaches")
    expect(page.get_by_role("group", name="pair 2 of 6, a cat, not judged")).to_be_visible()
    lock.release()
    store.close()


def test_who_has_judged_all_pairs_that_are_there_is_shown_the_next_one(page: Page, studio: Studio) -> None:
    store = filled_run(studio.runs / "made", rounds=0, rating="pairs")
    lock = WorkerLock(store.folder / "worker.lock")
    store.start_round(1)
    store.set_progress("sampling", 1, 2, 8)
    add_pictures(store, 1, range(2), ["a cat"] * 2, range(2), [picture(n) for n in range(2)])
    page.goto(f"{studio.url}/?run=made")
    page.get_by_role("tab", name="Rate").click()
    expect(page.get_by_role("group", name="pair 1 of 1, a cat, not judged")).to_be_visible()
    expect(page.locator(".card[data-state=here]")).to_have_count(2)
    judge(page, "ArrowLeft")
    expect(page.get_by_role("group", name="pair 1 of 1, a cat, judged: left is better")).to_be_visible()
    add_pictures(store, 1, range(2, 4), ["a cat"] * 2, range(2, 4), [picture(n) for n in range(2, 4)])
    expect(page.get_by_role("group", name="pair 2 of 3, a cat, not judged")).to_be_visible()
    expect(page.locator("[data-ref=live]")).to_have_text("The next pair is here.")
    lock.release()
    store.close()


# --- what it comes to ---------------------------------------------------------------------------------------------------------------


def as_json(rating: tuple[str, float | None] | None) -> dict[str, object] | None:
    return rating and dict(kind=rating[0], value=rating[1])


@pytest.mark.parametrize("seed", range(6))
def test_the_board_makes_the_same_of_marks_and_verdicts_as_the_server(page: Page, seed: int) -> None:
    """One rater's opinions, from everything that can be said at random, by the page's own functions; what nobody judged has none on both sides."""
    draw = random.Random(seed)
    asked = {id: f"prompt {id // 8}" for id in range(8, 24)}
    sayings = [None, ("skip", None), *((kind, value) for kind in ("thumbs", "best", "best-worst") for value in VALUES[kind])]
    verdicts = [None, ("skip", None), ("bad", None), *(("pairs", value) for value in VALUES["pairs"])]
    marks = {id: draw.choice(sayings) for id in asked}
    said = {pair: draw.choice(verdicts) for pair in combinations(range(8, 14), 2)}
    told: dict[int, list[RatingRow]] = {}
    for (id, other), rating in {**{(id, None): mark for id, mark in marks.items()}, **said}.items():
        if rating:
            told.setdefault(id, []).append(RatingRow(0, "", id, "me", *rating, None, None, 0.0, other))
    images = [dict(id=id, prompt=asked[id], set=f"{asked[id]} {id % 8 // 4}", rating=as_json(marks[id]), others=[0, 0]) for id in asked]
    pairs = [dict(left=a, right=b, rating=as_json(rating)) for (a, b), rating in said.items()]
    model = (Path(app.widgets.board.__file__).parent / "model.js").read_text(encoding="utf-8")
    found = page.evaluate(
        f"""([images, pairs]) => {{ {model}
            const of = new Map(images.map((image) => [image.id, image]));
            compare(images, pairs.map(({{ left, right, rating }}) => ({{ left: of.get(left), right: of.get(right), rating }})));
            return images.map((image) => [image.id, score(image)]);
        }}""",
        [images, pairs],
    )
    expected = {id: score.value for id, score in scores(asked, told).items()}
    assert {id: value for id, value in found if value is not None} == pytest.approx({id: v for id, v in expected.items() if v is not None}, abs=1e-7)
    assert any(value is not None for value in expected.values())


# --- another mode -------------------------------------------------------------------------------------------------------------------


def test_the_mode_changes_on_the_page_and_what_was_said_stays(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    press(page, "u", "d")
    page.get_by_label("How you rate").select_option(label="Good ones and the best")
    expect(page.locator(".board[data-mode=best]")).to_be_visible()
    expect(page.locator(".card[data-state=here]")).to_have_count(8)
    press(page, "b")
    assert latest(store)[:3] == [UP, ("thumbs", -1.0), BEST], "the first without a mark"
    expect(card(page, 4)).to_have_attribute("data-mark", "passed")
    page.get_by_label("How you rate").select_option(label="Pairs")
    counts(page, "6 pairs to judge")
    judge(page, "ArrowLeft")
    assert store.rating == "pairs" and store.config.rating == "thumbs"
    page.reload()
    page.get_by_role("tab", name="Rate").click()
    counts(page, "1 of 6 judged; 1 of 2 prompts teaches")
    add = store.latest_ratings(1)
    assert sum(map(len, add.values())) == 4, "two thumbs, a star and a verdict"
    page.keyboard.press("?")
    expect(page.locator("[data-ref=help]")).to_contain_text("the left one is better")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("mode", "keys", "marks"),
    [("best", "gb", {"good", "best"}), ("best-worst", "bw", {"best", "worst"}), ("pairs", "tp", {"tie"}), ("pairs", "bp", {"bad"})],
)
def test_marks_have_contrast(page: Page, open_board: OpenBoard, scheme: str, mode: str, keys: str, marks: set[str]) -> None:
    """WCAG AA, as on the other boards: 4.5 to 1."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    open_board(rating=mode)
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(300)  # colours fade over, and the next pair comes
    ratios = page.evaluate((Path(__file__).parent / "contrast.js").read_text())
    assert {f".badge[data-mark={mark}]" for mark in marks} | {f".rate.{mark}.on" for mark in marks} | {".mode"} <= set(ratios)
    assert min(ratios.values()) >= 4.5, ratios


# --- at the routes ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> Iterator[RunStore]:
    made = filled_run(tmp_path / "toy", rounds=1, awaiting=True, rating="pairs")
    yield made
    made.close()


def send(client: TestClient, **event: object):
    return client.post("/studio/runs/toy/ratings", json=dict(client_id=str(event), rater="me") | event)


def test_a_pair_is_two_images_of_one_prompt_on_the_board(client: TestClient, store: RunStore) -> None:
    ids, old = [row.id for row in store.samples(2)], store.samples(1)[0].id
    assert send(client, sample=ids[0], other=ids[1], kind="pairs", value=1).json()["new"]
    assert send(client, sample=ids[0], other=ids[2], kind="bad", value=None).json()["new"]
    assert send(client, sample=ids[0], other=ids[4], kind="pairs", value=1).status_code == 409, "of another prompt"
    assert send(client, sample=ids[0], other=ids[0], kind="pairs", value=1).status_code == 409, "itself"
    assert send(client, sample=ids[0], other=old, kind="pairs", value=1).status_code == 409, "of another round"
    assert send(client, sample=ids[0], other=999, kind="pairs", value=1).status_code == 404
    assert send(client, sample=ids[0], other="1", kind="pairs", value=1).status_code == 404
    for kind, value, other in (("pairs", 2, 1), ("pairs", None, 1), ("thumbs", 1, 1), ("pairs", 1, None), ("bad", None, None), ("bad", 1, 1)):
        assert send(client, sample=ids[0], other=other and ids[other], kind=kind, value=value).status_code == 422, (kind, value, other)
    assert len(store.ratings(2)) == 2


def test_a_verdict_is_one_however_the_sides_lie_and_the_latest_counts(client: TestClient, store: RunStore) -> None:
    a, b = pairs_of(store.samples(2), "0 me")[0]
    send(client, sample=a, other=b, kind="pairs", value=1)
    assert client.get("/studio/runs/toy/board").json()["pairs"][0] == {"left": a, "right": b, "rating": {"kind": "pairs", "value": 1.0}}
    send(client, sample=b, other=a, kind="pairs", value=1)
    assert client.get("/studio/runs/toy/board").json()["pairs"][0]["rating"] == {"kind": "pairs", "value": -1.0}
    send(client, sample=b, other=a, kind="clear", value=None)
    assert client.get("/studio/runs/toy/board").json()["pairs"][0]["rating"] is None
    assert len(store.ratings(2)) == 3, "every event is kept"


def test_others_are_folded_in_whatever_mode_they_rated(client: TestClient, store: RunStore) -> None:
    ids = [row.id for row in store.samples(2)]
    store.add_rating("a", ids[0], "anna", "best", 2)
    store.add_rating("b", ids[0], "bob", "pairs", 1, other=ids[1])
    images = client.get("/studio/runs/toy/board").json()["images"]
    assert [image["others"][1] for image in images[:5]] == [2, 2, 1, 1, 0]
    assert images[0]["others"][0] == pytest.approx(1.43, abs=1e-3) and images[2]["others"] == [-0.5, 1]
    assert client.get("/studio/runs/toy/board").json()["signal"] == {"prompts": 2, "carrying": 1, "rated": 4}


def test_a_mode_is_chosen_for_the_run_and_its_settings_stay(client: TestClient, store: RunStore) -> None:
    revision = client.get("/studio/runs/toy/board").json()["revision"]
    assert client.post("/studio/runs/toy/choices", json={"rating": "best-worst"}).json() == {"rating": "best-worst"}
    board = client.get("/studio/runs/toy/board", params={"since": revision}).json()
    assert (board["rating"], board["pairs"], board["per_set"]) == ("best-worst", [], 4)
    assert [mode for mode, _ in board["modes"]] == ["thumbs", "stars", "best", "best-worst", "pairs"]
    for body, status in (({"rating": "love"}, 422), ({"rating": 3}, 422), ([], 422), ({}, 422)):
        assert client.post("/studio/runs/toy/choices", json=body).status_code == status
    assert client.post("/studio/runs/toy/choices", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert store.rating == "best-worst" and store.config.rating == "pairs"


def test_images_that_have_no_siblings_are_not_compared(client: TestClient, tmp_path) -> None:
    with pytest.raises(ConfigError, match="images_per_prompt is 1 and rating is pairs"):
        RunConfig(images_per_prompt=1, advantage="history", rating="pairs")
    store = RunStore.create(tmp_path / "toy", RunConfig(images_per_round=8, images_per_update=8, images_per_prompt=1, advantage="history"))
    add_images(store, 1)
    assert [mode for mode, _ in client.get("/studio/runs/toy/board").json()["modes"]] == ["thumbs", "stars"]
    refused = client.post("/studio/runs/toy/choices", json={"rating": "pairs"})
    assert refused.status_code == 422 and "images_per_prompt is 1" in refused.json()["detail"] and store.rating == "thumbs"
    store.close()


def test_what_is_rated_shows_neither_score_nor_seed(client: TestClient, store: RunStore) -> None:
    """Nobody who rates is told what others, or a model, think of an image."""
    store.add_scores("preference", {})
    for image in client.get("/studio/runs/toy/board").json()["images"]:
        assert image["score"] is None and not {"seed", "updates", "guess"} & set(image)
