"""The statistics of blind tests, against closed forms."""

from __future__ import annotations

import math
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from ddpo.blind import COLUMNS, Z95, Outcome, Result, against_base, keep, outcome, results, row_of, sign_test, stamp, together, wilson


@pytest.mark.parametrize(("wins", "n"), [(1, 1), (0, 5), (3, 10), (7, 10), (50, 100), (199, 200)])
def test_the_interval_s_ends_are_the_roots_of_the_score_equation(wins: int, n: int) -> None:
    """(wins / n - p)² = z² p (1 - p) / n at both ends, of which 0 and 1 are ends where there was no win or no loss; the share is between them."""
    low, high = wilson(wins, n)
    assert 0 <= low <= wins / n <= high <= 1
    for p in (low, high):
        assert (wins / n - p) ** 2 == pytest.approx(Z95**2 * p * (1 - p) / n, abs=1e-12)


def test_known_intervals() -> None:
    """No win of n: 0 to z² / (n + z²). 8 of 10: 49.0 % to 94.3 % (Brown, Cai and DasGupta 2001 give the formula). Mirrored for the other side."""
    assert wilson(0, 10) == (0.0, pytest.approx(Z95**2 / (10 + Z95**2)))
    assert wilson(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    low, high = wilson(3, 11)
    assert wilson(8, 11) == (pytest.approx(1 - high), pytest.approx(1 - low))
    for wins, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="no share"):
            wilson(wins, n)


def test_the_interval_covers_95_percent() -> None:
    """The exact coverage at n = 40, over shares from 0.1 to 0.9: on average 95 %, nowhere under 92.5 %."""
    n, covers = 40, []
    for share in (i / 100 for i in range(10, 91)):
        inside = [k for k in range(n + 1) if wilson(k, n)[0] <= share <= wilson(k, n)[1]]
        covers.append(sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in inside))
    assert sum(covers) / len(covers) == pytest.approx(0.95, abs=0.006) and min(covers) > 0.925


def test_known_p_values() -> None:
    """All n alike: 2 / 2^n. 9 of 10: 2 (1 + 10) / 1024. Level: 1. None at all: 1."""
    assert sign_test(6, 0) == sign_test(0, 6) == 2 / 64
    assert sign_test(9, 1) == 22 / 1024
    assert sign_test(5, 5) == sign_test(0, 0) == sign_test(1, 0) == 1.0
    assert sign_test(600, 400) == pytest.approx(2.7e-10, rel=0.05)


@pytest.mark.parametrize("n", [1, 7, 12])
def test_the_p_value_is_the_probability_of_results_at_least_as_lopsided(n: int) -> None:
    """Counted over all 2^n sequences, exactly."""
    for wins in range(n + 1):
        as_far = sum(1 for bits in range(2**n) if abs(bits.bit_count() - Fraction(n, 2)) >= abs(wins - Fraction(n, 2)))
        assert sign_test(wins, n - wins) == as_far / 2**n


def test_equal_models_seem_different_one_time_of_twenty_at_most() -> None:
    """2,000 blind tests of 30 pairs by a coin: the share of p < 0.05 is at most 5 % (exactly 4.28 %); 3.5 standard errors are 1.6 points."""
    draw = random.Random(0)
    found = [sign_test(wins := sum(draw.random() < 0.5 for _ in range(30)), 30 - wins) < 0.05 for _ in range(2000)]
    assert sum(found) / 2000 == pytest.approx(0.0428, abs=0.016)


def test_ties_and_bad_pairs_are_counted_and_left_out_of_the_rate() -> None:
    found = outcome(["b", "b", "b", "a", "tie", "tie", "bad"])
    assert found == Outcome(a=1, b=3, tie=2, bad=1) and found.decided == 4
    assert found.win_rate == 0.75 and found.interval == wilson(3, 4) and found.p_value == sign_test(3, 1)
    nothing = outcome(["tie", "bad"])
    assert nothing.win_rate is None and nothing.interval is None and nothing.p_value == 1.0


def test_several_people_s_verdicts_are_one_of_each_pair() -> None:
    """More for B; as many for either; more bad than not; a pair of one person; a pair that is bad for half of them is a tie."""
    anna, ben, cleo = {0: "b", 1: "a", 2: "bad", 3: "tie", 4: "bad"}, {0: "b", 1: "b", 2: "bad", 4: "tie"}, {0: "a", 1: "tie", 2: "tie"}
    assert together([anna, ben, cleo]) == {0: "b", 1: "tie", 2: "bad", 3: "tie", 4: "tie"}
    assert together([]) == {}


def test_a_result_as_a_row_of_the_card() -> None:
    """Four of five decided pairs are B's: Wilson's interval, 2 (1 + 5) / 32 by the sign test, and 3 of 8 sides left: 2 (1 + 8 + 28 + 56) / 256."""
    found = Result("ab", 0.0, ("base model", "round 2"), (0, 2), 8, 2, Outcome(a=1, b=4, tie=2, bad=1), (3, 5))
    low, high = wilson(4, 5)
    assert row_of(found) == (
        "base model",
        "round 2",
        "8",
        "2",
        "1",
        "4",
        "2",
        "1",
        f"80 % ({100 * low:.0f} to {100 * high:.0f} %)",
        "0.375",
        "0.7266",
    )
    nobody = Result("ab", 0.0, ("base model", "round 2"), (0, 2), 1, 1, Outcome(0, 0, 1, 0), (0, 0))
    assert row_of(nobody)[-3:] == ("–", "1", "1") and len(row_of(nobody)) == len(COLUMNS)


def test_tests_of_a_round_against_the_base_model_are_added_up_whichever_side_it_was() -> None:
    """4 of 5 as B and 3 of 5 as A are 7 of 10. Half of its strength, two rounds, another run's base model and a LoRA are something else."""

    def tested(titles: tuple[str, str], rounds: tuple[int, int], a: int, b: int) -> Result:
        return Result("ab", 0.0, titles, rounds, 8, 1, Outcome(a, b, tie=2, bad=1), (3, 5))

    found = [tested(("base model", "round 2"), (0, 2), 1, 4), tested(("round 2", "base model"), (2, 0), 3, 2)]
    assert against_base(found) == {2: Outcome(a=3, b=7, tie=4, bad=2)}
    others = [
        (("base model", "round 2 at 50 %"), (0, 2)), (("round 1", "round 2"), (1, 2)), (("the LoRA x", "base model"), (0, 0)),
        (("base model of other", "round 2 of this"), (0, 2)), (("the LoRA x", "round 2"), (0, 2)),
    ]  # fmt: skip
    assert against_base([tested(titles, rounds, 1, 4) for titles, rounds in others]) == {}


def test_what_is_kept_changes_the_stamp(tmp_path: Path) -> None:
    assert stamp(tmp_path) == 0
    found = Result("ab", 0.0, ("base model", "round 2"), (0, 2), 1, 1, Outcome(0, 1, 0, 0), (1, 0))
    keep(tmp_path, found)
    before = stamp(tmp_path)
    time.sleep(0.02)
    keep(tmp_path, found)
    assert 0 < before < stamp(tmp_path) and results(tmp_path) == [found]
