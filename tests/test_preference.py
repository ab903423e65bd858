"""The model of taste: what it knows, what it says it knows, and what it asks for."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel, WhiteKernel

from rewards.preference import (
    AIM,
    CHANCE,
    FOLDS,
    OWN,
    UNTESTED,
    Alike,
    Evidence,
    Linear,
    Looks,
    Shared,
    Taste,
    joined,
    looks,
    more,
    on_one_scale,
)  # fmt: skip
from tests import toys

PROMPTS = [f"a {animal}" for animal in ("cat", "dog", "fox", "cow", "pig", "ant", "bee", "owl")]


def world(n: int, seed: int, width: int = 6) -> tuple[dict[str, np.ndarray], list[str]]:
    """Looks of two kinds, of which tastes are a linear function of the first, and prompts."""
    rng = np.random.default_rng(seed)
    return dict(shape=rng.normal(size=(n, width)), noise=rng.normal(size=(n, 3 * width))), [PROMPTS[i % len(PROMPTS)] for i in range(n)]


def liked(seen: Looks, prompts: list[str], spread: float = 0.0, seed: int = 0) -> np.ndarray:
    """A taste for the first two columns; each prompt is liked more or less as a whole, too."""
    rng = np.random.default_rng(seed)
    offsets = dict(zip(PROMPTS, rng.normal(size=len(PROMPTS)), strict=True))
    return (seen["shape"][:, 0] - seen["shape"][:, 1]) / 2 + spread * np.array([offsets[p] for p in prompts])


def within(values: np.ndarray, prompts: list[str]) -> np.ndarray:
    found = np.array(values, dtype=float)
    for prompt in set(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        found[rows] -= found[rows].mean()
    return found


def picture(seed: int, tint: tuple[int, int, int] = (128, 128, 128)) -> Image.Image:
    rng = random.Random(seed)
    image = Image.new("RGB", (32, 48), tint)
    image.putpixel((rng.randrange(32), rng.randrange(48)), (255, 255, 255))
    return image


def test_looks_are_numbers_of_the_image_alone() -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (48, 32, 3), dtype=np.uint8)) for _ in range(5)]
    together, alone = looks(images), [looks([image]) for image in images]
    assert {kind: values.shape for kind, values in together.items()} == dict(whole=(5, 52), rings=(5, 36), colours=(5, 64), edges=(5, 64))
    for kind, values in together.items():
        assert np.isfinite(values).all()
        assert (values == joined(alone)[kind]).all(), "to the last bit, whatever it is looked at beside"
    assert looks([]) == {}


def test_looks_tell_left_from_right_and_warm_from_cold() -> None:
    right = Image.new("RGB", (64, 64), "white")
    right.paste("black", (40, 20, 60, 40))
    left = right.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    seen = looks([left, right, Image.new("RGB", (64, 64), "orange"), Image.new("RGB", (64, 64), "blue")])
    np.testing.assert_allclose(seen["whole"][0], seen["whole"][1], atol=1e-9)
    assert np.abs(seen["edges"][0] - seen["edges"][1]).max() > 1
    assert seen["whole"][2, 2] > 0.2 > -0.2 > seen["whole"][3, 2], "yellow against blue"


def test_a_taste_is_found_among_what_is_seen_although_prompts_differ_more() -> None:
    seen, prompts = world(96, 1)
    opinions = np.sign(liked(seen, prompts, spread=1.5) + np.random.default_rng(2).normal(size=96) / 2)
    taste = Taste(seen, prompts, opinions)
    others, their = world(400, 3)
    guess = taste.guess(others, their)
    found = np.corrcoef(within(guess.mean, their), within(liked(others, their), their))[0, 1]
    assert found > 0.7, "prompts that are liked as a whole must not pass for looks"
    assert 0.25 < guess.known < 0.95


def test_what_it_says_it_knows_is_what_it_knows() -> None:
    """Over tastes drawn from the model's own prior, the share explained is what ``known`` says, to the error of 20 draws."""
    said, true = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen, prompts = world(80, seed)
        others, their = world(200, 1000 + seed)
        weights = rng.normal(size=6) * 0.6
        taste = Taste(seen, prompts, seen["shape"] @ weights + rng.normal(size=80))
        guess = taste.guess(others, their)
        said.append(guess.known)
        truth = within(others["shape"] @ weights, their)
        true.append(1 - ((within(guess.mean, their) - truth) ** 2).sum() / (truth**2).sum())
    assert abs(np.mean(said) - np.mean(true)) < 0.12, (np.mean(said), np.mean(true))


def test_more_ratings_are_more_knowledge_and_none_is_none() -> None:
    seen, prompts = world(300, 5)
    opinions = liked(seen, prompts) + np.random.default_rng(0).normal(size=300)
    others, their = world(100, 6)
    known = [Taste({k: v[:n] for k, v in seen.items()}, prompts[:n], opinions[:n]).guess(others, their).known for n in (16, 64, 300)]
    assert known[0] < known[1] < known[2] and known[2] > 0.7
    noise = Taste(seen, prompts, np.random.default_rng(9).choice([-1.0, 1.0], 300))
    assert noise.guess(others, their).mean.std() < 0.3, "what is not known is guessed small"


@pytest.mark.parametrize("opinions", [[1.0], [1.0, 1.0, 1.0], [1 / 3] * 12, [0.1] * 12, [-1.0, 1.0], [0.3, 0.3, 0.3, -1.0]])
def test_few_and_equal_ratings_give_finite_answers(opinions: list[float]) -> None:
    seen, prompts = world(len(opinions), 1)
    taste = Taste(seen, prompts, opinions)
    others, their = world(24, 2)
    guess = taste.guess(others, their)
    assert np.isfinite(guess.mean).all() and np.isfinite(guess.std).all() and 0 <= guess.known <= 1
    assert len(taste.choose(others, their, 8, 0)) == 8
    if len(set(opinions)) == 1:
        assert np.allclose(guess.mean, 0.0), "equal ratings say nothing of what is better"
        assert np.allclose(guess.rating, opinions[0]) and taste.noise == pytest.approx(0.3), "as is usual"


class Of(Kernel):  # type: ignore[misc]
    """A part of ours as a kernel of the library's."""

    def __init__(self, part: Linear) -> None:
        self.part = part

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None, eval_gradient: bool = False) -> np.ndarray:
        return self.part(x, x if y is None else y)

    def diag(self, x: np.ndarray) -> np.ndarray:
        return self.part.diag(x)

    def is_stationary(self) -> bool:
        return False


@pytest.mark.parametrize("counts", [None, [1.0, 0.5, 2.0] * 20])
def test_the_posterior_is_the_gaussian_process_of_the_library(counts: list[float] | None) -> None:
    """Mean and deviation of taste and prompt together, at the fitted variances, against scikit-learn's own prediction; also where what some say
    is less sure than what others say."""
    seen, prompts = world(60, 1)
    opinions = liked(seen, prompts, 1.0) + np.random.default_rng(0).normal(size=60) / 2
    taste = Taste(seen, prompts, opinions, counts=counts)
    kernel = WhiteKernel(taste.noise)
    for part in taste.parts:
        kernel = kernel + Of(part)
    more_or_less = taste.noise / np.array(counts or [1.0] * 60) - taste.noise  # than the white kernel's
    process = GaussianProcessRegressor(kernel, alpha=1e-12 + more_or_less, optimizer=None).fit(taste.x, opinions - taste.middle)
    others, _ = world(30, 2)
    x = taste._inputs(others, ["a stranger"] * 30)  # of no known prompt: taste alone
    mean, std = process.predict(x, return_std=True)
    guess = taste.guess(others, ["a stranger"] * 30)
    np.testing.assert_allclose(guess.mean, mean, atol=1e-8)
    np.testing.assert_allclose(guess.std**2 + taste.noise, std**2, atol=1e-8)


@pytest.mark.parametrize("others", [False, True])
def test_the_evidence_and_its_derivatives(others: bool) -> None:
    """Against the densities of the ratings and of the variances, and numeric derivatives; of three other raters two have one share together."""
    rng = np.random.default_rng(0)
    whose = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3]) * others
    x = np.concatenate([rng.normal(size=(10, 5)), np.eye(4)[rng.integers(4, size=10)]], 1)
    y, kinds, marks = rng.normal(size=10), [Linear(0, 2, 1.0), Linear(2, 5, 1.0)], Linear(5, 9, 1.0)
    noise = np.array([1.0, 2.0, 0.5, 1.0, 1.0] * 2)
    evidence = Evidence(x, y, kinds, marks, whose, np.array([-1, 0, 1, 1]), noise)
    at = np.array([-0.3, 0.2, -1.0, -0.5, *([0.4, 0.8, 0.6] if others else [])])
    value, slopes = evidence(at)
    alike = Alike(9, np.array([1.0, 0.4, 0.8, 0.8]), 0.6) if others else None
    x = np.concatenate([x, whose[:, None]], 1)
    parts = [Shared(k.first, k.last, v, alike) if alike else Linear(k.first, k.last, v) for k, v in zip(kinds, np.exp(at), strict=False)]
    covariance = sum((part(x, x) for part in (*parts, Linear(5, 9, float(np.exp(-1.0))))), start=np.diag(np.exp(-0.5) * noise + 1e-6))
    usual = [(np.log(0.01), 1.5)] * 2 + [(np.log(0.1), 1.0), (np.log(0.6), 1.0)]
    a_priori = sum(((each - mean) / std) ** 2 / 2 for each, (mean, std) in zip(at, usual, strict=False))
    assert value == pytest.approx(-multivariate_normal(np.zeros(10), covariance).logpdf(y) - 5 * np.log(2 * np.pi) + a_priori)
    steps = 1e-6 * np.eye(len(at))
    numeric = [(evidence(at + step)[0] - evidence(at - step)[0]) / 2e-6 for step in steps]
    np.testing.assert_allclose(slopes, numeric, atol=1e-6)
    np.testing.assert_allclose(np.diag(parts[0](x, x)), parts[0].diag(x))


def test_accuracy_leaves_a_pairs_own_ratings_out() -> None:
    """Against guesses without each pair, at the variances of other prompts' ratings; and of chance it says a half."""
    seen, prompts = world(40, 1)
    opinions = liked(seen, prompts, 1.0) + np.random.default_rng(0).normal(size=40)
    taste = Taste(seen, prompts, opinions)
    right = []
    fold = [list(taste.prompts).index((OWN, prompt)) % FOLDS for prompt in prompts]
    for i in range(40):
        parts, noise = taste._fitted(np.array([k for k in range(40) if fold[k] != fold[i]]), 1000)
        cov = sum(part(taste.x, taste.x) for part in parts) + noise * np.eye(40)
        for j in range(40):
            if prompts[i] == prompts[j] and opinions[i] > opinions[j]:
                rest = [k for k in range(40) if k not in (i, j)]
                weights = np.linalg.solve(cov[np.ix_(rest, rest)], (opinions - taste.middle)[rest])
                right.append(float(cov[i, rest] @ weights > cov[j, rest] @ weights))
    share, least, likely, pairs = taste.accuracy()
    assert pairs == len(right) and share == pytest.approx(np.mean(right)) and least < share
    guesses = (40 - len(set(prompts))) / 2
    assert likely == pytest.approx((share * guesses + 52) / (guesses + 80))
    assert Taste(*world(4, 0), [1.0, 1.0, -1.0, -1.0]).accuracy() == (0.5, 0.5, 0.5, 0), "no two images of one prompt"


@pytest.mark.parametrize(("n", "prompts"), [(16, 2), (16, 4)])
def test_of_ratings_at_random_it_picks_a_half(n: int, prompts: int) -> None:
    """Of pictures, whose looks go together: by variances that have seen a pair's own ratings it would pick two of three."""
    all_seen = looks([toys.picture(i) for i in range(80)])
    shares, sure = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(80)[:n]
        seen = {kind: values[rows] for kind, values in all_seen.items()}
        taste = Taste(seen, [PROMPTS[i % prompts] for i in range(n)], rng.choice([-1.0, 1.0], n))
        accuracy = taste.accuracy()
        shares += [accuracy.share] * bool(accuracy.pairs)
        sure.append(accuracy.least > CHANCE)
    assert abs(np.mean(shares) - 0.5) < 3 * np.std(shares) / np.sqrt(len(shares)), np.mean(shares)
    assert np.mean(sure) < 0.25


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
def test_no_chosen_image_is_alone_of_its_prompt(count: int) -> None:
    seen, prompts = world(64, 3)
    for n in (4, 16):
        base, base_prompts = world(n, 4)
        taste = Taste(base, base_prompts, liked(base, base_prompts))
        for seed in range(10):
            times = Counter(prompts[i] for i in taste.choose(seen, prompts, count, seed))
            assert min(times.values()) >= 2 and sum(times.values()) == count
    taste = Taste(*world(4, 0), [1.0, 1.0, -1.0, -1.0])
    assert len(set(taste.choose(*world(8, 1), 5, 0))) == 5, "where each prompt has one image, it is as good as another"


def test_chosen_images_tell_more_than_random_ones() -> None:
    """The greedy choice leaves less unknown than boards at random do, after a first board."""
    seen, prompts = world(64, 3)
    base, base_prompts = world(16, 4)
    taste = Taste(base, base_prompts, liked(base, base_prompts) + np.random.default_rng(0).normal(size=16) / 2)

    def left_open(rows: list[int]) -> float:
        x = taste._inputs(seen, prompts)
        observed = np.concatenate([taste.x, x[rows]])
        inverse = np.linalg.inv(taste._of_ratings(observed, observed) + taste.noise * np.eye(len(observed)))
        across = taste._of_taste(x, observed)
        left = taste._of_taste(x, x) - across @ inverse @ across.T
        return float(sum(np.trace(left[np.ix_(r, r)]) - left[np.ix_(r, r)].sum() / len(r) for r in rows_of(prompts)))

    chosen = taste.choose(seen, prompts, 16, 0)
    assert len(set(chosen)) == 16 and chosen == sorted(chosen)
    rng = np.random.default_rng(0)
    at_random = [left_open(rng.choice(64, 16, replace=False).tolist()) for _ in range(40)]
    assert left_open(chosen) < np.mean(at_random) - np.std(at_random)
    assert taste.choose(seen, prompts, 16, 0) == chosen, "the same data and seed choose the same board"
    assert taste.choose(seen, prompts, 100, 0) == list(range(64))


def rows_of(prompts: list[str]) -> list[list[int]]:
    return [[i for i, p in enumerate(prompts) if p == prompt] for prompt in dict.fromkeys(prompts)]


def test_a_share_of_the_board_is_drawn_at_random() -> None:
    """Every image has a chance to be shown, whatever is known."""
    seen, prompts = world(32, 3)
    taste = Taste(seen, prompts, liked(seen, prompts))
    shown = set()
    for seed in range(60):
        shown |= set(taste.choose(seen, prompts, 8, seed))
    assert shown == set(range(32))


@pytest.mark.alone
def test_a_thousand_ratings_are_fitted_within_a_second() -> None:
    rng = np.random.default_rng(0)
    seen = {kind: rng.normal(size=(1000, width)) for kind, width in dict(whole=52, rings=36, colours=64, edges=64).items()}
    prompts = [PROMPTS[i % 8] for i in range(1000)]
    opinions = np.sign(seen["whole"][:, 0] + rng.normal(size=1000))
    started = time.process_time()
    taste = Taste(seen, prompts, opinions)
    taste.guess({k: v[:64] for k, v in seen.items()}, prompts[:64])
    taste.accuracy()
    assert time.process_time() - started < 4, "1 s on two free cores; processor time of all threads, with room for a busy machine"


def test_how_many_more() -> None:
    assert more(0.0, 50) is None and more(0.5, 0) is None
    assert more(AIM, 80) == 0 and more(0.9, 80) == 0
    assert more(0.25, 40) == pytest.approx(40 * 3 - 40)
    assert more(0.25, 40, 0.25) == more(0.25, 40)
    # 10 ratings alone give a signal of 0.25 a noise, so each one adds 0.025; 0.4 with those of others is a signal of 2/3: 1/3 is missing.
    assert more(0.4, 10, 0.2) == round((1 - 2 / 3) / 0.025)
    assert more(0.4, 10, 0.0) is None and more(0.6, 10, 0.0) is None, "not known from one's own ratings"


# --- ratings from elsewhere -----------------------------------------------------------------------------------------------------


def test_other_raters_come_to_ones_own_level_and_spread() -> None:
    prompts = ["a", "a", "b", "b"] * 50
    own = np.tile([1.0, -1.0, 0.5, -0.5], 50)
    narrow = 0.5 + own / 10  # the same taste, told in the upper middle of the scale
    found = on_one_scale(np.concatenate([own, narrow]), [OWN] * 200 + ["ben"] * 200, prompts * 2)
    np.testing.assert_array_equal(found[:200], own)
    np.testing.assert_allclose(found[200:], own, atol=0.1)
    both = np.concatenate([own, narrow[:2] / 5, own])
    few = on_one_scale(both, [OWN] * 200 + ["old/ben"] * 2 + ["old/ann"] * 200, [*prompts, "a", "a", *prompts])
    assert 0 < few[200] - few[201] < 0.3, "two ratings are no spread to rely on, beside those of another rater of that source"
    alone = on_one_scale(narrow, ["ben"] * 200, prompts)
    np.testing.assert_allclose(alone, narrow, atol=1e-9)
    same = on_one_scale(np.ones(4), ["ben"] * 4, ["a"] * 4)
    np.testing.assert_array_equal(same, np.ones(4))


@pytest.mark.parametrize("noisy", [0.0, 0.4])
def test_several_whose_taste_is_in_question_are_on_levels_of_their_own(noisy: float) -> None:
    """Two of one taste, of whom one is hard to please and the other is not, say of different pictures which they like. Their taste is found as
    well as that of one who says all of it; and the test of it, which knows nothing of two who never saw the same picture, is as right."""
    seen, prompts = world(80, 1)
    rng = np.random.default_rng(0)
    wanted = liked(seen, prompts, 1.0) + noisy * rng.normal(size=80)
    anna = rng.permutation(80) < 40
    said = wanted + np.where(anna, -4.0, 4.0)
    one, both = Taste(seen, prompts, wanted), Taste(seen, prompts, said, whose=["/anna" if each else "/ben" for each in anna])
    mixed = Taste(seen, prompts, said)
    others, of = world(60, 2)
    truth = liked(others, of, 1.0)

    def found(taste: Taste) -> float:
        guess = taste.guess(others, of).mean
        return float(np.corrcoef(*(values - [values[[p == q for q in of]].mean() for p in of] for values in (truth, guess)))[0, 1])

    assert found(both) > found(one) - 0.1 and found(mixed) < found(both) - 0.2
    assert both.own.all() and both.accuracy().share > one.accuracy().share - 0.1 > mixed.accuracy().share
    assert both.guess(others, of).rating.mean() == pytest.approx(said.mean(), abs=1.0), "a new picture is on the mean of their levels"


def test_tastes_go_together_as_far_as_raters_are_alike() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4))
    x[:, 3] = [0, 0, 1, 1, 2, 2]
    alone = Alike(3, np.array([1.0, 0.5, 0.8]), 0.0)(x, x)
    np.testing.assert_allclose(alone[0], [1, 1, 0.5, 0.5, 0.8, 0.8])
    np.testing.assert_allclose(alone[2], [0.5, 0.5, 1, 1, 0.4, 0.4])
    strangers = Alike(3, np.array([1.0, 0.0, 0.0]), 1.0)(x, x)
    np.testing.assert_allclose(strangers[2], [0, 0, 1, 1, 1, 1])
    for shares in ([1.0, 0.99, 0.0], [1.0, 0.3, 0.9], [1.0, 0.0, 0.0]):
        for common in (0.0, 0.5, 1.0):
            value = Alike(3, np.array(shares), common)(x, x)
            assert np.linalg.eigvalsh(value).min() > -1e-12 and (np.diag(value) == 1).all()
            np.testing.assert_allclose(Shared(0, 3, 0.7, Alike(3, np.array(shares), common))(x, x[:2]), Linear(0, 3, 0.7)(x, x[:2]) * value[:, :2])


def agreement(others: int, sign: float, seed: int) -> float:
    """How far the guesses of somebody with 16 ratings agree with their taste, with so many ratings of another rater whose taste is theirs, or minus
    theirs, told on another scale."""
    rng = np.random.default_rng(seed)
    seen, prompts = world(16 + others, 100 + seed)
    opinions = liked(seen, prompts, 1.0, seed) + rng.normal(size=16 + others) / 2
    opinions[16:] = 0.4 + sign * opinions[16:] / 5
    taste = Taste(seen, prompts, opinions, whose=[OWN] * 16 + ["ben"] * others)
    unseen, their = world(120, 500 + seed)
    guess = taste.guess(unseen, their).mean
    return float(np.corrcoef(within(guess, their), within(liked(unseen, their), their))[0, 1]) if guess.std() > 1e-9 else 0.0


def test_ratings_of_others_help_who_agrees_and_hardly_harm_who_does_not() -> None:
    alone, with_them, against = ([agreement(n, sign, seed) for seed in range(6)] for n, sign in ((0, 1.0), (120, 1.0), (120, -1.0)))
    assert np.mean(with_them) > 0.85 and np.mean(with_them) > np.mean(alone) + 0.15
    assert np.mean(against) > np.mean(alone) - 0.05, (np.mean(alone), np.mean(against))


def strangers(others: Sequence[tuple[int, float]], seed: int, own: int = 16) -> float:
    """The same of 16 ratings of one's own beside those of others: how many of each, and 1 where their taste is one's own, -1 where it is the reverse,
    0 where it is one that has nothing to do with it and is theirs together."""
    rng = np.random.default_rng(seed)
    n = own + sum(count for count, _ in others)
    seen, prompts = world(n, 100 + seed)
    other = (seen["shape"][:, 2] + seen["shape"][:, 3]) / 2
    mine = liked(seen, prompts, 1.0, seed)
    opinions, whose, at = mine + rng.normal(size=n) / 2, [OWN] * own, own
    for number, (count, sign) in enumerate(others):
        taste = sign * mine[at : at + count] if sign else other[at : at + count]
        opinions[at : at + count] = 50 + 20 * (taste + rng.normal(size=count) / 2)
        whose, at = [*whose, *[f"file/{number}"] * count], at + count
    guess = Taste(seen, prompts, opinions, whose=whose).guess(*(unseen := world(120, 500 + seed))).mean
    return float(np.corrcoef(within(guess, unseen[1]), within(liked(*unseen), unseen[1]))[0, 1]) if guess.std() > 1e-9 else 0.0


def test_strangers_who_agree_among_themselves_are_no_friends() -> None:
    """That four of them are of one mind says nothing of whether it is yours."""
    alone, beside = ([strangers(others, seed) for seed in range(10)] for others in ([], [(25, 0.0)] * 4))
    assert np.mean(beside) > np.mean(alone) - 0.05, (np.mean(alone), np.mean(beside))


def test_who_agrees_helps_also_beside_one_who_does_not() -> None:
    alone, beside = ([strangers(others, seed) for seed in range(8)] for others in ([], [(50, 1.0), (50, -1.0)]))
    assert np.mean(beside) > np.mean(alone) + 0.1, (np.mean(alone), np.mean(beside))


def test_of_many_raters_the_most_prolific_have_a_share_of_their_own() -> None:
    seen, prompts = world(16 + 9 * 8, 3)
    counts = [4, 12, 4, 12, 4, 12, 4, 12, 8]
    whose = [OWN] * 16 + [f"old/{i}" for i, count in enumerate(counts) for _ in range(count)]
    taste = Taste(seen, prompts, liked(seen, prompts) + np.random.default_rng(0).normal(size=len(whose)) / 2, whose=whose)
    alike = taste.parts[0].alike  # type: ignore[attr-defined]
    groups = dict(zip(taste.raters, taste.groups.tolist(), strict=True))
    assert len({groups[f"old/{i}"] for i in (1, 3, 5, 7, 8)} - {6}) == 5 and sum(group == 6 for group in groups.values()) == 3
    assert len({alike.agreement[at] for at, group in enumerate(taste.groups) if group == 6}) == 1 and alike.agreement[0] == 1.0


def test_a_file_may_be_on_any_scale() -> None:
    """A hundred times the numbers are the same taste, and no other source's scale changes for them."""
    prompts = ["a", "a", "b", "b"] * 10
    rng = np.random.default_rng(0)
    own, run, file = np.sign(rng.normal(size=40)), rng.normal(size=40) / 3, rng.normal(size=40) / 4
    whose = [OWN] * 40 + ["run/ann"] * 40 + ["file/ben"] * 40
    found = on_one_scale(np.concatenate([own, run, file]), whose, prompts * 3)
    far = on_one_scale(np.concatenate([own, run, 50 + 100 * file]), whose, prompts * 3)
    np.testing.assert_allclose(found, far, atol=1e-9)
    spreads = [within(found[at : at + 40], prompts).std() for at in (0, 40, 80)]
    np.testing.assert_allclose(spreads, spreads[0], rtol=0.1)
    alone = on_one_scale(50 + 100 * file, ["file/ben"] * 40, prompts)
    assert abs(alone.mean()) < 1e-9 and within(alone, prompts).std() < 1, "without own opinions, on a scale from -1 to 1"


def test_a_file_of_one_image_a_prompt_comes_to_ones_own_spread_too() -> None:
    """Rated 1 to 10 by two, of whom one is milder: no prompt tells how far their opinions lie apart, so all of them together do."""
    own, marks = np.array([-1.0, 1.0] * 20), np.arange(40) % 10 + 1.0
    opinions, whose = np.concatenate([own, marks, (marks + 10) / 2]), [OWN] * 40 + ["file/ann"] * 40 + ["file/ben"] * 40
    found = on_one_scale(opinions, whose, [*["a", "a", "b", "b"] * 10, *(f"only {i}" for i in range(80))])
    assert 0.6 < found[40:].std() < 1.4 and abs(found[40:80].mean()) < 1e-9 and abs(found[80:].mean()) < 1e-9
    far = on_one_scale(np.concatenate([own, 100 * opinions[40:]]), whose, [*["a", "a", "b", "b"] * 10, *(f"only {i}" for i in range(80))])
    np.testing.assert_allclose(found, far, atol=1e-9)


def test_ratings_of_others_alone_are_a_beginning_and_no_proof() -> None:
    seen, prompts = world(136, 7)
    opinions = liked(seen, prompts, 1.0) + np.random.default_rng(0).normal(size=136) / 2
    unseen, their = world(100, 8)
    taste = Taste(seen, prompts, opinions, whose=["ben"] * 136)
    guess = taste.guess(unseen, their)
    assert np.corrcoef(within(guess.mean, their), within(liked(unseen, their), their))[0, 1] > 0.8
    assert guess.known > 0 and guess.alone == 0.0
    assert taste.accuracy() == UNTESTED
    # Whoever draws lots beside them: their 16 answers are what counts, and they say that nothing is sure.
    opinions[:16] = np.random.default_rng(1).choice([-1.0, 1.0], 16)
    taste = Taste(seen, prompts, opinions, whose=[OWN] * 16 + ["ben"] * 120)
    mixed = taste.accuracy()
    assert mixed.pairs < 16 and mixed.least < CHANCE
    assert taste.guess(unseen, their).alone < taste.guess(unseen, their).known


def test_to_know_a_picture_again_is_no_taste() -> None:
    """Two runs of one seed begin with the same pictures: what was said of these elsewhere is no proof that a taste is known, which lots have none."""
    sure = []
    for seed in range(20):
        seen, prompts = world(32, seed)
        lots = np.random.default_rng(seed).choice([-1.0, 1.0], 32)
        twice = Taste(joined([seen, seen]), prompts * 2, [*lots, *lots], whose=[OWN] * 32 + ["old/me"] * 32)
        sure.append(twice.accuracy().least > CHANCE)
    assert np.mean(sure) < 0.4, "it was sure each time"
