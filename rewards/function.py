"""A person's own reward: a function in a Python file, ``path/to/file.py:function``. Imports no torch.

The function takes the images (RGB, Pillow) and their prompts, two lists of one length, and returns a list of numbers, larger is better; None is no
opinion, and ``(number, dictionary)`` adds what the number was made from. ::

    def blueness(images, prompts):
        return [sum(image.resize((1, 1)).getpixel((0, 0))[2:]) / 255 for image in images]

A Python file can do anything on this machine, and a run's settings, which name it, may come from somebody else. So it runs only where the person who
starts the process has named the file as trusted: ``--trust`` of ``python -m ddpo``, or ``--reward`` of ``python -m app``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from traceback import walk_tb
from typing import Any

from rewards.base import RewardError, Sample, Score

SEPARATOR = "\n"
TRUSTED = "DDPO_TRUSTED_REWARDS"
"""The environment variable that holds the trusted files and functions, which a worker has from those who start it."""


def trust(file: str | Path, function: str = "") -> None:
    """Let this process, and those that it starts, run a file; a function that is named is offered on the page."""
    path = str(Path(file).expanduser().resolve())
    os.environ[TRUSTED] = SEPARATOR.join(dict.fromkeys([*_entries(), path, *([f"{path}:{function}"] if function else [])]))


def trusted() -> list[str]:
    """The files that may be run, as absolute paths."""
    return [entry for entry in _entries() if entry.endswith(".py")]


def offered() -> list[str]:
    """The functions that people are offered, each ``/path/to/file.py:function``."""
    return [entry for entry in _entries() if not entry.endswith(".py")]


def version(name: str) -> int:
    """Another number when the file of ``path/to/file.py:function`` was changed; 0 for every other reward, and where there is no file."""
    file, colon, _ = name.rpartition(":")
    try:
        return Path(file).expanduser().stat().st_mtime_ns if colon and file.endswith(".py") else 0
    except (OSError, RuntimeError, ValueError):  # or nobody's home, or no name of a file
        return 0


def _entries() -> list[str]:
    return [entry for entry in os.environ.get(TRUSTED, "").split(SEPARATOR) if entry]


class Function:
    """The function as a reward; the file is read when it first scores."""

    def __init__(self, name: str) -> None:
        """``name`` is ``path/to/file.py:function``."""
        self.name = name
        self._function: Callable[..., Any] | None = None
        self._stamp = 0

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Ask the function about all samples at once.

        Raises:
            RewardError: as of ``load``; or the function fails, or does not return a list of numbers.
        """
        function = self.load()
        try:
            found = function([sample.image.convert("RGB") for sample in samples], [sample.prompt for sample in samples])
            found = list(found) if isinstance(found, Iterator) else found
        except (Exception, SystemExit) as error:  # a function that ends the program ends no run
            raise RewardError(f"The reward {self.name} failed with {self._told(error)}") from error
        try:
            if isinstance(found, (str, bytes)):
                raise TypeError("a text is no list")
            return [_score(each) for each in found]
        except (TypeError, ValueError) as error:
            raise RewardError(f"{self.name} returned {str(found)[:80]}; a reward returns a list with one number for each image.") from error

    def load(self) -> Callable[..., Any]:
        """The function; read anew when the file has changed.

        Raises:
            RewardError: the file is not trusted, cannot be run, or holds no such function.
        """
        file, _, function = self.name.rpartition(":")
        try:
            path = Path(file).expanduser().resolve()
            there = path.is_file()
        except (OSError, RuntimeError, ValueError) as error:
            raise RewardError(f"The reward {self.name} cannot be read: {error}") from error
        if not there:
            raise RewardError(f"The reward {self.name} cannot be read: there is no file {path}.")
        if str(path) not in trusted():
            raise RewardError(
                f"The reward {self.name} is a Python file, which can do anything on this machine, and nobody has said that it may. If you trust it, "
                f"start again with it: `python -m ddpo resume RUN --trust {path}`, `python -m app --reward {path}:{function}`, or "
                f"`python -m rewards score --trust {path}`."
            )
        stamp = path.stat().st_mtime_ns
        if self._function is not None and stamp == self._stamp:
            return self._function
        spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # for what the file imports from beside it
        try:  # compiled anew: Python's own cache takes two versions of one size, saved in one second, for the same
            exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
        except (Exception, SystemExit) as error:
            raise RewardError(f"The reward {self.name} cannot be loaded: {self._told(error)}") from error
        found = getattr(module, function, None)
        if not callable(found):
            known = ", ".join(name for name, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__)
            raise RewardError(f"{path} holds no function {function}. It holds {known or 'none'}.")
        self._function, self._stamp = found, stamp
        return found  # type: ignore[no-any-return]

    def _told(self, error: BaseException) -> str:
        """What went wrong, and in which line of the file."""
        path = str(Path(self.name.rpartition(":")[0]).expanduser().resolve())
        lines = [number for frame, number in walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
        return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]} of {Path(path).name})" if lines else "")


def _score(found: Any) -> Score:
    """What the function returned for an image."""
    value, explanation = found if isinstance(found, tuple) else (found, {})
    return Score(None if value is None else float(value), json.loads(json.dumps(dict(explanation), default=float)))
