"""The rating board as data: what a round shows, who rated what, and whether that teaches anything. Pure reads of a run's store."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from app import words
from app.again import repeated, said_again
from app.raters import tired
from ddpo.beliefs import asks, in_short
from ddpo.config import RunConfig
from ddpo.records import RatingRow, RoundRow, SampleRow, Status
from ddpo.store import RunStore
from rewards import parts
from rewards.human import VALUES, opinions, scores, set_size

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
    """The round whose board people see: the first that is open, whatever the worker makes beside it; or else the newest that has a board. One that
    was made ahead waits for those before it that people turn out to be asked about."""
    row, config = store.open_round(), config_of(store)
    if row is None or config.board_every == 1 or not is_rated(store, row.number):
        return row
    rounds = store.rounds()
    turn = max((each.number for each in rounds if is_closed(each) or each.scored_at is not None), default=0) + 1
    if turn < row.number and asks(store, config, turn):
        rounds = [each for each in rounds if each.number <= turn]
        row = rounds[-1]
    if asks(store, config, row.number):
        return row
    return next((each for each in reversed(rounds) if store.board(each.number)), row)


def is_rated(store: RunStore, number: int) -> bool:
    """Whether people say what is good in a round, alone or beside other rewards."""
    return "human" in parts(store.reward_at(number))


def is_made(store: RunStore, row: RoundRow) -> bool:
    """Whether a round's board is complete: with the round, or where it is chosen of the first images only, with these."""
    config = config_of(store)
    if row.sampled_at is not None or config.board_pool == config.images_per_round or not is_rated(store, row.number):
        return row.sampled_at is not None
    samples = store.samples(row.number)
    return len(samples) >= config.board_pool and sum(sample.shown for sample in samples) == config.board_images


def board_of(store: RunStore, number: int) -> list[SampleRow]:
    """The images of a round that people see: those that they are asked about, or all where nobody is asked."""
    return store.board(number) if is_rated(store, number) else store.samples(number)


def status_seen(store: RunStore, status: Status) -> Status:
    """The status, as people see it. A worker that makes the next board ahead waits for ratings; once these are applied, it only makes images."""
    if status.state != "awaiting" or not config_of(store).ahead:
        return status
    rounds = store.rounds()
    applied = any(each.number == status.round and is_closed(each) for each in rounds)
    row = next((each for each in rounds if each.number > status.round and not is_made(store, each)), None)
    if not applied or row is None:
        return status
    return replace(status, state="sampling", round=row.number, done=len(store.samples(row.number)), total=config_of(store).board_pool)


def is_turn(store: RunStore, status: Status, row: RoundRow | None) -> bool:
    """Whether it is people's turn: the worker waits for their ratings of a round, or will come to this board, which is there already."""
    if row is None or is_closed(row):
        return False
    if status.state == "awaiting" and status.round == row.number:
        return True
    early = config_of(store).ahead > 0 and row.number >= status.round and is_made(store, row) and is_rated(store, row.number)
    return early and status.alive and status.state in BESIDE


def board_json(store: RunStore, rater: str) -> dict[str, Any]:
    """Everything that the board shows one rater."""
    revision = board_revision(store)  # before the reads: what changes meanwhile is read again
    config, worker, row = config_of(store), store.status(), board_round(store)
    status = status_seen(store, worker)
    number = row.number if row else 0
    samples = board_of(store, number)
    closed = is_closed(row)
    reward, rated = store.reward_at(number), is_rated(store, number)
    ratings = store.last_words(number, everyone=True) if row and rated else {}
    scored = {} if rated or not row else store.scores(number, reward)
    applying = not closed and is_applying(store, number)
    turn = is_turn(store, status, row)
    mode, absent = store.rating, store.left_out
    teaches = signal(samples, {id: [each for each in said if each.rater not in absent] for id, said in ratings.items()}, store.weights)
    others = {name: found for name, found in opinions(asked_of(samples), ratings).items() if name != rater and name not in absent}
    told = [(found, store.weights.get(name, 1.0) / store.weights.get(rater, 1.0)) for name, found in others.items()]
    expected, per_prompt, places = _shape(store, row, samples)
    again = repeated(store, number, rater, per_prompt) if rated and row and _is_shaped(store, row) else []
    if again:
        ratings = ratings | said_again(store, {sample.round for sample in again})
        expected, places = _mixed(expected, per_prompt, places, len(again), f"{config.seed} {number} {rater}")
    images, making = [*samples, *again], config.board_pool if rated else config.images_per_round
    own = {each.sample: each for said in ratings.values() for each in said if each.rater == rater and each.other is None}
    sets = _sets(samples, 0 if row and is_made(store, row) else per_prompt) + _sets(again)
    return {
        "run": store.name,
        "state": "awaiting" if turn and not applying else status.state,
        "phase_round": status.round,
        "between": worker.round > number,
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
        "rating": mode,
        "modes": [[name, words.RATINGS[name]] for name in modes_of(config)] if rated else [],
        "expected": expected,
        "per_prompt": per_prompt,
        "made": min(len(store.samples(number)), making),
        "making": making,
        "per_set": set_size(per_prompt) if mode == "best-worst" else per_prompt,
        "images": [
            _image_json(store.name, sample, place, own.get(sample.id), [(found[sample.id], weight) for found, weight in told if sample.id in found])
            | {"score": scored[sample.id].value if sample.id in scored else None, "set": group, "again": sample.round != number}
            for sample, place, group in zip(images, places, sets, strict=True)
        ],
        "pairs": _pairs_json(images, places, ratings, rater, f"{config.seed} {rater}") if mode == "pairs" and rated else [],
        "signal": teaches,
        "left_out": rater in absent,
        "tired": tired(store, rater) if turn else "",
        "taste": in_short(store, number) if rated and config.preference != "off" else "",
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
    if not config.board_chosen or row is None or not is_rated(store, row.number):
        return n, k, places
    if not is_made(store, row) or not samples:
        return config.board_images, k, list(range(len(samples)))
    of_each = set(Counter(sample.prompt for sample in samples).values())
    return len(samples), of_each.pop() if len(of_each) == 1 else k, list(range(len(samples)))


def _mixed(expected: int, per_prompt: int, places: Sequence[int], more: int, seed: str) -> tuple[int, list[int]]:
    """How many images a board has with some more, in groups as large as its own, and where all go: each group's place among the others is random."""
    if expected % per_prompt:
        return expected + more, [*places, *range(expected, expected + more)]
    total = (expected + more) // per_prompt
    free = sorted(Random(seed).sample(range(total), more // per_prompt))
    own = [group for group in range(total) if group not in free]
    at = [own[place // per_prompt] * per_prompt + place % per_prompt for place in places]
    return expected + more, [*at, *(group * per_prompt + i for group in free for i in range(per_prompt))]


def _is_shaped(store: RunStore, row: RoundRow) -> bool:
    """Whether it is known how many images of each prompt a board has: from the start, or where it is chosen, once it is."""
    return not config_of(store).board_chosen or is_made(store, row)


def _sets(samples: Sequence[SampleRow], coming: int = 0) -> list[str]:
    """The set of which best and worst are named, for each image; ``coming`` is how many images of a prompt there will be, while they are made."""
    of_prompt, found, seen = Counter(sample.prompt for sample in samples), [], Counter[str]()
    for sample in samples:
        size = set_size(coming or of_prompt[sample.prompt])
        found.append(f"{sample.round} {sample.prompt} {seen[sample.prompt] // size}")
        seen[sample.prompt] += 1
    return found


def _pairs_json(images: Sequence[SampleRow], places: Sequence[int], ratings: Ratings, rater: str, seed: str) -> list[dict[str, Any]]:
    """The pairs that a rater is shown, in the order of the board, each with their verdict as seen from its left image."""
    at = {sample.id: place for sample, place in zip(images, places, strict=True)}
    said = {(each.sample, each.other): each for found in ratings.values() for each in found if each.rater == rater and each.other is not None}
    found = []
    for left, right in sorted(pairs_of(images, seed), key=lambda pair: max(at[pair[0]], at[pair[1]])):
        verdict, turned = said.get((left, right)), said.get((right, left))
        if turned and (verdict is None or turned.id > verdict.id):
            verdict = replace(turned, value=None if turned.value is None else -turned.value)
        found.append({"left": left, "right": right, "rating": {"kind": verdict.kind, "value": verdict.value} if verdict else None})
    return found


def pairs_of(images: Iterable[SampleRow], seed: str) -> list[tuple[int, int]]:
    """Which pairs of images are judged, left and right: each image of a prompt beside one of those before it, drawn at random, as are the sides.

    So a prompt's n images are connected by n - 1 pairs, the fewest that say something of all of them; from one image to another it takes few of them
    (a random recursive tree: in the order of log n); and the pairs that are there stay as they are while images are still being made.
    """
    before: dict[tuple[int, str], list[int]] = {}
    found = []
    for image in images:
        own = before.setdefault((image.round, image.prompt), [])
        draw = Random(f"{seed} {image.id}")
        if own:
            left, right = draw.sample([draw.choice(own), image.id], 2)
            found.append((left, right))
        own.append(image.id)
    return found


def modes_of(config: RunConfig) -> list[str]:
    """The modes in which a run can be rated: those that compare a prompt's images need several."""
    return [mode for mode in VALUES if config.images_per_prompt > 1 or mode in ("thumbs", "stars")]


def _image_json(run: str, sample: SampleRow, place: int, own: RatingRow | None, others: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """One image: the asking rater's mark, and the sum and the weight of the other raters' opinions, each beside the asking one's."""
    sha = Path(sample.image).stem
    return {
        "id": sample.id,
        "position": place,
        "image": sha,
        "url": f"/studio/runs/{run}/image/{sample.id}?v={sha}",
        "prompt": sample.prompt,
        "rating": {"kind": own.kind, "value": own.value} if own else None,
        "others": [sum(value * weight for value, weight in others), sum(weight for _, weight in others)],
    }


def signal(samples: Iterable[SampleRow], ratings: Ratings, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What the ratings teach: only differences between images of one prompt do."""
    asked = asked_of(samples)
    values: dict[str, list[float]] = {prompt: [] for prompt in asked.values()}
    for id, score in scores(asked, ratings, weights).items():
        if score.value is not None:
            values[asked[id]].append(score.value)
    carrying = sum(len({round(value, 9) for value in found}) > 1 for found in values.values())
    return {"prompts": len(values), "carrying": carrying, "rated": sum(map(len, values.values()))}


def asked_of(samples: Iterable[SampleRow]) -> dict[int, str]:
    """What people were asked about: the prompt of each image, in the order of the board."""
    return {sample.id: sample.prompt for sample in samples}


def looked_at(samples: Sequence[SampleRow], ratings: Ratings) -> int:
    """How many images somebody has an opinion of, or has skipped."""
    known = {id for found in opinions(asked_of(samples), ratings).values() for id in found}
    skipped = {id for each in ratings.values() for rating in each if rating.kind == "skip" for id in (rating.sample, rating.other)}
    return sum(sample.id in known | skipped for sample in samples)


def is_applying(store: RunStore, number: int) -> bool:
    """Whether a round's ratings were applied, and the worker has not answered yet."""
    return any(each.kind == "apply" and each.payload.get("round") == number for each in store.pending_requests())


def apply_refusal(store: RunStore, number: int) -> str:
    """Why a round's ratings cannot be applied, in plain words; empty when they can be."""
    row = board_round(store)
    if row is None or row.number > number or (row.number == number and is_closed(row)):
        return f"Round {number} takes no ratings any more."
    if row.number < number and is_closed(row):
        return f"Round {number} has no board; the next one is on its way."
    if row.number < number:
        return f"Round {number} has no board that waits; the one of round {row.number} is on the page."
    if not is_made(store, row):
        return f"Round {number} is still making images."
    if not signal(board_of(store, number), store.latest_ratings(number), store.weights)["carrying"]:
        return "Nothing to learn yet: rate at least two images of one prompt differently."
    return ""


def rating_refusal(store: RunStore, sample: SampleRow, rater: str = "", other: SampleRow | None = None, board: int | None = None) -> str:
    """Why an image, or with ``other`` a pair, takes no rating, in plain words; empty when it does. After its round was closed that is a late one
    (:func:`ddpo.records.is_late`) of somebody whose ``board`` was still this round's, or one of an image that is shown once more."""
    if other and ((other.round, other.prompt) != (sample.round, sample.prompt) or other == sample):
        return "A pair is two images of one prompt on one board."
    if other and not other.shown:
        return rating_refusal(store, other, rater, board=board)
    row = store.round(sample.round)
    late = row is not None and row.closed_rating is not None and board == sample.round
    if is_closed(row) and not late and not _comes_again(store, sample, rater):
        return "The ratings of this round were applied already, so it takes no more. The next round is on its way."
    return "" if sample.shown else "This image is not on the board, so nobody is asked about it."


def _comes_again(store: RunStore, sample: SampleRow, rater: str) -> bool:
    """Whether a rater is shown an image of an earlier board once more, on the one that waits."""
    row = board_round(store)
    if row is None or row.number <= sample.round or not config_of(store).repeats or is_closed(row) or not is_rated(store, row.number):
        return False
    _, per_prompt, _ = _shape(store, row, board_of(store, row.number))
    return _is_shaped(store, row) and sample in repeated(store, row.number, rater, per_prompt)


def is_closed(row: RoundRow | None) -> bool:
    """Whether a round takes no ratings any more."""
    return row is not None and (row.closed_at is not None or row.scored_at is not None)
