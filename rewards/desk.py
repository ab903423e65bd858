"""Scores pictures for other programs and for the command line: rewards stay loaded, and what was scored once is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

import rewards
from rewards.base import Reward, RewardError, Sample, Score, opened
from rewards.cache import Cached
from rewards.function import version

NO_PROMPT = RewardError("It compares a picture with its prompt, and there is none. Give one.")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "4bit")


@dataclass(frozen=True)
class Order:
    """Which reward, and with which networks."""

    reward: str
    models: str = "published"
    device: str = "auto"
    precision: str = "auto"
    vlm: str = ""
    """What looks at images, for rewards that have something that does; empty is the published one."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of the reward's class."""

    @property
    def key(self) -> str:
        """What values belong to; of a person's own function also its file's state."""
        parts = [self.reward, self.models, self.device, self.precision, self.vlm, dict(self.arguments), version(self.reward)]
        return json.dumps(parts, sort_keys=True)

    @property
    def large(self) -> bool:
        """Whether it has networks that fill a GPU."""
        return self.models == "published" and bool(rewards.card(self.reward).published)


class Desk:
    """Loads rewards when they are first asked for, and keeps them and their values."""

    def __init__(self) -> None:
        self._rewards: dict[str, Cached] = {}
        self._used: set[str] = set()
        """Which may hold networks in memory."""

    def score(self, order: Order, items: Sequence[tuple[str, str]]) -> list[Score | RewardError]:
        """For each (path of an image, prompt), in order, a score, or why there is none: it cannot be read, or lacks a prompt that is needed.

        Raises:
            RewardError: the reward cannot score.
        """
        prompted = rewards.card(order.reward).prompted
        pictures = {path: _picture(path) for path, _ in items}
        found = [NO_PROMPT if prompted and not prompt.strip() else pictures[path] for path, prompt in items]
        samples = [Sample(at, _whole(items[at][1]), image) for at, image in enumerate(found) if isinstance(image, Image.Image)]
        scores = iter(self._scored(order, samples) if samples else ())
        return [image if isinstance(image, RewardError) else next(scores) for image in found]

    def _scored(self, order: Order, samples: Sequence[Sample]) -> list[Score]:
        key = order.key
        if key not in self._rewards:
            self._rewards[key] = Cached(_load(order))
        if order.large:
            for other in self._used & self._rewards.keys() - {key}:
                self._rewards[other].free()  # one set of large networks at a time; values are kept
            self._used.clear()
        self._used.add(key)
        try:
            return self._rewards[key].score(samples)
        except RewardError:
            self._rewards.pop(key).free()  # it is loaded anew when it is asked again
            raise

    def answer(self, line: str) -> dict[str, Any]:
        """The answer to one request in JSON: a score or an error for each picture, or in plain words why there are none."""
        request: dict[str, Any] = {}
        try:
            request = _request(line)
            request.pop("id", None)
            items = request.pop("items")
            return dict(id=_id(line), scores=[_json(score) for score in self.score(Order(**request), items)])
        except RewardError as error:
            return dict(id=_id(line), error=str(error), missing=_missing(error))
        except Exception as error:
            return dict(id=_id(line), error=_failed(str(request.get("reward", "")), error), missing=False)


def serve(lines: Iterable[str]) -> Iterator[str]:
    """An answer, as a line of JSON, for each line that asks for something."""
    desk = Desk()
    for line in lines:
        if line.strip():
            yield json.dumps(desk.answer(line), allow_nan=False)


def _load(order: Order) -> Reward:
    try:
        return rewards.load(order.reward, order.models, order.device, order.precision, order.vlm, **order.arguments)
    except RewardError:
        raise
    except Exception as error:  # for instance no such device, or no such argument
        raise RewardError(_failed(order.reward, error)) from error


def _failed(reward: str, error: Exception) -> str:
    said = (str(error).strip() or "no reason given").splitlines()[0]
    return f"The reward {reward} failed: {type(error).__name__}: {said}".replace("  ", " ")


def _picture(path: str) -> Image.Image | RewardError:
    """A file's picture, or why there is none, without the path."""
    try:
        return opened(path)
    except RewardError as error:
        return error


def _whole(prompt: str) -> str:
    """A prompt that every tokenizer takes: half an emoji, or a byte that is no UTF-8, is a question mark."""
    return prompt.encode("utf-8", "replace").decode()


def _request(line: str) -> dict[str, Any]:
    """What a line asks for.

    Raises:
        RewardError: it is no request.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RewardError("This line is no JSON.") from error
    if not isinstance(found, dict) or not isinstance(found.get("items"), list):
        raise RewardError("A request is an object with a reward, and items: a list of image and prompt.")
    if unknown := sorted(set(found) - {"id", "items", *Order.__dataclass_fields__}):
        raise RewardError(f"A request has no {', '.join(unknown)}.")
    if found.get("reward") not in rewards.automatic():
        raise RewardError(f"There is no such reward. Choose one of {', '.join(rewards.automatic())}.")
    if found.get("models", "published") not in ("published", "pocket"):
        raise RewardError("models is published or pocket.")
    if found.get("precision", "auto") not in PRECISIONS:
        raise RewardError(f"precision is {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}.")
    items = found["items"]
    if not all(isinstance(each, dict) and isinstance(each.get("image"), str) and isinstance(each.get("prompt", ""), str) for each in items):
        raise RewardError("An item is an object with the path of an image, and a prompt.")
    return found | dict(items=[(each["image"], each.get("prompt", "")) for each in items])


def _id(line: str) -> Any:
    """The id of a request, as far as the line can be read and JSON can say it."""
    try:
        found = json.loads(line)
        id = found.get("id") if isinstance(found, dict) else None
        json.dumps(id, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return id


def _json(score: Score | RewardError) -> dict[str, Any]:
    """A score for JSON, which knows no infinities, or what is wrong with the picture."""
    if isinstance(score, RewardError):
        return dict(error=str(score))
    value = score.value if score.value is not None and math.isfinite(score.value) else None
    return dict(value=value, explanation=json.loads(json.dumps(score.explanation, default=str), parse_constant=lambda _: None))


def _missing(error: RewardError) -> bool:
    """Whether networks have to be downloaded first."""
    if error.__cause__ is None:
        return False
    from rewards.networks import causes, unreachable

    return unreachable(causes(error))
