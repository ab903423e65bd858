"""Who rated a run: how much, how fast, and how far they agree with themselves and with one another. Pure reads of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from threading import Lock
from typing import Any

from app import words
from ddpo.blind import sign_test
from ddpo.records import RatingRow, RoundRow, is_once_more, latest
from ddpo.store import RunStore
from rewards.agreement import alpha, same_order
from rewards.human import opinions

LATELY = 30
"""So many acts are somebody's last ones, for a hint that they may be tired."""
PAUSE = 120.0
"""Seconds after which somebody was away rather than looking."""
TOGETHER = 0.05
"""Seconds within which two events are one act: a new best makes the former one a good one."""

Said = tuple[dict[str, dict[int, float]], dict[str, tuple[int, float, int]]]
"""What :func:`said_in` finds."""


def raters_value(store: RunStore) -> dict[str, Any]:
    """Everybody who rated a run, in order of appearance, and how far they agree; made anew when something was said or settled."""
    return _value(store, store.said)


def tired(store: RunStore, rater: str) -> str:
    """A hint for a rater who may be tired; nothing for all others."""
    return next((each["tired"] for each in raters_value(store)["raters"] if each["name"] == rater), "")


@lru_cache(maxsize=64)
def _value(store: RunStore, _said: tuple[int, ...]) -> dict[str, Any]:
    by_rater: dict[str, list[RatingRow]] = {}
    by_round: dict[int, list[RatingRow]] = {}
    for event in _events(store):
        by_rater.setdefault(event.rater, []).append(event)
        by_round.setdefault(event.round, []).append(event)
    rounds = {row.number: row for row in store.rounds()}
    absent = store.left_out
    again: dict[str, list[tuple[int, float, int]]] = {}
    told: dict[str, dict[int, float]] = {}
    for number, events in by_round.items():
        until, last = rounds[number].closed_rating, events[-1].id
        if len(by_rater) > 1 or (until is not None and last > until):
            before, after = _of_round(store, rounds[number], events)
            for rater, found in before.items():
                told.setdefault(rater, {}).update(found)
            for rater, each in after.items():
                again.setdefault(rater, []).append(each)
    agreement, images = alpha(found for name, found in told.items() if name not in absent)
    raters = [_rater(name, events, [each for each in again.get(name, ()) if each[2]], name not in absent) for name, events in by_rater.items()]
    raters = [each | dict(half=each["name"] in store.weights) for each in raters]
    text = f"Agreement between raters: {words.number(agreement)} (Krippendorff’s α; 1 is full, 0 is chance), from {words.count(images, 'image')}"
    return dict(raters=raters, agreement=text if agreement is not None else "")


@dataclass
class Heard:
    """What was read of a run so far. Its events are never changed, so that only new ones are read, and rounds looked at where there are some."""

    lock: Any = field(default_factory=Lock)
    events: list[RatingRow] = field(default_factory=list)
    rounds: dict[int, tuple[tuple[int | None, int, int], Said]] = field(default_factory=dict)
    """By number: until which event it was open, the last one of it and how many, and what was said."""


@lru_cache(maxsize=64)
def _heard(store: RunStore) -> Heard:
    return Heard()


def _events(store: RunStore) -> list[RatingRow]:
    """All of a run's events."""
    heard = _heard(store)
    with heard.lock:
        heard.events += store.ratings(after=heard.events[-1].id if heard.events else 0)
        return list(heard.events)


def _of_round(store: RunStore, row: RoundRow, events: Sequence[RatingRow]) -> Said:
    """What a round's events say."""
    known, stamp = _heard(store).rounds, (row.closed_rating, events[-1].id, len(events))
    if row.number not in known or known[row.number][0] != stamp:
        known[row.number] = (stamp, said_in(events, store.asked(row.number), row))
    return known[row.number][1]


def said_in(events: Sequence[RatingRow], asked: Mapping[int, str], row: RoundRow) -> Said:
    """What each rater said of a round's board; and of what they said when its images were shown once more the last event's id, how many pairs they
    put in the same order, and of how many."""
    once_more = [event for event in events if is_once_more(event, row)]
    before, again = opinions(asked, latest(event for event in events if not is_once_more(event, row))), dict[str, tuple[int, float, int]]()
    for rater, after in opinions(asked, latest(once_more)).items():
        again[rater] = (max(event.id for event in once_more if event.rater == rater), *same_order(before.get(rater, {}), after, asked))
    return before, again


@dataclass(frozen=True)
class RatedRounds:
    """What the boards that are closed say of their raters, round by round; None where nothing does."""

    seconds: Mapping[str, Sequence[tuple[int, float | None]]]
    """By rater, in order of appearance: the median of :func:`seconds_of` on each board, in seconds."""
    everyone: Sequence[tuple[int, float | None]]
    """The same of all of them together."""
    acts: Sequence[tuple[int, float]]
    """How many acts these are of."""
    agreement: Sequence[tuple[int, float | None]]
    """Krippendorff's α (:func:`rewards.agreement.alpha`) of those who count, of the round's images that several of them rated."""
    shared: Sequence[tuple[int, float]]
    """How many images these are."""
    same: Sequence[tuple[int, float | None]]
    """Of the round's images that were shown once more, the share of pairs that were put in the same order again (:func:`same_order`), from 0 to 1."""
    pairs: Sequence[tuple[int, float]]
    """How many pairs these are."""


def rated_rounds(store: RunStore) -> RatedRounds:
    """The raters by round; made anew when something was said or settled. A board that is open tells nothing: nobody sees there what others say."""
    return _rated_rounds(store, store.said)


@lru_cache(maxsize=64)
def _rated_rounds(store: RunStore, _said: tuple[int, ...]) -> RatedRounds:
    closed = {row.number: row for row in store.rounds() if row.closed_rating is not None}
    acts: dict[int, dict[str, list[RatingRow]]] = {}
    events: dict[int, list[RatingRow]] = {}
    for event in _events(store):
        if (board := event.board or event.round) in closed:
            acts.setdefault(board, {}).setdefault(event.rater, []).append(event)
            events.setdefault(event.round, []).append(event)
    numbers, absent = sorted(acts), store.left_out
    took = {number: {rater: seconds_of(each) for rater, each in acts[number].items()} for number in numbers}
    together = {number: [second for each in took[number].values() for second in each] for number in numbers}
    agreement, same = dict[int, tuple[float | None, int]](), dict[int, tuple[float | None, int]]()
    for number in numbers:
        of_round, row = events.get(number, []), closed[number]
        several = len({event.rater for event in of_round}) > 1
        before, again = _of_round(store, row, of_round) if several or (of_round and of_round[-1].id > (row.closed_rating or 0)) else ({}, {})
        agreement[number] = alpha(found for rater, found in before.items() if rater not in absent)
        told = [each for rater, each in again.items() if each[2] and rater not in absent]
        same[number] = (_share(told), sum(each[2] for each in told)) if told else (None, 0)
    return RatedRounds(
        seconds={rater: [(n, _median(took[n].get(rater))) for n in numbers] for rater in dict.fromkeys(r for n in numbers for r in took[n])},
        everyone=[(n, _median(together[n])) for n in numbers],
        acts=[(n, float(len(together[n]))) for n in numbers],
        agreement=[(n, value) for n, (value, _) in agreement.items()],
        shared=[(n, float(images)) for n, (_, images) in agreement.items()],
        same=[(n, value) for n, (value, _) in same.items()],
        pairs=[(n, float(pairs)) for n, (_, pairs) in same.items()],
    )


def _median(seconds: Sequence[float] | None) -> float | None:
    return round(median(seconds), 2) if seconds else None


def _rater(name: str, events: Sequence[RatingRow], again: Sequence[tuple[int, float, int]], counts: bool) -> dict[str, Any]:
    """One line of the list. ``again`` is what was shown once more: the last event's id, pairs put in the same order, and all pairs. Of the
    decided pairs, whose sides are by lot, it says how often the left picture was called better, and how probable that is if no side is favoured."""
    seconds = seconds_of(events)
    pairs = sum(each[2] for each in again)
    decided = [event.value for said in latest(events).values() for event in said if event.kind == "pairs" and event.value]
    left = sum(value > 0 for value in decided)
    return dict(
        name=name, ratings=sum(event.kind != "clear" for event in events), seconds=round(median(seconds), 1) if seconds else None,
        same=round(_share(again), 3) if pairs else None, pairs=pairs, counts=counts, tired=_tired(events, seconds, again),
        left=left, decided=len(decided), left_p=round(sign_test(left, len(decided) - left), 4),
    )  # fmt: skip


def seconds_of(events: Sequence[RatingRow]) -> list[float]:
    """How long each of a rater's acts took: since the one before it, or since the image was there, whichever came later."""
    found, before = [], 0.0
    for event in events:
        if event.answered_at is None:
            continue
        took = event.answered_at - max(before, event.shown_at or before)
        if TOGETHER < took < PAUSE and (before or event.shown_at):
            found.append(took)
        before = event.answered_at
    return found


def _tired(events: Sequence[RatingRow], seconds: Sequence[float], again: Sequence[tuple[int, float, int]]) -> str:
    """Whether the last acts were much quicker than those before, and where images were shown again, less in agreement; in plain words."""
    if len(seconds) < 2 * LATELY:
        return ""
    share = median(seconds[-LATELY:]) / median(seconds[:-LATELY])
    if share > 0.5:
        return ""
    since = events[-LATELY].id
    lately, earlier = ([each for each in again if (each[0] >= since) == late] for late in (True, False))
    less = bool(lately and earlier) and _share(lately) < _share(earlier)
    quick = "half" if share > 0.4 else "a third" if share > 0.28 else "a quarter or less"
    also = ", and agree less with what was said before" if less else ""
    return f"The last {LATELY} ratings took {quick} of the time of those before{also}. A break may help."


def _share(again: Sequence[tuple[int, float, int]]) -> float:
    return sum(same for _, same, _ in again) / sum(pairs for _, _, pairs in again)
