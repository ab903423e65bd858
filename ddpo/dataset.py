"""What people said, as data that others can use: rating events, preference pairs and rated images. Imports no torch."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rewards
from ddpo.store import RatingRow, RunStore, SampleRow
from rewards.human import fold, opinion

Row = dict[str, Any]
Naming = Callable[[str], str]
"""What a rater is called in a file."""


def raters_of(store: RunStore, names: bool = False) -> Naming:
    """Raters by their names, or by a hash of them that is the same in all files of a run and different in another run's.

    The hash is made with the first rating's client id, which is random and in no exported file: nobody can find a name by hashing a list of names.
    """
    if names:
        return lambda rater: rater
    secret = next((row.client_id for row in store.ratings()), "")
    return lambda rater: hashlib.sha256(f"{secret}/{rater}".encode()).hexdigest()[:12]


def rating_rows(store: RunStore, rounds: Iterable[int], naming: Naming) -> list[Row]:
    """Every rating event, oldest first. ``counts`` says whether it is its rater's last word on that image before the round learned from it."""
    found = []
    for number in rounds:
        counting = {row.id for rows in _counting(store, number).values() for row in rows}
        samples = {sample.id: sample for sample in store.samples(number)}
        for row in store.ratings(number):
            sample = samples[row.sample]
            found.append(
                dict(
                    id=row.id, round=number, image=picture_name(sample), prompt=sample.prompt, seed=sample.seed, rater=naming(row.rater),
                    kind=row.kind, value=row.value, counts=row.id in counting, shown_at=row.shown_at, answered_at=row.answered_at,
                    saved_at=row.created_at,
                )
            )  # fmt: skip
    return sorted(found, key=lambda row: row["id"])


def pair_rows(store: RunStore, rounds: Iterable[int], naming: Naming) -> list[Row]:
    """Every two images of one prompt and round that one person rated, with Pick-a-Pic's columns (Kirstain et al. 2023, arXiv 2305.01569): the better
    one's label is 1 and the other's 0, and of a tie both are 0.5. ``jpg_0`` and ``jpg_1`` are the images' files."""
    found: list[Row] = []
    for number in rounds:
        counting, rated = _counting(store, number), dict[tuple[str, str], list[tuple[SampleRow, RatingRow]]]()
        for sample in store.samples(number):
            for row in counting.get(sample.id, ()):
                if opinion(row.kind, row.value) is not None:
                    rated.setdefault((sample.prompt, row.rater), []).append((sample, row))
        model = f"{store.name}, round {number}"
        for (_, rater), images in rated.items():
            for one, other in itertools.combinations(images, 2):
                found.append(_pair(one, other) | dict(user_id=naming(rater), ranking_id=len(found), model_0=model, model_1=model, round=number))
    of_prompt = Counter(row["caption"] for row in found)
    return [row | dict(num_example_per_prompt=of_prompt[row["caption"]]) for row in found]


def _pair(one: tuple[SampleRow, RatingRow], other: tuple[SampleRow, RatingRow]) -> Row:
    """One comparison: two images of a prompt with the same person's ratings."""
    a, b = (opinion(row.kind, row.value) or 0.0 for _, row in (one, other))
    label = 0.5 if a == b else float(a > b)
    uids = [Path(sample.image).stem for sample, _ in (one, other)]
    return dict(
        caption=one[0].prompt, jpg_0=picture_name(one[0]), jpg_1=picture_name(other[0]), label_0=label, label_1=1 - label, has_label=True,
        are_different=uids[0] != uids[1], image_0_uid=uids[0], image_1_uid=uids[1], best_image_uid="tie" if a == b else uids[int(a < b)],
        created_at=max(one[1].created_at, other[1].created_at),
    )  # fmt: skip


def image_rows(store: RunStore, rounds: Iterable[int]) -> list[Row]:
    """Every image with its prompt, what the round's reward said of it, and people's mean rating from -1 to 1 (None where nobody rated)."""
    found = []
    for number in rounds:
        scores, counting = store.scores(number, store.reward_at(number)), _counting(store, number)
        for sample in store.samples(number):
            score, rated = scores.get(sample.id), fold(counting.get(sample.id, ()))
            found.append(
                dict(
                    file_name=picture_name(sample), prompt=sample.prompt, score=score.value if score else None, rating=rated.value,
                    raters=rated.explanation.get("raters", 0), reward=public_reward(store.reward_at(number)), round=number, seed=sample.seed,
                )
            )  # fmt: skip
    return found


def _counting(store: RunStore, number: int) -> dict[int, list[RatingRow]]:
    """Each rater's last word on each image of a round, up to when the round was closed."""
    row = store.round(number)
    return store.latest_ratings(number, row.closed_rating if row else None)


def picture_name(sample: SampleRow) -> str:
    """Where an image lies in what is taken away."""
    return f"images/{sample.round:04d}-{sample.position:03d}.png"


def public_reward(reward: str) -> str:
    """A reward without the folders of a Python file, which say where it lay on somebody's machine."""
    weights = rewards.parts(reward)
    if not any(map(rewards.FUNCTION.fullmatch, weights)):
        return reward
    return rewards.spell({Path(name).name if rewards.FUNCTION.fullmatch(name) else name: weight for name, weight in weights.items()})


def write_lines(rows: Sequence[Row], file: Path) -> None:
    """JSON, one object a line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", errors="replace")


def write_table(rows: Sequence[Row], file: Path) -> None:
    """CSV with a line of names."""
    with open(file, "w", encoding="utf-8", errors="replace", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def copy_pictures(store: RunStore, rounds: Iterable[int], folder: Path, wanted: set[str] | None = None) -> int:
    """Copy the rounds' images, or those of them that are wanted, by their names; returns how many."""
    pictures: Mapping[str, str] = {picture_name(sample): sample.image for number in rounds for sample in store.samples(number)}
    chosen = {name: image for name, image in pictures.items() if wanted is None or name in wanted}
    for name, image in chosen.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(store.folder / image, folder / name)
    return len(chosen)
