"""The worker's lock: an OS lock on ``worker.lock`` that vanishes with its process, however it dies. Imports no torch."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import IO

if sys.platform == "win32":  # pragma: no cover - exercised on Windows only
    import msvcrt

    def _try_lock(file: IO[bytes], shared: bool = False) -> bool:
        """Windows knows no shared locks: a look tries again, since another look holds the lock for an instant only."""
        for _ in range(5 if shared else 1):
            file.seek(1 << 30)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                time.sleep(0.01 if shared else 0.0)
        return False
else:
    import fcntl

    def _try_lock(file: IO[bytes], shared: bool = False) -> bool:
        """A look takes the lock shared, so that looks do not take one another for a worker."""
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class AlreadyRunning(RuntimeError):
    """Another worker holds the run."""


class WorkerLock:
    """Held by a worker for its whole life; the file holds the worker's process id."""

    def __init__(self, file: Path, patience: float = 2.0) -> None:
        """Take the lock.

        Raises:
            AlreadyRunning: another process has held it for ``patience`` seconds (a look at :func:`holder` holds it for an instant).
        """
        self._file = open(file, "a+b")  # noqa: SIM115 - open for as long as the lock is held
        deadline = time.monotonic() + patience
        while not _try_lock(self._file):
            if time.monotonic() > deadline:
                self._file.close()
                raise AlreadyRunning(f"Another worker already runs {file.parent}. Open it in the studio, or stop it first.")
            time.sleep(0.02)
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def holder(file: Path) -> int | None:
    """The process id of the live worker, or None when no worker lives."""
    try:
        with open(file, "r+b") as probe:
            if _try_lock(probe, shared=True):
                return None
            probe.seek(0)
            return int(probe.read() or b"0")
    except FileNotFoundError:
        return None
