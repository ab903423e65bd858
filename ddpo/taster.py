"""A run's model of what its people like: fitted to all their ratings, it chooses what they are shown and says what they would have said."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

import rewards
from ddpo import beliefs
from ddpo.config import TOWERS, RunConfig
from ddpo.earlier import rated_in
from ddpo.rating_files import Rated
from ddpo.records import SampleRow
from ddpo.rollout import derive_seed
from ddpo.store import RATINGS, RunStore
from rewards.base import Score
from rewards.human import opinions, scores
from rewards.pairs import CHANCE
from rewards.preference import OWN, Accuracy, Looks, Taste, joined, looks, more

if TYPE_CHECKING:
    from rewards.networks import Clip

GUESS = "preference"
"""The name of its scores beside ``human``, people's own."""
MOST_EARLIER = 600
"""So many ratings from elsewhere are learned from at most, from all over them: the model is fitted in the time of a few hundred."""


class Opinion(NamedTuple):
    """What people think of an image of the run."""

    row: SampleRow
    said: float
    """The mean of what its raters said, from -1 to 1."""
    whose: str
    """Who they are, where others rated other images: one of them may be hard to please."""
    counts: float
    """As how many people they count."""


def thinned(rated: Sequence[Rated], most: int) -> list[Rated]:
    """At most so many ratings, in their order: all that a rater said of a prompt or nothing, as a prompt's ratings teach by their differences; the
    rater and the prompt by lot, the same each time."""
    if len(rated) <= most:
        return list(rated)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, each in enumerate(rated):
        groups.setdefault((each.who, each.prompt), []).append(i)
    names, chosen = list(groups), list[int]()
    random.Random(0).shuffle(names)
    for name in names:
        if len(chosen) + len(groups[name]) <= most:
            chosen += groups[name]
    if not chosen:  # so much of every prompt
        whole = groups[names[0]]
        chosen = [whole[i * len(whole) // most] for i in range(most)]
    return [rated[i] for i in sorted(chosen)]


def levels_of(raters: Mapping[int, Sequence[str]], weights: Mapping[str, float]) -> dict[int, tuple[str, float]]:
    """Under which name, and as how many people, what was said of images counts, by image; nothing where the same people rated all of them.

    Args:
        raters: who rated each image.
        weights: how much raters count, where that is not 1.
    """
    names = {id: f"/{json.dumps(sorted(who))}" for id, who in raters.items()}
    if len(set(names.values())) < 2:
        return {}
    most = max(weights.get(rater, 1.0) for who in raters.values() for rater in who)
    return {id: (names[id], sum(weights.get(rater, 1.0) for rater in who) / most) for id, who in raters.items()}


def first_board(config: RunConfig) -> set[int]:
    """The positions that are shown where nothing is known yet, known before the images are made: two of each prompt as far as they go, then one more
    of each in turn. None is alone of its prompt, as one image teaches nothing (unless prompts have two and the number is odd)."""
    pool, k, count = config.board_pool, config.images_per_prompt, config.board_images
    pool -= pool % k == 1 and k > 1 and pool > count  # the last prompt's first image only
    in_turn = sorted(range(pool), key=lambda position: (max(position % k - 1, 0), position))
    odd = count % 2 and count < 2 * math.ceil(pool / k) and k > 2
    return {*in_turn[: count - 1], 2} if odd else set(in_turn[:count])


def levelled(own: Mapping[int, Score], guessed: Mapping[int, Score], prompts: Mapping[int, str]) -> dict[int, Score]:
    """People's own ratings of a round, and guesses for the other images: of each prompt raised or lowered together, to the mean of what people said
    of it in this round. So to have been shown is neither good nor bad; what was guessed says only which of the others are better than which. All by
    image."""
    said = {id: score.value for id, score in own.items() if score.value is not None}
    found = dict(guessed) | {id: own[id] for id in said}
    for prompt in set(prompts.values()):
        ids = [id for id, other in prompts.items() if other == prompt]
        known, others = [said[id] for id in ids if id in said], [id for id in ids if id not in said]
        if known and others:
            level = fmean(known) - fmean(guessed[id].value or 0.0 for id in others)
            found |= {id: Score((guessed[id].value or 0.0) + level, guessed[id].explanation) for id in others}
    return found


class Taster:
    """Reads and writes the run's store; where ``preference`` is off it does nothing, and what is learned is what people said."""

    def __init__(self, config: RunConfig, store: RunStore) -> None:
        self.config, self.store = config, store
        self.on = config.preference != "off"
        self._seen: dict[str, Looks] = {}
        self._tower: Clip | None = None
        self._earlier: list[Rated] | None = None

    def ready(self) -> None:
        """Load what it sees with.

        Raises:
            RewardError: it cannot be had; the message says what to do.
        """
        if self.on and self.config.preference_sees != "looks":
            self.look([Image.new("RGB", (8, 8))])
            self.free()

    def asks(self, number: int) -> bool:
        """Whether people are asked about a round (:func:`ddpo.beliefs.asks`)."""
        return beliefs.asks(self.store, self.config, number)

    def shown(self, number: int) -> set[int] | None:
        """The positions of a round that people are shown while its images are made; None for all. A board that will be chosen is not shown before."""
        if not self.asks(number) or self._chooses(number):
            return set()
        return first_board(self.config) if self.config.board_images else None

    def next_board(self, number: int) -> int:
        """The next round after one that people are asked about, as far as that is known before they have answered: after the first ratings a model of
        taste will mostly lead."""
        unknown = self.config.preference == "lead" and self.store.metric(number - 1, "preference_likely") is None
        every = self.config.board_every if unknown or self.leads(number - 1) else 1
        return (number - 1) // every * every + every + 1

    def _chooses(self, number: int) -> bool:
        """Whether a round's board is chosen by what is known, of more images than it has."""
        config = self.config
        return self.on and 0 < config.board_images < config.board_pool and self.asks(number) and bool(self.earlier or self._rated(number - 1))

    def choose(self, number: int) -> None:
        """Choose the board of a round once all images are there that it is chosen of; then it stays."""
        if not self.on:
            return
        rows = self.store.samples(number)[: self.config.board_pool]
        if len(rows) < self.config.board_pool or len(self.store.board(number)) == self.config.board_images or not self._chooses(number):
            return
        if (taste := self._taste(self._rated(number - 1), rows)) is None:
            return
        chosen = taste.choose(
            self._looks([row.image for row in rows]),
            [row.prompt for row in rows],
            self.config.board_images,
            derive_seed(self.config.seed, number, "board"),
        )
        self.store.show(number, [rows[i].id for i in chosen])

    def guess(self, number: int) -> None:
        """Say what people would have said of all of a round's images, from the ratings of all rounds up to it."""
        if not self.on:
            return
        rows, rated = self.store.samples(number), self._rated(number)
        if (taste := self._taste(rated, rows)) is None:
            return
        guess = taste.guess(self._looks([row.image for row in rows]), [row.prompt for row in rows])
        said = zip(guess.rating.tolist(), guess.std.tolist(), guess.certain.tolist(), strict=True)
        guesses = {row.id: Score(mean, dict(std=std, certain=certain)) for row, (mean, std, certain) in zip(rows, said, strict=True)}
        self.store.add_scores(GUESS, guesses)
        accuracy = self._accuracy(taste, number)
        own = int(taste.own.sum())
        found = dict(preference_known=guess.known, preference_ratings=float(own), preference_pairs=float(accuracy.pairs))
        if self.earlier:
            found |= dict(preference_earlier=float(len(self.earlier)))
        if accuracy.pairs:
            found |= dict(preference_accuracy=accuracy.share, preference_least=accuracy.least, preference_likely=accuracy.likely)
        if accuracy.least > CHANCE and (missing := more(guess.known, own, guess.alone)) is not None:
            found |= dict(preference_more=float(missing))
        known = {each.row.id for each in rated}
        pool = [*(each.row for each in rated), *(row for row in rows if row.id not in known)]
        told = [(each.row, each.said) for each in rated]
        beliefs.write(self.store, number, found, beliefs.believe(taste, pool, self._looks([row.image for row in pool]), told, self.earlier))
        self.store.add_metrics(number, found)

    def trusted(self, number: int) -> Taste | None:
        """The taste that speaks from the ratings of all rounds up to one, whether or not the run learns from it; None where the better one of two is
        not surely picked more often than by chance."""
        taste = self._taste(self._rated(number), [])
        return taste if taste is not None and taste.accuracy().least > CHANCE else None

    def _accuracy(self, taste: Taste, number: int) -> Accuracy:
        """How often the better one of two is picked. Where nobody was asked it is what it was in the round before: only what came late has been said
        since."""
        before = (self.store.metric(number - 1, f"preference_{name}") for name in ("accuracy", "least", "likely", "pairs"))
        share, least, likely, pairs = before
        if self.store.scores(number, "human") or share is None or least is None or likely is None or pairs is None:
            return taste.accuracy()
        return Accuracy(share, least, likely, int(pairs))

    def leads(self, number: int) -> bool:
        """Whether a round is learned from guesses alone (:func:`ddpo.beliefs.leads`)."""
        return beliefs.leads(self.store, self.config, number)

    def learned(self, number: int) -> dict[int, Score]:
        """What is learned from people's ratings of a round, by sample id: their own, the guesses, or the guesses where they gave none."""
        own, guessed = self.store.scores(number, "human"), self.store.scores(number, GUESS)
        if not self.on or not guessed:
            return own
        if self.leads(number):
            return guessed
        return levelled(own, guessed, {row.id: row.prompt for row in self.store.samples(number)})

    def certainty(self, number: int) -> list[float]:
        """How much of its advantage each of a round's images keeps, by position. Standardising within prompts makes as much of faint guesses as of
        plain words, so a prompt whose spread is that of guesses alone keeps the share of the taste's spread that the ratings explain, √``certain``.
        One of whose images people said different things has these to be measured by; and where guesses lead, they are measured by one another. (To
        rwr-sparse, which goes by a prompt's quantile, and to blends it is all the same.)"""
        rows, own, guessed = self.store.samples(number), self.store.scores(number, "human"), self.store.scores(number, GUESS)
        if not self.on or not guessed or self.leads(number):
            return [1.0] * len(rows)
        plain: dict[str, set[float]] = {}
        for row in rows:
            if row.id in own and (value := own[row.id].value) is not None:
                plain.setdefault(row.prompt, set()).add(value)
        certain = {id: share for id, score in guessed.items() if isinstance(share := score.explanation.get("certain"), float)}
        return [1.0 if len(plain.get(row.prompt, ())) > 1 else math.sqrt(certain.get(row.id, 1.0)) for row in rows]

    def _rated(self, number: int) -> list[Opinion]:
        """The images of all rounds up to one that people have an opinion of, and what it is."""
        rows = {row: said for row in self.store.rounds() if row.number <= number and (said := self.store.scores(row.number, "human"))}
        settled, late = any(name.startswith("rater ") for name in self.store.choices()), self.store.late_rounds()
        several, weights = self.store.rating_counts().raters > 1, self.store.weights
        found, raters = list[tuple[SampleRow, float]](), dict[int, list[str]]()
        for row, said in rows.items():
            if settled or several or row.number in late:
                asked, words = self.store.asked(row.number), self.store.last_words(row.number)
                if settled or row.number in late:
                    said = scores(asked, words, weights)
                for rater, of in opinions(asked, words).items():
                    for id in of.keys() & asked.keys():
                        raters.setdefault(id, []).append(rater)
            found += [(each, value) for each in self.store.samples(row.number) if each.id in said and (value := said[each.id].value) is not None]
        levels = levels_of(raters, weights)
        return [Opinion(each, value, *levels.get(each.id, (OWN, 1.0))) for each, value in found]

    def _taste(self, rated: Sequence[Opinion], rows: Sequence[SampleRow]) -> Taste | None:
        """What some ratings of the run say, and those from elsewhere; None while there are none. ``rows`` are the images that it will be asked
        about."""
        earlier = self.earlier
        if not rated and not earlier:
            return None
        seen = self._looks([*(each.row.image for each in rated), *(f"{RATINGS}/{each.image}" for each in earlier)])
        known = {each.row.id for each in rated}
        others = [row.image for row in rows if row.id not in known]
        return Taste(
            seen,
            [*(each.row.prompt for each in rated), *(each.prompt for each in earlier)],
            [*(each.said for each in rated), *(each.opinion for each in earlier)],
            joined([seen, self._looks(others)]),
            [*(each.whose for each in rated), *(each.who for each in earlier)],
            [*(each.counts for each in rated), *[1.0] * len(earlier)],
        )

    @property
    def earlier(self) -> list[Rated]:
        """The ratings from elsewhere that are learned from as well."""
        if self._earlier is None:
            self._earlier = thinned(rated_in(self.store.folder), MOST_EARLIER) if self.on else []
        return self._earlier

    def _looks(self, images: Sequence[str]) -> Looks:
        """What is seen in images of the run's folder; each is looked at once."""
        missing = [name for name in dict.fromkeys(images) if name not in self._seen]
        for name in missing:
            with Image.open(self.store.folder / name) as image:
                self._seen[name] = self.look([image])
        if missing:
            self.free()
        return joined(self._seen[name] for name in images)

    def free(self) -> None:
        """Give the memory of what it sees with back, where the run wants that."""
        if self._tower and self.config.reward_offload:
            self._tower.free()

    def look(self, images: Sequence[Image.Image]) -> Looks:
        """What is seen in images, each alone: :func:`rewards.preference.looks`, and beside them the unit vectors of a network's image tower, as
        ``preference_sees`` says."""
        found, sees, config = looks(images), self.config.preference_sees, self.config
        if sees == "looks":
            return found
        if self._tower is None:
            name = TOWERS[sees]
            self._tower = rewards.load(name, config.networks_of(name), config.reward_device, config.reward_precision).clip  # type: ignore[attr-defined]
        vectors = [self._tower.images([image]).double().numpy() for image in images]
        return found | {sees: np.concatenate(vectors)}
