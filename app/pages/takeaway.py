"""What can be taken away from a run, in a designer's words. Pure reads of the store."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import words
from app.board import config_of
from app.widgets.kit import widget
from ddpo.export import MEASURED, MODELS, PAGES, round_to_take, saved_rounds
from ddpo.result import rolled_back
from ddpo.store import RunStore

CHOICES: dict[str, tuple[str, str]] = {
    "kohya": ("LoRA for A1111, Forge, ComfyUI", "One file, for the folder models/Lora or models/loras."),
    "diffusers": ("LoRA for diffusers", "A zip with the file and a model card, for Python."),
    "pipeline": ("Whole model", "A zip of a diffusers folder that needs no base model. As large as the base model; takes a while."),
    "report": ("Report", "One page with curves, pictures before and after, ratings and settings. Opens anywhere, offline; takes a while."),
    "generalisation": ("How far it reaches", "A table of what the reward gained on trained prompts and on others, with all pictures. Takes a while."),
    "strengths": (
        "How strong",
        "The same pictures at 0, 25, 50, 75 and 100 %, on one page, with what rewards say: weaker is often better. Takes a while.",
    ),
    "pairs": ("Preference pairs", "Which of two images you like better, with the images: for training other models."),
    "ratings": ("Ratings", "Every rating in its order, as a table, with the images. A new run can learn from it."),
    "imagefolder": ("Images", "All images with their prompts, scores and ratings."),
}
"""What each kind of export is called, and what it is good for."""
SLOW = dict(
    pipeline="The whole model is being put together.",
    **dict.fromkeys(("report", "generalisation"), "The pictures before and after are being made."),
    strengths="The pictures are being made.",
)
"""What is said while those are made that take a while."""


def build() -> gr.HTML:
    """The panel; it asks its own routes (:mod:`app.downloads`) for files. Its ``act`` event takes a roll-back back."""
    return widget("takeaway")


def takeaway_value(store: RunStore) -> dict[str, Any]:
    """What can be taken away, and from which rounds."""
    full = config_of(store).training == "full"
    saved, made = sorted(saved_rounds(store)), [row.number for row in store.rounds() if row.sampled_at is not None]
    scored = any(row.scored_at is not None for row in store.rounds())
    rated = store.rating_counts().ratings
    choices = []
    for kind, (title, text) in CHOICES.items():
        if full and kind in ("kohya", "diffusers"):
            continue
        data = kind not in MODELS and kind not in MEASURED
        lacking = _lacking(kind, saved, made, scored, rated)
        people = kind in ("ratings", "pairs") or (kind == "report" and rated > 0)
        offered = dict(data=data, strong=kind in MODELS, people=people, page=kind in PAGES, slow=SLOW.get(kind))
        choices.append(dict(kind=kind, title=title, text=lacking or text, enabled=not lacking) | offered)
    taken = dict(result=round_to_take(store), rolled=rolled_back(store) is not None)
    return dict(run=store.name, choices=choices, saved=saved, made=made, rated=words.count(rated, "rating")) | taken


def _lacking(kind: str, saved: list[int], made: list[int], scored: bool, rated: int) -> str:
    """Why there is nothing of a kind yet; nothing where there is."""
    if kind == "imagefolder":
        return "" if made else "No images yet."
    if kind in ("ratings", "pairs"):
        return "" if rated else "No ratings yet."
    return "" if (scored if kind == "report" else saved) else "After the first round."
