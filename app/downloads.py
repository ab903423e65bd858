"""Files that people take away from a run."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from app.exports import ExportFailure, Exports
from app.routes import json_answer, json_body, open_run
from app.runs import Runs
from ddpo.export import EXPORTS, MEASURED, MODELS, PAGES, round_to_take
from ddpo.hub import HubError, prepare, send
from ddpo.store import RunStore, StoreError


def build_downloads(runs: Runs, exports: Exports) -> APIRouter:
    """Routes under ``/studio/runs/{run}`` that answer with a file.

    A model or ratings are made on a POST of ``application/json``, which a page of another site cannot send without asking first, and then fetched.
    """
    router = APIRouter(prefix="/studio/runs/{run}")

    @router.get("/metrics.csv")
    def metrics_csv(run: str) -> Response:
        try:
            text = metrics_table(runs.open(run).metrics())
        except StoreError as error:
            raise HTTPException(404, str(error)) from error
        headers = {"Content-Disposition": f'attachment; filename="{run}-metrics.csv"', "Cache-Control": "no-store"}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    @router.post("/exports")
    async def make(run: str, request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_make, runs, exports, run, body)

    @router.post("/push")
    async def push(run: str, request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_push, runs, exports, run, body)

    @router.get("/exports/{token}")
    def fetch(run: str, token: str) -> Response:
        ready = exports.find(token)
        if ready is None:
            raise HTTPException(404, "This file was fetched already, or has waited too long. Make it again.")
        done = BackgroundTask(exports.forget, token)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return FileResponse(ready.path, filename=ready.name, media_type="application/octet-stream", headers=headers, background=done)

    return router


def _make(runs: Runs, exports: Exports, run: str, body: Any) -> Response:
    kind, number, strength, names = export_question(body)
    store = open_run(runs, run)
    try:
        return json_answer(made(exports, store, kind, number, strength, names))
    except ExportFailure as error:
        raise HTTPException(409, str(error)) from error


def _push(runs: Runs, exports: Exports, run: str, body: Any) -> Response:
    kind, number, strength, names = export_question(body)
    if kind in PAGES:
        raise HTTPException(422, "This is one file for people. Download it.")
    token, store = str(body.get("token") or "").strip(), open_run(runs, run)
    try:
        repo = prepare(str(body.get("repo") or "").strip(), token, kind in MODELS, private=body.get("public") is not True)
        with exports.folder(store.folder, kind, latest(store, kind, number), strength, names) as folder:
            return json_answer(dict(url=send(folder, repo, token, kind in MODELS)))
    except HubError as error:
        raise HTTPException(422, str(error)) from error
    except ExportFailure as error:
        raise HTTPException(409, str(error)) from error


def latest(store: RunStore, kind: str, number: int | None) -> int | None:
    """The round of an export: without one that of :func:`ddpo.export.round_to_take` for a model, and all of data."""
    return round_to_take(store) if number is None and kind in (*MODELS, *MEASURED) else number


def made(exports: Exports, store: RunStore, kind: str, number: int | None, strength: float, names: bool) -> dict[str, Any]:
    """Make a file; where it is to be fetched, its name and its size. Without a round a model is that of :func:`ddpo.export.round_to_take`.

    Raises:
        ExportFailure: there is nothing to take away, or the process failed.
    """
    ready = exports.make(store.folder, kind, latest(store, kind, number), strength, names)
    return dict(url=f"/studio/runs/{store.name}/exports/{ready.token}", name=ready.name, bytes=ready.bytes)


def export_question(body: Any) -> tuple[str, int | None, float, bool]:
    """What is asked for: the kind, the round (None for that of :func:`latest`), the strength, and whether raters are named."""
    if not isinstance(body, dict) or body.get("kind") not in EXPORTS:
        raise HTTPException(422, f"kind is one of {', '.join(EXPORTS)}.")
    number, strength, names = body.get("round"), body.get("strength", 1.0), body.get("names", False)
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 10**9):
        raise HTTPException(422, "round is a whole number from 1, or null.")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength) or not 0 < strength <= 10:
        raise HTTPException(422, "strength is a number above 0 and at most 10.")
    return str(body["kind"]), number, float(strength), names is True


def metrics_table(metrics: dict[str, list[tuple[int, float | None]]]) -> str:
    """Every metric as a column, every round as a row; what is unknown is an empty cell."""
    names = sorted(metrics)
    columns = [dict(metrics[name]) for name in names]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["round", *names])
    for number in sorted({number for column in columns for number in column}):
        writer.writerow([number, *("" if (value := column.get(number)) is None else value for column in columns)])
    return out.getvalue()
