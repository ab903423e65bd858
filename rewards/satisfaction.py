"""Strict questions: the share of the prompt's facts that a model which looks at the image gives as its answers."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from rewards.base import Sample, Score
from rewards.vlm import open_vlm

NUMBERS = {word: n for n, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1)}
ACTIVITIES: dict[str, tuple[str, ...]] = {
    "washing dishes": ("washing", "dishes", "dish"),
    "playing chess": ("chess",),
    "riding a bike": ("bike", "bicycle", "cycling"),
}
"""The paper's activities, and words of which one says it."""
ANIMALS = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion", "tiger", "bear", "raccoon",
    "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle",
    "frog", "chicken", "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo",
    "elephant", "owl", "penguin", "panda", "crab", "snail", "octopus", "giraffe", "crocodile", "flamingo", "parrot", "peacock", "koala",
    "rhinoceros",
)  # fmt: skip
"""What is known to be an animal: the paper's 45, and those of the prompt set of unseen ones."""
IRREGULAR = {"mice": "mouse", "geese": "goose", "wolves": "wolf", "butterflies": "butterfly", "flies": "fly"}
"""Plurals that are not made by s or es."""


@dataclass(frozen=True)
class Question:
    text: str
    accepted: tuple[str, ...]
    """Words of which the answer must hold one, in lower case."""


YES = ("yes",)
"""What is accepted where it is asked whether an image shows something."""


def questions_of(prompt: str, animals: Container[str] = ANIMALS) -> list[Question]:
    """What to ask of a prompt of the paper's forms: "a(n) {animal}", "a(n) {animal} {activity}", "{number} {animals}".

    Of what is no known animal it is asked whether the image shows it; a prompt of another form, with more words, is asked for as a whole.
    """
    words = prompt.lower().strip().rstrip(".")
    activity = next((each for each in ACTIVITIES if words.endswith(" " + each)), None)
    if activity:
        words = words.removesuffix(activity).strip()
    first, _, rest = words.partition(" ")
    if not rest.isalpha() or first not in ("a", "an", *NUMBERS):
        return [_whether(prompt)]
    many = first in NUMBERS
    noun = singular(rest, animals) if many else rest
    found = [Question(f"How many {rest} are there in this image?", (first, str(NUMBERS[first])))] if many else []
    if noun in animals:
        found.append(Question("What animal is in this image?", (noun, rest) if many else (noun,)))
    else:
        found.append(_whether(rest if many else words))
    if activity:
        found.append(Question(f"What is the {noun} doing?", ACTIVITIES[activity]))
    return found


def _whether(what: str) -> Question:
    return Question(f'Does this image show "{what}"? Answer yes or no.', YES)


def singular(noun: str, animals: Container[str] = ANIMALS) -> str:
    """One of many: "foxes" to "fox". Of what is no animal it is a guess."""
    ones = (noun, noun.removesuffix("s"), noun.removesuffix("es"), IRREGULAR.get(noun, noun))
    return next((one for one in ones if one in animals), noun.removesuffix("s"))


def says(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer holds one of some words as a whole word, or its plural."""
    plurals = [many for many, one in IRREGULAR.items() if one in accepted]
    return any(re.search(rf"\b{re.escape(word)}(s|es)?\b", answer.lower()) for word in (*accepted, *plurals))


class Satisfaction:
    """The share of accepted answers; fooled by numbers and names that are written into the image."""

    name = "satisfaction"

    def __init__(self, vlm: str, device: str = "auto", precision: str = "auto") -> None:
        """``vlm`` is a LLaVA's folder or name on the Hub, or ``http://host/v1#model``."""
        self.vlm = open_vlm(vlm, device, precision)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        asked = [questions_of(sample.prompt) for sample in samples]
        images = [sample.image for sample, questions in zip(samples, asked, strict=True) for _ in questions]
        answers = iter(self.vlm.answer(images, [question.text for questions in asked for question in questions]))
        scores = []
        for questions in asked:
            said = [
                dict(question=question.text, answer=answer, right=says(answer, question.accepted))
                for question, answer in zip(questions, answers, strict=False)
            ]
            scores.append(Score(sum(bool(each["right"]) for each in said) / len(said), dict(answers=said)))
        return scores

    def free(self) -> None:
        self.vlm.free()
