"""Beauty in closed form: each statistic against its formula on pictures where it is known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rewards.base import Sample
from rewards.statistics import (
    STATISTICS,
    TYPICAL,
    WEIGHTS,
    ImageStatistics,
    colourfulness,
    contrast,
    edges,
    placement,
    points,
    simplicity,
    statistics_of,
)
from tests.toys import picture


def halves(left: tuple[int, int, int], right: tuple[int, int, int], side: int = 8) -> np.ndarray:
    found = np.empty((side, side, 3))
    found[:, : side // 2], found[:, side // 2 :] = left, right
    return found


def spot(x: int, y: int, side: int = 30) -> np.ndarray:
    found = np.zeros((side, side, 3))
    found[y, x] = 255
    return found


def test_colourfulness_of_two_halves_by_hand() -> None:
    """Red and green: R - G is ±255, mean 0, deviation 255; (R + G) / 2 - B is 127.5 everywhere: 255 + 0.3 · 127.5. Grey has none."""
    assert colourfulness(halves((255, 0, 0), (0, 255, 0))) == pytest.approx(255 + 0.3 * 127.5)
    assert colourfulness(halves((200, 200, 200), (30, 30, 30))) == 0


def test_contrast_is_the_deviation_of_luminance() -> None:
    assert contrast(halves((255, 255, 255), (0, 0, 0))) == pytest.approx(127.5)
    assert contrast(halves((255, 0, 0), (0, 0, 0))) == pytest.approx(127.5 * 0.2126)
    assert contrast(halves((9, 9, 9), (9, 9, 9))) == 0


def test_edges_are_where_luminance_bends_and_not_at_the_border() -> None:
    found = edges(halves((255, 255, 255), (0, 0, 0)))
    assert found[:, 3:5].min() > 0 and not found[:, :3].any() and not found[:, 5:].any()


def test_a_spot_is_simpler_than_noise_and_nothing_is_neither() -> None:
    noise = np.random.default_rng(0).uniform(0, 255, (30, 30, 3))
    assert simplicity(spot(12, 7)) == pytest.approx(1 - (3 / 30) ** 2) and simplicity(noise) < 0.1
    assert simplicity(np.zeros((8, 8, 3))) == placement(np.zeros((8, 8, 3))) == 0


def test_placement_is_best_at_a_power_point_and_falls_with_distance() -> None:
    best, middle, corner = placement(spot(10, 20)), placement(spot(15, 15)), placement(spot(28, 28))
    assert best > 0.95 and best > middle > corner
    assert placement(spot(19, 20)) == pytest.approx(placement(spot(10, 9)), abs=0.01)


def test_typical_values_have_five_points_and_loud_ones_a_limit() -> None:
    assert points({name: mean for name, (mean, _) in TYPICAL.items()}) == pytest.approx(5)
    loud = points(dict.fromkeys(TYPICAL, 1000000000.0))
    assert loud == pytest.approx(5 + 3 * sum(WEIGHTS.values()) / sum(w**2 for w in WEIGHTS.values()) ** 0.5)
    assert all(std not in (0.0, 1.0) for _, std in TYPICAL.values())
    assert set(WEIGHTS) == set(TYPICAL) == set(STATISTICS) and sum(WEIGHTS.values()) == pytest.approx(1)


def test_louder_colours_score_higher_until_they_are_flat_and_the_explanation_says_why() -> None:
    image = picture(3)
    grey, plain, loud = (ImageEnhance.Color(image).enhance(by) for by in (0.0, 1.0, 2.0))
    found = ImageStatistics().score([Sample(i, "a cat", each) for i, each in enumerate((grey, plain, loud))])
    assert (found[0].value or 0) < (found[1].value or 0) < (found[2].value or 0)
    assert found[1].explanation == statistics_of(plain)
    assert ImageStatistics().score([Sample(0, "a cat", Image.new("L", (64, 64), 128))])[0].value is not None
