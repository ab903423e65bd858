"""Held-out measurement: the run's prompts with fixed seeds, never trained on, the same for every run and round."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from ddpo.config import RunConfig
from ddpo.policy import Policy
from ddpo.rollout import batches, derive_seed, rollout
from rewards.base import Reward, Sample


@dataclass(frozen=True)
class HeldOut:
    values: tuple[float, ...]
    """One reward an image, by position; the same position is the same prompt and seed in every measurement."""

    @property
    def mean(self) -> float:
        return float(torch.tensor(self.values, dtype=torch.float64).mean())

    @property
    def std_error(self) -> float:
        if not self.values:
            return math.nan
        return float(torch.tensor(self.values, dtype=torch.float64).std(correction=0)) / math.sqrt(len(self.values))


def held_out_images(
    policy: Policy, config: RunConfig, base: bool, count: int | None = None, report: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[str], list[Image.Image]]:
    """Prompts and images of the held-out seeds: the configured prompts in turn. ``base`` leaves the adapter out."""
    count = config.held_out_images if count is None else count
    prompts = [config.prompts[i % len(config.prompts)] for i in range(count)]
    seeds = [derive_seed("held out", i) for i in range(count)]
    images: list[Image.Image] = []
    with policy.base() if base else contextlib.nullcontext():
        for batch in batches(count, config.microbatch):
            report(batch.start, count)
            images += rollout(policy, [prompts[i] for i in batch], [seeds[i] for i in batch])[1]
    return prompts, images


def held_out(policy: Policy, reward: Reward, config: RunConfig, base: bool, report: Callable[[int, int], None] = lambda done, total: None) -> HeldOut:
    """The reward of the held-out images."""
    prompts, images = held_out_images(policy, config, base, report=report)
    scores = reward.score([Sample(i, prompt, image) for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))])
    return HeldOut(tuple(s.value for s in scores if s.value is not None))
