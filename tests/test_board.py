"""Rating in a real browser: keys, mouse and touch, asserted on the database."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from ddpo.lock import WorkerLock
from ddpo.store import RunStore
from tests.conftest import Studio
from tests.toys import ODD_PROMPTS, filled_run

OpenBoard = Callable[..., RunStore]


@pytest.fixture
def open_board(studio: Studio, page: Page) -> Iterator[OpenBoard]:
    """Make a run that waits for ratings, as if its worker lived, and open its board."""
    stores: list[RunStore] = []
    locks: list[WorkerLock] = []

    def make(rounds: int = 0, alive: bool = True, **changes: object) -> RunStore:
        store = filled_run(studio.runs / "toy", rounds=rounds, awaiting=True, **changes)  # type: ignore[arg-type]
        stores.append(store)
        if alive:
            locks.append(WorkerLock(store.folder / "worker.lock"))
        look(page, studio)
        return store

    yield make
    for each in locks:
        each.release()
    for each in stores:
        each.close()


def look(page: Page, studio: Studio, pictures: bool = True) -> None:
    page.goto(f"{studio.url}/?run=toy")
    page.get_by_role("tab", name="Rate").click()
    if pictures:
        expect(page.locator(".card[data-state=here]")).to_have_count(page.locator(".card").count() or 8)


def press(page: Page, *keys: str) -> None:
    """Press keys that rate, each until its rating is acknowledged."""
    for key in keys:
        with page.expect_response(lambda answer: answer.url.endswith("/ratings") and answer.ok):
            page.keyboard.press(key)


def card(page: Page, number: int) -> Locator:
    return page.locator(".card").nth(number - 1)


def current(page: Page) -> int:
    return 1 + int(page.locator(".card.current").get_attribute("data-index") or "-1")


def latest(store: RunStore, number: int = 1, rater: str = "me") -> list[tuple[str, float | None] | None]:
    """What a rater's ratings of a round are now, by position."""
    found = store.latest_ratings(number)
    return [next(((r.kind, r.value) for r in found.get(row.id, ()) if r.rater == rater), None) for row in store.samples(number)]


UP, DOWN, SKIP = ("thumbs", 1.0), ("thumbs", -1.0), ("skip", None)


# --- keys -----------------------------------------------------------------------------------------------------------------------


def test_a_board_is_rated_by_keys_alone(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    press(page, "u", "d", "Space", "2", "1", "U")
    assert latest(store) == [UP, DOWN, SKIP, UP, DOWN, UP, None, None]
    assert current(page) == 7
    expect(page.locator("[data-ref=counts]")).to_have_text("5 of 8 rated, 1 skipped; 2 of 2 prompts teach")
    expect(page.locator("[data-ref=saved]")).to_have_text("saved")
    expect(card(page, 3)).to_have_attribute("aria-label", "image 3 of 8, a horse, skipped")
    rows = store.ratings(1)
    assert all(r.shown_at and r.answered_at and r.shown_at <= r.answered_at <= r.created_at + 0.1 for r in rows), "times are kept"
    assert len({r.client_id for r in rows}) == 6


def test_the_next_image_is_the_next_without_a_rating(page: Page, open_board: OpenBoard) -> None:
    open_board()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    place = current(page)
    press(page, *"uuuuuuuu")
    assert place != 1 and page.locator(".card[data-mark=up]").count() == 8


def test_arrows_move_by_sight(page: Page, open_board: OpenBoard) -> None:
    open_board()
    boxes = [card(page, n).bounding_box() for n in range(1, 9)]
    for key, sign, axis in (("ArrowRight", 1, "x"), ("ArrowDown", 1, "y"), ("ArrowLeft", -1, "x"), ("ArrowUp", -1, "y")):
        before = boxes[current(page) - 1]
        page.keyboard.press(key)
        after = boxes[current(page) - 1]
        assert before and after and sign * (after[axis] - before[axis]) >= 0  # type: ignore[literal-required]
    assert current(page) == 1
    page.keyboard.press("ArrowLeft")
    assert current(page) == 1, "nothing lies before the first"


def test_clear_and_undo_step_back(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    press(page, "u", "d", "u")
    page.keyboard.press("ArrowLeft")
    place = current(page)
    press(page, "0")
    assert latest(store)[place - 1] is None
    press(page, "z", "z", "z")
    assert latest(store) == [UP, None, None, None, None, None, None, None]
    press(page, "z")
    page.keyboard.press("z")
    expect(page.locator("[data-ref=live]")).to_have_text("Nothing to undo.")
    assert latest(store) == [None] * 8 and current(page) == 1
    assert len(store.ratings(1)) == 8, "every event is kept"


def test_undo_restores_the_rating_that_was_there(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    press(page, "u")
    page.keyboard.press("ArrowLeft")
    press(page, "d", "z")
    assert latest(store)[0] == UP


def test_stars(page: Page, open_board: OpenBoard) -> None:
    store = open_board(rating="stars")
    press(page, "5", "3", "1", "Space")
    page.keyboard.press("u")  # means nothing here
    assert latest(store)[:5] == [("stars", 5.0), ("stars", 3.0), ("stars", 1.0), SKIP, None]
    expect(card(page, 1)).to_have_attribute("aria-label", "image 1 of 8, a horse, rated 5 of 5 stars, excellent")
    expect(card(page, 2).locator(".rate.on")).to_have_count(3)


def test_other_keys_are_left_alone(page: Page, open_board: OpenBoard) -> None:
    """And one that means something still does after each of them."""
    store = open_board()
    for rated, key in enumerate(("Control+u", "Alt+u", "Meta+d", "Shift+D", "x", "9", "Tab")):
        page.keyboard.press(key)
        page.wait_for_timeout(150)
        assert len(store.ratings(1)) == rated, key
        press(page, "d")


def test_a_key_that_repeats_or_composes_does_not_rate(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    for extra in ("repeat: true", "isComposing: true"):
        page.evaluate(f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: 'u', code: 'KeyU', bubbles: true, {extra}}}))")
    page.wait_for_timeout(150)
    assert not store.ratings(1)


def test_typing_and_other_tabs_do_not_rate(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    page.locator("[data-ref=rater]").fill("")
    page.locator("[data-ref=rater]").press_sequentially("udo 12")
    page.get_by_role("tab", name="Progress").click()
    page.keyboard.press("u")
    page.wait_for_timeout(150)
    assert not store.ratings(1)


def test_a_new_name_begins_at_the_first_image_before_the_server_answers(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    press(page, "u")
    page.route("**/board?rater=bea*", lambda route: None)
    page.locator("[data-ref=rater]").fill("bea")
    page.locator("[data-ref=rater]").press("Enter")
    press(page, "d")
    assert latest(store) == [UP] + [None] * 7 and latest(store, rater="bea") == [DOWN] + [None] * 7
    page.unroute_all(behavior="ignoreErrors")


def test_who_takes_their_name_back_has_their_ratings_before_the_server_answers(page: Page, open_board: OpenBoard) -> None:
    """So that no key rates anew what is rated."""
    store = open_board()
    press(page, "u", "u", "d")
    field = page.locator("[data-ref=rater]")
    with page.expect_response(lambda answer: "rater=bea" in answer.url):
        field.fill("bea")
        field.press("Enter")
    press(page, "d")
    page.route("**/board?rater=me*", lambda route: None)
    field.fill("me")
    field.press("Enter")
    expect(page.locator(".card[data-mark=up]")).to_have_count(2)
    expect(page.locator(".card[data-mark=down]")).to_have_count(1)
    press(page, "d")
    assert latest(store)[:5] == [UP, UP, DOWN, DOWN, None] and latest(store, rater="bea") == [DOWN] + [None] * 7
    page.unroute_all(behavior="ignoreErrors")


def test_the_rater_has_a_name(page: Page, open_board: OpenBoard, studio: Studio) -> None:
    store = open_board()
    press(page, "u")
    field = page.locator("[data-ref=rater]")
    with page.expect_response(lambda answer: "rater=bea" in answer.url):
        field.fill("bea")
        field.press("Enter")
    expect(page.locator(".card[data-mark=up]")).to_have_count(0)
    press(page, "d")
    assert latest(store) == [UP] + [None] * 7 and latest(store, rater="bea")[0] == DOWN
    look(page, studio)
    expect(field).to_have_value("bea")
    expect(card(page, 1)).to_have_attribute("data-mark", "down")


def test_who_rates_is_told_how_well_their_taste_is_known(page: Page, open_board: OpenBoard, studio: Studio) -> None:
    store = open_board(rounds=1, preference="assist")
    store.add_metrics(1, dict(preference_accuracy=0.7, preference_least=0.6, preference_more=30.0))
    look(page, studio)
    press(page, "u", "d")
    told = "Of two images it picks the one that you like better in 70 of 100 cases. It knows half of your taste after about 30 more ratings."
    expect(page.locator("[data-ref=hint]")).to_have_text(told)


def test_who_wants_less_motion_has_none(page: Page, open_board: OpenBoard) -> None:
    """On the board nothing fades, slides or breathes, at rest or after a key; with motion something does."""
    moving = """() => document.getAnimations().length + [...document.querySelectorAll(".board, .board *")].filter((each) => {
        const style = getComputedStyle(each);
        return style.transitionDuration.split(",").some((time) => parseFloat(time) > 0) || style.animationName !== "none";
    }).length"""
    open_board()
    assert page.evaluate(moving) == 0
    press(page, "u")
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) > 0


# --- a closer look ---------------------------------------------------------------------------------------------------------------


def test_zoom_shows_one_image_and_rates_on(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    page.keyboard.press("f")
    zoom = page.locator("[data-ref=zoom]")
    expect(zoom).to_be_visible()
    expect(zoom.locator("[data-ref=zoom_place]")).to_have_text("Image 1 of 8 · not rated")
    press(page, "u")
    page.keyboard.press("ArrowRight")
    expect(zoom.locator("[data-ref=zoom_place]")).to_have_text("Image 3 of 8 · not rated")
    page.keyboard.press("Enter")  # applies nothing while a single image is looked at
    page.keyboard.press("Escape")
    expect(zoom).to_be_hidden()
    assert current(page) == 3 and latest(store)[:3] == [UP, None, None] and not store.pending_requests()


def test_help_tells_the_keys(page: Page, open_board: OpenBoard) -> None:
    store = open_board()
    page.keyboard.press("?")
    expect(page.locator("[data-ref=help]")).to_contain_text("rate up")
    page.keyboard.press("u")
    page.keyboard.press("?")
    expect(page.locator("[data-ref=help]")).to_be_hidden()
    assert not store.ratings(1)


def test_help_can_be_closed_on_a_small_screen(page: Page, open_board: OpenBoard) -> None:
    page.set_viewport_size(dict(width=740, height=360))
    open_board()
    page.keyboard.press("?")
    window = page.locator("dialog.help")
    box = window.bounding_box()
    assert box and box["y"] >= 0 and box["y"] + box["height"] <= 360
    window.click(position=dict(x=8, y=box["height"] / 2))  # its rim is a part of it
    expect(window).to_be_visible()
    window.get_by_role("button", name="Close").click()
    expect(window).to_be_hidden()


def test_a_name_is_the_same_wherever_it_is_given(page: Page, open_board: OpenBoard, studio: Studio) -> None:
    store = open_board()
    page.locator("[data-ref=rater]").fill("  Ann\u00e9\u00a0\u202e B\U0001fae8  ")
    page.locator("[data-ref=rater]").press("Enter")
    expect(page.locator("[data-ref=rater]")).to_have_value(re.compile("^Ann\u00e9 B"))
    press(page, "u")
    (said,) = store.ratings(1)
    assert said.rater == page.locator("[data-ref=rater]").input_value()


@pytest.mark.parametrize("dark", [False, True])
def test_odd_prompts_are_text(page: Page, open_board: OpenBoard, dark: bool) -> None:
    if dark:
        page.emulate_media(color_scheme="dark")
    store = open_board(images_per_prompt=2, prompts=ODD_PROMPTS)
    for row in store.samples(1):
        group = page.locator(".group").nth(row.position // 2)
        assert group.locator(".prompt").get_attribute("title") == row.prompt
        page.keyboard.press("f")
        assert page.locator("[data-ref=zoom_text]").evaluate("node => node.textContent") == row.prompt
        page.keyboard.press("f")
        press(page, "u")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and "broken" not in page.title()


# --- pointers -------------------------------------------------------------------------------------------------------------------


def test_the_mouse_does_everything(page: Page, open_board: OpenBoard) -> None:
    store = open_board()

    def click(target: Locator) -> None:
        with page.expect_response(lambda answer: answer.url.endswith("/ratings")):
            target.click()

    click(card(page, 1).get_by_role("button", name="Rate up (U)"))
    click(card(page, 2).get_by_role("button", name="Rate down (D)"))
    click(card(page, 5).get_by_role("button", name="Rate up (U)"))
    click(card(page, 5).get_by_role("button", name="Rate up (U)"))  # once more takes it back
    card(page, 4).locator(".frame").click()
    assert current(page) == 4
    click(page.locator("[data-ref=dock] [data-act=skip]"))
    assert latest(store) == [UP, DOWN, None, SKIP, None, None, None, None]
    click(page.locator("[data-ref=dock] [data-act=undo]"))
    assert latest(store)[3] is None
    page.locator("[data-ref=dock] [data-act=zoom]").click()
    expect(page.locator("[data-ref=zoom]")).to_be_visible()
    page.locator("[data-ref=zoom] [data-act=close]").click()
    page.locator("[data-act=help]").click()
    expect(page.locator("[data-ref=help]")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("[data-act=apply]").click()
    with page.expect_response(lambda answer: answer.url.endswith("/requests")):
        page.locator("[data-act=apply]").click()
    assert [r.payload for r in store.pending_requests()] == [{"round": 1}]


def test_a_phone_rates_by_touch(browser: Browser, studio: Studio) -> None:
    store = filled_run(studio.runs / "toy", rounds=0, awaiting=True, rating="stars")
    lock = WorkerLock(store.folder / "worker.lock")
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone = context.new_page()
    look(phone, studio)
    star = card(phone, 2).locator(".rate").nth(3)
    star.scroll_into_view_if_needed()
    with phone.expect_response(lambda answer: answer.url.endswith("/ratings")):
        star.tap()
    assert latest(store)[1] == ("stars", 4.0)
    box = star.bounding_box()
    assert box and box["height"] >= 44 and box["width"] >= 24
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    for button in phone.locator(".dock button").all():
        box = button.bounding_box()
        assert box and box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 390
    context.close()
    lock.release()
    store.close()


# --- what a screen reader hears ---------------------------------------------------------------------------------------------------


def test_the_grid_is_told_to_screen_readers(page: Page, open_board: OpenBoard) -> None:
    open_board()
    grid = page.get_by_role("grid", name="Images of this round")
    expect(grid.get_by_role("row")).to_have_count(2)
    expect(grid.get_by_role("gridcell")).to_have_count(8)
    assert page.locator(".card[tabindex='0']").count() == 1, "one stop for Tab"
    press(page, "u")
    expect(page.locator("[data-ref=live]")).to_have_text("Image 1 rated up. 7 left.")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "image 2 of 8, a horse, not rated"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(page: Page, open_board: OpenBoard, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for what marks a rating."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    open_board()
    press(page, "u", "d", "Space")
    page.wait_for_timeout(300)  # colours fade over
    ratios = page.evaluate((Path(__file__).parent / "contrast.js").read_text())
    assert ratios and min(ratios.values()) >= 4.5, ratios
