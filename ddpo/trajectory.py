"""What the policy did in a round, as frozen tensors that survive a crash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ddpo.files import write_file


@dataclass(frozen=True)
class Trajectory:
    """Denoising trajectories of n images over T steps, all float32: the very tensors that were sampled are the ones that are scored."""

    latents: Tensor
    """(n, T + 1, c, h, w): x_T, ..., x_0."""
    log_probs: Tensor
    """(n, T): log p(x_prev | x_t) under the policy that is trained as it was then, mean over dimensions; 0 at steps that are no actions."""
    means: Tensor | None = None
    """(n, T, c, h, w): that policy's means, where they are kept."""
    arithmetic: str = ""
    """What a batch was computed by (:func:`ddpo.policy.arithmetic_of`); empty where nobody knows, and of a selection from several batches."""

    def __post_init__(self) -> None:
        n, points = self.latents.shape[:2]
        if self.latents.ndim != 5 or self.log_probs.shape != (n, points - 1):
            raise ValueError(f"latents {tuple(self.latents.shape)} and log_probs {tuple(self.log_probs.shape)} do not belong together.")
        if self.latents.dtype != torch.float32 or self.log_probs.dtype != torch.float32:
            raise TypeError("Trajectories are kept in float32: rounding after scoring biases the ratio.")
        if self.means is not None and self.means.shape != self.latents[:, 1:].shape:
            raise ValueError(f"means {tuple(self.means.shape)} and latents {tuple(self.latents.shape)} do not belong together.")

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def dimensions(self) -> int:
        """Numbers in one latent."""
        return self.latents[0, 0].numel()

    def save(self, file: Path) -> None:
        tensors = dict(latents=self.latents, log_probs=self.log_probs) | ({} if self.means is None else dict(means=self.means))
        write_file(file, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, dict(arithmetic=self.arithmetic)))

    @classmethod
    def load(cls, file: Path) -> Trajectory:
        with safe_open(file, framework="pt") as stored:
            means = stored.get_tensor("means") if "means" in stored.keys() else None  # noqa: SIM118
            return cls(stored.get_tensor("latents"), stored.get_tensor("log_probs"), means, (stored.metadata() or {}).get("arithmetic", ""))

    def __getitem__(self, index: Tensor) -> Trajectory:
        return Trajectory(self.latents[index], self.log_probs[index], None if self.means is None else self.means[index])

    @classmethod
    def concatenate(cls, parts: Sequence[Trajectory]) -> Trajectory:
        means = [p.means for p in parts if p.means is not None]
        return cls(
            torch.cat([p.latents for p in parts]), torch.cat([p.log_probs for p in parts]), torch.cat(means) if len(means) == len(parts) else None
        )
