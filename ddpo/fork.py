"""A new run that goes on from a round of another one: its weights, its optimiser's state, its settings, or changed ones. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ddpo.config import ConfigError, RunConfig, sources_of, sources_text
from ddpo.earlier import create, has_ratings
from ddpo.records import FORK
from ddpo.source import LOCATED, absolute, located
from ddpo.store import INIT_LORA, RunStore, StoreError
from ddpo.tracker import require

KEPT = ("model", "model_config", "revision", "training", "lora_rank", "lora_alpha", "lora_targets", "init_lora", "optimiser")
"""Settings that a checkpoint's weights and the optimiser's state rest on."""


BEFORE = ("before_images", "before_seconds")
"""What a run says at round 0 of the cost of what it goes on from."""


def fork(store: RunStore, number: int, folder: Path, changes: Mapping[str, Any] | None = None) -> RunStore:
    """Make a run that begins with another run's state after a round. Its rounds count from 1; unless they are changed it has as many as are left, is
    scored by what scored that round, and draws other prompts and seeds than its parent did. A model of taste keeps the parent's ratings, beside those
    that a change names. The parent writes down that it was made.

    Raises:
        ConfigError: a change that the state does not fit, or that cannot work.
        StoreError: the round has no checkpoint, or the folder cannot be made.
    """
    if number not in store.checkpoints():
        saved = ", ".join(map(str, store.checkpoints())) or "none"
        raise StoreError(f"Round {number} of {store.name} has no checkpoint. Saved rounds: {saved}.")
    config = config_of(store, number, changes or {})
    require(config)
    made = create(folder, config, (store, number))
    made.add_metrics(0, spent(store.metrics(), number))
    store.choose(f"{FORK}{made.name}", f"{number} {', '.join(changed(changes or {}))}".strip())
    return made


def spent(metrics: Mapping[str, Sequence[tuple[int, float | None]]], number: int) -> dict[str, float]:
    """What a run cost up to a round, those before it included that it goes on from: the images that were scored, and the seconds of all phases."""
    phases = [name for name in metrics if name.startswith("seconds_")]
    parts = dict(zip(BEFORE, (["scored_images"], phases), strict=True))
    return {
        before: sum(value or 0.0 for name in (before, *names) for at, value in metrics.get(name, ()) if at <= number)
        for before, names in parts.items()
    }


def changed(changes: Mapping[str, Any]) -> list[str]:
    """Changed settings in a few words: numbers as they are, longer things by name."""
    return [f"{name} {value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else name for name, value in changes.items()]


def config_of(store: RunStore, number: int, changes: Mapping[str, Any]) -> RunConfig:
    """The settings of a run that goes on from a round.

    Raises:
        ConfigError: a change that the state does not fit, or that cannot work.
    """
    parent = store.config
    known = {field.name for field in fields(RunConfig)}
    if unknown := sorted(set(changes) - known):
        raise ConfigError(f"Unknown setting {', '.join(unknown)}.")
    for name in KEPT:
        same = name not in changes or changes[name] == getattr(parent, name)
        if not same and not (name in LOCATED and absolute(changes[name]) == getattr(parent, name)):
            raise ConfigError(
                f"{name} is {changes[name]!r}, and {getattr(parent, name)!r} in {store.name}, whose weights the run goes on with. Keep it."
            )
    if "ema_decay" in changes and bool(changes["ema_decay"]) != bool(parent.ema_decay):
        raise ConfigError(
            f"ema_decay is {changes['ema_decay']}, and {parent.ema_decay} in {store.name}: a moving average cannot begin or end in between."
        )
    own: dict[str, Any] = dict(
        rounds=max(1, parent.rounds - number), reward=store.reward_at(number), rating=store.rating, seed=(parent.seed + 7919 * number) % 2**31,
        warmup_rounds=max(0, parent.warmup_rounds - number),
    )  # fmt: skip
    learns = changes.get("preference", parent.preference) != "off"
    named = sources_of(changes.get("ratings_from", ""))
    if not named or learns:  # what the parent's people said, and what it has from elsewhere, comes first; without a model nothing learns from it
        own["ratings_from"] = sources_text([*([str(store.folder)] if learns and has_ratings(store) else []), *named])
        changes = {name: value for name, value in changes.items() if name != "ratings_from"}
    if parent.init_lora:
        own["init_lora"] = str(store.folder / INIT_LORA)
    return located(parent.with_changes(**(own | {name: value for name, value in changes.items() if name not in KEPT})))


def suggested(store: RunStore, number: int, end: str = "") -> Path:
    """A free folder beside the run's own."""
    stem = f"{store.name[:60]}-from-{number}{end}"
    names = (stem, *(f"{stem}-{n}" for n in range(2, 1000)))
    return next(path for name in names if not (path := store.folder.parent / name).exists())
