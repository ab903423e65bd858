"""Blind tests: pairs chosen ahead, judged without knowing which picture is whose, and revealed to each rater at their end.

::

    runs/.blind/<id>/  plan.json      written once: the two sides, the pairs, the names of their pictures' files, and a secret
                       pictures/      <random name>.png
                       answers.jsonl  one event a line, on disk before it is acknowledged; of a rater's answers to a pair the latest counts
    runs/<run>/blind/<id>.json        what has come out, for model cards and reports

Which picture is on the left, and the order of the pairs, follow from the secret and the rater's name. What is whose does not leave the server before
the rater's end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import threading
import time
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.comparing import Comparing, Picture
from ddpo.blind import VERDICTS, Outcome, Result, keep, outcome, sign_test, together
from ddpo.files import write_file
from ddpo.states import State, StateError, picture_key

FOLDER = ".blind"
ID = re.compile(r"[0-9a-f]{16}")
TOKEN = re.compile(r"[0-9a-f]{32}")
ANSWERS = ("left", "right", "tie", "bad")
MOST_PAIRS = 200
SCHEMA_VERSION = 1


class BlindError(ValueError):
    """This cannot be done; the message says why and what to do."""


def url_of(id: str, name: str) -> str:
    """A picture's address."""
    return f"/studio/blind/{id}/picture/{name}"


@dataclass(frozen=True)
class Pair:
    """A prompt and a seed, what the two pictures are called among those that are kept, and the names of their files in the test; A's first."""

    prompt: str
    seed: int
    keys: tuple[str, str]
    files: tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """What a test is; never changed."""

    id: str
    created_at: float
    secret: str
    sides: tuple[State, State]
    titles: tuple[str, str]
    pairs: tuple[Pair, ...]
    by: str = ""
    """Who began it."""

    def order(self, rater: str) -> list[int]:
        """In which order a rater sees the pairs."""
        places = list(range(len(self.pairs)))
        random.Random(f"{self.secret}/{rater}").shuffle(places)
        return places

    def left(self, rater: str, pair: int) -> str:
        """Which side's picture of a pair a rater sees on the left: a or b."""
        return "ab"[hashlib.sha256(f"{self.secret}/{rater}/{pair}".encode()).digest()[0] % 2]

    def shown(self, rater: str, pair: int) -> tuple[str, str]:
        """The addresses of a pair's pictures, the left one of a rater's first."""
        first, second = (url_of(self.id, name) for name in self.pairs[pair].files)
        return (first, second) if self.left(rater, pair) == "a" else (second, first)

    def place(self, rater: str, judged: Container[int]) -> int:
        """The first place in a rater's order whose pair is not judged; their number where all are."""
        return next((at for at, pair in enumerate(self.order(rater)) if pair not in judged), len(self.pairs))


@dataclass(frozen=True)
class Answer:
    """What a rater said of a pair."""

    rater: str
    pair: int
    answer: str
    left: str
    client_id: str
    shown_at: float | None
    answered_at: float | None
    saved_at: float

    @property
    def verdict(self) -> str:
        """a or b is better, tie, or bad."""
        if self.answer in ("tie", "bad"):
            return self.answer
        return self.left if self.answer == "left" else "ba"["ab".index(self.left)]


class BlindTests:
    """The blind tests of a folder of runs."""

    def __init__(self, runs: Path, comparing: Comparing) -> None:
        self.runs, self.folder, self.comparing = Path(runs), Path(runs) / FOLDER, comparing
        self._plans: dict[str, Plan] = {}
        self._lock = threading.Lock()

    # --- tests ------------------------------------------------------------------------------------------------------------------

    def create(self, sides: tuple[State, State], titles: tuple[str, str], prompts: Sequence[str], count: int, by: str = "") -> Plan:
        """A new test of ``count`` pairs: the prompts in turn, each with a seed that nobody has seen. Its pictures are still to be made.

        Raises:
            BlindError: both sides are the same, or it has no pair, or too many.
            StateError: a side is not there.
        """
        if not 1 <= count <= MOST_PAIRS or not prompts:
            raise BlindError(f"A blind test has 1 to {MOST_PAIRS} pairs, and at least one prompt.")
        if sides[0].fixes() == sides[1].fixes():
            raise BlindError("A and B are the same model, so there is nothing to tell apart. Choose another one.")
        mixed, first = random.Random(secrets.randbits(64)).sample(list(prompts), len(prompts)), secrets.randbelow(2**31)
        chosen = [(mixed[i % len(mixed)], first + i) for i in range(count)]  # a seed of its own each: no two pairs share their noise
        both = [Picture.all_of(side, [prompt for prompt, _ in chosen], [seed for _, seed in chosen]) for side in sides]
        pairs = [Pair(a.prompt, a.seed, (a.key, b.key), (secrets.token_hex(16), secrets.token_hex(16))) for a, b in zip(*both, strict=True)]
        plan = Plan(secrets.token_hex(8), time.time(), secrets.token_hex(32), sides, titles, tuple(pairs), by)
        (self.folder / plan.id / "pictures").mkdir(parents=True)
        told = asdict(plan) | dict(version=SCHEMA_VERSION, sides=[asdict(side) | dict(run=side.run.name) for side in sides])
        write_file(self.folder / plan.id / "plan.json", json.dumps(told, indent=1).encode())
        return plan

    def plan(self, id: str) -> Plan:
        """A test's plan.

        Raises:
            BlindError: there is no such test, or it cannot be read.
        """
        if id not in self._plans:
            file = self.folder / id / "plan.json"
            if not ID.fullmatch(id) or not file.is_file():
                raise BlindError("There is no such blind test.")
            try:
                self._plans[id] = self._read(file)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BlindError(
                    f"The blind test {id} cannot be read ({error}). Copy its folder back from a backup, or start another one."
                ) from error
        return self._plans[id]

    def _read(self, file: Path) -> Plan:
        told = json.loads(file.read_text(encoding="utf-8"))
        first, second = (State(self.runs / side["run"], side["round"], side["lora"], side["strength"]) for side in told["sides"])
        pairs = tuple(Pair(each["prompt"], each["seed"], tuple(each["keys"]), tuple(each["files"])) for each in told["pairs"])
        return Plan(told["id"], told["created_at"], told["secret"], (first, second), tuple(told["titles"]), pairs, told.get("by", ""))

    def listed(self, rater: str) -> list[dict[str, Any]]:
        """All tests, newest first, with how far a rater is, who began it, and whether anybody has answered; what they compare only where the rater is
        at the end."""
        found = []
        for file in self.folder.glob("*/plan.json"):
            try:
                plan = self.plan(file.parent.name)
            except BlindError:
                continue
            done = len(self.said(plan).get(rater, {}))
            titles = list(plan.titles) if done == len(plan.pairs) else None
            told = dict(id=plan.id, created_at=plan.created_at, total=len(plan.pairs), done=done, titles=titles)
            found.append(told | dict(by=plan.by, prompts=len({pair.prompt for pair in plan.pairs}), answered=self._answered(plan)))
        return sorted(found, key=lambda each: -each["created_at"])

    def delete(self, plan: Plan) -> None:
        """Remove a test that nobody has answered.

        Raises:
            BlindError: somebody has.
        """
        with self._lock:
            if self._answered(plan):
                raise BlindError("Somebody has judged pairs of this test, so it is kept.")
            (self.folder / plan.id / "plan.json").unlink(missing_ok=True)  # first: without it there is no test
            self._plans.pop(plan.id, None)
            shutil.rmtree(self.folder / plan.id)

    def _answered(self, plan: Plan) -> bool:
        """Whether anybody has said anything, whether or not it can still be read."""
        try:
            return (self.folder / plan.id / "answers.jsonl").stat().st_size > 0
        except FileNotFoundError:
            return False

    # --- pictures ---------------------------------------------------------------------------------------------------------------

    def file(self, id: str, name: str) -> Path | None:
        """A picture's file, or None where there is none."""
        path = self.folder / id / "pictures" / f"{name}.png"
        return path if ID.fullmatch(id) and TOKEN.fullmatch(name) and path.is_file() else None

    def make(self, plan: Plan, beside: bool = False) -> tuple[int, str]:
        """Have the test's pictures made; ask again until they are. How many pairs are there, and why no others will be.

        Args:
            beside: make them while a run is at work, too.
        """
        wanted, there = list[tuple[Picture, str]](), 0
        for pair in plan.pairs:
            lacking = [
                (Picture(side, pair.prompt, pair.seed, key), name)
                for side, key, name in zip(plan.sides, pair.keys, pair.files, strict=True)
                if not self.file(plan.id, name)
            ]
            wanted += [(picture, name) for picture, name in lacking if not self._take(plan, picture.key, name)]
            there += not lacking
        if failure := _changed([picture for picture, _ in wanted]):
            return there, failure
        failures = self.comparing.ask([picture for picture, _ in wanted], beside)[1] if wanted else {}
        return there, " ".join(dict.fromkeys(failures.values()))

    def _take(self, plan: Plan, key: str, name: str) -> bool:
        """Copy a picture that is made into the test, under its name there."""
        path = self.comparing.path(key)
        if path is None:
            return False
        with self._lock:
            if not self.file(plan.id, name):  # another request was faster
                write_file(self.folder / plan.id / "pictures" / f"{name}.png", path.read_bytes())
        return True

    # --- answers ----------------------------------------------------------------------------------------------------------------

    def answers(self, plan: Plan) -> list[Answer]:
        """All answers as they came. A line that a crash cut off is none: it was never acknowledged. Nor is one that was damaged since: its pair is
        judged anew."""
        file = self.folder / plan.id / "answers.jsonl"
        found = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
            try:
                answer = Answer(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if isinstance(answer.rater, str) and answer.pair in range(len(plan.pairs)) and answer.answer in ANSWERS and answer.left in ("a", "b"):
                found.append(answer)
        return found

    def said(self, plan: Plan) -> dict[str, dict[int, Answer]]:
        """Each rater's latest answer to each pair."""
        latest: dict[str, dict[int, Answer]] = {}
        for each in self.answers(plan):
            latest.setdefault(each.rater, {})[each.pair] = each
        return latest

    def answer(
        self, plan: Plan, rater: str, at: int, left: str, answer: str, client_id: str, shown_at: float | None = None, answered_at: float | None = None
    ) -> bool:
        """Save what a rater says of the pair at a place of their order; on disk when this returns. False where this answer was saved before.

        Args:
            left: the address of the picture that was on the left, so that no answer lands on a pair, or a side, that its rater did not see.

        Raises:
            BlindError: there is no such pair or answer, another pair was shown, an earlier pair has none yet, or the test is over for this rater.
        """
        if answer not in ANSWERS or not 0 <= at < len(plan.pairs):
            raise BlindError(f"An answer is one of {', '.join(ANSWERS)}, to one of {len(plan.pairs)} pairs.")
        with self._lock:
            if any(each.client_id == client_id for each in self.answers(plan)):
                return False
            mine, pair = self.said(plan).get(rater, {}), plan.order(rater)[at]
            if len(mine) == len(plan.pairs):
                raise BlindError("You have judged all pairs of this test, and what they are is revealed.")
            if at != plan.place(rater, mine) and pair not in mine:
                raise BlindError("An earlier pair is not judged yet.")
            if left != plan.shown(rater, pair)[0]:
                raise BlindError(f"This is not the pair that {rater} is shown there, so nothing was saved. Open the test again.")
            event = Answer(rater, pair, answer, plan.left(rater, pair), client_id, shown_at, answered_at, time.time())
            append_line(self.folder / plan.id / "answers.jsonl", json.dumps(asdict(event)))
            if len({*mine, pair}) == len(plan.pairs):
                self._keep(plan, self.result(plan))
            return True

    def _keep(self, plan: Plan, found: dict[str, Any]) -> None:
        """What has come out, into the folders of the runs that the test compares, while they hold the weights that it is of: another run may have
        the name of one that was deleted. The answers are safe by themselves: a run that is gone, or a full disk, loses none."""
        pairs, first = len(plan.pairs), plan.pairs[0]
        at_end = [answers for answers in self.said(plan).values() if len(answers) == pairs]
        finished = max(answer.saved_at for answers in at_end for answer in answers.values())
        for run in dict.fromkeys(side.run for side in plan.sides):
            if _changed([Picture(side, first.prompt, first.seed, key) for side, key in zip(plan.sides, first.keys, strict=True) if side.run == run]):
                continue
            rounds = [side.round if side.run == run and not side.is_base else 0 for side in plan.sides]
            total = Outcome(*(found["total"][verdict] for verdict in VERDICTS))
            left = (found["left"]["left"], found["left"]["right"])
            with contextlib.suppress(OSError):
                keep(run, Result(plan.id, finished, plan.titles, (rounds[0], rounds[1]), pairs, len(at_end), total, left))

    # --- what a rater sees ------------------------------------------------------------------------------------------------------

    def view(self, plan: Plan, rater: str, at: int | None = None) -> dict[str, Any]:
        """The pair to be judged next, or that at an earlier place; nothing in it says whose a picture is. At the end, the result."""
        mine, order = self.said(plan).get(rater, {}), plan.order(rater)
        found: dict[str, Any] = dict(id=plan.id, rater=rater, total=len(order), done=len(mine))
        if len(mine) == len(order):
            result = self.result(plan)
            with self._lock:
                self._keep(plan, result)  # once more: the answer that ended it may have been the last thing before a crash
            return found | dict(result=result)
        place = at if at is not None and 0 <= at < len(order) and order[at] in mine else plan.place(rater, mine)
        return found | dict(pair=self._shown(plan, rater, order, place), next=self._shown(plan, rater, order, place + 1))

    def _shown(self, plan: Plan, rater: str, order: Sequence[int], place: int) -> dict[str, Any] | None:
        if place >= len(order):
            return None
        left, right = plan.shown(rater, order[place])
        return dict(at=place, prompt=plan.pairs[order[place]].prompt, left=left, right=right)

    def result(self, plan: Plan) -> dict[str, Any]:
        """What the raters who are at their end said, taken together."""
        said = self.said(plan)
        done = {rater: answers for rater, answers in said.items() if len(answers) == len(plan.pairs)}
        verdicts = {rater: {pair: each.verdict for pair, each in answers.items()} for rater, answers in done.items()}
        common = together(verdicts.values())
        sides = [each.answer for answers in done.values() for each in answers.values()]
        left, right = sides.count("left"), sides.count("right")
        prompts = dict.fromkeys(pair.prompt for pair in plan.pairs)
        return dict(
            titles=list(plan.titles),
            total=told(outcome(common.values())),
            raters=[dict(name=rater, **told(outcome(mine.values()))) for rater, mine in verdicts.items()],
            waiting=[rater for rater in said if rater not in done],
            left=dict(left=left, right=right, p_value=sign_test(left, right)),
            prompts=[
                dict(prompt=prompt, **told(outcome(common[i] for i in common if plan.pairs[i].prompt == prompt))) for prompt in prompts
            ],
            pairs=[
                dict(
                    prompt=pair.prompt, seed=pair.seed, a=url_of(plan.id, pair.files[0]), b=url_of(plan.id, pair.files[1]), verdict=common.get(i)
                )
                for i, pair in enumerate(plan.pairs)
            ],
        )  # fmt: skip


def _changed(pictures: Sequence[Picture]) -> str:
    """Why some of a plan's pictures can no longer be made as they were planned, or nothing."""
    try:
        fixes = {state: state.fixes() for state in {picture.state for picture in pictures}}
    except StateError as error:
        return str(error)
    if all(picture_key(fixes[each.state], each.prompt, each.seed) == each.key for each in pictures):
        return ""
    return "The weights of a side have changed since this test was planned, so its pictures cannot be made any more. Begin another test."


def told(found: Outcome) -> dict[str, Any]:
    """An outcome with what it says, as plain values."""
    return asdict(found) | dict(decided=found.decided, win_rate=found.win_rate, interval=found.interval, p_value=found.p_value)


def append_line(file: Path, line: str) -> None:
    """Add a line to a file, durably; one that a crash cut off before stays a line of its own."""
    new = not file.exists()
    with open(file, "ab+") as stored:
        if stored.seek(0, os.SEEK_END):
            stored.seek(-1, os.SEEK_END)
            if stored.read(1) != b"\n":
                stored.write(b"\n")
        stored.write(line.encode() + b"\n")
        stored.flush()
        os.fsync(stored.fileno())
    if new and os.name != "nt":  # the file's name, too
        folder = os.open(file.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
