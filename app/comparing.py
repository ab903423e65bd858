"""Pictures for the Compare page: made by a process of their own (``python -m ddpo.compare``), which keeps one model in memory while it is used. They
are kept on disk under a name that says all that determines them, so that none is made twice.

A run that is at work goes first: while one is, pictures are made only where somebody said that they may be.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.scoring import Desk, DeskError
from ddpo.states import State, picture_key

COMMAND = (sys.executable, "-m", "ddpo.compare")
IDLE_SECONDS = 300.0
"""After so long without a wish the process ends, and gives its memory back."""
BESIDE_SECONDS = 30.0
"""For how long the process keeps its model beside a run that is at work, after somebody wanted that."""
PATIENCE_SECONDS = 75.0
"""A picture that nobody has asked for again within this time is not wanted any more: the page was closed."""
FORGET_SECONDS = 30.0
"""A state that failed is tried anew when it is asked for after such a pause."""
AT_ONCE = 8
"""Pictures of one state in one question."""
MOST_KEPT = 5000
"""Pictures on disk; when there are more, the oldest ones go."""
FOLDER = ".compare"
"""In the folder of runs; no run's name begins with a dot."""
KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Picture:
    """A picture to be had: of a state, from a prompt and a seed."""

    state: State
    prompt: str
    seed: int
    key: str
    """Its name on disk."""

    @classmethod
    def all_of(cls, state: State, prompts: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
        """Those of some prompts and seeds, pair by pair.

        Raises:
            StateError: there is no such state.
        """
        fixes = state.fixes()
        return [cls(state, prompt, seed, picture_key(fixes, prompt, seed)) for prompt, seed in zip(prompts, seeds, strict=True)]


@dataclass
class Failure:
    """Why a state gives no pictures."""

    text: str
    asked: float


class Comparing:
    """Pictures by and by: ``ask`` tells which are there and remembers which are wanted; a thread has them made, what was asked for last first."""

    def __init__(self, runs: Path, at_work: Callable[[], str | None], desk: Desk | None = None, idle_seconds: float = IDLE_SECONDS) -> None:
        """``at_work`` names a run that is at work, if there is one."""
        self.folder, self.at_work, self.idle_seconds = Path(runs) / FOLDER, at_work, idle_seconds
        self.desk = desk or Desk(COMMAND, "The process that makes pictures", "stop what else uses the model")
        self._wanted: dict[Picture, tuple[float, bool]] = {}
        self._failures: dict[State, Failure] = {}
        self._since: float | None = None
        self._asking: Sequence[Picture] | None = None
        self._answered = 0
        self._beside = -BESIDE_SECONDS
        self._stops = 0
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def path(self, key: str) -> Path | None:
        """The file of a picture, or None where it is not made."""
        path = self.folder / f"{key}.png"
        return path if KEY.fullmatch(key) and path.is_file() else None

    @property
    def closed(self) -> bool:
        """Whether the studio is closing: nothing is made any more."""
        return self._closed

    def ask(self, pictures: Sequence[Picture], beside: bool = False) -> tuple[list[bool], dict[State, str]]:
        """Which pictures are there, and why some of their states give none. What is missing is made from now on, in this order; ask again soon.

        Args:
            beside: make them while a run is at work, too.
        """
        now = time.monotonic()
        with self._wake:
            failures = {}
            for state in {picture.state for picture in pictures} & set(self._failures):
                failure = self._failures[state]
                if now - failure.asked > FORGET_SECONDS:
                    del self._failures[state]
                else:
                    failure.asked, failures[state] = now, failure.text
            made = [self.path(picture.key) is not None for picture in pictures]
            missing = [picture for picture, there in zip(pictures, made, strict=True) if not there and picture.state not in failures]
            new = set(missing)
            if beside:
                self._beside = now
            if missing and not self._closed:
                self._wanted = dict.fromkeys(missing, (now, beside)) | {p: w for p, w in self._wanted.items() if p not in new}
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="comparing", daemon=True)
                    self._thread.start()
                self._wake.notify_all()
            return made, failures

    @property
    def now(self) -> dict[str, Any] | None:
        """For how many seconds pictures are being made, and whether the model is still being loaded."""
        with self._wake:
            return None if self._since is None else dict(seconds=time.monotonic() - self._since, loading=self._answered != self.desk.starts)

    def stop(self) -> None:
        """Give up what is wanted, and end the process if it is busy."""
        with self._wake:
            self._wanted.clear()
            self._failures.clear()
            self._stops += 1
            busy = self._asking
        self.desk.interrupt(lambda: busy is not None and self._asking is busy)

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
            free = self.at_work() is None
            with self._wake:
                pictures = self._next(free)
                if self._closed:
                    return
                if not pictures and not free and time.monotonic() - self._beside > BESIDE_SECONDS:
                    self.desk.end()  # the run needs the memory
                if not pictures:
                    waits = bool(self._wanted)  # for a run to be done
                    if self._idle(1.0 if waits else self.idle_seconds) and not waits:
                        self.desk.end()
                    continue
                stops, self._since, self._asking = self._stops, self._since or time.monotonic(), pictures
            error = self._made(pictures)
            with self._wake:
                self._asking = None
                for picture in pictures:
                    self._wanted.pop(picture, None)
                if error and stops == self._stops:
                    state = pictures[0].state
                    self._failures[state] = Failure(error, time.monotonic())
                    self._wanted = {picture: wish for picture, wish in self._wanted.items() if picture.state != state}
                if not self._wanted:
                    self._since = None

    def _idle(self, seconds: float) -> bool:
        """Wait until something is wanted, or a run needs the memory; True where nothing has happened in that time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._wake.wait(min(left, 1.0)) or (self.desk.pid is not None and self.at_work() is not None):
                return False
        return True

    def _next(self, free: bool) -> list[Picture]:
        """What to make next: some pictures of one state."""
        now = time.monotonic()
        self._wanted = {picture: wish for picture, wish in self._wanted.items() if now - wish[0] < PATIENCE_SECONDS and not self.path(picture.key)}
        allowed = [picture for picture, (_, beside) in self._wanted.items() if free or beside]
        if not allowed:
            self._since = None
        return [picture for picture in allowed if picture.state == allowed[0].state][:AT_ONCE]

    def _made(self, pictures: Sequence[Picture]) -> str:
        """Have some pictures made; why that could not be, or nothing."""
        state = pictures[0].state
        try:
            fixes = state.fixes()
            if any(picture.key != picture_key(fixes, picture.prompt, picture.seed) for picture in pictures):
                return "These weights have changed since they were asked for. Try again."
            self._make_room()
            items = [dict(prompt=picture.prompt, seed=picture.seed, file=str(self.folder.resolve() / f"{picture.key}.png")) for picture in pictures]
            question = dict(run=str(state.run.resolve()), round=state.round, lora=state.lora, strength=state.strength, items=items)
            answer = self.desk.ask(question)
            self._answered = self.desk.starts
            return str(answer["error"]) if "error" in answer else ""
        except DeskError as error:
            return str(error)
        except Exception as error:  # the thread must live on
            return f"Pictures cannot be made: {type(error).__name__}: {error}"

    def _make_room(self) -> None:
        self.folder.mkdir(exist_ok=True)
        kept = list(self.folder.glob("*.png"))
        if len(kept) > MOST_KEPT:
            for path in sorted(kept, key=lambda path: path.stat().st_mtime_ns)[:-MOST_KEPT]:
                with suppress(OSError):
                    path.unlink()
