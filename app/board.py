"""The rating board as data: what a round shows, who rated what, and whether that teaches anything. Pure reads of a run's store."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from app import words
from ddpo.config import RunConfig
from ddpo.store import RatingRow, RoundRow, RunStore, SampleRow, Status
from rewards import parts
from rewards.human import fold, opinion

SERVER = secrets.token_hex(4)
"""A revision counts from the start of a server, so it carries which server counted."""

BESIDE = ("sampling", "awaiting", "scoring", "updating", "checkpointing", "measuring")
"""What a worker can be doing with a round before the one whose board people see."""

Ratings = Mapping[int, Sequence[RatingRow]]


@lru_cache(maxsize=256)
def config_of(store: RunStore) -> RunConfig:
    """A run's configuration; it is written once, so it is read once."""
    return store.config


def board_revision(store: RunStore) -> str:
    """Changes whenever the board may look different: with the database, and when a worker comes or goes."""
    status = store.status()
    return f"{SERVER}.{id(store):x}.{store.revision}.{status.state}.{status.pid or 0}"


def board_round(store: RunStore) -> RoundRow | None:
    """The round whose board people see: the first that is open, whatever the worker makes beside it; or else the newest that has a board."""
    row, every = store.open_round(), config_of(store).board_every
    if row is None or (row.number - 1) % every == 0 or not is_rated(store, row.number):
        return row
    return next((each for each in reversed(store.rounds()) if store.board(each.number)), row)


def is_rated(store: RunStore, number: int) -> bool:
    """Whether people say what is good in a round, alone or beside other rewards."""
    return "human" in parts(store.reward_at(number))


def board_of(store: RunStore, number: int) -> list[SampleRow]:
    """The images of a round that people see: those that they are asked about, or all where nobody is asked."""
    return store.board(number) if is_rated(store, number) else store.samples(number)


def status_seen(store: RunStore, status: Status) -> Status:
    """The status, as people see it. A worker that makes the next board ahead waits for ratings; once these are applied, it only makes images."""
    row = board_round(store) if status.state == "awaiting" and config_of(store).ahead else None
    if row is None or row.number <= status.round or row.sampled_at is not None:
        return status
    return replace(status, state="sampling", round=row.number, done=len(store.samples(row.number)), total=config_of(store).images_per_round)


def is_turn(store: RunStore, status: Status, row: RoundRow | None) -> bool:
    """Whether it is people's turn: the worker waits for their ratings of a round, or will come to this board, which it has made ahead."""
    if row is None or _is_closed(row):
        return False
    if status.state == "awaiting" and status.round == row.number:
        return True
    early = config_of(store).ahead and row.sampled_at is not None and row.number > status.round and is_rated(store, row.number)
    return early and status.alive and status.state in BESIDE


def board_json(store: RunStore, rater: str) -> dict[str, Any]:
    """Everything that the board shows one rater."""
    revision = board_revision(store)  # before the reads: what changes meanwhile is read again
    config, status, row = config_of(store), status_seen(store, store.status()), board_round(store)
    number = row.number if row else 0
    samples = board_of(store, number)
    closed = _is_closed(row)
    reward, rated = store.reward_at(number), is_rated(store, number)
    ratings = store.latest_ratings(number, row.closed_rating if row else None) if row and rated else {}
    scores = {} if rated or not row else store.scores(number, reward)
    applying = not closed and is_applying(store, number)
    turn = is_turn(store, status, row)
    teaches = signal(samples, ratings)
    expected, per_prompt, places = _shape(store, row, samples)
    return {
        "run": store.name,
        "state": "awaiting" if turn and not applying else status.state,
        "phase_round": status.round,
        "round": number,
        "rounds": config.rounds,
        "done": status.done,
        "total": status.total,
        "seconds_left": status.seconds_left,
        "alive": status.alive,
        "message": status.message,
        "pending": list(status.pending),
        "reward": words.reward(reward),
        "rated_by_people": rated,
        "rating": config.rating,
        "expected": expected,
        "per_prompt": per_prompt,
        "made": len(store.samples(number)),
        "making": config.images_per_round,
        "images": [
            _image_json(store.name, sample, place, ratings.get(sample.id, ()), rater, scores.get(sample.id))
            for place, sample in zip(places, samples, strict=True)
        ],
        "signal": teaches,
        "awaiting": turn,
        "applying": applying,
        "can_apply": turn and not applying and status.alive and teaches["carrying"] > 0,
        "closed": closed,
        "revision": revision,
    }


def _shape(store: RunStore, row: RoundRow | None, samples: Sequence[SampleRow]) -> tuple[int, int, list[int]]:
    """How many images the board has once it is complete, how many of each prompt, and where those that are there go: to their positions in the
    round, or on a board of a few one after another."""
    config = config_of(store)
    n, k, places = config.images_per_round, config.images_per_prompt, [sample.position for sample in samples]
    if not 0 < config.board_images < n or row is None or not is_rated(store, row.number):
        return n, k, places
    if row.sampled_at is None or not samples:
        return config.board_images, k, list(range(len(samples)))
    of_each = set(Counter(sample.prompt for sample in samples).values())
    return len(samples), of_each.pop() if len(of_each) == 1 else k, list(range(len(samples)))


def _image_json(run: str, sample: SampleRow, place: int, ratings: Iterable[RatingRow], rater: str, score: Any) -> dict[str, Any]:
    """One image: the asking rater's rating, and the sum and number of the other raters' opinions."""
    own = next((r for r in ratings if r.rater == rater), None)
    others = [o for r in ratings if r.rater != rater and (o := opinion(r.kind, r.value)) is not None]
    sha = Path(sample.image).stem
    return {
        "id": sample.id,
        "position": place,
        "image": sha,
        "url": f"/studio/runs/{run}/image/{sample.id}?v={sha}",
        "prompt": sample.prompt,
        "rating": {"kind": own.kind, "value": own.value} if own else None,
        "others": [sum(others), len(others)],
        "score": score.value if score else None,
    }


def signal(samples: Iterable[SampleRow], ratings: Ratings) -> dict[str, Any]:
    """What the ratings teach: only differences between images of one prompt do."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        found = values.setdefault(sample.prompt, [])
        if (score := fold(ratings.get(sample.id, ())).value) is not None:
            found.append(score)
    carrying = sum(len(set(found)) > 1 for found in values.values())
    return {"prompts": len(values), "carrying": carrying, "rated": sum(map(len, values.values()))}


def is_applying(store: RunStore, number: int) -> bool:
    """Whether a round's ratings were applied, and the worker has not answered yet."""
    return any(each.kind == "apply" and each.payload.get("round") == number for each in store.pending_requests())


def apply_refusal(store: RunStore, number: int) -> str:
    """Why a round's ratings cannot be applied, in plain words; empty when they can be."""
    row = board_round(store)
    if row is None or row.number > number or (row.number == number and _is_closed(row)):
        return f"Round {number} takes no ratings any more."
    if row.number < number:
        return f"Round {number} has no board that waits; the one of round {row.number} is on the page."
    if row.sampled_at is None:
        return f"Round {number} is still making images."
    if not signal(board_of(store, number), store.latest_ratings(number))["carrying"]:
        return "Nothing to learn yet: rate at least two images of one prompt differently."
    return ""


def rating_refusal(store: RunStore, sample: SampleRow) -> str:
    """Why an image takes no rating, in plain words; empty when it does."""
    if _is_closed(store.round(sample.round)):
        return "The ratings of this round were applied already, so it takes no more. The next round is on its way."
    return "" if sample.shown else "This image is not on the board, so nobody is asked about it."


def _is_closed(row: RoundRow | None) -> bool:
    return row is not None and (row.closed_at is not None or row.scored_at is not None)
