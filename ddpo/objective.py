"""The five objectives, behind one door: a round and its scores become a :class:`Lesson`, whose items the trainer takes in random order.

========== =============================================== ============================ =============================================
objective  item                                            weight of an image           loss of an item
========== =============================================== ============================ =============================================
ddpo-is    the image at a sampled denoising step           advantage A                  PPO's clipped surrogate of A ρ
ddpo-sf    the same                                        advantage A                  -A log p
rwr        the image, noised afresh to any timestep        exp(β A) / Z within a prompt the denoising loss
rwr-sparse the same                                        1 for the best of a prompt   the denoising loss
nft        the image, noised afresh to a sampler's step    advantage A                  DiffusionNFT's, on new and old predictions
========== =============================================== ============================ =============================================

The first two follow the policy's own trajectories; the others need the clean latents only, and any sampler would do. All of them train the very
prediction that sampling uses, the guided one (Black et al. 2023, App. E.1; the reference code does so for RWR too), unless ``guidance_in_training``
is off: then the prompt's prediction alone, on the same images, whose ratio in DDPO is to itself when they were made. Its gradient has a part that the
guided one has not: with μ the sampler's mean and μ_c the prompt's own, ∇ log p = (σ z + μ - μ_c) / σ² ∇μ_c, so an image of positive advantage also
draws the prompt's prediction to where guidance led it, and one of negative advantage pushes it away.

With ``kl_weight`` β an item also pays for its distance from the base model. In DDPO that is β KL(p_θ ‖ p_base), exact for Gaussians of equal
std and divided by the dimensions as log p is, so that the whole ascends A - β KL with KL in nats (DPOK: Fan et al. 2023, arXiv 2305.16381, eq. 8):
a nat costs the same at every step, whatever ``step_weights`` (a normalised ratio, whose gradient is σ / σ̄ of the plain one's, leaves it be).
In the others it is β ‖f - f_base‖², mean over dimensions.

In DDPO a step's gradient is the noisier the less noise the sampler has left: at ten steps of Stable Diffusion's schedule the last but one alone makes
94 % of the variance, and of the others the last has 30 times the first's, while what they can teach is about the same. ``skip_last_steps`` leaves the
last ones out, and ``step_weights`` balanced divides each step's loss, what it pays for its distance included, by the size of log p's gradient.

An image that nobody rated teaches nothing and is not computed; nor is one of weight 0, unless it is to hold the model in its place: for
``kl_weight``, and in nft, where it pulls towards the policy that sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddpo.advantage import centred_advantages, group_advantages, history_advantages, percentile_weights, reward_weights, round_advantages
from ddpo.config import ConfigError, RunConfig
from ddpo.diffusion import Gaussian
from ddpo.loss import (
    Health,
    denoising_loss,
    importance_loss,
    kl_estimate,
    negative_aware_loss,
    normalised_log_ratio,
    quarters_of,
    score_function_loss,
)
from ddpo.policy import Policy
from ddpo.rollout import derive_seed
from ddpo.trajectory import Trajectory


@dataclass(frozen=True)
class Weights:
    """How much each image of a round counts, and for what; all (n,)."""

    values: Tensor
    """The advantage, or RWR's weight; 0 where there is no score."""
    rated: Tensor
    """Whether there is a score."""


def advantages_of(
    config: RunConfig, scores: Sequence[float | None], prompts: Sequence[str], history: Callable[[], Mapping[str, Sequence[float]]]
) -> Tensor:
    """The round's advantages (n,), as the setting ``advantage`` says; ``history`` gives each prompt's earlier scores, oldest first."""
    if config.advantage == "group":
        return group_advantages(scores, prompts, config.advantage_clip)
    if config.advantage == "centred":
        return centred_advantages(scores, prompts, config.advantage_clip)
    if config.advantage == "round":
        return round_advantages(scores, config.advantage_clip)
    return history_advantages(scores, prompts, history(), config.advantage_clip)


def weights_of(config: RunConfig, scores: Sequence[float | None], prompts: Sequence[str], advantages: Tensor) -> Weights:
    """What the objective makes of the round's advantages."""
    rated = [score is not None for score in scores]
    values = advantages
    if config.objective == "rwr":
        values = reward_weights(advantages, prompts, rated, config.rwr_beta)
    elif config.objective == "rwr-sparse":
        values = percentile_weights(advantages, prompts, rated, config.rwr_quantile)
    return Weights(values, torch.tensor(rated))


class Lesson(Protocol):
    """One round, ready to be learned from. An item is an (image, moment): a denoising step or a noise level of that image."""

    images: Tensor
    """The images that are learned from, (m,)."""
    moments: int
    """How many items an image has in each pass."""
    health: Health
    tolerance: float
    """How far from 1 a ratio may be before the round's first update."""

    def items(self, images: Tensor, number: int, generator: torch.Generator) -> Tensor:
        """The items (k, 2) of some images in the pass of that number, from 0 on."""
        ...

    def loss(self, image: Tensor, moment: Tensor, gaussian: Gaussian | None = None) -> tuple[Tensor, float]:
        """The losses of some items (k,), and the largest |ρ - 1| among them (0 where there is no ratio); ``health`` takes note of them. ``gaussian``
        is the present policy at these items, where it is known already."""
        ...


MATCH_FRACTION = 0.1
"""How far a ratio may be from 1 before the first optimiser step of a round, as a fraction of the clip range."""


def images_of(config: RunConfig, weights: Weights) -> Tensor:
    """The images that are learned from."""
    holds = config.kl_weight > 0 or config.objective == "nft"
    return (weights.rated if holds else weights.values != 0).nonzero()[:, 0]


class TrajectoryLesson:
    """DDPO: the items are the denoising steps that were sampled."""

    def __init__(self, config: RunConfig, policy: Policy, trajectory: Trajectory, conditions: Any, weights: Weights) -> None:
        """
        Raises:
            ConfigError: the schedule leaves no step to train.
        """
        self.config, self.policy, self.trajectory, self.conditions, self.weights = config, policy, trajectory, conditions, weights.values
        self.images = images_of(config, weights)
        schedule = policy.schedule
        self.steps = torch.tensor([i for i in schedule.actions if i in config.trained_steps], dtype=torch.long)
        if not len(self.steps):
            raise ConfigError(
                "No denoising step is left to train: this model's last step is deterministic. Choose more steps, or leave out fewer at both ends."
            )
        self.moments = max(1, round(config.trained_fraction * len(self.steps)))
        self.quarters = torch.zeros(len(schedule), dtype=torch.long)
        self.quarters[self.steps] = quarters_of(len(self.steps))
        self.typical_std = float(schedule.std[self.steps].mean())
        self.step_weights = torch.ones(len(schedule))
        if config.step_weights == "balanced":
            scale = schedule.gradient_scale[self.steps]
            if config.ratio == "normalised":
                scale = scale * schedule.std[self.steps] / self.typical_std
            weights_of_steps = 1 / scale.clamp(min=1e-6)
            self.step_weights[self.steps] = weights_of_steps / weights_of_steps.mean()
        self.clip_range = config.clip_range(trajectory.dimensions)
        # The plain policy gradient has no clip range; the paper's 1.64 nats then say what a ratio of 1 is. One update a round needs the ratio for no
        # more than to see whether sampler and update agree; a rounded prediction moves it by 1 / η.
        self.tolerance = MATCH_FRACTION * (self.clip_range if config.objective == "ddpo-is" else 1.64 / trajectory.dimensions)
        if config.updates_per_round == 1:
            self.tolerance /= config.eta
        self.health = Health(trajectory.dimensions, self.clip_range)

    def gaussian(self, image: Tensor, moment: Tensor) -> Gaussian:
        """The present policy at some items."""
        device = self.policy.device
        return self.policy.step(self.trajectory.latents[image, moment].to(device), moment.to(device), self.conditions[image])

    def items(self, images: Tensor, number: int, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), len(self.steps), generator=generator).argsort(1)[:, : self.moments]
        return torch.stack([images.repeat_interleave(self.moments), self.steps[chosen].flatten()], 1)

    def loss(self, image: Tensor, moment: Tensor, gaussian: Gaussian | None = None) -> tuple[Tensor, float]:
        device = self.policy.device
        x_prev, advantage = self.trajectory.latents[image, moment + 1].to(device), self.weights[image].to(device)
        gaussian = gaussian or self.gaussian(image, moment)
        log_prob = gaussian.log_prob(x_prev)
        log_ratio = log_prob - self.trajectory.log_probs[image, moment].to(device)
        means = self.trajectory.means
        old_mean = gaussian.mean.detach() if means is None else means[image, moment].to(device)
        if self.config.guidance_in_training:
            kl_update = kl_estimate(log_ratio.detach(), self.trajectory.dimensions)
        else:  # the images are no samples of this policy: the estimate would not hold
            kl_update = gaussian.kl(Gaussian(old_mean, gaussian.std)).detach()
        seen = log_ratio
        if self.config.ratio == "normalised":
            seen = normalised_log_ratio(log_ratio, gaussian.mean, old_mean, gaussian.std, self.typical_std)
        if self.config.objective == "ddpo-is":
            loss = importance_loss(seen, advantage, self.clip_range)
        else:
            loss = score_function_loss(log_prob, advantage)
        if self.config.kl_weight:
            with torch.no_grad(), self.policy.base():
                base = self.gaussian(image, moment)
            kl = gaussian.kl(base)
            self.health.add_kl_base(kl)
            loss = loss + self.config.kl_weight * kl / self.trajectory.dimensions
        loss = loss * self.step_weights[moment].to(device)
        return loss, self.health.add(loss, seen, advantage, kl_update, self.quarters[moment])


class ForwardLesson:
    """RWR and NFT: the items are the images, noised ``forward_draws`` times in each pass, at timesteps and with noise that follow from seeds."""

    tolerance = float("inf")

    def __init__(
        self, config: RunConfig, policy: Policy, trajectory: Trajectory, conditions: Any, weights: Weights, number: int, listen: Callable[[], None]
    ) -> None:
        """For NFT the sampling policy's predictions are computed here where the weights will have moved by the time they are needed."""
        self.config, self.policy, self.conditions, self.weights, self.number = config, policy, conditions, weights.values, number
        self.images, self.moments = images_of(config, weights), config.forward_draws
        self.x_0 = trajectory.latents[:, -1]
        self.health = Health(trajectory.dimensions, config.clip_range(trajectory.dimensions))
        schedule = policy.schedule
        self.timesteps = schedule.timesteps[list(config.trained_steps)] if config.objective == "nft" else torch.arange(len(schedule.alphas_cumprod))
        self.old: dict[tuple[int, int], Tensor] = {}
        if config.objective == "nft" and config.updates_per_round > 1:
            generator = torch.Generator()
            items = torch.cat([self.items(self.images, p, generator) for p in range(config.passes)])
            for part in items.split(config.update_microbatch) if len(items) else ():
                listen()
                with torch.no_grad():
                    predictions = self._predict(*part.unbind(1))[0].cpu()
                self.old |= {(int(i), int(m)): prediction for (i, m), prediction in zip(part, predictions, strict=True)}

    def items(self, images: Tensor, number: int, generator: torch.Generator) -> Tensor:
        moments = torch.arange(number * self.moments, (number + 1) * self.moments)
        return torch.cartesian_prod(images, moments).reshape(-1, 2)

    def draw(self, image: int, moment: int) -> tuple[Tensor, Tensor]:
        """An item's timestep () and noise (c, h, w)."""
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, self.number, "forward", image, moment))
        timestep = self.timesteps[torch.randint(len(self.timesteps), (), generator=generator)]
        return timestep, torch.randn(self.x_0.shape[1:], generator=generator)

    def _predict(self, image: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prediction, target, noised latent and timestep of some items."""
        device = self.policy.device
        timestep, noise = (torch.stack(each).to(device) for each in zip(*map(self.draw, image.tolist(), moment.tolist()), strict=True))
        x_t, target = self.policy.schedule.noised(self.x_0[image].to(device), timestep, noise)
        return self.policy.predict(x_t, timestep, self.conditions[image]), target, x_t, timestep

    def loss(self, image: Tensor, moment: Tensor, gaussian: Gaussian | None = None) -> tuple[Tensor, float]:
        prediction, target, x_t, timestep = self._predict(image, moment)
        weight = self.weights[image].to(prediction.device)
        if self.config.objective == "nft":
            loss = self._negative_aware(image, moment, prediction, x_t, timestep, weight)
        else:
            loss = denoising_loss(prediction, target, weight)
        if self.config.kl_weight:
            with torch.no_grad(), self.policy.base():
                base = self.policy.predict(x_t, timestep, self.conditions[image])
            loss = loss + self.config.kl_weight * ((prediction - base) ** 2).mean(dim=(1, 2, 3))
        self.health.add_loss(loss)
        return loss, 0.0

    def _negative_aware(self, image: Tensor, moment: Tensor, prediction: Tensor, x_t: Tensor, timestep: Tensor, advantage: Tensor) -> Tensor:
        """NFT's loss, times A_max / β: so its gradient at the start is the advantage's, whatever A_max and β are."""
        schedule, alpha = self.policy.schedule, self.policy.schedule.alpha_at(timestep)
        certain, mix = self.config.nft_advantage, self.config.nft_mix

        def clean(prediction: Tensor) -> Tensor:
            return schedule.clean_and_noise(x_t, prediction, alpha)[0]

        if self.config.updates_per_round == 1:
            old = prediction.detach()
        else:
            old = torch.stack([self.old[key] for key in zip(image.tolist(), moment.tolist(), strict=True)]).to(prediction.device)
        preference = (0.5 + advantage / (2 * certain)).clamp(0, 1)
        return certain / mix * negative_aware_loss(prediction, old, clean, self.x_0[image].to(prediction.device), preference, mix)


def make_lesson(
    config: RunConfig, policy: Policy, trajectory: Trajectory, conditions: Any, weights: Weights, number: int, listen: Callable[[], None]
) -> Lesson:
    """The lesson of round ``number``; ``listen`` is called at safe points."""
    if config.objective in ("ddpo-is", "ddpo-sf"):
        return TrajectoryLesson(config, policy, trajectory, conditions, weights)
    return ForwardLesson(config, policy, trajectory, conditions, weights, number, listen)
