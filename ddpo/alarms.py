"""What goes wrong in a run, in plain words, from its watched pictures (:mod:`ddpo.monitor`). Pure functions; imports no torch.

Every picture is compared with its own twin, of the same prompt and seed, after an earlier round. A **sign** is one of these, where the change is also
beyond chance (:func:`sure`):

========== =============================================================================================================== ============
sign       what has changed                                                                                                threshold
========== =============================================================================================================== ============
reward     one that is not optimised has fallen since its best round, in standard deviations of the base model's pictures  :data:`FALL`
diversity  the pictures of a prompt differ less than the base model's, as a share                                          :data:`ALIKE`
noise,     it has spread beyond the base model's pictures, in their standard deviations                                    :data:`SPREAD`
flatness,
texture,
clipping
========== =============================================================================================================== ============

**What the reward pays for** is known before anything goes wrong: the correlation, within prompts, of the scores with a measure of the same pictures
(:func:`ddpo.monitor.pays_for`). Where a reward pays for noise or texture (:data:`PAID`), which cover what is in a picture, a smaller spread is a sign
(:data:`PAID_SPREAD`), and less evidence is asked for, since the direction was foretold (:data:`PAID_CHANCE`).

**The alarm** is on where the signs, each counted by how many times its threshold it has, come to :data:`ALARM`: two signs, or one that is twice as
strong. (Where people rate, rewards of taste are not asked: they may want another one. By rewards that know what is to be seen, people
among them, plain or busy pictures are no sign.)

**The best round** is the watched one with the highest reward of those at which no alarm is on; where people rate, the latest of these; else none, and
the way back is to half of the rounds before the alarm (:attr:`Alarm.back`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from types import MappingProxyType

import rewards
from ddpo.records import ProbeRow
from ddpo.store import RunStore

CHANCE = 1e-4
"""How often chance alone may make one measure's sign after one round. All of them together then make an alarm in less than one of a hundred runs
that are watched seventeen times (``python -m benchmarks.alarms --chance``)."""
FALL = 0.5
ALIKE = 0.3
SPREAD = 1.0
ALARM = 2.0

COVERS = ("noise", "texture")
"""What covers the contents of a picture where it spreads. (Incompressibility lost ten points of the pocket model's animals at 1.2 to 3.7 standard
deviations of texture, compressibility at 3 to 5 of flat places: ``benchmarks/NOTEBOOK.md``.)"""
PAID = 0.7
"""A reward pays for what its scores have this correlation with, within prompts."""
PAID_ROUNDS, PAID_FEWEST = 6, 3
"""Over how many rounds the mean correlation is taken, and how many it takes at least."""
PAID_SPREAD = 0.375
PAID_CHANCE = 0.01
PAYS = "pays_for_"
"""How the metrics of these correlations begin."""

DAMAGE = ("noise", "flatness", "texture", "clipping")
"""What an image's pixels say by themselves, each a share. Texture is what is not flat: pictures may grow blank, or busy all over."""
LEAST_SPREAD = 0.01
"""A share that hardly differs among the base model's pictures is compared with this spread."""
NO_MERIT = ("jpeg_compressibility", "jpeg_incompressibility")
"""Rewards of which neither more nor less is better in itself."""
OF_TASTE = ("aesthetic", "image_statistics", "pickscore")
SEEING = ("human", "clip_score", "pickscore", "alignment", "satisfaction")
"""Rewards that know what is to be seen. By them pictures may grow plain or busy and be the better for it; by others that is how they are gamed."""
PLAIN_OR_BUSY = ("flatness", "texture")
SHOWN = 4
"""Pictures that show a sign."""

Series = Mapping[int, Mapping[str, Sequence[float | None]]]
"""By round and by name, the values of the watched pictures by position."""
Paid = Mapping[int, frozenset[str]]
"""By watched round, what the reward pays for."""


@dataclass(frozen=True)
class Sign:
    """One measure that has changed for the worse."""

    name: str
    since: int
    """The round from which it has."""
    strength: float
    """How many times its threshold; at least 1."""
    pictures: tuple[int, ...]
    """The positions at which it shows most, the worst first."""
    change: float = 0.0
    """How far it has moved, in standard deviations of the base model's pictures; of diversity the share that is lost."""
    paid: bool = False
    """Whether the reward pays for it."""


@dataclass(frozen=True)
class Alarm:
    """What is wrong after a round."""

    round: int
    began: int
    """The watched round from which on the alarm has been on."""
    signs: tuple[Sign, ...]
    """The strongest first."""
    rises: bool | None
    """Whether the reward has risen since the signs began; None where people rate."""
    best: int
    """The best round so far; 0 is the base model."""

    @property
    def since(self) -> int:
        """The round since which all signs have grown."""
        return max(sign.since for sign in self.signs)

    @property
    def back(self) -> int:
        """The round to go back to: the best one, or where there is none the one half way to where the alarm began, which nobody has watched, but
        which had less time to go wrong; 0 where there is none either."""
        return self.best or self.began // 2

    @property
    def pictures(self) -> tuple[int, ...]:
        return self.signs[0].pictures

    @property
    def text(self) -> str:
        """What goes wrong, in a sentence or two."""
        others = sum(sign.name not in (*DAMAGE, "diversity") for sign in self.signs)
        fallen = ["diversity"] * any(sign.name == "diversity" for sign in self.signs)
        fallen += [f"{NUMBERS[min(others, len(NUMBERS) - 1)]} other reward{'s' * (others > 1)}"] if others else []
        spread = [SPREADING[sign.name] for sign in self.signs if sign.name in DAMAGE]
        with_why = [SPREADING[sign.name] + ", which it pays for," * sign.paid for sign in self.signs if sign.name in DAMAGE]
        parts = [f"{listed(fallen)} {'have' if len(fallen) > 1 or others > 1 else 'has'} fallen"] if fallen else []
        parts += [f"{listed(with_why)} {'have' if len(spread) > 1 or spread[0].endswith('s') else 'has'} spread"] if spread else []
        since = f"since round {self.since}" if self.since else "since the start"
        what = f"{' and '.join(parts)} {since}"
        start = {True: "The reward still rises, but ", False: "The reward has stopped rising, and ", None: ""}[self.rises]
        best = f"Best round so far: {self.best}." if self.best else "No watched round so far was without an alarm."
        return f"{(start + what)[0].upper()}{(start + what)[1:]}. {best}"


NUMBERS = ("no", "one", "two", "three", "four", "several")
SPREADING = dict(noise="noise", flatness="flat places", texture="texture", clipping="clipped colours")


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- series -----------------------------------------------------------------------------------------------------------------------


def series_of(rows: Sequence[ProbeRow]) -> Series:
    """The watched pictures' values by round, name and position."""
    found: dict[int, dict[str, list[float | None]]] = {}
    for row in rows:
        values = dict(row.found)
        if "flatness" in values:
            values["texture"] = None if values["flatness"] is None else 1 - values["flatness"]
        for name, value in values.items():
            found.setdefault(row.round, {}).setdefault(name, []).append(value)
    return found


def watched(store: RunStore, up_to: int | None = None) -> tuple[Series, dict[int, str]]:
    """The watched pictures' values of a run, up to a round, and what was optimised in each of these rounds."""
    series = series_of([row for row in store.probes() if up_to is None or row.round <= up_to])
    return series, {at: store.reward_at(at) for at in series}


def paid_for(store: RunStore, rounds: Iterable[int]) -> dict[int, frozenset[str]]:
    """What covers pictures (:data:`COVERS`) and is paid for by the reward that is optimised in each of some rounds, by this and earlier rounds'
    scores. Of what people pay for they are the judges."""
    if store.config.shuffle_scores:  # the control learns from no scores
        return dict.fromkeys(rounds, frozenset())
    points, stretches = {name: store.points(PAYS + name) for name in COVERS}, store.reward_stretches()

    def paid(number: int) -> frozenset[str]:
        since, reward = max((stretch for stretch in stretches if stretch[0] <= number), default=stretches[0])
        if "human" in rewards.parts(reward):
            return frozenset()
        found = {name: [value for at, value in each if since <= at <= number and value is not None][-PAID_ROUNDS:] for name, each in points.items()}
        return frozenset(name for name, values in found.items() if len(values) >= PAID_FEWEST and fmean(values) >= PAID)

    return {number: paid(number) for number in rounds}


def diversity_by_prompt(rows: Sequence[ProbeRow]) -> dict[str, list[tuple[int, float]]]:
    """The (round, diversity) points of each prompt of the watched pictures, as a share of the base model's by the same seeds; of a prompt that has
    one picture, or of which the base model's are all alike, none."""
    known: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if (value := row.found.get("diversity")) is not None:
            known.setdefault(row.prompt, {}).setdefault(row.round, []).append(value)
    base = {prompt: fmean(rounds[0]) for prompt, rounds in known.items() if 0 in rounds}
    return {prompt: [(at, fmean(values) / base[prompt]) for at, values in rounds.items()] for prompt, rounds in known.items() if base.get(prompt)}


def spread_of_base(name: str, values: Sequence[float]) -> float | None:
    """The standard deviation by which a measure's moves are told; None where the base model's pictures are all alike."""
    spread = deviation(values, len(values))
    spread = max(spread, LEAST_SPREAD) if name in DAMAGE else spread
    return spread if spread > 1e-9 else None


def mean_at(series: Series, number: int, name: str) -> float | None:
    """A measure's mean over the pictures after a round; None where nothing is known."""
    known = [value for value in series.get(number, {}).get(name, ()) if value is not None]
    return fmean(known) if known else None


def changes(series: Series, name: str, before: int, after: int) -> dict[int, float]:
    """How much each picture's value has changed between two rounds, by position, where both are known."""
    one, other = series.get(before, {}).get(name, ()), series.get(after, {}).get(name, ())
    return {i: b - a for i, (a, b) in enumerate(zip(one, other, strict=False)) if a is not None and b is not None}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """A mean and its standard error, which of a single value is infinite."""
    n = len(values)
    return fmean(values), deviation(values, n - 1) / math.sqrt(n) if n > 1 else math.inf


def student_t(share: float, freedom: int) -> float:
    """The quantile of Student's t distribution: where this share of it lies below."""
    from scipy.special import stdtrit  # here, since it takes a while

    return float(stdtrit(freedom, share))


def deviation(values: Sequence[float], freedom: int) -> float:
    """The standard deviation with so many degrees of freedom. (That of :mod:`statistics` counts in fractions, for which a long run has no time.)"""
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / freedom)


# --- rules ------------------------------------------------------------------------------------------------------------------------


def signs_of(series: Series, rewards_at: Mapping[int, str], paid: Paid = MappingProxyType({})) -> dict[int, tuple[Sign, ...]]:
    """The signs after each watched round, the strongest first.

    Args:
        rewards_at: what is optimised in each of them.
        paid: what the reward pays for by then.
    """
    found: dict[int, tuple[Sign, ...]] = {}
    peaks: dict[str, tuple[int, float]] = {}
    for rounds, at in enumerate(sorted(series)):
        told = [name for name in series[at] if name in peaks and is_told(name, rewards_at[at])]
        signs = [_sign(series, at, name, peaks[name][0], rounds, name in paid.get(at, ())) for name in told]
        found[at] = tuple(sorted((sign for sign in signs if sign), key=lambda sign: -sign.strength))
        for name in series[at]:
            mean = mean_at(series, at, name)
            own = at > 0 and not is_told(name, rewards_at[at])  # a height that was asked for is none to fall from
            if mean is not None and not own and (name not in peaks or _good(name) * mean >= peaks[name][1]):
                peaks[name] = (at, _good(name) * mean)
    return found


def _good(name: str) -> float:
    """1 where more is better, -1 where less is."""
    return -1.0 if name in DAMAGE else 1.0


def is_told(name: str, reward: str) -> bool:
    """Whether a measure can be a sign, while ``reward`` is optimised."""
    asked = rewards.parts(reward)
    if name in PLAIN_OR_BUSY:
        return not any(part in SEEING for part in asked)
    return name not in ("kl", *NO_MERIT, reward, *asked) and not (name in OF_TASTE and "human" in asked)


@lru_cache(maxsize=4096)
def sure(count: int, rounds: int = 1, chance: float = CHANCE) -> float:
    """How many standard errors the mean of ``count`` changes must be from 0, for chance alone to reach that in a share ``chance`` of cases:
    Student's t, where it is a change since the best of so many rounds by Bonferroni's bound. (A bound over all measures and rounds of a run grows
    with the run, until nothing that 12 pictures say is sure: 8.9 standard errors after 17 watched rounds, where five of eight measures had moved by
    twice their threshold.)"""
    return -student_t(chance / rounds, count - 1)


def _sign(series: Series, number: int, name: str, peak: int, rounds: int, paid: bool) -> Sign | None:
    """One measure's sign, where it has one; ``peak`` is its best round of so many before, ``paid`` whether the reward pays for it."""
    base = [value for value in series.get(0, {}).get(name, ()) if value is not None]
    absolute = name == "diversity" or name in DAMAGE
    moved = {i: _good(name) * change for i, change in changes(series, name, 0 if absolute else peak, number).items()}
    if len(moved) < 2 or not base:
        return None
    mean, error = mean_and_error(list(moved.values()))
    threshold = ALIKE if name == "diversity" else PAID_SPREAD if paid else SPREAD if name in DAMAGE else FALL
    unit = fmean(base) if name == "diversity" else spread_of_base(name, base) or math.inf
    change = -mean / unit if unit > 0 else 0.0
    strength = change / threshold
    if strength < 1 - 1e-9 or -mean < sure(len(moved), 1 if absolute else rounds, PAID_CHANCE if paid else CHANCE) * error:
        return None
    return Sign(name, peak, strength, tuple(sorted(moved, key=lambda i: moved[i])[:SHOWN]), change, paid)


def is_on(signs: Sequence[Sign]) -> bool:
    """Whether these make an alarm."""
    return sum(sign.strength for sign in signs) >= ALARM - 1e-9


def best_round(series: Series, rewards_at: Mapping[int, str], up_to: int | None = None, paid: Paid = MappingProxyType({})) -> int:
    """The best watched round, of those up to one; 0 where there is none."""
    return _best(series, signs_of(series, rewards_at, paid), rewards_at, up_to)


def _best(series: Series, found: Mapping[int, Sequence[Sign]], rewards_at: Mapping[int, str], up_to: int | None) -> int:
    good = [at for at, signs in found.items() if at and (up_to is None or at <= up_to) and not is_on(signs)]
    if not good:
        return 0
    reward = rewards_at[good[-1]]
    known = {at: mean for at in good if rewards_at[at] == reward and (mean := mean_at(series, at, reward)) is not None}
    return max(known, key=lambda at: known[at]) if known else good[-1]


def alarm_at(series: Series, number: int, rewards_at: Mapping[int, str], paid: Paid = MappingProxyType({})) -> Alarm | None:
    """The alarm after a watched round; None where all is well."""
    return _alarm(series, signs_of(series, rewards_at, paid), number, rewards_at)


@dataclass(frozen=True)
class Judgement:
    """What is wrong in a run, and what is best."""

    rounds: tuple[int, ...]
    """The watched rounds, the base model's 0 among them."""
    alarms: Mapping[int, Alarm]
    """By the watched rounds after which one is on."""
    best: int
    """The best round; 0 where there is none."""

    @property
    def last(self) -> int:
        """The latest watched round; 0 where there is none."""
        return max(self.rounds, default=0)

    @property
    def begun(self) -> list[Alarm]:
        """Each alarm once, as it was when it began."""
        return [alarm for alarm in self.alarms.values() if alarm.began == alarm.round]


def judged(store: RunStore, up_to: int | None = None) -> Judgement:
    """What the watched pictures of a run say, up to a round; thought over again only when a round was watched or the reward changed."""
    return _judged(store, up_to, (store.probed, tuple(store.reward_stretches())))


@lru_cache(maxsize=32)
def _judged(store: RunStore, up_to: int | None, _stamp: object) -> Judgement:
    series, rewards_at = watched(store, up_to)
    found = signs_of(series, rewards_at, paid_for(store, series))
    alarms = {at: alarm for at in sorted(found) if (alarm := _alarm(series, found, at, rewards_at)) is not None}
    return Judgement(tuple(sorted(series)), alarms, _best(series, found, rewards_at, up_to))


def _alarm(series: Series, found: Mapping[int, Sequence[Sign]], number: int, rewards_at: Mapping[int, str]) -> Alarm | None:
    """The alarm after a round, from the signs after each."""
    signs = tuple(found.get(number, ()))
    if not is_on(signs):
        return None
    began = number
    for at in sorted((at for at in found if at < number), reverse=True):
        if not is_on(found[at]):
            break
        began = at
    now, then = (mean_at(series, at, rewards_at[number]) for at in (number, max(sign.since for sign in signs)))
    rises = None if now is None or then is None else now > then
    return Alarm(number, began, signs, rises, _best(series, found, rewards_at, number))
