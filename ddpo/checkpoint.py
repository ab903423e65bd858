"""The trainer's state on disk: adapter weights and AdamW's moments, as safetensors with a header; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ddpo.config import SCHEMA_VERSION, RunConfig
from ddpo.store import write_file

FILE = "state.safetensors"


class CheckpointError(RuntimeError):
    """The checkpoint does not fit or cannot be read; the message says what to do."""


def save_state(
    folder: Path, config: RunConfig, number: int, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, loss_scale: float = 1.0
) -> None:
    """Write weights, the optimiser's state and fp16's loss scale after round ``number``. Random state is none: it is derived from seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"weight/{name}"] = parameter.detach()
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value)
    header = dict(version=str(SCHEMA_VERSION), round=str(number), config=json.dumps(asdict(config)), loss_scale=str(loss_scale))
    write_file(folder / FILE, save({k: v.cpu().contiguous() for k, v in tensors.items()}, metadata=header))


class Loaded(NamedTuple):
    round: int
    """The round after which the checkpoint was written."""
    loss_scale: float


def load_state(folder: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None = None) -> Loaded:
    """Put a checkpoint's weights, and the optimiser's state if one is given, in place.

    Raises:
        CheckpointError: the file is missing or damaged, or was made for another adapter.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as stored:
            header, names = stored.metadata(), set(stored.keys())
            if {n.removeprefix("weight/") for n in names if n.startswith("weight/")} != set(parameters):
                raise CheckpointError(f"The checkpoint {folder} was made for another adapter or model than this run's.")
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(stored.get_tensor(f"weight/{name}"))
                    keys = [key for key, _, of in (n.partition("/") for n in names) if of == name and key != "weight"]
                    if keys and optimiser is not None:
                        state = {key: stored.get_tensor(f"{key}/{name}") for key in keys}
                        optimiser.state[parameter] = {k: v.cpu() if k == "step" else v.to(parameter.device) for k, v in state.items()}
            return Loaded(int(header["round"]), float(header.get("loss_scale", 1.0)))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {folder} cannot be read ({error}). Start a new run, or copy the folder back from a backup.") from error
