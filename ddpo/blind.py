"""What a blind test of two models says: pure functions of verdicts. Imports no torch.

A pair is *decided* where one picture was called better. Ties, and pairs of which both are bad, say nothing about which model is better: the win rate,
its interval and the sign test are over decided pairs, and how many were not is told beside them. Where several people judged a pair, it goes to the
model that more of them called better, and is undecided where as many called either so: people who judge the same pictures are no independent trials.

What has come out of a test lies in the folders of the runs that it compares, ``blind/<id>.json``, where the model card and the report read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpo.files import read_json, write_json
from ddpo.markup import shown

FOLDER = "blind"
VERDICTS = ("a", "b", "tie", "bad")
"""A is better, B is better, neither is, both are bad."""
BASE = "base model"
"""What the base model is called, as a side of a test."""
Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


@dataclass(frozen=True)
class Outcome:
    """How many pairs came out how, and what that says."""

    a: int
    b: int
    tie: int
    bad: int

    @property
    def decided(self) -> int:
        return self.a + self.b

    @property
    def win_rate(self) -> float | None:
        """The share of decided pairs in which B is better; None where none is decided."""
        return self.b / self.decided if self.decided else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the win rate."""
        return wilson(self.b, self.decided) if self.decided else None

    @property
    def p_value(self) -> float:
        """How probable so lopsided a result would be if both were equally good."""
        return sign_test(self.b, self.a)


def wilson(wins: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share, wins of n (Wilson 1927, "Probable inference, the law of succession, and statistical inference").

    The shares p for which (wins / n - p)² ≤ z² p (1 - p) / n; unlike the normal interval it is right for few trials, and never leaves 0 to 1.
    """
    if not 0 <= wins <= n or not n:
        raise ValueError(f"{wins} wins of {n} are no share.")
    share, shrink = wins / n, 1 + z**2 / n
    middle = (share + z**2 / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / shrink
    return (0.0 if wins == 0 else middle - half), (1.0 if wins == n else middle + half)


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of the exact sign test: 2 P(X ≤ min(wins, losses)) for X binomial of n = wins + losses and 1/2, at most 1. Ties are left
    out before (Dixon and Mood 1946, "The statistical sign test")."""
    n, fewer = wins + losses, min(wins, losses)
    ways = as_far = 1  # of n pairs, in how many ways none is the rarer one; then one, two, ...
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        as_far += ways
    return min(1.0, 2 * as_far / (1 << n))


def outcome(verdicts: Iterable[str]) -> Outcome:
    """The outcome of some pairs, a verdict each."""
    counts = dict.fromkeys(VERDICTS, 0)
    for verdict in verdicts:
        counts[verdict] += 1
    return Outcome(**counts)


def together(verdicts: Iterable[Mapping[int, str]]) -> dict[int, str]:
    """Several people's verdicts of pairs as one of each pair: the side that more of them called better; where as many called either so, bad if most
    called both bad, else a tie."""
    said: dict[int, list[str]] = {}
    for mine in verdicts:
        for pair, verdict in mine.items():
            said.setdefault(pair, []).append(verdict)
    return {pair: _majority(each) for pair, each in said.items()}


def _majority(said: Sequence[str]) -> str:
    a, b, bad = (said.count(verdict) for verdict in ("a", "b", "bad"))
    if a != b:
        return "a" if a > b else "b"
    return "bad" if 2 * bad > len(said) else "tie"


# --- what has come out of a test, in a run's folder -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A blind test of two sides, of which B is the later one to be chosen."""

    id: str
    finished_at: float
    """When a person was last at the end of it, in seconds since 1970."""
    titles: tuple[str, str]
    rounds: tuple[int, int]
    """What round of this run a side is; 0 where it is the base model, another run's, or a LoRA file."""
    pairs: int
    people: int
    """How many judged all of them."""
    total: Outcome
    left: tuple[int, int]
    """How often the left and the right picture was called better."""

    @property
    def left_p_value(self) -> float:
        """How probable so many of one side would be if nobody favoured one."""
        return sign_test(*self.left)


def keep(folder: Path, result: Result) -> None:
    """Keep what has come out so far in a run's folder."""
    write_json(folder / FOLDER / f"{result.id}.json", result)


def results(folder: Path) -> list[Result]:
    """What has come out of a run's blind tests, the latest first; a file that cannot be read is left out."""
    found = [result for file in (folder / FOLDER).glob("*.json") if (result := read_json(file, Result))]
    return sorted(found, key=lambda result: -result.finished_at)


def stamp(folder: Path) -> int:
    """Changes whenever something is kept in a run's folder."""
    try:
        return (folder / FOLDER).stat().st_mtime_ns
    except OSError:
        return 0


def against_base(found: Iterable[Result]) -> dict[int, Outcome]:
    """What the tests say that compare the base model with a round at its full strength, by round, as if the round were B. Tests of one round are
    added up: each has seeds of its own, so their pairs are independent trials."""
    totals: dict[int, Outcome] = {}
    for result in found:
        number, total = max(result.rounds), result.total
        if sorted(result.titles) == sorted((BASE, f"round {number}")):
            a, b = (total.a, total.b) if result.titles[0] == BASE else (total.b, total.a)
            before = totals.get(number, Outcome(0, 0, 0, 0))
            totals[number] = Outcome(before.a + a, before.b + b, before.tie + total.tie, before.bad + total.bad)
    return totals


def until(found: Iterable[Result], number: int) -> list[Result]:
    """Those of which a side is one of the run's rounds up to one, and none is a later one."""
    return [result for result in found if 0 < max(result.rounds) <= number]


COLUMNS = ("A", "B", "pairs", "people", "A better", "B better", "neither", "both bad", "B's share of decided pairs", "p", "a side favoured, p")


def row_of(result: Result) -> tuple[str, ...]:
    """A result as a row under :data:`COLUMNS`."""
    total = result.total
    rate, interval = total.win_rate, total.interval
    share = "–" if rate is None or interval is None else f"{100 * rate:.0f} % ({100 * interval[0]:.0f} to {100 * interval[1]:.0f} %)"
    counts = (result.pairs, result.people, total.a, total.b, total.tie, total.bad)
    return (*result.titles, *map(str, counts), share, shown(total.p_value), shown(result.left_p_value))


MEANING = (
    "People saw two pictures of the same prompt and seed without knowing whose they were, and said which is better. The share is of decided pairs, "
    "with Wilson's 95 % interval; p is the exact sign test's, of no difference, and of no side favoured. Interval and p speak of the test's prompts, "
    "with other noise. Where several people judged a pair, it goes to the model that more of them called better."
)
