"""LoRA files that people bring to the Compare page: checked by their header, and kept under a hash of their content beside the pictures."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterable
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from ddpo.config import ConfigError
from ddpo.source import lora_ranks, tensor_shapes

LARGEST_BYTES = 4 * 1024**3
FOLDER = "loras"
UNSAFE = re.compile(r"[^\w.-]+")


class LoraFileError(ValueError):
    """This file cannot be taken; the message says why."""


async def keep_lora(folder: Path, name: str, parts: AsyncIterable[bytes]) -> Path:
    """Write a file that is being sent; where it lies then. One that was brought before is not kept twice.

    Raises:
        LoraFileError: it is no LoRA, or too large.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    partial, digest, size = place / f".{secrets.token_hex(8)}.partial", hashlib.sha256(), 0
    try:
        with open(partial, "wb") as stored:
            async for part in parts:
                size += len(part)
                if size > LARGEST_BYTES:
                    raise LoraFileError("This file has more than 4 GB. A LoRA is much smaller; is it a whole model?")
                digest.update(part)
                await run_in_threadpool(stored.write, part)
        _check(partial)
        here = place / digest.hexdigest()[:16]
        if known := sorted(here.glob("*.safetensors")):
            return known[0].resolve()
        short = UNSAFE.sub("-", Path(name).stem)[:60].strip(".-") or "lora"
        file = here / f"{short}.safetensors"
        here.mkdir(exist_ok=True)
        partial.replace(file)
        return file.resolve()
    finally:
        partial.unlink(missing_ok=True)


def _check(file: Path) -> None:
    try:
        shapes = tensor_shapes(file)
    except ConfigError as error:
        raise LoraFileError("This is no .safetensors file. Bring a LoRA's, for diffusers or in kohya's layout.") from error
    if not lora_ranks(shapes):
        raise LoraFileError("This file holds no LoRA layers. Bring a LoRA's .safetensors file, for diffusers or in kohya's layout.")
