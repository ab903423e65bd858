"""How much memory is left: the machine's, or less where a container says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddpo import launcher, memory
from ddpo.memory import free_memory, limits

CPU = torch.device("cpu")


def told(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".", 1)).write_text(text + "\n")


def test_the_second_version_s_limits_are_those_of_all_groups_around(tmp_path: Path) -> None:
    """100 in all less 60 taken, of which 10 can be dropped; the outer group has 45 left; the outermost has no limit."""
    told(tmp_path / "groups", memory__max="max", memory__current="1", memory__stat="inactive_file 0")
    told(tmp_path / "groups" / "outer", memory__max="50", memory__current="5", memory__stat="anon 3\ninactive_file 0")
    told(tmp_path / "groups" / "outer" / "own", memory__max="100", memory__current="60", memory__stat="anon 40\ninactive_file 10\nfile 20")
    (tmp_path / "own").write_text("0::/outer/own\n")
    assert limits(tmp_path / "groups", tmp_path / "own") == [50, 45]


def test_the_first_version_s_are_found_in_its_own_place_and_within_a_container_at_the_top(tmp_path: Path) -> None:
    """The path is the machine's, and not there; the container's own limit is at the top."""
    told(
        tmp_path / "groups" / "memory",
        memory__limit_in_bytes="1000",
        memory__usage_in_bytes="400",
        memory__stat="inactive_file 1\ntotal_inactive_file 50",
    )
    (tmp_path / "own").write_text("5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n")
    assert limits(tmp_path / "groups", tmp_path / "own") == [650]


def test_without_linux_or_with_broken_files_there_is_no_limit(tmp_path: Path) -> None:
    assert limits(tmp_path / "groups", tmp_path / "nothing") == []
    told(tmp_path / "groups", memory__max="much")
    (tmp_path / "own").write_text("0::/\n")
    assert limits(tmp_path / "groups", tmp_path / "own") == []


def test_the_least_counts_and_is_shared_by_the_machine_s_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "limits", list)
    whole = free_memory(CPU)
    assert whole > 1 << 20
    monkeypatch.setattr(memory, "limits", lambda: [1 << 19, 1 << 21])
    assert free_memory(CPU) == 1 << 19
    monkeypatch.setattr(launcher, "local_size", lambda: 4)
    assert free_memory(CPU) == 1 << 17
    monkeypatch.setattr(memory, "limits", lambda: [-5])
    assert free_memory(CPU) == 0
