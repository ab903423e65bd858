"""Several processes as one worker: ``accelerate launch --multi_gpu -m ddpo run …``, or ``torchrun``.

Data parallel: every process holds the whole model, and makes, scores and learns from its share of a round. Process 0 leads: it alone reads and
writes the database, listens to people, waits for them, and writes checkpoints; the others do what it says (:meth:`Crew.together`,
:meth:`Crew.follow`). What is said goes through the launcher's key-value store, where waiting is cheap and has no time limit: **nobody waits inside a
collective while a person thinks.** Only the update has collectives, which all enter at once: gradients are summed, and every process makes the
optimiser's step from the sum for its share of the weights and sends them to the others.

All processes see the same run folder; on several machines it lies on a shared file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.optim import AdamW, Optimizer

from ddpo import launcher
from ddpo.config import ConfigError

Task = Callable[..., Any]
"""What all processes do at once: takes and returns what JSON can hold."""

LONGEST_NAP = 0.25
"""Seconds between two looks into the store at most."""
PATIENCE = 1800.0
"""Seconds for which a process that has failed waits until the leader, which may be loading a large model, knows."""
FAREWELL = 2.0
"""Seconds for which each side waits for the other at the end."""
BUCKET = 1 << 24
"""Numbers that are summed at once: 64 MiB of gradients."""


class CrewError(RuntimeError):
    """Another process of the run has failed; the message says which and why."""


class Dismissed(Exception):
    """The leader has ended the run."""


class Crew:
    """The processes of one run; one alone by default."""

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self._said = self._swept = 0
        self.tasks: Mapping[str, Task] = {}

    @classmethod
    def assemble(cls) -> Crew:
        """The crew that a launcher's environment variables name (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); without them one process alone.

        Raises:
            ConfigError: the launcher is to split the model.
        """
        if sharding := launcher.sharding():
            raise ConfigError(
                f"The launcher's configuration asks for {sharding}. Here every process holds the whole model, and they share out AdamW's moments "
                "by themselves. Launch with `accelerate launch --multi_gpu`, or choose multi-GPU without it in `accelerate config`."
            )
        if launcher.size() == 1:
            return cls()
        store, rank, size = next(rendezvous("env://"))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        local, gpus = launcher.local_rank(), torch.cuda.device_count()
        if local < gpus:
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=PrefixStore(f"group/{attempt}", store), rank=rank, world_size=size)
        return cls(rank, size, PrefixStore(f"crew/{attempt}", store))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def begin(self) -> None:
        """The leader's first word: the run's folder is there."""
        self._say(dict(begin=True))

    def together(self, task: str, **arguments: Any) -> list[Any]:
        """Have every process do a task; the leader calls this and gets the results by rank.

        Raises:
            CrewError: another process has failed.
        """
        self._say(dict(task=task, **arguments))
        number = self._said
        results = [self.tasks[task](**arguments)]
        results += [self._get(f"result/{number}/{rank}", self.listen)["value"] for rank in range(1, self.size)]
        self._sweep(number)
        return results

    def follow(self, begin: Callable[[], None], explain: Callable[[Exception], str] = repr) -> None:
        """What the others do: get ready, then the leader's tasks, one after the other, until it dismisses them.

        Raises:
            Exception: a task has failed here, and the leader knows why, as ``explain`` puts it.
        """
        assert self._store is not None
        try:
            self._hear("begin")
            begin()
            while True:
                message = self._hear("task")
                number, task = self._said, self.tasks[message.pop("task")]
                self._put(f"result/{number}/{self.rank}", dict(value=task(**message)))
        except Dismissed:
            self._put(f"gone/{self.rank}", True)
        except Exception as error:
            self._put(f"failed/{self._store.add('failures', 1)}", f"process {self.rank}: {explain(error)}")
            with contextlib.suppress(Exception):
                self._get("heard", patience=PATIENCE)  # a launcher ends everybody as soon as one has gone
                time.sleep(FAREWELL)
            raise

    def gate(self) -> None:
        """All pass together: called before each collective, after the leader has listened to what people want.

        Raises:
            Dismissed: the leader has ended the run instead (on the others).
            CrewError: another process has failed (on the leader).
        """
        if self.size == 1:
            return
        number = self._said + 1
        if not self.leads:
            self._put(f"here/{number}/{self.rank}", True)
            self._hear("gate")
            return
        for rank in range(1, self.size):
            self._get(f"here/{number}/{rank}", self.listen)
        self._say(dict(gate=True))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up every process's gradients, in place."""
        if self.size == 1:
            return
        bucket: list[nn.Parameter] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter)
            if sum(p.numel() for p in bucket) >= BUCKET:
                self._sum(bucket)
                bucket = []
        if bucket:
            self._sum(bucket)

    def _sum(self, bucket: list[nn.Parameter]) -> None:
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.listening(lambda: dist.all_reduce(flat))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def listening(self, wait: Callable[[], object]) -> None:
        """Do what waits for the other processes, such as a collective, which one that has failed never enters. The leader has a thread do it, and
        listens meanwhile.

        Raises:
            CrewError: another process has failed; the thread waits for as long as this process lives.
        """
        if self.size == 1 or not self.leads:
            wait()
            return
        failed: list[Exception] = []

        def work() -> None:
            try:
                wait()
            except Exception as error:  # as a connection that another process has left
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LONGEST_NAP)
            self.listen()
        for error in failed:
            raise error

    def share(self, items: list[Any]) -> list[Any]:
        """This process's share of a list."""
        return items[self.rank :: self.size]

    def optimiser(self, parameters: Iterable[nn.Parameter], **settings: Any) -> tuple[Optimizer, Optimizer]:
        """AdamW for all parameters, and the part of it that holds this process's moments: each process keeps those of its share of the parameters,
        makes their step, and sends them to the others (Rajbhandari et al. 2020, ZeRO stage 1, arXiv 1910.02054)."""
        if self.size == 1:
            whole = AdamW(parameters, **settings)
            return whole, whole
        from torch.distributed.optim import ZeroRedundancyOptimizer

        shared = ZeroRedundancyOptimizer(list(parameters), optimizer_class=AdamW, **settings)
        return shared, shared.optim

    def listen(self) -> None:
        """On the leader: raise what another process has failed of.

        Raises:
            CrewError: one has.
        """
        if self._store is None or not self.leads or not self._store.check(["failed/1"]):
            return
        raise CrewError(f"Another process of this run has failed: {json.loads(self._store.get('failed/1'))}")

    def dismiss(self) -> None:
        """The leader's last word, once it is written down how the run ended. The others have a moment to hear it: the store may end with this
        process."""
        if not self.leads or self.size == 1:
            return
        with contextlib.suppress(Exception):
            self._say(dict(end=True))
            self._put("heard", True)  # what one has failed of is written down by now
            for rank in range(1, self.size):
                self._get(f"gone/{rank}", patience=FAREWELL)

    # --- messages: numbered, said by the leader, heard by all others in order

    def _say(self, message: dict[str, Any]) -> None:
        self._said += 1
        if self.size > 1:
            self._put(f"said/{self._said}", message)

    def _hear(self, kind: str) -> dict[str, Any]:
        self._said += 1
        message: dict[str, Any] = self._get(f"said/{self._said}")
        if "end" in message:
            raise Dismissed
        if kind not in message:
            raise RuntimeError(f"Process {self.rank} waits for a {kind} and hears {sorted(message)}: the processes have lost step.")
        return message

    def _sweep(self, task: int) -> None:
        """Forget what everybody has heard."""
        if self._store is None:
            return
        for number in range(self._swept + 1, self._said + 1):
            self._store.delete_key(f"said/{number}")
            for rank in range(1, self.size):
                self._store.delete_key(f"here/{number}/{rank}")
        for rank in range(1, self.size):
            self._store.delete_key(f"result/{task}/{rank}")
        self._swept = self._said

    def _put(self, key: str, value: Any) -> None:
        assert self._store is not None
        self._store.set(key, json.dumps(value))

    def _get(self, key: str, listen: Callable[[], None] = lambda: None, patience: float | None = None) -> Any:
        """Wait for a key, with longer and longer naps, and read it.

        Raises:
            TimeoutError: it is not there after ``patience`` seconds.
        """
        assert self._store is not None
        nap, deadline = 0.001, None if patience is None else time.monotonic() + patience
        while not self._store.check([key]):
            listen()
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(key)
            time.sleep(nap)
            nap = min(LONGEST_NAP, 1.5 * nap)
        return json.loads(self._store.get(key))
