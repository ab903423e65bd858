"""The Compare page: any two of the base model, a run's rounds and LoRA files, on the same prompts and the same noise. Pure reads of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr

import rewards
from app.board import config_of
from app.pages.rewards import cards
from app.runs import Runs
from app.widgets.kit import widget
from ddpo.config import ConfigError, prompt_sets
from ddpo.export import round_to_take, saved_rounds
from ddpo.result import rolled_back
from ddpo.states import STRONGEST
from ddpo.store import RunStore, StoreError

HELD_OUT = "held-out"
"""The choice of the prompts that a run holds out, beside the names of the sets."""
MOST_PROMPTS = 200
"""Prompts of a run or of a set that the page can show."""


def build(prompts_of: Callable[[dict[str, Any]], dict[str, Any]]) -> gr.HTML:
    """The page as one widget; it asks ``prompts_of`` for prompts, and the routes of :mod:`app.comparisons` for pictures."""
    return widget("compare", server_functions=[prompts_of], also=["rater.js"])


def choice(store: RunStore) -> dict[str, Any]:
    """What can be compared of a run: its base model, the rounds whose weights are there, and which of them is its result; when it was begun, and
    which reward it follows."""
    config, rounds = config_of(store), sorted(saved_rounds(store))
    scored = [name for name in rewards.parts(store.reward_at(config.rounds)) if name in rewards.automatic()]
    created = (store.folder / "config.json").stat().st_mtime
    known = dict(run=store.name, created=created, rounds=rounds, result=round_to_take(store), rolled=rolled_back(store), rewards=scored)
    return known | dict(pocket=config.model == "pocket", full=config.training == "full", held_out=bool(config.held_out_prompts))


def page_value(run: str | None, choices: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All runs of the folder, the selected one's name, the prompt sets and the rewards to choose from."""
    known = [dict(name=c["name"], title=c["title"], unit=c["unit"], networks=c["networks"], pocket=c["pocket"], asks=c["asks"]) for c in cards()]
    return dict(run=run, runs=list(choices), sets=list(prompt_sets()), cards=known, strongest=STRONGEST)


def prompts_of(runs: Runs, question: object) -> dict[str, Any]:
    """The prompts of a set ``{"set"}``, or of a run ``{"run"}``, those that it holds out with ``{"set": "held-out"}``; none of anything else."""
    asked = question if isinstance(question, dict) else {}
    try:
        found = prompt_sets().get(asked.get("set", ""), ())
        if not found:
            config = config_of(runs.open(asked.get("run", "")))
            found = config.held_out_prompts if asked.get("set") == HELD_OUT else config.prompts
    except (StoreError, ConfigError, TypeError):
        found = ()
    return dict(prompts=list(dict.fromkeys(found))[:MOST_PROMPTS])
