"""A checkpoint on disk: what writing and copying it takes. (What it holds is seen where runs are resumed: ``test_trainer.py``, ``test_fork.py``.)"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ddpo.checkpoint import save_state
from ddpo.fork import fork
from ddpo.store import RunStore
from tests.toys_ddpo import toy_config

NUMBERS = 4_000_000


@contextmanager
def taken() -> Iterator[Callable[[], int]]:
    """Within this context, the most bytes that Python has held at once."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_weights_are_written_and_copied_without_another_copy_in_memory(tmp_path: Path) -> None:
    """16 MB of weights, by a checkpoint and by a run that goes on from it: not a tenth of that is held as bytes. What others may read of a run they
    may read of its checkpoints."""
    store = RunStore.create(tmp_path / "parent", toy_config())
    place, weight = store.folder / "checkpoints" / "0001", nn.Parameter(torch.ones(NUMBERS))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with taken() as most:
        save_state(place, store.config, 1, dict(weight=weight), torch.optim.AdamW([weight]), scaler, None, "base")
        assert most() < 4 * NUMBERS / 10
    assert [file.name for file in place.iterdir()] == ["state.safetensors"]
    assert (place / "state.safetensors").stat().st_mode == (store.folder / "config.json").stat().st_mode
    store.start_round(1)
    store.add_checkpoint(1, place)
    with taken() as most:
        made = fork(store, 1, tmp_path / "child")
        assert most() < 4 * NUMBERS / 10
    assert (made.folder / "parent" / "state.safetensors").read_bytes() == (place / "state.safetensors").read_bytes()
