"""States of a model that can be compared, and what determines a picture of one: the base model, a run's rounds, and LoRA files. Imports no torch.

A state belongs to a run, whose base model and sampler make its pictures: those that the run itself would sample from the same prompt and seed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpo.config import ConfigError, RunConfig
from ddpo.source import attention_alone, init_lora_file, lora_file, lora_ranks, model_source, tensor_shapes

WEAKEST, STRONGEST = 0.0, 1.5
"""How much of what was trained a picture can be made with; 1 is all of it."""
OF_BASE = ("model", "model_config", "revision", "resolution", "steps", "guidance", "eta", "precision", "device", "vae_tiling")
"""The settings that determine a picture of the base model, beside its weights."""
OF_TRAINED = ("training", "lora_rank", "lora_alpha", "lora_targets")
"""The further settings that say what trained weights are."""
WEIGHTS = "state.safetensors"
"""A checkpoint's file."""


class StateError(ValueError):
    """There is no such state; the message says why and what to do."""


@dataclass(frozen=True)
class State:
    """The base model of a run, one of its rounds, or a LoRA file over its base model."""

    run: Path
    """The run's folder."""
    round: int = 0
    """0 is the base model."""
    lora: str = ""
    """A LoRA's file, or the folder of one."""
    strength: float = 1.0
    """The share of what was trained."""

    def __post_init__(self) -> None:
        if not WEAKEST <= self.strength <= STRONGEST:
            raise StateError(f"strength is {self.strength:g}; it must be from {WEAKEST:g} to {STRONGEST:g}. 1 is what was trained.")
        if self.lora and self.round:
            raise StateError("A state is a round or a LoRA file, not both.")

    @property
    def is_base(self) -> bool:
        """Whether its pictures are the base model's."""
        return not (self.round or self.lora) or self.strength == 0

    @property
    def weights(self) -> Path:
        """A round's trained weights."""
        return self.run / "checkpoints" / f"{self.round:04d}" / WEIGHTS

    def settings(self) -> RunConfig:
        """The run's settings; of a LoRA file those of a run that starts from it.

        Raises:
            StateError: the run or the LoRA cannot be read.
        """
        try:
            config = RunConfig.load(self.run / "config.json")
            return config.with_changes(init_lora="") if self.is_base or not self.lora else _with_lora(config, self.lora)
        except ConfigError as error:
            raise StateError(str(error).replace("init_lora is", "The LoRA is", 1)) from error

    def fixes(self) -> str:
        """A hash of everything that determines its pictures but prompt and seed. Weights count by their files' sizes and times.

        Raises:
            StateError: the run, the round or the LoRA is not there.
        """
        config = self.settings()
        try:
            parts: list[Any] = [{name: getattr(config, name) for name in OF_BASE}, base_files(config)]
        except (ConfigError, OSError) as error:
            raise StateError(str(error)) from error
        if not self.is_base:
            parts += [{name: getattr(config, name) for name in OF_TRAINED}, self.identity(config), round(self.strength, 4)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def identity(self, config: RunConfig) -> tuple[Any, ...]:
        """What tells its weights, in a file, from any others.

        Raises:
            StateError: they are not there.
        """
        file = Path(config.init_lora) if self.lora else self.weights
        try:
            return (str(file.resolve()) if self.lora else f"{self.run.name}/{self.round}", *file_state(file))
        except OSError as error:
            raise StateError(f"Round {self.round} of {self.run.name} has no weights. Choose a round that is finished.") from error


def picture_key(fixes: str, prompt: str, seed: int) -> str:
    """The name of a picture: a hash of all that determines it, :meth:`State.fixes` first."""
    return hashlib.sha256(json.dumps([fixes, prompt, seed]).encode()).hexdigest()[:32]


def _with_lora(config: RunConfig, lora: str) -> RunConfig:
    """The settings of an adapter that holds a LoRA file: its rank, the layers that it needs, a scale of 1.

    Raises:
        ConfigError: the file is missing, or no LoRA of a kind that is known.
    """
    file = lora_file(lora)
    shapes = tensor_shapes(file)
    targets = "attention" if attention_alone(shapes) else "all"
    rank = min(lora_ranks(shapes), default=config.lora_rank)
    adapter: dict[str, Any] = dict(init_lora=str(file), lora_rank=rank, lora_alpha=0.0, lora_targets=targets, training="lora")
    config = config.with_changes(**adapter)
    init_lora_file(config)
    return config


def base_files(config: RunConfig) -> list[Any]:
    """What tells the base model's weights from others: the files' names, sizes and times; of a model on the Hub its name and revision.

    Raises:
        ConfigError: there is no such model.
    """
    source = model_source(config)
    if source.kind == "hub":
        return [source.name]
    path = Path(source.name)
    files = sorted(path.glob("*/*.safetensors")) if path.is_dir() else [path]
    return [[file.name, file.parent.name, *file_state(file)] for file in files]


def file_state(file: Path) -> tuple[int, int]:
    """A file's size and the time of its last change, in nanoseconds."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def differences(first: State, second: State) -> dict[str, tuple[Any, Any]]:
    """The settings in which the pictures of two states differ beside what was trained, with both values.

    Raises:
        StateError: one of them cannot be read.
    """
    a, b = first.settings(), second.settings()
    both = {name: (getattr(a, name), getattr(b, name)) for name in OF_BASE if name not in ("device", "vae_tiling", "model_config")}
    return {name: values for name, values in both.items() if values[0] != values[1]}
