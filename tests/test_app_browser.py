"""The studio in a real browser: every move of the Run, Progress and Library pages, on real run folders and a worker without a model."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from conftest import Studio, serve
from playwright.sync_api import Locator, Page, Route, expect
from safetensors.numpy import save_file
from toys import ODD_PROMPTS, filled_run

from ddpo.lock import WorkerLock
from ddpo.store import RunStore

WIDTHS = (390, 1600)
NAME_IN_FOCUS = "(document.activeElement.getAttribute('aria-label') || document.activeElement.textContent || '').trim()"


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def open_studio(page: Page, studio: Studio, run: str | None = None, tab: str = "Run") -> None:
    page.goto(studio.url + (f"/?run={run}" if run else "/"))
    expect(page.locator(".bar select")).to_be_visible()
    if tab != "Run":
        page.get_by_role("tab", name=tab, exact=True).click()


def field(page: Page, block: str) -> Locator:
    """What is typed into, in a block of the form."""
    return page.locator(f"#{block}").locator("input, textarea")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that passes for a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return str(folder)


# --- what is new ----------------------------------------------------------------------------------------------------------------


def test_a_page_asks_for_its_values_only_when_they_changed(page: Page, studio: Studio) -> None:
    store = filled_run(studio.runs / "toy", rounds=1, awaiting=True)
    open_studio(page, studio, "toy")
    expect(page.locator(".bar-state")).to_contain_text("round 2 of 3")
    page.wait_for_timeout(1500)  # on a busy machine the first questions are still on their way
    pulses, events = list[str](), list[str]()
    page.on("request", lambda request: (pulses if "/studio/pulse" in request.url else events).append(request.url))
    page.wait_for_timeout(4500)
    assert len(pulses) >= 3 and not [url for url in events if "/gradio_api/" in url]
    lost = list[str]()
    page.route("**/gradio_api/**", lambda route: (lost.append(route.request.url), route.abort()) if not lost else route.fallback())
    store.add_event("answer", "something new")
    expect(page.locator("#studio-panel")).to_contain_text("something new")  # although the first question was lost
    assert lost
    page.wait_for_timeout(1500)
    asked = len(events)
    page.wait_for_timeout(2500)
    assert len(events) == asked


def test_an_answer_about_the_run_before_does_not_take_the_page_back(page: Page, studio: Studio) -> None:
    """A run is chosen while the page waits for what is new of another one."""
    stores = {name: filled_run(studio.runs / name, rounds=1, awaiting=True) for name in ("one", "two")}
    open_studio(page, studio, "one")
    expect(page.locator("#studio-panel")).to_contain_text("one")
    held = list[Route]()
    page.route("**/gradio_api/**", lambda route: route.fallback() if held else held.append(route))
    stores["one"].add_event("answer", "news of one")
    page.wait_for_timeout(2500)
    assert held
    page.locator(".bar select").select_option("two")
    expect(page.locator("#studio-panel")).to_contain_text("two")
    with page.expect_response(lambda response: response.url == held[0].request.url):
        held[0].continue_()
    page.wait_for_timeout(1500)
    expect(page.locator(".bar select")).to_have_value("two")
    stores["two"].add_event("answer", "news of two")
    expect(page.locator("#studio-panel")).to_contain_text("news of two")
    assert parse_qs(urlparse(page.url).query)["run"] == ["two"]


# --- starting and steering ------------------------------------------------------------------------------------------------------


def test_an_empty_studio_leads_to_the_first_run(page: Page, studio: Studio) -> None:
    open_studio(page, studio)
    expect(page.get_by_role("heading", name="No run yet")).to_be_visible()
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()
    page.get_by_role("tab", name="Library").click()
    page.get_by_role("button", name="Start the first one").click()
    expect(page.get_by_role("radio", name=re.compile("Rate by hand"))).to_be_checked()


def test_an_error_is_said_beside_the_button_and_nothing_typed_is_lost(page: Page, studio: Studio) -> None:
    open_studio(page, studio)
    expect(field(page, "new-run-name")).to_have_value("rate-1")
    field(page, "new-run-name").fill("my run!")
    field(page, "set-images_per_round").fill("10")
    field(page, "new-run-prompts").fill("a <b>cat</b>\n${alert(1)}")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="not divisible")).to_contain_text("Images a round is 10")
    expect(field(page, "new-run-name")).to_have_value("my run!")
    expect(field(page, "new-run-prompts")).to_have_value("a <b>cat</b>\n${alert(1)}")
    assert not list(studio.runs.iterdir())


def test_a_name_that_is_typed_at_once_is_not_replaced_by_the_suggested_one(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    field(page, "new-run-name").fill("mine")
    page.wait_for_timeout(1500)
    expect(field(page, "new-run-name")).to_have_value("mine")


def test_start_steer_and_stop_a_run(page: Page, toy_studio: Studio, model: str) -> None:
    open_studio(page, toy_studio)
    page.get_by_role("radio", name=re.compile("Rate with stars")).check()
    expect(field(page, "new-run-name")).to_have_value("rate-stars-1")
    field(page, "set-model").fill(model)
    page.get_by_role("button", name="Start", exact=True).click()
    panel = page.locator("#studio-panel")
    expect(panel.get_by_role("heading", name="Waiting for your ratings")).to_be_visible()
    assert parse_qs(urlparse(page.url).query)["run"] == ["rate-stars-1"]
    store = RunStore(toy_studio.runs / "rate-stars-1")
    assert store.config.rating == "stars"
    expect(panel.locator(".panel-strip img")).to_have_count(16)

    panel.get_by_role("button", name="Pause", exact=True).click()
    expect(panel.get_by_role("heading", name="Paused")).to_be_visible()
    panel.get_by_role("button", name="Resume").click()
    expect(panel.get_by_role("heading", name="Waiting for your ratings")).to_be_visible()

    panel.get_by_role("button", name="Stop now").click()
    expect(page.get_by_role("dialog")).to_contain_text("Stop now?")
    page.get_by_role("button", name="Keep running").click()
    assert store.status().alive and not store.pending_requests()
    panel.get_by_role("button", name="Stop now").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop now").click()
    expect(panel.get_by_role("heading", name="Stopped")).to_be_visible()
    until(lambda: not store.status().alive)

    panel.get_by_role("button", name="Resume").click()
    expect(panel.get_by_role("heading", name="Waiting for your ratings")).to_be_visible()
    store.close()


def test_a_lora_to_start_from_fills_in_its_rank_and_layers(page: Page, studio: Studio, tmp_path: Path) -> None:
    lora, layer = tmp_path / "a.safetensors", "unet.mid_block.attentions.0.proj_in"
    save_file({f"{layer}.lora_A.weight": np.ones((5, 4), np.float32), f"{layer}.lora_B.weight": np.ones((4, 5), np.float32)}, lora)
    open_studio(page, studio)
    page.get_by_role("button", name="Advanced settings").click()
    expect(field(page, "set-lora_rank")).to_have_value("64")
    field(page, "set-init_lora").fill(str(lora))
    expect(field(page, "set-lora_rank")).to_have_value("5")
    expect(field(page, "set-lora_targets")).to_have_value("all")
    field(page, "set-init_lora").fill("nowhere")
    expect(field(page, "set-lora_rank")).to_have_value("5")


def test_a_worker_that_cannot_start_says_why(page: Page, toy_studio: Studio, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_WORKER", "broken")
    open_studio(page, toy_studio)
    field(page, "set-model").fill(model)
    page.get_by_role("button", name="Start", exact=True).click()
    alert = page.locator("#studio-panel").get_by_role("alert")
    expect(alert).to_contain_text("No module named 'torch'")
    expect(alert).to_contain_text("exit code 3")


def test_a_question_is_of_the_run_whose_button_was_pressed(page: Page, studio: Studio) -> None:
    stores = [filled_run(studio.runs / name, rounds=0, awaiting=True) for name in ("one", "two")]
    locks = [WorkerLock(store.folder / "worker.lock") for store in stores]
    page.goto(f"{studio.url}/?run=one")
    page.locator("#studio-panel").get_by_role("button", name="Stop now").click()
    page.locator(".bar select").evaluate("(select) => { select.value = 'two'; select.dispatchEvent(new Event('change', { bubbles: true })); }")
    expect(page.locator("#studio-panel .s-over")).to_have_text("two")
    page.get_by_role("dialog").get_by_role("button", name="Stop now").click()
    until(lambda: bool(stores[0].pending_requests()))
    assert [request.kind for request in stores[0].pending_requests()] == ["stop"] and not stores[1].pending_requests()
    expect(page.locator("#studio-panel .s-over")).to_have_text("two")
    for each in (*locks, *stores):
        each.release() if isinstance(each, WorkerLock) else each.close()


def test_a_second_tab_and_a_reload_show_the_same(page: Page, studio: Studio) -> None:
    for name in ("older", "newer"):
        filled_run(studio.runs / name, rounds=2).close()
        time.sleep(0.02)
    open_studio(page, studio)
    expect(page.locator(".bar select")).to_have_value("newer")
    page.locator(".bar select").select_option("older")
    expect(page.locator("#studio-panel")).to_contain_text("older")
    assert parse_qs(urlparse(page.url).query)["run"] == ["older"]
    page.reload()
    expect(page.locator(".bar select")).to_have_value("older")
    second = page.context.new_page()
    second.goto(page.url)
    expect(second.locator("#studio-panel")).to_contain_text("older")
    second.close()


def test_the_page_follows_the_store(page: Page, studio: Studio) -> None:
    store = filled_run(studio.runs / "a", rounds=1)
    open_studio(page, studio, "a")
    expect(page.locator(".bar")).to_contain_text("Interrupted")
    lock = WorkerLock(store.folder / "worker.lock")
    store.set_progress("sampling", 2, 4, 8)
    expect(page.locator(".bar")).to_contain_text("Making images")
    expect(page.locator(".bar")).to_contain_text("round 2 of 3 · 4 of 8")
    lock.release()
    expect(page.locator(".bar")).to_contain_text("Interrupted")
    store.close()


def test_a_restarted_server_shows_the_same(page: Page, tmp_path: Path) -> None:
    filled_run(tmp_path / "runs" / "a", rounds=2).close()
    for _ in range(2):
        for studio in serve(tmp_path / "runs"):
            open_studio(page, studio, "a")
            expect(page.locator("#studio-panel")).to_contain_text("Interrupted")
            page.goto("about:blank")


# --- progress -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def charted(studio: Studio) -> Iterator[Studio]:
    store = filled_run(studio.runs / "a", rounds=6)
    store.add_metrics(3, dict(reward_mean=float("nan"), never_seen_before=1.5))
    store.close()
    yield studio


def test_charts_read_by_mouse_by_key_and_as_a_table(page: Page, charted: Studio) -> None:
    open_studio(page, charted, "a", "Progress")
    reward = page.locator(".chart-wide")
    plot = reward.locator(".chart-plot")
    expect(plot.locator("path.chart-line")).to_have_count(2)  # a gap at round 3 is a gap
    assert "NaN" not in plot.inner_html()
    expect(page.get_by_role("heading", name="Never seen before")).to_be_visible()
    plot.focus()
    page.keyboard.press("Home")
    expect(reward.locator(".chart-reading")).to_contain_text("Round 1:")
    expect(reward.locator(".chart-reading")).to_contain_text("8 images rated")
    page.keyboard.press("ArrowRight")
    expect(reward.locator(".chart-reading")).to_contain_text("Round 2:")
    box = plot.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 14, box["y"] + 60)
    expect(reward.locator(".chart-reading")).to_contain_text("Round 6:")
    reward.get_by_text("As a table").click()
    expect(reward.get_by_role("row")).to_have_count(7)


def test_charts_update_in_place(page: Page, charted: Studio) -> None:
    open_studio(page, charted, "a", "Progress")
    plot = page.locator(".chart-wide .chart-plot")
    expect(plot.locator("circle.chart-dot")).to_have_count(5)
    plot.evaluate("node => { node.dataset.kept = 'yes'; }")
    store = RunStore(charted.runs / "a")
    store.add_metrics(7, dict(reward_mean=0.5, reward_std=0.1))
    store.close()
    expect(plot.locator("circle.chart-dot")).to_have_count(6)
    assert plot.evaluate("node => node.isConnected")


HEIGHTS = """window.heights = [];
new MutationObserver(() => {
  const grid = document.querySelector(".gallery-grid");
  if (grid?.offsetHeight) window.heights.push(grid.offsetHeight);
}).observe(document, { childList: true, subtree: true });"""


def test_the_gallery_shows_any_round_large_and_small(page: Page, charted: Studio) -> None:
    """And the page does not jump when the images arrive."""
    page.add_init_script(HEIGHTS)
    open_studio(page, charted, "a", "Progress")
    gallery = page.locator("#studio-gallery")
    expect(gallery).to_contain_text("Round 6: 8 images, 8 scored")
    assert len(set(page.evaluate("window.heights"))) == 1
    gallery.get_by_role("button", name="Earlier round").click()
    expect(gallery).to_contain_text("Round 5: 8 images")
    gallery.locator(".gallery-tile").first.click()
    dialog = page.get_by_role("dialog", name="Image, large")
    expect(dialog).to_contain_text("1 of 8")
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("2 of 8")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert gallery.locator(".gallery-tile img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64


def test_metrics_come_as_csv(page: Page, charted: Studio) -> None:
    open_studio(page, charted, "a", "Progress")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("round,") and len(lines) == 7 and download.value.suggested_filename == "a-metrics.csv"


# --- library --------------------------------------------------------------------------------------------------------------------


def test_the_library_opens_and_deletes(page: Page, studio: Studio) -> None:
    filled_run(studio.runs / "keep", rounds=2).close()
    time.sleep(0.02)
    filled_run(studio.runs / "drop", rounds=1).close()
    (studio.runs / "damaged").mkdir()
    (studio.runs / "damaged" / "config.json").write_text("{")
    open_studio(page, studio, tab="Library")
    expect(page.get_by_role("article")).to_have_count(3)
    expect(page.get_by_role("article", name="damaged")).to_contain_text("Unreadable")
    page.get_by_role("button", name="Delete drop").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    assert (studio.runs / "drop").exists()
    page.get_by_role("button", name="Delete drop").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("article")).to_have_count(2)
    assert not (studio.runs / "drop").exists()
    page.get_by_role("article", name="keep").get_by_role("button", name="Open").click()
    expect(page.get_by_role("tab", name="Run", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#studio-panel")).to_contain_text("keep")


# --- odd texts, sizes, themes ---------------------------------------------------------------------------------------------------


def test_odd_prompts_are_text_everywhere(page: Page, studio: Studio) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a prompt ran: {dialog.message}"))
    store = filled_run(studio.runs / "odd", rounds=4, prompts=ODD_PROMPTS)
    store.add_event("failed", ODD_PROMPTS[3])
    store.set_progress("failed", 4)
    store.close()
    open_studio(page, studio, "odd")
    expect(page.get_by_role("alert").filter(has_text="<script>")).to_be_visible()
    for tab in ("Rate", "Progress", "Compare", "Rewards", "Library"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(300)
    page.get_by_role("tab", name="Progress", exact=True).click()
    gallery = page.locator("#studio-gallery")
    shown: set[str] = set()
    for _ in range(4):
        shown |= set(gallery.locator(".gallery-tile > span").all_text_contents())
        if gallery.get_by_role("button", name="Earlier round").is_enabled():
            gallery.get_by_role("button", name="Earlier round").click()
            page.wait_for_timeout(400)
    assert any("${alert(1)}" in text for text in shown) and any("<script>" in text for text in shown)
    assert page.title() != "broken" and page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width_and_the_theme_follows_the_system(page: Page, studio: Studio, width: int, theme: str) -> None:
    filled_run(studio.runs / "a-run-with-quite-a-long-name-that-goes-on-and-on", rounds=3, prompts=ODD_PROMPTS).close()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    open_studio(page, studio)
    for tab in ("Run", "Rate", "Progress", "Compare", "Rewards", "Library"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, tab
    red, green, blue = (int(c) for c in re.findall(r"\d+", page.evaluate("getComputedStyle(document.querySelector('.bar')).backgroundColor"))[:3])
    assert (red + green + blue < 384) == (theme == "dark")
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "light")


def test_the_keyboard_reaches_the_run_and_the_tabs(page: Page, studio: Studio) -> None:
    filled_run(studio.runs / "a", rounds=1).close()
    open_studio(page, studio, "a")
    expect(page.locator("#studio-panel")).to_contain_text("Interrupted")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(NAME_IN_FOCUS))
    assert "Run" in reached and "Resume" in reached, reached
