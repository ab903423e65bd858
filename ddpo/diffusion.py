"""One denoising step as a Gaussian policy: p(x_prev | x_t, prompt) = N(mean, std^2 I).

This module owns two decisions that everything else relies on:

* **log p is the mean over latent dimensions**, in float32, never the sum (Black et al. 2023, whose clip range of 1e-4 means nothing otherwise).
* **A step whose std is zero is no action.** DDIM's last step is deterministic for some schedules (``steps_offset = 0`` or
  ``set_alpha_to_one``); it is taken as its mean, has no log-probability, and is left out of training: see :attr:`Schedule.actions`.

Notation: ``alpha`` is alphas_cumprod (ᾱ); ``t`` the present timestep; ``prev`` the next, less noisy one that the step arrives at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A batch of isotropic Gaussians over latents, in float32.

    ``mean`` has shape (n, channels, height, width); ``std`` has shape (n, 1, 1, 1). Where images are drawn from one policy and another one is
    trained, ``trained_mean`` is the latter's, of the same shape and with the same std.
    """

    mean: Tensor
    std: Tensor
    trained_mean: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mean.dtype != torch.float32 or self.std.dtype != torch.float32:
            raise TypeError(f"A policy's mean and std are float32, not {self.mean.dtype} and {self.std.dtype}: half precision breaks the ratio.")
        if self.mean.ndim != 4 or self.std.shape != (len(self.mean), 1, 1, 1):
            raise ValueError(f"mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)} are not (n, c, h, w) and (n, 1, 1, 1).")

    @property
    def trained(self) -> Gaussian:
        """What training moves: the policy itself, or the other one."""
        return self if self.trained_mean is None else Gaussian(self.trained_mean, self.std)

    def sample(self, noise: Tensor) -> Tensor:
        """The latent that standard normal ``noise`` (n, c, h, w) leads to, float32."""
        return self.mean + self.std * noise

    def log_prob(self, x_prev: Tensor) -> Tensor:
        """log p(x_prev), **averaged over dimensions**, shape (n,), float32.

        Raises:
            TypeError: ``x_prev`` is not float32; score the tensor that is stored, and store it unrounded.
            ValueError: a std is zero; such a step is no action.
        """
        if x_prev.dtype != torch.float32:
            raise TypeError(f"Latents are scored as float32, not {x_prev.dtype}: a rounded latent has another log-probability.")
        if not bool((self.std > 0).all()):
            raise ValueError("A step with std 0 is deterministic and has no log-probability; train only on Schedule.actions.")
        z = (x_prev - self.mean) / self.std
        return (-0.5 * z**2 - self.std.log() - 0.5 * math.log(2 * math.pi)).mean(dim=(1, 2, 3))

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) in nats, **summed** over dimensions, for Gaussians of equal std; shape (n,)."""
        return ((self.mean - other.mean) ** 2 / (2 * other.std**2)).sum(dim=(1, 2, 3))


@dataclass(frozen=True)
class Schedule:
    """The denoising steps of a sampler: DDIM with noise ``eta`` (Song et al. 2021, arXiv 2010.02502).

    All tensors have shape (steps,), float32 but ``timesteps``, in the order in which an image is made.
    """

    timesteps: Tensor
    alpha: Tensor
    """ᾱ at each timestep."""
    alpha_prev: Tensor
    """ᾱ at the timestep that the step arrives at."""
    std: Tensor
    """σ of each step; 0 where a step is deterministic."""
    alphas_cumprod: Tensor
    """ᾱ at every timestep that the model was trained on, (train timesteps,)."""
    prediction_type: str

    @classmethod
    def ddim(cls, scheduler: DDIMScheduler, steps: int, eta: float) -> Schedule:
        """The schedule of a diffusers scheduler's configuration. Each step arrives at the timestep that the next one starts from.

        (``DDIMScheduler.step`` goes T // steps timesteps down instead. That is the same for ``leading`` timesteps, and for ``trailing`` ones where
        the number of steps divides T; with ``linspace`` each of its latents has more noise than the next step takes it to have.)

        Raises:
            ValueError: the prediction type is unknown.
        """
        scheduler = DDIMScheduler.from_config(scheduler.config)
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"The scheduler predicts {scheduler.config.prediction_type!r}; epsilon, v_prediction and sample are known.")
        scheduler.set_timesteps(steps)
        t = scheduler.timesteps
        alpha = scheduler.alphas_cumprod[t]
        alpha_prev = torch.cat([alpha[1:], torch.as_tensor(scheduler.final_alpha_cumprod)[None]])
        # DDIM eq. 16. The product is zero, not negative or NaN, where the step goes nowhere (alpha == alpha_prev) or arrives at no noise at all.
        variance = ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)).clamp(min=0)
        std = eta * variance.sqrt()
        return cls(t, alpha.float(), alpha_prev.float(), std.float(), scheduler.alphas_cumprod.float(), scheduler.config.prediction_type)

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def actions(self) -> list[int]:
        """The indices of the steps that are random, hence trainable."""
        return [i for i, std in enumerate(self.std.tolist()) if std > 0]

    @property
    def gradient_scale(self) -> Tensor:
        """How large each random step's ∇ log p is, up to one factor, (steps,): c sqrt(ᾱ_t) / σ, and 0 where a step is deterministic.

        c = sqrt(ᾱ_prev (1 - ᾱ_t) / ᾱ_t) - sqrt(1 - ᾱ_prev - σ²) is how far the mean moves per unit of predicted noise, and sqrt(ᾱ_t) is how much the
        prediction moves with the weights, as measured on the pocket model (``benchmarks/step_signal.py`` and its notebook).
        """
        c = (self.alpha_prev * (1 - self.alpha) / self.alpha).sqrt() - (1 - self.alpha_prev - self.std**2).clamp(min=0).sqrt()
        return torch.where(self.std > 0, c.abs() * self.alpha.sqrt() / self.std.clamp(min=1e-12), 0.0)

    def step(self, x_t: Tensor, index: Tensor, prediction: Tensor) -> Gaussian:
        """The policy at step ``index``: DDIM eq. 12, mean = sqrt(ᾱ_prev) x̂_0 + sqrt(1 - ᾱ_prev - σ²) ε̂.

        Args:
            x_t: latents (n, c, h, w), float32.
            index: which step each latent is at, (n,), integers on the latents' device.
            prediction: the model's (guided) output for them, any float type.
        """

        def at(values: Tensor) -> Tensor:
            return values.to(x_t.device)[index][:, None, None, None]

        alpha, alpha_prev, std = at(self.alpha), at(self.alpha_prev), at(self.std)
        x_0, noise = self.clean_and_noise(x_t, prediction.float(), alpha)
        mean = alpha_prev.sqrt() * x_0 + (1 - alpha_prev - std**2).clamp(min=0).sqrt() * noise
        return Gaussian(mean, std)

    def noised(self, x_0: Tensor, timestep: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The forward process: x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4), and what the model should predict of it.

        Args:
            x_0: clean latents (n, c, h, w), float32.
            timestep: (n,), integers below the number of training timesteps.
            noise: standard normal, like ``x_0``.
        """
        alpha = self.alpha_at(timestep)
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
        if self.prediction_type == "epsilon":
            return x_t, noise
        if self.prediction_type == "v_prediction":
            return x_t, alpha.sqrt() * noise - (1 - alpha).sqrt() * x_0
        return x_t, x_0

    def alpha_at(self, timestep: Tensor) -> Tensor:
        """ᾱ at timesteps (n,), shape (n, 1, 1, 1)."""
        return self.alphas_cumprod.to(timestep.device)[timestep][:, None, None, None]

    def clean_and_noise(self, x_t: Tensor, prediction: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted clean latent x̂_0 and noise ε̂ from the model's output (Salimans & Ho 2022, arXiv 2202.00512, for v)."""
        if self.prediction_type == "epsilon":
            return (x_t - (1 - alpha).sqrt() * prediction) / alpha.sqrt(), prediction
        if self.prediction_type == "v_prediction":
            return alpha.sqrt() * x_t - (1 - alpha).sqrt() * prediction, alpha.sqrt() * prediction + (1 - alpha).sqrt() * x_t
        return prediction, (x_t - alpha.sqrt() * prediction) / (1 - alpha).sqrt()
