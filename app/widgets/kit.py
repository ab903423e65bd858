"""How a widget becomes a component: JavaScript that builds the page from a plain value, with text as text.

A widget's folder holds ``widget.js`` (the body of a function that calls ``show(view)``) and ``style.css``; of a long script, parts are in other files
beside it. The template is empty on purpose: what people wrote never goes through a template, where it would run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

FOLDER = Path(__file__).parent


def widget(
    name: str, value: dict[str, Any] | None = None, server_functions: list[Callable[..., Any]] | None = None, also: Sequence[str] = ()
) -> gr.HTML:
    """The widget of that name; ``act`` is its one event, with a dictionary that says what a person did. ``also`` names further scripts beside the kit
    that it uses."""
    parts = sorted((FOLDER / name).glob("*.js"), key=lambda file: (file.name == "widget.js", file.name))
    script = "\n".join(file.read_text(encoding="utf-8") for file in (*(FOLDER / shared for shared in ("kit.js", *also)), *parts))
    return gr.HTML(
        value or {},
        html_template="",
        css_template="",
        js_on_load=script,
        apply_default_css=False,
        elem_id=f"studio-{name}",
        elem_classes=["studio-widget"],
        server_functions=server_functions,
    )


def action(event: gr.EventData) -> dict[str, Any]:
    """What a widget's ``act`` event says."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}
