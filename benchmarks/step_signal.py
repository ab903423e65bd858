"""Which denoising steps teach? ``python -m benchmarks.step_signal``: signal and noise of the policy gradient, step by step.

At the base model of the pocket (a fresh adapter), every image's gradient A ∇ log p(x_t-1 | x_t) is computed for each denoising step on its own, with
JPEG compressibility as the reward. Over n images with gradients g_i, the squared norm of the true gradient has the unbiased estimate
(‖Σ g‖² - Σ‖g‖²) / (n (n - 1)); the noise is the mean of ‖g‖² beside it. One line of JSON a step, then what training all steps or only some
comes to: squared norm of the summed gradient over its noise.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

from ddpo.advantage import group_advantages
from ddpo.config import RunConfig
from ddpo.policy import StableDiffusionPolicy
from ddpo.presets import presets
from ddpo.rollout import batches, derive_seed, rollout
from rewards.jpeg import size_kb


def gradients(policy: StableDiffusionPolicy, config: RunConfig, images: int) -> Tensor:
    """The gradients of all images and steps, (images, steps, weights), float32."""
    prompts = [p for p in config.prompts for _ in range(config.images_per_prompt)][:images]
    seeds = [derive_seed(config.seed, "step signal", i) for i in range(images)]
    parts = [rollout(policy, [prompts[i] for i in b], [seeds[i] for i in b]) for b in batches(images, 16)]
    latents = torch.cat([trajectory.latents for trajectory, _ in parts])
    scores = [-size_kb(picture) for _, pictures in parts for picture in pictures]
    advantages = group_advantages(scores, prompts, config.advantage_clip)
    conditions = policy.encode(prompts)
    weights = list(policy.parameters().values())
    rows = []
    for i in range(images):
        for step in range(config.steps):
            gaussian = policy.step(latents[i : i + 1, step], torch.tensor([step]), conditions[torch.tensor([i])])
            found = torch.autograd.grad(advantages[i] * gaussian.log_prob(latents[i : i + 1, step + 1]).sum(), weights)
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).reshape(images, config.steps, -1)


def signal_and_noise(g: Tensor) -> tuple[float, float]:
    """Squared norm of the true gradient (unbiased; may come out negative), and the variance of one image's, of gradients (n, weights)."""
    n = len(g)
    total, each = float(g.sum(0).square().sum()), float(g.square().sum())
    signal = (total - each) / (n * (n - 1))
    return signal, each / n - signal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="images, 8 of each prompt")
    parser.add_argument("--lora-targets", default="attention", choices=("attention", "all"))
    options = parser.parse_args()
    # As the notebook's figures were made: the preset has gone on to another rank, and to no guidance in training.
    settings = dict(lora_targets=options.lora_targets, lora_rank=8, lora_alpha=8.0, eta=1.0, shared_start=False, skip_last_steps=7)
    config = presets()["compress"].config.with_changes(guidance_in_training=True, **settings)
    policy = StableDiffusionPolicy.load(config)
    g = gradients(policy, config, options.images)
    schedule = policy.schedule
    for step in range(config.steps):
        signal, noise = signal_and_noise(g[:, step])
        report = dict(step=step, timestep=int(schedule.timesteps[step]), std=round(float(schedule.std[step]), 3), signal=signal, noise=noise)
        print(json.dumps(report | dict(ratio=signal / noise)), flush=True)
    for skip in range(config.steps):
        signal, noise = signal_and_noise(g[:, : config.steps - skip].sum(1))
        print(json.dumps(dict(skip_last_steps=skip, signal=signal, noise=noise, ratio=signal / noise)), flush=True)


if __name__ == "__main__":
    main()
