"""Files that no reader and no crash ever meets half of, what was measured as JSON, and pictures."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from PIL import Image

Found = TypeVar("Found")


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    if os.name == "nt" and path.is_dir():  # pragma: no cover - Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """Within this context a file is written, under the name that is given, so that no reader and no crash ever meets half of it: temporary file,
    fsync, rename."""
    partial = file.with_name(f".{file.name}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    yield partial
    partial.chmod(mode)  # safetensors puts a file of its own in its place, which nobody else may read
    sync(partial)
    partial.replace(file)


def write_file(file: Path, data: bytes) -> None:
    """Write a file so that no reader and no crash ever meets half of it."""
    with writing(file) as partial:
        partial.write_bytes(data)


def copy_file(source: Path, file: Path) -> None:
    """Copy a file, of any size, in the same way."""
    with writing(file) as partial:
        shutil.copyfile(source, partial)


def write_json(file: Path, found: object) -> None:
    """Write a dataclass as JSON, in a folder that is made where there is none."""
    from pydantic import TypeAdapter  # here, since it takes a while

    file.parent.mkdir(exist_ok=True)
    write_file(file, TypeAdapter(type(found)).dump_json(found, indent=1))


def read_json(file: Path, kind: type[Found]) -> Found | None:
    """A dataclass from its JSON, with the dataclasses, tuples and mappings in it; what else stands there is passed over. None where there is no file,
    or it is damaged."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def sync_tree(folder: Path) -> None:
    """Force a folder and everything in it to disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync_names(path: Path, within: Path) -> None:
    """Force the name of a file or folder to disk, and those of the folders that hold it within another one."""
    for folder in path.parents:
        sync(folder)
        if folder == within:
            return


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
