"""The banner on Progress that says what goes wrong, shows it, and offers what can be done. Pure reads of the store, and requests to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from app import words
from app.board import config_of
from app.launch import Launcher
from app.pages.run import steer, stops_soon
from app.widgets.kit import widget
from ddpo.alarms import DAMAGE, SPREADING, Sign, judged
from ddpo.config import RunConfig
from ddpo.fork import fork, suggested
from ddpo.records import ProbeRow
from ddpo.result import roll_back, rolled_back
from ddpo.store import RunStore, StoreError

DISMISSED = "alarm"
"""The choice that names the round up to which people have been told."""
PATIENCE = 60.0
"""Seconds that a run is given to stop before the one that goes on from it starts."""
_LOCK, _GOING = threading.Lock(), set[Path]()
"""The folders of runs from which one that goes on is being made."""
PENALTY, OF_PREDICTIONS = 0.3, 1.0
"""The least KL penalty that is offered: advantage per nat at η = 1, as measured by ``python -m benchmarks.penalty``; or where it is predictions'
squared distance, in their loss's unit. To move a step's mean by δ is ½ (δ / σ)² nats, and σ goes with η: so that the same way costs the same, the
weight goes with η²."""


def build() -> gr.HTML:
    """The banner; its ``act`` events say which button was pressed."""
    return widget("alarm")


# --- what is shown --------------------------------------------------------------------------------------------------------------


def alarm_value(store: RunStore) -> dict[str, Any]:
    """The alarm that is on after the latest watched round; without one, and once it was dismissed, nothing but the run's name."""
    nothing: dict[str, Any] = dict(run=store.name)
    found = judged(store) if config_of(store).watch_every else None
    alarm = found.alarms.get(found.last) if found else None
    if alarm is None or int(store.choices().get(DISMISSED, 0)) >= alarm.began:
        return nothing
    status, shown = store.status(), {(row.round, row.position): row for row in store.probes()}
    pictures = [(shown[alarm.best, i], shown[alarm.round, i]) for i in alarm.pictures]
    return nothing | dict(
        round=alarm.round, best=alarm.best, back=alarm.back, text=alarm.text, details=[detail(sign) for sign in alarm.signs],
        before=f"round {alarm.best}" if alarm.best else "base model", now=f"round {alarm.round}",
        pictures=[dict(prompt=now.prompt[:300], before=probe_url(store, before), now=probe_url(store, now)) for before, now in pictures],
        alive=status.alive, stops=status.alive and stops_soon(store), paused=status.state == "paused", pending=list(status.pending),
        saved=alarm.back in store.checkpoints(), rolled=rolled_back(store), penalty=words.number(penalty_of(config_of(store))["kl_weight"]),
    )  # fmt: skip


def detail(sign: Sign) -> str:
    """One measure, in words."""
    since = f"since round {sign.since}" if sign.since else "since the start"
    if sign.name == "diversity":
        return f"Diversity: {100 * sign.change:.0f} % less than the base model's"
    if sign.name in DAMAGE:
        paid = ", and the reward pays for it" * sign.paid
        return f"{SPREADING[sign.name].capitalize()}: {words.number(sign.change)} standard deviations above the base model's{paid}"
    return f"{words.reward(sign.name)}: {words.number(sign.change)} standard deviations lower {since}"


def probe_url(store: RunStore, row: ProbeRow) -> str:
    """A watched picture's address; with its hash, so that a browser may keep it for good."""
    return f"/studio/runs/{store.name}/probe/{row.id}?v={Path(row.image).stem}"


# --- what is done ---------------------------------------------------------------------------------------------------------------


def heed(store: RunStore, launcher: Launcher, kind: str, number: object) -> str | None:
    """Do what a button says; returns the name of the run that it has started, if it has.

    Args:
        kind: ``continue`` and ``dismiss`` say no more of the alarm, and the first lets a paused run go on; ``rollback`` makes a round the result and
            stops the run; ``fork`` and ``penalty`` go on from a round in a new run, ``penalty`` with a KL penalty; ``latest`` takes a roll-back back;
            others are those of the Run page.
        number: the round that it is about.

    Raises:
        ConfigError, StoreError, LaunchError: it cannot be done.
    """
    if kind == "latest":
        roll_back(store, None)
        return None
    if kind in ("pause", "stop"):
        if refusal := steer(store, launcher, kind):
            raise StoreError(refusal)
        return None
    if not isinstance(number, int):
        raise StoreError("There is no such round.")
    if kind in ("fork", "penalty"):
        return go_on(store, launcher, number, penalty_of(config_of(store)) if kind == "penalty" else {})
    if kind == "rollback":
        roll_back(store, number)
        stop(store, launcher)
    elif kind in ("continue", "dismiss"):
        store.choose(DISMISSED, str(number))
        if kind == "continue" and store.status().state == "paused":
            steer(store, launcher, "resume")
    else:
        raise StoreError(f"There is no button {kind!r}.")
    return None


def penalty_of(config: RunConfig) -> dict[str, Any]:
    """The settings that hold a run nearer to the base model: a KL penalty, or one of twice the weight at least; in fp32 where half precision would be
    louder than what it compares (docs/running.md, Precision)."""
    exact = dict(precision="fp32") if config.eta < 0.5 and config.precision != "fp32" else {}
    first = float(f"{PENALTY * config.eta**2:.2g}") if config.objective in ("ddpo-is", "ddpo-sf") else OF_PREDICTIONS
    return dict(kl_weight=max(first, 2 * config.kl_weight)) | exact


def stop(store: RunStore, launcher: Launcher) -> bool:
    """Ask a run that is at work to stop now; whether it is at work."""
    alive = store.status().alive or launcher.starting(store.folder)
    if alive and "stop" not in store.status().pending:
        store.add_request("stop")
    return alive


def go_on(store: RunStore, launcher: Launcher, number: int, changes: dict[str, Any]) -> str:
    """Start a new run that goes on from a round of this one, which is stopped; returns the new one's name.

    Raises:
        ConfigError, StoreError, LaunchError: it cannot be made or started.
    """
    with _only_one(store):
        return _go_on(store, launcher, number, changes)


@contextmanager
def _only_one(store: RunStore) -> Iterator[None]:
    """
    Raises:
        StoreError: a run that goes on from this one is being made already.
    """
    with _LOCK:
        if store.folder in _GOING:
            raise StoreError(f"A run that goes on from {store.name} is being made already.")
        _GOING.add(store.folder)
    try:
        yield
    finally:
        with _LOCK:
            _GOING.discard(store.folder)


def _go_on(store: RunStore, launcher: Launcher, number: int, changes: dict[str, Any]) -> str:
    if (store.status().alive or launcher.starting(store.folder)) and "stop" in store.status().pending:
        raise StoreError(f"{store.name} is stopping. Go on when it has stopped.")
    made = fork(store, number, suggested(store, number, "-kl" if "kl_weight" in changes else ""), changes)
    made.close()
    if stop(store, launcher):
        give_up = time.monotonic() + PATIENCE
        while (store.status().alive or launcher.starting(store.folder)) and time.monotonic() < give_up:
            time.sleep(0.1)  # two models at once may be more than the memory holds
        if store.status().alive:
            raise StoreError(f"{store.name} has not stopped yet. When it has, start {made.name} in the Library.")
    launcher.start(made.folder)
    return made.name
