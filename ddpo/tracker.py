"""A run's measures in a tracker as well: TensorBoard, trackio or Weights & Biases, through accelerate's classes.

What the run has is in its own folder whatever a tracker does: one that fails is an event of the run, ends nothing, and is tried again by the next
worker. ``<tracker>.json`` in the folder says as what the tracker knows the run, and what it has been sent.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from ddpo.card import public_settings
from ddpo.config import EIGHT_BITS, ConfigError, RunConfig
from ddpo.dataset import public_metric
from ddpo.files import write_file
from ddpo.store import RunStore

PACKAGES = dict(tensorboard=("tensorboard", "tensorboardX"), trackio=("trackio",), wandb=("wandb",))
"""What each tracker needs, one of these."""
FOLDER = "tensorboard"
"""Where TensorBoard's events lie in the run's folder."""
PROJECT = "ddpo-studio"
WRITTEN_AFTER = dict(tensorboard=0.0, trackio=5.0, wandb=60.0)
"""Seconds after which each tracker has surely written what it was sent: TensorBoard's does at once, trackio's every half a second, W&B's every 15
(0.31); a killed process's loses what is younger."""


def require(config: RunConfig) -> None:
    """
    Raises:
        ConfigError: the package of the tracker, or of the optimiser, is not installed.
    """
    packages = PACKAGES.get(config.tracker)
    if packages and not any(map(find_spec, packages)):
        raise ConfigError(f"tracker is {config.tracker}, whose package is not installed. pip install {packages[0]}, or choose off.")
    if config.optimiser == "adamw8bit" and not find_spec("bitsandbytes"):
        raise ConfigError(EIGHT_BITS)


class Tracker:
    """Sends each measure, whatever becomes of the workers of a run: once, or a second time what was sent last before a worker was killed or the
    tracker failed (:data:`WRITTEN_AFTER`), since it may not have written that."""

    def __init__(self, config: RunConfig, store: RunStore) -> None:
        self.config, self.store = config, store
        self._file = store.folder / f"{config.tracker}.json"
        self._tracker: Any = None
        self._id = ""
        self._sent: dict[tuple[int, str], float] = {}
        """When each measure of a round was sent, by this process's clock."""

    def start(self) -> None:
        """Begin, or go on with what the worker before this one did."""
        if self.config.tracker != "off":
            self._try(self._start)

    def send(self) -> None:
        """Everything that was measured and is not sent yet, at its round."""
        if self._tracker is not None:
            self._try(self._send)

    def close(self) -> None:
        """The end of the worker: send the rest, and have the tracker write what it holds."""
        self.send()
        if self._tracker is not None:
            self._try(self._finish)

    def _start(self) -> None:
        require(self.config)
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if self._file.exists():
            known = json.loads(self._file.read_text(encoding="utf-8"))
            self._id, self._sent = known["id"], {(int(number), name): -math.inf for number, names in known["sent"].items() for name in names}
        self._id = self._id or secrets.token_hex(8)
        PartialState(cpu=True)  # accelerate's trackers write a log, which wants this
        tracker = LOGGER_TYPE_TO_CLASS[self.config.tracker](FOLDER if self._is_local else PROJECT, **self._named())
        tracker.main_process_only = False  # this is the process that leads
        tracker.start()
        settings = public_settings(self.config)
        if self._is_local:  # its hyperparameters would be a run of their own
            tracker.log({"settings": "\n".join(f"    {name}: {value}" for name, value in settings.items())}, step=0)
        else:
            tracker.store_init_configuration(settings)
        if self.config.tracker == "wandb":
            tracker.tracker.define_metric("*", step_metric="round")
        self._tracker = tracker
        self._keep()

    @property
    def _is_local(self) -> bool:
        return self.config.tracker == "tensorboard"

    def _named(self) -> dict[str, Any]:
        """As what the tracker knows the run: two of one name are two."""
        if self.config.tracker == "trackio":
            return dict(name=f"{self.store.name}-{self._id[:6]}", resume="allow")
        if self.config.tracker == "wandb":
            # It would tell the command line, with its folders, where the program's code is from, and all that the worker prints.
            quiet = dict(console="off", disable_git=True, x_disable_meta=True)
            return dict(name=self.store.name, id=self._id, resume="allow", dir=str(self.store.folder), settings=quiet)
        return dict(logging_dir=self.store.folder, filename_suffix=f".{secrets.token_hex(4)}")  # two files of one second would have one name

    def _send(self) -> None:
        found: dict[int, dict[str, float]] = {}
        for name, points in self.store.metrics().items():
            for number, value in points:
                if (number, name) not in self._sent and value is not None and math.isfinite(value):
                    found.setdefault(number, {})[name] = value
        if found:
            self._keep()
        for number, values in sorted(found.items()):
            told = {public_metric(name): value for name, value in values.items()}
            if self.config.tracker == "wandb":  # no step: it drops one that is not the latest, and what is watched can come late
                self._tracker.log(told | {"round": number})
            else:
                self._tracker.log(told, step=number)
            self._sent |= {(number, name): time.monotonic() for name in values}

    def _finish(self) -> None:
        self._tracker.finish()
        self._keep(all_written=True)

    def _keep(self, all_written: bool = False) -> None:
        """Keep on disk what was sent and is surely written by now."""
        sent: dict[int, list[str]] = {}
        for (number, name), at in sorted(self._sent.items()):
            if all_written or at <= time.monotonic() - WRITTEN_AFTER[self.config.tracker]:
                sent.setdefault(number, []).append(name)
        write_file(self._file, json.dumps(dict(id=self._id, sent=sent)).encode())

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self._tracker = None
            with contextlib.suppress(Exception):  # a full disk: the run says so by itself
                self.store.add_event("tracker", f"{self.config.tracker} failed, and is left alone until the run is resumed: {error}")
