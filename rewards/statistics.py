"""A measure of beauty in closed form, from published image statistics: the *gold* that the pocket's learned aesthetic, the *proxy*, was trained to
guess. It sees what the proxy may miss, so that training on the proxy shows overoptimisation.

=============== ============================================================================================ ===================================
statistic       what                                                                                         source
=============== ============================================================================================ ===================================
colourfulness   σ_rgyb + 0.3 μ_rgyb of the opponent colours R - G and (R + G) / 2 - B                         Hasler & Süsstrunk 2003, eq. 6
contrast        standard deviation of luminance                                                              Peli 1990, eq. 3
simplicity      1 - the area of the box that holds 96 % of the Laplacian's energy (1 % cut off at each side)  Ke et al. 2006, section 4.1
placement       nearness of the edges' centre of mass to the nearest of the four power points of thirds       Datta et al. 2006, section 3.4
=============== ============================================================================================ ===================================

Each is standardised by its mean and deviation over renders of the pocket world (``python -m pocket.aesthetic --measure``), limited to ±3, weighted,
and the sum put on a scale with mean 5 and deviation 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from rewards.base import Sample, Score

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

WEIGHTS = dict(colourfulness=0.45, contrast=0.35, simplicity=0.15, placement=0.05)
TYPICAL: dict[str, tuple[float, float]] = dict(colourfulness=(75.6, 28.0), contrast=(33.9, 13.5), simplicity=(0.362, 0.188), placement=(0.762, 0.054))
"""Mean and standard deviation over renders of the pocket world."""


def colourfulness(rgb: Pixels) -> float:
    """Of pixels (h, w, 3) in [0, 255]; 0 for grey, about 100 for loud."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def luminance(rgb: Pixels) -> Pixels:
    """Rec. 709 luma of pixels (h, w, 3), (h, w)."""
    found: Pixels = rgb @ np.array([0.2126, 0.7152, 0.0722])
    return found


def contrast(rgb: Pixels) -> float:
    """Root mean square contrast: 0 for one grey, at most 127.5."""
    return float(luminance(rgb).std())


def edges(rgb: Pixels) -> Pixels:
    """The size of the Laplacian of the luminance, (h, w)."""
    padded = np.pad(luminance(rgb), 1, mode="edge")
    centre = padded[1:-1, 1:-1]  # differences first: they are exactly 0 between equal neighbours
    return np.abs((centre - padded[:-2, 1:-1]) + (centre - padded[2:, 1:-1]) + (centre - padded[1:-1, :-2]) + (centre - padded[1:-1, 2:]))


def simplicity(rgb: Pixels) -> float:
    """In [0, 1]; an image without edges has 0."""
    found = edges(rgb)
    if not found.any():
        return 0.0
    sides = []
    for axis in (0, 1):
        share = np.cumsum(found.sum(axis=axis)) / found.sum()
        low, high = np.searchsorted(share, (0.01, 0.99))
        sides.append((min(high, len(share) - 1) - low + 1) / len(share))
    return float(1 - sides[0] * sides[1])


def placement(rgb: Pixels) -> float:
    """In [0, 1]: 1 with the edges' centre of mass on a power point, 0 at half a diagonal from all; 0 without edges."""
    found = edges(rgb)
    if not found.any():
        return 0.0
    h, w = found.shape
    y = float((found.sum(1) * (np.arange(h) + 0.5)).sum() / found.sum() / h)
    x = float((found.sum(0) * (np.arange(w) + 0.5)).sum() / found.sum() / w)
    nearest = min(np.hypot(x - i / 3, y - j / 3) for i in (1, 2) for j in (1, 2))
    return float(max(0.0, 1 - nearest / np.hypot(0.5, 0.5)))


STATISTICS = dict(colourfulness=colourfulness, contrast=contrast, simplicity=simplicity, placement=placement)


def statistics_of(image: Image.Image) -> dict[str, float]:
    """All statistics of an image."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.float64)
    return {name: measure(rgb) for name, measure in STATISTICS.items()}


def points(found: dict[str, float]) -> float:
    """The statistics on one scale: 5 is typical, 1 is one standard deviation were they independent."""
    standing = {name: float(np.clip((found[name] - mean) / std, -3, 3)) for name, (mean, std) in TYPICAL.items()}
    spread = float(np.sqrt(sum(weight**2 for weight in WEIGHTS.values())))
    return 5 + sum(WEIGHTS[name] * value for name, value in standing.items()) / spread


class ImageStatistics:
    """Points of about 1 to 10; fooled by loud colours and a single hard-edged spot."""

    name = "image_statistics"

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        found = [statistics_of(sample.image) for sample in samples]
        return [Score(points(each), dict(each)) for each in found]
