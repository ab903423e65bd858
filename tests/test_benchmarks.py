"""Benchmarks where a mistake would be silent: the split of pairs, shares of a fooled model, guidance by a gradient, the distance from the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import rewards
from benchmarks.common import flags, kl_to_base, mean_and_error
from benchmarks.four_prompts import SETTINGS, SINGLES, is_green, is_night
from benchmarks.tasks import TASKS, fooling, groups, measured, says_all, was_shown
from benchmarks.universal_guidance import Guidance, aesthetic_of_pixels, guided_latents, guided_noise, pixels_of, renoised
from ddpo.__main__ import config_from, parser
from ddpo.config import prompt_sets
from ddpo.policy import StableDiffusionPolicy
from ddpo.presets import presets
from ddpo.rollout import rollout
from pocket import world
from pocket.judge import label_of
from rewards.aesthetic import Aesthetic
from rewards.base import Sample, Score
from tests.toys_ddpo import LinearPolicy, toy_config

PROMPTS, SEEDS = ("a cat", "a fox"), (3, 4)


@pytest.fixture(scope="module")
def policy() -> StableDiffusionPolicy:
    """The pocket model in float32, three steps."""
    config = presets()["aesthetic"].config.with_changes(steps=3, skip_last_steps=0, lora_rank=2, precision="fp32", device="cpu")
    return StableDiffusionPolicy.load(config)


@pytest.fixture(scope="module")
def reward() -> Aesthetic:
    found = rewards.load("aesthetic", "pocket", device="cpu")
    assert isinstance(found, Aesthetic)
    return found


# --- the split --------------------------------------------------------------------------------------------------------------------


def test_seen_and_unseen_pairs_are_a_balanced_partition() -> None:
    """Each animal is trained at two activities and left out at one, each activity with 30 and 15 animals, and of either part two thirds, rounded,
    are pairs with animals that the denoiser was shown at activities."""
    sets = prompt_sets()
    seen, unseen = sets["activities_seen"], sets["activities_unseen"]
    assert len(seen) == 90 and len(unseen) == 45
    assert {*seen, *unseen} == set(sets["activities"]) and not {*seen} & {*unseen}
    for part, by_animal, by_activity, shown in ((seen, 2, 30, 40), (unseen, 1, 15, 20)):
        labels = [label_of(prompt) for prompt in part]
        assert set(Counter(subject for subject, _, _ in labels).values()) == {by_animal}
        assert set(Counter(activity for _, activity, _ in labels).values()) == {by_activity}
        assert sum(was_shown(prompt) is True for prompt in part) == shown
    assert was_shown("a cat") is None and was_shown("an ant riding a bike") is True and was_shown("a dog riding a bike") is False
    assert sets["unseen_activities"] == tuple(world.Scene(animal, activity="taking an exam").caption for animal in world.ANIMALS)


def test_every_group_has_prompts_that_the_judge_can_label() -> None:
    for task in TASKS:
        assert task.prompts in task.curves
        for group in (*task.curves, *task.ends):
            assert [label_of(prompt) for prompt in groups()[group]]


def test_the_commands_are_settings_that_work() -> None:
    for settings in [task.settings for task in TASKS] + [SETTINGS | dict(reward=each.reward, prompts=each.prompt, kl_weight=0.1) for each in SINGLES]:
        config = config_from(parser().parse_args(["run", "--out", "unused", *flags(settings)]))
        assert config.reward == settings["reward"] and config.held_out_images == 0
    assert config.prompts == ("a dog at night",) and config.eta == 1.0 and not config.shared_start and len(config.trained_steps) == 8


# --- shares -----------------------------------------------------------------------------------------------------------------------


def test_fooling_counts_what_the_model_says_and_the_judge_does_not_see() -> None:
    vlm = [True, True, True, False, False, True, False, True]
    judge = [True, False, True, True, False, False, False, False]
    assert fooling(vlm, judge) == dict(vlm_right=5 / 8, judge_right=3 / 8, fooled=3 / 8)
    assert fooling([True], [True])["fooled"] == 0 and fooling([False], [False])["fooled"] == 0


def test_the_looking_model_is_right_only_with_every_fact() -> None:
    assert says_all(Score(1.0, dict(answers=[])), "two cats") is True
    assert says_all(Score(0.5, dict(answers=[])), "two cats") is False
    for answer, right in (("a fox playing chess", True), ("a fox", False), ("a wolf playing chess", False), ("", False)):
        assert says_all(Score(0.9, dict(answer=answer)), "a fox playing chess") is right
    assert says_all(Score(0.9, dict(answer="a fox")), "a fox taking an exam") is None
    assert says_all(Score(6.0, dict(points=6.0)), "a fox") is None


class Agreeable:
    """A reward whose looking model sees in every picture what was asked for: by strict answers, or in a description."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(1.0, dict(answers=[]) if self.name == "satisfaction" else dict(answer=sample.prompt)) for sample in samples]


def test_a_model_that_says_yes_to_everything_is_fooled_by_empty_pictures() -> None:
    count = next(task for task in TASKS if task.name == "count")
    found = measured(count, "counting", 7, ["two cats", "three dogs"], 2 * [Image.new("RGB", (64, 64), "grey")], Agreeable("satisfaction"))
    assert (found.round, found.proxy, found.gold, found.vlm_right, found.fooled) == (7, 1.0, 0.0, 1.0, 1.0)
    assert found.shown is None and found.never_shown is None


def test_pairs_are_told_apart_by_whether_the_denoiser_was_shown_them() -> None:
    """Pictures of the pocket model's training: a cat on a bike is among them, a dog on one is not; on blank pictures neither is right."""
    align = next(task for task in TASKS if task.name == "align")
    prompts = ["a cat riding a bike", "a dog riding a bike", "a dog riding a bike"]
    found = measured(align, "activities_seen", 0, prompts, 3 * [Image.new("RGB", (64, 64), "grey")], Agreeable("alignment"))
    assert (found.shown, found.never_shown, found.gold, found.vlm_right, found.judge_right, found.fooled) == (0.0, 0.0, 0.0, 1.0, 0.0, 1.0)
    exam = measured(align, "unseen_activities", 0, ["a cat taking an exam"], [Image.new("RGB", (64, 64), "grey")], Agreeable("alignment"))
    assert exam.vlm_right is None and exam.fooled is None and exam.shown is None


def test_backgrounds_are_judged_by_their_border() -> None:
    green, night, day = (Image.new("RGB", (64, 64), colour) for colour in ((71, 179, 76), (20, 24, 55), (180, 200, 230)))
    green.paste((230, 90, 20), (8, 8, 56, 64))
    assert is_green(green) and not is_night(green)
    assert is_night(night) and not is_green(night)
    assert not is_green(day) and not is_night(day)


def test_mean_and_error() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    assert mean_and_error([5.0]) == (5.0, 0.0)


# --- guidance ---------------------------------------------------------------------------------------------------------------------


def test_the_differentiable_score_is_the_reward(policy: StableDiffusionPolicy, reward: Aesthetic) -> None:
    """On the very pixels of the pictures to four digits; on the unrounded ones that guidance sees, as near as 256 levels are."""
    trajectory, images = rollout(policy, PROMPTS, SEEDS)
    points = [score.value for score in reward.score([Sample(i, "", image) for i, image in enumerate(images)])]
    pixels = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3) for image in images])
    score = aesthetic_of_pixels(reward)
    with torch.no_grad():
        assert score(pixels.permute(0, 3, 1, 2).float() / 255).tolist() == pytest.approx(points, abs=1e-3)
        assert score(pixels_of(policy, trajectory.latents[:, -1])).tolist() == pytest.approx(points, abs=0.05)
    with pytest.raises(ValueError, match="sees 64"):
        score(torch.zeros(1, 3, 32, 32))


def test_guidance_of_no_strength_is_the_plain_sampler(policy: StableDiffusionPolicy, reward: Aesthetic) -> None:
    plain = rollout(policy, PROMPTS, SEEDS)[0].latents[:, -1]
    score = aesthetic_of_pixels(reward)
    assert torch.equal(guided_latents(policy, score, PROMPTS, SEEDS, Guidance(0.0)), plain)
    assert not torch.allclose(guided_latents(policy, score, PROMPTS, SEEDS, Guidance(5.0)), plain, atol=1e-2)


@pytest.mark.parametrize("how", [Guidance(0.5), Guidance(0.0, backward_steps=2, backward_rate=0.01)], ids=["forward", "backward"])
def test_a_little_guidance_raises_the_score_of_the_expected_picture(policy: StableDiffusionPolicy, reward: Aesthetic, how: Guidance) -> None:
    """At the second step, on both pictures: the clean latent that the guided noise implies scores more than the one that the plain noise does."""
    score, condition = aesthetic_of_pixels(reward), policy.encode(PROMPTS)
    x_t = rollout(policy, PROMPTS, SEEDS)[0].latents[:, 1]
    alpha = policy.schedule.alpha[1]

    def expected(guidance: Guidance) -> Tensor:
        noise = guided_noise(policy, score, x_t, 1, condition, guidance)
        with torch.no_grad():
            return score(pixels_of(policy, policy.schedule.clean_and_noise(x_t, noise, alpha)[0]))

    gain = expected(how) - expected(Guidance(0.0))
    assert bool((gain > 1e-3).all()), gain


def test_guidance_moves_the_noise_against_the_gradient(policy: StableDiffusionPolicy, reward: Aesthetic) -> None:
    """ε - ε' is s √(1-ᾱ_t) times the gradient through the denoiser: along it, the score of x_t changes as differences say."""
    score, condition = aesthetic_of_pixels(reward), policy.encode(PROMPTS[:1])
    x_t = rollout(policy, PROMPTS[:1], SEEDS[:1])[0].latents[:, 1]
    alpha, index = policy.schedule.alpha[1], torch.ones(1, dtype=torch.long)

    def value(x: Tensor) -> float:
        with torch.no_grad():
            noise = policy.predict(x, policy.schedule.timesteps[index], condition)
            return float(score(pixels_of(policy, policy.schedule.clean_and_noise(x, noise, alpha)[0])))

    with torch.no_grad():
        noise = guided_noise(policy, score, x_t, 1, condition, Guidance(0.0))
    gradient = (noise - guided_noise(policy, score, x_t, 1, condition, Guidance(2.0))) / (2.0 * (1 - alpha).sqrt())
    way = gradient / gradient.norm()
    slope = (value(x_t + 0.02 * way) - value(x_t - 0.02 * way)) / 0.04
    assert float(gradient.norm()) == pytest.approx(slope, rel=0.05)


def test_renoising_undoes_a_step(policy: StableDiffusionPolicy) -> None:
    """x_s of the forward process becomes x_t of it: means √ᾱ_t x_0, variances 1 - ᾱ_t."""
    schedule, ones = policy.schedule, torch.ones(1)
    for i in range(len(schedule)):
        mean = renoised(schedule, i, schedule.alpha_prev[i].sqrt() * ones, torch.zeros(1))
        spread = renoised(schedule, i, (1 - schedule.alpha_prev[i]).sqrt() * ones, torch.zeros(1)) ** 2 + renoised(schedule, i, 0 * ones, ones) ** 2
        assert float(mean) == pytest.approx(float(schedule.alpha[i].sqrt()), rel=1e-4)
        assert float(spread) == pytest.approx(float(1 - schedule.alpha[i]), rel=1e-4)


# --- distance ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [dict(eta=1.0), dict(eta=0.3, steps=6)])
def test_the_distance_from_the_base_is_the_closed_formula(changes: dict[str, Any]) -> None:
    """A shift δ of the predicted noise makes KL_t = c_t² ‖δ‖² / 2σ_t², c_t = √(ᾱ_s (1-ᾱ_t)/ᾱ_t) - √(1-ᾱ_s-σ_t²), wherever the trajectory goes."""
    config = toy_config(**changes)
    policy = LinearPolicy(config)
    assert float(kl_to_base(policy, config.prompts, 5, microbatch=2).abs().max()) == 0
    shift = 0.1 * torch.randn(policy.shift.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.shift.copy_(shift)
    found = kl_to_base(policy, config.prompts, 5, microbatch=2)
    schedule = policy.schedule
    moved = (schedule.alpha_prev * (1 - schedule.alpha) / schedule.alpha).sqrt() - (1 - schedule.alpha_prev - schedule.std**2).clamp(min=0).sqrt()
    wanted = torch.stack([(shift[i % 2] ** 2).sum() * moved**2 / (2 * schedule.std**2) for i in range(5)])
    assert bool((found > 0).all())
    assert torch.allclose(found, wanted, rtol=1e-3)


def test_the_base_of_the_pocket_model_is_at_no_distance_and_a_moved_one_is_not(policy: StableDiffusionPolicy) -> None:
    assert float(kl_to_base(policy, PROMPTS, 2).abs().max()) == 0
    name, weight = next((name, p) for name, p in policy.parameters().items() if "lora_B" in name)
    try:
        with torch.no_grad():
            weight.add_(0.1)
        assert float(kl_to_base(policy, PROMPTS, 2).min()) > 0, name
    finally:
        with torch.no_grad():
            weight.zero_()
