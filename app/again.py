"""Images of an earlier board that are shown once more, unmarked, and what is said of them then. Pure reads of a run's store.

What is said of an image after its round was closed changes no score (:meth:`ddpo.store.RunStore.close_round`). Unless it is only late
(:func:`ddpo.records.is_late`), it tells beside what the same rater said before how far they agree with themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from random import Random

from ddpo.records import RatingRow, SampleRow, is_once_more, latest
from ddpo.store import RunStore

BOARDS_BETWEEN = 3
"""So many boards back lies the one whose images are shown once more: nobody has it in mind any more, and each comes again only once."""


def repeated(store: RunStore, number: int, rater: str, of_each: int) -> list[SampleRow]:
    """The images of an earlier board that a rater is shown once more on a round's board, prompt by prompt.

    Args:
        of_each: how many images of each prompt the board has: prompts with as many are repeated, so that none stands out.
    """
    config = store.config
    if not config.repeats:
        return []
    before = (row for row in reversed(store.rounds()) if row.number < number and row.closed_at is not None and store.board(row.number))
    row = next(islice(before, BOARDS_BETWEEN - 1, None), None)
    if row is None:
        return []
    known = {id for each in store.ratings(row.number, row.closed_rating) if each.rater == rater for id in (each.sample, each.other)}
    prompts: dict[str, list[SampleRow]] = {}
    for sample in store.board(row.number):
        prompts.setdefault(sample.prompt, []).append(sample)
    whole = [images for images in prompts.values() if len(images) == of_each and sum(image.id in known for image in images) > 1]
    chosen = Random(f"{config.seed} {number} {rater} again").sample(whole, min(config.repeats, len(whole)))
    return [image for images in chosen for image in images]


def said_again(store: RunStore, rounds: Iterable[int]) -> dict[int, list[RatingRow]]:
    """What was said of images of some rounds when they were shown once more, after these were closed, by sample id: each rater's latest."""
    found: dict[int, list[RatingRow]] = {}
    wanted = set(rounds)
    for row in store.rounds():
        if row.number in wanted:
            found |= latest(each for each in store.ratings(row.number) if is_once_more(each, row))
    return found
