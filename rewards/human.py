"""People as a reward: a slow function that returns when they say so.

What a person says becomes one number in [-1, 1] for each image, whatever the modes in which it was said. Their statements on an image are

=============== ======================================================================================================================
``thumbs``      -1 or 1
``stars``       1 to 5 become -1, -0.5, 0, 0.5, 1
``best``        the best of its prompt 1, a good one 0.5, and one that was passed over while others of its prompt were picked -0.5
                (good, bad and one best as in HERO, Hiranaka et al. 2025, arXiv 2410.05116)
``best-worst``  the best of a set 1, the worst -1, and the others of the set 0 once both are named: best-worst counting, times named best
                less times named worst, over times shown (Louviere, Flynn & Marley 2015, "Best-Worst Scaling", chapter 2)
``pairs``       its strength among the pairs of its prompt that were judged (:mod:`rewards.pairs`: Bradley-Terry with ties)
=============== ======================================================================================================================

Of an image by itself a rater's latest mark counts (thumbs, stars, best, best-worst, or a skip), of a pair their latest verdict. A rater's opinion of
an image is the mean of their statements, an image's score is the mean over its raters' opinions, weighted where raters do not count alike. An image
of which nobody said anything has no score, which is not the same as a bad one; an image that a rater skips is not passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Protocol

from rewards.base import Sample, Score
from rewards.pairs import strengths

VALUES: dict[str, tuple[float, ...]] = {"thumbs": (-1, 1), "stars": (1, 2, 3, 4, 5), "best": (1, 2), "best-worst": (-1, 1), "pairs": (-1, 0, 1)}
"""The modes of rating and what can be said in them. ``best``: 1 a good one, 2 the best; ``pairs``: 1 the image, -1 the other one, 0 equally good."""
BOTH_BAD, SKIP, CLEAR = "bad", "skip", "clear"
"""Events without a value: a pair of bad images, "I looked and do not judge", and "I take back what I said"."""

PICKED: dict[float | None, float] = {2: 1.0, 1: 0.5, None: -0.5}
LARGEST_SET = 5


class Rating(Protocol):
    """One rater's latest event on one image, or on a pair of images."""

    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def rater(self) -> str: ...
    @property
    def other(self) -> int | None:
        """The second image of a pair."""


Ratings = Mapping[int, Sequence[Rating]]
"""Ratings by image; those of a pair by its first."""


def valid(kind: str, value: float | None, pair: bool = False) -> bool:
    """Is this an event that a person can make, on an image or on a pair? Skip, clear and both bad carry no value."""
    if kind in (SKIP, CLEAR):
        return value is None
    if kind == BOTH_BAD:
        return pair and value is None
    return value in VALUES.get(kind, ()) and pair == (kind == "pairs")


def opinion(kind: str, value: float | None) -> float | None:
    """What a mark says of its image by itself: thumbs -1 or 1; stars 1 to 5 become -1, -0.5, 0, 0.5, 1; all others are None."""
    if value is None or kind not in ("thumbs", "stars"):
        return None
    return float(value) if kind == "thumbs" else (value - 3) / 2


def set_size(images: int) -> int:
    """How many images of a prompt best and worst are named of: of all up to five, or of fours, threes or fives where these go into it."""
    return images if images <= LARGEST_SET else next((size for size in (4, 3, 5) if images % size == 0), images)


def opinions(asked: Mapping[int, str], ratings: Ratings) -> dict[str, dict[int, float]]:
    """Each rater's opinion of the images of a board, as far as they have one.

    Args:
        asked: the prompt of each image that people are asked about, in the order of the board.
        ratings: each rater's latest event on each image and each pair.
    """
    marks: dict[str, dict[int, Rating]] = {}
    verdicts: dict[str, list[tuple[int, Rating]]] = {}
    for image, events in ratings.items():
        for event in events:
            if event.kind in ("pairs", BOTH_BAD):
                verdicts.setdefault(event.rater, []).append((image, event))
            elif event.other is None:
                marks.setdefault(event.rater, {})[image] = event
    groups: dict[str, list[int]] = {}
    for image, prompt in asked.items():
        groups.setdefault(prompt, []).append(image)
    found = {}
    for rater in dict.fromkeys((*marks, *verdicts)):
        statements: dict[int, list[float]] = {}
        for told in (_marked(groups.values(), marks.get(rater, {})), [_judged(verdicts.get(rater, ()))]):
            for part in told:
                for image, value in part.items():
                    statements.setdefault(image, []).append(value)
        found[rater] = {image: fmean(values) for image, values in statements.items()}
    return found


def _marked(groups: Iterable[Sequence[int]], marks: Mapping[int, Rating]) -> list[dict[int, float]]:
    """What a rater's marks say: of images by themselves, of those picked among their prompt, and of the best and the worst of each set."""
    told = [{image: value for image, mark in marks.items() if (value := opinion(mark.kind, mark.value)) is not None}]
    skipped = {image for image, mark in marks.items() if mark.kind == SKIP}
    for images in groups:
        picked = {image: marks[image].value for image in images if image in marks and marks[image].kind == "best"}
        if picked:
            told.append({image: PICKED[picked.get(image)] for image in images if image not in skipped})
        size = set_size(len(images))
        for start in range(0, len(images), size):
            together = images[start : start + size]
            named = {image: value for image in together if image in marks and marks[image].kind == "best-worst" and (value := marks[image].value)}
            whole = {image for image in together if image not in skipped} if set(named.values()) == {-1, 1} else set()
            told.append({image: float(named.get(image, 0)) for image in together if image in {*whole, *named}})
    return told


def _judged(verdicts: Iterable[tuple[int, Rating]]) -> dict[int, float]:
    """What a rater's verdicts on pairs say."""
    told = [(image, event.other or 0, event.value or 0.0) for image, event in verdicts if event.kind == "pairs"]
    bad = {each for image, event in verdicts if event.kind == BOTH_BAD for each in (image, event.other or 0)}
    return strengths(told, bad)


def scores(asked: Mapping[int, str], ratings: Ratings, weights: Mapping[str, float] | None = None) -> dict[int, Score]:
    """One score for each image of a board, from all that was said of it in whatever modes: the mean over its raters' opinions.

    Args:
        weights: how much raters count, above 0, where that is not 1: beside others. What one says alone is what is said.
    """
    told: dict[int, list[tuple[float, float]]] = {image: [] for image in asked}
    for rater, found in opinions(asked, ratings).items():
        for image in found.keys() & told.keys():
            told[image].append((found[image], (weights or {}).get(rater, 1.0)))
    return {image: _mean(values) for image, values in told.items()}


def _mean(values: Sequence[tuple[float, float]]) -> Score:
    if not values:
        return Score(None)
    return Score(fmean([value for value, _ in values], [weight for _, weight in values]), {"raters": len(values)})


class Human:
    """Waits for people. ``collect`` blocks until they apply their ratings and returns them by sample id."""

    name = "human"

    def __init__(self, collect: Callable[[Sequence[Sample]], Ratings], weights: Callable[[], Mapping[str, float]] = dict) -> None:
        """``weights`` says how much raters count, once people have applied."""
        self.collect, self.weights = collect, weights

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each image that people were asked about."""
        ratings = self.collect(samples)
        found = scores({sample.id: sample.prompt for sample in samples}, ratings, self.weights())
        return [found[sample.id] for sample in samples]
