"""A blend: a weighted sum of rewards, each in its own standard deviations, so that kB and points can be added.

``value = Σ_k w_k (r_k - mean_k) / std_k``. Mean and standard deviation are constants: those of the images that the run first scored by reward k.
Within a prompt's images only the weights and standard deviations matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from rewards.base import Reward, Sample, Score


@dataclass(frozen=True)
class Standard:
    """What a reward's values are measured by."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Standard:
        """Of some values; where they are all alike, the spread counts as 1."""
        known = [value for value in values if value is not None]
        if not known:
            return cls()
        spread = pstdev(known)
        return cls(fmean(known), spread if spread > 1e-8 * max(1.0, *map(abs, known)) else 1.0)


def blended(weights: Mapping[str, float], standards: Mapping[str, Standard], scores: Mapping[str, Sequence[Score]]) -> list[Score]:
    """The blend of some rewards' scores of the same samples; a sample that one of them has no opinion on has none. The parts explain it."""
    found = []
    for each in zip(*(scores[name] for name in weights), strict=True):
        parts = {name: score.value for name, score in zip(weights, each, strict=True)}
        terms = [w * (value - standards[n].mean) / standards[n].std for (n, w) in weights.items() if (value := parts[n]) is not None]
        found.append(Score(sum(terms) if len(terms) == len(weights) else None, dict(parts)))
    return found


class Blend:
    """A blend as a reward."""

    def __init__(self, name: str, weights: Mapping[str, float], standards: Mapping[str, Standard], rewards: Mapping[str, Reward]) -> None:
        self.name, self.weights, self.standards, self.rewards = name, weights, standards, rewards

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return blended(self.weights, self.standards, {name: self.rewards[name].score(samples) for name in self.weights})
