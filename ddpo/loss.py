"""The objective of DDPO with importance sampling, and what it reports: pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def importance_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's clipped surrogate at denoising steps: max(-A ρ, -A clip(ρ, 1 ± clip_range)), shape (n,).

    ρ = exp(log_prob - old_log_prob) with log-probabilities averaged over dimensions (Black et al. 2023, eq. 4 with the clipping of App. D;
    Schulman et al. 2017, eq. 7). All of shape (n,), float32.
    """
    for name, tensor in (("log_prob", log_prob), ("old_log_prob", old_log_prob), ("advantage", advantage)):
        if tensor.shape != log_prob.shape or tensor.ndim != 1 or tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; float32 of shape ({len(log_prob)},) is needed.")
    ratio = torch.exp(log_prob - old_log_prob)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped)


@dataclass
class Health:
    """Sums over trained steps from which a round's health metrics are made."""

    dimensions: int
    clip_range: float
    count: int = 0
    loss: float = 0.0
    ratio: float = 0.0
    ratio_squared: float = 0.0
    ratio_max_deviation: float = 0.0
    clipped_up: int = 0
    clipped_down: int = 0
    kl: float = 0.0

    def add(self, loss: Tensor, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> float:
        """Take in one microbatch (all (n,)); returns its largest |ρ - 1|."""
        with torch.no_grad():
            difference = (log_prob - old_log_prob).double()
            ratio = difference.exp()
            deviation = float((ratio - 1).abs().max())
            self.count += len(ratio)
            self.loss += float(loss.sum())
            self.ratio += float(ratio.sum())
            self.ratio_squared += float((ratio**2).sum())
            self.ratio_max_deviation = max(self.ratio_max_deviation, deviation)
            self.clipped_up += int(((ratio > 1 + self.clip_range) & (advantage > 0)).sum())
            self.clipped_down += int(((ratio < 1 - self.clip_range) & (advantage < 0)).sum())
            self.kl += float((0.5 * (self.dimensions * difference) ** 2).sum())
            return deviation

    def metrics(self) -> dict[str, float]:
        """Means over all trained steps of the round.

        ``kl_update`` estimates the KL of one step's policy from the round's sampling policy, in nats: E[(log ratio)²] / 2 with the log-probability
        summed over dimensions (Schulman, "Approximating KL divergence", k2). The clip fractions count the steps whose gradient the clip has cut.
        """
        if not self.count:
            return {}
        mean = self.ratio / self.count
        return dict(
            loss=self.loss / self.count,
            ratio_mean=mean,
            ratio_std=max(0.0, self.ratio_squared / self.count - mean**2) ** 0.5,
            ratio_max_deviation=self.ratio_max_deviation,
            clip_fraction_up=self.clipped_up / self.count,
            clip_fraction_down=self.clipped_down / self.count,
            kl_update=self.kl / self.count,
        )
