"""The objectives and what they report: pure functions of one item (an image at a denoising step, or at a drawn noise level) each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any

import torch
from torch import Tensor


def importance_loss(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's clipped surrogate at denoising steps: max(-A ρ, -A clip(ρ, 1 ± clip_range)), shape (n,).

    ``log_ratio`` is log ρ = log p_θ - log p_old, with log-probabilities averaged over dimensions (Black et al. 2023, eq. 4 with the clipping of App.
    D; Schulman et al. 2017, eq. 7). Both of shape (n,), float32.
    """
    for name, tensor in (("log_ratio", log_ratio), ("advantage", advantage)):
        if tensor.shape != log_ratio.shape or tensor.ndim != 1 or tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; float32 of shape ({len(log_ratio)},) is needed.")
    ratio = torch.exp(log_ratio)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped)


def normalised_log_ratio(log_ratio: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor, typical_std: float) -> Tensor:
    """GRPO-Guard's ratio normalisation (Wang et al. 2025, arXiv 2510.22319), shape (n,).

    Under the old policy log ρ has the mean -‖Δμ‖² / 2σ²D and the standard deviation ‖Δμ‖ / σD: positive advantages, whose ratios rise, are seldom
    clipped, and where σ is small everything is. (log ρ + ‖Δμ‖² / 2σ²D) σ / σ̄ has the mean 0, and the same spread at all steps for the same Δμ. At
    Δμ = 0 its gradient is σ / σ̄ times that of log ρ.

    Args:
        log_ratio: log ρ, averaged over the D dimensions, (n,).
        mean, old_mean: the Gaussians' means, (n, c, h, w); ``old_mean`` without gradient.
        std: σ, (n, 1, 1, 1).
        typical_std: σ̄, the mean σ of the trained steps, so that a clip range keeps its meaning.
    """
    shift = ((mean - old_mean) ** 2 / (2 * std**2)).mean(dim=(1, 2, 3))
    return (log_ratio + shift) * std.flatten() / typical_std


def kl_estimate(log_ratio: Tensor, dimensions: int) -> Tensor:
    """(log ρ)² / 2 with log ρ summed over the dimensions, (n,), in nats: its mean over samples of the old policy is the KL (Schulman, "Approximating
    KL divergence", k2). On the CPU: Apple's GPUs know no float64."""
    return 0.5 * (dimensions * log_ratio.cpu().double()) ** 2


def score_function_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """REINFORCE at denoising steps: -A log p, shape (n,) (DDPO-SF: Black et al. 2023, eq. 3). Right only for samples of the present policy."""
    return -advantage * log_prob


def denoising_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The ordinary denoising loss, weighted: w ‖f - f*‖², mean over dimensions, shape (n,).

    With w = exp(β r) / Z it is reward-weighted regression, with w = 1[r above a percentile] its sparse form (Black et al. 2023, section 4.1;
    Lee et al. 2023, arXiv 2302.12192).
    """
    return weight * ((prediction - target) ** 2).mean(dim=(1, 2, 3))


def negative_aware_loss(new: Tensor, old: Tensor, clean: Callable[[Tensor], Tensor], x_0: Tensor, preference: Tensor, mix: float) -> Tensor:
    """DiffusionNFT's loss (Zheng et al. 2025, arXiv 2509.16117, eq. 5 and its self-normalised form), shape (n,).

    The positive policy mixes the new prediction into the old one, (1 - β) old + β new, the negative one away from it, (1 + β) old - β new; an image
    preferred with probability r pulls the first towards itself, and with 1 - r the second. Each squared error is divided by its own mean absolute
    error, held fixed. The paper has velocities of flow models; here the mix is of whatever the model predicts, and the error is that of the clean
    latent it implies, so that noise- and v-predicting models learn the same thing. (An error e in ε is sqrt((1-ᾱ)/ᾱ) e in the clean latent, so noisy
    timesteps, where the composition is decided, pull hardest.)

    Args:
        new, old: predictions of the present policy and of the one that sampled, (n, c, h, w); ``old`` without gradient.
        clean: from a prediction to the clean latent that it implies.
        x_0: the sampled clean latents.
        preference: r in [0, 1], (n,).
        mix: β.
    """

    def error(prediction: Tensor) -> Tensor:
        difference = clean(prediction) - x_0
        scale = difference.detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
        return (difference**2 / scale).mean(dim=(1, 2, 3))

    return preference * error((1 - mix) * old + mix * new) + (1 - preference) * error((1 + mix) * old - mix * new)


QUARTERS = 4
"""The trained denoising steps in order, the noisiest first, are told in so many parts."""


def quarters_of(count: int) -> Tensor:
    """In which quarter each of so many steps begins, from 0 on, (count,)."""
    return torch.arange(count) * QUARTERS // count


@dataclass
class Health:
    """Sums over trained steps from which a round's health metrics are made."""

    dimensions: int
    clip_range: float
    items: int = 0
    loss: float = 0.0
    ratio_max_deviation: float = 0.0
    clipped_up: int = 0
    clipped_down: int = 0
    kl: float = 0.0
    kl_base: float = 0.0
    kl_base_steps: int = 0
    ratios: list[float] = field(default_factory=lambda: [0.0] * QUARTERS)
    """How many ratios there were, by quarter; and their sums, and their squares'."""
    ratio: list[float] = field(default_factory=lambda: [0.0] * QUARTERS)
    ratio_squared: list[float] = field(default_factory=lambda: [0.0] * QUARTERS)

    def add(self, loss: Tensor, log_ratio: Tensor, advantage: Tensor, kl: Tensor, quarter: Tensor) -> float:
        """Take in one microbatch (all (n,)): log ρ as the clip sees it, each step's KL from the round's first policy in nats, or an estimate, and
        its quarter (:func:`quarters_of`); returns the largest |ρ - 1|."""
        self.add_loss(loss)
        with torch.no_grad():
            ratio, advantage = log_ratio.cpu().double().exp(), advantage.cpu()  # Apple's GPUs know no float64
            deviation = float((ratio - 1).abs().max())
            for sums, values in ((self.ratios, torch.ones_like(ratio)), (self.ratio, ratio), (self.ratio_squared, ratio**2)):
                sums[:] = added(sums, torch.bincount(quarter, values, QUARTERS).tolist())
            self.ratio_max_deviation = max(self.ratio_max_deviation, deviation)
            self.clipped_up += int(((ratio > 1 + self.clip_range) & (advantage > 0)).sum())
            self.clipped_down += int(((ratio < 1 - self.clip_range) & (advantage < 0)).sum())
            self.kl += float(kl.cpu().double().sum())
            return deviation

    def add_kl_base(self, kl: Tensor) -> None:
        """Take in the exact KL divergences (n,) of steps from the base model's, in nats."""
        self.kl_base += float(kl.detach().sum())
        self.kl_base_steps += len(kl)

    def add_loss(self, loss: Tensor) -> None:
        """Take in one microbatch (n,) of an objective that has no ratio."""
        self.items += len(loss)
        self.loss += float(loss.detach().sum())

    @classmethod
    def merged(cls, parts: Sequence[Health]) -> Health:
        """What several processes took in, as one."""
        sums = {f.name: reduce(added, (getattr(part, f.name) for part in parts)) for f in fields(cls)}
        same = dict(dimensions=parts[0].dimensions, clip_range=parts[0].clip_range)
        return cls(**(sums | same | dict(ratio_max_deviation=max(part.ratio_max_deviation for part in parts))))

    def metrics(self) -> dict[str, float]:
        """Means over all trained steps of the round.

        ``kl_update`` is the KL of one step's policy from the round's first one, in nats. The clip fractions count the steps whose gradient the clip
        has cut. Where the policy has moved, the ratio's mean and standard deviation are also told by quarter of the denoising, since both depend on
        the timestep (GRPO-Guard: Wang et al. 2025, arXiv 2510.22319).
        """
        if not self.items:
            return {}
        loss = dict(loss=self.loss / self.items)
        if self.kl_base_steps:
            loss["kl_base"] = self.kl_base / self.kl_base_steps
        if not (ratios := sum(self.ratios)):
            return loss
        mean, std = mean_and_std(ratios, sum(self.ratio), sum(self.ratio_squared))
        found = loss | dict(
            ratio_mean=mean,
            ratio_std=std,
            ratio_max_deviation=self.ratio_max_deviation,
            clip_fraction_up=self.clipped_up / ratios,
            clip_fraction_down=self.clipped_down / ratios,
            kl_update=self.kl / ratios,
        )
        for i, sums in enumerate(zip(self.ratios, self.ratio, self.ratio_squared, strict=True), 1):
            if sums[0] and self.ratio_max_deviation:
                found[f"ratio_mean_quarter_{i}"], found[f"ratio_std_quarter_{i}"] = mean_and_std(*sums)
        return found


def mean_and_std(count: float, total: float, squares: float) -> tuple[float, float]:
    """Of some numbers, from how many they are, their sum, and their squares'."""
    mean = total / count
    return mean, max(0.0, squares / count - mean**2) ** 0.5


def added(one: Any, other: Any) -> Any:
    """The sum of two numbers, or of two lists of them, place by place."""
    return [a + b for a, b in zip(one, other, strict=True)] if isinstance(one, list) else one + other
