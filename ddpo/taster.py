"""A run's model of what its people like: fitted to all their ratings, it chooses what they are shown and says what they would have said."""

from __future__ import annotations

from PIL import Image

from ddpo.config import RunConfig
from ddpo.rollout import derive_seed
from ddpo.store import RunStore, SampleRow
from rewards.base import Score
from rewards.preference import Looks, Taste, joined, looks, more

BETTER_THAN_CHANCE = 0.55
"""From this share of pairs guessed right on, the model of taste's own account of what it knows is believed."""
GUESS = "preference"
"""The name of its scores beside ``human``, people's own."""


def first_board(config: RunConfig) -> set[int]:
    """The positions that are shown where nothing is known yet, known before the images are made: as many of each prompt as of any other."""
    n, k = config.images_per_round, config.images_per_prompt
    in_turn = sorted(range(n), key=lambda position: (position % k, position))
    return set(in_turn[: config.board_images])


class Taster:
    """Reads and writes the run's store; where ``preference`` is off it does nothing, and what is learned is what people said."""

    def __init__(self, config: RunConfig, store: RunStore) -> None:
        self.config, self.store = config, store
        self.on = config.preference != "off"
        self._seen: dict[int, Looks] = {}

    def asks(self, number: int) -> bool:
        """Whether people are asked about a round: every so many, and while they have said nothing yet."""
        return (number - 1) % self.config.board_every == 0 or self._taste(number - 1, []) is None

    def shown(self, number: int) -> set[int] | None:
        """The positions of a round that people are shown, before anything else is known of its images; None for all."""
        if not self.asks(number):
            return set()
        return first_board(self.config) if self.config.board_images else None

    def next_board(self, number: int) -> int:
        """The next round after one that people are asked about."""
        every = self.config.board_every
        return (number - 1) // every * every + every + 1

    def choose(self, number: int) -> None:
        """Choose the board of a round whose images are all there. Once people have rated any of it, it stays."""
        if not self.on or not 0 < self.config.board_images < self.config.images_per_round or self.store.ratings(number):
            return
        if not self.asks(number):
            return
        if self.store.round(number - 1) is None:
            return
        rows = self.store.samples(number)
        if (taste := self._taste(number - 1, rows)) is None:
            return
        chosen = taste.choose(
            self._looks(rows), [row.prompt for row in rows], self.config.board_images, derive_seed(self.config.seed, number, "board")
        )
        self.store.show(number, [rows[i].id for i in chosen])

    def guess(self, number: int) -> None:
        """Say what people would have said of all of a round's images, from the ratings of all rounds up to it."""
        if not self.on:
            return
        rows = self.store.samples(number)
        if (taste := self._taste(number, rows)) is None:
            return
        guess = taste.guess(self._looks(rows), [row.prompt for row in rows])
        self.store.add_scores(GUESS, {row.id: Score(float(m), dict(std=float(s))) for row, m, s in zip(rows, guess.mean, guess.std, strict=True)})
        accuracy, pairs = taste.accuracy()
        rated = len(taste.opinions)
        found = dict(preference_known=guess.known, preference_ratings=float(rated), preference_pairs=float(pairs))
        if accuracy is not None:
            found["preference_accuracy"] = accuracy
            if accuracy > BETTER_THAN_CHANCE and (missing := more(guess.known, rated)) is not None:
                found["preference_more"] = float(missing)
        self.store.add_metrics(number, found)

    def learned(self, number: int) -> dict[int, Score]:
        """What is learned from people's ratings of a round, by sample id: their own, the guesses, or the guesses where they gave none."""
        own, guessed = self.store.scores(number, "human"), self.store.scores(number, GUESS)
        if not self.on or not guessed:
            return own
        if self.config.preference == "lead":
            return guessed
        return guessed | {id: score for id, score in own.items() if score.value is not None}

    def _taste(self, number: int, rows: list[SampleRow]) -> Taste | None:
        """What the ratings of all rounds up to one say; None while there are none. ``rows`` are the images that it will be asked about."""
        rated: list[tuple[SampleRow, float]] = []
        for row in self.store.rounds():
            if row.number <= number:
                said = self.store.scores(row.number, "human")
                rated += [(each, value) for each in self.store.samples(row.number) if each.id in said and (value := said[each.id].value) is not None]
        if not rated:
            return None
        seen = self._looks([row for row, _ in rated])
        others = [row for row in rows if row.id not in {each.id for each, _ in rated}]
        everything = joined([seen, self._looks(others)])
        return Taste(seen, [row.prompt for row, _ in rated], [value for _, value in rated], everything)

    def _looks(self, rows: list[SampleRow]) -> Looks:
        """What is seen in images; each is looked at once."""
        missing = [row for row in rows if row.id not in self._seen]
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            with_pictures = [Image.open(self.store.folder / row.image) for row in part]
            found = looks(with_pictures)
            self._seen |= {row.id: {kind: values[i : i + 1] for kind, values in found.items()} for i, row in enumerate(part)}
        return joined(self._seen[row.id] for row in rows)
