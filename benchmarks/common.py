"""What the benchmarks share: a run's policy at a round, and held-out pictures judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ddpo.checkpoint import load_result
from ddpo.evaluate import held_out_images
from ddpo.policy import StableDiffusionPolicy
from ddpo.store import RunStore
from pocket.judge import Judge, judge_images


def policy_at(folder: Path, number: int) -> StableDiffusionPolicy:
    """The run's policy after a round, as it would be taken away."""
    store = RunStore(folder)
    policy = StableDiffusionPolicy.load(store.config)
    load_result(store.checkpoints()[number], policy.parameters())
    store.close()
    return policy


def before_and_after(folder: Path, number: int, count: int) -> tuple[list[str], list[Image.Image], list[Image.Image]]:
    """Prompts, base pictures and tuned pictures of the same held-out seeds."""
    store = RunStore(folder)
    config = store.config
    store.close()
    policy = policy_at(folder, number)
    prompts, base = held_out_images(policy, config, base=True, count=count)
    return prompts, base, held_out_images(policy, config, base=False, count=count)[1]


def animal_accuracy(images: list[Image.Image], prompts: list[str]) -> float:
    """The share of pictures in which the judge sees the prompt's subject."""
    return float(np.mean([v["subject"] for v in judge_images(Judge.load(), images, prompts)]))


def warmth(image: Image.Image) -> float:
    """Mean red minus mean blue, in [-1, 1]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    return float(pixels[..., 0].mean() - pixels[..., 2].mean())


def paired(before: list[float], after: list[float]) -> tuple[float, float]:
    """Mean difference and its standard error, paired by prompt and seed."""
    difference = np.asarray(after) - np.asarray(before)
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)
