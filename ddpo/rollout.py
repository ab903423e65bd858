"""The denoising loop: prompts and seeds to trajectories and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddpo.diffusion import Gaussian
from ddpo.policy import Policy, arithmetic_of
from ddpo.trajectory import Trajectory


def derive_seed(*parts: object) -> int:
    """A seed (63 bits) that the parts name, the same on every machine.

    All randomness of a run comes from such seeds, so no generator state is kept.
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def noise_of(seed: int, steps: int, shape: tuple[int, int, int]) -> Tensor:
    """All the noise of one image, (steps + 1, c, h, w): first x_T, then one draw a step. It depends on the seed alone, not on the batch."""
    return torch.randn((steps + 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def noises_of(policy: Policy, seeds: Sequence[int], starts: Sequence[int] | None = None) -> Tensor:
    """All the noise of a batch, (steps + 1, n, c, h, w); with ``starts`` each x_T is another seed's."""
    noise = torch.stack([noise_of(seed, len(policy.schedule), policy.latent_shape) for seed in seeds], dim=1)
    if starts is not None:
        noise[0] = torch.cat([noise_of(start, 0, policy.latent_shape) for start in starts])
    return noise


Step = Callable[[Tensor, Tensor, Any], Gaussian]
"""A policy's step, or one that does something more."""


def rollout(
    policy: Policy, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[int] | None = None, keep_means: bool = False
) -> tuple[Trajectory, list[Image.Image]]:
    """Denoise one batch from seeds. With ``starts`` each x_T is another seed's."""
    return denoise(policy, prompts, noises_of(policy, seeds, starts), keep_means=keep_means)


@torch.no_grad()
def denoise(
    policy: Policy, prompts: Sequence[str], noise: Tensor, step: Step | None = None, keep_means: bool = False
) -> tuple[Trajectory, list[Image.Image]]:
    """Denoise one batch by some noise (steps + 1, n, c, h, w); every latent is kept as it was sampled, and scored as it is kept, by what is trained:
    the policy itself, or another one (:attr:`ddpo.diffusion.Gaussian.trained`), whose means can be kept. ``step`` stands for the policy's own."""
    schedule, step = policy.schedule, step or policy.step
    noise = noise.to(policy.device)
    condition = policy.encode(prompts)
    latents, log_probs, means = [noise[0]], list[Tensor](), list[Tensor]()
    actions = set(schedule.actions)
    for i in range(len(schedule)):
        index = torch.full((len(prompts),), i, device=policy.device)
        gaussian = step(latents[-1], index, condition)
        latents.append(gaussian.sample(noise[i + 1]))
        log_probs.append(gaussian.trained.log_prob(latents[-1]) if i in actions else torch.zeros(len(prompts), device=policy.device))
        means += [gaussian.trained.mean] if keep_means else []
    kept = torch.stack(means, 1).cpu() if keep_means else None
    trajectory = Trajectory(torch.stack(latents, 1).cpu(), torch.stack(log_probs, 1).cpu(), kept, arithmetic_of(policy))
    return trajectory, policy.decode(latents[-1])


@torch.no_grad()
def rescored(policy: Policy, trajectory: Trajectory, prompts: Sequence[str]) -> Trajectory:
    """One batch's trajectory, whose latents stay, scored as :func:`denoise` would by the policy as it is here and now."""
    condition, latents = policy.encode(prompts), trajectory.latents.to(policy.device)
    found = [policy.step(latents[:, i], torch.full((len(prompts),), i, device=policy.device), condition).trained for i in range(len(policy.schedule))]
    log_probs = torch.zeros_like(trajectory.log_probs)
    for i in policy.schedule.actions:
        log_probs[:, i] = found[i].log_prob(latents[:, i + 1]).cpu()
    means = None if trajectory.means is None else torch.stack([gaussian.mean for gaussian in found], 1).cpu()
    return Trajectory(trajectory.latents, log_probs, means, arithmetic_of(policy))


def batches(count: int, size: int) -> Iterator[range]:
    """0 .. count in consecutive ranges of ``size`` at most."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
