"""The banner that says what goes wrong, in a real browser: what it shows, what its buttons do, and that it does not come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from conftest import Studio
from playwright.sync_api import Page, expect
from toys import add_round, add_watched, filled_run

from app.launch import Launcher
from app.pages import alarm, library, progress
from app.runs import Runs
from ddpo.lock import WorkerLock
from ddpo.store import RunStore, StoreError

TEXT = "Diversity and one other reward have fallen since round 5. Best round so far: 5."


def ruined(folder, rounds: int = 10) -> RunStore:
    """A run whose watched pictures were well after round 5 and are not after round 10."""
    store = filled_run(folder, rounds=rounds)
    for number, fallen in ((0, 0.0), (5, 0.0), (10, 1.5)):
        add_watched(store, number, fallen)
    for place in store.checkpoints().values():
        (place / "state.safetensors").write_bytes(b"weights")
    return store


@pytest.fixture
def alarmed(toy_studio: Studio) -> Iterator[Studio]:
    ruined(toy_studio.runs / "a").close()
    yield toy_studio


def open_progress(page: Page, studio: Studio) -> None:
    page.goto(f"{studio.url}/?run=a")
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
    expect(page.get_by_role("heading", name="Diversity")).to_be_visible()
    expect(banner).to_have_count(0)


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


def test_going_on_from_the_best_round_starts_a_run_that_names_its_parent(page: Page, alarmed: Studio) -> None:
    open_progress(page, alarmed)
    banner = page.get_by_role("status", name="Alarm")
    banner.get_by_role("button", name="Go on from round 5").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert not (alarmed.runs / "a-from-5").exists()
    banner.get_by_role("button", name="Go on from round 5").click()
    page.get_by_role("dialog").get_by_role("button", name="Go on").click()
    expect(page.locator(".bar select")).to_have_value("a-from-5")
    expect(page.locator("#studio-panel")).to_contain_text("a, round 5")
    page.get_by_role("tab", name="Library", exact=True).click()
    expect(page.get_by_role("article", name="a-from-5")).to_contain_text("Goes on from a, round 5")
    made = RunStore(alarmed.runs / "a-from-5")
    assert made.parent == ("a", 5) and made.config.rounds == 5 and (made.folder / "parent" / "state.safetensors").read_bytes() == b"weights"
    made.close()


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
    assert (shown["text"], shown["round"], shown["best"], shown["forks"], shown["alive"]) == (TEXT, 10, 5, True, False)
    alarm.dismiss(store, shown["round"])
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
    assert alarm.go_on(store, launcher, 5) == "a-from-5" and launcher.folders == ["a-from-5"]
    assert 0.5 <= time.monotonic() - started < 30
    assert [request.kind for request in store.pending_requests()] == ["stop"]
    monkeypatch.setattr(alarm, "PATIENCE", 0.2)
    lock = WorkerLock(store.folder / "worker.lock")
    with pytest.raises(StoreError, match="a is stopping"):  # pressed twice
        alarm.go_on(store, launcher, 5)
    for request in store.pending_requests():
        store.add_event("stop", "", request.id)
    with pytest.raises(StoreError, match=r"a has not stopped yet\. When it has, start a-from-5-2"):
        alarm.go_on(store, launcher, 5)
    assert launcher.folders == ["a-from-5"]
    lock.release()
    for odd in (None, "5", 77):
        with pytest.raises(StoreError):
            alarm.go_on(store, launcher, odd)
    with pytest.raises(StoreError):
        alarm.dismiss(store, "x")
    card = library.card(Runs(tmp_path).open("a-from-5"), launcher)
    add_round(made := Runs(tmp_path).open("a-from-5"), 1)
    (mark,) = progress.charts_value(made)["charts"][0]["marks"]
    assert (mark["round"], mark["kind"], mark["text"]) == (1, "change", "Goes on from a, round 5")
    assert card["parent"] == "a, round 5" and library.card(store, launcher)["parent"] == ""


def test_a_watched_picture_has_an_address(client, tmp_path) -> None:
    store = ruined(tmp_path / "a")
    row = store.probes(10)[2]
    answer = client.get(alarm.probe_url(store, row))
    assert answer.status_code == 200 and answer.content == (store.folder / row.image).read_bytes()
    assert client.get("/studio/runs/a/probe/9999").status_code == 404
