"""What the Compare page asks of the server for a blind test: to begin one, the next pair, to save an answer, and the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

from app.blind import BlindError, BlindTests
from app.comparisons import ComparisonError, question
from app.routes import IMMUTABLE, Rater, is_name, json_answer, json_body, seconds_of, text_of
from app.runs import Runs
from ddpo.blind import BASE
from ddpo.states import State, StateError


def build_trials(runs: Runs, tests: BlindTests) -> APIRouter:
    """The routes under ``/studio/blind``."""
    router = APIRouter(prefix="/studio/blind")

    @router.get("")
    def listed(rater: Rater = "me") -> Response:
        return json_answer(dict(tests=tests.listed(rater)))

    @router.post("")
    async def create(request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_answered, lambda: _create(runs, tests, body))

    @router.post("/{id}")
    async def view(id: str, request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_answered, lambda: _view(tests, id, body))

    @router.post("/{id}/delete")
    async def delete(id: str, request: Request) -> Response:
        await json_body(request)  # no page of another site can send it
        return await run_in_threadpool(_answered, lambda: _delete(tests, id))

    @router.post("/{id}/answers")
    async def answer(id: str, request: Request) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_answered, lambda: _save(tests, id, body))

    @router.get("/{id}/picture/{name}")
    def picture(id: str, name: str) -> Response:
        path = tests.file(id, name)
        if path is None:
            raise HTTPException(404, "There is no such picture.")
        return Response(path.read_bytes(), media_type="image/png", headers={"Cache-Control": IMMUTABLE, "X-Content-Type-Options": "nosniff"})

    return router


def _answered(work: Callable[[], dict[str, Any]]) -> Response:
    """What was asked for, or in plain words why not."""
    try:
        return json_answer(work())
    except (BlindError, ComparisonError, StateError) as error:
        raise HTTPException(422, str(error)) from error
    except OSError as error:
        raise HTTPException(503, f"The folder of blind tests cannot be used just now ({error.strerror or error}).") from error


def _create(runs: Runs, tests: BlindTests, body: Any) -> dict[str, Any]:
    sides, prompts, _ = question(runs, body | dict(seeds=[]) if isinstance(body, dict) else body)
    count = body.get("pairs")
    if not isinstance(count, int) or isinstance(count, bool):
        raise BlindError("pairs is how many pairs there are.")
    by = body.get("rater", "")
    if not isinstance(by, str) or (by and not is_name(by)):
        raise BlindError("rater is the name of who begins it.")
    first, second = (_there(side) for side in sides)
    return dict(id=tests.create((first, second), (title_of(first, second), title_of(second, first)), prompts, count, by).id)


def _delete(tests: BlindTests, id: str) -> dict[str, Any]:
    tests.delete(tests.plan(id))
    return dict(deleted=id)


def _there(side: State | str) -> State:
    if isinstance(side, str):
        raise BlindError(side)
    return side


def title_of(state: State, other: State) -> str:
    """What a side is called at the end; its run where there are two."""
    what = f"round {state.round}" if state.round else f"the LoRA {_lora(state, other)}" if state.lora else BASE
    run = "" if state.run == other.run else f" over the base of {state.run.name}" if state.lora else f" of {state.run.name}"
    strength = f" at {100 * state.strength:.0f} %" if state.strength != 1 and (state.round or state.lora) else ""
    return f"{what}{run}{strength}"


def _lora(state: State, other: State) -> str:
    """A LoRA by its file's name; where the other side's is called so too, with its folder's."""
    path, its = (Path(each.lora.removesuffix(".safetensors")) for each in (state, other))
    return "/".join(path.parts[-2:]) if state.lora != other.lora and path.name == its.name else path.name


def _view(tests: BlindTests, id: str, body: Any) -> dict[str, Any]:
    """The next pair where all pictures are there; else how many are, and what holds the others up."""
    asked = body if isinstance(body, dict) else {}
    rater, plan = text_of(asked, "rater"), tests.plan(id)
    made, failure = tests.make(plan, beside=asked.get("beside") is True)
    if made < len(plan.pairs):
        return dict(id=id, rater=rater, total=len(plan.pairs), made=made, failure=failure, busy=tests.comparing.at_work(), now=tests.comparing.now)
    at = asked.get("at")
    return tests.view(plan, rater, at if isinstance(at, int) and not isinstance(at, bool) else None)


def _save(tests: BlindTests, id: str, body: Any) -> dict[str, Any]:
    """Save an answer; what comes next is the answer's answer."""
    asked = body if isinstance(body, dict) else {}
    rater, client_id, at = text_of(asked, "rater"), text_of(asked, "client_id"), asked.get("at")
    if not isinstance(at, int) or isinstance(at, bool):
        raise BlindError("at is the pair's place.")
    plan = tests.plan(id)
    shown, answered = seconds_of(asked, "shown_at"), seconds_of(asked, "answered_at")
    new = tests.answer(plan, rater, at, str(asked.get("left")), str(asked.get("answer")), client_id, shown, answered)
    return dict(new=new, client_id=client_id, view=tests.view(plan, rater))
