"""The web server: image, board and rating routes, the studio's page, and one password over everything."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from app import look
from app.blind import BlindTests
from app.comparing import Comparing
from app.comparisons import at_work, build_comparisons
from app.downloads import build_downloads
from app.exports import Exports
from app.launch import Launcher
from app.pictures import Pictures
from app.routes import build_pulse, build_router
from app.runs import Runs
from app.scores import build_scores
from app.scoring import Scoring
from app.studio import build_studio
from app.trials import build_trials
from app.views import Views


def create_app(runs: Path, auth: tuple[str, str] | None = None, launcher: Launcher | None = None, local: bool = False) -> FastAPI:
    """The whole studio over a folder of runs; with ``auth``, a user name and password, nothing answers without them. ``local``: it is for this
    computer's browsers only."""
    opened, pictures, scoring, exports, launcher = Runs(runs), Pictures(), Scoring(), Exports(), launcher or Launcher()
    comparing, views = Comparing(runs, lambda: at_work(opened, launcher)), Views(opened, launcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        exports.close()
        comparing.close()
        scoring.close()
        pictures.close()
        opened.close()

    app = FastAPI(title="DDPO Studio", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(build_router(opened))
    app.include_router(build_pulse(views.token))
    app.include_router(build_downloads(opened, exports))
    app.include_router(build_scores(opened, pictures, scoring, comparing))
    app.include_router(build_comparisons(opened, comparing))
    app.include_router(build_trials(opened, BlindTests(runs, comparing)))
    app.add_middleware(Door, local=local and auth is None)
    if auth is not None:
        app.add_middleware(BasicAuth, user=auth[0], password=auth[1])
    blocks = build_studio(views, exports, comparing, scoring)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=look.theme(),
        head=look.head(),
        favicon_path=str(look.FAVICON),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )
    blocks._queue.sleep_when_free = IDLE_SECONDS
    return mounted


IDLE_SECONDS = 0.05
"""How long Gradio's queue, which the named API's calls wait in, sleeps while it is empty. By itself it looks a thousand times a second, which takes a
sixteenth of a core for as long as the studio is open."""
HERE = (b"localhost", b"127.0.0.1", b"[::1]")
"""What this computer is called by its own browsers."""


class Door:
    """What an ASGI app does not answer: Gradio's uploads, which have no limit and which nothing here uses; and, where the studio is for this computer
    only, requests under another name, by which a page of another site could otherwise pass for its own (DNS rebinding)."""

    def __init__(self, app: Any, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if why := self._refusal(scope):
            await refuse(scope, send, 403, why)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Any) -> bytes:
        if scope["type"] == "lifespan":
            return b""
        if self.local and self._name(scope) not in HERE:
            return b"This studio is for this computer only. Behind a proxy, start it with --auth USER:PASSWORD.\n"
        return b"The studio takes files by its own routes.\n" if scope["path"].rstrip("/") == "/gradio_api/upload" else b""

    @staticmethod
    def _name(scope: Any) -> bytes:
        """The host that was asked for, without its port."""
        host: bytes = next((value for name, value in scope["headers"] if name == b"host"), b"")
        return re.sub(rb":\d*$", b"", host.lower())


async def refuse(scope: Any, send: Any, status: int, why: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """Answer a request with a status and a line of text, or close a WebSocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-type", b"text/plain; charset=utf-8")]})
    await send({"type": "http.response.body", "body": why})


class BasicAuth:
    """HTTP Basic authentication over every path and protocol of an ASGI app."""

    def __init__(self, app: Any, user: str, password: str) -> None:
        self.app = app
        self._expected = base64.b64encode(f"{user}:{password}".encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._allowed(scope):
            await self.app(scope, receive, send)
        else:
            asks = (b"www-authenticate", b'Basic realm="DDPO Studio", charset="UTF-8"')
            await refuse(scope, send, 401, b"A user name and a password are needed.\n", (asks,))

    def _allowed(self, scope: Any) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, credentials = given.partition(b" ")
        return kind.lower() == b"basic" and secrets.compare_digest(credentials.strip(), self._expected)
