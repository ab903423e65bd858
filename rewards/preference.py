"""What a person likes, guessed from all ratings so far: a Gaussian process on what can be seen in an image.

A rating is modelled as  taste(image) + prompt + noise.  The taste is linear in what is seen (:func:`looks`), with one weight for each kind of looks;
the prompt's own term takes up that people judge whole images, so that a prompt they like does not pass for a look they like; weights and noise are
those that make the ratings most likely (Rasmussen & Williams 2006, sections 2.7 and 5.4; scikit-learn's Gaussian process). All answers are averages
over what the ratings leave open.

As DDPO compares the images of one prompt, what counts is the taste's differences within a prompt: :meth:`Taste.known` is how much of them the ratings
explain, and :meth:`Taste.choose` shows those images whose ratings would tell most of what is left.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel, WhiteKernel
from threadpoolctl import threadpool_limits

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Rows = np.ndarray[tuple[int, ...], np.dtype[np.signedinteger[Any]]]
Looks = Mapping[str, Array]
"""What is seen in n images: kinds of looks, each (n, width)."""

SIDE = 64
"""Images are looked at in this size: people judge a board's thumbnails by what is left of them."""
ENOUGH = 256
"""Ratings from which weights and noise are found; the rest of the ratings then counts as well."""
FOLDS = 4
"""Into so many parts ratings are divided to find how well those of one part are guessed by what the others say of weights and noise."""
CHANCE = 0.5
"""The share of pairs that are guessed right by who knows nothing."""
SURE = 1.28
"""So many standard errors below what was found lies the truth at least, nine times of ten."""
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


class Linear(Kernel):
    """The covariance of a linear function of some columns: ``variance`` times their scalar product."""

    def __init__(self, first: int, last: int, variance: float, variance_bounds: tuple[float, float] = (1e-4, 1e2)) -> None:
        self.first, self.last, self.variance, self.variance_bounds = first, last, variance, variance_bounds

    @property
    def hyperparameter_variance(self) -> Hyperparameter:
        return Hyperparameter("variance", "numeric", self.variance_bounds)

    def __call__(self, x: Array, y: Array | None = None, eval_gradient: bool = False) -> Any:
        left = x[:, self.first : self.last]
        found = self.variance * left @ (left if y is None else y[:, self.first : self.last]).T
        return (found, found[..., None]) if eval_gradient else found  # the derivative by the variance's logarithm is the kernel itself

    def diag(self, x: Array) -> Array:
        found: Array = self.variance * (x[:, self.first : self.last] ** 2).sum(1)
        return found

    def is_stationary(self) -> bool:
        return False


@dataclass(frozen=True)
class Guess:
    """What is guessed of n images."""

    mean: Array
    """The taste, (n,), in units of opinions; only differences within a prompt mean something."""
    rating: Array
    """What would be said of them, (n,): the taste, and how much their prompt is liked as a whole."""
    std: Array
    """How unsure that is, (n,)."""
    known: float
    """The share of the taste's differences within a prompt that the ratings explain, 0 to 1, by the model's own account."""


class Taste:
    """What some ratings say of a person's taste."""

    @on_one_core
    def __init__(self, seen: Looks, prompts: Sequence[str], opinions: Sequence[float], everything: Looks | None = None) -> None:
        """
        Args:
            seen: the looks of the n rated images.
            prompts: their prompts.
            opinions: one number each, the larger the better; finite.
            everything: the looks of all images by which looks are standardised; by default the rated ones.
        """
        reference = everything or seen
        self.scale = {kind: (values.mean(0), values.std(0) + 1e-6) for kind, values in reference.items() if values.shape[1]}
        self.prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        self.opinions = np.asarray(opinions, dtype=np.float64)
        self.middle = float(self.opinions.mean()) if len(self.opinions) else 0.0
        self._ends = np.cumsum([0, *(len(mean) for mean, _ in self.scale.values())])
        self.x = np.concatenate([self._columns(seen), self._marks(prompts)], 1)
        self.parts, self.noise = self._fitted(np.arange(len(self.x)), ENOUGH)
        self._inverse = self._inverted(self.parts, self.noise)
        self._weights = self._inverse @ (self.opinions - self.middle)

    # --- fitting ----------------------------------------------------------------------------------------------------------------

    def _columns(self, seen: Looks) -> Array:
        """Looks as columns, (n, d): standardised, each kind of an expected squared length of 1."""
        return np.concatenate([(seen[kind] - mean) / std / np.sqrt(len(mean)) for kind, (mean, std) in self.scale.items()], 1)

    def _marks(self, prompts: Sequence[str]) -> Array:
        """One column for each rated prompt, 1 where an image is of it."""
        return np.array([[float(prompt == known) for known in self.prompts] for prompt in prompts]).reshape(len(prompts), len(self.prompts))

    def _fitted(self, rows: Rows, enough: int) -> tuple[list[Linear], float]:
        """The kinds' and the prompts' variances, and the noise's: those that make some of the ratings most likely, or ``enough`` of them."""
        bounds = [*zip(self._ends[:-1], self._ends[1:], strict=True), (self._ends[-1], self.x.shape[1])]
        parts = [Linear(int(first), int(last), 0.15) for first, last in bounds]
        spread = float(self.opinions[rows].var()) if len(rows) else 0.0
        if spread < 1e-12:
            return parts, 1.0
        kernel: Kernel = WhiteKernel(0.7, (1e-3, 1e1))
        for part in parts:
            kernel = kernel + part
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(enough, len(rows))).round().astype(int))]
        process = GaussianProcessRegressor(kernel, alpha=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a variance at its bound is an answer
            process.fit(self.x[rows], (self.opinions[rows] - self.middle) / np.sqrt(spread))
        found = np.exp(process.kernel_.theta) * spread
        return [Linear(part.first, part.last, float(variance)) for part, variance in zip(parts, found[1:], strict=True)], float(found[0])

    def _inverted(self, parts: Sequence[Linear], noise: float) -> Array:
        """The inverse covariance of the ratings, (n, n), by some variances."""
        covariance = sum((part(self.x, self.x) for part in parts), start=noise * np.eye(len(self.x)))
        found: Array = np.linalg.inv(covariance)
        return found

    def _of_taste(self, x: Array, y: Array) -> Array:
        """Prior covariance of tastes, (n, m)."""
        found: Array = sum(part(x, y) for part in self.parts[:-1])
        return found

    def _of_ratings(self, x: Array, y: Array) -> Array:
        """Prior covariance of ratings without their noise, (n, m)."""
        found: Array = self._of_taste(x, y) + self.parts[-1](x, y)
        return found

    # --- answers ----------------------------------------------------------------------------------------------------------------

    @on_one_core
    def guess(self, seen: Looks, prompts: Sequence[str]) -> Guess:
        """What is guessed of n images, from their looks and prompts."""
        x = np.concatenate([self._columns(seen), self._marks(prompts)], 1)
        across = self._of_taste(x, self.x)
        prior = self._of_taste(x, x)
        left = prior - across @ self._inverse @ across.T
        before, after = _within(prior, prompts), _within(left, prompts)
        known = 1 - after / before if before > 0 else 0.0
        rating = self.middle + self._of_ratings(x, self.x) @ self._weights
        return Guess(across @ self._weights, rating, np.sqrt(np.maximum(np.diag(left), 0.0)), float(np.clip(known, 0.0, 1.0)))

    @on_one_core
    def choose(self, seen: Looks, prompts: Sequence[str], count: int, seed: int) -> list[int]:
        """Which ``count`` of n images to show, in order of position: a share at random, and each further one so that its rating would tell most of
        how tastes differ within the prompts of all of them (the greedy A-optimal design; Chaloner & Verdinelli 1995, section 2.2). None is alone of
        its prompt, where that can be."""
        n = len(prompts)
        rng = np.random.default_rng(seed)
        x = np.concatenate([self._columns(seen), self._marks(prompts)], 1)
        to_taste, to_rating = self._of_taste(x, self.x), self._of_ratings(x, self.x)
        same = np.array([[float(a == b) for b in prompts] for a in prompts])
        new = same - self._marks(prompts) @ self._marks(prompts).T  # prompts that nobody has rated have a term of their own too
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
    def accuracy(self) -> tuple[float, float, int]:
        """The share of the pairs of one prompt's images with different opinions whose better one is guessed; what it is at least, nine times of ten;
        and how many pairs there are. Without a pair: chance.

        A pair is guessed from all ratings but its own (leave-two-out; Rasmussen & Williams 2006, section 5.4.2), by the variances that the ratings
        of other prompts make likely: those that its own ones make likely have seen it. (Left out alone, a rating would be guessed too low for being
        high: what is left of its prompt is then lower.) Pairs share their ratings: they count for half as many guesses as there are differences
        within prompts.
        """
        prompt = self.x[:, self._ends[-1] :].argmax(1)
        right: list[float] = []
        for fold in range(min(FOLDS, len(self.prompts))):
            inside = prompt % FOLDS == fold
            first, second = np.nonzero((prompt[:, None] == prompt[None]) & inside[:, None] & (self.opinions[:, None] > self.opinions[None] + 1e-9))
            if len(first):
                right += self._guessed(first, second, *self._fitted(np.nonzero(~inside)[0], ENOUGH // 2)).tolist()
        if not right:
            return CHANCE, CHANCE, 0
        share, guesses = float(np.mean(right)), (len(self.opinions) - len(self.prompts)) / 2 + 2
        p = (share * (guesses - 2) + 1) / guesses  # one more that is right and one that is wrong: few are never sure
        return share, p - SURE * float(np.sqrt(p * (1 - p) / guesses)), len(right)

    def _guessed(self, first: Rows, second: Rows, parts: Sequence[Linear], noise: float) -> Array:
        """For pairs of rated images: 1 where the first is guessed to be better without the pair's own ratings, 0 where not, by some variances."""
        inverse = self._inverted(parts, noise)
        weights = inverse @ (self.opinions - self.middle)
        # y - guess without the pair = [C^-1]_pair^-1 [C^-1 y]_pair
        own, other = np.diag(inverse)[first], np.diag(inverse)[second]
        both, left, right = inverse[first, second], weights[first], weights[second]
        gap = (other * left - both * right - own * right + both * left) / (own * other - both**2)
        found: Array = np.sign((self.opinions[first] - self.opinions[second] - gap).round(12)) / 2 + 0.5
        return found


def _in_company(prompts: Sequence[str], chosen: Sequence[int], count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which images can come next on a board of ``count`` so that none needs to stay alone of its prompt."""
    times = Counter(prompts[i] for i in chosen)
    alone = sum(n == 1 for n in times.values())
    after = np.array([alone + {0: 1, 1: -1}.get(times[prompt], 0) for prompt in prompts])
    return after < count - len(chosen)


def _within(covariance: Array, prompts: Sequence[str]) -> float:
    """The variance of differences within prompts: the trace of a covariance whose prompts' means are taken away."""
    total = float(np.trace(covariance))
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        total -= float(covariance[np.ix_(rows, rows)].sum()) / len(rows)
    return total


def more(known: float, ratings: int) -> int | None:
    """About how many more ratings it takes to know :data:`AIM` of the taste: signal to noise grows with their number. None where nothing is known."""
    if known <= 0.01 or not ratings:
        return None
    return max(0, round(ratings * (AIM / (1 - AIM)) * (1 - known) / known - ratings))


def joined(parts: Iterable[Looks]) -> dict[str, Array]:
    """The looks of several sets of images as one."""
    found = [part for part in parts if part]
    return {kind: np.concatenate([part[kind] for part in found]) for kind in found[0]} if found else {}
