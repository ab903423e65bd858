"""A reward with a memory: once a picture and prompt, and every failure in plain words."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from PIL import Image

from rewards import cache
from rewards.base import RewardError, Sample, Score
from rewards.cache import Cached, fingerprint
from tests.toys import picture


class Counting:
    """Scores by the number of times that it was asked, and can be told to misbehave."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.freed = 0
        self.way = "well"
        self.gate = threading.Event()
        self.gate.set()

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        self.gate.wait(5)
        if self.way == "badly":
            raise ZeroDivisionError("by zero")
        if self.way == "short":
            return [Score(1.0)] * (len(samples) - 1)
        if self.way == "nan":
            return [Score(float("nan"))] * len(samples)
        self.asked += [sample.prompt for sample in samples]
        return [Score(float(len(self.asked)), dict(prompt=sample.prompt)) for sample in samples]

    def free(self) -> None:
        self.freed += 1


def samples(*prompts: str, seed: int = 0) -> list[Sample]:
    return [Sample(i, prompt, picture(seed)) for i, prompt in enumerate(prompts)]


def test_the_same_picture_and_prompt_are_asked_about_once() -> None:
    inner = Counting()
    cached = Cached(inner)
    first = cached.score(samples("a", "b", "a"))
    assert inner.asked == ["a", "b"] and first[0] == first[2] != first[1]
    assert cached.score(samples("b")) == [first[1]] and inner.asked == ["a", "b"]
    cached.score(samples("a", "c"))
    assert inner.asked == ["a", "b", "c"], "what is known is not asked again beside what is not"
    cached.score(samples("a", seed=1))
    assert inner.asked == ["a", "b", "c", "a"], "another picture is another question"


def test_a_picture_s_fingerprint_is_of_size_and_colours() -> None:
    """Of one with a palette as well, whose pixels are places in it."""
    image = picture(0)
    other = image.copy()
    other.putpixel((3, 3), (1, 2, 3))
    found = {fingerprint(each) for each in (image, other, image.convert("L"), image.resize((32, 128)))}
    assert len(found) == 4 and fingerprint(image.copy()) == fingerprint(image) == fingerprint(image.convert("RGBA"))
    first = Image.new("P", (8, 8))
    second = first.copy()
    first.putpalette([0, 0, 0])
    second.putpalette([200, 0, 0])
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize(
    ("way", "says"), [("badly", "failed with ZeroDivisionError: by zero"), ("short", "1 scores for 2 images"), ("nan", "nan.*no finite number")]
)
def test_a_failure_says_what_happened_and_is_not_remembered(way: str, says: str) -> None:
    inner = Counting()
    cached = Cached(inner)
    inner.way = way
    with pytest.raises(RewardError, match=says):
        cached.score(samples("a", "b"))
    inner.way = "well"
    assert [score.value for score in cached.score(samples("a", "b"))] == [2.0, 2.0]


def test_no_opinion_is_remembered_too() -> None:
    class Silent(Counting):
        def score(self, samples: Sequence[Sample]) -> list[Score]:
            self.asked += [sample.prompt for sample in samples]
            return [Score(None)] * len(samples)

    inner = Silent()
    cached = Cached(inner)
    assert cached.score(samples("a")) == cached.score(samples("a")) == [Score(None)] and inner.asked == ["a"]


def test_ahead_of_time_scores_are_made_once_and_a_failure_is_told_when_it_matters() -> None:
    """Scored in another thread while the caller goes on; a later score waits for it instead of asking again."""
    inner = Counting()
    inner.gate.clear()
    cached = Cached(inner)
    cached.ahead(samples("a", "b"))  # returns although the reward hangs
    threading.Timer(0.1, inner.gate.set).start()
    assert [score.explanation["prompt"] for score in cached.score(samples("a", "b"))] == ["a", "b"]
    assert inner.asked == ["a", "b"]
    inner.way = "badly"
    cached.ahead(samples("c"))
    with pytest.raises(RewardError):
        cached.score(samples("c"))
    inner.way = "well"
    assert cached.score(samples("c"))


def test_freeing_keeps_scores_and_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "REMEMBERED", 10)
    inner = Counting()
    cached = Cached(inner)
    cached.score(samples("a"))
    cached.free()
    assert inner.freed == 1 and cached.score(samples("a"))[0].value == 1.0 and inner.asked == ["a"]
    cached.score(samples(*map(str, range(10))))
    cached.score(samples("a"))
    assert inner.asked[-1] == "a", "the oldest is forgotten"
