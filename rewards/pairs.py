"""How good images are by verdicts on pairs: Bradley and Terry's model, with ties as Davidson's and a ridge.

Image i has a strength θ_i. With d = θ_i − θ_j and ν for how common ties are, i is better than j with probability  e^{d/2} / Z,  worse with
e^{−d/2} / Z,  and they are equally good with  ν / Z,  where  Z = e^{d/2} + e^{−d/2} + ν  (Davidson 1970, "On extending the Bradley-Terry model to
accommodate ties in paired comparison experiments"; ν = 1: between equals a tie is as likely as either answer). "Both bad" says that each of the two
is worse than an image of strength 0. Strengths are those of the largest posterior under θ ~ N(0, 1/RIDGE), so that a few verdicts suffice and an
image that never lost stays finite. The score is tanh(θ/2): how much more often than not it would win against an image of strength 0, were there no
ties.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

RIDGE = 0.25
"""One over the variance of strengths: a standard deviation of 2, an odds of 7 to 1."""
TIES = 1.0
"""Davidson's ν."""
CHANCE = 0.5
"""The share of pairs that are guessed right by who knows nothing."""
Verdict = tuple[int, int, float]
"""Two images and what was said: 1 the first is better, -1 the second, 0 neither."""


def strengths(verdicts: Iterable[Verdict], bad: Collection[int] = ()) -> dict[int, float]:
    """Each judged image's score from -1 to 1, whatever the order of the verdicts. ``bad`` are the images that were said to be bad, however often."""
    told = sorted((a, b, said) if a < b else (b, a, -said) for a, b, said in verdicts)
    images = sorted({*bad, *(image for a, b, _ in told for image in (a, b))})
    row = {image: i for i, image in enumerate(images)}
    first, second = np.array([row[a] for a, _, _ in told], dtype=int), np.array([row[b] for _, b, _ in told], dtype=int)
    said, worse = np.array([said for *_, said in told], dtype=float), np.array([row[image] for image in sorted(bad)], dtype=int)
    theta = np.zeros(len(images))
    for _ in range(100):  # Newton's steps; the posterior is strictly concave
        slope, bend = -RIDGE * theta, RIDGE * np.eye(len(images))
        gap, curve = _slopes(theta[first] - theta[second], said)
        np.add.at(slope, first, gap)
        np.add.at(slope, second, -gap)
        for a, b, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
            np.add.at(bend, (a, b), sign * curve)
        lost, round_ = _slopes(theta[worse], -np.ones(len(worse)))
        np.add.at(slope, worse, lost)
        np.add.at(bend, (worse, worse), round_)
        step = np.linalg.solve(bend, slope)
        theta = theta + step / max(1.0, float(np.abs(step).max(initial=0.0)))
        if float(np.abs(step).max(initial=0.0)) < 1e-12:
            break
    return {image: float(np.tanh(theta[i] / 2)) for image, i in row.items()}


def _slopes(d: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first derivative of the verdicts' log-probabilities by d, and minus the second."""
    z = 2 * np.cosh(d / 2) + TIES
    return said / 2 - np.sinh(d / 2) / z, (1 + TIES / 2 * np.cosh(d / 2)) / z**2
