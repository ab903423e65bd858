"""A reward that is asked once about an image and its prompt, ahead of time where there is time. Imports no torch."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from queue import SimpleQueue

from PIL import Image

from rewards import card
from rewards.base import Reward, RewardError, Sample, Score
from rewards.function import Function

REMEMBERED = 20_000
"""How many scores are kept in memory, the latest ones."""


class Cached:
    """An automatic reward with a memory: the same picture and prompt have the same score. Every failure of the reward comes out as RewardError."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self.name = reward, reward.name
        self._known: dict[tuple[str, str], Score] = {}
        self._turn = threading.Lock()
        self._asked: SimpleQueue[list[Sample]] | None = None

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score a sample.

        Raises:
            RewardError: the reward failed, gave another number of scores, or one that is no finite number.
        """
        keys = [(fingerprint(sample.image), sample.prompt) for sample in samples]
        found = [self._known.get(key) for key in keys]
        if None in found:
            with self._turn:
                fresh = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in self._known}
                made = self._ask(list(fresh.values())) if fresh else []
                self._known |= dict(zip(fresh, made, strict=True))
                found = [self._known[key] for key in keys]
                while len(self._known) > REMEMBERED:
                    del self._known[next(iter(self._known))]
        return [score for score in found if score is not None]

    def ready(self, prompt: str = "") -> None:
        """Load what it needs, by having its networks score an empty picture; a reward without networks needs nothing.

        Raises:
            RewardError: it cannot be had; the message says what to do.
        """
        if isinstance(self.reward, Function):
            self.reward.load()
        elif card(self.name).published:
            self.score([Sample(0, prompt, Image.new("RGB", (64, 64)))])

    def ahead(self, samples: Sequence[Sample]) -> None:
        """Score these in a thread of its own, for a later :meth:`score`, which also says what went wrong: here a failure is passed over."""
        if self._asked is None:
            self._asked = SimpleQueue()
            threading.Thread(target=self._work_ahead, args=(self._asked,), name=f"{self.name} ahead", daemon=True).start()
        self._asked.put(list(samples))

    def free(self) -> None:
        """Give the memory of the reward's networks back; scores are kept."""
        with self._turn:
            if hasattr(self.reward, "free"):
                self.reward.free()

    def _work_ahead(self, asked: SimpleQueue[list[Sample]]) -> None:
        while True:
            try:
                self.score(asked.get())
            except RewardError:
                while not asked.empty():  # one failure is enough to find out
                    asked.get()

    def _ask(self, samples: Sequence[Sample]) -> list[Score]:
        try:
            scores = list(self.reward.score(samples))
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(f"The reward {self.name} failed with {type(error).__name__}: {error}") from error
        if len(scores) != len(samples):
            raise RewardError(f"The reward {self.name} gave {len(scores)} scores for {len(samples)} images.")
        for sample, score in zip(samples, scores, strict=True):
            if score.value is not None and not math.isfinite(score.value):
                raise RewardError(f"The reward {self.name} gave {score.value} for an image of {sample.prompt[:80]!r}, which is no finite number.")
        return scores


def fingerprint(image: Image.Image) -> str:
    """SHA-256 of a picture's size and pixels in RGB, as every reward sees them: of one with a palette its colours, too."""
    return hashlib.sha256(f"{image.size} ".encode() + image.convert("RGB").tobytes()).hexdigest()
