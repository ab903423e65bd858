"""The Rate tab: the board of the selected run."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.widgets.board import board


def board_value(run: str | None) -> dict[str, Any]:
    """What the board needs to know; it asks the server for the rest."""
    return {"run": run or None, "url_prefix": ""}


def build(run: gr.components.Component) -> gr.HTML:
    """The board; its value changes only when another run is selected."""
    part = board(board_value(getattr(run, "value", None)))
    run.change(board_value, run, part, queue=False, show_progress="hidden", api_visibility="private")
    return part
