"""The cache of open runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.runs import Runs
from ddpo.config import RunConfig
from ddpo.store import RunStore, StoreError, delete_run


def test_a_run_is_opened_once_and_anew_after_it_was_made_again(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "one", RunConfig()).close()
    runs = Runs(tmp_path)
    store = runs.open("one")
    assert runs.open("one") is store
    assert runs.names() == ["one"]
    delete_run(tmp_path / "one")
    with pytest.raises(StoreError, match="no run one"):
        runs.open("one")
    RunStore.create(tmp_path / "one", RunConfig(seed=7)).close()
    again = runs.open("one")
    assert again is not store and again.config.seed == 7
    runs.close()


@pytest.mark.parametrize("name", ["", ".", "..", "../one", "a/b", "a\x00b", ".hidden", "x" * 81, "caf\u00e9"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    runs = Runs(tmp_path)
    with pytest.raises(StoreError):
        runs.open(name)
    runs.close()
