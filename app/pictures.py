"""Pictures that people have brought to the Rewards page: checked, and kept under a hash of their content for as long as the server runs."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from rewards.base import RewardError, opened

LARGEST_BYTES = 20 * 1024 * 1024
MOST_PICTURES = 256
"""How many are kept, over all pages; then those go that were brought longest ago."""
SMALL = 256
"""Longest side of a picture in the table, in pixels."""
HASH = re.compile(r"[0-9a-f]{32}")


class PictureError(ValueError):
    """This picture cannot be taken; the message says why and what to do."""


class Pictures:
    """A temporary folder of pictures."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock = threading.Lock()

    def add(self, data: bytes) -> dict[str, Any]:
        """Keep a picture as it is seen: upright, on white, in RGB, the first frame. Returns its hash and its size in pixels.

        Raises:
            PictureError: it is no picture, or too large.
        """
        if len(data) > LARGEST_BYTES:
            raise PictureError("This file has more than 20 MB. Save the picture smaller, or as a JPEG.")
        image = _opened(data)
        key = hashlib.sha256(data).hexdigest()[:32]
        with self._lock:
            folder = self._made()
            if (folder / f"{key}.png").exists():
                os.utime(folder / f"{key}.png")  # brought again, it is one of the latest
            else:
                small = image.copy()
                small.thumbnail((SMALL, SMALL))
                small.save(folder / f"{key}.small.png")
                image.save(folder / f"{key}.part", format="PNG", compress_level=1)
                (folder / f"{key}.part").replace(folder / f"{key}.png")
                self._make_room(folder)
            return dict(picture=key, width=image.width, height=image.height)

    def path(self, key: str, small: bool = False) -> Path | None:
        """The file of a picture, or None where there is none any more."""
        if self._folder is None or not HASH.fullmatch(key):
            return None
        path = self._folder / (f"{key}.small.png" if small else f"{key}.png")
        return path if path.is_file() else None

    def close(self) -> None:
        with self._lock:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _made(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ddpo-studio-"))
        return self._folder

    @staticmethod
    def _make_room(folder: Path) -> None:
        kept = sorted((p for p in folder.glob("*.png") if not p.name.endswith(".small.png")), key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-MOST_PICTURES]:
            path.unlink()
            path.with_suffix(".small.png").unlink(missing_ok=True)


def _opened(data: bytes) -> Image.Image:
    """The picture in a file.

    Raises:
        PictureError: there is none, or it is too large.
    """
    try:
        return opened(io.BytesIO(data))
    except RewardError as error:
        raise PictureError(str(error).replace("It has", "This picture has", 1).replace("It is", "This is", 1)) from error
