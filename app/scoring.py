"""Scores for the Rewards page. Networks live in a process of their own (``python -m rewards serve``), which starts with the first question and
ends with the server, or when nobody has asked anything for a while.

Beside :mod:`app.launch` and :mod:`app.exports` this is the only code that starts or signals a process: :class:`Desk`, which belongs to the server and
has no run, serves :mod:`app.comparing`, too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards import card

PROJECT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "rewards", "serve")
IDLE_SECONDS = 600.0
"""After so long without a question the process ends, and gives its memory back."""
PATIENCE_SECONDS = 75.0
"""A value that nobody has asked for again within this time is not wanted any more: the page was closed.
A browser lets a page in the background ask once a minute."""
FORGET_SECONDS = 30.0
"""A reward that failed is tried anew when it is asked for after such a pause."""
END_SECONDS = 10.0
"""What does not end within this time is left to itself."""
AT_ONCE = 8
"""Pictures in one question: values come in such portions."""
MOST_KNOWN = 50_000


class DeskError(RuntimeError):
    """The process gave no answer; the message says why."""


class Desk:
    """A process that answers questions. One at a time."""

    def __init__(self, command: Sequence[str] = COMMAND, name: str = "The process that scores", advice: str = "choose smaller networks") -> None:
        """``name`` and ``advice`` are for people: what it is, and what to do when it takes too much memory."""
        self.command, self.name, self.advice = tuple(command), name, advice
        self.starts = 0
        """How often it was started: networks are loaded anew after each."""
        self._process: subprocess.Popen[str] | None = None
        self._said: Any = None
        self._online = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process, while it lives."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def ask(self, question: dict[str, Any], online: bool | None = False) -> dict[str, Any]:
        """The answer to a question, however long it takes; ``end`` from another thread ends the wait.

        Nothing is downloaded unless ``online``; with None a process that lives is as good as any.

        Raises:
            DeskError: the process cannot be started, or ended before it answered.
        """
        with self._lock:
            if self.pid is None or online not in (None, self._online):
                self.end()
                self._start(bool(online))
            process = self._process
            assert process is not None and process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
                answer: dict[str, Any] = json.loads(line)
                return answer
            except (OSError, ValueError) as error:
                self.end()
                raise DeskError(self._last_words(process)) from error

    def end(self) -> None:
        """End the process at once, if it lives."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what a person's function has started, which would hold the answers' pipe open
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)

    def interrupt(self, waits: Callable[[], bool]) -> None:
        """End the process for whoever waits for its answer, and again where it was only being started, until nobody waits."""
        until = time.monotonic() + END_SECONDS
        while waits() and time.monotonic() < until:
            self.end()
            time.sleep(0.05)

    def _start(self, online: bool) -> None:
        self._let_go()
        surroundings = os.environ | {"PYTHONIOENCODING": "utf-8"} | ({} if online else {"HF_HUB_OFFLINE": "1"})
        try:
            self._said, self._online = tempfile.TemporaryFile(), online  # noqa: SIM115
            self._process = subprocess.Popen(
                self.command, cwd=PROJECT, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
                text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DeskError(f"{self.name} cannot be started: {error}.") from error
        self.starts += 1

    def close(self) -> None:
        """End the process for good."""
        self.end()
        self._let_go()

    def _let_go(self) -> None:
        """Close the pipes of a process that has ended."""
        process, self._process = self._process, None
        said, self._said = self._said, None
        for pipe in (said, *((process.stdin, process.stdout) if process else ())):
            with suppress(OSError):  # what was still to be written to a process that is gone
                if pipe is not None:
                    pipe.close()

    def _last_words(self, process: subprocess.Popen[str]) -> str:
        if self._said is None or self._said.closed:
            return f"{self.name} was ended."
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        if process.returncode == -9 or not lines:
            return f"{self.name} was ended, perhaps for want of memory. Close other programs or {self.advice}, then retry."
        return f"{self.name} ended: {lines[-1]}"


@dataclass(frozen=True)
class Setting:
    """A reward and the networks that it uses."""

    reward: str
    models: str = "pocket"
    device: str = "auto"
    vlm: str = ""
    version: int = 0
    """The state of the file of a person's own function."""


@dataclass(frozen=True)
class Cell:
    """One value to be known: of a picture with its prompt, by a reward."""

    setting: Setting
    image: Path
    prompt: str


@dataclass
class Failure:
    """Why a reward gives no values."""

    text: str
    missing: bool
    """Its networks are not on this computer, and nobody has allowed a download yet."""
    asked: float


class Scoring:
    """Values by and by: ``ask`` tells what is known and remembers what is wanted; a thread has it scored."""

    def __init__(self, desk: Desk | None = None, idle_seconds: float = IDLE_SECONDS) -> None:
        self.desk, self.idle_seconds = desk or Desk(), idle_seconds
        self._known: dict[Cell, dict[str, Any]] = {}
        self._wanted: dict[Cell, float] = {}
        self._failures: dict[Setting, Failure] = {}
        self._downloads: dict[Setting, float] = {}
        self._loaded: set[tuple[int, Setting]] = set()
        self._now: tuple[Setting, float] | None = None
        self._stops = 0
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def ask(self, cells: Sequence[Cell]) -> tuple[list[dict[str, Any] | None], dict[Setting, Failure]]:
        """What is known of each cell, and which of their rewards have failed. What is neither is scored from now on; ask again soon."""
        now = time.monotonic()
        with self._wake:
            failures = {}
            for setting in {cell.setting for cell in cells} & set(self._failures):
                failure = self._failures[setting]
                if now - failure.asked > FORGET_SECONDS:
                    del self._failures[setting]
                else:
                    failure.asked, failures[setting] = now, failure
            answers = [self._known.get(cell) for cell in cells]
            for cell, answer in zip(cells, answers, strict=True):
                if answer is None and cell.setting not in failures and not self._closed:
                    self._wanted[cell] = now
            if self._wanted and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
                self._thread.start()
            self._wake.notify_all()
            return answers, failures

    @property
    def now(self) -> dict[str, Any] | None:
        """What is being scored, a Setting, for how many seconds, and whether networks are still being loaded or downloaded."""
        with self._wake:
            if self._now is None:
                return None
            setting, since = self._now
            new = bool(card(setting.reward).published) and (self.desk.starts, setting) not in self._loaded
            return dict(setting=setting, seconds=time.monotonic() - since, loading=new, downloading=setting in self._downloads)

    def retry(self, setting: Setting, download: bool = False) -> None:
        """Try a reward that failed again; with ``download``, its networks may be fetched from the Hub when its values are asked for next."""
        with self._wake:
            self._failures.pop(setting, None)
            if download:
                self._downloads[setting] = time.monotonic()

    def stop(self) -> None:
        """Give up what is wanted, and end the process if it is busy."""
        with self._wake:
            self._wanted.clear()
            self._downloads.clear()
            self._stops += 1
            busy = self._now
        self.desk.interrupt(lambda: busy is not None and self._now is busy)

    def close(self) -> None:
        """End the process and the thread."""
        with self._wake:
            self._closed = True
            self._wanted.clear()
            self._wake.notify_all()
        self.desk.interrupt(lambda: self._thread is not None and self._thread.is_alive())
        self.desk.close()

    # --- the thread -------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                cells = self._next()
                if self._closed:
                    return
                if not cells:
                    if not self._wake.wait(self.idle_seconds):
                        self.desk.end()
                    continue
                setting, stops = cells[0].setting, self._stops
                self._now = (setting, time.monotonic())
                loaded = (self.desk.starts, setting) in self._loaded
                online = setting in self._downloads or (None if loaded else False)
            outcome = self._scored(cells, online)
            with self._wake:
                self._now = None
                if stops == self._stops:
                    self._take(cells, outcome, bool(online))

    def _next(self) -> list[Cell]:
        """What to score next: rewards without networks first, then in the order in which they were asked for; some pictures at a time."""
        now = time.monotonic()
        self._wanted = {cell: asked for cell, asked in self._wanted.items() if now - asked < PATIENCE_SECONDS}
        wanted = {cell.setting for cell in self._wanted}
        self._downloads = {each: given for each, given in self._downloads.items() if each in wanted or now - given < PATIENCE_SECONDS}
        while first := min(self._wanted, key=lambda cell: bool(card(cell.setting.reward).published), default=None):
            cells = [cell for cell in self._wanted if cell.setting == first.setting][:AT_ONCE]
            gone = [cell for cell in cells if not cell.image.is_file()]
            for cell in gone:
                del self._wanted[cell]  # the page is told when it asks again
            if len(gone) < len(cells):
                return [cell for cell in cells if cell not in gone]
        return []

    def _scored(self, cells: Sequence[Cell], online: bool | None) -> dict[str, Any]:
        """What the process answers, or ``error``: why there is no answer that can be used."""
        setting = cells[0].setting
        items = [dict(image=str(cell.image), prompt=cell.prompt) for cell in cells]
        question = dict(id=1, reward=setting.reward, models=setting.models, device=setting.device, vlm=setting.vlm, items=items)
        try:
            answer = self.desk.ask(question, online)
            if "error" in answer or (len(answer["scores"]) == len(cells) and all(isinstance(score, dict) for score in answer["scores"])):
                return answer
            return dict(error="The process that scores did not give one value for each picture.")
        except DeskError as error:
            return dict(error=str(error))
        except Exception as error:  # the thread must live on
            return dict(error=f"Scoring failed with {type(error).__name__}: {error}")

    def _take(self, cells: Sequence[Cell], outcome: dict[str, Any], online: bool) -> None:
        """Keep what was answered to a question that was asked with leave to download, or without."""
        setting = cells[0].setting
        if "error" in outcome:
            missing = bool(outcome.get("missing")) and not online
            if missing and setting in self._downloads:
                return  # the leave came meanwhile: it is asked again, with it
            self._failures[setting] = Failure(str(outcome["error"]), missing, time.monotonic())
            self._wanted = {cell: asked for cell, asked in self._wanted.items() if cell.setting != setting}
        else:
            if any("error" not in score for score in outcome["scores"]):
                self._loaded.add((self.desk.starts, setting))
            for cell, score in zip(cells, outcome["scores"], strict=True):
                self._wanted.pop(cell, None)
                if "error" not in score or cell.image.is_file():
                    self._known[cell] = score
            for cell in list(self._known)[: max(0, len(self._known) - MOST_KNOWN)]:
                del self._known[cell]
        if online:
            self._downloads.pop(setting, None)
