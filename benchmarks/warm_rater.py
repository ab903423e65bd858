"""A person who likes warm colours, and errs: ``python -m benchmarks.warm_rater``.

A scripted rater sits before the real page in a headless browser. It looks at each picture as the page shows it, gives a thumb up to
those that are warmer than the board's median and a thumb down to the others, errs in one of five, and presses Enter. After ten boards of
16 (160 ratings) held-out pictures of the base model and of the finetuned one, with the same prompts and seeds, are compared. One line
of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from benchmarks.common import animal_accuracy, before_and_after, paired, warmth
from benchmarks.speed import next_board, wait_for_board
from benchmarks.studio import app, browser_page, start_run


def seen(page: Page, address: str) -> list[float]:
    """The warmth of the board's pictures, in the order of the board."""
    sources = page.eval_on_selector_all("#rating-board .card img", "images => images.map(image => image.getAttribute('src'))")
    return [warmth(Image.open(io.BytesIO(urllib.request.urlopen(address + source).read()))) for source in sources]


def rate(page: Page, address: str, rng: random.Random, wrong: float) -> None:
    """Rate the board by keyboard."""
    values = seen(page, address)
    middle = statistics.median(values)
    for index, value in enumerate(values):
        likes = (value > middle) != (rng.random() < wrong)
        page.locator("#rating-board .card").nth(index).focus()
        with page.expect_response(lambda r: "/ratings" in r.url):
            page.keyboard.press("u" if likes else "d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/warm"), help="folder for the run")
    parser.add_argument("--name", default="warm", help="name of the run")
    parser.add_argument("--boards", type=int, default=10, help="boards of 16 to rate")
    parser.add_argument("--wrong", type=float, default=0.2, help="share of wrong clicks")
    parser.add_argument("--seed", type=int, default=0, help="of the run and of the rater")
    parser.add_argument("--images", type=int, default=64, help="held-out pictures")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    started = time.monotonic()
    with app(options.out) as (address, _, _), browser_page(address) as page:
        start_run(page, options.name, seed=str(options.seed), rounds=str(options.boards))
        for number in range(2, options.boards + 2):
            wait_for_board(page)
            rate(page, address, rng, options.wrong)
            if number <= options.boards:
                next_board(page)
            else:
                page.keyboard.press("Enter")
                page.wait_for_function("() => /done|finished/i.test(document.querySelector('#rating-board').innerText)", timeout=60_000)
    seconds = time.monotonic() - started
    prompts, base, tuned = before_and_after(options.out / options.name, options.boards, options.images)
    before, after = [warmth(i) for i in base], [warmth(i) for i in tuned]
    shift, error = paired(before, after)
    report = dict(
        ratings=16 * options.boards,
        seconds=round(seconds),
        warmth_before=round(statistics.mean(before), 4),
        warmth_after=round(statistics.mean(after), 4),
        shift_in_standard_errors=round(shift / error, 2),
        shift_in_base_deviations=round(shift / statistics.stdev(before), 2),
        better_share=round(sum(a > b for a, b in zip(after, before, strict=True)) / len(before), 3),
        animals_before=round(animal_accuracy(base, prompts), 3),
        animals_after=round(animal_accuracy(tuned, prompts), 3),
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
