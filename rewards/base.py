"""The protocol of a reward: what is good? Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class Sample:
    """One generated image and the prompt that it was made for. ``id`` is its row in the run's store."""

    id: int
    prompt: str
    image: Image.Image


@dataclass(frozen=True)
class Score:
    """What a reward says of one sample.

    ``value`` is None where there is no opinion (an image nobody rated): such a sample weighs nothing in the update.
    ``explanation`` holds what the value was made from, for people to read, for instance ``{"size_kb": 2.41}``.
    """

    value: float | None
    explanation: dict[str, object] = field(default_factory=dict)


class RewardError(RuntimeError):
    """A reward cannot score; the message says why and what to do."""


class Reward(Protocol):
    """Scores samples; one score for each sample, in order. What it needs is loaded when it first scores.

    One with networks also has ``free()``, which gives their memory back; the next score loads them again.
    """

    name: str

    def score(self, samples: Sequence[Sample]) -> list[Score]: ...
