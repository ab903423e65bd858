"""The rating board: a page part that shows a round's images and takes ratings by keyboard, mouse and touch.

Its value is ``{"run": name or None, "url_prefix": ""}``. Everything else it asks of the routes in :mod:`app.routes` by itself, so Gradio
has nothing to do while somebody rates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

FOLDER = Path(__file__).parent
SCRIPTS = ("../rater.js", "model.js", "outbox.js", "layout.js", "words.js", "view.js", "keys.js", "dialogs.js", "board.js", "paint.js")
"""The JavaScript, in the order in which each part uses the ones before it."""


def board(value: dict[str, Any] | None = None) -> gr.HTML:
    """The board as a component."""
    return gr.HTML(
        value or {"run": None, "url_prefix": ""},
        html_template=_read("board.html"),
        css_template=_read("board.css"),
        js_on_load="\n".join(_read(script) for script in SCRIPTS),
        apply_default_css=False,
        elem_id="rating-board",
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
