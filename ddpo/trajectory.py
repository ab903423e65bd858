"""What the policy did in a round, as frozen tensors that survive a crash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ddpo.store import write_file


@dataclass(frozen=True)
class Trajectory:
    """Denoising trajectories of n images over T steps, all float32: the very tensors that were sampled are the ones that are scored."""

    latents: Tensor
    """(n, T + 1, c, h, w): x_T, ..., x_0."""
    log_probs: Tensor
    """(n, T): log p(x_prev | x_t) under the sampling policy, mean over dimensions; 0 at steps that are no actions."""

    def __post_init__(self) -> None:
        n, points = self.latents.shape[:2]
        if self.latents.ndim != 5 or self.log_probs.shape != (n, points - 1):
            raise ValueError(f"latents {tuple(self.latents.shape)} and log_probs {tuple(self.log_probs.shape)} do not belong together.")
        if self.latents.dtype != torch.float32 or self.log_probs.dtype != torch.float32:
            raise TypeError("Trajectories are kept in float32: rounding after scoring biases the ratio.")

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def dimensions(self) -> int:
        """Numbers in one latent."""
        return self.latents[0, 0].numel()

    def save(self, file: Path) -> None:
        write_file(file, save(dict(latents=self.latents.cpu().contiguous(), log_probs=self.log_probs.cpu().contiguous())))

    @classmethod
    def load(cls, file: Path) -> Trajectory:
        with safe_open(file, framework="pt") as stored:
            return cls(stored.get_tensor("latents"), stored.get_tensor("log_probs"))

    def __getitem__(self, index: Tensor) -> Trajectory:
        return Trajectory(self.latents[index], self.log_probs[index])

    @classmethod
    def concatenate(cls, parts: Sequence[Trajectory]) -> Trajectory:
        return cls(torch.cat([p.latents for p in parts]), torch.cat([p.log_probs for p in parts]))
