"""Scores pictures for other programs and for the command line: rewards stay loaded, and what was scored once is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

import rewards
from rewards.base import Reward, RewardError, Sample, Score
from rewards.cache import Cached

LARGEST_PIXELS = 40_000_000
"""Larger pictures are refused before they are unpacked."""


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
        return json.dumps([self.reward, self.models, self.device, self.precision, self.vlm, dict(self.arguments)], sort_keys=True)


class Desk:
    """Loads rewards when they are first asked for, and keeps them and their values."""

    def __init__(self) -> None:
        self._rewards: dict[str, Cached] = {}

    def score(self, order: Order, items: Sequence[tuple[str, str]]) -> list[Score]:
        """A score for each (path of an image, prompt), in order.

        Raises:
            RewardError: the reward cannot score, or a file is no picture.
        """
        pictures = {path: _picture(path) for path, _ in items}
        samples = [Sample(at, prompt, pictures[path]) for at, (path, prompt) in enumerate(items)]
        if order.key not in self._rewards:
            self._rewards[order.key] = Cached(_load(order))
        try:
            return self._rewards[order.key].score(samples)
        except RewardError:
            self._rewards.pop(order.key).free()  # it is loaded anew when it is asked again
            raise

    def answer(self, line: str) -> dict[str, Any]:
        """The answer to one request in JSON: its scores, or in plain words why there are none."""
        request: dict[str, Any] = {}
        try:
            request = _request(line)
            id, items = request.pop("id", None), request.pop("items")
            return dict(id=id, scores=[_json(score) for score in self.score(Order(**request), items)])
        except RewardError as error:
            return dict(id=_id(line), error=str(error), missing=_missing(error))
        except Exception as error:
            words = f"The reward {request.get('reward', '')} failed: {type(error).__name__}: {error}".replace("  ", " ")
            return dict(id=_id(line), error=words, missing=False)


def serve(lines: Iterable[str]) -> Iterator[str]:
    """An answer, as a line of JSON, for each line that asks for something."""
    desk = Desk()
    for line in lines:
        if line.strip():
            yield json.dumps(desk.answer(line), allow_nan=False)


def _load(order: Order) -> Reward:
    return rewards.load(order.reward, order.models, order.device, order.precision, order.vlm, **order.arguments)


def _picture(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise RewardError(f"{path} has {image.width} × {image.height} pixels. Make it smaller: at most 40 million.")
            return image.convert("RGB")
    except RewardError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise RewardError(f"{path} cannot be read: {error.strerror}.") from error
        raise RewardError(f"{path} is no picture that can be read ({type(error).__name__}).") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise RewardError(f"{path} is no picture that can be read ({type(error).__name__}).") from error


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
    items = found["items"]
    if not all(isinstance(each, dict) and isinstance(each.get("image"), str) and isinstance(each.get("prompt", ""), str) for each in items):
        raise RewardError("An item is an object with the path of an image, and a prompt.")
    return found | dict(items=[(each["image"], each.get("prompt", "")) for each in items])


def _id(line: str) -> Any:
    """The id of a request, as far as the line can be read."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found.get("id") if isinstance(found, dict) else None


def _json(score: Score) -> dict[str, Any]:
    """A score for JSON, which knows no infinities."""
    value = score.value if score.value is not None and math.isfinite(score.value) else None
    return dict(value=value, explanation=json.loads(json.dumps(score.explanation, default=str), parse_constant=lambda _: None))


def _missing(error: RewardError) -> bool:
    """Whether networks have to be downloaded first."""
    if error.__cause__ is None:
        return False
    from rewards.networks import causes, unreachable

    return unreachable(causes(error))
