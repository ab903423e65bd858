"""One denoising step: the same as diffusers' DDIM, and a true Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

from ddpo.diffusion import Gaussian, Schedule
from tests.models import tiny_scheduler

SHAPE = (2, 4, 3, 3)
FLOAT32 = 2**-23


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, the model's output and the step's noise."""
    generator = torch.Generator().manual_seed(seed)
    x_t, output, noise = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    return x_t, output, noise


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset_and_final", [(1, False), (0, False), (0, True)])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_step_and_sample_equal_diffusers_at_every_timestep(
    prediction_type: str, spacing: str, offset_and_final: tuple[int, bool], steps: int
) -> None:
    """Same timesteps, and x_prev equal to DDIMScheduler.step(eta=1) at each, the last included.

    Tolerance: both do about ten float32 operations on numbers up to max |x̂_0|, of which the division by sqrt(ᾱ) makes the largest (about 15 at
    t = 999); ten roundings of half a unit each are 10 x 2^-24 x 15 < 1e-5, relative to numbers of size 1.
    """
    offset, final = offset_and_final
    scheduler = tiny_scheduler(prediction_type=prediction_type, timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=final)
    schedule = Schedule.ddim(scheduler, steps, eta=1.0)
    scheduler.set_timesteps(steps)
    assert schedule.timesteps.tolist() == scheduler.timesteps.tolist() and len(schedule) == steps
    for i, t in enumerate(scheduler.timesteps):
        x_t, output, noise = inputs(i)
        theirs = scheduler.step(output, t, x_t, eta=1.0, variance_noise=noise).prev_sample
        ours = schedule.step(x_t, torch.full((2,), i), output).sample(noise)
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 10, 30, 500])
def test_each_step_arrives_where_the_next_one_starts(spacing: str, steps: int) -> None:
    """However timesteps are spaced, up to the most steps that a run may have, which are all the model's; the last step arrives at the image."""
    scheduler = tiny_scheduler(timestep_spacing=spacing)
    schedule = Schedule.ddim(scheduler, steps, eta=1.0)
    assert len(schedule) == steps and 0 <= int(schedule.timesteps.min()) <= int(schedule.timesteps.max()) < 1000
    assert schedule.alpha_prev[:-1].tolist() == schedule.alpha[1:].tolist() and schedule.alpha_prev[-1] == scheduler.final_alpha_cumprod


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_std_is_the_ddim_variance_and_eta_scales_it(eta: float) -> None:
    """σ = eta sqrt((1 - ᾱ_prev) / (1 - ᾱ) (1 - ᾱ / ᾱ_prev)), DDIM eq. 16, in float64 from the betas.

    Tolerance: 1 - ᾱ / ᾱ_prev cancels up to three digits (0.001 at its smallest), so 1000 float32 units; the root halves that.
    """
    schedule = Schedule.ddim(tiny_scheduler(), 20, eta)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    for i, t in enumerate(range(951, 0, -50)):
        now, prev = alphas[t], alphas[t - 50] if t > 50 else alphas[0]
        want = eta * math.sqrt((1 - prev) / (1 - now) * (1 - now / prev))
        assert float(schedule.std[i]) == pytest.approx(want, rel=1000 * FLOAT32)


def test_a_batch_takes_each_latent_at_its_own_step() -> None:
    """Latents at steps 7, 0 and 3 in one batch move as each would alone: bit for bit, since no operation mixes rows."""
    schedule = Schedule.ddim(tiny_scheduler(), 10, 1.0)
    x_t, output = torch.randn(2, 3, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    together = schedule.step(x_t, torch.tensor([7, 0, 3]), output)
    for row, index in enumerate([7, 0, 3]):
        alone = schedule.step(x_t[row : row + 1], torch.tensor([index]), output[row : row + 1])
        assert torch.equal(alone.mean[0], together.mean[row]) and torch.equal(alone.std[0], together.std[row])


@pytest.mark.parametrize("final", [False, True])
def test_the_deterministic_last_step_is_no_action_and_has_no_log_prob(final: bool) -> None:
    """Defect 2: with steps_offset = 0 the last step has std 0. It is its mean, without NaN; it is no action; log_prob refuses it."""
    schedule = Schedule.ddim(tiny_scheduler(steps_offset=0, set_alpha_to_one=final), 10, 1.0)
    assert float(schedule.std[-1]) == 0.0 and schedule.actions == list(range(9))
    x_t, output, noise = inputs()
    last = schedule.step(x_t, torch.tensor([9, 9]), output)
    assert torch.isfinite(last.mean).all() and torch.equal(last.sample(noise), last.mean)
    with pytest.raises(ValueError, match="std 0 is deterministic"):
        last.log_prob(last.mean)
    mixed = schedule.step(x_t, torch.tensor([3, 9]), output)
    with pytest.raises(ValueError, match=r"Schedule\.actions"):
        mixed.log_prob(mixed.mean)


def test_with_steps_offset_1_every_step_is_an_action() -> None:
    """Defect 2, the other side: Stable Diffusion's own schedule (t = 1 at the end) leaves the last step random."""
    assert Schedule.ddim(tiny_scheduler(), 10, 1.0).actions == list(range(10))


def test_log_prob_is_the_mean_of_torch_distributions_over_dimensions() -> None:
    """Compared in float64, for a std from 0.01 to 2. Tolerance: z² / 2 is at most 10 or so, in float32 10 x 4 units."""
    generator = torch.Generator().manual_seed(2)
    mean, std = torch.randn(4, 4, 5, 5, generator=generator), torch.tensor([0.01, 0.1, 1.0, 2.0])[:, None, None, None]
    gaussian = Gaussian(mean, std)
    x = gaussian.sample(torch.randn(mean.shape, generator=generator))
    want = torch.distributions.Normal(mean.double(), std.double().expand_as(mean)).log_prob(x.double()).mean((1, 2, 3))
    assert gaussian.log_prob(x).dtype == torch.float32
    # x = mean + std z is rounded to float32 beside a mean of size 3: at std 0.01 that alone moves z by 3 x 2^-24 / 0.01 = 2e-5.
    torch.testing.assert_close(gaussian.log_prob(x).double(), want, rtol=0, atol=1e-4 * 0.2)


def test_kl_is_the_sum_of_torch_distributions_over_dimensions() -> None:
    generator = torch.Generator().manual_seed(3)
    one, two = torch.randn(2, 4, 4, 3, 3, generator=generator)
    std = torch.tensor([0.05, 0.2, 1.0, 3.0])[:, None, None, None]
    a, b = (torch.distributions.Normal(m.double(), std.double().expand_as(m)) for m in (one, two))
    want = torch.distributions.kl_divergence(a, b).sum((1, 2, 3))
    torch.testing.assert_close(Gaussian(one, std).kl(Gaussian(two, std)).double(), want, rtol=40 * FLOAT32, atol=0)


def test_kl_of_two_noise_predictions_has_the_known_weight() -> None:
    """KL = c_t² ‖ε - ε'‖² / 2σ², c_t = sqrt(1 - ᾱ_prev - σ²) - sqrt(ᾱ_prev (1 - ᾱ) / ᾱ): mean and std belong together (ALGORITHM.md, section 5)."""
    schedule = Schedule.ddim(tiny_scheduler(), 10, 1.0)
    for i in range(10):
        x_t, one, two = inputs(i)
        index = torch.tensor([i, i])
        a, prev, std = (float(v[i]) for v in (schedule.alpha, schedule.alpha_prev, schedule.std))
        c = math.sqrt(1 - prev - std**2) - math.sqrt(prev * (1 - a) / a)
        want = c**2 * ((one - two) ** 2).double().sum((1, 2, 3)) / (2 * std**2)
        got = schedule.step(x_t, index, one).kl(schedule.step(x_t, index, two))
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=0)  # the means cancel: 2 to 3 of float32's 7 digits are lost


def test_half_precision_is_refused_where_the_ratio_would_break() -> None:
    """Defect 5's neighbour: means, stds and scored latents are float32 or it is an error."""
    mean, std = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 1)
    with pytest.raises(TypeError, match="float32"):
        Gaussian(mean.bfloat16(), std.bfloat16())
    with pytest.raises(TypeError, match="rounded latent"):
        Gaussian(mean, std).log_prob(mean.half())
    with pytest.raises(ValueError, match="are not"):
        Gaussian(mean, torch.ones(1))


def test_a_half_precision_prediction_still_gives_float32_means() -> None:
    x_t, output, _ = inputs()
    step = Schedule.ddim(tiny_scheduler(), 10, 1.0).step(x_t, torch.tensor([0, 5]), output.bfloat16())
    assert step.mean.dtype == step.std.dtype == torch.float32


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'flow'"):
        Schedule.ddim(tiny_scheduler(prediction_type="flow"), 10, 1.0)


def test_the_gradient_scale_is_the_size_of_a_step_s_gradient_for_a_linear_model() -> None:
    """For the prediction ε̂ = s, the same everywhere, ∇_s log p has the size c / σ per dimension; times sqrt(ᾱ) it is the scale, by autograd at every
    step of 10 and of 50."""
    for steps in (10, 50):
        schedule = Schedule.ddim(tiny_scheduler(), steps, 1.0)
        for i in range(steps):
            s = torch.zeros(1, 1, 1, 1, requires_grad=True)
            gaussian = schedule.step(torch.ones(1, 1, 1, 1), torch.tensor([i]), s)
            one_sigma_off = gaussian.mean.detach() + gaussian.std
            (gradient,) = torch.autograd.grad(gaussian.log_prob(one_sigma_off).sum(), s)
            want = float(gradient.abs() * schedule.alpha[i].sqrt())
            assert float(schedule.gradient_scale[i]) == pytest.approx(want, rel=1e-3, abs=1e-5)
    assert float(Schedule.ddim(tiny_scheduler(set_alpha_to_one=True, steps_offset=0), 10, 1.0).gradient_scale[-1]) == 0.0
