"""The runs of one folder, each opened once: what every page and route reads runs through."""

from __future__ import annotations

import threading
from pathlib import Path

from ddpo.store import NAME, NoRun, RunStore, StoreError, delete_run, runs_in


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
            NoRun: the name cannot be a run's, or there is no such run.
            StoreError: it cannot be opened just now.
        """
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

    def delete(self, name: str) -> None:
        """Delete a run and everything in it, whether or not it can be read. It is closed before: some systems delete no open file.

        Raises:
            StoreError: there is no such run, it is running, or the disk refuses.
        """
        self._identity(name)
        with self._lock:
            if known := self._open.pop(name, None):
                known[1].close()
        delete_run(self.folder / name)

    def close(self) -> None:
        with self._lock:
            for store in (*self._retired, *(store for _, store in self._open.values())):
                store.close()
            self._open.clear()
            self._retired.clear()

    def _identity(self, name: str) -> tuple[int, int]:
        """What tells a run from one deleted and made again under its name; raises as :meth:`open` does."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise NoRun(f"{str(name)[:80]!r} cannot name a run.")
        try:
            entry = (self.folder / name / "config.json").stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoRun(f"There is no run {name}.") from error
        except OSError as error:
            raise StoreError(f"The run {name} cannot be read just now: {error.strerror or error}.") from error
        return entry.st_ino, entry.st_mtime_ns
