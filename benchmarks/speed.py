"""How long people wait: ``python -m benchmarks.speed``, on a quiet machine.

Drives the real page of the real studio: start of the app, Start to the first image on the board, Enter to the first image of the next
board, a key press to its acknowledgement while another worker trains, and the memory of both processes. One line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page

from app.launch import kill
from benchmarks.studio import app, browser_page, memory_mb, start_run
from ddpo.lock import holder
from ddpo.presets import presets
from ddpo.store import RunStore

PRESETS = tuple(name for name, preset in presets().items() if preset.config.rated_by_people and preset.config.model == "pocket")
HERE = "#rating-board .card[data-state=here]"


def rate_board(page: Page, images: int, pace: float = 0.0) -> list[float]:
    """Rate every image by keyboard, up and down in turn, each after a look of ``pace`` seconds; returns milliseconds from key to acknowledgement."""
    waits = []
    for i in range(images):
        time.sleep(pace)
        started = time.perf_counter()
        with page.expect_response(lambda r: "/ratings" in r.url):
            page.keyboard.press("u" if i % 2 else "d")
        waits.append(1000 * (time.perf_counter() - started))
    return waits


def next_board(page: Page) -> float:
    """Apply, and wait for the first image of the next board; returns seconds."""
    seen = max(page.eval_on_selector_all(HERE, "cards => cards.map(card => parseInt(card.dataset.id))"))
    started = time.perf_counter()
    page.keyboard.press("Enter")
    fresh = f"() => [...document.querySelectorAll('{HERE}')].some((card) => parseInt(card.dataset.id) > {seen})"
    page.wait_for_function(fresh, polling=20, timeout=120_000)
    return time.perf_counter() - started


def wait_for_board(page: Page) -> None:
    """All 16 images are there and may be applied."""
    page.wait_for_function(f"() => document.querySelectorAll('{HERE}').length == 16", timeout=120_000)
    page.locator(HERE).first.focus()
    time.sleep(0.5)


def beside_training(page: Page, folder: Path) -> list[float]:
    """Rate 80 times while another worker trains on both cores; milliseconds from key to acknowledgement."""
    command = [sys.executable, "-m", "ddpo", "run", "--preset", "compress", "--rounds", "100", "--out", str(folder)]
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(15)
        return [wait for _ in range(5) for wait in rate_board(page, 16)]
    finally:
        training.kill()
        training.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="rate", choices=PRESETS, help="what to start from")
    parser.add_argument("--boards", type=int, default=5, help="boards to rate")
    parser.add_argument("--pace", type=float, default=0.5, help="seconds that a person looks at each image")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, app(Path(folder)) as (address, process, answered), browser_page(address) as page:
        pressed = start_run(page, "speed", options.preset)
        page.wait_for_selector(HERE, timeout=60_000)
        first = time.perf_counter() - pressed
        boards, worker = [], 0.0
        for _ in range(options.boards):
            wait_for_board(page)
            rate_board(page, 16, options.pace)
            boards.append(next_board(page))
            worker = max(worker, memory_mb(holder(Path(folder) / "speed" / "worker.lock") or 0))
        wait_for_board(page)
        waits = beside_training(page, Path(folder) / "beside")
        report = dict(
            preset=options.preset,
            app_answers_s=round(answered, 2),
            start_to_first_image_s=round(first, 2),
            enter_to_next_image_s=[round(b, 2) for b in boards],
            key_to_saved_ms_median=round(statistics.median(waits), 1),
            key_to_saved_ms_p95=round(statistics.quantiles(waits, n=20)[-1], 1),
            app_mb=round(memory_mb(process.pid)),
            worker_mb=round(worker),
        )
        print(json.dumps(report))
        kill(RunStore(Path(folder) / "speed"))


if __name__ == "__main__":
    main()
