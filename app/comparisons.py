"""What the Compare page asks of the server: pictures of two sides, and to show them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from fastapi import Request as WebRequest
from starlette.concurrency import run_in_threadpool

from app import words
from app.comparing import Comparing, Picture
from app.launch import Launcher
from app.loras import LoraFileError, keep_lora
from app.routes import IMMUTABLE, json_answer, json_body
from app.runs import Runs
from app.scoring import Cell, Scoring, Setting
from ddpo.config import MAX_PROMPT_CHARACTERS, RunConfig
from ddpo.states import State, StateError, differences
from ddpo.store import StoreError
from rewards import automatic
from rewards.function import version

MOST_PAIRS = 256
"""Pairs in one question."""
LARGEST_SEED = 2**63 - 1
RESTS = ("awaiting", "paused", "reward_failed")
"""What a worker does that leaves the machine free."""
CLOSING = "The studio is closing."


class ComparisonError(ValueError):
    """Nothing can be compared so; the message says why and what to do."""


def build_comparisons(runs: Runs, comparing: Comparing) -> APIRouter:
    """The routes under ``/studio/compare``."""
    router = APIRouter(prefix="/studio/compare")

    @router.post("/pictures")
    async def pictures(request: WebRequest) -> Response:
        body = await json_body(request)
        return await run_in_threadpool(_pictures, runs, comparing, body)

    @router.post("/loras")
    async def bring(request: WebRequest, name: str = "") -> Response:
        if request.headers.get("content-type", "") != "application/octet-stream":
            raise HTTPException(415, "Send application/octet-stream.")
        try:
            return json_answer(dict(lora=str(await keep_lora(comparing.folder, name, request.stream()))))
        except LoraFileError as error:
            raise HTTPException(422, str(error)) from error
        except OSError as error:
            raise HTTPException(503, f"The file cannot be kept: {error.strerror or error}.") from error

    @router.post("/stop")
    async def stop(request: WebRequest) -> Response:
        await json_body(request)
        await run_in_threadpool(comparing.stop)
        return json_answer(dict(done=True))

    @router.get("/picture/{key}")
    def show(key: str) -> Response:
        path = comparing.path(key)
        if path is None:
            raise HTTPException(404, "There is no such picture any more.")
        return Response(path.read_bytes(), media_type="image/png", headers={"Cache-Control": IMMUTABLE, "X-Content-Type-Options": "nosniff"})

    return router


def at_work(runs: Runs, launcher: Launcher) -> str | None:
    """The name of a run whose worker uses the machine, if there is one; one that waits for people does not."""
    for name in runs.names():
        try:
            store = runs.open(name)
            status = store.status()
        except Exception:  # a damaged run is not at work
            continue
        if status.state not in RESTS if status.alive else launcher.starting(store.folder):
            return name
    return None


def _pictures(runs: Runs, comparing: Comparing, body: Any) -> Response:
    """Which pictures of the grid are there; those that are not are made where ``make`` says so, row by row."""
    try:
        sides, prompts, seeds = question(runs, body)
    except ComparisonError as error:
        raise HTTPException(422, str(error)) from error
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    found = [_side(side, pairs) for side in sides]
    if body.get("make") is True:
        both = [picture for pair in zip(*(pictures for pictures, _ in found if pictures), strict=True) for picture in pair]
        failures = comparing.ask(both, beside=body.get("beside") is True)[1]
    else:
        failures = {}
    keys = [[p.key if comparing.path(p.key) else None for p in pictures] or [None] * len(pairs) for pictures, _ in found]
    told = [error or failures.get(side, "") if isinstance(side, State) else side for side, (_, error) in zip(sides, found, strict=True)]
    grid = [[[keys[0][at], keys[1][at]] for at in range(row, row + len(seeds))] for row in range(0, len(pairs), len(seeds) or 1)]
    return json_answer(dict(grid=grid, failures=told, now=comparing.now, busy=comparing.at_work(), differ=told_differences(sides)))


def _side(side: State | str, pairs: Sequence[tuple[str, int]]) -> tuple[list[Picture], str]:
    """The pictures of one side, or why there are none."""
    if isinstance(side, str):
        return [], side
    try:
        return Picture.all_of(side, [prompt for prompt, _ in pairs], [seed for _, seed in pairs]), ""
    except StateError as error:
        return [], str(error)


def told_differences(sides: Sequence[State | str]) -> str:
    """What is different about the two beside what was trained, as a sentence, or nothing."""
    first, second = sides
    if isinstance(first, str) or isinstance(second, str):
        return ""
    try:
        found = differences(first, second)
    except StateError:
        return ""
    each = [f"{words.label(name).lower()} {a or 'the model’s own'} and {b or 'the model’s own'}" for name, (a, b) in found.items()]
    return f"A and B are also made differently: {', '.join(each)}." if each else ""


def question(runs: Runs, body: Any) -> tuple[list[State | str], list[str], list[int]]:
    """The two sides, of one that is not there why, and the prompts and seeds that a question names.

    Raises:
        ComparisonError: it is no such question.
    """
    if not isinstance(body, dict):
        raise ComparisonError("A question is an object.")
    sides, prompts, seeds = body.get("sides"), body.get("prompts"), body.get("seeds")
    if not isinstance(sides, list) or len(sides) != 2:
        raise ComparisonError("sides is a list of two.")
    if not isinstance(prompts, list) or not all(isinstance(p, str) and p.strip() and len(p) <= MAX_PROMPT_CHARACTERS for p in prompts):
        raise ComparisonError(f"prompts is a list of texts of 1 to {MAX_PROMPT_CHARACTERS:,} characters.")
    if not isinstance(seeds, list) or not all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s <= LARGEST_SEED for s in seeds):
        raise ComparisonError("seeds is a list of whole numbers from 0.")
    if len(prompts) * len(seeds) > MOST_PAIRS:
        raise ComparisonError(f"At most {MOST_PAIRS} pairs at once: {len(prompts)} prompts with {len(seeds)} seeds are {len(prompts) * len(seeds)}.")
    return [side_of(runs, side) for side in sides], prompts, seeds


def side_of(runs: Runs, side: Any) -> State | str:
    """A side ``{"run", "round", "lora", "strength"}``, of which all but the run can be left out; of one that cannot be, why."""
    if not isinstance(side, dict) or not isinstance(side.get("run"), str):
        return "A side is an object that names a run."
    if unknown := sorted(set(side) - {"run", "round", "lora", "strength"}, key=str):
        return f"A side has no {unknown[0]!r}; it has run, round, lora and strength."
    number, lora, strength = side.get("round", 0), side.get("lora", ""), side.get("strength", 1.0)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 10**9:
        return "round is a whole number from 0, which is the base model."
    if not isinstance(lora, str) or not isinstance(strength, (int, float)) or isinstance(strength, bool):
        return "lora is the path of a file, and strength a number."
    try:
        return State(runs.open(side["run"]).folder, number, lora.strip(), round(float(strength), 3))
    except OverflowError:
        return "strength is too large a number."
    except (StoreError, StateError) as error:
        return str(error)


def compared(runs: Runs, comparing: Comparing, body: dict[str, Any]) -> list[tuple[Picture, Picture]]:
    """All pairs of a question, made; takes as long as it takes.

    Raises:
        ComparisonError: a side is not there, a picture cannot be made, or a run is at work and nobody said that pictures may be made beside it.
    """
    sides, prompts, seeds = question(runs, body)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    found = [_side(side, pairs) for side in sides]
    if wrong := [f"{name}: {text}" for name, (_, text) in zip("AB", found, strict=True) if text]:
        raise ComparisonError(" ".join(wrong))
    both = list(zip(found[0][0], found[1][0], strict=True))
    while True:
        made, failures = comparing.ask([picture for pair in both for picture in pair], beside=body.get("beside") is True)
        if all(made):
            return both
        if failures or comparing.closed:
            raise ComparisonError(" ".join(dict.fromkeys(failures.values())) or CLOSING)
        if body.get("beside") is not True and (name := comparing.at_work()):
            raise ComparisonError(f"{name} is at work, and making pictures now would slow it down. Pause it, wait, or say beside=True.")
        time.sleep(0.1)


def values_of(comparing: Comparing, scoring: Scoring, pairs: Sequence[tuple[Picture, Picture]], rewards: Sequence[str]) -> list[dict[str, Any]]:
    """Each pair with its pictures' files and addresses, and their values by some automatic rewards, both by the networks that the run of the second
    side would take: values of two sides must be on one scale. Takes as long as it takes.

    Raises:
        ComparisonError: there is no such reward, or it cannot score.
    """
    if unknown := [name for name in rewards if name not in automatic()]:
        raise ComparisonError(f"{unknown[0]!r} scores no pictures by itself; choose among {', '.join(automatic())}.")
    both = [picture for pair in pairs for picture in pair]
    judges = {name: _networks(pairs[0][1].state, name) for name in rewards if pairs}
    cells = {(picture, name): Cell(judges[name], _file(comparing, picture), picture.prompt) for picture in both for name in rewards}
    known: dict[Cell, dict[str, Any]] = {}
    while missing := [cell for cell in cells.values() if cell not in known]:
        answers, failures = scoring.ask(missing)
        if failures:
            setting, failure = next(iter(failures.items()))
            raise ComparisonError(f"{setting.reward}: {failure.text}")
        if comparing.closed:
            raise ComparisonError(CLOSING)
        known |= {cell: answer for cell, answer in zip(missing, answers, strict=True) if answer is not None}
        time.sleep(0.1)

    def told(picture: Picture) -> dict[str, Any]:
        values = {name: known[cells[picture, name]].get("value") for name in rewards}
        return dict(file=str(_file(comparing, picture)), url=f"/studio/compare/picture/{picture.key}", values=values)

    return [dict(prompt=a.prompt, seed=a.seed, a=told(a), b=told(b)) for a, b in pairs]


def _file(comparing: Comparing, picture: Picture) -> Path:
    return (comparing.folder / f"{picture.key}.png").resolve()


def _networks(state: State, reward: str) -> Setting:
    """A reward by the networks that the state's run would take."""
    return Setting(reward, RunConfig.load(state.run / "config.json").networks_of(reward), version=version(reward))
