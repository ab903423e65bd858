"""Ratings from elsewhere that a run's model of taste learns from as well: of other runs, or of files that were taken away. Imports no torch.

What is chosen is read and checked before the run is made, and copied into its folder, so that the run stays whole whatever becomes of the rest::

    ratings/
      sources.json        what was copied: names, places, models, sizes and counts
      rated.jsonl         what a rater made of an image, one a line: source, rater, prompt, opinion, image
      images/<sha>.png    the images, byte for byte

An opinion is a number, from a run one from -1 to 1 (:func:`rewards.human.opinions`), from a file one on its own scale, which is all that a model of
taste asks of a rating, in whatever mode it was said. Nothing of this is a rating of the run: the table of ratings, its counters and its agreement
know nothing of it.

What files look like is :mod:`ddpo.rating_files`'s.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ddpo.config import ConfigError, RunConfig, is_a
from ddpo.files import sync_tree, write_file
from ddpo.markup import words_for
from ddpo.rating_files import IMAGE, LARGEST_NUMBER, Rated, Read, Row, Source, hash_of, of_files, reader_in, short
from ddpo.records import RoundRow
from ddpo.store import RATINGS, RunStore, StoreError
from rewards.human import opinions


def create(folder: Path, config: RunConfig, parent: tuple[RunStore, int] | None = None) -> RunStore:
    """Make a run's folder (:meth:`RunStore.create`), with the ratings from elsewhere that its settings name.

    Raises:
        ConfigError: they cannot be used, or another setting cannot.
        StoreError: the run cannot be made.
    """
    sources = gather(config.ratings_sources)
    if not (folder / "config.json").exists():
        _refuse_taken(folder)
    written: list[Path] = []

    def fill(made: Path) -> None:
        keep(made, sources)
        written.append(made / RATINGS)

    try:
        return RunStore.create(folder, config, parent, fill)
    except (ConfigError, StoreError):
        if written and sources and not (folder / "config.json").exists():
            shutil.rmtree(written[0], ignore_errors=True)
        raise


def gather(named: Iterable[str]) -> list[Source]:
    """What some runs' folders, and folders, zips or files that were taken away, give: each of it once.

    Raises:
        ConfigError: there is no such thing, or it is damaged; the message says where, and what to do.
    """
    found: dict[str, Source] = {}
    for name in named:
        for source in _sources(_place(name)):
            known = found.setdefault(source.place, source)
            if known is not source:
                told = {(each.rater, each.prompt, each.image) for each in known.rated}
                known.rated += [each for each in source.rated if (each.rater, each.prompt, each.image) not in told]
                known.sizes |= source.sizes
                known.files |= source.files
    names: set[str] = set()
    for source in found.values():
        name, number = source.name, 2
        while name in names:
            name, number = f"{source.name}-{number}", number + 1
        source.name, source.rated = name, [replace(each, source=name) for each in source.rated]
        names.add(name)
    return list(found.values())


def _place(name: str) -> Path:
    path = Path(name)
    with suppress(RuntimeError):  # a ~user that does not exist
        path = path.expanduser()
    if not is_a(path.exists):
        raise ConfigError(f"ratings_from names {name!r}, which does not exist. Name a run, or a folder or file of ratings that was taken away.")
    if not path.is_dir() and not path.is_file():
        raise ConfigError(f"ratings_from names {name!r}, which is neither a file nor a folder. Name a run, or what was taken away of one.")
    return path


def _sources(path: Path) -> list[Source]:
    try:
        if (path / "config.json").is_file() and (path / "run.db").is_file():
            return _of_run(path)
        return [of_files(path)]
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} cannot be read: {short(error)}.") from error


# --- runs -----------------------------------------------------------------------------------------------------------------------


def _of_run(path: Path) -> list[Source]:
    """A run's own ratings, and those that it has from elsewhere. Raters that were left out stay out."""
    try:
        store = RunStore(path)
    except (StoreError, sqlite3.Error) as error:
        raise ConfigError(str(error)) from error
    try:
        source = Source(store.name, str(path.resolve()), Path(store.config.model).name)
        for row in filter(_settled, store.rounds()):
            samples = {sample.id: sample for sample in store.samples(row.number)}
            names: dict[int, str] = {}
            for rater, told in opinions(store.asked(row.number), store.last_words(row.number)).items():
                for id, opinion in told.items():
                    if id not in names:
                        where = f"Run {store.name}, round {row.number}"
                        names[id] = source.take(reader_in(path, samples[id].image), where)
                    source.add(rater, samples[id].prompt, opinion, names[id])
    finally:
        store.close()
    found = [source] if source.rated else []
    found += kept(path)
    if not found:
        raise ConfigError(
            f"Nobody has rated an image of run {path.name}, or what they said is not applied yet, so there is nothing to learn from. "
            "Choose another run."
        )
    return found


def _settled(row: RoundRow) -> bool:
    """Whether what was said of a round is people's last word: its board is closed, or was learned from."""
    return row.closed_rating is not None or row.scored_at is not None


def has_ratings(store: RunStore) -> bool:
    """Whether a run has ratings that another one can learn from: its own, or from elsewhere."""
    settled = filter(_settled, store.rounds())
    return bool(sources_in(store.folder)) or any(opinions(store.asked(row.number), store.last_words(row.number)) for row in settled)


# --- what a run keeps -----------------------------------------------------------------------------------------------------------


def keep(folder: Path, sources: Sequence[Source]) -> None:
    """Copy it into a run's folder, durably and whole or not at all.

    Raises:
        StoreError: ratings are there already, which are never replaced, or an image that was there is gone.
        OSError: the disk refuses.
    """
    _refuse_taken(folder)
    if not sources:
        return
    place, partial = folder / RATINGS, folder / f".{RATINGS}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that could not be made
    try:
        (partial / "images").mkdir(parents=True)
        for source in sources:
            for name, read in source.files.items():
                if not (partial / name).exists():
                    write_file(partial / name, _again(source, name, read))
        rated = [each for source in sources for each in source.rated]
        write_file(partial / "rated.jsonl", "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in rated).encode())
        write_file(partial / "sources.json", json.dumps([_told(source) for source in sources], ensure_ascii=False, indent=1).encode())
        sync_tree(partial)
        if place.exists():  # an empty folder
            place.rmdir()
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _refuse_taken(folder: Path) -> None:
    """Refuse a folder that holds ratings already: they may be all that is left of them."""
    place = folder / RATINGS
    if place.is_symlink() or (place.exists() and (not place.is_dir() or any(place.iterdir()))):
        raise StoreError(f"{place} exists, and a new run would keep its own ratings there. Make the run in another folder, or move {RATINGS} away.")


def _again(source: Source, name: str, read: Read) -> bytes:
    """An image's bytes, once more.

    Raises:
        StoreError: it is gone, or another one.
    """
    try:
        data = read()
    except (OSError, zipfile.BadZipFile) as error:
        raise StoreError(f"An image of {source.name} is gone since it was read ({short(error)}). Start again once it is back.") from error
    if hash_of(data) != Path(name).stem:
        raise StoreError(f"An image of {source.name} has changed since it was read. Start again once nothing writes there.")
    return data


def _told(source: Source) -> Row:
    return dict(
        name=source.name, place=source.place, model=source.model, sizes=sorted(source.sizes), ratings=len(source.rated), images=len(source.files),
        raters=len({each.rater for each in source.rated}),
    )  # fmt: skip


def rated_in(folder: Path) -> list[Rated]:
    """What a run has from elsewhere.

    Raises:
        StoreError: it is damaged.
    """
    file = folder / RATINGS / "rated.jsonl"
    try:
        return [_checked(json.loads(line)) for line in file.read_text(encoding="utf-8").split("\n") if line] if file.is_file() else []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(file, error) from error


def _checked(row: Any) -> Rated:
    """A line of what a run keeps, which may be somebody else's run.

    Raises:
        TypeError, ValueError: it is none.
    """
    each = Rated(**row)
    "".join((each.source, each.rater, each.prompt)).encode()  # texts that can be written again
    if not IMAGE.fullmatch(each.image):
        raise ValueError(f"{short(each.image)} is no image of it")
    if isinstance(each.opinion, bool) or not abs(each.opinion) <= LARGEST_NUMBER:
        raise ValueError(f"{short(each.opinion)} is no opinion")
    return each


def sources_in(folder: Path) -> list[Row]:
    """What was copied into a run: names, models, sizes and counts.

    Raises:
        StoreError: it is damaged.
    """
    file = folder / RATINGS / "sources.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        found = [
            dict(
                name=str(each["name"]), place=str(each.get("place", "")), model=str(each["model"]),
                sizes=[(int(width), int(height)) for width, height in each["sizes"]],
                **{name: int(each[name]) for name in ("ratings", "images", "raters")},
            )
            for each in told
        ]  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(file, error) from error
    return found


def _damaged(file: Path, error: Exception) -> StoreError:
    return StoreError(f"{file} is damaged ({short(error)}). Start a new run with these ratings.")


def kept(folder: Path) -> list[Source]:
    """What a run has from elsewhere, to give on. Its images are looked at as those of any other source: the run may be somebody else's.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        told, rated = sources_in(folder), rated_in(folder)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    found = []
    for each in told:
        source = Source(each["name"], each["place"] or str((folder / RATINGS / each["name"]).resolve()), each["model"])
        source.rated = [one for one in rated if one.source == source.name]
        for image in dict.fromkeys(one.image for one in source.rated):
            where = f"Ratings that run {folder.name} has from {source.name}, {image}"
            if source.take(reader_in(folder / RATINGS, image), where) != image:
                raise ConfigError(f"{where}: the image is another one than was rated.")
        found.append(source)
    return found


def words(config: RunConfig, folder: Path) -> str:
    """What a run has from elsewhere, in plain words; nothing where it has none."""
    told = []
    for each in sources_in(folder):
        of = f" of {each['model']}" if each["model"] else ""
        sizes = " and ".join(f"{width} × {height}" for width, height in each["sizes"][:3])
        other = ", another model" if each["model"] and each["model"] != Path(config.model).name else ""
        images = f"{each['ratings']:,} ratings of {each['images']:,} images"
        told.append(f"{images} by {words_for(each['raters'], 'person', 'people')} from {each['name']} ({sizes}{of}{other})")
    if not told:
        return ""
    return (
        f"The model of your taste learns from {'; '.join(told)} as well. They are copied into this run, what is seen in their images is measured "
        "anew, every rater keeps a scale of their own, and none counts as a rating of this run."
    )
