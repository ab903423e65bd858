"""The banner on Progress that says what goes wrong, shows it, and offers what can be done. Pure reads of the store, and requests to it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr

from app import words
from app.board import config_of
from app.launch import Launcher
from app.widgets.kit import widget
from ddpo.alarms import ALIKE, DAMAGE, FALL, SPREAD, Sign, alarm_at, watched
from ddpo.fork import fork, suggested
from ddpo.store import ProbeRow, RunStore, StoreError

NAMES = dict(noise="Noise", flatness="Flat places", clipping="Clipped colours")
DISMISSED = "alarm"
"""The choice that names the round up to which people have been told."""
PATIENCE = 60.0
"""Seconds that a run is given to stop before the one that goes on from it starts."""


def build() -> gr.HTML:
    """The banner; its ``act`` events say which button was pressed."""
    return widget("alarm")


# --- what is shown --------------------------------------------------------------------------------------------------------------


def alarm_value(store: RunStore) -> dict[str, Any]:
    """The alarm that is on after the latest watched round; without one, and once it was dismissed, nothing but the run's name."""
    nothing: dict[str, Any] = dict(run=store.name)
    series, rewards_at = watched(store) if config_of(store).watch_every else ({}, {})
    alarm = alarm_at(series, max(series), rewards_at) if series else None
    if alarm is None or int(store.choices().get(DISMISSED, 0)) >= alarm.began:
        return nothing
    status, shown = store.status(), {(row.round, row.position): row for row in store.probes()}
    pictures = [(shown[alarm.best, i], shown[alarm.round, i]) for i in alarm.pictures]
    return nothing | dict(
        round=alarm.round, best=alarm.best, text=alarm.text, details=[detail(sign) for sign in alarm.signs],
        before=f"round {alarm.best}" if alarm.best else "base model", now=f"round {alarm.round}",
        pictures=[dict(prompt=now.prompt[:300], before=probe_url(store, before), now=probe_url(store, now)) for before, now in pictures],
        alive=status.alive, paused=status.state == "paused", pending=list(status.pending), forks=alarm.best in store.checkpoints(),
    )  # fmt: skip


def detail(sign: Sign) -> str:
    """One measure, in words."""
    since = f"since round {sign.since}" if sign.since else "since the start"
    if sign.name == "diversity":
        return f"Diversity: {100 * ALIKE * sign.strength:.0f} % less than the base model's"
    if sign.name in DAMAGE:
        return f"{NAMES[sign.name]}: {words.number(SPREAD * sign.strength)} standard deviations above the base model's"
    return f"{words.reward(sign.name)}: {words.number(FALL * sign.strength)} standard deviations lower {since}"


def probe_url(store: RunStore, row: ProbeRow) -> str:
    """A watched picture's address; with its hash, so that a browser may keep it for good."""
    return f"/studio/runs/{store.name}/probe/{row.id}?v={Path(row.image).stem}"


# --- what is done ---------------------------------------------------------------------------------------------------------------


def dismiss(store: RunStore, number: object) -> None:
    """Say no more of an alarm that people have seen, until another one begins.

    Raises:
        StoreError: that is no round.
    """
    if not isinstance(number, int):
        raise StoreError("There is no such round.")
    store.choose(DISMISSED, str(number))


def go_on(store: RunStore, launcher: Launcher, number: object) -> str:
    """Start a new run that goes on from a round of this one, which is stopped; returns the new one's name.

    Raises:
        ConfigError, StoreError, LaunchError: it cannot be made or started.
    """
    if not isinstance(number, int):
        raise StoreError("There is no such round.")
    if (alive := store.status().alive or launcher.starting(store.folder)) and "stop" in store.status().pending:
        raise StoreError(f"{store.name} is stopping. Go on when it has stopped.")
    made = fork(store, number, suggested(store, number))
    made.close()
    if alive:
        store.add_request("stop")
        give_up = time.monotonic() + PATIENCE
        while (store.status().alive or launcher.starting(store.folder)) and time.monotonic() < give_up:
            time.sleep(0.1)  # two models at once may be more than the memory holds
        if store.status().alive:
            raise StoreError(f"{store.name} has not stopped yet. When it has, start {made.name} in the Library.")
    launcher.start(made.folder)
    return made.name
