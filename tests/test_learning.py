"""Learning worlds: the real trainer raises the reward of a toy policy, and does not when there is nothing to learn."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image

from ddpo.config import RunConfig
from ddpo.evaluate import held_out
from tests.toys_ddpo import Brightness, brightness, in_memory, rate_rounds, toy_config, toy_trainer

BOUND = 0.1
"""What the mean brightness of held-out pictures must gain in 15 rounds, or must not.

The most that AdamW can move each shift is about lr x updates = 0.75, hence a latent by 2.78 x 0.75 (the chain's response to a shift, summed over
its 20 steps) = 2.1 and brightness by some 0.35. The share of a step's gradient that is signal is (Σ c_t k_t)² / (Σ c_t²/σ_t² · Var x_0) = 0.24
for this chain, so with 48 images a round learning reaches more than half of that. Measured: 0.196 with a standard deviation of 0.008 over seeds.
With shuffled scores the direction of each of 32 shifts is a coin's: mean 0, standard deviation 0.018 over 12 seeds. So 0.1 is 5.6 deviations
from the one and 12 from the other: a false alarm in 10^7 runs, and none at all on a machine where it has once passed, since seeds are fixed.
"""


def learning_config(seed: int, **changes: object) -> RunConfig:
    settings = dict(
        rounds=15,
        images_per_round=48,
        images_per_prompt=24,
        images_per_update=48,
        steps=20,
        microbatch=960,
        update_microbatch=960,
        learning_rate=0.05,
    )
    return toy_config(**(settings | dict(seed=seed) | changes))


def gain(folder: Path, config: RunConfig) -> float:
    """How much brighter the held-out pictures have become."""
    trainer = toy_trainer(folder, config)
    assert trainer.run()
    before, after = (held_out(trainer.engine.policy, Brightness(), config, base=base).mean for base in (True, False))
    trainer.store.close()
    return after - before


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises(seed: int) -> None:
    with in_memory() as folder:
        assert gain(folder / "run", learning_config(seed)) > BOUND


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_shuffled_scores_it_does_not(seed: int) -> None:
    """The control: same images, same scores, same trainer, but each score belongs to another image."""
    with in_memory() as folder:
        assert abs(gain(folder / "run", learning_config(seed, shuffle_scores=True))) < BOUND


def test_people_teach_what_the_function_teaches() -> None:
    """A scripted person thumbs up what is brighter than the middle, on every second image, through the shipped path of ratings, Apply and Human.

    Half the images and one bit of each leave sqrt(1/2 · 2/π) = 0.56 of the signal, and the null's deviation stays: 0.05 is 2.8 of those below
    nothing learned, while 0.56 of 0.196 is 0.11.
    """
    with in_memory() as memory:
        folder, stop = memory / "run", threading.Event()
        config = learning_config(0, reward="human")
        toy_trainer(folder, config).store.close()

        def thumb(file: Path) -> float | None:
            with Image.open(file) as image:
                return None if int(file.stem, 16) % 2 else 1.0 if brightness(image) > 0.5 else -1.0

        acknowledged: list[tuple[str, int]] = []
        rater = threading.Thread(target=rate_rounds, args=(folder, thumb, acknowledged, stop))
        rater.start()
        try:
            assert gain(folder, config) > 0.05
        finally:
            stop.set()
            rater.join()
        assert 200 < len(acknowledged) < 520  # about half of 720
