"""The Rewards page: what any reward says of any picture. What the page shows of rewards, their values and failures, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from app import words
from app.pages.new_run import plain
from app.pages.progress import gallery_value
from app.pages.run import image_url
from app.runs import Runs
from app.scoring import Failure, Setting
from app.widgets.kit import widget
from ddpo.store import RunStore, StoreError
from rewards import automatic, card

MOST_PICTURES = 64
"""Pictures on the page."""
STATISTICS = ("colourfulness", "contrast", "simplicity", "placement")


def build(round_pictures: Callable[[dict[str, Any]], dict[str, Any]]) -> gr.HTML:
    """The page as one widget; it asks ``round_pictures`` for a run's round, and the routes of :mod:`app.scores` for values."""
    return widget("rewards", server_functions=[round_pictures])


def page_value(store: RunStore | None) -> dict[str, Any]:
    """The rewards to choose from, and the selected run's rounds, whose pictures can be taken."""
    found = gallery_value(store) if store else dict(run=None, rounds=[])
    return dict(run=found["run"], rounds=found["rounds"], cards=cards(), most=MOST_PICTURES)


def cards() -> list[dict[str, Any]]:
    """What is told of each reward that needs no person."""
    found = {name: card(name) for name in automatic()}
    return [
        dict(
            name=name, title=words.reward(name), unit=each.unit, range=each.range, asks=each.asks, fooled_by=each.fooled_by, licence=each.licence,
            download=each.download, networks=bool(each.published), pocket=bool(each.pocket), looks="vlm" in each.published,
        )
        for name, each in found.items()
    ]  # fmt: skip


def round_pictures(runs: Runs, question: object) -> dict[str, Any]:
    """The pictures of a round ``{"run", "round"}``, as many as the page takes; none of anything else."""
    try:
        asked = question if isinstance(question, dict) else {}
        store, number = runs.open(asked.get("run", "")), int(asked.get("round", 0))
        samples = store.samples(number)
    except (StoreError, TypeError, ValueError):
        return dict(pictures=[])
    shown = [dict(sample=each.id, url=image_url(store, each), prompt=each.prompt, name=f"round {number}, seed {each.seed}") for each in samples]
    return dict(pictures=[dict(run=store.name, **each) for each in shown[:MOST_PICTURES]])


# --- values and failures in words -----------------------------------------------------------------------------------------------


def notes(explanation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a value was made from, as short lines; a line on an answer that was wanted or not carries the verdict."""
    found = dict(explanation)
    lines: list[dict[str, Any]] = []
    for each in found.pop("answers", None) or []:
        lines.append(dict(text=f"{each.get('question')} “{each.get('answer')}”", right=bool(each.get("right"))))
    if "answer" in found:
        lines.append(dict(text=f"“{found.pop('answer')}”"))
    if {"precision", "recall", "f1"} <= set(found):
        p, r, f = (words.number(found.pop(key)) for key in ("precision", "recall", "f1"))
        lines.append(dict(text=f"P {p} · R {r} · F1 {f}"))
    if "size_kb" in found:
        lines.append(dict(text=f"JPEG file of {found.pop('size_kb'):.4g} kB"))
    found.pop("points", None)  # the value itself
    rest = [f"{key.replace('_', ' ')} {words.number(value)}" for key, value in found.items() if isinstance(value, (int, float))]
    return [*lines, dict(text=" · ".join(rest))] if rest else lines


def failure_value(setting: Setting, failure: Failure) -> dict[str, Any]:
    """Why a reward gives no values, what to download and how large it is."""
    own, value = card(setting.reward), dict[str, Any](download="", commands=[], retry=True)
    if setting.models == "pocket" and own.published and not own.pocket:
        return value | dict(text=f"It has no pocket networks. Choose the published ones: {own.download}.", retry=False)
    if not failure.missing:
        return value | dict(text=plain(failure.text))
    hub = [network for key, network in own.published.items() if "/" in network and not (key == "vlm" and setting.vlm)]
    text = f"Its published networks are not on this computer: {own.download}."
    return value | dict(text=text, download=own.download, commands=[f"hf download {network}" for network in hub])
