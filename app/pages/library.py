"""The Library: all runs of the folder, newest first. A damaged run shows as such, with the reason."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import words
from app.board import config_of
from app.launch import Launcher
from app.pages.run import bar_value, strip
from app.widgets.kit import widget
from ddpo.card import held_out_change
from ddpo.result import rolled_back
from ddpo.store import RunStore


def build() -> gr.HTML:
    """The list of runs; its ``act`` events open, resume and delete."""
    return widget("library")


def card(store: RunStore, launcher: Launcher) -> dict[str, Any]:
    """A run at a glance."""
    config, rounds = config_of(store), store.rounds()
    rolled = rolled_back(store)
    result = rolled or config.rounds
    since = max(first for first, _ in store.reward_stretches() if first <= result)
    reward = [value for number, value in store.metrics().get("reward_mean", []) if value is not None and since <= number <= result]
    held = held_out_change(store, result)
    shown = bar_value(store, launcher)
    alive = store.status().alive or launcher.starting(store.folder)
    first, last = (words.number(reward[i]) if reward else None for i in (0, -1))
    return dict(
        run=store.name, kind="run", state=shown["state"], headline=shown["headline"], tone=shown["tone"],
        reward=words.reward(store.reward_at(result)), first=first, last=last,
        held=[words.number(held.before[0]), words.number(held.after[0])] if held else None,
        done=sum(row.checkpointed_at is not None for row in rounds), rounds=config.rounds,
        created=(store.folder / "config.json").stat().st_mtime,
        rolled=rolled, parent="{}, round {}".format(*store.parent) if store.parent else "",
        images=strip(store, rounds, 6), alive=alive, resumable=not alive and shown["state"] != "finished",
    )  # fmt: skip


def unreadable(name: str, error: Exception) -> dict[str, Any]:
    """The card of a run that cannot be read."""
    return dict(run=name, kind="broken", reason=str(error) or type(error).__name__)
