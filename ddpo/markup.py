"""HTML and Markdown from Python, with text as text: what people wrote is never markup. Imports no torch."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence

EMPTY = ("meta", "img", "br", "line", "rect", "circle", "path")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""What no HTML or XML may hold."""
SIGNS = re.compile(r"[][<>`*_&]")
MARKDOWN = re.compile(r"[][<>`\\]")
"""What would be markup within a picture's alternative text."""


class Html(str):
    """Text that is markup already."""


def text(value: str) -> Html:
    """Text as markup."""
    return value if isinstance(value, Html) else Html(html.escape(UNPRINTABLE.sub("\ufffd", value)))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Html:
    """An element: ``tag("p", "text", class_="note")``; attributes that are None are left out, and ``_`` in their names is ``-``."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    head = name + "".join(f' {key}="{text(str(value))}"' for key, value in pairs)
    return Html(f"<{head}/>" if name in EMPTY else f"<{head}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Texts and elements, one after the other."""
    return Html("".join(map(text, parts)))


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *lines])


def image(alt: str, file: str) -> str:
    """A picture in Markdown, from a file beside the text; ``alt`` says what it shows."""
    alt = MARKDOWN.sub(r"\\\g<0>", " ".join(alt.split()))
    return f"![{alt}]({file})"


def quoted(words: str) -> str:
    """A prompt in quotation marks in Markdown, whatever it holds."""
    return SIGNS.sub(r"\\\g<0>", json.dumps(words, ensure_ascii=False))


def shown(value: float | None) -> str:
    """A measured number as text."""
    if value is None:
        return "–"
    return f"{value:.4g}" if abs(value) < 9_999.5 else f"{value:,.0f}"


def words_for(count: int, one: str, many: str = "") -> str:
    """``3 rounds``, ``1 person``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
