"""What is good: JPEG sizes and people."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import pytest
from PIL import Image, ImageFilter

import rewards
from rewards.base import RewardError, Sample, Score
from rewards.human import Human, opinion, scores, valid
from rewards.jpeg import Compressibility, Incompressibility, size_kb
from tests.toys import picture


def noise(seed: int, size: int = 64) -> Image.Image:
    return Image.frombytes("RGB", (size, size), random.Random(seed).randbytes(3 * size * size))


def test_the_size_is_of_the_jpeg_that_pillow_writes_by_default_at_quality_95() -> None:
    """The paper's encoder: a thousand bytes are a kB, and naming the subsampling changes nothing today."""
    for image in (picture(1), noise(2)):
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=95)
        assert size_kb(image) == len(file.getvalue()) / 1000


def test_compressibility_is_minus_incompressibility_and_both_keep_order() -> None:
    samples = [Sample(i, "a cat", image) for i, image in enumerate((picture(1), noise(2), Image.new("RGB", (64, 64), "red")))]
    small, large = Compressibility().score(samples), Incompressibility().score(samples)
    assert [s.value for s in small] == [-(s.value or 0) for s in large]
    assert [s.explanation["size_kb"] for s in large] == [s.value for s in large] == [size_kb(s.image) for s in samples]


def test_noise_is_larger_than_a_picture_than_its_blur_than_one_colour() -> None:
    image = noise(3)
    sizes = [size_kb(i) for i in (image, image.filter(ImageFilter.GaussianBlur(2)), Image.new("RGB", (64, 64)))]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[2]


def test_other_modes_are_measured_as_rgb() -> None:
    """A grey or a transparent picture is what its RGB version is."""
    for mode in ("L", "RGBA", "P"):
        image = picture(4).convert(mode)
        assert size_kb(image) == size_kb(image.convert("RGB"))


@dataclass(frozen=True)
class Event:
    kind: str
    value: float | None
    rater: str
    other: int | None = None


def score_of(*events: Event) -> Score:
    """The score of an image of which this was said."""
    return scores({0: "a cat"}, {0: events})[0]


@pytest.mark.parametrize(
    ("kind", "value", "number"),
    [("thumbs", 1, 1.0), ("thumbs", -1, -1.0), ("stars", 1, -1.0), ("stars", 2, -0.5), ("stars", 3, 0.0), ("stars", 4, 0.5), ("stars", 5, 1.0)],
)
def test_thumbs_and_stars_share_one_scale(kind: str, value: float, number: float) -> None:
    assert opinion(kind, value) == number and valid(kind, value)


@pytest.mark.parametrize("kind", ["skip", "clear"])
def test_skip_and_clear_are_no_opinion_and_not_a_middling_one(kind: str) -> None:
    assert opinion(kind, None) is None and valid(kind, None) and not valid(kind, 0)
    assert score_of(Event(kind, None, "anna")).value is None
    assert score_of(Event("stars", 5, "anna"), Event(kind, None, "bob")).value == 1.0


@pytest.mark.parametrize(
    ("kind", "value"),
    [("thumbs", 0), ("thumbs", None), ("thumbs", 2), ("stars", 0), ("stars", 6), ("stars", 2.5), ("stars", None), ("love", None), ("", 1)],
)
def test_what_nobody_can_click_is_no_rating(kind: str, value: float | None) -> None:
    assert not valid(kind, value)


def test_an_image_s_score_is_the_mean_over_its_raters() -> None:
    ratings = [Event("thumbs", 1, "anna"), Event("thumbs", -1, "bob"), Event("stars", 4, "carol")]
    assert score_of(*ratings).value == pytest.approx(0.5 / 3) and score_of(*ratings).explanation == {"raters": 3}
    assert score_of().value is None


def test_people_s_ratings_go_to_the_images_they_name() -> None:
    """Defect 8: whatever order the ratings come in, and whatever order the samples are asked for in."""
    given = {7: [Event("thumbs", -1, "anna")], 3: [Event("thumbs", 1, "anna")], 99: [Event("thumbs", 1, "anna")]}
    human = Human(lambda samples: given)
    samples = [Sample(id, "a cat", picture(id)) for id in (3, 5, 7)]
    assert [s.value for s in human.score(samples)] == [1.0, None, -1.0]
    assert [s.value for s in human.score(samples[::-1])] == [-1.0, None, 1.0]


def test_the_table_of_names_is_true() -> None:
    """Every name loads, carries its own name, and its sentence is one."""
    for name, card in rewards.REWARDS.items():
        assert card.asks.endswith(".")
        if name != "blend":
            made = rewards.load(name, **({"collect": lambda samples: {}} if name == "human" else {}))
            assert made.name == name
    with pytest.raises(RewardError, match="no reward 'beauty'"):
        rewards.load("beauty")
    with pytest.raises(RewardError, match="its parts do"):
        rewards.load("blend")
