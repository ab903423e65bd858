"""What the page shows of the selected run, as plain values; and which of them a browser has not seen yet.

The page is a function of the store. A browser says what it has seen (a digest of each value), so that the server remembers nothing
about it, and a reload, a second tab or a restarted server shows the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import sqlite3
from collections.abc import Callable
from typing import Any

import gradio as gr

from app.launch import Launcher
from app.pages import alarm, compare, library, progress, rate, rewards, run, takeaway, taste
from app.runs import Runs
from ddpo import blind
from ddpo.config import ConfigError
from ddpo.store import StoreError
from rewards.base import RewardError

NAMES = ("bar", "panel", "alarm", "charts", "gallery", "taste", "takeaway", "compare", "rewards", "library", "board")
"""The values, in the order in which :meth:`Views.changes` gives them; what was seen comes last."""

UNREADABLE = (StoreError, ConfigError, RewardError, sqlite3.Error, OSError, TypeError, ValueError, LookupError)
"""What reading a damaged run can raise."""

log = logging.getLogger(__name__)


class Views:
    """Reads runs for the page."""

    def __init__(self, runs: Runs, launcher: Launcher) -> None:
        self.runs, self.launcher = runs, launcher
        self._server = secrets.token_hex(4)  # revisions count from a server's start
        self._cards: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {}

    def changes(self, name: str | None, seen: str | None) -> list[Any]:
        """The values that differ from what was seen, skips for the others, and last what is seen then."""
        before = _decode(seen)
        token = self.token(name)
        if before.get("token") == token:
            return [gr.skip()] * (len(NAMES) + 1)
        values = self.values(name)
        values["bar"] |= dict(token=token)  # by which a browser sees that there is more to show
        digests = {key: _digest(value) for key, value in values.items()}
        changed = [values[key] if before.get(key) != digests[key] else gr.skip() for key in NAMES]
        return [*changed, json.dumps({"token": token, **digests})]

    def token(self, name: str | None) -> str:
        """Differs whenever the page might; a hundred times cheaper than the values."""
        return _digest([self._server, name or "", rewards.versions(), *(self._run_token(each) for each in self.runs.names())])

    def _run_token(self, name: str) -> str:
        try:
            store = self.runs.open(name)
            status = store.status()
            log_file = store.folder / "worker.log"
            size = log_file.stat().st_size if log_file.exists() else 0
            overdue = run.stop_overdue(store, status)
            beside = f"{size}/{blind.stamp(store.folder)}/{overdue}/{self.launcher.starting(store.folder)}"
            return f"{name}/{id(store):x}/{store.revision}/{status.state}/{status.pid}/{beside}"
        except UNREADABLE as error:
            return f"{name}/{error}"

    def first(self) -> str | None:
        """The run that a page shows when it is asked for none: the newest that can be read."""
        names = self.runs.names()
        return next((name for name in names if self._card(name)[0]["kind"] == "run"), next(iter(names), None))

    def values(self, name: str | None) -> dict[str, Any]:
        """Every value of the page."""
        names = self.runs.names()
        known = [self._card(each) for each in names]
        cards, comparable = [card for card, _ in known], [choice for _, choice in known if choice]
        bar: dict[str, Any] = dict(runs=names, run=name)
        common = dict(library=dict(run=name, cards=cards), board=rate.board_value(name if name in names else None))
        common |= dict(compare=compare.page_value(name if name in names else None, comparable))
        empty = dict(
            alarm=dict(run=None),
            charts=dict(run=None),
            gallery=dict(run=None),
            taste=dict(run=None),
            takeaway=dict(run=None),
            rewards=rewards.page_value(dict(run=None)),
        )
        if name not in names:
            return dict(bar=bar, panel=dict(kind="missing", text=f"There is no run called {name}.") if name else dict(kind="none"), **empty, **common)
        try:
            store = self.runs.open(name)
            bar |= run.bar_value(store, self.launcher)
            panel = run.panel_value(store, self.launcher)
            gallery = progress.gallery_value(store)
            shown = dict(charts=progress.charts_value(store) | dict(runs=names), gallery=gallery, takeaway=takeaway.takeaway_value(store))
            shown |= dict(alarm=(wrong := alarm.alarm_value(store)), taste=taste.taste_value(store), rewards=rewards.page_value(gallery))
            bar |= dict(alarm="" if wrong.get("rolled") and not wrong["alive"] else wrong.get("text", ""))
            return dict(bar=bar, panel=panel, **shown, **common)
        except UNREADABLE as error:
            return dict(bar=bar, panel=dict(kind="broken", text=_reason(error)), **empty, **common)

    def _card(self, name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """A run's card in the library, and what can be compared of it; made anew when the run has changed."""
        token = self._run_token(name)
        known = self._cards.get(name)
        if known and known[0] == token:
            return known[1:]
        try:
            store = self.runs.open(name)
            card, choice = library.card(store, self.launcher), compare.choice(store)
        except UNREADABLE as error:
            card, choice = library.unreadable(name, error), None
        self._cards[name] = (token, card, choice)
        return card, choice

    def attempt(self, work: Callable[[], str | None]) -> None:
        """Do something to a run; a refusal, or what there is to say, appears as a message on the page."""
        try:
            said = work()
        except (*UNREADABLE, RuntimeError) as error:
            said = _reason(error)
        if said:
            gr.Warning(said, title="DDPO Studio")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _decode(seen: str | None) -> dict[str, str]:
    """What a browser says it has seen; anything odd counts as nothing."""
    try:
        found = json.loads(seen or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
