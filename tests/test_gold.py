"""Proxy against gold: a known curve is found again, its interval holds the truth as often as it says, and nothing is said where nothing is known."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from ddpo.blind import Outcome, Result, keep, wilson
from ddpo.config import RunConfig
from ddpo.gold import Board, Curve, Point, boards, distances, fit, gains, gold_of, peak_of, proxy_and_gold, rated_gains, win_rates, words_of
from tests.toys import add_images, add_watched, filled_run

ALPHA, BETA = 1.2, 0.6
"""Peak at exp(2 - 1) = e, of height βe = 1.63."""


def points(alpha: float, beta: float, noise: float = 0.0, seed: int = 0, count: int = 12, furthest: float = 5.0) -> list[Point]:
    draw, found = random.Random(seed), [Point(0, 0, 0.0, 0.0, 0.0)]
    for n in range(1, count + 1):
        d = furthest * n / count
        found.append(Point(n, n, d, d * (alpha - beta * math.log(d)) + draw.gauss(0, noise), noise))
    return found


def test_a_known_curve_is_found_again() -> None:
    """Without noise to every digit; its peak is where the derivative α - β - β log d is 0, and nothing is higher."""
    curve = fit(points(ALPHA, BETA))
    assert curve is not None and (curve.alpha, curve.beta) == (pytest.approx(ALPHA), pytest.approx(BETA))
    peak = peak_of(curve)
    assert peak is not None and (peak.distance, peak.low, peak.high) == tuple(pytest.approx(math.e, rel=1e-5) for _ in range(3))
    assert curve.at(peak.distance) == pytest.approx(BETA * math.e) and curve.at(0.0) == 0.0
    assert all(curve.at(d / 100) <= curve.at(peak.distance) + 1e-9 for d in range(1, 1000))


def test_errors_and_interval_hold_the_truth_as_often_as_they_say() -> None:
    """500 noisy draws: α and β lie within 1.96 errors (t with 10 degrees of freedom: 92.1 %) and the peak within its interval (95 %); each bound is
    four standard deviations of the binomial, 1.2 and 1 points a standard deviation."""
    held, within = 0, [0, 0]
    for seed in range(500):
        curve = fit(points(ALPHA, BETA, 0.15, seed))
        assert curve is not None
        for i, (value, truth) in enumerate(((curve.alpha, ALPHA), (curve.beta, BETA))):
            within[i] += abs(value - truth) < 1.96 * math.sqrt(curve.covariance[i][i])
        peak = peak_of(curve)
        held += peak is not None and peak.low < math.e < peak.high
    assert all(0.873 < share / 500 < 0.969 for share in within) and 0.91 < held / 500 < 0.99


def test_no_peak_is_told_where_none_is_known() -> None:
    """Fewer than four points; a straight or upward line; noise alone, but for its share of chance (2.5 %: of 200 five, and four deviations of 2.2); a
    bend whose peak would lie far beyond the points."""
    assert fit(points(ALPHA, BETA, count=3)) is None and fit([]) is None and fit([Point(i, i, 2.0, 1.0, 0.1) for i in range(9)]) is None
    for beta in (0.0, -0.5):
        curve = fit(points(1.0, beta))
        assert curve is not None and peak_of(curve) is None
    lines = [fit(points(1.0, 0.0, 0.3, seed)) for seed in range(200)]
    assert sum(curve is not None and peak_of(curve) is not None for curve in lines) <= 14
    far = fit(points(4.0, 0.8, furthest=3.0))  # peak at e^4 = 55
    assert far is not None and peak_of(far) is None
    spoiled = fit([*points(ALPHA, BETA), Point(99, 99, math.nan, 1.0, 0.1), Point(100, 100, 3.0, math.nan, 0.1), Point(101, 101, math.inf, 1.0, 0.1)])
    assert spoiled is not None and (spoiled.alpha, spoiled.points) == (pytest.approx(ALPHA), 12)


def test_the_sentence_says_where_the_run_is() -> None:
    found = points(ALPHA, BETA, 0.05)
    assert words_of(found, 1.0).endswith("the run is at 1, before it.") and words_of(found, 5.0).endswith("the run is at 5, beyond it.")
    assert words_of(found, 2.72).startswith("Gold is predicted to peak at √KL about 2.7") and words_of(found, 2.72).endswith("about there.")
    assert "95 % interval" in words_of(found, 1.0)
    assert words_of(found[:4], 1.0) == "Too few points to say where gold peaks: 3, and it takes 4."
    assert words_of(points(1.0, 0.0), 5.0) == "No peak of gold can be told yet from these 12 points; the run is at √KL 5."
    falling = points(0.5, 1.5, 0.02)[4:]
    assert words_of(falling, 5.0) == "Gold falls from √KL 1.67 on, the first that was watched: its peak lies before. The run is at 5."
    assert peak_of(Curve(1.0, 0.0, ((0.0, 0.0), (0.0, 0.0)), 9, 5.0)) is None


BASE = dict(
    kl=[0.0, 0.0], aesthetic=[1.0, 3.0], image_statistics=[0.0, 4.0], clip_score=[10.0, 10.0], jpeg_compressibility=[1.0, 2.0], noise=[0.1, 0.2]
)


def test_gains_are_the_pictures_own_in_the_base_s_deviations() -> None:
    """Standard deviations 1 and 2: the first reward rises by 1 and 3, the second falls by 2 and 4. Means of each picture: 0 and ½."""
    series = {0: BASE, 5: BASE | dict(kl=[4.0, None], aesthetic=[2.0, 6.0], image_statistics=[-2.0, 0.0])}
    assert distances(series) == {0: 0.0, 5: 2.0}
    assert gains(series, ["aesthetic"])[1] == Point(5, 5, 2.0, 2.0, 1.0)
    both = gains(series, ["aesthetic", "image_statistics"])
    assert both[0] == Point(0, 0, 0.0, 0.0, 0.0) and both[1] == Point(5, 5, 2.0, pytest.approx(0.25), pytest.approx(0.25))
    assert gains(series, ["clip_score"]) == [], "all alike in the base model: there is no unit"


def test_gold_is_what_nobody_optimises() -> None:
    """The pocket's aesthetic was made from the image statistics; any other reward has the mean of those that are left and have a merit."""
    series = {0: BASE}
    assert gold_of(RunConfig(), "aesthetic", series) == ("image_statistics",)
    assert gold_of(RunConfig(reward_models="published"), "aesthetic", series) == ("image_statistics", "clip_score")
    assert gold_of(RunConfig(), "jpeg_compressibility", series) == ("aesthetic", "image_statistics", "clip_score")
    assert gold_of(RunConfig(), "blend: 1 clip_score, 1 human", series) == ()
    assert gold_of(RunConfig(), "image_statistics", series) == ("clip_score",), "the aesthetic follows what it was made from"


def test_people_s_ratings_are_held_out_by_the_boards_they_are_of() -> None:
    """Board 1 is the base model's, board 7 of the policy after 6, board 4 lies half way in nats; one made ahead belongs to an earlier policy."""
    series = {0: dict(kl=[0.0]), 6: dict(kl=[16.0])}
    rated = [Board(1, 0, 0.2, 0.5, 16), Board(4, 3, 0.6, 0.4, 16), Board(7, 6, 0.7, 0.5, 16), Board(8, 6, 0.7, 0.5, 16), Board(9, 8, 0.1, 0.5, 16)]
    found = rated_gains(series, rated)
    assert [(p.round, p.distance, p.gain) for p in found] == [
        (1, 0.0, 0.0), (4, pytest.approx(8**0.5), pytest.approx(0.8)), (7, 4.0, pytest.approx(1.0)), (8, 4.0, pytest.approx(1.0)),
    ]  # fmt: skip
    assert [p.error for p in found[:2]] == [0.0, pytest.approx(math.hypot(0.4, 0.5) / 0.5 / 4)], "of a difference both means' errors count"
    assert rated_gains({0: dict(kl=[0.0])}, rated) == [] and rated_gains(series, []) == []


def test_boards_are_gold_where_their_ratings_say_how_good_they_are(tmp_path: Path) -> None:
    """By thumbs, as the first was; not by pairs, nor where boards are chosen, nor where the run begins with trained weights."""
    store = filled_run(tmp_path / "a", rounds=3)
    found = boards(store)
    assert [board.round for board in found] == [1, 2, 3] and [board.made_after for board in found] == [
        min(sample.updates for sample in store.samples(number)) for number in (1, 2, 3)
    ]
    assert [board.mean for board in found] == [dict(store.metrics()["reward_mean"])[number] for number in (1, 2, 3)]
    assert [board.round for board in boards(store, 2)] == [1, 2]
    store.add_rating("again", store.samples(1)[0].id, "anna", "stars", 5)
    assert [board.round for board in boards(store)] == [1, 2, 3], "what is said again of a board that is closed does not count"
    add_images(store, 4)
    (first, other, *_) = store.samples(4)
    store.add_rating("as before", first.id, "anna", "thumbs", 1)
    store.add_rating("in stars", other.id, "ben", "stars", 5)
    store.add_metrics(4, dict(reward_mean=0.5, reward_std=0.5, scored_images=2.0))
    assert [board.round for board in boards(store)] == [1, 2, 3]
    store.choose("rater ben", "out")
    assert [board.round for board in boards(store)] == [1, 2, 3, 4], "nor does what raters say who are left out"
    chosen = filled_run(tmp_path / "b", rounds=1, preference="assist", board_images=4)
    assert boards(chosen) == []
    for kind, wanted in (("thumbs", 1), ("stars", 1), ("best", 0), ("best-worst", 0)):
        other = filled_run(tmp_path / kind, rounds=0, rating=kind)
        add_images(other, 1)
        other.add_rating("once", other.samples(1)[0].id, "anna", kind, 1)
        other.add_metrics(1, dict(reward_mean=0.5, reward_std=0.5, scored_images=1.0))
        assert len(boards(other)) == wanted, kind


def test_where_the_latest_distance_is_unknown_the_last_known_one_is_told(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "a", rounds=12, reward="jpeg_compressibility")
    for number in (0, 5, 10):
        add_watched(store, number, -0.1 * number)
    rows = store.probes(10)
    found = [{**row.found, "kl": None} for row in rows]
    store.add_probes(10, [row.kind for row in rows], [row.prompt for row in rows], [row.seed for row in rows], [row.image for row in rows], found)
    both = proxy_and_gold(store)
    assert both is not None and both.now == pytest.approx(50**0.5) and both.reward == "jpeg_compressibility"


def test_a_run_has_both_while_its_reward_stays(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "a", rounds=12, reward="jpeg_compressibility")
    assert proxy_and_gold(store) is None
    for number in (0, 5, 10):
        add_watched(store, number, -0.1 * number)
    found = proxy_and_gold(store)
    assert (
        found is not None
        and found.names == ("clip_score",)
        and found.now == 10
        and [p.distance**2 for p in found.gold] == pytest.approx([0, 50, 100])
    )
    assert found.gold[2].gain == pytest.approx(2.3 / 5**0.5) and found.proxy == []
    early = proxy_and_gold(store, 7)
    assert early is not None and len(early.gold) == 2
    store.set_reward(9, "aesthetic")
    assert proxy_and_gold(store) is None and proxy_and_gold(store, 7) is not None


def test_win_rates_lie_at_the_distance_of_their_rounds(tmp_path: Path) -> None:
    """Watched at 0, 5 and 10 with 10 nats a round: round 8 lies at √80, round 11 nowhere, and what nobody decided is no rate. Up to round 9 all is as
    it was, though nothing was watched between 5 and 9. A run that goes on from trained weights was never at the base model: round 3 lies nowhere."""
    store = filled_run(tmp_path / "a", rounds=12, reward="jpeg_compressibility")
    assert win_rates(store) == ([], 0.0)
    for at, total in {
        3: Outcome(2, 2, 0, 0),
        5: Outcome(1, 4, 3, 0),
        8: Outcome(0, 9, 0, 1),
        10: Outcome(0, 0, 4, 4),
        11: Outcome(4, 4, 0, 0),
    }.items():
        keep(store.folder, Result(f"{at}", 0.0, ("base model", f"round {at}"), (0, at), 10, 1, total, (3, 5)))
    assert win_rates(store) == ([], 0.0), "no distance is known"
    for number in (0, 5, 10):
        add_watched(store, number)
    found, reach = win_rates(store)
    assert [each.round for each in found] == [3, 5, 8] and [each.rate for each in found] == [0.5, 0.8, 1.0] and reach == 10
    assert [each.distance**2 for each in found] == pytest.approx([30, 50, 80])
    assert found[1].interval == wilson(4, 5) and found[1].outcome.decided == 5
    assert win_rates(store, 9) == (found, found[2].distance)
    assert [each.round for each in win_rates(store, 4)[0]] == [3] and win_rates(store, 4)[1] == found[0].distance
    (store.folder / "parent").mkdir()
    (store.folder / "parent" / "parent.json").write_text('{"run": "b", "round": 7}')
    assert [each.round for each in win_rates(store)[0]] == [5, 8]
