"""The form that starts a run: presets, the main settings, and every other one under Advanced. Nothing typed is lost by an error."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Container, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

import rewards
from app import words
from app.runs import Runs
from app.widgets.kit import widget
from ddpo import earlier
from ddpo.config import GROUPS, ConfigError, RunConfig, prompt_sets, sources_of, sources_text
from ddpo.presets import presets
from ddpo.source import adapter_for, fitted, located, model_source
from ddpo.store import RATINGS, RunStore, StoreError
from ddpo.tracker import require
from rewards.function import offered

MAIN = ("model", "reward", "rating", "prompts", "held_out_prompts", "rounds", "images_per_round", "images_per_prompt")
"""The settings that are always in sight; the others are under Advanced."""

ADAPTER = ("lora_rank", "lora_targets")
"""The settings that a LoRA to start from fills in."""

SETTINGS: dict[str, Field[Any]] = {field.name: field for field in fields(RunConfig)}


@dataclass(frozen=True)
class Form:
    """The form's components."""

    cards: gr.HTML
    name: gr.Textbox
    parts: gr.Textbox
    """The parts of a blend, where that is the reward."""
    settings: dict[str, gr.components.Component]
    start: gr.Button
    note: gr.HTML

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The name, the parts of a blend, then all settings in order."""
        return [self.name, self.parts, *self.settings.values()]


def build() -> Form:
    """The form, filled with the first preset."""
    first = next(iter(presets()))
    config = presets()[first].config
    cards = widget("presets", preset_cards(first))
    made: dict[str, gr.components.Component] = {}
    with gr.Row(elem_classes="form-main"):
        with gr.Column(scale=1, min_width=300):
            name = gr.Textbox(label="Name of the run", info="Letters, digits, dots, dashes and underscores.", max_lines=1, elem_id="new-run-name")
            made["reward"] = field_component(SETTINGS["reward"], config.reward)
            parts = gr.Textbox(
                visible=False, label="Parts of the blend", placeholder="1 aesthetic, 0.5 jpeg_compressibility", max_lines=1, elem_id="new-run-parts",
                info=f"A weight and a reward each: human, {', '.join(rewards.automatic())}.",
            )  # fmt: skip
            for key in ("rating", "model"):
                made[key] = field_component(SETTINGS[key], getattr(config, key))
            with gr.Row(elem_classes="form-numbers"):
                for key in ("rounds", "images_per_round", "images_per_prompt"):
                    made[key] = field_component(SETTINGS[key], getattr(config, key), min_width=120, info=False)
        with gr.Column(scale=1, min_width=300):
            prompt_set = gr.Dropdown(
                choices=[("My own prompts", ""), *((f"{key.replace('_', ' ').capitalize()} ({len(of)})", key) for key, of in prompt_sets().items())],
                value="", label="Prompt set", info="Choosing one replaces the prompts below.", filterable=False,
            )  # fmt: skip
            made["prompts"] = gr.Textbox(
                value="\n".join(config.prompts), label="Prompts", info="One a line.", lines=10, max_lines=20, elem_id="new-run-prompts"
            )
            made["held_out_prompts"] = gr.Textbox(
                value="\n".join(config.held_out_prompts), label=words.label("held_out_prompts"), lines=3, max_lines=20, elem_id="new-run-held-out",
                info="One a line. Never trained on: they show how far what is learned reaches. Empty: those kept for the prompt set, if there are.",
            )  # fmt: skip
    with gr.Accordion("Advanced settings", open=False, elem_classes="form-advanced"):
        for title, names in GROUPS.items():
            if others := [key for key in names if key not in MAIN]:
                gr.HTML(f"<h3>{title}</h3>", elem_classes="form-section")
                with gr.Row(elem_classes="form-grid"):
                    for key in others:
                        made[key] = field_component(SETTINGS[key], getattr(config, key), min_width=240)
    with gr.Row(elem_classes="form-start"):
        start = gr.Button("Start", variant="primary", scale=0, min_width=160, elem_id="start-run")
        note = widget("note")
    form = Form(cards, name, parts, {key: made[key] for key in SETTINGS}, start, note)
    _wire(form, prompt_set)
    return form


def field_component(field: Field[Any], value: Any, min_width: int = 160, info: bool = True) -> gr.components.Component:
    """The component of one setting, from its type, its sentence and its choices. Limits are RunConfig's to say, in its words."""
    help = str(field.metadata["help"]).replace("`", "") if info else None
    common: dict[str, Any] = dict(label=words.label(field.name), info=help, min_width=min_width, elem_id=f"set-{field.name}")
    if field.name == "reward":
        common["info"] = "Your ratings, or an automatic reward."
        return gr.Dropdown([(words.reward(name), name) for name in (*rewards.REWARDS, *offered())], value=value, filterable=False, **common)
    if field.name == "ratings_from":
        common["info"] = "Of runs here, or of what was taken away: write the path of its zip or folder. For the model of your taste; they are copied."
        return gr.Dropdown([], value=[], multiselect=True, allow_custom_value=True, **common)
    if "choices" in field.metadata:
        names = words.RATINGS if field.name == "rating" else {}
        return gr.Dropdown([(names.get(c, c), c) for c in field.metadata["choices"]], value=value, filterable=False, **common)
    if field.type == "bool":
        return gr.Checkbox(value=value, **common)
    if field.type in ("int", "float"):
        step = 1.0 if field.type == "int" or not value else 10.0 ** math.floor(math.log10(abs(value)))
        return gr.Number(value=value, step=step, **common)
    return gr.Textbox(value=value, max_lines=1, **common)


def _wire(form: Form, prompt_set: gr.Dropdown) -> None:
    """The form's own events: presets, prompt sets, and ratings shown only where people rate."""
    quiet: dict[str, Any] = dict(queue=False, show_progress="hidden", api_visibility="private")
    prompt_set.input(lambda name: "\n".join(prompt_sets()[name]) if name else gr.skip(), prompt_set, form.settings["prompts"], **quiet)
    form.settings["reward"].change(
        lambda reward: [gr.update(visible=reward in ("human", "blend")), gr.update(visible=reward == "blend")],
        form.settings["reward"], [form.settings["rating"], form.parts], **quiet,
    )  # fmt: skip
    form.settings["init_lora"].change(fit_adapter, form.settings["init_lora"], [form.settings[name] for name in ADAPTER], **quiet)


# --- handlers -------------------------------------------------------------------------------------------------------------------


def preset_cards(chosen: str) -> dict[str, Any]:
    return dict(presets=[dict(name=name, title=p.title, description=p.description) for name, p in presets().items()], chosen=chosen)


def fill_from_preset(runs: Runs, preset: str, name: str) -> list[Any]:
    """The form's values for a preset: the name where it was only suggested, and all settings."""
    config = presets()[preset].config
    suggested = re.fullmatch(rf"(?:{'|'.join(map(re.escape, presets()))})-\d+", name or "") or not name
    return [suggest_name(runs, preset) if suggested else name, gr.skip(), *(_shown(key, getattr(config, key)) for key in SETTINGS)]


def fit_adapter(lora: str) -> list[Any]:
    """The form's values of ADAPTER for a LoRA that is named: what it needs, where it is one."""
    needed = adapter_for((lora or "").strip())
    return [needed.get(name, gr.skip()) for name in ADAPTER]


def suggest_name(runs: Runs, preset: str) -> str:
    """A free name for a run."""
    taken = {path.name for path in runs.folder.glob("*")}
    return next(name for n in range(1, len(taken) + 2) if (name := f"{preset}-{n}") not in taken)


def earlier_choices(runs: Runs) -> dict[str, Any]:
    """The runs whose ratings a new one can learn from as well, newest first."""
    found = []
    for name in runs.names():
        try:
            store = runs.open(name)
            images = store.rating_counts().images
        except (StoreError, ConfigError, sqlite3.Error):  # a damaged run: the Library says so
            continue
        if images or (store.folder / RATINGS).exists():
            found.append((f"{name} ({words.count(images, 'image')} rated)", name))
    update: dict[str, Any] = gr.update(choices=found)
    return update


def _shown(key: str, value: Any) -> Any:
    if key == "ratings_from":
        return list(sources_of(value))
    return "\n".join(value) if isinstance(value, tuple) else value


def config_from(values: Mapping[str, Any]) -> RunConfig:
    """The configuration that the form's values say.

    Raises:
        ConfigError: a setting cannot work.
    """
    return RunConfig(**{key: parsed(SETTINGS[key], value) for key, value in values.items()})


def parsed(field: Field[Any], value: Any) -> Any:
    """A form's value as the setting's: prompts one a line, whole numbers whole."""
    if field.type == "tuple[str, ...]" and isinstance(value, str):
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    if field.name == "ratings_from" and isinstance(value, list):
        return sources_text(map(str, value))
    if field.type == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip() if isinstance(value, str) else value


def create(runs: Runs, name: str, values: Mapping[str, Any], parts: str = "", given: Container[str] = SETTINGS) -> RunStore:
    """Check everything, then make the run; ``parts`` are those of a blend, and ``given`` the settings that are not a preset's alone.

    Raises:
        ConfigError: a setting cannot work.
        StoreError: the name is taken or no name, or the disk refuses.
    """
    if values["reward"] == "blend":
        values = {**values, "reward": f"{rewards.BLEND} {parts}"}
    config = fitted(config_from(values), given)
    here = [str(runs.folder / name) if name in runs.names() else name for name in config.ratings_sources]
    config = located(config.with_changes(ratings_from=sources_text(here)))
    model_source(config)
    require(config)
    name = (name or "").strip()
    if not name:
        raise ConfigError("The run has no name. Write one: letters, digits, dots, dashes and underscores.")
    if Path(name).name != name:
        raise ConfigError(
            f"{name!r} cannot name a run. Use letters, digits, dots, dashes and underscores, 80 at most; a letter or digit comes first."
        )
    earlier.create(runs.folder / name, config).close()
    return runs.open(name)


def plain(message: str) -> str:
    """An error's message with the form's labels for the settings' names."""
    for key in sorted(SETTINGS, key=len, reverse=True):
        if "_" in key or message.startswith(f"{key} is "):
            message = re.sub(rf"\b{key}\b", words.label(key), message)
    return message
