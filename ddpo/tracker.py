"""A run's measures in a tracker as well: TensorBoard, trackio or Weights & Biases, through accelerate's classes.

What the run has is in its own folder whatever a tracker does: one that fails is not asked again, which is an event of the run and no failure.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from ddpo.card import public_settings
from ddpo.config import ConfigError, RunConfig
from ddpo.store import RunStore

PACKAGES = dict(tensorboard=("tensorboard", "tensorboardX"), trackio=("trackio",), wandb=("wandb",))
"""What each tracker needs, one of these."""
FOLDER = "tensorboard"
"""Where TensorBoard's events lie in the run's folder."""
PROJECT = "ddpo-studio"


def require(config: RunConfig) -> None:
    """Raises:
    ConfigError: the tracker's package is not installed.
    """
    packages = PACKAGES.get(config.tracker)
    if packages and not any(map(find_spec, packages)):
        raise ConfigError(f"tracker is {config.tracker}, whose package is not installed. pip install {packages[0]}, or choose off.")


class Tracker:
    """Sends each measure once; after a restart of the worker only what is new."""

    def __init__(self, config: RunConfig, store: RunStore) -> None:
        """
        Raises:
            ConfigError: the tracker's package is not installed.
        """
        self.config, self.store = config, store
        self._tracker: Any = None
        self._sent: dict[int, set[str]] = {}
        if config.tracker == "off":
            return
        require(config)
        mark = store.folder / f"{config.tracker}.sent"
        if mark.exists():
            for name, points in store.metrics().items():
                for number, _ in points:
                    self._sent.setdefault(number, set()).add(name)
        self._try(self._start)
        mark.touch()

    def send(self) -> None:
        """Everything that was measured since the last time, at its round."""
        if self._tracker is None:
            return
        found: dict[int, dict[str, float]] = {}
        for name, points in self.store.metrics().items():
            for number, value in points:
                if name not in self._sent.get(number, ()):
                    self._sent.setdefault(number, set()).add(name)
                    if value is not None and math.isfinite(value):
                        found.setdefault(number, {})[name] = value
        self._try(lambda: self._send(found))

    def close(self) -> None:
        """The end of the worker: send the rest, and have the tracker write what it holds."""
        self.send()
        if self._tracker is not None:
            self._try(self._tracker.finish)

    def _start(self) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # accelerate's trackers write a log, which wants this
        where: dict[str, Any] = {}
        if self.config.tracker == "tensorboard":  # two files of one second would have one name
            where = dict(logging_dir=self.store.folder, filename_suffix=f".{secrets.token_hex(4)}")
        named = {} if where else dict(name=self.store.name, resume="allow")
        named |= dict(id=_id_of(self.store)) if self.config.tracker == "wandb" else {}
        tracker = LOGGER_TYPE_TO_CLASS[self.config.tracker](FOLDER if where else PROJECT, **where, **named)
        tracker.main_process_only = False  # this is the process that leads
        tracker.start()
        if where:  # hparams would be a run of their own in TensorBoard
            tracker.log({"settings": _as_text(self.config)}, step=0)
        else:
            tracker.store_init_configuration(public_settings(self.config))
        self._tracker = tracker

    def _send(self, found: Mapping[int, dict[str, float]]) -> None:
        for number in sorted(found):
            if self.config.tracker == "tensorboard":
                self._tracker.log(found[number], step=number)
            else:  # no step: these refuse one that is not the latest, and what is watched can come late
                self._tracker.log(found[number] | {"round": number})

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._tracker = None  # a second failure of many would tell nothing new
            self.store.add_event("tracker", f"{self.config.tracker} failed and is not asked again: {type(error).__name__}: {error}")


def _id_of(store: RunStore) -> str:
    """The same for each worker of a run."""
    return hashlib.sha256(str(store.folder.resolve()).encode()).hexdigest()[:16]


def _as_text(config: RunConfig) -> str:
    return "\n".join(f"    {name}: {value}" for name, value in public_settings(config).items())
