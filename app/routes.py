"""What the rating board asks of the server: images, the board as JSON, ratings and requests.

Ratings and requests are accepted as ``application/json`` only, which a page of another site cannot send without asking first. All work on the
database and on files happens in a thread, so that a slow disk never stops the page.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, HTTPException, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.board import apply_refusal, board_json, board_revision, rating_refusal
from app.runs import Runs
from ddpo.config import ConfigError
from ddpo.records import REQUESTS, ProbeRow, SampleRow
from ddpo.store import RATINGS, NoRun, RatingRefused, RunStore, StoreError
from rewards.base import RewardError
from rewards.human import valid

MAX_BODY_BYTES = 512 * 1024
MAX_RATINGS_AT_ONCE = 512
MAX_NAME_CHARACTERS = 80
ASKED = tuple(kind for kind in REQUESTS if kind != "reward")
"""What may be asked for here; another reward is chosen on the Run page, which checks it."""
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of control and format characters, halves of characters, and ends of lines."""
LARGEST_ID = 2**63 - 1
IMAGE_FILE = re.compile(r"samples/\d{4,}/([0-9a-f]{8,64})\.png")
EARLIER_FILE = re.compile(r"[0-9a-f]{32}\.(png|jpg|webp)")
EARLIER_TYPES = dict(png="image/png", jpg="image/jpeg", webp="image/webp")
IMMUTABLE = "private, max-age=31536000, immutable"

T = TypeVar("T")
Rater = Annotated[str, Query(min_length=1, max_length=MAX_NAME_CHARACTERS)]


def build_router(runs: Path | Runs) -> APIRouter:
    """The routes under ``/studio/runs``, over the runs of one folder."""
    all_runs = runs if isinstance(runs, Runs) else Runs(runs)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        if all_runs is not runs:  # opened here, so closed here
            all_runs.close()

    router = APIRouter(prefix="/studio/runs/{run}", lifespan=lifespan)

    @router.get("/image/{sample_id}")
    async def image(run: str, sample_id: int, request: Request) -> Response:
        return await run_in_threadpool(_image, all_runs, run, RunStore.sample, sample_id, request.headers.get("if-none-match", ""))

    @router.get("/probe/{probe_id}")
    async def probe(run: str, probe_id: int, request: Request) -> Response:
        return await run_in_threadpool(_image, all_runs, run, RunStore.probe, probe_id, request.headers.get("if-none-match", ""))

    @router.get("/earlier/{name}")
    async def earlier(run: str, name: str) -> Response:
        return await run_in_threadpool(_earlier, all_runs, run, name)

    @router.get("/board")
    async def board(run: str, rater: Rater = "me", since: str = "") -> Response:
        return await run_in_threadpool(_board, all_runs, run, rater, since)

    @router.post("/ratings")
    async def ratings(run: str, request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_ratings, all_runs, run, body)

    @router.post("/requests")
    async def requests(run: str, request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_requests, all_runs, run, body)

    @router.post("/choices")
    async def choices(run: str, request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_choose, all_runs, run, body)

    return router


def build_pulse(token: Callable[[str], str]) -> APIRouter:
    """``/studio/pulse?run=``: a token that differs whenever the page of that run might. A page asks every second, and for its values, which cost
    the server and the browser a hundred times as much, only when there is something new."""
    router = APIRouter()

    @router.get("/studio/pulse")
    async def pulse(run: str = "") -> Response:
        return Response(await run_in_threadpool(token, run), media_type="text/plain", headers={"Cache-Control": "no-store"})

    return router


# --- what each route does -------------------------------------------------------------------------------------------------------


def _image(runs: Runs, run: str, find: Callable[[RunStore, int], SampleRow | ProbeRow | None], id: int, known: str) -> Response:
    """A sample's or a watched picture's PNG. It never changes under its address, since the address carries the file's hash."""
    store = open_run(runs, run)
    sample = find(store, id) if 0 <= id <= LARGEST_ID else None
    found = IMAGE_FILE.fullmatch(sample.image) if sample else None
    if not sample or not found:
        raise HTTPException(404, "There is no such image.")
    headers = {"Cache-Control": IMMUTABLE, "ETag": f'"{found[1]}"', "X-Content-Type-Options": "nosniff"}
    if found[1] in known:
        return Response(status_code=304, headers=headers)
    try:
        return Response((store.folder / sample.image).read_bytes(), media_type="image/png", headers=headers)
    except OSError as error:
        raise HTTPException(404, "The image's file is gone.") from error


def _earlier(runs: Runs, run: str, name: str) -> Response:
    """An image that came with ratings from elsewhere; its name is its hash."""
    store = open_run(runs, run)
    found = EARLIER_FILE.fullmatch(name)
    if not found:
        raise HTTPException(404, "There is no such image.")
    headers = {"Cache-Control": IMMUTABLE, "X-Content-Type-Options": "nosniff"}
    try:
        return Response((store.folder / RATINGS / "images" / name).read_bytes(), media_type=EARLIER_TYPES[found[1]], headers=headers)
    except OSError as error:
        raise HTTPException(404, "The image's file is gone.") from error


def _board(runs: Runs, run: str, rater: str, since: str) -> Response:
    store = open_run(runs, run)
    if since and since == board_revision(store):
        return Response(status_code=204)
    return json_answer(_guarded(lambda: board_json(store, rater)))


def _ratings(runs: Runs, run: str, body: Any) -> Response:
    """One rating event, or a list of them: a list is answered one by one, so that a bad one does not hold up the rest. Behind one that cannot be
    written just now none is tried: sent again together they come in the order in which they were made, and of an image the last word counts."""
    store = open_run(runs, run)
    if not isinstance(body, list):
        return json_answer(_guarded(lambda: _save(store, body)))
    if len(body) > MAX_RATINGS_AT_ONCE:
        raise HTTPException(413, f"At most {MAX_RATINGS_AT_ONCE} ratings at once.")
    results: list[dict[str, Any]] = []
    for event in body:
        waits = bool(results) and results[-1]["status"] >= 500
        results.append(results[-1] | {"client_id": _client_id(event)} if waits else _outcome(store, event))
    return json_answer({"results": results})


def _outcome(store: RunStore, event: Any) -> dict[str, Any]:
    """What became of one event of a list, with the status that it would have had alone."""
    try:
        return {"status": 200, **_guarded(lambda: _save(store, event))}
    except HTTPException as refusal:
        return {"client_id": _client_id(event), "status": refusal.status_code, "detail": refusal.detail}


def _client_id(event: Any) -> Any:
    return event.get("client_id") if isinstance(event, dict) else None


def _save(store: RunStore, event: Any) -> dict[str, Any]:
    """Write a rating event; it is on disk when this returns."""
    if not isinstance(event, dict):
        raise HTTPException(422, "A rating is an object.")
    client_id, rater = text_of(event, "client_id"), text_of(event, "rater")
    kind, value = event.get("kind"), event.get("value")
    pair = event.get("other") is not None
    if not isinstance(kind, str) or isinstance(value, bool) or not (value is None or _is_finite(value)) or not valid(kind, value, pair):
        raise HTTPException(422, "This is no rating: thumbs are -1 or 1, stars 1 to 5, pairs have two images, skip and clear have no value.")
    sample, other = _sample(store, event.get("sample")), _sample(store, event["other"]) if pair else None
    if sample is None or (pair and other is None) or ("image" in event and event["image"] != Path(sample.image).stem):
        raise HTTPException(404, "There is no such image in this run.")
    shown_at, answered_at, board = seconds_of(event, "shown_at"), seconds_of(event, "answered_at"), event.get("board")
    if board is not None and not _is_id(board):
        raise HTTPException(422, "board is the number of the round on whose board the image was.")
    try:
        new = store.add_rating(
            client_id, sample.id, rater, kind, value, shown_at, answered_at,
            other=other.id if other else None, refusal=lambda: rating_refusal(store, sample, rater, other, board), board=board,
        )  # fmt: skip
    except RatingRefused as error:
        raise HTTPException(409, str(error)) from error
    return {"client_id": client_id, "saved": True, "new": new, "late": store.came_late(client_id)}


def _sample(store: RunStore, id: Any) -> SampleRow | None:
    return store.sample(id) if _is_id(id) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_ID


def _choose(runs: Runs, run: str, body: Any) -> Response:
    """Rate in another mode from now on."""
    store = open_run(runs, run)
    mode = body.get("rating") if isinstance(body, dict) else None
    if not isinstance(mode, str):
        raise HTTPException(422, "Say in which mode to rate.")
    try:
        _guarded(lambda: store.choose("rating", mode))
    except ConfigError as error:
        raise HTTPException(422, str(error)) from error
    return json_answer({"rating": mode})


def _requests(runs: Runs, run: str, body: Any) -> Response:
    """Ask the worker for something. What is pending already is not asked twice."""
    store = open_run(runs, run)
    kind = body.get("kind") if isinstance(body, dict) else None
    if kind not in ASKED:
        raise HTTPException(422, f"A request's kind is one of {', '.join(ASKED)}.")
    payload = {"round": _round(body)} if kind == "apply" else {}
    return json_answer(_guarded(lambda: _ask(store, kind, payload)))


def _ask(store: RunStore, kind: str, payload: dict[str, int]) -> dict[str, Any]:
    for pending in store.pending_requests():
        if pending.kind == kind and pending.payload == payload:
            return {"id": pending.id, "new": False}
    if kind == "apply" and (refusal := apply_refusal(store, payload["round"])):
        raise HTTPException(409, refusal)
    return {"id": store.add_request(kind, **payload), "new": True}


# --- doors ----------------------------------------------------------------------------------------------------------------------


def open_run(runs: Runs, run: str) -> RunStore:
    """A run's store. That a run is not there is told apart from one that cannot be read just now: what waits for the latter is sent again."""
    try:
        return runs.open(run)
    except NoRun as error:
        raise HTTPException(404, "There is no such run.") from error
    except StoreError as error:
        raise HTTPException(503, str(error)) from error


def _guarded(work: Callable[[], T]) -> T:
    """Run database work; what the disk or the database refuses becomes an answer that the board retries."""
    try:
        return work()
    except (sqlite3.Error, OSError) as error:
        raise HTTPException(503, f"The run folder cannot be used just now ({error}).") from error
    except (StoreError, RewardError) as error:
        raise HTTPException(404, str(error)) from error


async def body_of(request: Request, most: int, refusal: str) -> bytes:
    """What was sent; refused as soon as it is more than so many bytes."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise HTTPException(413, refusal)
    return bytes(data)


async def json_body(request: Request) -> Any:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send application/json.")
    data = await body_of(request, MAX_BODY_BYTES, "This is too much at once.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "This is no JSON.") from error


def json_answer(content: Any) -> Response:
    """JSON that is never cached; lone surrogates in a text survive as escapes."""
    return Response(json.dumps(content, allow_nan=False), media_type="application/json", headers={"Cache-Control": "no-store"})


def text_of(event: dict[str, Any], key: str) -> str:
    text = event.get(key)
    if not isinstance(text, str) or not is_name(text):
        raise HTTPException(422, f"{key} is a text of 1 to {MAX_NAME_CHARACTERS} characters, without control characters.")
    return text


def is_name(text: str) -> bool:
    """Whether somebody can be called so. Letters and signs that this Python does not know yet are none of its business."""
    return 0 < len(text) <= MAX_NAME_CHARACTERS and not UNSEEN & {unicodedata.category(sign) for sign in text}


def seconds_of(event: dict[str, Any], key: str) -> float | None:
    """Seconds since the epoch, or None where the browser does not know."""
    value = event.get(key)
    if value is None:
        return None
    if not _is_finite(value) or not 0 <= value < 1e11:
        raise HTTPException(422, f"{key} is a time in seconds.")
    return float(value)


def _round(body: dict[str, Any]) -> int:
    payload = body.get("payload")
    number = payload.get("round") if isinstance(payload, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise HTTPException(422, "Say which round's ratings to apply.")
    return number


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)
