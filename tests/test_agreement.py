"""How far people agree: Krippendorff's own example, and orders on paper."""

from __future__ import annotations

import random

import pytest

from rewards.agreement import alpha, same_order

PUBLISHED = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
"""Four observers of twelve units (Krippendorff 2011, section C)."""


def test_alpha_of_the_published_example() -> None:
    """0.849 for interval data there; the twelfth unit has one value, so it does not count."""
    raters = [{unit: float(said) for unit, said in enumerate(row.split()) if said != "."} for row in PUBLISHED]
    found, images = alpha(raters)
    assert found == pytest.approx(0.849, abs=5e-4) and images == 11
    assert alpha(raters[::-1])[0] == pytest.approx(found)


def test_alpha_is_one_for_the_same_and_about_nothing_for_chance() -> None:
    draw = random.Random(0)
    one, other = ({image: draw.choice((-1.0, 1.0)) for image in range(2000)} for _ in range(2))
    assert alpha([one, dict(one)]) == (1.0, 2000)
    found, _ = alpha([one, other])
    assert found is not None and abs(found) < 4 / 2000**0.5
    assert (alpha([one, {image: -value for image, value in one.items()}])[0] or 0) < -0.9


def test_alpha_needs_two_raters_and_a_difference() -> None:
    assert alpha([]) == (None, 0) and alpha([{1: 1.0, 2: -1.0}]) == (None, 0)
    assert alpha([{1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}]) == (None, 2)


def test_orders_are_compared_within_a_prompt() -> None:
    """Three images of one prompt and one of another. Told apart at first: 1 over 2, 1 over 3, 2 over 3."""
    prompts = {1: "a cat", 2: "a cat", 3: "a cat", 4: "a dog"}
    first = {1: 1.0, 2: 0.0, 3: -1.0, 4: 1.0}
    assert same_order(first, first, prompts) == (3.0, 3)
    assert same_order(first, {1: -1.0, 2: 0.0, 3: 1.0, 4: 0.0}, prompts) == (0.0, 3)
    assert same_order(first, {1: 0.5, 2: 0.5, 3: 1.0}, prompts) == (0.5, 3), "level is half the same"
    assert same_order({1: 1.0, 2: 1.0}, {1: 1.0, 2: -1.0}, prompts) == (0.0, 0), "not told apart at first"
    assert same_order(first, {1: 1.0, 3: -1.0, 4: 0.0}, prompts) == (1.0, 1)
