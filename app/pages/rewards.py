"""The Rewards page: what any reward says of any picture. What the page shows of rewards, their values and failures, in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from app import words
from app.pages.new_run import plain
from app.pages.run import image_url
from app.runs import Runs
from app.scoring import Failure, Setting
from app.widgets.kit import widget
from ddpo.store import StoreError
from rewards import automatic, card
from rewards.function import offered, version

MOST_PICTURES = 64
"""Pictures on the page."""
HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""A network's name on the Hub."""
FOLDERS = re.compile(r"(?<![\w:/.\\])(?:[A-Za-z]:[\\/]|/)(?:[^\s/\\:]+[\\/])+")
"""The folders of an absolute path within a text, not those of an address."""


def build(round_pictures: Callable[[dict[str, Any]], dict[str, Any]]) -> gr.HTML:
    """The page as one widget; it asks ``round_pictures`` for a run's round, and the routes of :mod:`app.scores` for values."""
    return widget("rewards", server_functions=[round_pictures])


def page_value(gallery: Mapping[str, Any]) -> dict[str, Any]:
    """The rewards to choose from, and the rounds, of the selected run's gallery, whose pictures can be taken."""
    found = dict(rounds=[]) | dict(gallery)
    return dict(run=found["run"], rounds=found["rounds"], cards=cards(), most=MOST_PICTURES)


def versions() -> list[int]:
    """Differs when somebody has changed a function that scores."""
    return [version(name) for name in offered()]


def cards() -> list[dict[str, Any]]:
    """What is told of each reward that needs no person."""
    found = {name: card(name) for name in automatic()}
    return [
        dict(
            name=name, title=words.reward(name), unit=each.unit, range=each.range, asks=each.asks, fooled_by=each.fooled_by, licence=each.licence,
            download=each.download, networks=bool(each.published), pocket=bool(each.pocket), looks="vlm" in each.published,
            version=str(version(name)),
        )
        for name, each in found.items()
    ]  # fmt: skip


def round_pictures(runs: Runs, question: object) -> dict[str, Any]:
    """The pictures of a round ``{"run", "round"}``, as many as the page takes, and how many are left out; none of anything else."""
    try:
        asked = question if isinstance(question, dict) else {}
        store, number = runs.open(asked.get("run", "")), int(asked.get("round", 0))
        samples = store.samples(number)
    except (StoreError, TypeError, ValueError):
        return dict(pictures=[], more=0)
    shown = [
        dict(sample=each.id, image=Path(each.image).stem, url=image_url(store, each), prompt=each.prompt, name=f"round {number}, seed {each.seed}")
        for each in samples
    ]
    return dict(pictures=[dict(run=store.name, **each) for each in shown[:MOST_PICTURES]], more=max(0, len(shown) - MOST_PICTURES))


# --- values and failures in words -----------------------------------------------------------------------------------------------


def notes(explanation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a value was made from, as short lines; a line on an answer that was wanted or not carries the verdict.

    A person's own function may use our names for anything, so each is taken for ours only where it looks like it.
    """
    found = dict(explanation)
    lines: list[dict[str, Any]] = []
    if _asked(found.get("answers")):
        lines += [dict(text=f"{each.get('question')} “{each.get('answer')}”", right=bool(each.get("right"))) for each in found.pop("answers")]
    if isinstance(found.get("answer"), str):
        lines.append(dict(text=f"“{found.pop('answer')}”"))
    if all(_is_number(found.get(key)) for key in ("precision", "recall", "f1")):
        p, r, f = (words.number(found.pop(key)) for key in ("precision", "recall", "f1"))
        lines.append(dict(text=f"P {p} · R {r} · F1 {f}"))
    if _is_number(found.get("size_kb")):
        lines.append(dict(text=f"JPEG file of {found.pop('size_kb'):.4g} kB"))
    found.pop("points", None)  # the value itself
    lines += [dict(text=f"{_spoken(key)} {value}") for key, value in found.items() if isinstance(value, str)]
    rest = [f"{_spoken(key)} {words.number(value)}" for key, value in found.items() if _is_number(value)]
    return [*lines, dict(text=" · ".join(rest))] if rest else lines


def _asked(answers: object) -> bool:
    return isinstance(answers, list) and all(isinstance(each, dict) for each in answers)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300


def _spoken(key: str) -> str:
    return key.replace("_", " ")


def needed(setting: Setting) -> str:
    """The networks that a reward uses, with their sizes as far as they are known."""
    own = card(setting.reward)
    if not setting.vlm:
        return own.download
    others = own.download.split(" and ")[1:] if setting.models == "published" else []  # the first is what looks at images
    return " and ".join([*([] if "://" in setting.vlm else [setting.vlm]), *others])


def failure_value(setting: Setting, failure: Failure) -> dict[str, Any]:
    """Why a reward gives no values, what to download and how large it is."""
    own, value = card(setting.reward), dict[str, Any](download="", commands=[], retry=True)
    if setting.models == "pocket" and own.published and not own.pocket:
        return value | dict(text=f"It has no pocket networks. Choose the published ones: {own.download}.", retry=False)
    if not failure.missing:
        return value | dict(text=FOLDERS.sub("", plain(failure.text)))
    networks = dict(own.published if setting.models == "published" else {}) | (dict(vlm=setting.vlm) if setting.vlm else {})
    commands = [f"hf download {network}" for network in networks.values() if HUB.fullmatch(network)]
    what = "networks are" if len(commands) > 1 or not setting.vlm else "network is"
    text = f"Its {'' if setting.vlm else 'published '}{what} not on this computer: {needed(setting)}."
    return value | dict(text=text, download=needed(setting), commands=commands)
