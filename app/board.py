"""The rating board as data: what a round shows, who rated what, and whether that teaches anything. Pure reads of a run's store."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from app import words
from ddpo.config import RunConfig
from ddpo.store import RatingRow, RoundRow, RunStore, SampleRow
from rewards import parts
from rewards.human import fold, opinion

SERVER = secrets.token_hex(4)
"""A revision counts from the start of a server, so it carries which server counted."""

Ratings = Mapping[int, Sequence[RatingRow]]


@lru_cache(maxsize=256)
def config_of(store: RunStore) -> RunConfig:
    """A run's configuration; it is written once, so it is read once."""
    return store.config


def board_revision(store: RunStore) -> str:
    """Changes whenever the board may look different: with the database, and when a worker comes or goes."""
    status = store.status()
    return f"{SERVER}.{id(store):x}.{store.revision}.{status.state}.{status.pid or 0}"


def board_json(store: RunStore, rater: str) -> dict[str, Any]:
    """Everything that the board shows one rater."""
    revision = board_revision(store)  # before the reads: what changes meanwhile is read again
    config, status, row = config_of(store), store.status(), store.last_round()
    number = row.number if row else 0
    samples = store.samples(number) if row else []
    closed = _is_closed(row)
    reward = store.reward_at(number)
    rated = "human" in parts(reward)
    ratings = store.latest_ratings(number, row.closed_rating if row else None) if row and rated else {}
    scores = {} if rated or not row else store.scores(number, reward)
    applying = any(each.kind == "apply" and each.payload.get("round") == number for each in store.pending_requests())
    awaiting = status.state == "awaiting" and status.round == number and not closed
    teaches = signal(samples, ratings)
    return {
        "run": store.name,
        "state": status.state,
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
        "expected": config.images_per_round,
        "per_prompt": config.images_per_prompt,
        "images": [_image_json(store.name, sample, ratings.get(sample.id, ()), rater, scores.get(sample.id)) for sample in samples],
        "signal": teaches,
        "awaiting": awaiting,
        "applying": applying and not closed,
        "can_apply": awaiting and not applying and status.alive and teaches["carrying"] > 0,
        "closed": closed,
        "revision": revision,
    }


def _image_json(run: str, sample: SampleRow, ratings: Iterable[RatingRow], rater: str, score: Any) -> dict[str, Any]:
    """One image: the asking rater's rating, and the sum and number of the other raters' opinions."""
    own = next((r for r in ratings if r.rater == rater), None)
    others = [o for r in ratings if r.rater != rater and (o := opinion(r.kind, r.value)) is not None]
    sha = Path(sample.image).stem
    return {
        "id": sample.id,
        "position": sample.position,
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


def apply_refusal(store: RunStore, number: int) -> str:
    """Why a round's ratings cannot be applied, in plain words; empty when they can be."""
    row = store.last_round()
    if row is None or row.number != number or _is_closed(row):
        return f"Round {number} takes no ratings any more."
    samples = store.samples(number)
    if len(samples) < config_of(store).images_per_round:
        return f"Round {number} is still making images."
    if not signal(samples, store.latest_ratings(number))["carrying"]:
        return "Nothing to learn yet: rate at least two images of one prompt differently."
    return ""


def _is_closed(row: RoundRow | None) -> bool:
    return row is not None and (row.closed_at is not None or row.scored_at is not None)
