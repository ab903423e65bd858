"""What a hundred ratings come to: ``python -m benchmarks.hundred_ratings``.

A simulated person of a hidden taste (:mod:`benchmarks.tastes`) rates real runs: trainer, store and model of taste are the studio's. The person sees
what the board shows, gives a thumb up to what they like better than half of all they have seen so far, and
errs in one of four. The model is then compared with its base on prompts that it was never trained on, at seeds never used, by the true taste.
A run is one line of ``benchmarks/hundred_ratings.jsonl``, made once.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import animal_accuracy
from benchmarks.tastes import opinion_of
from ddpo.config import RunConfig, prompt_sets
from ddpo.control import Control
from ddpo.evaluate import held_out_images
from ddpo.policy import StableDiffusionPolicy
from ddpo.store import RunStore
from ddpo.taster import GUESS
from ddpo.trainer import Trainer

RESULTS = Path(__file__).with_suffix(".jsonl")
RELIABLE = 0.75
"""The share of thumbs that say what the person thinks."""
TRAINED = tuple(prompt_sets()["animals"][:12])
"""The prompts that are trained; the other 33 animals are for measuring."""
HELD_OUT = tuple(prompt_sets()["animals"][12:])


class Person(Control):
    """Rates a board as soon as it waits, and applies."""

    def __init__(self, store: RunStore, taste: str, seed: int, most: int) -> None:
        super().__init__(store)
        self.taste, self.most = taste, most
        self.rng = random.Random(f"{taste} {seed}")
        self.seen: list[float] = []
        self.given = 0

    def wait_until_applied(self, number: int, images: int) -> None:
        board = self.store.board(number)
        liked = [opinion_of(self.taste, Image.open(self.store.folder / row.image)) for row in board]
        self.seen += liked
        middle = statistics.median(self.seen)
        for row, value in zip(board, liked, strict=True):
            if self.given == self.most:
                break
            up = (value > middle) == (self.rng.random() < RELIABLE)
            self.store.add_rating(f"{number} {row.id}", row.id, self.taste, "thumbs", 1.0 if up else -1.0)
            self.given += 1
        self.store.close_round(number)


def measured(policy: StableDiffusionPolicy, config: RunConfig, taste: str, count: int) -> dict[str, float]:
    """Tuned against base on prompts never trained."""
    other = config.with_changes(prompts=HELD_OUT)
    prompts, base = held_out_images(policy, other, base=True, count=count)
    _, tuned = held_out_images(policy, other, base=False, count=count)
    before, after = (np.array([opinion_of(taste, image) for image in images]) for images in (base, tuned))
    wins = float(((after > before) + 0.5 * (after == before)).mean())
    return dict(
        wins=round(wins, 4), shift=round(float((after - before).mean() / before.std()), 4),
        animals_before=round(animal_accuracy(base, prompts), 4), animals_after=round(animal_accuracy(tuned, prompts), 4),
        diversity=round(diversity(tuned, prompts) / diversity(base, prompts), 4),
    )  # fmt: skip


def diversity(images: list[Image.Image], prompts: list[str]) -> float:
    """How far images of one prompt are from one another: the mean distance of their pixels."""
    pixels = np.stack([np.asarray(image.convert("RGB").resize((16, 16)), dtype=np.float64).ravel() for image in images])
    found = []
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        gaps = np.sqrt(((pixels[rows][:, None] - pixels[rows][None]) ** 2).mean(-1))
        found += gaps[np.triu_indices(len(rows), 1)].tolist()
    return statistics.fmean(found)


def within_correlation(truth: list[float], guessed: list[float], prompts: list[str]) -> float:
    """The correlation of two numbers' differences within prompts."""
    centred = []
    for values in (truth, guessed):
        found = np.array(values)
        for prompt in dict.fromkeys(prompts):
            same = [i for i, other in enumerate(prompts) if other == prompt]
            found[same] -= found[same].mean()
        centred.append(found)
    return float(np.corrcoef(*centred)[0, 1])


def guesses_of(store: RunStore, taste: str) -> list[float]:
    """How well the model of taste guessed each round's differences."""
    found = []
    for row in store.rounds():
        rows, guess = store.samples(row.number), store.scores(row.number, GUESS)
        if guess:
            truth = [opinion_of(taste, Image.open(store.folder / each.image)) for each in rows]
            found.append(within_correlation(truth, [guess[each.id].value or 0.0 for each in rows], [each.prompt for each in rows]))
    return [round(each, 3) for each in found]


def run(taste: str, seed: int, settings: dict[str, Any], ratings: int, folder: Path, count: int) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    board = settings.get("board_images", 0) or settings.get("images_per_round", 16)
    config = RunConfig(**(dict(prompts=TRAINED, rounds=-(-ratings // board), seed=seed, held_out_images=0) | settings))
    store = RunStore.create(folder, config)
    policy = StableDiffusionPolicy.load(config)
    person = Person(store, taste, seed, ratings)
    started = time.monotonic()
    Trainer(config, store, policy, person).run()
    seconds = time.monotonic() - started
    known = [value for _, value in store.metrics().get("preference_known", [])]
    guesses = guesses_of(store, taste)
    store.close()
    return dict(
        taste=taste, seed=seed, ratings=person.given, settings=settings, seconds=round(seconds), guesses=guesses, known=known,
        **measured(policy, config, taste, count),
    )  # fmt: skip
