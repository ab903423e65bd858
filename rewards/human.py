"""People as a reward: a slow function that returns when they say so.

Every rating counts as one number in [-1, 1]; an image's score is the mean over its raters (each rater's latest rating), and an image
that nobody rated has no score, which is not the same as a bad one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from rewards.base import Sample, Score

KINDS = ("thumbs", "stars", "skip", "clear")
"""What a rating event can be. A skip says "I looked and do not judge"; a clear takes the earlier rating back."""


class Rating(Protocol):
    """One rater's latest event on one sample."""

    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def rater(self) -> str: ...


def valid(kind: str, value: float | None) -> bool:
    """Is this an event that a person can make? Thumbs are -1 or 1, stars 1 to 5, skip and clear carry no value."""
    if kind == "thumbs":
        return value in (-1, 1)
    if kind == "stars":
        return value in (1, 2, 3, 4, 5)
    return kind in KINDS and value is None


def opinion(kind: str, value: float | None) -> float | None:
    """A rating on the common scale: thumbs -1 or 1; stars 1 to 5 become -1, -0.5, 0, 0.5, 1; a skip or a clear is None."""
    if value is None or kind not in ("thumbs", "stars"):
        return None
    return float(value) if kind == "thumbs" else (value - 3) / 2


def fold(ratings: Iterable[Rating]) -> Score:
    """The raters' latest ratings of one sample as one score."""
    opinions = {r.rater: o for r in ratings if (o := opinion(r.kind, r.value)) is not None}
    if not opinions:
        return Score(None)
    return Score(sum(opinions.values()) / len(opinions), {"raters": len(opinions)})


class Human:
    """Waits for people. ``collect`` blocks until they apply their ratings and returns them by sample id."""

    name = "human"

    def __init__(self, collect: Callable[[Sequence[Sample]], Mapping[int, Sequence[Rating]]]) -> None:
        self.collect = collect

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        ratings = self.collect(samples)
        return [fold(ratings.get(sample.id, ())) for sample in samples]
