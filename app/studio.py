"""The page: the strip, the tabs, and how they are wired. Nothing else."""

from __future__ import annotations

import re
from typing import Any

import gradio as gr

from app import api
from app.comparing import Comparing
from app.exports import Exports
from app.launch import LaunchError
from app.pages import alarm, compare, library, new_run, progress, rate, rewards, run, takeaway, taste
from app.scoring import Scoring
from app.views import NAMES, Views
from app.widgets.kit import action, widget
from ddpo.config import ConfigError
from ddpo.store import StoreError

QUIET: dict[str, Any] = dict(queue=False, show_progress="hidden", api_visibility="private")
"""For events that must not show themselves, nor wait in line behind another."""


def build_studio(views: Views, exports: Exports, comparing: Comparing, scoring: Scoring) -> gr.Blocks:
    """The Gradio blocks over a folder of runs."""
    runs, launcher = views.runs, views.launcher

    def round_images(question: dict[str, Any]) -> dict[str, Any]:
        return progress.answer_round(runs, question)

    def round_strip(question: dict[str, Any]) -> dict[str, Any]:
        return progress.answer_strip(runs, question)

    def run_curves(question: dict[str, Any]) -> dict[str, Any]:
        return progress.answer_curves(runs, question)

    def round_pictures(question: dict[str, Any]) -> dict[str, Any]:
        return rewards.round_pictures(runs, question)

    def prompts_of(question: dict[str, Any]) -> dict[str, Any]:
        return compare.prompts_of(runs, question)

    with gr.Blocks(title="DDPO Studio", fill_width=True, analytics_enabled=False) as blocks:
        name = gr.Textbox(visible="hidden", elem_id="studio-run", label="Selected run")
        seen = gr.Textbox(visible="hidden", elem_id="studio-seen", label="What this page shows")
        suggested = gr.Textbox(visible="hidden", elem_id="studio-suggested", label="Suggested name of a new run")
        bar = widget("bar")
        with gr.Tabs(elem_id="studio-tabs"):
            with gr.Tab("Run", id="run"):
                panel = run.build()
                with gr.Accordion("Start a new run", open=False, elem_id="new-run") as fresh:
                    form = new_run.build()
            with gr.Tab("Rate", id="rate"):
                board = rate.build(name)
            with gr.Tab("Progress", id="progress"):
                banner = alarm.build()
                charts, gallery = progress.build(round_images, round_strip, run_curves)
                believed = taste.build()
                taken = takeaway.build()
            with gr.Tab("Compare", id="compare"):
                pairs = compare.build(prompts_of)
            with gr.Tab("Rewards", id="rewards"):
                scores = rewards.build(round_pictures)
            with gr.Tab("Library", id="library"):
                shelf = library.build()

        parts = dict(
            bar=bar, panel=panel, alarm=banner, charts=charts, gallery=gallery, taste=believed, takeaway=taken, compare=pairs, rewards=scores,
            library=shelf, board=board,
        )  # fmt: skip
        shown = [*(parts[value] for value in NAMES), seen]

        def load(request: gr.Request) -> list[Any]:
            asked = request.query_params.get("run") or views.first()
            first = new_run.suggest_name(runs, "rate")
            return [asked, gr.update(open=asked is None), first, new_run.earlier_choices(runs), *views.changes(asked, None)]

        def show(selected: str, told: str, event: gr.EventData) -> list[Any]:
            if (picked := action(event).get("run")) is None:  # the selected one has changed; which that is may be another by now, and stays
                return [gr.skip(), *views.changes(selected, told)]
            return [str(picked), *views.changes(str(picked), told)]

        def steer(selected: str, told: str, event: gr.EventData) -> list[Any]:
            asked = action(event)
            what = [str(asked.get(key, "")) for key in ("kind", "reward", "rater")]
            target = str(asked.get("run") or selected)  # that whose button was pressed, whatever was selected meanwhile
            views.attempt(lambda: run.steer(runs.open(target), launcher, *what))
            return views.changes(selected, told)

        def heed(selected: str, told: str, event: gr.EventData) -> list[Any]:
            asked, made = action(event), list[str]()
            selected = str(asked.get("run") or selected)

            def work() -> None:
                if name := alarm.heed(runs.open(selected), launcher, str(asked.get("kind")), asked.get("round")):
                    made.append(name)

            views.attempt(work)
            selected = made[0] if made else selected
            return [selected, *views.changes(selected, told)]

        def choose_preset(typed: str, event: gr.EventData) -> list[Any]:
            return new_run.fill_from_preset(runs, str(action(event).get("name")), typed)

        def start(selected: str, told: str, typed: str, parts: str, *values: Any) -> list[Any]:
            try:
                store = new_run.create(runs, typed, dict(zip(new_run.SETTINGS, values, strict=True)), parts)
                launcher.start(store.folder)
            except (ConfigError, StoreError, LaunchError) as error:
                return [selected, dict(text=new_run.plain(str(error))), gr.skip(), gr.skip(), *views.changes(selected, told)]
            following = new_run.suggest_name(runs, re.sub(r"-\d+$", "", typed.strip()))
            return [store.name, dict(text=""), following, gr.update(open=False), *views.changes(store.name, told)]

        def manage(selected: str, told: str, event: gr.EventData) -> list[Any]:
            asked = action(event)
            kind, which = asked.get("kind"), str(asked.get("run"))
            if kind == "delete":
                views.attempt(lambda: runs.delete(which))
                selected = (views.first() or "") if which == selected else selected
            elif kind == "resume":
                views.attempt(lambda: run.steer(runs.open(which), launcher, "launch"))
            selected = which if kind in ("open", "resume") else selected
            return [selected, *views.changes(selected, told)]

        api.publish(runs, launcher, exports, comparing, scoring)  # first: its names go before those of the page's own events
        earlier = form.settings["ratings_from"]
        loaded = blocks.load(load, None, [name, fresh, suggested, earlier, *shown], **QUIET)
        fresh.expand(lambda: new_run.earlier_choices(runs), None, earlier, **QUIET)
        # In the browser, when the answer is there: by then somebody may have typed a name.
        loaded.then(None, [form.name, suggested], form.name, js="(typed, suggested) => typed || suggested", **QUIET)
        bar.act(show, [name, seen], [name, *shown], trigger_mode="multiple", **QUIET)  # a run is picked also while an answer is on its way
        panel.act(steer, [name, seen], shown, **QUIET)
        for each in (banner, gallery, taken):
            each.act(heed, [name, seen], [name, *shown], **QUIET)
        shelf.act(manage, [name, seen], [name, *shown], **QUIET)
        form.cards.act(choose_preset, [form.name], form.inputs, **QUIET)
        form.start.click(start, [name, seen, *form.inputs], [name, form.note, form.name, fresh, *shown], **QUIET)
    return blocks
