"""Scores to advantages."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from ddpo.advantage import centred_advantages, group_advantages, saturation


def test_each_prompt_is_standardised_by_its_own_mean_and_std() -> None:
    """Against the statistics module, for two prompts of different level and spread whose images are interleaved."""
    scores, prompts = [1.0, 100.0, 2.0, 300.0, 6.0, 200.0], ["a", "b"] * 3
    want = []
    for score, prompt in zip(scores, prompts, strict=True):
        group = [s for s, p in zip(scores, prompts, strict=True) if p == prompt]
        want.append((score - statistics.mean(group)) / statistics.pstdev(group))
    torch.testing.assert_close(group_advantages(scores, prompts, clip=5.0), torch.tensor(want))


def test_a_better_image_has_a_larger_advantage() -> None:
    assert group_advantages([0.0, 1.0, 2.0], ["a"] * 3, 5.0).diff().min() > 0


def test_an_unrated_image_is_excluded_and_not_zero() -> None:
    """With None beside 4 and 6 the two are ±1; were None a zero, both would be above the mean of 10/3."""
    assert group_advantages([4.0, None, 6.0], ["a"] * 3, 5.0).tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("scores", [[3.0, 3.0, 3.0], [0.1 + 0.2, 0.3, 0.3], [1e9, 1e9 + 1e-7, 1e9], [0.0, 0.0, 0.0]])
def test_equal_scores_say_nothing(scores: list[float]) -> None:
    """Equal up to rounding: advantage exactly 0, neither NaN nor rounding noise blown up to ±1."""
    assert group_advantages(scores, ["a"] * 3, 5.0).tolist() == [0.0, 0.0, 0.0]


def test_small_but_real_differences_count() -> None:
    """The guard against rounding must not eat rewards of small scale: 1e-6 apart is a difference."""
    assert group_advantages([1e-6, 2e-6], ["a", "a"], 5.0).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("scores", [[], [1.0], [None, None], [2.0, None]])
def test_groups_too_small_to_compare_give_zero(scores: list[float | None]) -> None:
    assert group_advantages(scores, ["a"] * len(scores), 5.0).tolist() == [0.0] * len(scores)


def test_advantages_are_clipped_on_both_sides() -> None:
    """One image in 50 stands out by sqrt(49) = 7 standard deviations."""
    for sign in (1.0, -1.0):
        advantages = group_advantages([sign] + [0.0] * 49, ["a"] * 50, clip=5.0)
        assert advantages[0] == sign * 5.0
        assert math.isclose(float(advantages[1]), -sign / 7, rel_tol=1e-6)


def test_advantages_do_not_depend_on_the_order_of_images() -> None:
    scores, prompts = [1.0, 5.0, 2.0, None, 9.0, 4.0], ["a", "b", "a", "a", "b", "a"]
    straight = group_advantages(scores, prompts, 5.0)
    order = [3, 5, 0, 1, 4, 2]
    assert torch.equal(group_advantages([scores[i] for i in order], [prompts[i] for i in order], 5.0), straight[order])


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores for 1 prompts"):
        group_advantages([1.0, 2.0], ["a"], 5.0)


def test_centred_advantages_have_one_spread_for_all_prompts() -> None:
    """On paper: a differs by 2 around 1, b by 0.2 around 100; the root mean square of (-1, 1, -0.1, 0.1) is the unit. No score, no advantage."""
    scores, prompts = [0.0, 99.9, 2.0, None, 100.1], ["a", "b", "a", "a", "b"]
    unit = math.sqrt((1 + 1 + 0.01 + 0.01) / 4)
    torch.testing.assert_close(centred_advantages(scores, prompts, 5.0), torch.tensor([-1 / unit, -0.1 / unit, 1 / unit, 0.0, 0.1 / unit]))
    assert centred_advantages([3.0, 3.0, 7.0], ["a", "a", "b"], 5.0).tolist() == [0.0, 0.0, 0.0]
    assert centred_advantages([0.1 + 0.2, 0.3, None], ["a"] * 3, 5.0).tolist() == [0.0, 0.0, 0.0] and centred_advantages(
        [None], ["a"], 5.0
    ).tolist() == [0.0]
    assert centred_advantages([0.0] * 99 + [1.0], ["a"] * 100, 5.0).max() == 5.0


@pytest.mark.parametrize("clip", [0.1, 1 / 3, 2.0])
def test_saturation_is_the_share_of_scored_images_at_the_clip(clip: float) -> None:
    """One of four stands out by sqrt(3), the others lie 1 / sqrt(3) below: the first alone is cut at 1, all at 1/3, none at 2. An image without a
    score counts neither way."""
    scores = [1.0, 0.0, None, 0.0, 0.0, None]
    cut = saturation(group_advantages(scores, ["a"] * 6, clip), scores, clip)
    assert cut == {0.1: 1.0, 1 / 3: 1.0, 2.0: 0.0}[clip]
    assert saturation(group_advantages(scores, ["a"] * 6, 1.0), scores, 1.0) == 0.25
    assert math.isnan(saturation(group_advantages([None], ["a"], clip), [None], clip))
