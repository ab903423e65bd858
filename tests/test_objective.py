"""The five objectives: weights, losses in closed form, and that each of them learns."""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ddpo.advantage import history_advantages, percentile_weights, reward_weights, round_advantages
from ddpo.config import ConfigError, RunConfig
from ddpo.diffusion import Gaussian, Schedule
from ddpo.engine import Part
from ddpo.loss import Health, denoising_loss, importance_loss, negative_aware_loss, normalised_log_ratio, score_function_loss
from ddpo.objective import ForwardLesson, Lesson, TrajectoryLesson, Weights, advantages_of, images_of, make_lesson, weights_of
from ddpo.policy import StableDiffusionPolicy
from ddpo.rollout import noise_of, rollout
from ddpo.trajectory import Trajectory
from tests.models import tiny_pipeline, tiny_scheduler
from tests.test_learning import BOUND, gain, learning_config
from tests.test_trainer import Choosy
from tests.toys_ddpo import LinearPolicy, in_memory, spread_scores, tiny_config, toy_config, toy_trainer

OBJECTIVES = ["ddpo-is", "ddpo-sf", "rwr", "rwr-sparse", "nft"]
FORWARD = ["rwr", "rwr-sparse", "nft"]


# --- weights


def test_rwr_weighs_by_the_softmax_within_each_prompt() -> None:
    """exp(β A) / Z within a prompt, times its images: mean 1, in the ratio exp(β ΔA); another prompt's scores and unrated images have no part."""
    advantages = torch.tensor([1.0, 5.0, -1.0, 0.0, 0.0])
    weights = reward_weights(advantages, ["a", "b", "a", "b", "a"], [True, True, True, True, False], beta=0.5)
    assert weights[[0, 2]].mean().item() == pytest.approx(1) and weights[[1, 3]].mean().item() == pytest.approx(1)
    assert (weights[0] / weights[2]).item() == pytest.approx(math.exp(0.5 * 2), rel=1e-5)
    assert weights[4] == 0


def test_rwr_sparse_keeps_the_best_of_each_prompt() -> None:
    """Eight images and the 0.9 quantile: the best one of each; ties are kept together; a prompt of equal scores teaches nothing."""
    ranks = torch.arange(8.0)
    weights = percentile_weights(torch.cat([ranks, -ranks, torch.zeros(8)]), ["a"] * 8 + ["b"] * 8 + ["c"] * 8, [True] * 24, 0.9)
    assert weights.nonzero()[:, 0].tolist() == [7, 8]
    tied = percentile_weights(torch.tensor([1.0, -2.0, 1.0, 0.0]), ["a"] * 4, [True, True, True, False], 0.9)
    assert tied.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_unrated_image_weighs_nothing(objective: str) -> None:
    config, scores, prompts = toy_config(objective=objective), [1.0, None, 3.0, 2.0], ["a cat"] * 4
    weights = weights_of(config, scores, prompts, advantages_of(config, scores, prompts, dict))
    assert weights.values[1] == 0 and weights.values[2] > 0 and weights.rated.tolist() == [True, False, True, True]


@pytest.mark.parametrize("objective", ["rwr", "rwr-sparse"])
@pytest.mark.parametrize("advantage", ["group", "history"])
def test_a_prompt_whose_images_were_all_disliked_is_not_imitated(objective: str, advantage: str) -> None:
    """Four thumbs down, and one alone: no weight, also where the advantage is -1.5 because earlier images were liked."""
    config, scores, prompts = toy_config(objective=objective, advantage=advantage), [-1.0] * 5, ["a cat"] * 4 + ["a dog"]
    history = {"a cat": [1.0, -1.0] * 10, "a dog": [1.0, -1.0] * 10}
    weights = weights_of(config, scores, prompts, advantages_of(config, scores, prompts, lambda: history))
    assert weights.values.tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("objective", "kl_weight", "images"),
    [
        ("ddpo-is", 0.0, [0, 2]),
        ("ddpo-is", 0.1, [0, 2, 3, 4]),
        ("rwr-sparse", 0.0, [2]),
        ("rwr-sparse", 0.1, [0, 2, 3, 4]),
        ("nft", 0.0, [0, 2, 3, 4]),
    ],
)
def test_images_that_only_hold_the_model_are_learned_from_where_they_do(objective: str, kl_weight: float, images: list[int]) -> None:
    """Prompt a: 1, unrated, 3; prompt b: two alike, of weight 0. They count for the KL penalty and for nft; the unrated one never."""
    config, scores, prompts = toy_config(objective=objective, kl_weight=kl_weight), [1.0, None, 3.0, 2.0, 2.0], ["a", "a", "a", "b", "b"]
    assert images_of(config, weights_of(config, scores, prompts, advantages_of(config, scores, prompts, dict))).tolist() == images


# --- losses


def test_the_score_function_s_gradient_is_minus_the_advantage() -> None:
    log_prob = torch.tensor([0.3, -2.0], requires_grad=True)
    score_function_loss(log_prob, torch.tensor([2.0, -0.5])).sum().backward()
    assert log_prob.grad is not None and log_prob.grad.tolist() == [-2.0, 0.5]


def test_the_denoising_loss_and_its_weight() -> None:
    prediction, target = torch.zeros(2, 1, 2, 2, requires_grad=True), torch.full((2, 1, 2, 2), 3.0)
    loss = denoising_loss(prediction, target, torch.tensor([1.0, 0.5]))
    assert loss.tolist() == [9.0, 4.5]
    loss.sum().backward()
    assert prediction.grad is not None and prediction.grad[:, 0, 0, 0].tolist() == [-1.5, -0.75]  # 2 w (f - f*) / 4


@pytest.mark.parametrize(("preference", "sign"), [(1.0, 1.0), (0.5, 0.0), (0.0, -1.0), (0.75, 0.5)])
@pytest.mark.parametrize("mix", [0.5, 1.0])
def test_nft_pulls_towards_the_preferred_and_pushes_from_the_other(preference: float, sign: float, mix: float) -> None:
    """At new = old both mixes are the old prediction, whose error is e: the gradient is (2 r - 1) β 2 e / mean|e| / d, e here being 3 everywhere
    with the clean latent equal to the prediction; and r = 1/2 says nothing."""
    old = torch.full((1, 1, 2, 2), 3.0)
    new = old.clone().requires_grad_()
    negative_aware_loss(new, old, lambda p: p, torch.zeros(1, 1, 2, 2), torch.tensor([preference]), mix).sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.full_like(old, sign * mix * 2 * 3.0 / 3.0 / 4))


def test_nft_of_a_new_prediction_has_its_value_on_paper() -> None:
    """old 3, new 2, x_0 = 0, β = 0.5: positive 2.5, negative 3.5; squared over mean absolute error: 2.5 and 3.5; r = 0.8: 2.7."""
    loss = negative_aware_loss(
        torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), lambda p: p, torch.zeros(1, 1, 1, 1), torch.tensor([0.8]), 0.5
    )
    assert loss.item() == pytest.approx(2.7)


# --- the forward process


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noising_is_diffusers_own(prediction_type: str) -> None:
    """x_t and the target at every fiftieth timestep against DDIMScheduler.add_noise and get_velocity; and the target implies x_0 again."""
    scheduler: DDIMScheduler = tiny_scheduler(prediction_type=prediction_type)
    schedule = Schedule.ddim(scheduler, 10, 1.0)
    t = torch.arange(0, 1000, 50)
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(len(t), 4, 2, 2, generator=generator) for _ in range(2))
    x_t, target = schedule.noised(x_0, t, noise)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_0, noise, t))
    wanted = dict(epsilon=noise, v_prediction=scheduler.get_velocity(x_0, noise, t), sample=x_0)[prediction_type]
    torch.testing.assert_close(target, wanted)
    clean, again = schedule.clean_and_noise(x_t, target, schedule.alpha_at(t))
    torch.testing.assert_close(clean, x_0, rtol=1e-3, atol=1e-4)  # dividing by sqrt(ᾱ), 0.07 at the end, costs digits
    torch.testing.assert_close(again, noise, rtol=1e-3, atol=1e-3)


def lesson_of(objective: str, number: int = 1, **changes: object) -> tuple[ForwardLesson, LinearPolicy]:
    config = toy_config(**dict(objective=objective, passes=2) | changes)
    policy = LinearPolicy(config)
    trajectory, _ = rollout(policy, ["a cat"] * 8, list(range(8)))
    weights = Weights(torch.linspace(-2, 2, 8), torch.ones(8, dtype=torch.bool))
    lesson = make_lesson(config, policy, trajectory, policy.encode(["a cat"] * 8), weights, number, listen=lambda: None)
    assert isinstance(lesson, ForwardLesson)
    return lesson, policy


@pytest.mark.parametrize("objective", FORWARD)
def test_draws_follow_from_the_seed_and_differ_between_rounds_passes_and_images(objective: str) -> None:
    def draws(**changes: int) -> list[tuple[int, float]]:
        lesson = lesson_of(objective, **changes)[0]
        items = torch.cat([lesson.items(lesson.images, p, torch.Generator()) for p in range(2)])
        found = [lesson.draw(int(i), int(m)) for i, m in items]
        return [(int(t), float(noise.flatten()[0])) for t, noise in found]

    first = draws()
    assert len(set(first)) == len(first) == 8 * 5 * 2 and first == draws()
    assert not set(first) & set(draws(number=2)) and not set(first) & set(draws(seed=1))


def test_nft_draws_the_sampler_s_trained_timesteps_and_rwr_all() -> None:
    def timesteps(objective: str, **changes: object) -> set[int]:
        lesson, _ = lesson_of(objective, **changes)
        return {int(lesson.draw(0, m)[0]) for m in range(400)}

    policy = LinearPolicy(toy_config(steps=10))
    assert timesteps("nft", steps=10, skip_last_steps=3) == set(policy.schedule.timesteps[:7].tolist())
    found = timesteps("rwr")
    assert len(found) > 250 and min(found) < 20 and max(found) > 980


def test_nft_keeps_the_sampling_policy_s_predictions() -> None:
    """The policy moves by one in the round; the loss is that of the new prediction against the one from before, on paper from the pure function. An
    advantage beyond certainty (2, where 1 is certain) counts as certain."""
    lesson, policy = lesson_of("nft", nft_advantage=1.0)
    image, moment = torch.tensor([0, 7, 4]), torch.tensor([1, 2, 9])
    with torch.no_grad():
        before, _, x_t, timestep = lesson._predict(image, moment)
        policy.shift += 1.0
        after = lesson._predict(image, moment)[0]
        torch.testing.assert_close(after, before - 1.0)
        got = lesson.loss(image, moment)[0]
        alpha = policy.schedule.alpha_at(timestep)
        preference = (0.5 + lesson.weights[image] / 2).clamp(0, 1)
        want = negative_aware_loss(after, before, lambda p: (x_t - (1 - alpha).sqrt() * p) / alpha.sqrt(), lesson.x_0[image], preference, 1.0)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("certain", "mix"), [(2.0, 1.0), (5.0, 1.0), (5.0, 0.1)])
def test_nft_s_gradient_is_the_advantage_s_whatever_its_settings(certain: float, mix: float) -> None:
    """At the round's start the gradient is proportional to A alone: A_max and β only say how far that goes on."""
    grads = []
    for settings in (dict(nft_advantage=certain, nft_mix=mix), {}):
        lesson, policy = lesson_of("nft", passes=1, **settings)
        lesson.loss(torch.tensor([2, 5]), torch.tensor([0, 1]))[0].sum().backward()
        assert policy.shift.grad is not None and policy.shift.grad.abs().max() > 0
        grads.append(policy.shift.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


# --- the KL penalty, and fewer steps


@pytest.mark.parametrize("step_weights", ["equal", "balanced"])
def test_the_kl_penalty_is_the_steps_exact_kl_in_nats_over_the_dimensions(step_weights: str) -> None:
    """The linear policy's mean moves by c_t times its shift, so KL = (c_t shift)² D / 2σ_t²; the loss grows by β / D times that, times the weight
    that the step's surrogate has: a nat costs β at every step."""
    image, draw = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 3])
    losses = []
    for kl_weight in (0.0, 0.3):
        config = toy_config(kl_weight=kl_weight, step_weights=step_weights)
        policy = LinearPolicy(config)
        trajectory, _ = rollout(policy, ["a cat"] * 4, list(range(4)))
        weights = Weights(torch.ones(4), torch.ones(4, dtype=torch.bool))
        lesson = make_lesson(config, policy, trajectory, policy.encode(["a cat"] * 4), weights, 1, lambda: None)
        with torch.no_grad():
            policy.shift += 0.01
        losses.append(lesson.loss(image, draw)[0])
    assert lesson.health.metrics()["kl_base"] > 0
    s = policy.schedule
    c = (1 - s.alpha_prev - s.std**2).clamp(min=0).sqrt() - (s.alpha_prev * (1 - s.alpha) / s.alpha).sqrt()
    sizes = s.std / (c.abs() * s.alpha.sqrt())
    weight = sizes / sizes.mean() if step_weights == "balanced" else torch.ones(4)
    torch.testing.assert_close(losses[1] - losses[0], weight * 0.3 * (0.01 * c) ** 2 / (2 * s.std**2), rtol=0.02, atol=0)


def test_the_forward_kl_penalty_is_the_squared_distance_of_the_predictions() -> None:
    """The shift moves every prediction by 0.5: β 0.25 more, for each item."""
    losses = []
    for kl_weight in (0.0, 0.2):
        lesson, policy = lesson_of("rwr", kl_weight=kl_weight)
        with torch.no_grad():
            policy.shift += 0.5
        losses.append(lesson.loss(torch.tensor([1, 6]), torch.tensor([0, 3]))[0])
    torch.testing.assert_close(losses[1] - losses[0], torch.full((2,), 0.2 * 0.25), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", ["ddpo-is", "nft"])
def test_a_heavy_kl_penalty_holds_the_model_at_its_base(objective: str) -> None:
    with in_memory() as folder:
        assert abs(gain(folder / "run", learning_config(0, objective=objective, kl_weight=1e3))) < BOUND / 2


@pytest.mark.parametrize(("fraction", "steps"), [(0.5, 2), (0.1, 1), (1.0, 4)])
def test_a_share_of_the_steps_is_trained_of_each_image(tmp_path: Path, fraction: float, steps: int) -> None:
    """Eight images of four steps: that many items, no item twice; the paper's train_timestep_ratio."""
    trainer = toy_trainer(tmp_path / "run", toy_config(trained_fraction=fraction))
    spread_scores(trainer)
    seen: list[tuple[int, int]] = []
    accumulate = trainer.engine._accumulate

    def spy(lesson: Lesson, part: Part, number: int, count: int, check: bool) -> None:
        assert count == 8 * steps
        seen.extend((int(i), int(d)) for i, d in part.items)
        accumulate(lesson, part, number, count, check)

    trainer.engine._accumulate = spy  # type: ignore[method-assign]
    trainer.update(1)
    assert len(seen) == len(set(seen)) == 8 * steps
    assert all(sum(i == image for i, _ in seen) == steps for image in range(8))


def test_the_first_steps_can_be_left_out_too() -> None:
    lesson, _ = trajectory_lesson(toy_config(steps=6, skip_first_steps=2, skip_last_steps=1))
    items = lesson.items(torch.arange(4), 0, torch.Generator().manual_seed(0))
    assert len(items) == 4 * 3 and set(items[:, 1].tolist()) == {2, 3, 4}


# --- the ratio


def trajectory_lesson(config: RunConfig, policy: LinearPolicy | StableDiffusionPolicy | None = None) -> tuple[TrajectoryLesson, Trajectory]:
    """Four images of a cat with advantages of their own, and what they were sampled by."""
    policy = policy or LinearPolicy(config)
    trajectory, _ = rollout(policy, ["a cat"] * 4, list(range(4)), keep_means=config.keeps_means)
    weights = Weights(torch.tensor([1.0, -1.0, 2.0, -0.5]), torch.ones(4, dtype=torch.bool))
    lesson = make_lesson(config, policy, trajectory, policy.encode(["a cat"] * 4, config.guidance_in_training), weights, 1, lambda: None)
    assert isinstance(lesson, TrajectoryLesson)
    return lesson, trajectory


@pytest.mark.parametrize(("eta", "images_per_update", "wanted"), [(1.0, 4, 0.1), (0.1, 4, 1.0), (0.1, 2, 0.1)])
def test_a_rounded_prediction_may_show_by_one_over_eta_where_no_clip_depends_on_it(eta: float, images_per_update: int, wanted: float) -> None:
    """With one update a round the tolerance is a tenth of the clip range over η; with two, whose clip needs exact ratios, a tenth."""
    lesson, _ = trajectory_lesson(toy_config(eta=eta, images_per_round=4, images_per_update=images_per_update))
    assert lesson.tolerance == pytest.approx(wanted * lesson.clip_range)


def test_normalised_ratios_have_the_same_mean_and_spread_at_every_std() -> None:
    """x ~ N(μ_old, σ²), the new mean Δ = 0.3 away in each of D = 16 dimensions: the normalised log ratio z · Δ / (D σ̄) has mean 0 and standard
    deviation Δ / (sqrt(D) σ̄) for every σ, where the plain one has mean -Δ² / 2σ² and deviation Δ / (sqrt(D) σ). With 20,000 draws the error of
    the mean is 0.7 % of the deviation and of the deviation 0.5 %; five of them are allowed."""
    generator = torch.Generator().manual_seed(3)
    for std in (0.05, 0.5, 2.0):
        old = torch.zeros(20_000, 1, 4, 4)
        z = torch.randn(old.shape, generator=generator)
        new, spread = old + 0.3, torch.full((20_000, 1, 1, 1), std)
        x = old + std * z
        plain = (((x - old) ** 2 - (x - new) ** 2) / (2 * std**2)).mean(dim=(1, 2, 3))
        found = normalised_log_ratio(plain, new, old, spread, typical_std=0.5)
        wanted = 0.3 / (4 * 0.5)
        assert found.std().item() == pytest.approx(wanted, rel=0.025) and abs(found.mean().item()) < 0.035 * wanted


@pytest.mark.parametrize("step_weights", ["equal", "balanced"])
def test_the_normalised_ratio_on_paper(step_weights: str) -> None:
    """The policy moves by 0.01 within the round: Δμ = -0.01 c at a step, and the loss is the clipped surrogate of z · Δμ / (D σ̄), with the steps'
    weights 1 / (|c| sqrt(ᾱ) / σ̄) where they are balanced."""
    lesson, _ = trajectory_lesson(toy_config(ratio="normalised", passes=2, step_weights=step_weights, clip_nats=0.005))
    policy = lesson.policy
    assert isinstance(policy, LinearPolicy)
    with torch.no_grad():
        policy.shift += 0.01
    image, moment = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 3])
    found, deviation = lesson.loss(image, moment)
    s = policy.schedule
    c = (1 - s.alpha_prev - s.std**2).clamp(min=0).sqrt() - (s.alpha_prev * (1 - s.alpha) / s.alpha).sqrt()
    noise = torch.stack([noise_of(i, len(s), policy.latent_shape)[i + 1] for i in range(4)])
    log_ratio = -0.01 * c * noise.mean(dim=(1, 2, 3)) / s.std.mean()
    scale = c.abs() * s.alpha.sqrt() / s.std.mean()
    weights = (1 / scale) / (1 / scale).mean() if step_weights == "balanced" else torch.ones(4)
    wanted = weights * importance_loss(log_ratio, lesson.weights, 0.005 / 16)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert deviation == pytest.approx(float((log_ratio.exp() - 1).abs().max()), rel=1e-2)
    assert not torch.allclose(found, -lesson.weights * weights, rtol=1e-5)


def test_the_ratio_is_told_by_the_trained_steps_quarters() -> None:
    """Eight steps of which the second to the seventh are trained: the third and fourth quarter begin at the fourth and sixth of these."""
    lesson, _ = trajectory_lesson(toy_config(steps=8, skip_first_steps=1, skip_last_steps=1, passes=2))
    policy = lesson.policy
    assert isinstance(policy, LinearPolicy)
    with torch.no_grad():
        policy.shift += 0.1
    image, moment = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 4, 6])
    lesson.loss(image, moment)
    ratios = (
        lesson.gaussian(image, moment).log_prob(lesson.trajectory.latents[image, moment + 1]) - lesson.trajectory.log_probs[image, moment]
    ).exp()
    metrics, first, third, last = lesson.health.metrics(), ratios[:2].mean().item(), ratios[2].item(), ratios[3].item()
    found = {name: value for name, value in metrics.items() if name.startswith("ratio_mean_quarter")}
    assert found == pytest.approx(dict(ratio_mean_quarter_1=first, ratio_mean_quarter_3=third, ratio_mean_quarter_4=last), rel=1e-6)
    assert metrics["ratio_std_quarter_1"] > 0 and metrics["ratio_std_quarter_3"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("passes", [1, 2])
def test_without_guidance_the_prompt_s_own_prediction_is_trained_against_itself(passes: int) -> None:
    """Images are sampled with guidance 5; the ratio is of the conditional policy to itself when they were made, 1 before the first update. It then
    moves as the conditional log-probability of the same latents does, whatever the guided one's; the distance is the exact one."""
    config = tiny_config(Path("unused"), guidance=5.0, guidance_in_training=False, passes=passes, images_per_update=8)
    policy = StableDiffusionPolicy(tiny_pipeline(), config)
    lesson, trajectory = trajectory_lesson(config, policy)
    image, moment = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])
    _, deviation = lesson.loss(image, moment)
    assert deviation < 1e-5

    def alone() -> Gaussian:
        return StableDiffusionPolicy.step(policy, trajectory.latents[image, moment], moment, policy.encode(["a cat"] * 4, guided=False))

    x_prev = trajectory.latents[image, moment + 1]
    with torch.no_grad():
        before, sampled = alone(), policy.step(trajectory.latents[image, moment], moment, policy.encode(["a cat"] * 4))
        assert (sampled.log_prob(x_prev) - trajectory.log_probs[image, moment]).abs().max() > 1e-2
        torch.testing.assert_close(before.log_prob(x_prev), trajectory.log_probs[image, moment])
        torch.testing.assert_close(sampled.trained.mean, before.mean)
        for parameter in policy.parameters().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        after = alone()
        lesson.health = Health(trajectory.dimensions, lesson.clip_range)
        _, deviation = lesson.loss(image, moment)
    ratio = (after.log_prob(x_prev) - before.log_prob(x_prev)).exp()
    assert deviation == pytest.approx(float((ratio - 1).abs().max()), rel=1e-3) and deviation > 1e-3
    assert lesson.health.metrics()["kl_update"] == pytest.approx(float(after.kl(before).mean()), rel=1e-3)


def test_without_guidance_the_images_and_the_gradient_are_those_of_each_branch_by_hand() -> None:
    """The images are those of the guided policy; the graph is of the prompt's prediction alone."""
    config = tiny_config(Path("unused"), guidance=5.0, guidance_in_training=False)
    plain, policy = (StableDiffusionPolicy(tiny_pipeline(), config.with_changes(guidance_in_training=on)) for on in (True, False))
    torch.testing.assert_close(rollout(policy, ["a cat"] * 4, [1, 2, 3, 4])[0].latents, rollout(plain, ["a cat"] * 4, [1, 2, 3, 4])[0].latents)
    x_t, index = torch.randn(4, *policy.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    both = policy.step(x_t, index, policy.encode(["a cat"] * 4))
    assert both.trained_mean is not None and both.trained_mean.requires_grad and not both.mean.requires_grad
    torch.testing.assert_close(both.mean, plain.step(x_t, index, plain.encode(["a cat"] * 4)).mean)
    one = policy.step(x_t, index, policy.encode(["a cat"] * 4, guided=False))
    assert one.trained is one and torch.equal(one.mean, both.trained_mean)


# --- what scores are compared with


def test_the_history_s_statistics_are_the_paper_s() -> None:
    """Against a deque of 32 a prompt, minimum 16, filled round by round as the reference code does: 20 rounds of 4 images of 2 prompts."""
    buffers: dict[str, deque[float]] = {p: deque(maxlen=32) for p in "ab"}
    history: dict[str, list[float]] = {}
    rng = random.Random(0)
    for number in range(20):
        prompts = ["a", "b", "b", "b"] if number % 2 else ["a", "a", "b", "b"]
        scores = [rng.gauss(3 if p == "a" else -50, 1) for p in prompts]
        wanted = []
        for prompt, score in zip(prompts, scores, strict=True):
            buffers[prompt].append(score)
        for prompt, score in zip(prompts, scores, strict=True):
            known = list(buffers[prompt]) if len(buffers[prompt]) >= 16 else scores
            wanted.append((score - statistics.mean(known)) / statistics.pstdev(known))
        found = history_advantages(scores, prompts, history, clip=100.0)
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-5)
        for prompt, score in zip(prompts, scores, strict=True):
            history.setdefault(prompt, []).append(score)
    assert len(history["b"]) > 32


def test_the_round_s_statistics_ignore_the_prompt() -> None:
    advantages = round_advantages([1.0, None, 3.0, 5.0], clip=5.0)
    assert advantages[1] == 0
    torch.testing.assert_close(advantages[[0, 2, 3]], torch.tensor([-1.0, 0.0, 1.0]) * math.sqrt(1.5))


def test_the_store_knows_each_prompt_s_earlier_scores(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "run", toy_config(advantage="history", rounds=2))
    assert trainer.run()
    name, rows = trainer.config.reward, trainer.store.samples(1)
    scores = trainer.store.scores(1, name)
    assert trainer.store.score_history(name, 2) == {
        p: [scores[row.id].value for row in rows if row.prompt == p] for p in dict.fromkeys(row.prompt for row in rows)
    }
    assert trainer.store.score_history(name, 1) == {}


def test_an_image_alone_needs_something_to_be_compared_with() -> None:
    with pytest.raises(ConfigError, match=r"images_per_prompt is 1.*at least 2, or advantage history or round"):
        RunConfig(images_per_prompt=1)
    RunConfig(images_per_prompt=1, advantage="history")


# --- learning


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_every_objective_raises_the_reward(objective: str) -> None:
    """The learning world of tests/test_learning.py, whose bound is 12 deviations of a run that learns nothing."""
    with in_memory() as folder:
        assert gain(folder / "run", learning_config(0, objective=objective)) > BOUND


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_no_objective_learns_from_shuffled_scores(objective: str) -> None:
    with in_memory() as folder:
        assert abs(gain(folder / "run", learning_config(0, objective=objective, shuffle_scores=True))) < BOUND


# --- refusals


def test_the_on_policy_form_takes_one_update_a_round() -> None:
    with pytest.raises(ConfigError, match=r"one update.*make 2.*images_per_update 16.*ddpo-is"):
        RunConfig(objective="ddpo-sf", passes=2)
    RunConfig(objective="ddpo-sf")


@pytest.mark.parametrize("objective", ["rwr", "rwr-sparse"])
def test_rwr_compares_within_a_prompt_whatever_the_advantage(objective: str) -> None:
    with pytest.raises(ConfigError, match="other than rwr"):
        RunConfig(objective=objective, images_per_prompt=1, advantage="round")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("changes", [{}, dict(ratio="normalised", passes=2), dict(guidance_in_training=False, passes=2)])
def test_a_round_nobody_rated_is_no_lesson(tmp_path: Path, objective: str, changes: dict[str, Any]) -> None:
    """No score at all: no step, whatever the objective, and the weights stay."""
    if changes and objective != "ddpo-is":
        changes = {}
    config = toy_config(**(dict(objective=objective, images_per_update=8, passes=1, kl_weight=0.1) | changes))
    trainer = toy_trainer(tmp_path / "run", config, Choosy(range(100)))
    trainer.store.start_round(1)
    trainer.sample(1)
    trainer.score(1)
    trainer.update(1)
    assert bool((trainer.engine.policy.parameters()["shift"] == 0).all())


# --- on the real policy


@pytest.mark.parametrize("training", ["lora", "full"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_update_of_a_real_denoiser_with_the_kl_penalty(objective: str, training: str) -> None:
    """One update of the tiny Stable Diffusion: the trained weights' gradient is that of the objective and of the penalty, the latter computed here
    with base predictions made beforehand, while the lesson goes to the base model and back between forward and backward."""
    config = tiny_config(
        Path("unused"), objective=objective, kl_weight=0.5, images_per_update=8, max_grad_norm=1e9, training=training, learning_rate=1e-5
    )  # fmt: skip
    grads = []
    for kl_weight in (0.0, 0.5):
        policy = StableDiffusionPolicy(tiny_pipeline(), config)
        with torch.no_grad():
            for parameter in policy.parameters().values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        prompts = ["a cat", "a cat", "a dog", "a dog"]
        trajectory, _ = rollout(policy, prompts, [1, 2, 3, 4])
        weights = Weights(torch.tensor([1.0, -1.0, 0.5, -0.5]), torch.ones(4, dtype=torch.bool))
        changed = config.with_changes(kl_weight=kl_weight)
        lesson = make_lesson(changed, policy, trajectory, policy.encode(prompts), weights, 1, lambda: None)
        items = lesson.items(lesson.images, 0, torch.Generator().manual_seed(0))
        lesson.loss(*items.unbind(1))[0].sum().backward()
        grads.append({name: p.grad.clone() for name, p in policy.parameters().items() if p.grad is not None})
        if kl_weight:
            policy.unet.zero_grad()
            penalty(changed, policy, lesson, items, trajectory).backward()
            wanted = {name: p.grad for name, p in policy.parameters().items()}
    assert set(grads[0]) == set(grads[1]) == set(wanted)
    for name, gradient in wanted.items():
        scale = float(grads[1][name].abs().max())
        torch.testing.assert_close(grads[1][name] - grads[0][name], gradient, rtol=1e-2, atol=1e-4 * scale + 1e-9, msg=name)
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-6


def penalty(config: RunConfig, policy: StableDiffusionPolicy, lesson: Lesson, items: Tensor, trajectory: Trajectory) -> Tensor:
    """The KL penalty of some items, from base predictions made first."""
    image, moment = items.unbind(1)
    conditions = policy.encode(["a cat", "a cat", "a dog", "a dog"])[image]
    if isinstance(lesson, ForwardLesson):
        timestep, noise = (torch.stack(each) for each in zip(*map(lesson.draw, image.tolist(), moment.tolist()), strict=True))
        x_t = policy.schedule.noised(trajectory.latents[image, -1], timestep, noise)[0]
        with torch.no_grad(), policy.base():
            base = policy.predict(x_t, timestep, conditions)
        return config.kl_weight * ((policy.predict(x_t, timestep, conditions) - base) ** 2).mean((1, 2, 3)).sum()
    x_t = trajectory.latents[image, moment]
    with torch.no_grad(), policy.base():
        base = policy.step(x_t, moment, conditions)
    new = policy.step(x_t, moment, conditions)
    return config.kl_weight * ((new.mean - base.mean) ** 2 / (2 * base.std**2)).mean((1, 2, 3)).sum()
