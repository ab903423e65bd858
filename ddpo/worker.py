"""The process that owns the model: ``python -m ddpo.worker RUN_DIR`` starts a run, or goes on with it. The composition root.

It takes the run's lock before anything slow, so that its life shows at once; says every ending, good or bad, as an event; and leaves with exit
code 0 when the run finished or was stopped, 1 when it failed, 2 when it could not begin.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import rewards
from ddpo import earlier, launcher
from ddpo.config import ConfigError, RunConfig
from ddpo.lock import AlreadyRunning, WorkerLock
from ddpo.store import INIT_LORA, RunStore, StoreError

if TYPE_CHECKING:
    from ddpo.crew import Crew
    from ddpo.engine import Source
    from ddpo.policy import Policy
    from ddpo.trainer import Trainer
    from rewards.base import Reward

Watcher = Callable[[str, int, int, int], None]


def run(folder: Path, watcher: Watcher | None = None) -> int:
    """Run or resume the run in a folder until it ends; returns the exit code. Of several processes (:mod:`ddpo.crew`) only the first one leads."""
    if follows():
        return follow(folder)
    try:
        store = RunStore(folder)
        lock, since = WorkerLock(folder / "worker.lock"), time.time()
    except (StoreError, AlreadyRunning) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        store.set_progress("loading", _present_round(store))  # at once: what the worker before this one said is over
        return _work(store, watcher, since)
    finally:
        store.close()
        lock.release()


def _work(store: RunStore, watcher: Watcher | None, since: float) -> int:
    """Everything between taking the lock and giving it back."""
    from ddpo.control import StopRun
    from ddpo.crew import Crew

    number, crew, trainer = 0, Crew(), None
    try:
        crew = Crew.assemble()
        crew.begin()
        trainer = build(store, watcher, crew, since)
        finished = trainer.run()
        number = max((row.number for row in store.rounds() if row.checkpointed_at is not None), default=0)
        trainer.conclude()
        return _end(store, "finished" if finished else "stopped", number, f"{'All' if finished else 'Stopped after'} {number} rounds are done.")
    except StopRun:
        return _end(store, "stopped", number or _present_round(store), "Stopped. Resume goes on from the last finished phase.")
    except KeyboardInterrupt:
        return _end(store, "stopped", _present_round(store), "Stopped from the keyboard. Resume goes on from the last finished phase.")
    except BaseException as error:
        traceback.print_exc()
        _end(store, "failed", _present_round(store), explain(error))
        return 1
    finally:
        crew.dismiss()
        if trainer is not None:
            trainer.tracker.close()


def follow(folder: Path) -> int:
    """One of the other processes: no database, no people; what the leader says until it ends the run."""
    from ddpo.crew import Crew
    from ddpo.engine import Engine

    crew = Crew.assemble()

    def begin() -> None:
        config = RunConfig.load(folder / "config.json")
        Engine(config, folder, load_policy(with_own_lora(config, folder), crew), reward_source(config), crew)

    try:
        crew.follow(begin, explain)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def follows() -> bool:
    """Whether a launcher has started this process beside one that leads. Imports no torch: the lock is taken before anything slow."""
    return launcher.size() > 1 and launcher.rank() > 0


def _present_round(store: RunStore) -> int:
    """The first round that is not complete, or else the last one. (A later one may have been begun: a board that is made ahead.)"""
    rounds = store.rounds()
    return next((row.number for row in rounds if row.next_mark), rounds[-1].number if rounds else 0)


def _end(store: RunStore, state: str, number: int, message: str) -> int:
    print(f"{state}: {message}", file=sys.stderr, flush=True)
    try:
        store.add_event(state, message)
        store.set_progress(state, number)
    except Exception as error:  # the disk is full, perhaps: the log line above is what is left
        print(f"This ending could not be written to the database: {error}", file=sys.stderr)
    return 0


def build(store: RunStore, watcher: Watcher | None, crew: Crew, since: float | None = None) -> Trainer:
    """The run's trainer, from its configuration: the one place where the parts are put together."""
    from ddpo.control import Control
    from ddpo.policy import precision_of
    from ddpo.trainer import Trainer

    config = store.config
    control = Control(store, watcher, crew.listen, waits=watcher is None, since=since)  # somebody at a terminal has no buttons
    control.report("loading", _present_round(store))
    policy = load_policy(with_own_lora(config, store.folder), crew)
    several = f", one of {crew.size}" if crew.size > 1 else ""
    store.add_event("started", f"Model {config.model} on {policy.device}, {precision_of(policy)}, process {os.getpid()}{several}.")
    if (told := earlier.words(config, store.folder)) and all(event.kind != "ratings" for event in store.events()):
        store.add_event("ratings", told)
    trainer = Trainer(config, store, policy, control, reward_source(config), crew)
    trainer.ready()
    return trainer


def with_own_lora(config: RunConfig, folder: Path) -> RunConfig:
    """The same, with the LoRA that the run starts from, if it does, from the run's own folder."""
    return config.with_changes(init_lora=str(folder / INIT_LORA)) if config.init_lora else config


def load_policy(config: RunConfig, crew: Crew) -> Policy:
    """The run's policy, in a process that is ready for it."""
    import torch

    from ddpo.policy import StableDiffusionPolicy

    keep_freed_memory()
    torch.manual_seed(config.seed)
    if crew.size > 1 and ":" in config.device:
        raise ConfigError(
            f"device is {config.device}, but the run has {crew.size} processes, each with its own. Start a new run with device auto, or one process."
        )
    if config.optimiser == "adamw8bit" and not torch.cuda.is_available():  # before the model is loaded
        raise ConfigError("optimiser is adamw8bit, which needs an NVIDIA GPU, and PyTorch sees none. Choose adamw.")
    here, gpus = launcher.local_size(), torch.cuda.device_count()
    if config.device in ("auto", "cuda") and 0 < gpus < here:
        raise ConfigError(f"There are {here} processes on this machine and {gpus} GPUs. Launch as many processes as GPUs.")
    policy = StableDiffusionPolicy.load(config)
    if policy.device.type == "cpu" and hasattr(os, "nice"):
        os.nice(3)  # the browser's page goes first: a rating is saved at once while the model trains
    return policy


def reward_source(config: RunConfig) -> Source:
    """Makes the run's automatic rewards, as its settings say."""

    def make(name: str) -> Reward:
        return rewards.load(name, config.networks_of(name), config.reward_device, config.reward_precision, config.reward_vlm)

    return make


def keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of giving it back: tensors come and go by the megabyte, and each return costs a page fault a page.

    Measured in benchmarks/NOTEBOOK.md. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        trim_threshold, mmap_threshold, one_gib = -1, -3, 1 << 30
        libc.mallopt(trim_threshold, one_gib)
        libc.mallopt(mmap_threshold, one_gib)


def explain(error: BaseException) -> str:
    """What went wrong and what to do, in plain words."""
    from ddpo.checkpoint import CheckpointError
    from ddpo.crew import CrewError
    from ddpo.engine import TrainingError

    if isinstance(error, (ConfigError, StoreError, TrainingError, CheckpointError, CrewError, rewards.RewardError)):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "The memory is full. Start again with a smaller microbatch or update_microbatch, or without reuse_forward. Nothing that was finished is "
            "lost: `python -m ddpo fork RUN --round N --out NEW --microbatch … --no-reuse-forward` goes on from its round N."
        )
    full = "database or disk is full", "No space left on device"  # as SQLite and safetensors say it
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or any(words in str(error) for words in full):
        return "The disk is full. Make room and press Resume: nothing that was finished is lost."
    return f"{type(error).__name__}: {error}. The last lines of the log say where; Resume goes on from the last finished phase."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ddpo.worker", description="Run, or resume, the run in a folder.")
    parser.add_argument("folder", type=Path, help="a run folder, as the studio or `python -m ddpo run` makes it")
    return run(parser.parse_args(arguments).folder)


def leave(code: int) -> NoReturn:
    """End the process now: a thread that still waits for a remote reward would hold it for minutes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
