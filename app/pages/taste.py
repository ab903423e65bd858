"""What the model of a run's taste believes: the pictures that it takes for the most and the least liked, and where it is unsure. Pure reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import gradio as gr

from app import words
from app.board import config_of
from app.widgets.kit import widget
from ddpo import beliefs
from ddpo.store import RunStore

LISTS = (
    ("liked", "Most liked", "What it takes you to like best, among all that you rated and the last round."),
    ("disliked", "Least liked", "What it takes you to like least. If you disagree, rate such pictures: it learns from you."),
    ("unsure", "Least sure", "Where your rating would teach it most."),
)
"""The lists of pictures: their names, titles, and what they mean."""


def build() -> gr.HTML:
    """The panel; it shows neighbours by itself."""
    return widget("taste")


def taste_value(store: RunStore) -> dict[str, Any]:
    """What the page shows; nothing where the run has no such model."""
    if config_of(store).preference == "off":
        return dict(run=None)
    told = beliefs.read(store)
    if told is None:
        text = "Once a board is rated and applied, this shows what the model takes you to like, where it is unsure, and how far it can be trusted."
        return dict(run=store.name, text=text, lists=[])
    images = told["images"]
    lists = [
        dict(key=key, title=title, hint=hint, images=[_image(store, id, images[str(id)]) for id in told.get(key, []) if str(id) in images])
        for key, title, hint in LISTS
    ]
    who = "you" if store.rating_counts().raters < 2 else "people, on average,"
    text = f"{beliefs.trust(told)} {_teaches(store, told['round'])}"
    return dict(run=store.name, text=text, round=told["round"], who=who, lists=[each for each in lists if each["images"]])


def _teaches(store: RunStore, number: int) -> str:
    """Whose word a round is learned from: the model's, or people's."""
    if beliefs.leads(store, config_of(store), number):
        return f"Round {number} is learned from its guesses, which know all ratings."
    return f"Round {number} is learned from its own ratings, with guesses for the images that nobody rated."


def _image(store: RunStore, id: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """One picture: the guess with its interval, what people said, and the rated pictures that look most like it."""
    mean, said = within(found["mean"]), found["said"]
    low, high = within(found["mean"] - found["wide"]), within(found["mean"] + found["wide"])
    return dict(
        id=id, url=_url(store, id, found["image"]), prompt=found["prompt"], round=found["round"], mean=mean, low=low, high=high,
        said=said, guess=signed(mean), between=f"{signed(low)} to {signed(high)}", opinion=None if said is None else signed(said),
        near=[_near(store, each) for each in found["near"]],
    )  # fmt: skip


def _near(store: RunStore, each: Mapping[str, Any]) -> dict[str, Any]:
    alike = f"{100 * max(0.0, each['alike']):.0f} % alike"
    opinion = words.number(round(each["said"], 2)) if each["source"] else signed(each["said"])  # a source's own numbers, on whatever scale
    return dict(url=_url(store, each["id"], each["image"]), prompt=each["prompt"], opinion=opinion, alike=alike, source=each["source"])


def _url(store: RunStore, id: int | None, image: str) -> str:
    """A picture's address: the run's own, or one that came with ratings from elsewhere."""
    path = PurePosixPath(image)
    return f"/studio/runs/{store.name}/earlier/{path.name}" if id is None else f"/studio/runs/{store.name}/image/{id}?v={path.stem}"


def within(value: float) -> float:
    """A guess as a rating that can be given: none is below −1 or above 1."""
    return max(-1.0, min(1.0, value))


def signed(value: float) -> str:
    """A rating from −1 to 1, with its sign."""
    text = words.number(round(value, 2))
    return f"+{text}" if value > 0 and text != "0" else text
