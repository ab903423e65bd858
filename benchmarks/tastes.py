"""Hidden tastes: what the simulated people of :mod:`benchmarks.hundred_ratings` like, each a number of an image, the larger the better.

Each taste is of the whole image, whatever its prompt, and none of them is told to anybody but the simulated person.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

BORDER = 7
"""Pixels of the left, upper and right border, where there is seldom an animal."""
DIFFERENT = 0.15
"""How far, in the mean of three channels, the animal's pixels are from the ground behind it."""


def pixels_of(image: Image.Image) -> Pixels:
    """(h, w, 3) in [0, 1]."""
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def luminance(rgb: Pixels) -> Pixels:
    found: Pixels = rgb @ np.array([0.2126, 0.7152, 0.0722])
    return found


def ground(rgb: Pixels) -> tuple[Pixels, Pixels]:
    """What lies behind the animal, as the plane through the border's colours, and the border's distance from it, (m, 3)."""
    height, width, _ = rgb.shape
    row, column = np.mgrid[0:height, 0:width]
    border = (row < BORDER) | (column < BORDER) | (column >= width - BORDER)
    plane = np.stack([np.ones((height, width)), row / height, column / width], -1)
    weights = np.linalg.lstsq(plane[border], rgb[border], rcond=None)[0]
    behind = plane @ weights
    return behind, (rgb - behind)[border]


def animal(rgb: Pixels) -> Pixels:
    """Where the image differs from its ground, (h, w)."""
    found: Pixels = np.abs(rgb - ground(rgb)[0]).mean(-1) > DIFFERENT
    return found


def warm(rgb: Pixels) -> float:
    """Red rather than blue."""
    return float(rgb[..., 0].mean() - rgb[..., 2].mean())


def big(rgb: Pixels) -> float:
    """A large animal."""
    return float(animal(rgb).mean())


def plain(rgb: Pixels) -> float:
    """A plain background."""
    return -float(np.sqrt((ground(rgb)[1] ** 2).mean()))


def contrast(rgb: Pixels) -> float:
    """Light beside dark."""
    return float(luminance(rgb).std())


def left(rgb: Pixels) -> float:
    """The animal to the left."""
    where = animal(rgb)
    return -float((where * np.arange(rgb.shape[1])).sum() / max(1, where.sum()))


def dark(rgb: Pixels) -> float:
    """Night rather than day."""
    return -float(luminance(rgb).mean())


def colourful(rgb: Pixels) -> float:
    """Many colours (Hasler & Süsstrunk 2003, eq. 6)."""
    across, along = rgb[..., 0] - rgb[..., 1], (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    return float(np.hypot(across.std(), along.std()) + 0.3 * np.hypot(across.mean(), along.mean()))


TASTES: dict[str, Callable[[Pixels], float]] = dict(warm=warm, big=big, plain=plain, contrast=contrast, left=left, dark=dark, colourful=colourful)


def opinion_of(taste: str, image: Image.Image) -> float:
    """How much somebody of that taste likes an image, in the taste's own units."""
    return TASTES[taste](pixels_of(image))
