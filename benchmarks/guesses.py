"""How well the model of taste guesses, before anything is learned from it: ``python -m benchmarks.guesses``.

Simulated people of a hidden taste (:mod:`benchmarks.tastes`) rate boards of base images, 16 of 32 each, which the model of taste chooses. After each
board it guesses images of the same prompts that nobody rated. Compared are the correlation of guess and taste within prompts, and how far its
uncertainty can be believed: the density of what would be said of those images, and the share of it within intervals that are to hold 80 %. A second
table has the same correlation of what a round of 32 would be learned from: its 16 ratings alone, these with guesses for the others (``assist``), or
guesses for all (``lead``). ``--choosing`` compares boards instead: chosen of 32, 64 or 128 images, drawn from 32, or all images of two prompts.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.common import plus_minus
from benchmarks.hundred_ratings import RELIABLE, TRAINED, WAYS, within_correlation
from benchmarks.tastes import TASTES, opinion_of
from ddpo.evaluate import held_out_images
from ddpo.policy import StableDiffusionPolicy
from ddpo.taster import levelled
from rewards.base import Score
from rewards.preference import Looks, Taste, looks

ASKED = 12
"""Images of each prompt that are guessed and never rated."""
PROMPTS, OF_EACH, BOARD = 4, 8, 16
"""Prompts of a round, images of each, and how many of all are rated."""
UNSTEADY = 0.3
"""The standard deviation with which stars miss what somebody thinks, in deviations of the taste."""
STEP = 0.8
"""Deviations of the taste from one star to the next."""
WIDTH = 1.2816
"""So many standard deviations to both sides hold 80 % of a normal distribution."""


CHOOSING: dict[str, dict[str, Any]] = {
    "all images of two prompts": dict(of_each=8, of_prompts=2),
    "drawn from 32": dict(of_each=8, chosen=False),
    "chosen of 32": dict(of_each=8),
    "chosen of 64": dict(of_each=16),
    "chosen of 128": dict(of_each=32),
}
"""Ways to choose boards."""


def thumb(liked: float, middle: float, spread: float, rng: random.Random) -> float:
    """Up where it is better than the middle, and wrong one time in four."""
    return 1.0 if (liked > middle) == (rng.random() < RELIABLE) else -1.0


def star(liked: float, middle: float, spread: float, rng: random.Random) -> float:
    """One to five stars as opinions from -1 to 1."""
    return float(np.clip(round(((liked - middle) / spread + rng.gauss(0, UNSTEADY)) / STEP), -2, 2)) / 2


def lessons(pool: Sequence[int], prompts: Sequence[str], truth: Sequence[float], own: dict[int, float], guessed: Sequence[float]) -> list[float]:
    """How a round's own ratings, assist's scores, and guesses go together with the taste."""
    scores = {i: Score(value) for i, value in zip(pool, guessed, strict=True)}
    assisted = levelled({i: Score(own[i]) for i in pool if i in own}, scores, {i: prompts[i] for i in pool})
    rated = [i for i in pool if i in own]
    ways = ((rated, [own[i] for i in rated]), (pool, [assisted[i].value or 0.0 for i in pool]), (pool, list(guessed)))
    return [within_correlation([truth[i] for i in rows], found, [prompts[i] for i in rows]) for rows, found in ways]


def person(
    seen: Looks, prompts: Sequence[str], truth: Sequence[float], says: Callable[..., float], seed: int, boards: int, of_each: int = OF_EACH,
    chosen: bool = True, of_prompts: int = PROMPTS,
) -> list[list[float]]:  # fmt: skip
    """Somebody rates boards; after each: correlation, logarithm of the density, and share within the interval, of images that were never rated; and
    :func:`lessons`.

    Args:
        of_each: images of each prompt, of which the board is.
        chosen: whether the model of taste chooses it, or the lot.
        of_prompts: of how many prompts.
    """
    rng = random.Random(seed)
    order, images = rng.sample(TRAINED, len(TRAINED)), {prompt: [i for i, other in enumerate(prompts) if other == prompt] for prompt in TRAINED}
    asked = [i for rows in images.values() for i in rows[-ASKED:]]
    left = {prompt: rng.sample(rows[:-ASKED], len(rows) - ASKED) for prompt, rows in images.items()}
    rated: list[int] = []
    said: list[float] = []
    met: list[float] = []
    found, spread = [], statistics.pstdev(truth)

    def of(rows: Sequence[int]) -> tuple[Looks, list[str]]:
        return {kind: values[list(rows)] for kind, values in seen.items()}, [prompts[i] for i in rows]

    for board in range(boards):
        pool = [left[order[(of_prompts * board + j) % len(order)]].pop() for j in range(of_prompts) for _ in range(of_each)]
        if not chosen:
            shown = rng.sample(pool, BOARD)
        elif rated:
            taste = Taste(*of(rated), said, of([*rated, *pool])[0])
            shown = [pool[j] for j in taste.choose(*of(pool), BOARD, board)]
        else:
            shown = [i for j, i in enumerate(pool) if j % of_each < BOARD // of_prompts]
        met += [truth[i] for i in shown]
        middle = statistics.median(met)
        rated += shown
        said += [says(truth[i], middle, spread, rng) for i in shown]
        taste = Taste(*of(rated), said)
        correlation = within_correlation([truth[i] for i in asked], taste.guess(*of(asked)).mean.tolist(), of(asked)[1])
        mean, std = taste.expect(*of(asked))
        off, variance = np.array([says(truth[i], middle, spread, rng) for i in asked]) - mean, std**2 + taste.noise
        density, inside = -(off**2 / variance + np.log(2 * np.pi * variance)) / 2, off**2 < WIDTH**2 * variance
        learned = lessons(pool, prompts, truth, dict(zip(rated, said, strict=True)), taste.guess(*of(pool)).rating.tolist())
        found.append([correlation, float(density.mean()), float(inside.mean()), *learned])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="base images of each of the twelve prompts")
    parser.add_argument("--boards", type=int, default=6, help=f"boards of {BOARD} ratings")
    parser.add_argument("--seeds", type=int, default=20, help="people of each taste")
    parser.add_argument("--choosing", action="store_true", help="compare ways to choose boards (with --images 96)")
    options = parser.parse_args()
    most = max(each["of_each"] for each in CHOOSING.values()) if options.choosing else OF_EACH
    if options.images < ASKED + most * -(-PROMPTS * options.boards // len(TRAINED)):
        parser.error(f"so many boards need more than {options.images} images of each prompt")
    config = WAYS["rate-few"].config(BOARD * options.boards, 0)
    prompts, images = held_out_images(StableDiffusionPolicy.load(config), config, base=True, count=options.images * len(TRAINED))
    seen = looks(images)
    after = [f"after {BOARD * (board + 1)}" for board in range(options.boards)]
    if options.choosing:
        print(f"| ratings | boards | {' | '.join(after)} |\n|---|---|{'---|' * options.boards}")
        truths = [[opinion_of(taste, image) for image in images] for taste in TASTES]
        for name, changes in CHOOSING.items():
            people = [person(seen, prompts, truth, thumb, seed, options.boards, **changes) for truth in truths for seed in range(options.seeds)]
            print(row_of("thumbs", name, people, [0], []), flush=True)
        return
    print(f"| ratings | taste | {' | '.join(after)} | log density at last | in 80 % |")
    print("|---|---|" + "---|" * (options.boards + 2))
    everybody: dict[str, list[list[list[float]]]] = {}
    for kind, says in (("thumbs, one in four wrong", thumb), ("stars", star)):
        every = everybody.setdefault(kind, [])
        for taste in TASTES:
            truth = [opinion_of(taste, image) for image in images]
            every += [person(seen, prompts, truth, says, seed, options.boards) for seed in range(options.seeds)]
            print(row_of(kind, taste, every[-options.seeds :], [0], [1, 2]), flush=True)
        print(row_of(kind, "all", every, [0], [1, 2]), flush=True)
    print(f"\n| ratings | learned from | {' | '.join(after)} |")
    print("|---|---|" + "---|" * options.boards)
    for kind, every in everybody.items():
        for i, way in enumerate(("its ratings alone", "assist", "lead")):
            print(row_of(kind, way, every, [3 + i], []))


def row_of(kind: str, name: str, people: list[list[list[float]]], each: Sequence[int], last: Sequence[int]) -> str:
    """A row: some measures after each board, and others after the last."""
    cells = [plus_minus([person[board][i] for person in people]) for i in each for board in range(len(people[0]))]
    cells += [plus_minus([person[-1][i] for person in people]) for i in last]
    return f"| {kind} | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
