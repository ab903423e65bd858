"""What the launcher of several processes (torchrun, accelerate) says in the environment. Imports no torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Which process this is; 0 leads."""
    return _number("RANK", 0)


def size() -> int:
    """How many processes make the run; 1 where no launcher has started this one."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def local_rank() -> int:
    """Which of this machine's processes this is."""
    return _number("LOCAL_RANK", 0)


def local_size() -> int:
    """How many of the processes are on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def sharding() -> str:
    """What accelerate's configuration asks for that would split the model among the processes; empty where it does not."""
    known = dict(ACCELERATE_USE_FSDP="FSDP", ACCELERATE_USE_DEEPSPEED="DeepSpeed", ACCELERATE_USE_MEGATRON_LM="Megatron-LM")
    return next((name for variable, name in known.items() if os.environ.get(variable, "").lower() in ("1", "true", "yes")), "")


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))
