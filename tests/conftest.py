"""Shared fixtures: a studio that serves a runs folder, a browser, and a page that tolerates no error. And how tests go side by side: in several
processes (``pytest -n 2``) each computes with one thread, and a test that is marked ``alone`` has the machine to itself."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
if SIDE_BY_SIDE:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

BROWSER_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--no-first-run", "--disable-domain-reliability",
]  # fmt: skip
TOY_WORKER = (sys.executable, "-m", "tests.toy_worker")
TOY_COMPARE = (sys.executable, "-m", "tests.toy_compare")
LOCAL = re.compile(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:|about:")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Side by side, a test that is marked ``alone`` waits until no other runs, and no other begins before it is done; this is none of their time."""
    if not SIDE_BY_SIDE:
        return (yield)
    import fcntl

    with open(__file__) as queue, open(Path(__file__).with_name("toys.py")) as machine:
        fcntl.flock(queue, fcntl.LOCK_EX)  # who comes later waits behind one who waits to be alone
        fcntl.flock(machine, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)  # not by closing it alone: a forked child may hold it open


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that want to be alone come last, when there are few others to wait for."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@dataclass(frozen=True)
class Studio:
    """A studio that is being served, the folder that its runs are in, and the user and password that it asks for."""

    url: str
    runs: Path
    auth: tuple[str, str] | None = None


@pytest.fixture(autouse=True)
def stay_as_nice_as_you_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker makes way for the page. In a test it may be this process, which would make way more and more, and its browser with it."""
    monkeypatch.setattr(os, "nice", lambda by: 0, raising=False)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A studio over an empty runs folder."""
    yield from serve(tmp_path / "runs")


def serve(runs: Path, **options: object) -> Iterator[Studio]:
    """Serve a runs folder from a thread for as long as the iterator lives."""
    import uvicorn

    from app.__main__ import listen
    from app.server import create_app

    runs.mkdir(exist_ok=True)
    door, started = listen("127.0.0.1", 0), []

    async def main() -> None:
        server = uvicorn.Server(uvicorn.Config(create_app(runs, **options), log_level="warning", timeout_graceful_shutdown=1))  # type: ignore[arg-type]
        started.append(server)
        await server.serve(sockets=[door])
        for connection in list(server.server_state.connections):  # an answer that nobody has read to its end keeps its socket open
            connection.transport.abort()
        await asyncio.sleep(0)

    # The app is made within the thread's event loop: without one, Gradio makes one that nobody closes.
    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not (started and started[0].started) and time.monotonic() < deadline and thread.is_alive():
        time.sleep(0.02)
    assert started and started[0].started
    yield Studio(f"http://127.0.0.1:{door.getsockname()[1]}", runs, options.get("auth"))  # type: ignore[arg-type]
    started[0].should_exit = True
    thread.join(60)
    door.close()
    assert not thread.is_alive(), "the studio did not stop"


@pytest.fixture
def client(tmp_path: Path):
    """The studio's own routes over an empty runs folder, without pages."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from app.routes import build_router

    app = FastAPI()
    app.include_router(build_router(tmp_path))
    with TestClient(app) as found:
        yield found


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong
    chromium = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("NO BROWSER TEST RUNS: there is no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def page(browser):
    """A page; the test fails when it meets a script error, or asks for anything that is not on this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    found, problems = context.new_page(), []
    context.on("request", lambda request: LOCAL.match(request.url) or problems.append(f"request to {request.url}"))
    found.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    found.on("console", lambda message: problems.append(f"console: {message.text}") if serious(message) else None)
    found.set_default_timeout(60_000)
    yield found
    context.close()
    assert not problems, problems


def serious(message) -> bool:
    """An error on the console that is not about a request the test let fail on purpose."""
    return message.type == "error" and "Failed to load resource" not in message.text


@pytest.fixture
def toy_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Studio]:
    """A studio over an empty runs folder, whose workers, and what makes pictures to compare, have no model (:mod:`tests.toy_worker`,
    :mod:`tests.toy_compare`); they are ended with the test. Its indirect parameter is the user and password that it asks for."""
    from app import comparing
    from app.launch import Launcher, kill
    from ddpo.store import RunStore

    monkeypatch.setattr(comparing, "COMMAND", TOY_COMPARE)
    yield from serve(tmp_path / "runs", launcher=Launcher(TOY_WORKER), auth=getattr(request, "param", None))
    for config in (tmp_path / "runs").glob("*/config.json"):
        kill(RunStore(config.parent))
