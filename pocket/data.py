"""Rendered scenes on disk: made once, read by every stage of the recipe."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pocket import world

Draw = Callable[[int], tuple[str, Image.Image]]
"""A seed to a caption and a picture; a function of a module, so that other processes can find it."""


def _render(draw: Draw, seed: int) -> tuple[str, np.ndarray]:
    caption, picture = draw(seed)
    return caption, np.asarray(picture)


def scenes(folder: Path, name: str, first_seed: int, count: int, draw: Draw = world.sample) -> tuple[list[str], np.ndarray]:
    """Captions and pictures (count, 64, 64, 3) uint8 of ``count`` scenes from ``first_seed`` on; rendered if they are not on disk."""
    pictures_file, captions_file = folder / f"{name}.npy", folder / f"{name}.json"
    if not captions_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{name}.partial.npy"
        pictures = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, world.SIZE, world.SIZE, 3))
        captions = []
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            for i, (caption, picture) in enumerate(pool.imap(partial(_render, draw), range(first_seed, first_seed + count), chunksize=256)):
                captions.append(caption)
                pictures[i] = picture
        pictures.flush()
        unfinished.rename(pictures_file)
        captions_file.write_text(json.dumps(captions))
    return json.loads(captions_file.read_text()), np.load(pictures_file, mmap_mode="r")
