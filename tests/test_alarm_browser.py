"""The banner that says what goes wrong, in a real browser: what it shows, what its buttons do, and that it does not come back."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Studio
from playwright.sync_api import Page, expect
from toys import add_lora, add_round, add_watched, filled_run

from app.launch import Launcher
from app.pages import alarm, library, progress
from app.pages.run import history
from app.runs import Runs
from ddpo.alarms import Sign
from ddpo.config import RunConfig
from ddpo.lock import WorkerLock
from ddpo.presets import presets
from ddpo.result import roll_back, rolled_back
from ddpo.store import RunStore, StoreError

TEXT = "Diversity and one other reward have fallen since round 5. Best round so far: 5."


def ruined(folder, rounds: int = 10) -> RunStore:
    """A run whose watched pictures were well after round 5 and are not after round 10."""
    store = filled_run(folder, rounds=rounds)
    for number, fallen in ((0, 0.0), (5, 0.0), (10, 1.5)):
        add_watched(store, number, fallen)
    for place in store.checkpoints().values():
        (place / "state.safetensors").write_bytes(b"weights")
    for number in store.checkpoints():
        add_lora(store, number)
    return store


@pytest.fixture
def alarmed(toy_studio: Studio) -> Iterator[Studio]:
    ruined(toy_studio.runs / "a").close()
    yield toy_studio


def open_progress(page: Page, studio: Studio, run: str = "a") -> None:
    page.goto(f"{studio.url}/?run={run}")
    page.get_by_role("tab", name="Progress", exact=True).click()
    expect(page.locator(".chart-plot svg").first).to_be_visible()


def test_the_banner_shows_what_goes_wrong_and_is_dismissed_for_good(page: Page, alarmed: Studio) -> None:
    open_progress(page, alarmed)
    banner = page.get_by_role("status", name="Alarm")
    expect(banner).to_contain_text(TEXT)
    images = banner.locator("img")
    expect(images).to_have_count(8)
    assert images.evaluate_all("images => Promise.all(images.map(image => image.decode().then(() => image.naturalWidth)))") == [64] * 8
    assert "round 5" in (images.nth(0).get_attribute("alt") or "") and "round 10" in (images.nth(1).get_attribute("alt") or "")
    expect(banner.get_by_role("button", name="Pause")).to_have_count(0)  # nothing runs
    banner.get_by_text("What was measured").click()
    expect(banner).to_contain_text("CLIPScore: 1.54 standard deviations lower since round 5")
    banner.get_by_role("button", name="Dismiss").press("Enter")
    expect(banner).to_have_count(0)
    open_progress(page, alarmed)
    expect(page.get_by_role("heading", name="Diversity", exact=True)).to_be_visible()
    expect(banner).to_have_count(0)


def test_the_strip_above_all_pages_says_that_it_goes_wrong(page: Page, alarmed: Studio) -> None:
    """Who rates sees it too, and is one key from what can be done."""
    page.goto(f"{alarmed.url}/?run=a")
    page.get_by_role("tab", name="Rate", exact=True).click()
    wrong = page.locator("#studio-bar").get_by_role("button", name="Went wrong")
    expect(wrong).to_have_attribute("title", TEXT)
    wrong.press("Enter")
    banner = page.get_by_role("status", name="Alarm")
    expect(banner.get_by_role("heading")).to_be_focused()
    banner.get_by_role("button", name="Dismiss").click()
    expect(wrong).to_have_count(0)


def test_the_strip_says_it_of_a_run_that_was_rolled_back_and_goes_on(page: Page, alarmed: Studio) -> None:
    store = RunStore(alarmed.runs / "a")
    roll_back(store, 5)
    page.goto(f"{alarmed.url}/?run=a")
    bar = page.locator("#studio-bar")
    expect(bar).to_contain_text("round 10 of")
    expect(bar.get_by_role("button", name=re.compile("wrong"))).to_have_count(0)
    lock = WorkerLock(store.folder / "worker.lock")
    store.set_progress("sampling", 11)
    expect(bar.get_by_role("button", name="Going wrong")).to_be_visible()
    lock.release()
    store.close()


def test_what_went_too_far_is_seen_at_half_of_its_strength(page: Page, alarmed: Studio) -> None:
    open_progress(page, alarmed)
    page.get_by_role("status", name="Alarm").get_by_role("button", name="See it weaker").press("Enter")
    board = page.locator("#studio-compare")
    expect(board.locator(".cmp-strength output").nth(1)).to_have_text("50 %")
    expect(board.get_by_role("columnheader", name=re.compile("Round 10 at 50 %")).first).to_be_visible()
    page.get_by_role("tab", name="Progress", exact=True).click()
    expect(page.get_by_role("status", name="Alarm")).to_contain_text(TEXT)


def test_the_charts_show_where_the_alarm_began_and_say_it(page: Page, alarmed: Studio) -> None:
    """Drawn at round 10 in every chart, read by the arrow keys, named to those who cannot see it, and a column of the table."""
    open_progress(page, alarmed)
    figure = page.locator("figure.chart").first
    marks = page.locator('.chart-mark[data-kind="alarm"]')
    assert marks.count() == page.locator(".chart-plot svg").count() and figure.locator('.chart-mark[data-kind="best"] path').count() == 1
    assert marks.first.locator("title").text_content() == f"Alarm: {TEXT}"
    plot = figure.locator(".chart-plot")
    assert "Best so far: round 5. Alarm: round 10. " in (plot.get_attribute("aria-label") or "")
    plot.press("End")
    expect(figure.locator(".chart-reading")).to_contain_text(f"Alarm: {TEXT}")
    for _ in range(5):
        plot.press("ArrowLeft")
    expect(figure.locator(".chart-reading")).to_contain_text("Best round so far")
    figure.get_by_text("As a table").click()
    expect(figure.get_by_role("row", name="10").last).to_contain_text("Alarm: Diversity")


def test_proxy_and_gold_are_read_on_an_axis_of_their_own(page: Page, alarmed: Studio) -> None:
    """The distance lies across: 0, √50, √60 to 10. The arrow keys go by distance, and the other charts read the same round."""
    store = filled_run(alarmed.runs / "b", rounds=10, reward="jpeg_compressibility")
    for number in (0, *range(5, 11)):
        add_watched(store, number, max(0.0, 0.2 * number - 0.6))
    store.close()
    open_progress(page, alarmed, "b")
    figure = page.locator('figure[data-chart="gold"]')
    expect(figure).to_contain_text("Gold falls from √KL 7.07 on, the first that was watched: its peak lies before. The run is at 10.")
    assert "Gold falls from" in (figure.locator(".chart-plot").get_attribute("aria-label") or "")
    expect(figure.locator(".chart-plot path.chart-line")).to_have_count(1)
    plot = figure.locator(".chart-plot")
    plot.press("End")
    expect(figure.locator(".chart-reading")).to_contain_text("Round 10 (√KL 10): ")
    expect(figure.locator('.chart-mark[data-kind="alarm"]')).to_have_count(1)
    plot.press("ArrowLeft")
    expect(figure.locator(".chart-reading")).to_contain_text("Round 9 (√KL 9.487): ")
    expect(page.locator("figure.chart").first.locator(".chart-reading")).to_contain_text("Round 9: ")
    plot.press("Home")
    expect(figure.locator(".chart-reading")).to_contain_text("Round 0 (√KL 0): ")
    dots = figure.locator(".chart-plot circle.chart-dot:not(.chart-now)").evaluate_all("all => all.map((c) => Number(c.getAttribute('cx')))")
    assert (dots[1] - dots[0]) / (dots[-1] - dots[0]) == pytest.approx(0.5**0.5, abs=0.01)
    with page.expect_download() as waiting:
        figure.get_by_role("button", name="as CSV").click()
    lines = Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("run,round,images_scored,seconds,√KL,") and lines[-1].startswith("b,10,") and ",10," in lines[-1][5:]


def test_going_on_from_the_best_round_starts_a_run_that_names_its_parent(page: Page, alarmed: Studio) -> None:
    open_progress(page, alarmed)
    banner = page.get_by_role("status", name="Alarm")
    banner.get_by_role("button", name="Go on from round 5", exact=True).click()
    expect(page.locator(".bar select")).to_have_value("a-from-5")
    expect(page.locator("#studio-panel")).to_contain_text("a, round 5")
    page.get_by_role("tab", name="Library", exact=True).click()
    expect(page.get_by_role("article", name="a-from-5")).to_contain_text("Goes on from a, round 5")
    made = RunStore(alarmed.runs / "a-from-5")
    assert made.parent == ("a", 5) and made.config.rounds == 5 and (made.folder / "parent" / "state.safetensors").read_bytes() == b"weights"
    made.close()


def test_a_kl_penalty_is_added_by_one_click_which_says_what_it_does(page: Page, alarmed: Studio) -> None:
    """By keyboard; the new run has the penalty that the button states, and the old run's history and charts say where it went on."""
    open_progress(page, alarmed)
    button = page.get_by_role("button", name="Go on with a KL penalty")
    assert "costs 0.3 (kl_weight)" in (page.locator(f"#{button.get_attribute('aria-describedby')}").text_content() or "")
    button.press("Enter")
    expect(page.locator(".bar select")).to_have_value("a-from-5-kl")
    made = RunStore(alarmed.runs / "a-from-5-kl")
    assert made.config.kl_weight == 0.3 and made.parent == ("a", 5)
    made.close()
    page.goto(f"{alarmed.url}/?run=a")
    expect(page.get_by_role("list", name="History, newest first")).to_contain_text("a-from-5-kl goes on from round 5, with kl_weight 0.3.")
    page.get_by_role("tab", name="Progress", exact=True).click()
    expect(page.locator('.chart-wide .chart-mark[data-kind="fork"] title').first).to_have_text("a-from-5-kl goes on from here")


def test_rolling_back_makes_a_round_what_is_shown_compared_and_taken_away(page: Page, alarmed: Studio) -> None:
    """Everywhere at once, and taken back by another click."""
    open_progress(page, alarmed)
    gallery, taken = page.locator("#studio-gallery"), page.locator("#studio-takeaway")
    expect(gallery).to_contain_text("Round 10:")
    page.get_by_role("button", name="Roll back to round 5").press("Enter")
    banner = page.get_by_role("status", name="Alarm")
    expect(banner.get_by_role("heading")).to_have_text("Rolled back to round 5")
    expect(banner.get_by_role("heading")).to_be_focused()
    expect(banner.get_by_role("button", name="Roll back to round 5")).to_have_count(0)
    expect(gallery).to_contain_text("Round 5:")
    expect(taken).to_contain_text("This run is rolled back to round 5")
    expect(taken.locator("[data-round]")).to_have_value("")
    expect(taken.locator("[data-round] option").first).to_have_text("Round 5, the result")
    page.get_by_role("tab", name="Library", exact=True).click()
    expect(page.get_by_role("article", name="a")).to_contain_text("Rolled back to round 5")
    page.get_by_role("tab", name="Compare", exact=True).click()
    expect(page.get_by_role("combobox", name="Model B")).to_have_value("5")
    page.get_by_role("tab", name="Run", exact=True).click()
    expect(page.get_by_role("list", name="History, newest first")).to_contain_text("Rolled back to round 5: it is taken away")
    page.get_by_role("tab", name="Progress", exact=True).click()
    taken.get_by_role("button", name="Take the latest again").click()
    expect(taken.locator("[data-round] option").first).to_have_text("Round 10, the latest")
    expect(gallery).to_contain_text("Round 10:")


def test_any_saved_round_can_be_gone_on_from(page: Page, alarmed: Studio) -> None:
    """From the gallery, by keyboard; a second time under another name."""
    for name in ("a-from-9", "a-from-9-2"):
        open_progress(page, alarmed)
        gallery = page.locator("#studio-gallery")
        expect(gallery).to_contain_text("Round 10:")
        gallery.get_by_role("button", name="Earlier round").press("Enter")
        expect(gallery).to_contain_text("Round 9:")
        gallery.get_by_role("button", name="Go on from here").press("Enter")
        page.get_by_role("dialog").get_by_role("button", name="Go on").press("Enter")
        expect(page.locator(".bar select")).to_have_value(name)
    store = RunStore(alarmed.runs / name)
    assert store.parent == ("a", 9) and store.config.rounds == 1
    store.close()


def test_any_saved_round_can_be_rolled_back_to(page: Page, alarmed: Studio) -> None:
    """From the gallery, by keyboard; not to what is taken away already."""
    open_progress(page, alarmed)
    gallery, taken = page.locator("#studio-gallery"), page.locator("#studio-takeaway")
    back = gallery.get_by_role("button", name="Roll back to here")
    expect(gallery).to_contain_text("Round 10:")
    expect(back).to_be_disabled()
    gallery.get_by_role("button", name="Earlier round").press("Enter")
    back.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").press("Enter")
    back.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Roll back").press("Enter")
    expect(taken).to_contain_text("rolled back to round 9")
    expect(page.locator("#studio-bar").get_by_role("button", name="Went wrong")).to_have_count(0)
    expect(back).to_be_disabled()
    store = RunStore(alarmed.runs / "a")
    assert rolled_back(store) == 9
    store.close()


def test_where_nothing_watched_was_well_the_way_back_is_half_of_it(page: Page, toy_studio: Studio) -> None:
    store = filled_run(toy_studio.runs / "a", rounds=10)
    add_watched(store, 0)
    add_watched(store, 10, 1.5)
    for number, place in store.checkpoints().items():
        (place / "state.safetensors").write_bytes(b"weights")
        add_lora(store, number)
    assert (found := alarm.alarm_value(store))["best"] == 0 and found["back"] == 5 and found["saved"]
    open_progress(page, toy_studio)
    banner = page.get_by_role("status", name="Alarm")
    expect(banner).to_contain_text("No watched round so far was without an alarm.")
    expect(banner.get_by_role("button", name="See it weaker")).to_be_visible()
    back = banner.get_by_role("button", name="Roll back to round 5")
    expect(back).to_have_accessible_description(
        "Round 5 is what you take away and compare: half way to the first alarm, and not watched. Later rounds are kept."
    )
    back.click()
    expect(banner).to_contain_text("Rolled back to round 5")
    assert rolled_back(store) == 5
    store.close()


def test_a_run_that_is_about_to_stop_says_so_and_is_not_offered_to_continue(page: Page, alarmed: Studio) -> None:
    store = RunStore(alarmed.runs / "a")
    lock, banner = WorkerLock(store.folder / "worker.lock"), page.get_by_role("status", name="Alarm")
    store.set_progress("awaiting", 11)
    open_progress(page, alarmed)
    expect(banner.get_by_role("button", name="Continue")).to_be_visible()
    store.add_event("answer", "will stop after this round")
    expect(banner).to_contain_text("This run stops after its round.")
    expect(banner.get_by_role("button", name="Continue")).to_have_count(0)
    banner.get_by_role("button", name="Dismiss").click()
    expect(banner).to_have_count(0)
    lock.release()
    store.close()


# --- without a browser ------------------------------------------------------------------------------------------------------------


class Started(Launcher):
    """Starts nothing, and knows what it was asked to start."""

    def __init__(self) -> None:
        super().__init__(())
        self.folders: list[str] = []

    def start(self, folder) -> None:
        self.folders.append(folder.name)


def test_the_banner_is_a_function_of_the_store(tmp_path) -> None:
    """Nothing where nothing is watched or all is well; dismissed, it is silent while the alarm lasts, and speaks of the next one."""
    calm = filled_run(tmp_path / "calm", rounds=5)
    assert alarm.alarm_value(calm) == dict(run="calm")
    add_watched(calm, 0)
    add_watched(calm, 5)
    assert alarm.alarm_value(calm) == dict(run="calm")
    store = ruined(tmp_path / "a")
    shown = alarm.alarm_value(store)
    assert (shown["text"], shown["round"], shown["best"], shown["saved"], shown["alive"]) == (TEXT, 10, 5, True, False)
    alarm.heed(store, Started(), "dismiss", shown["round"])
    assert alarm.alarm_value(store) == dict(run="a")
    add_watched(store, 15, 2.0)
    assert alarm.alarm_value(store) == dict(run="a")
    add_watched(store, 20, 0.0)
    add_watched(store, 25, 2.0)
    assert alarm.alarm_value(store)["round"] == 25 and alarm.alarm_value(store)["best"] == 20


def test_going_on_stops_the_run_that_is_left(tmp_path, monkeypatch) -> None:
    """It starts when the other has let go of the model, or does not for too long."""
    store, launcher = ruined(tmp_path / "a"), Started()
    lock = WorkerLock(store.folder / "worker.lock")
    started, letting_go = time.monotonic(), threading.Timer(0.5, lock.release)
    letting_go.start()
    assert alarm.heed(store, launcher, "fork", 5) == "a-from-5" and launcher.folders == ["a-from-5"]
    assert 0.5 <= time.monotonic() - started < 30
    with alarm._only_one(store), pytest.raises(StoreError, match="is being made already"):  # pressed while that is waited for
        alarm.heed(store, launcher, "fork", 5)
    assert [request.kind for request in store.pending_requests()] == ["stop"]
    monkeypatch.setattr(alarm, "PATIENCE", 0.2)
    lock = WorkerLock(store.folder / "worker.lock")
    with pytest.raises(StoreError, match="a is stopping"):  # pressed twice
        alarm.heed(store, launcher, "fork", 5)
    for request in store.pending_requests():
        store.add_event("stop", "", request.id)
    with pytest.raises(StoreError, match=r"a has not stopped yet\. When it has, start a-from-5-2"):
        alarm.heed(store, launcher, "fork", 5)
    assert launcher.folders == ["a-from-5"]
    lock.release()
    for kind, odd in (("fork", None), ("fork", "5"), ("penalty", 77), ("rollback", 77), ("dismiss", "x"), ("explode", 5), ("pause", 5)):
        with pytest.raises(StoreError):
            alarm.heed(store, launcher, kind, odd)
    card = library.card(Runs(tmp_path).open("a-from-5"), launcher)
    add_round(made := Runs(tmp_path).open("a-from-5"), 1)
    (mark,) = progress.charts_value(made)["charts"][0]["marks"]
    assert (mark["round"], mark["kind"], mark["text"]) == (1, "change", "Goes on from a, round 5")
    assert card["parent"] == "a, round 5" and library.card(store, launcher)["parent"] == ""


def test_a_run_at_work_is_paused_goes_on_or_stops_and_all_of_it_is_written_down(tmp_path) -> None:
    """What the worker is asked for, what is settled, and what the Run page's history says of it."""
    store, launcher = ruined(tmp_path / "a"), Started()
    lock = WorkerLock(store.folder / "worker.lock")
    assert not alarm.alarm_value(store)["stops"]
    alarm.heed(store, launcher, "pause", 10)
    store.set_progress("paused", 10)
    assert alarm.alarm_value(store)["paused"]
    alarm.heed(store, launcher, "continue", 10)
    assert alarm.alarm_value(store) == dict(run="a")
    alarm.heed(store, launcher, "rollback", 5)
    assert [request.kind for request in store.pending_requests()] == ["pause", "resume", "stop"]
    lock.release()
    said = [each["text"] for each in history(store) if each["kind"] == "decision"]
    assert said == ["Rolled back to round 5: it is taken away, and later rounds are kept.", "The alarm of round 10 was seen."]


def test_a_penalty_is_added_or_doubled_and_wants_precision_where_noise_is_low() -> None:
    assert alarm.penalty_of(RunConfig()) == alarm.penalty_of(RunConfig(kl_weight=3e-4)) == dict(kl_weight=0.3)
    assert alarm.penalty_of(RunConfig(objective="rwr")) == dict(kl_weight=1.0), "there it is no nats"
    assert alarm.penalty_of(RunConfig(kl_weight=0.2, precision="bf16")) == dict(kl_weight=0.4)
    assert alarm.penalty_of(RunConfig(eta=0.1, precision="bf16")) == dict(kl_weight=pytest.approx(0.003), precision="fp32")
    assert alarm.penalty_of(presets()["aesthetic"].config)["precision"] == "fp32", "auto may be half"


def test_a_watched_picture_has_an_address(client, tmp_path) -> None:
    store = ruined(tmp_path / "a")
    row = store.probes(10)[2]
    answer = client.get(alarm.probe_url(store, row))
    assert answer.status_code == 200 and answer.content == (store.folder / row.image).read_bytes()
    assert client.get("/studio/runs/a/probe/9999").status_code == 404


@pytest.mark.parametrize(
    ("sign", "text"),
    [
        (Sign("texture", 0, 2.0, (0,), 0.75, True), "Texture: 0.75 standard deviations above the base model's, and the reward pays for it"),
        (Sign("flatness", 0, 2.0, (0,), 2.0), "Flat places: 2 standard deviations above the base model's"),
        (Sign("diversity", 0, 2.0, (0,), 0.6), "Diversity: 60 % less than the base model's"),
        (Sign("aesthetic", 6, 3.0, (0,), 1.5), "Aesthetic (LAION): 1.5 standard deviations lower since round 6"),
    ],
)
def test_a_sign_is_told_in_the_unit_of_what_it_measures(sign, text) -> None:
    assert alarm.detail(sign) == text
