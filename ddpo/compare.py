"""Pictures of states to compare: ``python -m ddpo.compare`` answers requests, one a line in JSON, with one model kept in memory.

A request is ``{"run", "round", "lora", "strength", "items": [{"prompt", "seed", "file"}, ...]}``: pictures of one state (:class:`ddpo.states.State`),
each to be written as a PNG. The answer is ``{"made": n}``, or ``{"error": "why not, and what to do"}``; pictures appear as they are made, each whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ddpo.checkpoint import load_state
from ddpo.config import RunConfig
from ddpo.files import write_file
from ddpo.policy import StableDiffusionPolicy
from ddpo.rollout import batches, rollout
from ddpo.states import OF_BASE, OF_TRAINED, State, StateError, base_files
from ddpo.worker import explain, keep_freed_memory
from rewards.__main__ import print_answers, quiet_stdout


class Warm:
    """One model in memory, with the weights of the state that was asked for last."""

    def __init__(self) -> None:
        self.loads = 0
        """How often a model was loaded."""
        self._policy: StableDiffusionPolicy | None = None
        self._base: tuple[Any, ...] = ()
        self._adapter: tuple[Any, ...] = ()
        self._weights: tuple[Any, ...] | None = None

    def policy(self, state: State) -> tuple[StableDiffusionPolicy, RunConfig]:
        """The state's policy, at full strength, and its settings. A model that fits is not loaded again: the base model is beneath every adapter.

        Raises:
            StateError: there is no such state.
            ConfigError: its model cannot be loaded.
            CheckpointError: the round's weights cannot be read, or are of another base model.
        """
        config = state.settings()
        weights = None if state.is_base else state.identity(config)
        base = (*(getattr(config, name) for name in OF_BASE), base_files(config))
        adapter = (*(getattr(config, name) for name in OF_TRAINED), weights if state.lora else None)
        if self._policy is None or self._base != base or (self._adapter != adapter and not state.is_base):
            self._policy = self._weights = None  # first: there may be no room for two
            self._policy, self._base, self._adapter = StableDiffusionPolicy.load(config), base, adapter
            self.loads += 1
        if not state.is_base and not state.lora and self._weights != weights:
            self._weights = None
            load_state(state.weights.parent, self._policy.parameters(), base=self._policy.fingerprint, averaged=True)
            self._weights = weights
        return self._policy, config


def pictures(warm: Warm, state: State, prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[list[Image.Image]]:
    """What the state's run samples from prompts and seeds, a microbatch at a time, as they are made."""
    policy, config = warm.policy(state)
    with policy.base() if state.is_base else policy.scaled(state.strength):
        for batch in batches(len(prompts), config.microbatch):
            yield rollout(policy, [prompts[i] for i in batch], [seeds[i] for i in batch])[1]


def answer(warm: Warm, line: str) -> dict[str, Any]:
    """What is answered to a request, with its pictures on disk."""
    try:
        request = json.loads(line)
        state = State(Path(request["run"]), int(request["round"]), str(request["lora"]), float(request["strength"]))
        items = [(str(item["prompt"]), int(item["seed"]), Path(item["file"])) for item in request["items"]]
    except (ValueError, KeyError, TypeError) as error:
        return dict(error=f"This is no request: {error}.")
    left = iter(items)
    try:
        for images in pictures(warm, state, [prompt for prompt, _, _ in items], [seed for _, seed, _ in items]):
            for image, (_, _, file) in zip(images, left, strict=False):
                data = io.BytesIO()
                image.save(data, format="PNG")
                write_file(file, data.getvalue())
    except StateError as error:
        return dict(error=str(error))
    except Exception as error:
        return dict(error=explain(error))
    return dict(made=len(items))


def serve(lines: Iterable[str]) -> Iterator[str]:
    """The answer to each line, as a line."""
    warm = Warm()
    for line in lines:
        yield json.dumps(answer(warm, line))


def main() -> int:
    """Answer until the input, or the program that started this one, ends."""
    keep_freed_memory()
    with quiet_stdout() as out:
        print_answers(serve(sys.stdin), out)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        sys.exit(main())
    sys.exit(130)
