"""The runs of one folder, each opened once: what every page and route reads runs through."""

from __future__ import annotations

import threading
from pathlib import Path

from ddpo.store import NAME, RunStore, StoreError, runs_in


class Runs:
    """A folder of runs. ``open`` gives the same store again and again, as long as the run's folder is the same one."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._open: dict[str, tuple[tuple[int, int], RunStore]] = {}
        self._retired: list[RunStore] = []

    def open(self, name: str) -> RunStore:
        """The store of a run; opened anew when the folder was deleted and made again.

        Raises:
            StoreError: the name cannot be a run's, or there is no such run.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise StoreError(f"{str(name)[:80]!r} cannot name a run.")
        identity = self._identity(name)
        with self._lock:
            known = self._open.get(name)
            if known and known[0] == identity:
                return known[1]
            store = RunStore(self.folder / name)
            if known:
                self._retired.append(known[1])  # another thread may still read from it: closed at the end
            self._open[name] = (identity, store)
            return store

    def names(self) -> list[str]:
        """The names of all runs, newest first."""
        return [folder.name for folder in runs_in(self.folder) if NAME.fullmatch(folder.name)]

    def close(self) -> None:
        with self._lock:
            for store in (*self._retired, *(store for _, store in self._open.values())):
                store.close()
            self._open.clear()
            self._retired.clear()

    def _identity(self, name: str) -> tuple[int, int]:
        """What tells a run from one deleted and made again under its name."""
        try:
            entry = (self.folder / name / "config.json").stat()
        except OSError as error:
            raise StoreError(f"There is no run {name}.") from error
        return entry.st_ino, entry.st_mtime_ns
