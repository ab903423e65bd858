"""What a person likes, guessed from all ratings so far: a Gaussian process on what can be seen in an image.

A rating is modelled as  taste(image) + prompt + noise.  The taste is linear in what is seen (:func:`looks`), with one weight for each kind of looks;
the prompt's own term takes up that people judge whole images, so that a prompt they like does not pass for a look they like; weights and noise are
those that are most likely by the ratings and by what is usual (:class:`Evidence`; Rasmussen & Williams 2006, sections 2.7 and 5.4). All answers are
averages over what the ratings leave open.

As DDPO compares the images of one prompt, what counts is the taste's differences within a prompt: :attr:`Guess.known` is how much of them the ratings
explain, and :meth:`Taste.choose` shows those images whose ratings would tell most of what is left.

Ratings that others gave elsewhere can help: each of these raters has prompts' terms and a scale of their own (:func:`on_one_scale`), and a taste that
goes together with the one in question as far as they agree (:class:`Alike`; Bonilla, Chai & Williams 2008, "Multi-task Gaussian Process Prediction").
How far each does is found with the variances, from the ratings of both: of few that is a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from rewards.pairs import CHANCE

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Rows = np.ndarray[tuple[int, ...], np.dtype[np.signedinteger[Any]]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Looks = Mapping[str, Array]
"""What is seen in n images: kinds of looks, each (n, width)."""

SIDE = 64
"""Images are looked at in this size: people judge a board's thumbnails by what is left of them."""
ENOUGH = 256
"""Ratings from which weights and noise are found; the rest of the ratings then counts as well."""
FOLDS = 4
"""Into so many parts ratings are divided to find how well those of one part are guessed by what the others say of weights and noise."""
OWN = ""
"""The name of those whose taste is in question; names of several such people begin with a slash. All others are raters from elsewhere."""
USUAL = 0.5
"""The variance of opinions from -1 to 1 within prompts where nothing is known of it."""
GROUPS = 6
"""So many other raters, those who rated most, have a share of the taste of their own; the rest have one together."""
A_PRIORI = dict(kind=(0.01, 1.5), mark=(0.1, 1.0), noise=(0.6, 1.0))
"""The variances of each kind of looks, of prompts, and of the noise that are usual, as shares of the ratings' variance, and the standard deviations
of their logarithms. Sixteen thumbs alone would be explained by whichever kind happens to fit them; this way all kinds have a little weight until
there are reasons (measured by ``benchmarks/guesses.py``)."""
WITHIN = (0.01, 0.99)
"""Nobody has less or more of another one's taste."""
JITTER = 1e-6
"""Of the ratings' variance, added to each one's own while variances are found."""
STEADY = 4.0
"""A scale counts as if so many differences of the usual size had been seen before."""
SURE = 1.28
"""So many standard errors below what was found lies the truth at least, nine times of ten."""
BEFOREHAND = (52, 80)
"""So many guesses are taken for right, of so many, before there are any: most tastes can be seen in some way, and a hundred noisy thumbs, of images
that are chosen to be hard to guess, prove little (benchmarks/NOTEBOOK.md, 2026-11-30, night)."""
KINDS = ("whole", "rings", "colours", "edges")
"""What :func:`looks` gives, in its order."""
AT_RANDOM = 0.25
"""The share of a board that is drawn at random, so that what is known of all images does not rest on chosen ones alone."""
AIM = 0.5
"""The share of the taste's differences that a person is asked to rate for."""


# --- what is seen ---------------------------------------------------------------------------------------------------------------


def looks(images: Sequence[Image.Image]) -> dict[str, Array]:
    """What anybody can see of images, without a network: colour and texture as a whole, in rings around the centre, and in a grid.

    ============ ===== ==============================================================================================
    kind         width
    ============ ===== ==============================================================================================
    whole        52    means, deviations and mean differences of neighbours, at four scales
    rings        36    means, deviations and edges in four square rings, from the border to the centre
    colours      64    mean colours in a grid of 4 x 4
    edges        64    how much edge there is in a grid of 8 x 8, as logarithms
    ============ ===== ==============================================================================================

    of luminance, red against green, yellow against blue, and saturation. Each image is looked at alone: beside others, sums round otherwise.
    """
    return joined(_looks(image) for image in images)


def _looks(image: Image.Image) -> dict[str, Array]:
    rgb = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)[None] / 255
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    luminance = rgb @ np.array([0.2126, 0.7152, 0.0722])
    seen = np.stack([luminance, red - green, (red + green) / 2 - blue, rgb.max(-1) - rgb.min(-1)], -1)
    down, across = (np.abs(np.diff(luminance, axis=axis, append=np.take(luminance, [-1], axis))) for axis in (1, 2))
    edge = (down + across)[..., None]
    return dict(whole=_whole(seen), rings=_rings(seen, edge), colours=_grid(seen, 4), edges=np.log(_grid(edge, 8) + 0.01))


def _blocks(pixels: Array, count: int) -> Array:
    """Means over count x count blocks of (n, side, side, c) pixels, (n, count, count, c)."""
    n, side, _, channels = pixels.shape
    found: Array = pixels.reshape(n, count, side // count, count, side // count, channels).mean((2, 4))
    return found


def _grid(pixels: Array, count: int) -> Array:
    return _blocks(pixels, count).reshape(len(pixels), -1)


def _whole(seen: Array) -> Array:
    found = [seen.mean((1, 2))]
    for count in (SIDE, SIDE // 2, SIDE // 4, SIDE // 8):
        scaled = _blocks(seen, count)
        found += [scaled.std((1, 2)), np.abs(np.diff(scaled, axis=2)).mean((1, 2)), np.abs(np.diff(scaled, axis=1)).mean((1, 2))]
    return np.concatenate(found, 1)


def _rings(seen: Array, edge: Array) -> Array:
    row, column = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    ring = ((SIDE / 2 - np.maximum(np.abs(row), np.abs(column))) // (SIDE / 8)).astype(int)
    parts = [(seen[:, ring == i], edge[:, ring == i]) for i in range(4)]
    return np.concatenate([each for inside, edges in parts for each in (inside.mean(1), inside.std(1), edges.mean(1))], 1)


# --- what is liked --------------------------------------------------------------------------------------------------------------


Does = TypeVar("Does", bound=Callable[..., Any])


def on_one_core(function: Does) -> Does:
    """The function, with linear algebra in one thread: in hundreds of small products several threads wait for one another, beside other work forty
    times as long as one takes."""
    found: Does = threadpool_limits.wrap(limits=1, user_api="blas")(function)
    return found


@dataclass
class Linear:
    """The covariance of a linear function of some columns: ``variance`` times their scalar product."""

    first: int
    last: int
    variance: float

    def products(self, x: Array, y: Array) -> Array:
        """Scalar products of the columns, (n, m)."""
        found: Array = x[:, self.first : self.last] @ y[:, self.first : self.last].T
        return found

    def __call__(self, x: Array, y: Array) -> Array:
        return self.variance * self.products(x, y)

    def diag(self, x: Array) -> Array:
        found: Array = self.variance * (x[:, self.first : self.last] ** 2).sum(1)
        return found


@dataclass
class Alike:
    """How raters' tastes go together, as correlations from 0 to 1.

    Each other rater r has a share a_r of the taste in question; of what is left of theirs, a share c is common to all others, who may be of one mind
    that is not yours: the correlation is a_r with those in question, a_r a_s + c² √((1 − a_r²)(1 − a_s²)) between two others, and 1 of a rater with
    themselves. Each is a sum of two common factors and one of the rater's own, so that it is a covariance whatever the shares are. (With the first
    factor alone, others who agree among themselves would pass for people who agree with you.)
    """

    whose: int
    """The column that says whose a rating is: 0 is those in question."""
    agreement: Array
    """a of those in question, which is 1, then of each other rater."""
    common: float
    """c"""

    def loads(self) -> Array:
        """How much each rater, those in question first, has of the two factors, (raters, 2)."""
        found: Array = np.stack([self.agreement, self.common * np.sqrt(1 - self.agreement**2)], 1)
        return found

    def __call__(self, x: Array, y: Array) -> Array:
        mine, other, loads = x[:, self.whose].astype(int), y[:, self.whose].astype(int), self.loads()
        found: Array = np.where(mine[:, None] == other, 1.0, loads[mine] @ loads[other].T)
        return found


@dataclass
class Shared(Linear):
    """A linear function of some columns that raters share as far as they are alike."""

    alike: Alike

    def __call__(self, x: Array, y: Array) -> Array:
        return super().__call__(x, y) * self.alike(x, y)


def covariance(parts: Sequence[Linear], x: Array, y: Array) -> Array:
    """The covariance of the sum of some parts, (n, m)."""
    found: Array = sum((part(x, y) for part in parts), start=np.zeros((len(x), len(y))))
    return found


class Evidence:
    """How likely some ratings are by the variances and by how alike raters are, and how likely the variances are by :data:`A_PRIORI`: minus the
    logarithm of both densities but for a constant, with the derivatives (Rasmussen & Williams 2006, equations 5.8 and 5.9). The products of what is
    seen are made once.

    Its variables are the logarithms of the variances (of the kinds of looks, of prompts, of the noise), each group's share of the taste in question,
    and what the others have in common; the last two where there are other raters.
    """

    def __init__(self, x: Array, y: Array, kinds: Sequence[Linear], marks: Linear, whose: Rows, groups: Rows, noise: Array | float = 1.0) -> None:
        """
        Args:
            x, y: what is seen (n, d), and the ratings (n,), about their mean and in units of their standard deviation.
            kinds, marks: the parts of the taste, and the prompts' part.
            whose: each row's rater, (n,), 0 for those in question.
            groups: the group whose share each rater has, (raters,); -1 for those in question.
            noise: how many times the noise's variance each row has, (n,).
        """
        self.y, self.groups, self.whose, self.noise = y, groups, whose, np.broadcast_to(noise, y.shape)
        self.products = np.stack([part.products(x, x) for part in (*kinds, marks)])
        self.others = bool((whose > 0).any())
        self.differ = whose[:, None] != whose
        usual, self.apart = np.array([*[A_PRIORI["kind"]] * len(kinds), A_PRIORI["mark"], A_PRIORI["noise"]]).T
        self.usual = np.log(usual)

    def __call__(self, variables: Array) -> tuple[float, Array]:
        count = len(self.products)
        variances = np.exp(variables[: count + 1])
        taste = np.tensordot(variances[: count - 1], self.products[:-1], 1)
        alike, loads, shares = np.ones((1, 1)), np.zeros((0, 2)), np.zeros(0)
        if self.others:
            shares = np.where(self.groups < 0, 1.0, variables[count + 1 :][self.groups])
            loads = Alike(0, shares, float(variables[-1])).loads()[self.whose]
            alike = np.asarray(np.where(self.differ, loads @ loads.T, 1.0))
        covariance = taste * alike + variances[count - 1] * self.products[-1]
        covariance[np.diag_indices_from(covariance)] += variances[-1] * self.noise + JITTER
        lower = factored(covariance)
        inverse = inverted(lower)
        weights = inverse @ self.y
        unusual = (variables[: count + 1] - self.usual) / self.apart
        value = float(self.y @ weights) / 2 + float(np.log(np.diag(lower)).sum()) + float(unusual @ unusual) / 2
        bend = (inverse - np.outer(weights, weights)) / 2
        of_kinds = self.products[:-1].reshape(count - 1, -1) @ (bend * alike).ravel()
        slopes = variances * np.array([*of_kinds, np.vdot(bend, self.products[-1]), (np.diag(bend) * self.noise).sum()]) + unusual / self.apart
        if not self.others:
            return value, slopes
        by_loads = 2 * (bend * taste * self.differ) @ loads
        rest, common, own = np.sqrt(1 - shares**2)[self.whose], variables[-1], shares[self.whose]
        by_share = by_loads[:, 0] - by_loads[:, 1] * common * own / np.maximum(rest, 1e-9)
        group = self.groups[self.whose]
        found = np.zeros(len(variables) - len(slopes))
        np.add.at(found, group[group >= 0], by_share[group >= 0])
        found[-1] = (by_loads[:, 1] * rest)[group >= 0].sum()
        return value, np.array([*slopes, *found])


def factored(covariance: Array) -> Array:
    """The lower Cholesky factor of a covariance, (n, n). (Rows here are LAPACK's columns, so that nothing is turned round: its upper factor is this.)

    Raises:
        LinAlgError: it is none.
    """
    upper, failed = dpotrf(covariance.T, lower=0)
    if failed:
        raise np.linalg.LinAlgError("this is no covariance: it is not positive definite")
    lower: Array = upper.T
    return lower


def inverted(lower: Array) -> Array:
    """The inverse of a covariance, (n, n), from its lower Cholesky factor."""
    found, _ = dpotri(lower.T, lower=0)  # one triangle; the other one is 0
    whole: Array = found + found.T
    whole[np.diag_indices_from(whole)] /= 2
    return whole


def is_own(name: str) -> bool:
    """Whether it is a name of those whose taste is in question."""
    return name.partition("/")[0] == OWN


def on_one_scale(opinions: Array, whose: Sequence[str], prompts: Sequence[str]) -> Array:
    """Opinions, (n,), of which those of other raters are brought to the level and the spread of one's own; one's own stay as they are.

    A rater's spread is that of their differences within prompts; where there are few it is drawn towards that of their source (what their name says
    before the first slash), whose unit nobody knows, and one's own towards :data:`USUAL`.
    Where a source has no differences within prompts, as of one image of each, its spread is that around its raters' means. Without own opinions,
    everybody's level and spread take the place of one's own, where all opinions are from -1 to 1.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(whose):
        rows.setdefault(name, []).append(row)
    squares = {name: _squares(opinions[of], [prompts[i] for i in of]) for name, of in rows.items()}
    level, width = 0.0, np.sqrt(USUAL)
    if OWN in rows:
        level, width = opinions[rows[OWN]].mean(), _drawn(*squares[OWN], USUAL)
    elif len(opinions) and np.abs(opinions).max() <= 1:
        level, width = opinions.mean(), np.sqrt(_pooled(squares.values()) or USUAL)
    found = opinions.copy()
    for source in {name.partition("/")[0] for name in rows if name != OWN}:
        names = [name for name in rows if name != OWN and name.partition("/")[0] == source]
        usual = _pooled(squares[name] for name in names) or _pooled(_squares(opinions[rows[name]], [""] * len(rows[name])) for name in names)
        for name in names:
            apart = (opinions[rows[name]] - opinions[rows[name]].mean()) / (_drawn(*squares[name], usual) if usual else 1.0)
            found[rows[name]] = level + apart * width
    return found


def _pooled(squares: Iterable[tuple[float, int]]) -> float:
    """The variance that several sums of squares come to; 0 where there is none."""
    total, degrees = np.sum([(0.0, 0), *squares], 0)
    return float(total / degrees) if degrees and total > 1e-12 else 0.0


def _drawn(square: float, degrees: int, usual: float) -> float:
    """A standard deviation from a sum of squares, drawn towards the usual variance, on the scale of logarithms."""
    own = square / degrees if square > 1e-12 else usual
    return float(np.exp((STEADY * np.log(usual) + degrees * np.log(own)) / (STEADY + degrees) / 2))


def _squares(opinions: Array, prompts: Sequence[str]) -> tuple[float, int]:
    """The sum of squared differences from prompts' means, and its degrees of freedom."""
    total = 0.0
    for prompt in set(prompts):
        own = opinions[[other == prompt for other in prompts]]
        total += float(((own - own.mean()) ** 2).sum())
    return total, len(prompts) - len(set(prompts))


@dataclass(frozen=True)
class Guess:
    """What is guessed of n images."""

    mean: Array
    """The taste, (n,), in units of opinions; only differences within a prompt mean something."""
    rating: Array
    """What would be said of them, (n,): the taste, and how much their prompt is liked as a whole."""
    std: Array
    """How unsure that is, (n,)."""
    certain: Array
    """The share of the taste's differences among the images of each one's prompt that the ratings explain, (n,), 0 to 1."""
    known: float
    """The share of the taste's differences within a prompt that the ratings explain, 0 to 1, by the model's own account."""
    alone: float
    """The share that one's own ratings would explain without those of others."""


class Accuracy(NamedTuple):
    """How often the better one of two images of a prompt is picked."""

    share: float
    """Of the pairs that were tested."""
    least: float
    """What it is at least, nine times of ten."""
    likely: float
    """What is to be expected, with :data:`BEFOREHAND`."""
    pairs: int
    """How many were tested."""


UNTESTED = Accuracy(CHANCE, CHANCE, CHANCE, 0)


class Taste:
    """What some ratings say of a person's taste."""

    @on_one_core
    def __init__(
        self,
        seen: Looks,
        prompts: Sequence[str],
        opinions: Sequence[float],
        everything: Looks | None = None,
        whose: Sequence[str] | None = None,
        counts: Sequence[float] | None = None,
    ) -> None:
        """
        Args:
            seen: the looks of the n rated images.
            prompts: their prompts.
            opinions: one number each, the larger the better; finite.
            everything: the looks of all images by which looks are standardised; by default the rated ones.
            whose: who said so: :data:`OWN`, those whose taste is in question (the default), or the name of another rater. Where several people are in
                question, a name of theirs that begins with a slash: what is said under one name is on one level, as one may be hard to please.
            counts: as how many people each opinion counts, above 0: so many times smaller is the variance of its noise; by default 1.
        """
        reference = everything or seen
        whose = [OWN] * len(prompts) if whose is None else whose
        self.scale = {kind: (values.mean(0), values.std(0) + 1e-6) for kind, values in reference.items() if values.shape[1]}
        self.own = np.array([is_own(name) for name in whose], dtype=bool)
        self.prompts = {mark: i for i, mark in enumerate(dict.fromkeys(zip(whose, prompts, strict=True)))}
        self.opinions = on_one_scale(np.asarray(opinions, dtype=np.float64), [OWN if is_own(name) else name for name in whose], prompts)
        self.middle = float(self.opinions.mean()) if len(self.opinions) else 0.0
        self._noises = 1.0 / np.asarray([1.0] * len(prompts) if counts is None else counts, dtype=np.float64)
        times = Counter(name for name in whose if not is_own(name))
        self.raters = [OWN, *times]
        most = [name for name, _ in times.most_common(GROUPS)]
        self.groups = np.array([-1, *(most.index(name) if name in most else GROUPS for name in times)])
        self._ends = np.cumsum([0, *(len(mean) for mean, _ in self.scale.values())])
        own = [int(end) for kind, end in zip(self.scale, self._ends[1:], strict=True) if kind in KINDS]
        self._looks = max(own, default=int(self._ends[-1]))  # the columns of looks, whatever networks see beside them
        self.x = self._inputs(seen, prompts, whose)
        self.parts, self.noise = self._fitted(np.arange(len(self.x)), ENOUGH)
        self._inverse = self._inverted()
        self._weights = self._inverse @ (self.opinions - self.middle)

    # --- fitting ----------------------------------------------------------------------------------------------------------------

    def _columns(self, seen: Looks) -> Array:
        """Looks as columns, (n, d): standardised, each kind of an expected squared length of 1."""
        return np.concatenate([(seen[kind] - mean) / std / np.sqrt(len(mean)) for kind, (mean, std) in self.scale.items()], 1)

    def _marks(self, prompts: Sequence[str], whose: Sequence[str]) -> Array:
        """One column for each prompt that somebody rated, 1 where an image is of it and theirs. To :data:`OWN` it is all of theirs alike, where
        those in question have several names."""
        columns: dict[tuple[str, str], list[int]] = {}
        for (name, prompt), column in self.prompts.items():
            for who in {name, OWN} if is_own(name) else {name}:
                columns.setdefault((who, prompt), []).append(column)
        found = np.zeros((len(prompts), len(self.prompts)))
        for row, mark in enumerate(zip(whose, prompts, strict=True)):
            if mark in columns:
                found[row, columns[mark]] = 1.0 / len(columns[mark])
        return found

    def _inputs(self, seen: Looks, prompts: Sequence[str], whose: Sequence[str] | None = None) -> Array:
        """What the model sees, (n, d): looks, marks, and in the last column whose it is, 0 for those whose taste is in question."""
        whose = [OWN] * len(prompts) if whose is None else whose
        numbers = np.array([0.0 if is_own(name) else float(self.raters.index(name)) for name in whose]).reshape(len(prompts), 1)
        return np.concatenate([self._columns(seen), self._marks(prompts, whose), numbers], 1)

    def _fitted(self, rows: Rows, enough: int) -> tuple[list[Linear], float]:
        """The kinds' and the prompts' variances, how alike raters are, and the noise's variance: those that are most likely by some of the ratings,
        or by ``enough`` of them. Of raters who are not among them nothing is taken."""
        looks, last = int(self._ends[-1]), self.x.shape[1] - 1
        spread = float(self.opinions[rows].var()) if len(rows) else 0.0
        kind, mark, noise = (variance * (spread if spread > 1e-12 else USUAL) for variance, _ in A_PRIORI.values())
        kinds = [Linear(int(first), int(end), kind) for first, end in zip(self._ends[:-1], self._ends[1:], strict=True)]
        marks, alike = Linear(looks, last, mark), Alike(last, np.where(self.groups < 0, 1.0, 0.7), 0.5)
        if spread <= 1e-12:
            return [*self._shared(kinds, alike), marks], noise
        own, others = rows[self.own[rows]], rows[~self.own[rows]]
        of_others = max(enough - len(own), enough // 4) if len(others) else 0
        rows = np.concatenate([_evenly(own, enough - of_others), _evenly(others, of_others)])
        whose, groups = self.x[rows, last].astype(int), int(self.groups.max()) + 1
        evidence = Evidence(self.x[rows], (self.opinions[rows] - self.middle) / np.sqrt(spread), kinds, marks, whose, self.groups, self._noises[rows])
        start = [*evidence.usual]
        bounds = [*[(np.log(1e-4), np.log(1e2))] * (len(kinds) + 1), (np.log(1e-3), np.log(1e1))]
        if evidence.others:
            start, bounds = [*start, *[0.7] * groups, 0.5], [*bounds, *[WITHIN] * groups, (0.0, 1.0)]
        found = minimize(evidence, start, jac=True, method="L-BFGS-B", bounds=bounds).x
        for part, variance in zip((*kinds, marks), np.exp(found), strict=False):
            part.variance = float(variance * spread)
        alike.agreement[1:] = 0.0
        if evidence.others:
            for group in set(self.groups[whose].tolist()) - {-1}:
                alike.agreement[self.groups == group] = found[len(kinds) + 2 + group]
            alike.common = float(found[-1])
        return [*self._shared(kinds, alike), marks], float(np.exp(found[len(kinds) + 1]) * spread)

    def _shared(self, kinds: Sequence[Linear], alike: Alike) -> list[Linear]:
        """The parts of the taste, among several raters as far as they are alike."""
        return list(kinds) if self.own.all() else [Shared(kind.first, kind.last, kind.variance, alike) for kind in kinds]

    def _factored(self, parts: Sequence[Linear], noise: float, rows: Any = slice(None)) -> Array:
        """The lower Cholesky factor of the covariance of the ratings, (n, n), or of some of them, by some variances."""
        x = self.x[rows]
        found = covariance(parts, x, x)
        found[np.diag_indices_from(found)] += noise * self._noises[rows]
        return factored(found)

    def _inverted(self, rows: Any = slice(None)) -> Array:
        """The inverse covariance of the ratings, (n, n), or of some of them."""
        lower = self._factored(self.parts, self.noise, rows)
        return inverted(lower) if len(lower) else lower

    def _of_taste(self, x: Array, y: Array) -> Array:
        """Prior covariance of tastes, (n, m)."""
        return covariance(self.parts[: len(self.scale)], x, y)

    def _of_ratings(self, x: Array, y: Array) -> Array:
        """Prior covariance of ratings without their noise, (n, m)."""
        return covariance(self.parts, x, y)

    # --- answers ----------------------------------------------------------------------------------------------------------------

    @on_one_core
    def guess(self, seen: Looks, prompts: Sequence[str]) -> Guess:
        """What is guessed of n images, from their looks and prompts."""
        x = self._inputs(seen, prompts)
        across = self._of_taste(x, self.x)
        prior = self._of_taste(x, x)
        left = prior - across @ self._inverse @ across.T
        known = alone = _explained(prior, left, prompts)
        if not self.own.all():
            inverse = self._inverted(self.own)
            alone = _explained(prior, prior - across[:, self.own] @ inverse @ across[:, self.own].T, prompts)
        certain = np.zeros(len(prompts))
        for prompt in dict.fromkeys(prompts):
            rows = [i for i, other in enumerate(prompts) if other == prompt]
            certain[rows] = _explained(prior[np.ix_(rows, rows)], left[np.ix_(rows, rows)], [prompt] * len(rows))
        rating = self.middle + self._of_ratings(x, self.x) @ self._weights
        return Guess(across @ self._weights, rating, np.sqrt(np.maximum(np.diag(left), 0.0)), certain, known, alone)

    @on_one_core
    def expect(self, seen: Looks, prompts: Sequence[str]) -> tuple[Array, Array]:
        """What would be said of n images on average, (n,), and how unsure that is, (n,)."""
        x = self._inputs(seen, prompts)
        across = self._of_ratings(x, self.x)
        strange = 1 - x[:, self._ends[-1] : -1].sum(1)  # a prompt that nobody has rated has a term of its own
        prior = sum((part.diag(x) for part in self.parts), start=self.parts[-1].variance * strange)
        left = prior - (across @ self._inverse * across).sum(1)
        return self.middle + across @ self._weights, np.sqrt(np.maximum(left, 0.0))

    @on_one_core
    def nearest(self, seen: Looks, count: int, but: int | None = None) -> list[tuple[int, float]]:
        """The rated images that look most like one in what counts for the taste: their rows, and how the tastes for both go together a priori, as a
        correlation, from 1 down. ``but`` is the image's own row, if it is rated."""
        x = self._inputs(seen, [""])
        own = np.sqrt(sum(part.diag(x) for part in self.parts[: len(self.scale)]))
        rated = np.sqrt(sum(part.diag(self.x) for part in self.parts[: len(self.scale)]))
        alike = self._of_taste(x, self.x)[0] / np.maximum(own * rated, 1e-12)
        order = [int(i) for i in (-alike).argsort(kind="stable") if i != but]
        return [(i, float(np.clip(alike[i], -1.0, 1.0))) for i in order[:count]]

    @on_one_core
    def choose(self, seen: Looks, prompts: Sequence[str], count: int, seed: int) -> list[int]:
        """Which ``count`` of n images to show, in order of position: a share at random, and each further one so that its rating would tell most of
        how tastes differ within the prompts of all of them (the greedy A-optimal design; Chaloner & Verdinelli 1995, section 2.2). None is alone of
        its prompt, where that can be."""
        n = len(prompts)
        rng = np.random.default_rng(seed)
        x = self._inputs(seen, prompts)
        to_taste, to_rating = self._of_taste(x, self.x), self._of_ratings(x, self.x)
        same = np.array([[float(a == b) for b in prompts] for a in prompts])
        marks = self._marks(prompts, [OWN] * n)
        new = same - marks @ marks.T  # prompts that nobody has rated have a term of their own too
        taste = self._of_taste(x, x) - to_taste @ self._inverse @ to_rating.T  # of tastes with ratings
        rating = self._of_ratings(x, x) + self.parts[-1].variance * new - to_rating @ self._inverse @ to_rating.T
        centre = np.eye(n) - same / same.sum(1, keepdims=True)
        chosen: list[int] = []
        drawn = rng.permutation(n)[: round(AT_RANDOM * count)].tolist()
        while len(chosen) < min(count, n):
            told = ((centre @ taste) ** 2).sum(0) / (np.diag(rating) + self.noise)
            told[~_in_company(prompts, chosen, count)] -= told.max() + 1.0
            told[chosen] = -np.inf
            best = drawn[len(chosen)] if len(chosen) < len(drawn) else int(told.argmax())
            weight = rating[best] / (rating[best, best] + self.noise)
            taste = taste - np.outer(taste[:, best], weight)
            rating = rating - np.outer(rating[:, best], weight)
            chosen.append(best)
        return sorted(chosen)

    @on_one_core
    def accuracy(self) -> Accuracy:
        """How often the better one of two images of a prompt with different opinions is guessed. Without a pair: :data:`UNTESTED`.

        A pair is guessed from all ratings but its own (leave-two-out; Rasmussen & Williams 2006, section 5.4.2), by the variances that the ratings
        of other prompts make likely: those that its own ones make likely have seen it. (Left out alone, a rating would be guessed too low for being
        high: what is left of its prompt is then lower.) Nor by what was said elsewhere of its prompt's own pictures, as in runs that began with the
        same seed: to know a picture again is no taste. Pairs share their ratings: they count for half as many guesses as there are differences within
        prompts. Pairs of other raters are no proof.
        """
        prompt = self.x[:, self._ends[-1] : -1].argmax(1) if len(self.prompts) else np.zeros(0, dtype=int)
        _, picture = np.unique(self.x[:, : self._looks], axis=0, return_inverse=True)  # those of one look the same to the last bit
        picture = picture.ravel()
        right: list[float] = []
        for fold in range(min(FOLDS, len(self.prompts))):
            inside = prompt % FOLDS == fold
            own = inside & self.own
            twins = ~self.own & np.isin(picture, picture[own])
            asked, others = np.nonzero(own)[0], np.nonzero(~own & ~twins)[0]
            same = prompt[asked][:, None] == prompt[asked]
            first, second = np.nonzero(same & (self.opinions[asked][:, None] > self.opinions[asked] + 1e-9))
            if len(first):
                right += self._guessed(others, asked, first, second, *self._fitted(others[~inside[others]], ENOUGH // 2)).tolist()
        if not right:
            return UNTESTED
        share, guesses = float(np.mean(right)), (int(self.own.sum()) - len(set(prompt[self.own].tolist()))) / 2
        p = (share * guesses + 1) / (guesses + 2)  # one more that is right and one that is wrong: few are never sure
        least = p - SURE * float(np.sqrt(p * (1 - p) / (guesses + 2)))
        return Accuracy(share, least, (share * guesses + BEFOREHAND[0]) / (guesses + BEFOREHAND[1]), len(right))

    def _guessed(self, others: Rows, asked: Rows, first: Rows, second: Rows, parts: Sequence[Linear], noise: float) -> Array:
        """For pairs of the ratings ``asked``, by their places among these: 1 where the first is guessed to be better by all ``others`` and by those
        asked but the pair's own, 0 where not, by some variances."""
        rows = np.concatenate([others, asked])
        lower, opinions = self._factored(parts, noise, rows), self.opinions[rows] - self.middle
        block = lower[len(others) :, len(others) :]  # as those asked come last, it is the factor of what the others leave open of them
        inverse = inverted(block)
        weights = inverse @ (block @ solve_triangular(lower, opinions, lower=True, check_finite=False)[len(others) :])
        # y - guess without the pair = [C^-1]_pair^-1 [C^-1 y]_pair
        own, other = np.diag(inverse)[first], np.diag(inverse)[second]
        both, left, right = inverse[first, second], weights[first], weights[second]
        gap = (other * left - both * right - own * right + both * left) / (own * other - both**2)
        found: Array = np.sign((self.opinions[asked[first]] - self.opinions[asked[second]] - gap).round(12)) / 2 + 0.5
        return found


def _in_company(prompts: Sequence[str], chosen: Sequence[int], count: int) -> Bools:
    """Which images can come next on a board of ``count`` so that none needs to stay alone of its prompt."""
    times = Counter(prompts[i] for i in chosen)
    alone = sum(n == 1 for n in times.values())
    after = np.array([alone + {0: 1, 1: -1}.get(times[prompt], 0) for prompt in prompts])
    return after < count - len(chosen)


def _evenly(rows: Rows, count: int) -> Rows:
    """So many of some rows, from all over them."""
    found: Rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    return found


def _explained(prior: Array, left: Array, prompts: Sequence[str]) -> float:
    """The share of differences within prompts, 0 to 1, that is not left of what there was before."""
    before, after = _within(prior, prompts), _within(left, prompts)
    return float(np.clip(1 - after / before, 0.0, 1.0)) if before > 0 else 0.0


def _within(covariance: Array, prompts: Sequence[str]) -> float:
    """The variance of differences within prompts: the trace of a covariance whose prompts' means are taken away."""
    total = float(np.trace(covariance))
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        total -= float(covariance[np.ix_(rows, rows)].sum()) / len(rows)
    return total


def more(known: float, ratings: int, alone: float | None = None) -> int | None:
    """About how many more ratings it takes to know :data:`AIM` of the taste: signal to noise grows with their number, as fast as one's own ratings
    made it grow. None where nothing is known from these.

    Args:
        known: the share of the taste that is known.
        ratings: how many ratings of one's own there are.
        alone: the share that is known by these; by default all of it.
    """
    alone = known if alone is None else alone
    if min(known, alone) <= 0.01 or not ratings:
        return None
    if known >= AIM:
        return 0
    return round(ratings * (1 - alone) / alone * (AIM / (1 - AIM) - known / (1 - known)))


def joined(parts: Iterable[Looks]) -> dict[str, Array]:
    """The looks of several sets of images as one."""
    found = [part for part in parts if part]
    return {kind: np.concatenate([part[kind] for part in found]) for kind in found[0]} if found else {}
