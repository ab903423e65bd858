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
from ddpo.records import SampleRow
from ddpo.store import RunStore
from rewards.base import Score
from rewards.human import BOTH_BAD, opinions, scores

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
    """Every rating event, oldest first. ``counts`` says whether it is its rater's last word on that image of the round's board, be it late, and
    ``weight`` how much that rater counts beside others: 1, or 0.5."""
    found, weights = [], store.weights
    for number in rounds:
        last = {row.id for rows in store.last_words(number).values() for row in rows}
        samples = {sample.id: sample for sample in store.samples(number)}
        for row in store.ratings(number):
            sample = samples[row.sample]
            found.append(
                dict(
                    id=row.id, round=number, image=picture_name(sample), prompt=sample.prompt, seed=sample.seed, rater=naming(row.rater),
                    kind=row.kind, value=row.value, other=picture_name(samples[row.other]) if row.other else None, counts=row.id in last,
                    weight=weights.get(row.rater, 1.0), shown_at=row.shown_at, answered_at=row.answered_at, saved_at=row.created_at,
                )
            )  # fmt: skip
    return sorted(found, key=lambda row: row["id"])


def pair_rows(store: RunStore, rounds: Iterable[int], naming: Naming) -> list[Row]:
    """Every two images of one prompt and round that one person judged, with Pick-a-Pic's columns (Kirstain et al. 2023, arXiv 2305.01569): the better
    one's label is 1 and the other's 0, and of a tie (or of two bad images) both are 0.5. ``jpg_0`` and ``jpg_1`` are the images' files. A verdict on
    a pair is taken as it is; marks, of whatever mode, by the opinions that they come to (:func:`rewards.human.opinions`)."""
    found: list[Row] = []
    for number in rounds:
        samples, asked, last = {sample.id: sample for sample in store.samples(number)}, store.asked(number), store.last_words(number)
        said = [row for rows in last.values() for row in rows]
        told: dict[tuple[str, frozenset[int]], tuple[float, float]] = {}
        marks = {id: [row for row in rows if row.other is None] for id, rows in last.items()}
        for rater, opinion in opinions(asked, marks).items():
            for one, other in itertools.combinations(sorted(opinion), 2):
                if asked[one] == asked[other]:
                    own = (row.created_at for row in said if row.rater == rater and asked[row.sample] == asked[one])
                    told[rater, frozenset((one, other))] = (opinion[one] - opinion[other], max(own))
        for row in said:
            if row.other is not None:
                sign = 1 if row.sample < row.other else -1
                told[row.rater, frozenset((row.sample, row.other))] = (sign * (row.value or 0.0) if row.kind != BOTH_BAD else 0.0, row.created_at)
        model = f"{store.name}, round {number}"
        for (rater, pair), (better, at) in told.items():
            first, second = (samples[id] for id in sorted(pair))
            found.append(
                _pair(first, second, better)
                | dict(created_at=at, user_id=naming(rater), ranking_id=len(found), model_0=model, model_1=model, round=number)
            )
    of_prompt = Counter(row["caption"] for row in found)
    return [row | dict(num_example_per_prompt=of_prompt[row["caption"]]) for row in found]


def board_rows(store: RunStore, rounds: Iterable[int]) -> list[Row]:
    """Every image that people were asked about in rounds that somebody rated, in the order of the board: what the events are about."""
    return [
        dict(file_name=picture_name(sample), prompt=sample.prompt, round=number, seed=sample.seed)
        for number in rounds
        if store.ratings(number)
        for sample in store.board(number)
    ]


def _pair(one: SampleRow, other: SampleRow, better: float) -> Row:
    """One comparison of two images of a prompt; ``better`` is above 0 where the first one won, and 0 for a tie."""
    label = 0.5 if better == 0 else float(better > 0)
    uids = [Path(sample.image).stem for sample in (one, other)]
    return dict(
        caption=one.prompt, jpg_0=picture_name(one), jpg_1=picture_name(other), label_0=label, label_1=1 - label, has_label=True,
        are_different=uids[0] != uids[1], image_0_uid=uids[0], image_1_uid=uids[1], best_image_uid="tie" if better == 0 else uids[int(better < 0)],
    )  # fmt: skip


def image_rows(store: RunStore, rounds: Iterable[int]) -> list[Row]:
    """Every image with its prompt, what the round's reward said of it, and people's mean rating from -1 to 1 (None where nobody rated)."""
    found = []
    for number in rounds:
        scored, said = store.scores(number, store.reward_at(number)), scores(store.asked(number), store.last_words(number), store.weights)
        for sample in store.samples(number):
            score, rated = scored.get(sample.id), said.get(sample.id, Score(None))
            found.append(
                dict(
                    file_name=picture_name(sample), prompt=sample.prompt, score=score.value if score else None, rating=rated.value,
                    raters=rated.explanation.get("raters", 0), reward=public_reward(store.reward_at(number)), round=number, seed=sample.seed,
                )
            )  # fmt: skip
    return found


def picture_name(sample: SampleRow) -> str:
    """Where an image lies in what is taken away."""
    return f"images/{sample.round:04d}-{sample.position:03d}.png"


def public_reward(reward: str) -> str:
    """A reward without the folders of a Python file, which say where it lay on somebody's machine; of a blend with as few of them as tell its parts
    apart."""
    weights = rewards.parts(reward)
    if not any(map(rewards.FUNCTION.fullmatch, weights)):
        return reward
    names = public_names(weights)
    return rewards.spell({names[name]: weight for name, weight in weights.items()})


def public_names(names: Iterable[str]) -> dict[str, str]:
    """What several rewards are called beside one another: functions by the last folders that tell them apart."""
    found = {name: public_reward(name) if name.startswith(rewards.BLEND) else name for name in names}
    files = {name: Path(name).parts for name in found if rewards.FUNCTION.fullmatch(name)}
    for name, parts in files.items():
        tails = (parts[-count:] for count in range(1, len(parts)))
        alone = (tail for tail in tails if sum(other[-len(tail) :] == tail for other in files.values()) == 1)
        found[name] = str(Path(*next(alone, parts)))
    return found


def public_metric(name: str) -> str:
    """The same for a reward's name within a metric's."""
    prefix = next((prefix for prefix in ("watched_", "moved_", "mean_of_") if name.startswith(prefix)), "")
    reward = name.removeprefix(prefix)
    return prefix + (Path(reward).name if rewards.FUNCTION.fullmatch(reward) else reward)


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
