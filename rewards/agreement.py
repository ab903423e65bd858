"""How far people agree, with one another and with themselves: pure functions of opinions (:func:`rewards.human.opinions`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

Opinions = Mapping[int, float]
"""A rater's opinion of each image that they judged."""


def alpha(raters: Iterable[Opinions]) -> tuple[float | None, int]:
    """Krippendorff's α of several raters, for interval data, and from how many images: 1 is full agreement, 0 what chance would give.

    α = 1 − D_o / D_e: the mean squared difference of two opinions of one image, over that of any two opinions (Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability"). Images with one opinion do not count; None where no image has two, or all opinions are the same.
    """
    units: dict[int, list[float]] = {}
    for opinions in raters:
        for image, opinion in opinions.items():
            units.setdefault(image, []).append(opinion)
    shared = [units[image] for image in sorted(units) if len(units[image]) > 1]
    everything = [opinion for opinions in shared for opinion in opinions]
    if not shared or (expected := _squares(everything) / (len(everything) - 1)) <= 1e-12:
        return None, len(shared)
    observed = sum(len(opinions) / (len(opinions) - 1) * _squares(opinions) for opinions in shared) / len(everything)
    return 1 - observed / expected, len(shared)


def _squares(values: list[float]) -> float:
    """The sum of squared distances from the mean."""
    middle = sum(values) / len(values)
    return sum((value - middle) ** 2 for value in values)


def same_order(first: Opinions, second: Opinions, prompts: Mapping[int, str]) -> tuple[float, int]:
    """How many of the pairs of one prompt's images that were told apart the first time are put in the same order the second time, and how many
    pairs there are; level the second time is half the same. Chance is half of them (Kendall 1938, "A New Measure of Rank Correlation")."""
    same, pairs = 0.0, 0
    for a, b in combinations(sorted(first.keys() & second.keys()), 2):
        before, after = first[a] - first[b], second[a] - second[b]
        if prompts[a] == prompts[b] and abs(before) > 1e-9:
            pairs += 1
            same += 0.5 if abs(after) <= 1e-9 else float((before > 0) == (after > 0))
    return same, pairs
