"""The clipped objective and its diagnostics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo.config import RunConfig
from ddpo.diffusion import Gaussian, Schedule
from ddpo.loss import QUARTERS, Health, importance_loss, kl_estimate, quarters_of
from tests.models import tiny_scheduler
from tests.toys_ddpo import LinearPolicy, toy_config

CLIP = 0.1


def loss_and_gradient(ratio: float, advantage: float) -> tuple[float, float]:
    """The loss at a ratio, and its gradient with respect to log_prob."""
    log_prob = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = importance_loss(log_prob, torch.tensor([advantage]), CLIP)
    loss.sum().backward()
    assert log_prob.grad is not None
    return loss.item(), log_prob.grad.item()


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        (2.0, 1.05, -2.1, -2.1),  # inside: -A ρ, and d(-A ρ)/d log p = -A ρ
        (2.0, 1.5, -2.2, 0.0),  # good and far above: held at 1 + ε, no gradient
        (2.0, 0.5, -1.0, -1.0),  # good and far below: pulled back, not held
        (-2.0, 0.95, 1.9, 1.9),
        (-2.0, 0.5, 1.8, 0.0),  # bad and far below: held at 1 - ε
        (-2.0, 1.5, 3.0, 3.0),  # bad and far above: pulled back, not held
    ],
)
def test_the_four_clip_quadrants_in_value_and_gradient(advantage: float, ratio: float, loss: float, gradient: float) -> None:
    """PPO clips only where it would profit: (A > 0, ρ > 1 + ε) and (A < 0, ρ < 1 - ε). Six figures on paper; float32 exp and log cost 1e-6."""
    got = loss_and_gradient(ratio, advantage)
    assert got == (pytest.approx(loss, rel=2e-6), pytest.approx(gradient, rel=2e-6, abs=0))


@pytest.mark.parametrize("advantage", [-3.0, 0.5, 2.0])
def test_at_ratio_1_the_gradient_is_reinforce(advantage: float) -> None:
    """d loss / d log p = -A exactly: at equal log-probabilities exp(0) = 1, and torch gives the unclipped side its gradient."""
    log_prob = torch.tensor([-1.7, 0.3], requires_grad=True)
    importance_loss(log_prob - log_prob.detach(), torch.full((2,), advantage), CLIP).sum().backward()
    assert log_prob.grad is not None and log_prob.grad.tolist() == [-advantage, -advantage]


def test_zero_advantage_contributes_exactly_nothing() -> None:
    """Whatever the ratio: loss 0 and gradient 0, not merely small."""
    for ratio in (0.2, 1.0, 5.0):
        assert loss_and_gradient(ratio, 0.0) == (0.0, 0.0)


def test_gradient_on_a_linear_gaussian_chain_has_its_closed_form() -> None:
    """∇ of the shipped loss through the shipped Gaussian and schedule, against the gradient written down.

    mean = m(x_t) - c_t shift, c_t = sqrt(1 - ᾱ_prev - σ²) - sqrt(ᾱ_prev (1 - ᾱ) / ᾱ), so for log p averaged over D dimensions
    d loss / d shift = -A ρ · (x_prev - mean) / σ² · (-c_t) / D, with ρ = 1. Summed over prompts and steps. c_t cancels three digits at most.
    """
    config = toy_config(steps=6)
    policy, schedule = LinearPolicy(config), Schedule.ddim(tiny_scheduler(), 6, 1.0)
    generator = torch.Generator().manual_seed(4)
    want = torch.zeros_like(policy.shift, dtype=torch.float64)
    for i in range(6):
        index, condition = torch.full((5,), i), torch.tensor([0, 1, 0, 1, 1])
        x_t, noise = torch.randn(2, 5, 1, 4, 4, generator=generator)
        advantage = torch.randn(5, generator=generator)
        gaussian = policy.step(x_t, index, condition)
        x_prev = gaussian.sample(noise).detach()
        log_prob = gaussian.log_prob(x_prev)
        importance_loss(log_prob - log_prob.detach(), advantage, CLIP).sum().backward()
        a, prev, std = (float(v[i]) for v in (schedule.alpha, schedule.alpha_prev, schedule.std))
        c = math.sqrt(1 - prev - std**2) - math.sqrt(prev * (1 - a) / a)
        want.index_add_(0, condition, (advantage[:, None, None, None] * noise).double() / std * c / 16)
    assert policy.shift.grad is not None
    torch.testing.assert_close(policy.shift.grad.double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


class OnApple(Tensor):
    """A tensor as Apple's GPUs have it: float64 is refused until it has come to the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.cpu:
            return found.as_subclass(Tensor)
        if isinstance(found, Tensor) and found.dtype == torch.float64:
            raise TypeError("MPS knows no float64.")
        return found


def test_what_a_step_reports_is_summed_in_float64_on_the_cpu() -> None:
    """On an Apple GPU the sums are those of the same numbers elsewhere."""
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2).as_subclass(OnApple).double()
    found = []
    for there in (Tensor, OnApple):
        log_ratio, advantage, kl = (torch.tensor(values).as_subclass(there) for values in ([0.2, -0.2], [1.0, -1.0], [0.5, 0.25]))
        health = Health(dimensions=16, clip_range=CLIP)
        health.add(log_ratio, log_ratio, advantage, kl, torch.tensor([0, 3]))
        health.add(log_ratio, log_ratio, advantage, kl_estimate(log_ratio, 16), torch.tensor([0, 3]))
        found.append(health.metrics())
    assert found[0] == found[1] and found[0]["clip_fraction_up"] == found[0]["clip_fraction_down"] == 0.5


def test_shapes_and_types_are_checked_at_the_door() -> None:
    one = torch.zeros(3)
    for wrong in (torch.zeros(2), torch.zeros(3, 1), torch.zeros(3, dtype=torch.float64), torch.zeros(3).bfloat16()):
        for arguments in ((wrong, one), (one, wrong)):
            with pytest.raises(ValueError, match="is needed"):
                importance_loss(*arguments, CLIP)


def test_the_clip_range_is_a_bound_in_nats_whatever_the_latent() -> None:
    """The paper's 1e-4 at 64 x 64 x 4 is 1.64 nats of the true, summed log-probability; so is the rule's at any size."""
    config = RunConfig()
    assert config.clip_range(64 * 64 * 4) == pytest.approx(1e-4, rel=2e-3)
    for dimensions in (256, 1024, 16_384):
        assert dimensions * config.clip_range(dimensions) == pytest.approx(1.64)
    assert RunConfig(clip_nats=3.28).clip_range(100) == pytest.approx(0.0328)


def shifted(std: float, shift: float, n: int) -> tuple[Gaussian, Gaussian, Tensor]:
    """A policy, another whose mean is elsewhere, and n draws of the first."""
    mean = torch.zeros(n, 1, 4, 4)
    old = Gaussian(mean, torch.full((n, 1, 1, 1), std))
    return old, Gaussian(mean + shift, old.std), old.sample(torch.randn(mean.shape, generator=torch.Generator().manual_seed(5)))


def test_kl_update_estimates_the_true_kl() -> None:
    """E[(log ratio)²] / 2 with summed log-probabilities is d/2 + d²/8 ... = KL + KL² / 2 for Gaussians of equal std, here at KL = 0.08.

    (log ratio ~ N(-KL, 2 KL), whose second moment is 2 KL + KL².) With n = 20,000 draws the estimate's standard error is about
    KL sqrt(2 / n) = 1 %; 5 % is five of them: a false alarm in two million, and the seed is fixed besides.
    """
    old, new, x = shifted(std=0.5, shift=0.05, n=20_000)
    kl = float(old.kl(new)[0])
    assert kl == pytest.approx(0.08, rel=1e-5)
    health = Health(dimensions=16, clip_range=CLIP)
    log_ratio, none = new.log_prob(x) - old.log_prob(x), torch.zeros(len(x))
    health.add(none, log_ratio, none, kl_estimate(log_ratio, 16), torch.zeros(len(x), dtype=torch.long))
    assert health.metrics()["kl_update"] == pytest.approx(kl + kl**2 / 2, rel=0.05)


def test_health_counts_what_the_clip_cut() -> None:
    """Ratios 1.5, 1.4, 1.05, 0.5, 1.5 with advantages +, +, +, -, -: two of five cut above, one below; the last is outside but not cut."""
    health, values = Health(dimensions=16, clip_range=CLIP), torch.tensor([1.5, 1.4, 1.05, 0.5, 1.5])
    log_ratio, advantage = values.log(), torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    loss = importance_loss(log_ratio, advantage, CLIP)
    quarter = torch.tensor([0, 0, 2, 2, 3])
    first = health.add(loss[:3], log_ratio[:3], advantage[:3], torch.zeros(3), quarter[:3])
    second = health.add(loss[3:], log_ratio[3:], advantage[3:], torch.zeros(2), quarter[3:])
    assert (first, second) == (pytest.approx(0.5), pytest.approx(0.5))
    metrics = health.metrics()
    assert (metrics["clip_fraction_up"], metrics["clip_fraction_down"]) == (0.4, 0.2)
    assert metrics["ratio_mean"] == pytest.approx(5.95 / 5) and metrics["loss"] == pytest.approx((-1.1 - 1.1 - 1.05 + 0.9 + 1.5) / 5)
    assert metrics["ratio_std"] == pytest.approx(values.std(correction=0).item(), rel=1e-5)
    assert metrics["ratio_max_deviation"] == pytest.approx(0.5)
    assert Health(16, CLIP).metrics() == {}


@pytest.mark.parametrize(
    ("steps", "quarters"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2]), (6, [0, 0, 1, 2, 2, 3]), (50, [0] * 13 + [1] * 12 + [2] * 13 + [3] * 12)]
)
def test_steps_are_told_by_the_quarter_in_which_they_begin(steps: int, quarters: list[int]) -> None:
    assert quarters_of(steps).tolist() == quarters and max(quarters) < QUARTERS


def test_the_ratio_is_told_by_quarter_of_the_denoising() -> None:
    """By hand, in two microbatches: 1.5 and 0.5 in the first quarter, 0.9 and 1.0 in the third, 1.25 in the last, none in the second. Together they
    are the mean over all steps. Where no ratio has moved, nothing is told."""
    health, quarter = Health(dimensions=16, clip_range=CLIP), torch.tensor([0, 2, 3, 0, 2])
    log_ratio, none = torch.tensor([1.5, 0.9, 1.25, 0.5, 1.0]).log(), torch.zeros(5)
    for part in (slice(0, 2), slice(2, 5)):
        health.add(none[part], log_ratio[part], none[part], none[part], quarter[part])
    metrics = health.metrics()
    told = {name: value for name, value in metrics.items() if "quarter" in name}
    wanted = dict(ratio_mean_quarter_1=1.0, ratio_mean_quarter_3=0.95, ratio_mean_quarter_4=1.25)
    assert told == pytest.approx(wanted | dict(ratio_std_quarter_1=0.5, ratio_std_quarter_3=0.05, ratio_std_quarter_4=0.0), abs=1e-6)
    assert metrics["ratio_mean"] == pytest.approx((2 * 1.0 + 2 * 0.95 + 1.25) / 5)
    still = Health(dimensions=16, clip_range=CLIP)
    still.add(none, none, none, none, quarter)
    assert still.metrics()["ratio_mean"] == 1 and not [name for name in still.metrics() if "quarter" in name]
