"""The main job, whole: a person in a real browser, the real app, the real worker in its own process, the real pocket model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.launch import Launcher, kill
from ddpo.config import RunConfig
from ddpo.lock import holder
from ddpo.store import RunStore
from rewards.function import TRUSTED, trust
from tests.conftest import Studio, serve

pytestmark = pytest.mark.timeout(600)
HERE = "#rating-board .card[data-state=here]"


@pytest.fixture
def real_studio(tmp_path: Path):
    """A studio with the shipped launcher."""
    yield from serve(tmp_path / "runs", launcher=Launcher())
    for config in (tmp_path / "runs").glob("*/config.json"):
        kill(RunStore(config.parent))


def until(condition: Callable[[], bool], seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def press_and_save(page, key: str) -> None:
    with page.expect_response(lambda response: "/ratings" in response.url) as found:
        page.keyboard.press(key)
    assert found.value.status == 200


def rate_whole_board(page) -> None:
    """Sixteen images by keyboard alone; each key moves on to the next image."""
    page.wait_for_function(f"() => document.querySelectorAll('{HERE}').length === 16", timeout=200_000)
    page.locator(HERE).first.focus()
    for i in range(16):
        press_and_save(page, "u" if i % 2 else "d")


def apply_board(page) -> None:
    """Press Enter once the board says that it can be pressed."""
    page.locator("#rating-board [data-ref=apply][aria-disabled=false]").wait_for(timeout=200_000)
    page.locator(HERE).first.focus()
    page.keyboard.press("Enter")


def test_a_person_starts_a_run_rates_two_boards_by_keyboard_and_the_model_learns(page, real_studio: Studio) -> None:
    page.goto(real_studio.url)
    page.get_by_label("Name of the run").fill("first")
    page.locator("#start-run").click()
    page.get_by_role("tab", name="Rate").click()
    rate_whole_board(page)
    store = RunStore(real_studio.runs / "first")
    apply_board(page)
    until(lambda: len(store.samples(2)) == 16)
    page.wait_for_function(f"() => [...document.querySelectorAll('{HERE}')].some((card) => parseInt(card.dataset.id) > 16)", timeout=200_000)

    first = store.rounds()[0]
    assert first.next_mark is None, "the first round has all four marks"
    assert len(store.latest_ratings(1)) == 16
    assert store.checkpoints()[1].joinpath("pytorch_lora_weights.safetensors").exists()
    metrics = store.metrics()
    assert metrics["scored_images"][0] == (1, 16.0)
    assert metrics["updates"][0] == (1, 4.0) and 0 < metrics["ratio_max_deviation"][0][1] < 0.05, "three updates follow the first, within reason"

    kill(store)  # the plug is pulled while the second board waits
    until(lambda: store.status().state == "interrupted")
    rate_whole_board(page)  # ratings are taken all the same
    assert len(store.latest_ratings(2)) == 16
    page.get_by_role("tab", name="Run").click()
    page.get_by_role("button", name="Resume").first.click()
    until(lambda: store.status().state == "awaiting")
    page.get_by_role("tab", name="Rate").click()
    apply_board(page)
    until(lambda: bool(store.checkpoints().get(2)))
    assert store.metrics()["scored_images"][1] == (2, 16.0)


def test_a_run_made_without_a_page_opens_in_the_page(page, real_studio: Studio) -> None:
    folder = real_studio.runs / "headless"
    options = ["--reward", "jpeg_compressibility", "--rounds", "2", "--images-per-round", "8", "--images-per-prompt", "4", "--images-per-update", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "ddpo", "run", "--out", str(folder), *options, "--held-out-images", "4"],
        capture_output=True, text=True, check=True, env=os.environ, timeout=240,
    )  # fmt: skip
    assert '"rounds": 2' in done.stdout.splitlines()[-1]
    assert holder(folder / "worker.lock") is None
    page.goto(f"{real_studio.url}/?run=headless")
    page.get_by_role("tab", name="Progress").click()
    page.get_by_text("Finished").first.wait_for()
    page.locator("#studio-tabs").get_by_text("Held-out").first.wait_for(state="attached")


def test_a_reward_fails_and_a_person_changes_it_for_a_blend(page, real_studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of one's own that fails on real images: the page says why, Retry meets it again, and a blend takes over; no image is made twice."""
    monkeypatch.setenv(TRUSTED, "")
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def moody(images, prompts):\n    if images[0].getbbox():\n        raise OSError('the oven is cold')\n    return [1.0] * len(images)\n"
    )
    trust(mine, "moody")
    config = RunConfig(reward=f"{mine}:moody", rounds=2, images_per_round=8, images_per_update=8, held_out_images=0, microbatch=8)
    store = RunStore.create(real_studio.runs / "moody", config)
    Launcher().start(store.folder)
    page.goto(f"{real_studio.url}/?run=moody")
    alert = page.get_by_role("alert").filter(has_text="the oven is cold")
    alert.wait_for(timeout=200_000)
    assert page.get_by_text(f"{mine}:moody").count() and page.get_by_role("heading", name="The reward failed").count()
    pictures = [row.image for row in store.samples(1)]

    page.get_by_role("button", name="Retry").click()
    until(lambda: sum(event.kind == "reward_failed" for event in store.events()) == 2)
    page.get_by_role("button", name="Change reward").click()
    page.get_by_label("From the next scores on, in this run").select_option("blend")
    page.locator('.reward-parts input[name="jpeg_compressibility"]').fill("1")
    page.locator('.reward-parts input[name="image_statistics"]').fill("0.5")
    page.keyboard.press("Enter")
    until(lambda: store.status().state == "finished")
    assert [row.image for row in store.samples(1)] == pictures
    assert store.reward_stretches() == [(1, "blend: 1 jpeg_compressibility, 0.5 image_statistics")]
    page.get_by_role("tab", name="Progress").click()
    page.get_by_role("heading", name="Blend: 1 × JPEG compressibility, 0.5 × Image statistics", exact=True).wait_for()
    store.close()
