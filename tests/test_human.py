"""What people say, in whatever modes, as one score an image: worked examples, and what must not matter."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.optimize import minimize

from ddpo.config import RunConfig
from rewards.base import Score
from rewards.human import BOTH_BAD, VALUES, opinions, scores, set_size, valid
from rewards.pairs import RIDGE, TIES, Verdict, strengths

CATS = dict.fromkeys(range(1, 5), "a cat")
BOARD = CATS | dict.fromkeys(range(5, 9), "a dog")


@dataclass(frozen=True)
class Event:
    sample: int
    kind: str
    value: float | None = None
    rater: str = "anna"
    other: int | None = None


def told(*events: Event) -> dict[int, list[Event]]:
    """Events by image, as the store gives them."""
    found: dict[int, list[Event]] = {}
    for event in events:
        found.setdefault(event.sample, []).append(event)
    return found


def values(*events: Event, asked: dict[int, str] = BOARD) -> dict[int, float]:
    """The scores that there are."""
    return {image: score.value for image, score in scores(asked, told(*events)).items() if score.value is not None}


# --- what can be said -------------------------------------------------------------------------------------------------------------


def test_the_modes_of_the_settings_are_those_that_can_be_rated_in() -> None:
    field = next(each for each in RunConfig.__dataclass_fields__.values() if each.name == "rating")
    assert field.metadata["choices"] == tuple(VALUES)


@pytest.mark.parametrize("kind", VALUES)
def test_each_mode_takes_its_own_values_on_its_own_things(kind: str) -> None:
    pair = kind == "pairs"
    assert all(valid(kind, value, pair) and not valid(kind, value, not pair) for value in VALUES[kind])
    assert not valid(kind, None, pair) and not valid(kind, 7, pair) and not valid(kind, 0.5, pair)


def test_skip_and_clear_are_of_images_and_of_pairs_and_both_bad_of_pairs_alone() -> None:
    assert all(valid(kind, None, pair) and not valid(kind, 1, pair) for kind in ("skip", "clear") for pair in (False, True))
    assert valid(BOTH_BAD, None, pair=True) and not valid(BOTH_BAD, None) and not valid(BOTH_BAD, 1, pair=True)


# --- best of each prompt ------------------------------------------------------------------------------------------------------------


def test_the_best_the_good_and_those_passed_over() -> None:
    """Of its own prompt alone: the dogs are not passed over because a cat was picked. A skipped image is not judged."""
    assert values(Event(1, "best", 2), Event(2, "best", 1)) == {1: 1.0, 2: 0.5, 3: -0.5, 4: -0.5}
    assert values(Event(1, "best", 2), Event(3, "skip")) == {1: 1.0, 2: -0.5, 4: -0.5}
    assert values(Event(5, "skip")) == {}


# --- best and worst -----------------------------------------------------------------------------------------------------------------


def test_best_worst_counting() -> None:
    """Named best less named worst, over times shown: each image is shown once. One end alone says nothing of the others."""
    assert values(Event(1, "best-worst", 1)) == {1: 1.0}
    assert values(Event(1, "best-worst", 1), Event(4, "best-worst", -1)) == {1: 1.0, 2: 0.0, 3: 0.0, 4: -1.0}
    assert values(Event(1, "best-worst", 1), Event(4, "best-worst", -1), Event(2, "skip")) == {1: 1.0, 3: 0.0, 4: -1.0}


def test_sets_are_the_prompt_s_images_or_fours_of_them() -> None:
    eight = dict.fromkeys(range(1, 9), "a cat")
    ends = [Event(1, "best-worst", 1), Event(2, "best-worst", -1)]
    assert values(*ends, asked=eight) == {1: 1.0, 2: -1.0, 3: 0.0, 4: 0.0}
    assert values(ends[0], Event(5, "best-worst", -1), asked=eight) == {1: 1.0, 5: -1.0}, "ends of two sets"
    assert [set_size(n) for n in (1, 2, 4, 5, 6, 7, 8, 9, 10, 12, 16)] == [1, 2, 4, 5, 3, 7, 4, 3, 5, 4, 4]


# --- pairs --------------------------------------------------------------------------------------------------------------------------


def log_posterior(theta: np.ndarray, verdicts: list[Verdict], bad: list[int]) -> float:
    """As the docstring says it, in probabilities."""
    found = -RIDGE / 2 * float(theta @ theta)
    for a, b, said in [*verdicts, *((image, -1, -1.0) for image in bad)]:
        d = theta[a] - (theta[b] if b >= 0 else 0.0)
        z = math.exp(d / 2) + math.exp(-d / 2) + TIES
        found += math.log({1.0: math.exp(d / 2), -1.0: math.exp(-d / 2), 0.0: TIES}[said] / z)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_strengths_are_where_the_posterior_is_largest(seed: int) -> None:
    """Found once more by a library's optimiser from the probabilities themselves."""
    draw = random.Random(seed)
    verdicts = [(*draw.sample(range(5), 2), float(draw.choice((-1, 0, 1)))) for _ in range(9)]
    bad = draw.sample(range(5), 2)
    found = minimize(lambda theta: -log_posterior(theta, verdicts, bad), np.zeros(5), method="BFGS", options=dict(gtol=1e-9))
    images = {image for a, b, _ in verdicts for image in (a, b)} | set(bad)
    assert strengths(verdicts, bad) == {image: pytest.approx(math.tanh(found.x[image] / 2), abs=1e-5) for image in sorted(images)}


def test_verdicts_on_paper() -> None:
    """One win: 1/2 - sinh(θ) / (2 cosh(θ) + 1) = θ / 4, so θ is 0.920. A chain is in its order; ties and circles are level; both bad is bad."""
    one = strengths([(1, 2, 1)])
    assert one[1] == -one[2] == pytest.approx(0.430, abs=5e-4)
    chain = strengths([(1, 2, 1), (2, 3, 1), (3, 4, 1)])
    assert 0.9 > chain[1] > chain[2] > 0 > chain[3] > chain[4] > -0.9
    assert strengths([(1, 2, 0), (2, 3, 0)]) == {1: 0.0, 2: 0.0, 3: 0.0}
    assert strengths([(1, 2, 1), (2, 3, 1), (3, 1, 1)]) == pytest.approx({1: 0.0, 2: 0.0, 3: 0.0}, abs=1e-12)
    assert strengths([], [1, 2]) == pytest.approx({1: -0.5471, 2: -0.5471}, abs=1e-4)
    tied = strengths([(1, 2, 1), (2, 3, 0)])
    assert tied[1] > 0 > tied[3] > tied[2], "a tie pulls together"
    assert strengths([(1, 2, 1)] * 40)[1] < 1


def test_a_pair_says_the_same_from_both_sides_and_in_any_order() -> None:
    """To the last bit: scores are compared, and an undo must restore them."""
    verdicts = [(1, 2, 1.0), (3, 2, 0.0), (4, 1, -1.0), (3, 4, 1.0), (5, 3, -1.0)]
    turned = [(b, a, -said) for a, b, said in reversed(verdicts)]
    assert strengths(verdicts, [2, 5]) == strengths(turned, [5, 2])
    draw = random.Random(0)
    many = [(*draw.sample(range(12), 2), draw.choice((-1.0, 0.0, 1.0))) for _ in range(60)]
    for _ in range(20):
        assert strengths(draw.sample(many, 60)) == strengths(many)


def test_pairs_and_both_bad_become_scores() -> None:
    found = values(Event(1, "pairs", 1, other=2), Event(3, "pairs", -1, other=1), Event(5, BOTH_BAD, other=6), Event(7, "skip", other=8))
    assert found == pytest.approx(strengths([(1, 2, 1), (3, 1, -1)]) | strengths([], [5, 6]))


# --- all together -------------------------------------------------------------------------------------------------------------------


def test_mixed_modes_are_the_mean_of_a_rater_s_statements_and_raters_are_one_voice_each() -> None:
    """Anna: thumbs up for 1 and 2, then 3 starred as the best, so that 1, 2 and 4 were passed over. Bob gave 1 five stars."""
    anna = [Event(1, "thumbs", 1), Event(2, "thumbs", 1), Event(3, "best", 2)]
    assert values(*anna) == {1: 0.25, 2: 0.25, 3: 1.0, 4: -0.5}
    both = scores(BOARD, told(*anna, Event(1, "stars", 5, rater="bob")))
    assert both[1] == Score(0.625, {"raters": 2}) and both[2] == Score(0.25, {"raters": 1}) and both[5] == Score(None)
    judged = values(*anna, Event(1, "pairs", 1, other=4))
    assert judged[1] == pytest.approx((1 - 0.5 + 0.43) / 3, abs=1e-3) and judged[4] == pytest.approx((-0.5 - 0.43) / 2, abs=1e-3)


def many(seed: int) -> list[Event]:
    """Everything that three raters can say, at random."""
    draw = random.Random(seed)
    found = {}
    for rater in ("anna", "bob", "carol"):
        for image in BOARD:
            kind = draw.choice(("thumbs", "stars", "best", "best-worst", "skip", ""))
            if kind:
                found[rater, image, None] = Event(image, kind, draw.choice(VALUES[kind]) if kind != "skip" else None, rater)
        for a, b in ((1, 2), (3, 1), (4, 3), (5, 7), (6, 5), (8, 6)):
            value = draw.choice((-1, 0, 1, None))
            found[rater, a, b] = Event(a, "pairs" if value is not None else BOTH_BAD, value, rater, b)
    return list(found.values())


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_within_bounds_whatever_the_order_of_events(seed: int) -> None:
    events = many(seed)
    found = values(*events)
    assert all(-1 <= value <= 1 for value in found.values()) and len(found) == 8
    random.Random(seed).shuffle(events)
    assert values(*events) == found, "to the last bit"


@pytest.mark.parametrize("seed", range(6))
def test_a_rater_s_undo_restores_every_score(seed: int) -> None:
    """One more event of each kind, and back: nobody else's opinion moves meanwhile."""
    events = many(seed)
    before, others = values(*events), {rater: found for rater, found in opinions(BOARD, told(*events)).items() if rater != "anna"}
    for i, event in enumerate(events):
        if event.rater == "anna" and event.kind != "skip":
            changed = [*events[:i], replace(event, kind="skip", value=None), *events[i + 1 :]]
            assert {r: f for r, f in opinions(BOARD, told(*changed)).items() if r != "anna"} == others
    assert values(*events) == before


def test_more_raters_who_agree_change_nothing() -> None:
    events = many(3)
    anna = [event for event in events if event.rater == "anna"]
    assert values(*anna, *(replace(event, rater="twin") for event in anna)) == pytest.approx(values(*anna))
