"""What a hundred ratings come to: ``python -m benchmarks.hundred_ratings`` makes the runs that are missing, ``--report`` their table.

A simulated person of a hidden taste (:mod:`benchmarks.tastes`) rates real runs: trainer, store and model of taste are the studio's. The person sees
what the board shows, gives a thumb up to what they like better than half of all they have seen so far, and errs in one of four. They leave when a
board waits and their ratings are spent. The model is then compared with its base on prompts that it was never trained on, at seeds never used, by the
true taste: what was learned at its full strength, and at half of it (:mod:`ddpo.strengths`).
A run is one line of ``benchmarks/hundred_ratings.jsonl``, made once; the whole takes as many sittings as it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import rewards
from benchmarks.common import add_line, animal_accuracy, effective, judge_name, judged_before, lines_of, plus_minus, precision_of, same_settings
from benchmarks.hero import SETTINGS as HERO
from benchmarks.hero import HeroTrainer, NoiseReuseTrainer
from benchmarks.tastes import TASTES, opinion_of
from ddpo.config import RunConfig, prompt_sets
from ddpo.control import Control, StopRun
from ddpo.evaluate import held_out_images
from ddpo.policy import StableDiffusionPolicy
from ddpo.presets import presets
from ddpo.store import RunStore
from ddpo.taster import GUESS, Taster
from ddpo.trainer import Trainer

RESULTS = Path(__file__).with_suffix(".jsonl")
RELIABLE = 0.75
"""The share of thumbs that say what the person thinks."""
TRAINED = tuple(prompt_sets()["animals"][:12])
"""The prompts that are trained; the other 33 animals are for measuring."""
HELD_OUT = tuple(prompt_sets()["animals"][12:])
PICTURES = 99
"""How many pictures of the held-out prompts are measured, three of each."""
BARS = dict(wins=0.8, shift=0.5, animals=-0.1, diversity=0.7)
"""What a hundred ratings should come to."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to learn from ratings: a preset, and what is changed of it."""

    title: str
    preset: str
    changes: dict[str, Any]
    recipe: str = ""
    """``hero``, ``noise-reuse``, or the studio's own loop."""

    def config(self, ratings: int, seed: int) -> RunConfig:
        """Its run, at least as long as it is asked for so many ratings."""
        config = presets()[self.preset].config.with_changes(**dict(prompts=TRAINED) | self.changes, seed=seed, held_out_images=0, watch_every=0)
        boards = -(-ratings // (config.board_images or config.images_per_round))
        return config.with_changes(rounds=boards * config.board_every)


WAYS = {
    "rate-few": Way(
        "preset rate-few: 16 of 48 images rated, made ahead, a model of taste leads, two rounds a board, four images of a prompt, warm-up",
        "rate-few",
        {},
    ),
    "cold": Way("rate-few, without warm-up", "rate-few", dict(warmup_rounds=0)),
    "thirty-two": Way("rate-few, 32 images a round", "rate-few", dict(images_per_round=32)),
    "eight-of-a-prompt": Way("rate-few, eight images of a prompt", "rate-few", dict(images_per_prompt=8)),
    "waiting": Way("rate-few, nothing made ahead", "rate-few", dict(ahead=0)),
    "faster": Way("rate-few, with the learning rate of the other presets", "rate-few", dict(learning_rate=1e-3)),
    "free": Way("rate-few, without a KL penalty", "rate-few", dict(kl_weight=0.0)),
    "every-round": Way("rate-few, a board every round", "rate-few", dict(board_every=1)),
    "every-third": Way("rate-few, a board every third round", "rate-few", dict(board_every=3)),
    "chosen": Way("rate-few, boards chosen of 32 images, and as many new ones learned from", "rate-few", dict(ahead=32, images_per_round=64)),
    "five-steps": Way("rate-few, images of five denoising steps", "rate-few", dict(steps=5, skip_last_steps=1)),
    "late-steps": Way("rate-few, the last four of the trained steps alone", "rate-few", dict(skip_first_steps=4)),
    "centred": Way("rate-few, one spread of guesses for all prompts", "rate-few", dict(advantage="centred")),
    "noise-reuse": Way(
        "rate-few, images start from the noises of their prompt's better half in the last round, as HERO's do", "rate-few", {}, "noise-reuse"
    ),
    "assist": Way("rate-few, a board every round, guesses for what was not rated", "rate-few", dict(preference="assist", board_every=1)),
    "attention": Way("rate-few, adapters of rank 64 in attention alone", "rate-few", dict(lora_targets="attention", lora_rank=64)),
    "all-layers": Way("rate-few, adapters of rank 64 in all layers", "rate-few", dict(lora_rank=64)),
    "ahead": Way("rate-few, whole rounds made ahead and learned from", "rate-few", dict(ahead=48)),
    "guided": Way("rate-few, a board every round, the guided prediction trained", "rate-few", dict(guidance_in_training=True, board_every=1)),
    "two-passes": Way("rate-few, each round's images learned from twice", "rate-few", dict(passes=2)),
    "one-update": Way("rate-few, a board every round, one update a round", "rate-few", dict(board_every=1, images_per_update=48)),
    "rate": Way("preset rate: ratings alone, 16 images rated a round, half of them made ahead, four updates a round", "rate", {}),
    "rate-all": Way("rate, adapters of rank 16 in all layers", "rate", dict(lora_targets="all", lora_rank=16)),
    "rate-waiting": Way("rate, nothing made ahead", "rate", dict(ahead=0)),
    "rate-ahead": Way("rate, whole boards made ahead", "rate", dict(ahead=16)),
    "rate-guided": Way("rate, the guided prediction trained", "rate", dict(guidance_in_training=True)),
    "hero": Way("HERO's recipe, 16 images rated a round", "rate", HERO, "hero"),
    "hero-one-prompt": Way("HERO's recipe, one prompt", "rate", HERO | dict(prompts=TRAINED[:1], images_per_prompt=16), "hero"),
}


class Person(Control):
    """Rates a board as soon as it waits, and applies; leaves when they have said what they had to say and are asked for more. Of the images with a
    thumb up, the best is the one that is really liked best, if they like it better than the best so far: in that the person does not err."""

    def __init__(self, store: RunStore, taste: str, seed: int, most: int) -> None:
        super().__init__(store)
        self.taste, self.most = taste, most
        self.rng = random.Random(f"{taste} {seed}")
        self.seen: list[float] = []
        self.given = 0
        self.best: dict[int, int] = {}
        self.most_liked = -math.inf

    def wait_until_applied(self, number: int, images: int) -> None:
        if self.given == self.most:
            raise StopRun
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
            if up and value > self.most_liked:
                self.best[number], self.most_liked = row.position, value
        self.store.close_round(number)


def measured(policy: StableDiffusionPolicy, config: RunConfig, taste: str, count: int) -> dict[str, Any]:
    """Tuned against base on prompts never trained, and ``half``, the same at half of what was trained."""
    other = config.with_changes(prompts=HELD_OUT)
    prompts, base = held_out_images(policy, other, base=True, count=count)
    before = np.array([opinion_of(taste, image) for image in base])
    found = []
    for strength in (1.0, 0.5):
        with policy.scaled(strength):
            _, tuned = held_out_images(policy, other, base=False, count=count)
        after = np.array([opinion_of(taste, image) for image in tuned])
        wins = float(((after > before) + 0.5 * (after == before)).mean())
        found.append(dict(
            wins=round(wins, 4), shift=round(float((after - before).mean() / before.std()), 4),
            animals_before=round(animal_accuracy(base, prompts), 4), animals_after=round(animal_accuracy(tuned, prompts), 4),
            diversity=round(diversity(tuned, prompts) / diversity(base, prompts), 4),
        ))  # fmt: skip
    whole, half = found
    return whole | dict(half=half, judge=judge_name())


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
    centred: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
    for values in (truth, guessed):
        found = np.array(values)
        for prompt in dict.fromkeys(prompts):
            same = [i for i, other in enumerate(prompts) if other == prompt]
            found[same] -= found[same].mean()
        centred.append(found)
    return float(np.corrcoef(centred[0], centred[1])[0, 1])


def guesses_of(store: RunStore, taste: str) -> list[float]:
    """How well the model of taste guessed each round's differences."""
    found = []
    for row in store.rounds():
        rows, guess = store.samples(row.number), store.scores(row.number, GUESS)
        if guess:
            truth = [opinion_of(taste, Image.open(store.folder / each.image)) for each in rows]
            found.append(within_correlation(truth, [guess[each.id].value or 0.0 for each in rows], [each.prompt for each in rows]))
    return [round(each, 3) for each in found]


def run(name: str, taste: str, seed: int, ratings: int, folder: Path) -> dict[str, Any]:
    """One person's run, and what came of it."""
    shutil.rmtree(folder, ignore_errors=True)
    config = WAYS[name].config(ratings, seed)
    store = RunStore.create(folder, config)
    policy = StableDiffusionPolicy.load(config)
    person = Person(store, taste, seed, ratings)
    started = time.monotonic()
    if WAYS[name].recipe == "hero":
        trainer: Trainer = HeroTrainer(config, store, policy, person, rewards.load, chooser=person)
    else:
        trainer = (NoiseReuseTrainer if WAYS[name].recipe else Trainer)(config, store, policy, person)
    with contextlib.suppress(StopRun):
        trainer.run()
    seconds = time.monotonic() - started
    known = [round(value or 0.0, 3) for _, value in store.metrics().get("preference_known", [])]
    led = [number for number, _ in store.metrics().get("preference_known", []) if Taster(config, store).leads(number)]
    guesses, rounds = guesses_of(store, taste), max(store.checkpoints(), default=0)
    store.close()
    return dict(
        name=name, taste=taste, seed=seed, ratings=person.given, asked=ratings, rounds=rounds, seconds=round(seconds), guesses=guesses, known=known,
        led=led,
        **measured(policy, config, taste, PICTURES), precision=precision_of(folder), config=effective(config),
    )  # fmt: skip


def results() -> dict[tuple[str, str, int, int], dict[str, Any]]:
    """What has been measured with the present settings, by way, taste, seed and ratings."""
    return {
        (line["name"], line["taste"], line["seed"], line["asked"]): line
        for line in lines_of(RESULTS)
        if line["name"] in WAYS and same_settings(line, WAYS[line["name"]].config(line["asked"], line["seed"]))
    }


def missed(line: dict[str, Any]) -> list[str]:
    """The bars that a run does not meet."""
    found = dict(wins=line["wins"], shift=line["shift"], animals=line["animals_after"] - line["animals_before"], diversity=line["diversity"])
    return [name for name, bar in BARS.items() if round(found[name], 4) < bar]


def row_of(name: str, taste: str, lines: list[dict[str, Any]]) -> str:
    """A row of the table: means over some seeds."""
    percent = {key: plus_minus([100 * line[key] for line in lines], 0) for key in ("wins", "animals_before", "animals_after", "diversity")}
    short = Counter(bar for line in lines for bar in missed(line))
    cells = (
        name, taste, f"{len(lines)}", plus_minus([line["rounds"] for line in lines], 0), percent["wins"],
        plus_minus([line["shift"] for line in lines]),
        f"{percent['animals_before']}, {percent['animals_after']}", percent["diversity"],
        ", ".join(f"{bar} {count} of {len(lines)}" for bar, count in short.items()) or "none",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(ratings: int, ways: Sequence[str] = tuple(WAYS), tastes: Sequence[str] = tuple(TASTES)) -> str:
    """A table of ways and tastes, means over seeds."""
    lines = [line for line in results().values() if line["asked"] == ratings and line["name"] in ways and line["taste"] in tastes]
    found = [
        f"| {ratings} ratings | taste | seeds | rounds | wins (%) | shift (of base's std) | animals before, after (%) | diversity (% of base) |"
        " missed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in WAYS:
        for taste in TASTES:
            whole = [line for line in lines if line["name"] == name and line["taste"] == taste]
            half = [line | line["half"] for line in whole if "half" in line]
            found += [row_of(f"{name}{end}", taste, of) for end, of in (("", whole), (", half strength", half)) if of]
    known = {line["name"] for line in lines}
    said = [earlier, ""] if (earlier := judged_before(lines)) else []
    return "\n".join([*found, "", *said, *(f"* {name}: {way.title}." for name, way in WAYS.items() if name in known)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), help="ways to learn from ratings")
    parser.add_argument("--tastes", nargs="+", choices=tuple(TASTES), default=tuple(TASTES), help="hidden tastes")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2, 3, 4), help="seeds")
    parser.add_argument("--ratings", type=int, default=100, help="how many ratings a person gives")
    parser.add_argument("--out", type=Path, default=Path("build/hundred_ratings"), help="folder for the runs")
    parser.add_argument("--report", action="store_true", help="print the table of what has been measured")
    options = parser.parse_args()
    if options.report:
        print(report(options.ratings, options.ways, options.tastes))
        return
    for seed in options.seeds:
        for taste in options.tastes:
            for name in options.ways:
                if (name, taste, seed, options.ratings) not in results():
                    add_line(RESULTS, run(name, taste, seed, options.ratings, options.out / f"{name}-{taste}-{seed}-{options.ratings}"))


if __name__ == "__main__":
    main()
