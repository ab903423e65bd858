"""Files that no reader and no crash ever meets half of, and pictures from them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    if os.name == "nt" and path.is_dir():  # pragma: no cover - Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(file: Path, data: bytes) -> None:
    """Write a file so that no reader and no crash ever meets half of it: temporary file, fsync, rename."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(data)
    sync(partial)
    partial.replace(file)


def sync_tree(folder: Path) -> None:
    """Force a folder and everything in it to disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def write_images(run: Path, number: int, images: Sequence[Image.Image]) -> list[str]:
    """Write a round's images durably into a run folder; returns their paths in it."""
    folder = run / "samples" / f"{number:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for image in images:
        data = io.BytesIO()
        image.save(data, format="PNG")
        file = folder / f"{hashlib.sha256(data.getvalue()).hexdigest()[:32]}.png"
        if not file.exists():
            try:
                write_file(file, data.getvalue())
            except FileNotFoundError:  # another process has just finished the very same image
                if not file.exists():
                    raise
        paths.append(file.relative_to(run).as_posix())
    sync(folder)
    return paths


def read_image(file: Path) -> Image.Image:
    """A picture in RGB, with its file closed again."""
    with Image.open(file) as image:
        return image.convert("RGB")
