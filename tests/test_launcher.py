"""What a launcher of several processes says."""

from __future__ import annotations

import pytest

from ddpo import launcher


def test_without_a_launcher_there_is_one_process_and_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A WORLD_SIZE alone, as some clusters export it, launches nothing."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (launcher.rank(), launcher.size(), launcher.local_rank(), launcher.local_size()) == (0, 1, 0, 1)


def test_a_launcher_names_the_process_and_its_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in dict(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4").items():
        monkeypatch.setenv(name, value)
    assert (launcher.rank(), launcher.size(), launcher.local_rank(), launcher.local_size()) == (5, 8, 1, 4)
