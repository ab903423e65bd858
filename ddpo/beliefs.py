"""What a run's model of taste believes, small enough to look at: written by the worker when it refits, read by the page and the report; and whether
that is enough to lead by.

``taste.json`` in the run's folder holds how far the model can be trusted, the images that it takes for the most and the least liked and those of
which it is least sure, each with the rated images that look most like it. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ddpo.config import RunConfig
from ddpo.files import write_file
from ddpo.rating_files import IMAGE, Rated
from ddpo.records import SampleRow
from ddpo.store import RunStore
from rewards.pairs import CHANCE

if TYPE_CHECKING:
    from rewards.preference import Looks, Taste

FILE = "taste.json"
LISTED = 6
"""How many images are shown as most liked, as least liked, and as least sure."""
NEAREST = 4
"""How many rated images that look alike are named for each."""
LEADS_FROM = 0.52
"""How often the better one of two is picked, at least, where guesses lead."""
WIDE = 1.28
"""So many standard deviations to both sides of a guess lies the mean of what would be said, eight times of ten."""

RECENT = 6
"""A board that was made ahead is told what was known so many rounds before it, at most."""

LISTS = ("liked", "disliked", "unsure")
"""The lists of pictures."""
TRUST = ("known", "ratings", "pairs", "earlier", "accuracy", "least", "more")
"""The measures of trust."""
Found = dict[str, Any]


def leads(store: RunStore, config: RunConfig, number: int) -> bool:
    """Whether a round is learned from guesses alone: where they may lead, and were likely to pick the better one of two more often than not when they
    were made. That need not be sure: guesses, which know all ratings, are closer to most tastes than a round's own thumbs from the first board on,
    and twice as close from the second (``benchmarks/guesses.py``). It ends where many ratings show that it is not so."""
    likely = store.metric(number, "preference_likely")
    if likely is None:  # a round of an earlier version, which wanted to be sure
        return config.preference == "lead" and (store.metric(number, "preference_least") or 0.0) > CHANCE
    return config.preference == "lead" and likely > LEADS_FROM


def asks(store: RunStore, config: RunConfig, number: int) -> bool:
    """Whether people are asked about a round: every so many, and whenever the model of their taste did not lead in the round before; or had not when
    the round's images were made, and its board was shown."""
    return (number - 1) % config.board_every == 0 or not leads(store, config, number - 1) or bool(store.board(number))


def believe(taste: Taste, pool: Sequence[SampleRow], seen: Looks, rated: Sequence[tuple[SampleRow, float]], earlier: Sequence[Rated]) -> Found:
    """What the model makes of a pool of images.

    Args:
        taste: fitted to ``rated``, then ``earlier``.
        pool: the images that it is asked about, with what is seen in them.
    """
    mean, std = taste.expect(seen, [row.prompt for row in pool])
    said = {row.id: value for row, value in rated}
    order, listed = mean.argsort(kind="stable").tolist(), min(LISTED, len(pool) // 2)
    chosen = dict(liked=order[::-1][:listed], disliked=order[:listed], unsure=(-std).argsort(kind="stable").tolist()[:LISTED])
    own = {row.id: i for i, (row, _) in enumerate(rated)}
    images = {}
    for i in sorted({i for found in chosen.values() for i in found}):
        row = pool[i]
        near = taste.nearest({kind: values[i : i + 1] for kind, values in seen.items()}, 4 * NEAREST, but=own.get(row.id))
        alike = {each["image"]: each for each in (_neighbour(at, share, rated, earlier) for at, share in reversed(near))}
        images[str(row.id)] = dict(
            prompt=row.prompt, round=row.round, image=row.image, mean=round(float(mean[i]), 3), wide=round(WIDE * float(std[i]), 3),
            said=said.get(row.id), near=sorted(alike.values(), key=lambda each: -each["alike"])[:NEAREST],
        )  # fmt: skip
    return dict(images=images) | {name: [pool[i].id for i in found] for name, found in chosen.items()}


def _neighbour(at: int, alike: float, rated: Sequence[tuple[SampleRow, float]], earlier: Sequence[Rated]) -> Found:
    """A rated image: the run's own, or one from elsewhere."""
    if at < len(rated):
        row, value = rated[at]
        return dict(id=row.id, image=row.image, prompt=row.prompt, said=round(value, 3), alike=round(alike, 3), source="")
    other = earlier[at - len(rated)]
    return dict(id=None, image=other.image, prompt=other.prompt, said=round(other.opinion, 3), alike=round(alike, 3), source=other.source)


def write(store: RunStore, number: int, metrics: Mapping[str, float], found: Mapping[str, Any]) -> None:
    """Put it into the run's folder, with the measures of trust of that round."""
    told = dict(round=number, **{name.removeprefix("preference_"): value for name, value in metrics.items()}, **found)
    write_file(store.folder / FILE, json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"))


def read(store: RunStore) -> Found | None:
    """What was written last; None where nothing was, or it cannot be read. The run may be somebody else's: pictures are those that the run itself
    knows by these numbers, and those that it has from elsewhere."""
    try:
        file = store.folder / FILE
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return None if found is None else _checked(store, found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _checked(store: RunStore, found: Any) -> Found:
    """What was written, with everything that is shown of it, and nothing else.

    Raises:
        TypeError, ValueError, KeyError, AttributeError, OverflowError: it is damaged.
    """
    images = {str(int(id)): _picture(store, int(id), each) for id, each in found["images"].items()}
    lists = {name: [int(id) for id in found[name] if str(int(id)) in images] for name in LISTS}
    trusted = {name: _finite(found[name]) for name in TRUST if name in found}
    if trusted.get("pairs") and not {"accuracy", "least"} <= set(trusted):
        raise ValueError("it does not say how far it can be trusted")
    return dict(round=int(found["round"]), images=images) | lists | trusted


def _picture(store: RunStore, id: int, each: Mapping[str, Any]) -> Found:
    row = store.sample(id)
    if row is None:
        raise ValueError(f"the run has no picture {id}")
    said = None if each["said"] is None else _finite(each["said"])
    return dict(
        prompt=row.prompt, round=row.round, image=row.image, mean=_finite(each["mean"]), wide=_finite(each["wide"]), said=said,
        near=[_near(store, near) for near in each["near"]],
    )  # fmt: skip


def _near(store: RunStore, each: Mapping[str, Any]) -> Found:
    told = dict(said=_finite(each["said"]), alike=_finite(each["alike"]), source=str(each["source"]))
    if each["id"] is not None:
        row = store.sample(int(each["id"]))
        if row is None:
            raise ValueError(f"the run has no picture {each['id']}")
        return dict(id=row.id, image=row.image, prompt=row.prompt) | told
    if not IMAGE.fullmatch(each["image"]):
        raise ValueError(f"{each['image']} is no picture from elsewhere")
    return dict(id=None, image=each["image"], prompt=str(each["prompt"])) | told


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("it holds no number")
    return number


def in_short(store: RunStore, number: int) -> str:
    """What the model of taste has come to before a round, for those who rate it; nothing where there is none, or it proves nothing yet."""
    for at in range(number - 1, max(0, number - 1 - RECENT), -1):
        if (accuracy := store.metric(at, "preference_accuracy")) is None:
            continue
        if (store.metric(at, "preference_least") or 0.0) <= CHANCE:
            return ""
        who, whose = ("you", "your") if store.rating_counts().raters < 2 else ("its raters", "their")
        picked = f"Of two images it picks the one that {who} like better in {100 * accuracy:.0f} of 100 cases."
        more = store.metric(at, "preference_more")
        if more is None:
            return picked
        return f"{picked} It knows half of {whose} taste{f' after about {int(more):,} more ratings' if more >= 1 else ''}."
    return ""


def trust(told: Mapping[str, Any], who: str = "you") -> str:
    """How far the model can be trusted, in plain words. ``who`` are those who rate: you, or the raters."""
    pairs, own, earlier = int(told.get("pairs", 0)), int(told.get("ratings", 0)), int(told.get("earlier", 0))
    whose = "your" if who == "you" else "their"
    based = f"From {own:,} rated {'image' if own == 1 else 'images'} of this run" + (f" and {earlier:,} ratings from elsewhere" if earlier else "")
    if not pairs:
        return f"{based}: no two images of one prompt are rated differently yet, so it cannot be tested."
    share = f"in {100 * told['accuracy']:.0f} of 100 cases without having seen {whose} answer"
    picked = f"Of two images of a prompt it picks the one that {who} like better {share}"
    if told["least"] <= 0.5:
        return f"{based}. {picked}; by chance it would be 50. Few ratings prove little: rate on."
    missing = told.get("more")
    if missing is None:
        more = ""
    elif missing < 1:
        more = f" It knows more than half of {whose} taste."
    else:
        more = f" Rate about {int(missing):,} more, and it knows half of {whose} taste."
    return f"{based}. {picked}; by chance it would be 50.{more}"
