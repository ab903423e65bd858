"""``python -m app``: the studio in the browser."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path

from rewards import FUNCTION

KEY, KEY_HOST = "DDPO_VLM_KEY", "DDPO_VLM_HOST"
"""The environment variables of :mod:`rewards.vlm`."""


FILES = 10_240
"""So many files at once are enough; macOS allows no more to one process."""


class CannotStart(Exception):
    """Why the studio cannot be opened, in one line."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m app",
        description="Open DDPO Studio in the browser. Runs live in a folder and go on when the studio is closed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    top.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="the folder that holds the runs; made when it is missing")
    top.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 lets other computers in, and then --auth is wise")
    top.add_argument("--port", type=int, default=7860, help="the port to listen on; 0 takes any free one")
    top.add_argument("--auth", type=credentials, metavar="USER:PASSWORD", help="ask for this user name and password before anything is shown")
    top.add_argument("--processes", type=int, choices=range(1, 65), default=1, metavar="N", help="processes that make a run together, one a GPU")
    top.add_argument(
        "--reward", type=own_reward, action="append", default=[], metavar="FILE:FUNCTION",
        help="offer a reward of your own, a function in a Python file, which is then allowed to run; may be given several times",
    )  # fmt: skip
    top.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    return top


def own_reward(text: str) -> tuple[str, str]:
    """``FILE:FUNCTION`` as a pair, of a file that exists."""
    file, _, function = text.rpartition(":")
    if not (FUNCTION.fullmatch(text) and Path(file).expanduser().is_file()):
        raise argparse.ArgumentTypeError(f"there is no Python file and function {text}; give for instance my/rewards.py:blueness")
    return file, function


def credentials(text: str) -> tuple[str, str]:
    """``USER:PASSWORD`` as a pair; the password may hold colons."""
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("give a user name and a password with a colon between them, for instance anna:secret")
    return user, password


def writable(folder: Path) -> Path:
    """The folder, made if it is missing.

    Raises:
        CannotStart: nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder.resolve()
    except OSError as error:
        raise CannotStart(f"The runs folder {folder} cannot be written: {error.strerror or error}. Choose another one with --runs.") from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        CannotStart: the port is taken, or the address is not this computer's.
    """
    if not 0 <= port <= 65_535:
        raise CannotStart(f"There is no port {port}. Choose one from 1 to 65535 with --port.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        if sys.platform != "win32":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen(128)
        except OSError:
            found.close()
            raise
        return found
    except OSError as error:
        raise CannotStart(
            f"Cannot listen on {host}, port {port}: {error.strerror or error}. Is a studio open there already? Choose another one with --port."
        ) from error


def is_local(options: argparse.Namespace) -> bool:
    """Whether only this computer can reach the studio."""
    return options.host in ("127.0.0.1", "localhost", "::1")


def open_to_all(options: argparse.Namespace) -> bool:
    """Whether other computers can use the studio without a password."""
    return options.auth is None and not is_local(options)


def allow_many_files() -> None:
    """Let this process have as many files open as it may: each run's database takes three, and some systems begin with 256."""
    if sys.platform == "win32":
        return
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def guard_key(options: argparse.Namespace) -> str | None:
    """Forget the endpoint's key where anybody could have it sent to an endpoint of his own; returns what to tell about it."""
    if not open_to_all(options) or not os.environ.get(KEY) or os.environ.get(KEY_HOST):
        return None
    del os.environ[KEY]
    return f"{KEY} is not used, since anybody could have it sent anywhere. Set {KEY_HOST} to the host that it is for, or give --auth."


def serve(options: argparse.Namespace) -> None:
    """Open the studio, and stay until it is closed."""
    allow_many_files()
    runs = writable(options.runs)
    door = listen(options.host, options.port)  # before the slow imports: a taken port is said at once
    import uvicorn

    from app.launch import Launcher, worker_command
    from app.server import create_app
    from rewards.function import trust

    for file, function in options.reward:
        trust(file, function)
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}"
    studio = create_app(runs, options.auth, Launcher(worker_command(options.processes)), is_local(options))
    config = uvicorn.Config(studio, log_level="warning", timeout_graceful_shutdown=1)
    print(f"DDPO Studio is open at {url}\nRuns are kept in {runs}. Ctrl+C closes the studio; runs go on.", flush=True)
    if said := guard_key(options):
        print(said, flush=True)
    if open_to_all(options):
        print("Anybody who reaches this computer can use the studio. Give --auth USER:PASSWORD to ask for a password.", flush=True)
    if not options.no_browser:
        threading.Timer(0.5, webbrowser.open, [url]).start()
    uvicorn.Server(config).run(sockets=[door])


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        serve(options)
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
