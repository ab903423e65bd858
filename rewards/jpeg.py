"""JPEG file size as a reward (Black et al. 2023, section 5.1), as published: Pillow's encoder, quality 95, kB = bytes / 1000."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from rewards.base import Sample, Score

QUALITY = 95
SUBSAMPLING = "4:2:0"
"""Pillow's default at quality 95, named so that no future default can change the reward."""


def size_kb(image: Image.Image) -> float:
    """Size of the image as a JPEG file, in kB (1000 bytes)."""
    file = io.BytesIO()
    image.convert("RGB").save(file, format="JPEG", quality=QUALITY, subsampling=SUBSAMPLING, optimize=False)
    return file.tell() / 1000


class _JpegSize:
    sign: int

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        sizes = [size_kb(sample.image) for sample in samples]
        return [Score(self.sign * size, {"size_kb": size}) for size in sizes]


class Compressibility(_JpegSize):
    """Minus the JPEG size in kB; fooled by blank, blurred or flat images."""

    name, sign = "jpeg_compressibility", -1


class Incompressibility(_JpegSize):
    """The JPEG size in kB; fooled by noise."""

    name, sign = "jpeg_incompressibility", 1
