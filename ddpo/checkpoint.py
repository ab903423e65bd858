"""The trainer's state on disk: trained weights and the optimiser's state, as safetensors with a header; never a pickle.

Of several processes the first one writes the weights, and each one the moments that it keeps. Any number of processes can go on from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ddpo.config import SCHEMA_VERSION, RunConfig
from ddpo.files import writing

FILE = "state.safetensors"
MOMENTS = "moments-{rank}.safetensors"
"""What another process than the first keeps of the optimiser's state."""
AVERAGE = "average"


class CheckpointError(RuntimeError):
    """The checkpoint does not fit or cannot be read; the message says what to do."""


def save_state(
    folder: Path,
    config: RunConfig,
    number: int,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: EMAModel | None,
    base: str,
) -> None:
    """Write weights, the optimiser's state, fp16's loss scale and the weights' moving average after round ``number``; ``base`` names the frozen model
    beneath.

    Random state is none: it is derived from seeds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weight/{name}": parameter.detach() for name, parameter in parameters.items()} | _moments(parameters, optimiser)
    header = dict(version=SCHEMA_VERSION, round=number, config=asdict(config), scaler=scaler.state_dict(), base=base)
    if average is not None:
        header["averaged"] = average.optimization_step
        tensors |= {f"{AVERAGE}/{name}": tensor for name, tensor in zip(parameters, average.shadow_params, strict=True)}
    _write(folder / FILE, tensors, {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()})


def save_moments(folder: Path, rank: int, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    """Write what process ``rank``, which is not the first, keeps of the optimiser's state."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MOMENTS.format(rank=rank), _moments(parameters, optimiser), {})


def _moments(parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {name: optimiser.state.get(parameter, {}) for name, parameter in parameters.items()}
    return {f"{key}/{name}": torch.as_tensor(value) for name, state in found.items() for key, value in state.items()}


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with writing(file) as partial:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)


def load_state(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
    average: EMAModel | None = None,
    base: str = "",
    averaged: bool = False,
) -> int:
    """Put a checkpoint's weights, and the state of what else is given, in place; returns the round after which it was written. With ``base`` the
    frozen model beneath must be the one that it was written over. With ``averaged`` the weights are their moving average, where one was kept.

    Raises:
        CheckpointError: the file is missing or damaged, or was made for another adapter or base model.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as stored:
            header = stored.metadata()
            if {name.partition("/")[2] for name in stored.keys()} != set(parameters):  # noqa: SIM118 - not a mapping
                raise CheckpointError(f"The checkpoint {folder} was made for another adapter or model than this run's.")
            if base and header.get("base", base) != base:
                raise CheckpointError(
                    f"The checkpoint {folder} was trained over another base model than the one that is there now. "
                    "Put the old model back (for one from the Hub, name its revision), or start a new run."
                )
            wanted = AVERAGE if averaged and "averaged" in header else "weight"
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(stored.get_tensor(f"{wanted}/{name}"))
            if scaler is not None and (state_dict := json.loads(header.get("scaler", "{}"))):
                scaler.load_state_dict(state_dict)
            if average is not None:
                average.shadow_params = [stored.get_tensor(f"{AVERAGE}/{name}").to(p.device) for name, p in parameters.items()]
                average.optimization_step = int(header["averaged"])
        if optimiser is not None:
            optimiser.state.clear()
            for file in (folder / FILE, *folder.glob(MOMENTS.format(rank="*"))):
                _load_moments(file, parameters, optimiser)
        return int(header["round"])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {folder} cannot be read ({error}). Start a new run, or copy the folder back from a backup.") from error


def load_result(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put the weights that people take away in place: the moving average where one was kept, else the trained ones.

    Raises:
        CheckpointError: as :func:`load_state`.
    """
    load_state(folder, parameters, averaged=True)


def _load_moments(file: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    """Take from a file what the optimiser keeps."""
    kept = {parameter for group in optimiser.param_groups for parameter in group["params"]}
    with safe_open(file, framework="pt") as stored:
        for stored_name in stored.keys():  # noqa: SIM118 - not a mapping
            key, _, name = stored_name.partition("/")
            if key not in ("weight", AVERAGE) and (parameter := parameters[name]) in kept:
                optimiser.state[parameter][key] = _placed(key, stored.get_tensor(stored_name), parameter, optimiser)


def _placed(key: str, value: Tensor, parameter: nn.Parameter, optimiser: torch.optim.Optimizer) -> Any:
    """A piece of the optimiser's state where it wants it: torch's AdamW counts steps in a tensor on the CPU, others in a whole number."""
    if key != "step":
        return value.to(parameter.device)
    return value if isinstance(optimiser, torch.optim.AdamW) else int(value)
