"""The five objectives, behind one door: a round and its scores become a :class:`Lesson`, whose items the trainer takes in random order.

========== ============================================== ============================ =============================================
objective  item                                           weight of an image           loss of an item
========== ============================================== ============================ =============================================
ddpo-is    a sampled denoising step                       advantage A                  PPO's clipped surrogate of A ρ
ddpo-sf    a sampled denoising step                       advantage A                  -A log p
rwr        the image, noised afresh to a random timestep  exp(β A) / Z within a prompt the denoising loss
rwr-sparse the same                                       1 for the best of a prompt   the denoising loss
nft        the image, noised afresh to a sampler's step   advantage A                  DiffusionNFT's, on new and old predictions
========== ============================================== ============================ =============================================

The first two follow the policy's own trajectories; the others need the clean latents only, and any sampler would do. All of them train the very
prediction that sampling uses, the guided one (Black et al. 2023, App. E.1; the reference code does so for RWR too). An image of weight 0 is not
computed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ddpo.advantage import group_advantages, history_advantages, percentile_weights, reward_weights, round_advantages
from ddpo.config import RunConfig
from ddpo.loss import Health, denoising_loss, importance_loss, negative_aware_loss, score_function_loss
from ddpo.policy import Policy
from ddpo.rollout import derive_seed
from ddpo.trajectory import Trajectory


def advantages_of(
    config: RunConfig, scores: Sequence[float | None], prompts: Sequence[str], history: Callable[[], Mapping[str, Sequence[float]]]
) -> Tensor:
    """The round's advantages (n,), as the setting ``advantage`` says; ``history`` gives each prompt's earlier scores, oldest first."""
    if config.advantage == "group":
        return group_advantages(scores, prompts, config.advantage_clip)
    if config.advantage == "round":
        return round_advantages(scores, config.advantage_clip)
    return history_advantages(scores, prompts, history(), config.advantage_clip)


def weights_of(config: RunConfig, scores: Sequence[float | None], prompts: Sequence[str], advantages: Tensor) -> Tensor:
    """How much each image of a round counts, and for what, (n,); 0 for an image that teaches nothing."""
    known = [score is not None for score in scores]
    if config.objective == "rwr":
        return reward_weights(advantages, prompts, known, config.rwr_beta)
    if config.objective == "rwr-sparse":
        return percentile_weights(advantages, prompts, known, config.rwr_quantile)
    return advantages


class Lesson(Protocol):
    """One round, ready to be learned from: items are (image, draw) with ``draw`` from ``draws``."""

    draws: list[int]
    health: Health

    def loss(self, image: Tensor, draw: Tensor) -> tuple[Tensor, float]:
        """The losses of some items (m,), and the largest |ρ - 1| among them (0 where there is no ratio)."""
        ...


class TrajectoryLesson:
    """DDPO: the denoising steps that were sampled are the items.

    With ``kl_weight`` β each step also pays β KL(p_θ ‖ p_base), exact for Gaussians of equal std and divided by the dimensions as log p is, so
    that the whole ascends A - β KL with KL in nats (DPOK: Fan et al. 2023, arXiv 2305.16381, eq. 8).
    """

    def __init__(self, config: RunConfig, policy: Policy, trajectory: Trajectory, conditions: Tensor, weights: Tensor) -> None:
        self.policy, self.trajectory, self.conditions, self.weights = policy, trajectory, conditions, weights
        self.clip_range = config.clip_range(trajectory.dimensions)
        self.clipped, self.kl_weight = config.objective == "ddpo-is", config.kl_weight
        self.draws = [i for i in policy.schedule.actions if i < len(policy.schedule) - config.skip_last_steps]
        self.health = Health(trajectory.dimensions, self.clip_range)

    def loss(self, image: Tensor, draw: Tensor) -> tuple[Tensor, float]:
        device = self.policy.device
        x_t, x_prev = self.trajectory.latents[image, draw].to(device), self.trajectory.latents[image, draw + 1].to(device)
        condition = self.conditions[image.to(self.conditions.device)]
        gaussian = self.policy.step(x_t, draw.to(device), condition)
        log_prob = gaussian.log_prob(x_prev)
        old, advantage = self.trajectory.log_probs[image, draw].to(device), self.weights[image].to(device)
        loss = importance_loss(log_prob, old, advantage, self.clip_range) if self.clipped else score_function_loss(log_prob, advantage)
        if self.kl_weight:
            with torch.no_grad(), self.policy.base():
                base = self.policy.step(x_t, draw.to(device), condition)
            loss = loss + self.kl_weight * gaussian.kl(base) / self.trajectory.dimensions
        return loss, self.health.add(loss, log_prob, old, advantage)


class ForwardLesson:
    """RWR and NFT: the items are the images, each noised ``forward_draws`` times.

    With ``kl_weight`` β an item also pays β ‖f - f_base‖², mean over dimensions: the KL divergence of a diffusion step up to a factor of its own.

    For NFT the sampling policy's predictions of all items are computed at the start, so that several updates a round have them.
    """

    def __init__(self, config: RunConfig, policy: Policy, trajectory: Trajectory, conditions: Tensor, weights: Tensor, number: int) -> None:
        self.config, self.policy, self.conditions, self.weights = config, policy, conditions, weights
        self.x_0 = trajectory.latents[:, -1]
        self.draws = list(range(config.forward_draws))
        self.health = Health(trajectory.dimensions, config.clip_range(trajectory.dimensions))
        generator = torch.Generator().manual_seed(derive_seed(config.seed, number, "forward"))
        shape = (len(trajectory), config.forward_draws)
        if config.objective == "nft":
            steps = policy.schedule.timesteps[: len(policy.schedule) - config.skip_last_steps]
            self.timesteps = steps[torch.randint(len(steps), shape, generator=generator)]
        else:
            self.timesteps = torch.randint(len(policy.schedule.alphas_cumprod), shape, generator=generator)
        self.noise = torch.randn((*shape, *self.x_0.shape[1:]), generator=generator)
        self.old = torch.zeros_like(self.noise) if config.objective == "nft" else None
        if self.old is not None:
            items = torch.cartesian_prod(weights.nonzero()[:, 0], torch.tensor(self.draws)).reshape(-1, 2)
            with torch.no_grad():
                for part in items.split(config.update_microbatch):
                    image, draw = part.unbind(1)
                    self.old[image, draw] = self._predict(image, draw)[0].cpu()

    def _predict(self, image: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prediction, target, noised latent and timestep of some items."""
        device = self.policy.device
        timestep = self.timesteps[image, draw].to(device)
        x_t, target = self.policy.schedule.noised(self.x_0[image].to(device), timestep, self.noise[image, draw].to(device))
        return self.policy.predict(x_t, timestep, self.conditions[image.to(self.conditions.device)]), target, x_t, timestep

    def loss(self, image: Tensor, draw: Tensor) -> tuple[Tensor, float]:
        prediction, target, x_t, timestep = self._predict(image, draw)
        weight = self.weights[image].to(prediction.device)
        if self.old is None:
            loss = denoising_loss(prediction, target, weight)
        else:
            schedule, alpha = self.policy.schedule, self.policy.schedule.alpha_at(timestep)

            def clean(prediction: Tensor) -> Tensor:
                return schedule.clean_and_noise(x_t, prediction, alpha)[0]

            preference = (0.5 + weight / (2 * self.config.nft_advantage)).clamp(0, 1)
            old, x_0 = self.old[image, draw].to(prediction.device), self.x_0[image].to(prediction.device)
            loss = negative_aware_loss(prediction, old, clean, x_0, preference, self.config.nft_mix)
        if self.config.kl_weight:
            with torch.no_grad(), self.policy.base():
                base = self.policy.predict(x_t, timestep, self.conditions[image.to(self.conditions.device)])
            loss = loss + self.config.kl_weight * ((prediction - base) ** 2).mean(dim=(1, 2, 3))
        self.health.add_loss(loss)
        return loss, 0.0


def make_lesson(config: RunConfig, policy: Policy, trajectory: Trajectory, conditions: Tensor, weights: Tensor, number: int) -> Lesson:
    """The lesson of round ``number``."""
    if config.objective in ("ddpo-is", "ddpo-sf"):
        return TrajectoryLesson(config, policy, trajectory, conditions, weights)
    return ForwardLesson(config, policy, trajectory, conditions, weights, number)
