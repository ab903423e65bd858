"""What the Rewards page asks of the server: to take a picture, to show it, and for values.

Pictures come as ``application/octet-stream`` and questions as ``application/json``, which a page of another site cannot send without asking first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

from app.comparing import Comparing
from app.pages.rewards import MOST_PICTURES, failure_value, needed, notes
from app.pictures import LARGEST_BYTES, PictureError, Pictures
from app.routes import IMAGE_FILE, IMMUTABLE, LARGEST_ID, body_of, json_answer, json_body
from app.runs import Runs
from app.scoring import Cell, Scoring, Setting
from ddpo.store import StoreError
from rewards import automatic, card
from rewards.function import version

LONGEST_PROMPT = 10_000
DEVICES = ("auto", "cpu")


def build_scores(runs: Runs, pictures: Pictures, scoring: Scoring, comparing: Comparing | None = None) -> APIRouter:
    """The routes under ``/studio/rewards``; pictures that are compared (:mod:`app.comparing`) are scored, too."""
    places = Places(runs, pictures, comparing)
    router = APIRouter(prefix="/studio/rewards")

    @router.post("/pictures")
    async def add(request: Request) -> Response:
        data = await _picture_body(request)
        return await run_in_threadpool(_add, pictures, data)

    @router.get("/pictures/{key}")
    def show(key: str, small: bool = False) -> Response:
        path = pictures.path(key, small)
        if path is None:
            raise HTTPException(404, "There is no such picture.")
        headers = {"Cache-Control": IMMUTABLE, "X-Content-Type-Options": "nosniff"}
        return Response(path.read_bytes(), media_type="image/png", headers=headers)

    @router.post("/scores")
    async def scores(request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(lambda: json_answer(_scores(places, scoring, body)))

    @router.post("/steer")
    async def steer(request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_steer, scoring, body)

    return router


def _add(pictures: Pictures, data: bytes) -> Response:
    try:
        return json_answer(pictures.add(data))
    except PictureError as error:
        raise HTTPException(422, str(error)) from error
    except OSError as error:
        raise HTTPException(503, f"The picture cannot be kept: {error.strerror or error}.") from error


@dataclass(frozen=True)
class Places:
    """Where pictures are: in runs, brought by people, or made to be compared."""

    runs: Runs
    pictures: Pictures
    comparing: Comparing | None


def _scores(places: Places, scoring: Scoring, body: Any) -> dict[str, Any]:
    """What is known of each picture by each reward; what is not known is scored from now on, and the page asks again."""
    names, prompt, items = _question(body)
    found = [_found(places, item, prompt) for item in items]
    present = [each for each in found if each is not None]
    answers: dict[str, Any] = {}
    settings = {name: _setting(name, body) for name in names}
    cells = [Cell(settings[name], path, text) for name in names for path, text in present]
    values, failures = scoring.ask(cells)
    for at, name in enumerate(names):
        row = iter(values[at * len(present) : (at + 1) * len(present)])
        known = [_value(next(row)) if each is not None else None for each in found]
        failure = failures.get(settings[name])
        answers[name] = dict(values=known, failure=failure_value(settings[name], failure) if failure else None)
    return dict(scores=answers, gone=[at for at, each in enumerate(found) if each is None], now=_now(scoring))


def _value(answer: dict[str, Any] | None) -> dict[str, Any] | None:
    """A value with its lines; of a picture that cannot be read, why."""
    if answer is None:
        return None
    if "error" in answer:
        return dict(value=None, explanation={}, notes=[], error=answer["error"])
    return answer | dict(notes=notes(answer["explanation"]))


def _now(scoring: Scoring) -> dict[str, Any] | None:
    """What is being scored, and the networks that it uses."""
    found = scoring.now
    if found is None:
        return None
    setting = found.pop("setting")
    return found | dict(reward=setting.reward, download=needed(setting))


def _steer(scoring: Scoring, body: Any) -> Response:
    """Stop scoring, try a reward again, or allow it to download its networks."""
    kind, reward = (body.get("kind"), body.get("reward")) if isinstance(body, dict) else (None, None)
    if kind == "stop":
        scoring.stop()
    elif kind in ("retry", "download") and reward in automatic():
        _check_networks(body)
        scoring.retry(_setting(str(reward), body), download=kind == "download")
    else:
        raise HTTPException(422, "Say stop, or which reward to retry or to download.")
    return json_answer(dict(done=True))


# --- doors ----------------------------------------------------------------------------------------------------------------------


def _question(body: Any) -> tuple[list[str], str, list[Any]]:
    """The rewards, the prompt and the pictures that a question names; its other parts are checked, too."""
    if not isinstance(body, dict):
        raise HTTPException(422, "A question is an object.")
    names, prompt, items = body.get("rewards"), body.get("prompt"), body.get("items")
    if not isinstance(names, list) or not all(name in automatic() for name in names):
        raise HTTPException(422, "rewards is a list of rewards that need no person.")
    if not isinstance(items, list) or len(items) > MOST_PICTURES:
        raise HTTPException(422, f"At most {MOST_PICTURES} pictures at once. Remove some.")
    if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
        raise HTTPException(422, f"The prompt is a text of {LONGEST_PROMPT:,} characters at most.")
    _check_networks(body)
    return list(dict.fromkeys(names)), prompt, items


def _check_networks(body: dict[str, Any]) -> None:
    if body.get("models") not in ("pocket", "published") or body.get("device") not in DEVICES:
        raise HTTPException(422, "models is pocket or published, and device auto or cpu.")
    if not isinstance(body.get("vlm"), str) or len(body["vlm"]) > 500:
        raise HTTPException(422, "vlm is a text of 500 characters at most.")


def _setting(name: str, body: dict[str, Any]) -> Setting:
    vlm = body["vlm"].strip() if "vlm" in card(name).published else ""
    return Setting(name, body["models"], body["device"], vlm, version(name))


def _found(places: Places, item: Any, prompt: str) -> tuple[Path, str] | None:
    """A picture's file and its prompt: of a run's sample its own unless ``typed``, of one that was made the one that is given with it; None where the
    picture is gone."""
    if not isinstance(item, dict):
        raise HTTPException(422, "A picture is an object.")
    if "picture" in item:
        path = places.pictures.path(str(item["picture"]))
        return (path, prompt) if path else None
    if "made" in item and places.comparing is not None:
        path = places.comparing.path(str(item["made"]))
        return (path, str(item.get("prompt", ""))[:LONGEST_PROMPT]) if path else None
    number = item.get("sample")
    try:
        store = places.runs.open(str(item.get("run")))
        sample = store.sample(number) if isinstance(number, int) and 0 < number <= LARGEST_ID else None
    except StoreError:
        return None
    if sample is None or not IMAGE_FILE.fullmatch(sample.image) or not (store.folder / sample.image).is_file():
        return None
    if "image" in item and item["image"] != Path(sample.image).stem:
        return None  # another run has this name now
    return store.folder / sample.image, prompt if item.get("typed") else sample.prompt


async def _picture_body(request: Request) -> bytes:
    if request.headers.get("content-type", "") != "application/octet-stream":
        raise HTTPException(415, "Send application/octet-stream.")
    return await body_of(request, LARGEST_BYTES, "This file has more than 20 MB. Save the picture smaller, or as a JPEG.")
