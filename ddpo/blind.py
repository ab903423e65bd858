"""What a blind test of two models says: pure functions of verdicts. Imports no torch.

A pair is *decided* where one picture was called better. Ties, and pairs of which both are bad, say nothing about which model is better: the win rate,
its interval and the sign test are over decided pairs, and how many were not is told beside them. Where several people judged a pair, it goes to the
model that more of them called better, and is undecided where as many called either so: people who judge the same pictures are no independent trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

VERDICTS = ("a", "b", "tie", "bad")
"""A is better, B is better, neither is, both are bad."""
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
    as_far: int = 2 * sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, as_far / (1 << n))


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
