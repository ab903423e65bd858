"""How much memory a process can still take: of a GPU, or of the machine and of the container that it runs in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from ddpo import launcher

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux tells the limits of control groups, and this process's groups."""


def free_memory(device: torch.device) -> int:
    """Bytes of a device that one of this machine's processes can still take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return max(0, min([int(psutil.virtual_memory().available), *limits()])) // launcher.local_size()


def limits(groups: Path = GROUPS, own: Path = OWN) -> list[int]:
    """Bytes that are left to each control group around this process that has a limit: a container's, for one, of which the machine's own figures
    know nothing. Files that the system keeps in memory count as free where it can drop them at once. Empty where there is no limit, or no Linux."""
    with contextlib.suppress(OSError):
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
        second = _second(groups, [path for number, _, path in lines if number == "0"])
        return [*second, *_first(groups / "memory", [path for _, names, path in lines if "memory" in names.split(",")])]
    return []


def _second(groups: Path, paths: list[str]) -> Iterator[int]:
    """By the second version of control groups."""
    for folder in _around(groups, paths):
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / "memory.max").read_text())  # "max" is no number, and no limit
            yield most - int((folder / "memory.current").read_text()) + _of(folder / "memory.stat", "inactive_file")


def _first(groups: Path, paths: list[str]) -> Iterator[int]:
    """By the first one, whose limit where there is none is a number beyond any memory."""
    for folder in _around(groups, paths):
        with contextlib.suppress(OSError, ValueError):
            most, now = (int((folder / f"memory.{name}_in_bytes").read_text()) for name in ("limit", "usage"))
            yield most - now + _of(folder / "memory.stat", "total_inactive_file")


def _around(groups: Path, paths: list[str]) -> Iterator[Path]:
    """The folders of the groups and of those that hold them. Within a container the paths may be the machine's: then only the top one is there."""
    for path in paths:
        folder = groups / path.strip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(groups))


def _of(file: Path, name: str) -> int:
    return next((int(value) for key, value in map(str.split, file.read_text().splitlines()) if key == name), 0)
