"""What a model card shows beside its words, as files that lie beside it: pictures before and after, and curves. Imports no torch.

No picture is made for it. Those before and after are the watched ones (:mod:`ddpo.monitor`), by the same prompts and seeds; where nothing was
watched, they are pictures of the round itself, and are not called a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ddpo.document import short
from ddpo.figure import Line, Panel, standalone
from ddpo.files import read_image
from ddpo.markup import image, quoted, words_for
from ddpo.records import SampleRow
from ddpo.report import evenly, reward_panels, watched_pairs
from ddpo.store import RunStore
from ddpo.strengths import percent

COLUMNS = 6
"""How many prompts the pictures are of, at most."""
SIDE, GAP, MARGIN, HEAD = 192, 8, 16, 30
"""A picture's longest side in the sheet, what is between two, what is around all, and the room for a row's name; in pixels."""
LONGEST = 80
"""Characters of a chart's title."""
GROUND, INK = "#ffffff", "#1d1c1b"
BEFORE_AFTER, OF_TRAINING, CURVES = "before-after.png", "pictures.png", "curves.svg"


def pictures(store: RunStore, number: int, strength: float, folder: Path) -> list[str]:
    """Put a sheet of pictures of a round into a folder; paragraphs in Markdown that show it. Nothing where there are none."""
    trained, pairs = set(store.config.prompts), watched_pairs(store, number, COLUMNS, each_prompt_once=True)
    if not pairs:
        return _of_training(store, number, strength, folder)
    at, across = pairs[0].round, words_for(len(pairs), "picture")
    rows = [("base model", [pair.before for pair in pairs]), (f"round {at}", [pair.after for pair in pairs])]
    sheet(rows).save(folder / BEFORE_AFTER, optimize=True)
    told = f"The same prompts and seeds: above by the base model, below after round {at}, at full strength."
    told += f" Round {at} is the last one before round {number} that was watched." if at != number else ""
    told += f"{_weaker(strength)} The seeds were never trained on, and nobody chose the pictures. From left to right:"
    alt = f"{across} by the base model above, and {across} of the same prompts and seeds after round {at} below"
    prompts = [f"{quoted(pair.prompt)}{'' if pair.prompt in trained else ' (never trained on)'}" for pair in pairs]
    return [image(alt, BEFORE_AFTER), told, _numbered(prompts)]


def _of_training(store: RunStore, number: int, strength: float, folder: Path) -> list[str]:
    """The same of the round's own pictures, of each prompt the one with the best score."""
    values = {id: score.value for id, score in store.scores(number, store.reward_at(number)).items() if score.value is not None}
    by_prompt: dict[str, list[SampleRow]] = {}
    for row in store.samples(number):
        by_prompt.setdefault(row.prompt, []).append(row)
    best = [max(rows, key=lambda row: values.get(row.id, -math.inf)) for rows in by_prompt.values()]
    best = evenly(best, COLUMNS)
    try:
        found = [read_image(store.folder / row.image) for row in best]
    except OSError:
        return []
    if not found:
        return []
    sheet([(f"round {number}", found)]).save(folder / OF_TRAINING, optimize=True)
    chosen = "of each prompt the one that scored best" if values else "of each prompt the first"
    told = f"Pictures of round {number}, {chosen}, by the model as it was before it learned from them, at full strength.{_weaker(strength)}"
    alt = f"{words_for(len(found), 'picture')} of round {number}, {chosen}"
    return [
        image(alt, OF_TRAINING),
        f"{told} They are no comparison with the base model. From left to right:",
        _numbered([quoted(row.prompt) for row in best]),
    ]


def _weaker(strength: float) -> str:
    return f" What lies beside this card is at {percent(strength)} of that strength." if strength != 1 else ""


def _numbered(lines: Sequence[str]) -> str:
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start=1))


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Rows of equally large pictures below their names."""
    cells = [[ImageOps.contain(each, (SIDE, SIDE), Image.Resampling.LANCZOS) for each in row] for _, row in rows]
    width, height = (max(size) for size in zip(*(cell.size for row in cells for cell in row), strict=True))
    across = max(len(row) for row in cells) * (width + GAP) - GAP
    drawn = Image.new("RGB", (across + 2 * MARGIN, len(rows) * (HEAD + height + MARGIN)), GROUND)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(17)
    for i, ((name, _), row) in enumerate(zip(rows, cells, strict=True)):
        top = i * (HEAD + height + MARGIN)
        draw.text((MARGIN, top + HEAD / 2 + 2), name, INK, font, anchor="lm")
        for j, cell in enumerate(row):
            drawn.paste(cell, (MARGIN + j * (width + GAP), top + HEAD))
    return drawn


def curves(store: RunStore, number: int, folder: Path) -> list[str]:
    """Put the curves of the rounds up to one into a folder, as one SVG; paragraphs in Markdown that show it. Nothing where there are none."""
    metrics = {name: [point for point in points if point[0] <= number] for name, points in store.metrics().items()}
    panels = [replace(panel, title=short(f"Reward: {panel.title}", LONGEST)) for panel in reward_panels(store, number, metrics)]
    distances = metrics.get("watched_kl", [])
    if len({at for panel in panels for line in panel.lines for at, _ in line.points}) < 2:
        return []
    told = "The line is the mean of each round's images, the band one standard deviation to both sides."
    told += " Dots are means over held-out seeds, with their standard errors." if any(line.dots for panel in panels for line in panel.lines) else ""
    if any(nats for _, nats in distances):
        title = "Distance from the base model"
        panels.append(Panel(f"{title}, in nats", [Line("KL", distances)], f"{title} over the rounds"))
        told += " The distance from the base model is the KL divergence over a picture's whole denoising, of watched pictures."
    (folder / CURVES).write_text(standalone(panels), encoding="utf-8", errors="replace")
    labels = ". ".join(short(panel.label, LONGEST) for panel in panels)
    return [image(f"{labels}, up to round {number}", CURVES), told]
