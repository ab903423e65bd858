"""Starts workers, and as a last resort ends them. The only code that does either.

A worker outlives the server that started it: it has a session of its own, and what it says goes to ``worker.log`` in its run folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpo.lock import holder
from ddpo.store import RunStore

PROJECT = Path(__file__).resolve().parent.parent


class LaunchError(RuntimeError):
    """A worker could not be started or ended; the message says why and what to do."""


def worker_command(processes: int = 1) -> tuple[str, ...]:
    """What starts a worker: one process, or several, one a GPU, which make a run together (:mod:`ddpo.crew`)."""
    worker = ("-m", "ddpo.worker")
    if processes == 1:
        return (sys.executable, *worker)
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *worker)


class Launcher:
    """Starts workers, one a run folder, and reaps those that end while this server lives."""

    def __init__(self, command: Sequence[str] = worker_command()) -> None:
        self.command = tuple(command)
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(self, folder: Path) -> None:
        """Start the worker of a run; does nothing where one lives already.

        Raises:
            LaunchError: the log cannot be written, or the system starts no process.
        """
        folder = Path(folder).resolve()
        with self._lock:
            if self._starting(folder) or holder(folder / "worker.lock") is not None:
                return
            try:
                with open(folder / "worker.log", "ab") as log:
                    child = subprocess.Popen(
                        [*self.command, str(folder)], cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **_detached()
                    )
            except OSError as error:
                raise LaunchError(f"The worker of {folder.name} could not be started: {error}. Is the disk full, or the memory?") from error
            self._children[folder] = child
        threading.Thread(target=self._reap, args=(folder, child), name=f"reap {folder.name}", daemon=True).start()

    def starting(self, folder: Path) -> bool:
        """Is there a process that this server started for the run? It may not hold the run's lock yet."""
        with self._lock:
            return self._starting(Path(folder).resolve())

    def _starting(self, folder: Path) -> bool:
        child = self._children.get(folder)
        return child is not None and child.poll() is None

    def _reap(self, folder: Path, child: subprocess.Popen[bytes]) -> None:
        """Wait for a worker's end, and write down an end that it could not write itself."""
        code = child.wait()
        with self._lock:
            if self._children.get(folder) is child:
                del self._children[folder]
        if code and folder.is_dir():
            ending = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            with open(folder / "worker.log", "ab") as log:
                log.write(f"The worker {ending}.\n".encode())


def kill(store: RunStore) -> bool:
    """End a run's worker at once; False where none lives. What it had finished is on disk."""
    pid = holder(store.folder / "worker.lock")
    if not pid:
        return False
    try:
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise LaunchError(f"Process {pid} belongs to another user and cannot be ended from here.") from error
    return True


def _detached() -> dict[str, Any]:
    """What makes a child outlive this process and its terminal."""
    if os.name == "nt":  # pragma: no cover - exercised on Windows only
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined,unused-ignore]
    return {"start_new_session": True}
