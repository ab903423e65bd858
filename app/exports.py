"""Files that people take away through the page: made by ``python -m ddpo export`` in a process of its own, and kept in a temporary folder until they
are fetched.

Beside :mod:`app.launch` and :mod:`app.scoring` this is the only code that starts or signals a process: this one ends with its file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ddpo.export import MEASURED, PAGES

PROJECT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "ddpo", "export")
KEEP_SECONDS = 900.0
"""A file that nobody has fetched for so long goes."""
BEHIND = 10
"""How nice the process is: behind a worker, as the one that makes pictures to compare is."""
SLOW = {*PAGES, *MEASURED, "pipeline"}
"""Kinds that make pictures, or write whole models."""
SINGLE = {"kohya": "*.safetensors", **dict.fromkeys(PAGES, "*.html")}
"""Kinds of which one file is all that people want."""
PACKED = (".csv", ".jsonl", ".md", ".json", ".txt", ".svg")
"""Files that become smaller in a zip; weights and images do not."""


class ExportFailure(RuntimeError):
    """The file could not be made; the message says why and what to do."""


@dataclass(frozen=True)
class Ready:
    """A file that waits to be fetched."""

    token: str
    path: Path
    made_at: float

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


class Exports:
    """Makes files, one at a time of those that take a model and one of the others, behind whatever else is at work; forgets each once it is
    fetched."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.command = tuple(command)
        self._ready: dict[str, Ready] = {}
        self._processes = set[subprocess.Popen[str]]()
        self._closed = False
        self._turns, self._lock = {slow: threading.Lock() for slow in (False, True)}, threading.Lock()

    def make(self, run: Path, kind: str, number: int | None = None, strength: float = 1.0, names: bool = False) -> Ready:
        """An export of a run as one file: a LoRA for A1111 and a page as they are, everything else as a zip. Takes as long as it takes.

        Raises:
            ExportFailure: there is nothing to take away, or the process failed.
        """
        with self._turns[kind in SLOW]:
            self.tidy()
            folder = _new_folder()
            try:
                ready = Ready(secrets.token_urlsafe(16), packed(self._made(folder, run, kind, number, strength, names), kind), time.monotonic())
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, OSError):
                    raise ExportFailure(f"The file cannot be made: {error.strerror or error}.") from error
                raise
            self._ready[ready.token] = ready
            return ready

    @contextmanager
    def folder(self, run: Path, kind: str, number: int | None = None, strength: float = 1.0, names: bool = False) -> Iterator[Path]:
        """An export of a run as the folder that it is, while the block runs.

        Raises:
            ExportFailure: there is nothing to take away, or the process failed.
        """
        folder = _new_folder()
        try:
            with self._turns[kind in SLOW]:
                made = self._made(folder, run, kind, number, strength, names)
            yield made
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _made(self, folder: Path, run: Path, kind: str, number: int | None, strength: float, names: bool) -> Path:
        """Have the process make an export within a folder."""
        out = folder / f"{run.name}-{kind}{f'-round-{number}' if number is not None else ''}"
        options = [
            "--as",
            kind,
            "--strength",
            str(strength),
            *(["--round", str(number)] if number is not None else []),
            *(["--names"] if names else []),
        ]
        self._run([*self.command, str(run.resolve()), *options, "--out", str(out)])
        return out

    def find(self, token: str) -> Ready | None:
        """A file that waits, or None where there is none any more."""
        ready = self._ready.get(token)
        return ready if ready and ready.path.is_file() else None

    def forget(self, token: str) -> None:
        """Delete a file."""
        if ready := self._ready.pop(token, None):
            shutil.rmtree(ready.path.parent, ignore_errors=True)

    def tidy(self) -> None:
        """Delete what nobody has fetched."""
        for ready in list(self._ready.values()):
            if time.monotonic() - ready.made_at > KEEP_SECONDS:
                self.forget(ready.token)

    def close(self) -> None:
        """End a process that is at work, and delete all files."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        with self._turns[False], self._turns[True]:
            for token in list(self._ready):
                self.forget(token)

    def _run(self, command: Sequence[str]) -> None:
        """Run to the end. Nothing is downloaded: the base model was there when the run was made."""
        with self._lock:
            if self._closed:
                raise ExportFailure("The studio is closing.")
            surroundings = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
            try:
                process = subprocess.Popen(
                    command, cwd=PROJECT, env=surroundings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                    encoding="utf-8", errors="replace",
                )  # fmt: skip
            except OSError as error:
                raise ExportFailure(f"The file cannot be made: {error.strerror or error}.") from error
            self._processes.add(process)
        if hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, BEHIND)
        try:
            said = process.communicate()[1].strip().splitlines()
        finally:
            with self._lock:
                self._processes.discard(process)
        if process.returncode < 0:
            raise ExportFailure(f"The process that makes the file was ended by signal {-process.returncode}. Is the memory full?")
        if process.returncode:
            raise ExportFailure(said[-1] if said else f"The process that makes the file ended with exit code {process.returncode}.")


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="ddpo-studio-export-"))
    except OSError as error:
        raise ExportFailure(f"There is no room for the file: {error.strerror or error}.") from error


def packed(out: Path, kind: str) -> Path:
    """The one file that an export's folder becomes."""
    if kind in SINGLE:
        made = next(out.glob(SINGLE[kind]))
        file = made.rename(out.with_name(made.name))
        shutil.rmtree(out)
        return file
    file = out.with_name(f"{out.name}.zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(out.rglob("*")):
            if path.is_file():
                method = zipfile.ZIP_DEFLATED if path.suffix in PACKED else zipfile.ZIP_STORED
                archive.write(path, f"{out.name}/{path.relative_to(out).as_posix()}", method)
    shutil.rmtree(out)
    return file
