"""Documents for people: one HTML file each, which opens offline, in light and dark and on paper. Imports no torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ddpo import figure
from ddpo.markup import Html, tag

STYLE = Path(__file__).with_suffix(".css")
LARGEST = 320
"""Longest side of a picture, in pixels; larger ones are made smaller."""


def document(title: str, *parts: str) -> str:
    """The file's text."""
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(figure.STYLE.read_text(encoding="utf-8") + STYLE.read_text(encoding="utf-8"))),
    )
    return f"<!DOCTYPE html>\n{tag('html', top, tag('body', tag('main', *parts)), lang='en')}\n"


def section(title: str, *parts: str) -> Html:
    return tag("section", tag("h2", title), *parts)


def grid(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table that scrolls within itself where the page is narrow."""
    top = tag("tr", *(tag("th", name, scope="col") for name in names))
    body = [tag("tr", *(tag("td", tag("bdi", cell)) for cell in row)) for row in rows]
    table = tag("table", tag("thead", top), tag("tbody", *body), class_="wide" if len(names) > 2 else None)
    return tag("div", table, class_="scroll", tabindex=0)


def picture(image: Image.Image, alt: str) -> Html:
    """A picture within the file: as it is where it is small, or else smaller and as a JPEG."""
    data, small = io.BytesIO(), image.copy()
    small.thumbnail((LARGEST, LARGEST))
    kind = "PNG" if max(small.size) <= 128 else "JPEG"
    small.save(data, format=kind, **(dict(optimize=True) if kind == "PNG" else dict(quality=88)))
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
    return tag("img", src=source, alt=short(alt, 300), width=small.width, height=small.height)


def short(words: str, limit: int = 120) -> str:
    return words if len(words) <= limit else f"{words[: limit - 1]}…"
