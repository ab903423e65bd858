"""The protocol of a reward: what is good? Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Protocol

from PIL import Image, ImageOps

LARGEST_PIXELS = 40_000_000
"""Larger pictures of people's own are refused before they are unpacked."""
LONGEST = 100
"""How many times as long as wide they may be. CLIP makes the short side 224 pixels: of 20,000 × 2 a picture of two million × 224, and 5 GB."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats in which people's own pictures are scored; what else Pillow opens is none that people have."""


@dataclass(frozen=True)
class Sample:
    """One generated image and the prompt that it was made for. ``id`` is its row in the run's store."""

    id: int
    prompt: str
    image: Image.Image


@dataclass(frozen=True)
class Score:
    """What a reward says of one sample.

    ``value`` is None where there is no opinion (an image nobody rated): such a sample weighs nothing in the update.
    ``explanation`` holds what the value was made from, for people to read, for instance ``{"size_kb": 2.41}``.
    """

    value: float | None
    explanation: dict[str, object] = field(default_factory=dict)


class RewardError(RuntimeError):
    """A reward cannot score; the message says why and what to do."""


class Reward(Protocol):
    """Scores samples; one score for each sample, in order. What it needs is loaded when it first scores.

    One with networks also has ``free()``, which gives their memory back; the next score loads them again. What an automatic reward says depends on
    picture and prompt alone: it is remembered by these (:mod:`rewards.cache`), and may be asked before a sample has its id.
    """

    name: str

    def score(self, samples: Sequence[Sample]) -> list[Score]: ...


def check_address(address: str) -> None:
    """Refuse an endpoint's address that says who asks, as in ``http://name:password@host``: settings, logs and reports would show it. A password may
    hold any letter, so what stands in a port's place must be a number.

    Raises:
        RewardError: it does.
    """
    scheme, host = re.fullmatch(r"\s*(\w+://)?([^/?#]*).*", address, re.DOTALL).groups()  # type: ignore[union-attr]
    named = "@" in host and (scheme or ":" in host)
    if named or (scheme and re.search(r":(?!\d*\s*$)", re.sub(r"\[[^\]]*\]?", "", host))):
        raise RewardError(
            "The endpoint's address holds a name or password, which anybody could read in the settings, or a port that is no number. "
            "A key goes into DDPO_VLM_KEY."
        )


def opened(file: str | IO[bytes]) -> Image.Image:
    """A person's own picture as it is seen: its first frame, upright, in RGB.

    Raises:
        RewardError: there is none that can be read, or it is too large. The message names no file.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST_PIXELS:
                raise RewardError(f"It has {width} × {height} pixels. Make it smaller: at most 40 million.")
            if max(width, height) > LONGEST * min(width, height):
                raise RewardError(f"It has {width} × {height} pixels. Cut it: at most {LONGEST} times as long as wide.")
            image.load()
            upright: Image.Image = image
            with suppress(Exception):  # of damaged notes on it alone, the picture is as it is
                upright = ImageOps.exif_transpose(image)
            return as_seen(upright)
    except RewardError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RewardError("It has far too many pixels. Make it smaller: at most 40 million.") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise RewardError(f"It cannot be read: {error.strerror}.") from error
        raise RewardError("It is no picture that can be read. Bring a PNG, JPEG, WebP, GIF, BMP or TIFF file.") from error


def as_seen(image: Image.Image) -> Image.Image:
    """A picture in RGB as people see it: what is transparent lies on white, 16 bits of grey become 8.

    Raises:
        RewardError: its numbers are no brightness that anybody could show.
    """
    if image.mode.startswith("I"):
        grey = image.convert("I")
        low, high = grey.getextrema()
        if not (isinstance(low, int) and isinstance(high, int) and low >= 0 and high <= 65_535):
            raise RewardError("It has 32-bit numbers instead of colours. Save it as an 8-bit or 16-bit picture.")
        return grey.point(lambda value: value * (1 / 257) + 0.5).convert("RGB")
    if image.mode == "F":
        raise RewardError("It has fractions instead of colours. Save it as an 8-bit or 16-bit picture.")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")
