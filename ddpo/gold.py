"""Proxy against gold over the distance from the base model: a curve, its peak, and how far both can be trusted. Pure functions; imports no torch.

The proxy is the reward that is optimised; gold is what it stands for and nobody optimises. Gao, Schulman and Hilton 2022 (arXiv 2210.10760, eq. 1)
find that under reinforcement learning both gain

    R(d) = d (α - β log d),    d = √KL(policy ‖ base) in nats,

which rises to its peak at d = exp(α/β - 1) and then falls. Here a gain is in standard deviations of the base model's pictures, and d is that of the
watched ones (:mod:`ddpo.monitor`). The equation is linear in α and β, which are fitted by least squares. The errors take the points for independent;
they share their pictures; and d is taken as exact, which few pictures tell (one in eight of the watched ones). So intervals are too narrow.

Over the same distance lie human win rates: how often people who judged blind preferred a round to the base model (:mod:`ddpo.blind`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import rewards
from ddpo import blind
from ddpo.alarms import DAMAGE, NO_MERIT, OF_TASTE, Series, changes, mean_and_error, mean_at, spread_of_base, student_t, watched
from ddpo.config import RunConfig
from ddpo.store import RunStore

FEWEST = 4
"""Points from which on a curve is fitted: two more than it has parameters."""
SURE = 0.95
"""How often an interval is meant to hold what is true."""
REACH = 3.0
"""A peak is told where its whole interval lies within so many times the furthest distance so far."""
GOLD = dict(aesthetic="image_statistics")
"""The reward that another one was made from, in the pocket world."""


@dataclass(frozen=True)
class Point:
    """A gain at a distance."""

    round: int
    """The watched round, or the board."""
    after: int
    """After how many rounds' updates its pictures were made."""
    distance: float
    """√KL from the base model, in √nats."""
    gain: float
    """In standard deviations of the base model's pictures."""
    error: float
    """The gain's standard error."""


@dataclass(frozen=True)
class Curve:
    """R(d) = d (α - β log d), with the covariance of (α, β) and how many points it was fitted to."""

    alpha: float
    beta: float
    covariance: tuple[tuple[float, float], tuple[float, float]]
    points: int
    reach: float
    """The furthest distance that was fitted."""

    def at(self, distance: float) -> float:
        return distance * (self.alpha - self.beta * math.log(distance)) if distance > 0 else 0.0

    def drawn(self, furthest: float, pieces: int = 80) -> list[tuple[float, float]]:
        """The (distance, gain) of a line from 0 to a distance."""
        return [(d, self.at(d)) for d in (furthest * i / pieces for i in range(pieces + 1))]


@dataclass(frozen=True)
class Peak:
    """Where a curve is highest, and within what (:data:`SURE`)."""

    distance: float
    low: float
    high: float


# --- the curve --------------------------------------------------------------------------------------------------------------------


def fit(points: Iterable[Point]) -> Curve | None:
    """The curve through some points, by least squares; None where they are too few or do not determine it."""
    known = [p for p in points if p.distance > 0 and math.isfinite(p.distance) and math.isfinite(p.gain)]
    if len({p.distance for p in known}) < FEWEST:
        return None
    d, gain = np.array([p.distance for p in known]), np.array([p.gain for p in known])
    design = np.stack([d, -d * np.log(d)], axis=1)
    found, _, rank, _ = np.linalg.lstsq(design, gain, rcond=None)
    if rank < 2:
        return None
    rest = gain - design @ found
    covariance = np.linalg.inv(design.T @ design) * float(rest @ rest) / (len(known) - 2)
    (a, c), (_, b) = covariance.tolist()
    return Curve(float(found[0]), float(found[1]), ((a, c), (c, b)), len(known), float(d.max()))


def peak_of(curve: Curve) -> Peak | None:
    """The curve's peak with Fieller's interval for α/β (Fieller 1954); None where β is not surely above 0, or the peak may lie far beyond
    the points."""
    (aa, ab), (_, bb) = curve.covariance
    quantile = student_t(0.5 + SURE / 2, curve.points - 2) ** 2
    square = curve.beta**2 - quantile * bb
    if curve.beta <= 0 or square <= 0:
        return None
    middle, last = curve.alpha * curve.beta - quantile * ab, curve.alpha**2 - quantile * aa
    root = math.sqrt(max(0.0, middle**2 - square * last))
    low, best, high = ((middle - root) / square, curve.alpha / curve.beta, (middle + root) / square)
    if high - 1 > math.log(REACH * curve.reach):
        return None
    return Peak(math.exp(best - 1), math.exp(low - 1), math.exp(high - 1))


# --- proxy and gold ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProxyAndGold:
    """Both, of one run."""

    reward: str
    """What is optimised."""
    proxy: list[Point]
    """Empty where people rate: their word is gold."""
    gold: list[Point]
    names: tuple[str, ...]
    """What gold is the mean of."""
    now: float
    """The distance after the latest watched round."""


def proxy_and_gold(store: RunStore, up_to: int | None = None) -> ProxyAndGold | None:
    """What is known of a run, up to a round; None where nothing was watched, nothing can stand for gold, or the reward was changed on the way: a
    curve is one reward's."""
    series, _ = watched(store, up_to)
    stretches = [reward for first, reward in store.reward_stretches() if up_to is None or first <= up_to]
    if not series or len(stretches) > 1:
        return None
    reward, known = stretches[0], distances(series)
    now = known[max(known)] if known else 0.0
    if reward == "human":
        found = ProxyAndGold(reward, [], rated_gains(series, boards(store, up_to)), ("human",), now)
    else:
        names = gold_of(store.config, reward, series)
        found = ProxyAndGold(reward, gains(series, [reward]), gains(series, names), names, now)
    return found if any(point.distance > 0 for point in found.gold) else None


@dataclass(frozen=True)
class Side:
    """The proxy's points or gold's, and the curve through them, if there is one, from 0 to the end of the drawing."""

    points: list[Point]
    line: list[tuple[float, float]]

    @property
    def error(self) -> list[Point]:
        """The points whose error is known."""
        return [p for p in self.points if p.round and math.isfinite(p.error)]


def sides(both: ProxyAndGold) -> tuple[Side, Side, Peak | None]:
    """The proxy, gold, and where gold is predicted to peak, to be drawn: as far as the points go, or the peak's interval does."""
    fitted = fit(both.gold)
    peak = peak_of(fitted) if fitted else None
    furthest = max([point.distance for point in (*both.proxy, *both.gold)] + ([1.1 * peak.high] if peak else []))
    proxy, gold = (Side(points, curve.drawn(furthest) if (curve := fit(points)) else []) for points in (both.proxy, both.gold))
    return proxy, gold, peak


def gold_of(config: RunConfig, reward: str, series: Series) -> tuple[str, ...]:
    """The watched rewards whose mean stands for gold while ``reward`` is optimised: the one that it was made from, or all that are not optimised and
    have a merit; where people rate, none of taste."""
    asked = rewards.parts(reward)
    named = GOLD.get(reward)
    if named and config.networks_of(reward) == "pocket" and named in series.get(0, {}):
        return (named,)
    made_from = {name for name, source in GOLD.items() if source in asked}  # they follow what is optimised
    told = {"kl", "diversity", reward, *DAMAGE, *NO_MERIT, *asked, *made_from, *(OF_TASTE if "human" in asked else ())}
    return tuple(name for name in series.get(0, {}) if name not in told)


def distances(series: Series) -> dict[int, float]:
    """√KL after each watched round; 0 at the base model."""
    known = {at: mean_at(series, at, "kl") for at in series}
    return {at: math.sqrt(max(0.0, kl)) for at, kl in known.items() if kl is not None} | ({0: 0.0} if 0 in series else {})


def gains(series: Series, names: Sequence[str]) -> list[Point]:
    """The mean gain of some watched rewards after each watched round, over the pictures, each compared with the base model's of the same seed."""
    spreads = {name: spread_of_base(name, [v for v in series.get(0, {}).get(name, ()) if v is not None] or [0.0]) for name in names}
    found = []
    for at, distance in sorted(distances(series).items()):
        moved: dict[int, list[float]] = {}
        for name, spread in spreads.items():
            for i, change in changes(series, name, 0, at).items() if spread else ():
                moved.setdefault(i, []).append(change / (spread or 1.0))
        if moved:
            mean, error = mean_and_error([math.fsum(each) / len(each) for each in moved.values()])
            found.append(Point(at, at, distance, mean, error))
    return found


@dataclass(frozen=True)
class Board:
    """What people said of a board that tells how good its pictures are, and after how many updates it was made."""

    round: int
    made_after: int
    mean: float
    spread: float
    rated: int

    @property
    def error(self) -> float:
        """The mean's standard error."""
        return self.spread / math.sqrt(self.rated)


def boards(store: RunStore, up_to: int | None = None) -> list[Board]:
    """The boards whose ratings are gold, in order: those that are rated by thumbs or stars, as the first one is. Where people only say which of some
    pictures is better, all boards have one mean; where the boards are chosen, or the run begins with trained weights, the first is no measure."""
    if store.parent or store.config.init_lora or store.config.board_images:
        return []
    metrics = {name: dict(points) for name, points in store.metrics().items()}
    told = {number: _kinds(store, number) for number in sorted({row.round for row in store.ratings()})}
    kinds = {number: each for number, each in told.items() if each}
    first = next(iter(kinds.values()), set())
    found = []
    for number in kinds:
        mean, spread, count = (metrics.get(name, {}).get(number) for name in ("reward_mean", "reward_std", "scored_images"))
        if (up_to is None or number <= up_to) and kinds[number] == first <= {"thumbs", "stars"} and len(first) == 1 and mean is not None and count:
            found.append(Board(number, min(sample.updates for sample in store.samples(number)), mean, spread or 0.0, int(count)))
    return found


def _kinds(store: RunStore, number: int) -> set[str]:
    """The modes of the ratings of a round that count: none that came after its board was closed, nor those of raters who are left out."""
    row = store.round(number)
    said = store.latest_ratings(number, row.closed_rating if row else None)
    return {each.kind for rows in said.values() for each in rows if each.value is not None}


def rated_gains(series: Series, rated: Sequence[Board]) -> list[Point]:
    """People's ratings as gold: each board's mean against the first one's, in its spread, with the errors of both means. A board is made of seeds of
    its own, by the policy that has not learned from it: so its ratings are held out. Between two watched rounds KL is interpolated."""
    known = distances(series)
    if not rated or not rated[0].spread or len(known) < 2:
        return []
    first, found = rated[0], []
    for board in rated:
        if (distance := distance_at(known, board.made_after)) is not None:
            error = 0.0 if board is first else math.hypot(board.error, first.error) / first.spread
            found.append(Point(board.round, board.made_after, distance, (board.mean - first.mean) / first.spread, error))
    return found


def distance_at(known: Mapping[int, float], number: int) -> float | None:
    """√KL after a round, in √nats; between two of the rounds that are known KL is interpolated. None beyond them."""
    rounds = sorted(known)
    if not rounds or not rounds[0] <= number <= rounds[-1]:
        return None
    return math.sqrt(float(np.interp(number, rounds, [known[at] ** 2 for at in rounds])))


@dataclass(frozen=True)
class Won:
    """How a round came out against the base model in blind tests, and at what distance it is."""

    round: int
    distance: float
    """√KL from the base model, in √nats."""
    outcome: blind.Outcome
    """The round is B. A pair is decided where one picture was called better."""
    rate: float
    """The share of decided pairs in which the round's picture was preferred, from 0 to 1; 0.5 is chance."""
    interval: tuple[float, float]
    """Wilson's 95 % interval of the rate."""


def win_rates(store: RunStore, up_to: int | None = None) -> tuple[list[Won], float]:
    """The human win rates of a run over the distance, in order of rounds, and how far the run has come, up to a round.

    A tested round between two watched ones has their interpolated KL, be the later one beyond ``up_to``; one that is newer than all watched ones
    has no distance yet, and is left out. A run that goes on from trained weights is far from the base model at once: there KL is interpolated between
    later watched rounds alone."""
    tested = {number: total for number, total in blind.against_base(blind.results(store.folder)).items() if up_to is None or number <= up_to}
    if not tested:
        return [], 0.0
    known = distances(watched(store)[0])
    if store.parent or store.config.init_lora:
        known.pop(0, None)
    found = []
    for number, total in sorted(tested.items()):
        rate, interval, distance = total.win_rate, total.interval, distance_at(known, number)
        if rate is not None and interval is not None and distance is not None:
            found.append(Won(number, distance, total, rate, interval))
    reached = [distance for at, distance in known.items() if up_to is None or at <= up_to]
    return found, max([*reached, *(each.distance for each in found)], default=0.0)


def words_of(points: Sequence[Point], now: float) -> str:
    """Where gold is predicted to peak, and where the run is, in a sentence; that it cannot be said, where it cannot.

    Args:
        now: the run's distance after the latest watched round.
    """
    curve = fit(points)
    if curve is None:
        have = len({p.distance for p in points if p.distance > 0})
        return f"Too few points to say where gold peaks: {have}, and it takes {FEWEST}." if have < FEWEST else "These points tell no curve of gold."
    peak = peak_of(curve)
    if peak is None:
        return f"No peak of gold can be told yet from these {curve.points} points; the run is at √KL {now:.3g}."
    first = min(p.distance for p in points if p.distance > 0)
    if peak.high < first:
        return f"Gold falls from √KL {first:.3g} on, the first that was watched: its peak lies before. The run is at {now:.3g}."
    place = "before it" if now < peak.low else "beyond it" if now > peak.high else "about there"
    interval = f"{peak.low:.3g} to {peak.high:.3g}, {SURE:.0%} interval".replace("%", " %")
    return f"Gold is predicted to peak at √KL about {peak.distance:.3g} ({interval}); the run is at {now:.3g}, {place}."
