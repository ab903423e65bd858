"""Ratings from elsewhere that a run's model of taste learns from as well: of other runs, or of files that were taken away. Imports no torch.

What is chosen is read and checked before the run is made, and copied into its folder, so that the run stays whole whatever becomes of the rest::

    ratings/
      sources.json        what was copied: names, places, models, sizes and counts
      rated.jsonl         what a rater made of an image, one a line: source, rater, prompt, opinion, image
      images/<sha>.png    the images, byte for byte

An opinion is a number, from a run one from -1 to 1 (:func:`rewards.human.opinions`), from a file one on its own scale, which is all that a model of
taste asks of a rating, in whatever mode it was said. Nothing of this is a rating of the run: the table of ratings, its counters and its agreement
know nothing of it.

Files are told apart by their columns: the event log and the ImageFolder of :mod:`ddpo.dataset`, and pairs in Pick-a-Pic's columns, each as JSON
lines, as CSV or as parquet, in a folder or a zip, with the images that they name beside them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import re
import shutil
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ddpo.config import MAX_PROMPT_CHARACTERS, ConfigError, RunConfig, is_a
from ddpo.dataset import counting
from ddpo.markup import words_for
from ddpo.store import RATINGS, RatingRow, RoundRow, RunStore, StoreError, latest, sync_tree, write_file
from rewards.human import opinions, valid
from rewards.pairs import Verdict, strengths

MOST_ROWS = 20_000
"""So many lines a file may have: a model of one person's taste is no better for more."""
LARGEST_FILE = 256 * 2**20
"""So many bytes are read of a file at most, unpacked."""
LARGEST_NUMBER = 1e9
"""No opinion is larger, on whatever scale."""
IMAGE = re.compile(r"images/[0-9a-f]{32}\.(png|jpg|webp)")
"""What an image is called in the folder of ratings: by its hash."""
NAMES = (
    "ratings.jsonl", "ratings.csv", "ratings.parquet", "pairs.jsonl", "pairs.csv", "pairs.parquet", "metadata.jsonl", "metadata.csv",
    "metadata.parquet",
)  # fmt: skip
"""Which file of a folder is read: the first of these that is there."""
SUFFIXES = dict(PNG=".png", JPEG=".jpg", WEBP=".webp")
"""The formats of images that are taken, with their files' endings."""
FORMS = {
    "an event log": {"round", "image", "prompt", "rater", "kind", "value", "counts"},
    "pairs": {"caption", "jpg_0", "jpg_1", "label_0", "label_1"},
    "rated images": {"file_name", "rating"},
}
"""What each kind of file is called, and the columns that it has at least."""

Row = dict[str, Any]
Read = Callable[[], bytes]
"""Reads an image's file again."""


@dataclass(frozen=True)
class Rated:
    """What a rater from elsewhere made of an image."""

    source: str
    """The run's name, or the file's."""
    rater: str
    prompt: str
    opinion: float
    """On the source's own scale; from a run, from -1 to 1."""
    image: str
    """The image's file in the folder of ratings."""

    @property
    def who(self) -> str:
        """The rater's name among those of all sources."""
        return f"{self.source}/{self.rater}"


@dataclass
class Source:
    """What one run or file gives."""

    name: str
    place: str = ""
    """Where it was read first, which tells it from others of its name."""
    model: str = ""
    """The model that made the images, where that is known."""
    sizes: set[tuple[int, int]] = field(default_factory=set)
    rated: list[Rated] = field(default_factory=list)
    files: dict[str, Read] = field(default_factory=dict)
    """The images by their names in the folder of ratings."""

    def take(self, read: Read, where: str) -> str:
        """Take an image; returns its name in the folder of ratings.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            data = read()
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                form, size = str(image.format), image.size
        except Exception as error:  # whatever the library raises at a damaged file
            raise ConfigError(f"{where}: the image cannot be read ({_short(error)}).") from error
        if form not in SUFFIXES:
            raise ConfigError(f"{where}: the image is a {form} file. PNG, JPEG and WebP are read.")
        self.sizes.add(size)
        name = f"images/{_hash(data)}{SUFFIXES[form]}"
        self.files[name] = read
        return name

    def add(self, rater: str, prompt: str, opinion: float, image: str) -> None:
        self.rated.append(Rated(self.name, rater, prompt, opinion, image))


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
        ends = ("", *(f"-{n}" for n in range(2, len(found) + 2)))
        source.name = next(name for end in ends if (name := source.name + end) not in names)
        source.rated = [replace(each, source=source.name) for each in source.rated]
        names.add(source.name)
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
        return [_of_files(path)]
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} cannot be read: {_short(error)}.") from error


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
            for rater, told in opinions(store.asked(row.number), counting(store, row.number)).items():
                for id, opinion in told.items():
                    if id not in names:
                        where = f"Run {store.name}, round {row.number}"
                        names[id] = source.take(_reader_in(path, samples[id].image), where)
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
    return bool(sources_in(store.folder)) or any(opinions(store.asked(row.number), counting(store, row.number)) for row in settled)


# --- files ----------------------------------------------------------------------------------------------------------------------


class Files:
    """The files of a folder or of a zip. Names that lead out of it are refused."""

    def __init__(self, path: Path) -> None:
        """``path`` is a folder, a zip, or a file, beside which the others are."""
        self.path, self.main, self.prefix = path, "", ""
        if path.is_dir():
            self.names = {file.name for file in path.iterdir()}
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = archive.namelist()
            main = next((name for wanted in NAMES for name in inside if PurePosixPath(name).name == wanted and name.count("/") < 2), "")
            self.prefix = main.rpartition("/")[0] + "/" if "/" in main else ""
            self.names = {name.removeprefix(self.prefix) for name in inside}
        else:
            self.path, self.main, self.names = path.parent, path.name, {file.name for file in path.parent.iterdir()}
        self.main = self.main or next((name for name in NAMES if name in self.names), "")
        if not self.main:
            raise ConfigError(f"{path} holds no ratings: none of {', '.join(NAMES)}. Give a run, or what Take away makes of one.")

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            OSError: it is not there, is too large, or its name leads elsewhere.
        """
        if self.path.is_dir():
            return _reader_in(self.path, name)()
        _refuse_outside(name)
        with zipfile.ZipFile(self.path) as archive:
            try:
                about = archive.getinfo(self.prefix + name)
            except KeyError as error:
                raise FileNotFoundError(f"the zip has no {name}") from error
            if about.file_size > LARGEST_FILE:
                raise OSError(f"it has more than {LARGEST_FILE >> 20} MiB")
            try:
                return archive.read(about)
            except (RuntimeError, NotImplementedError, zlib.error) as error:  # it is encrypted, or packed in a way that is not known, or damaged
                raise OSError(_short(error)) from error


def _refuse_outside(name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise OSError("its name leads out of the folder")


def _reader_in(folder: Path, name: str) -> Read:
    """Reads a file of a folder; raises OSError where its name leads out of it, it is no regular file (a pipe never ends), or it is too large."""

    def read() -> bytes:
        _refuse_outside(name)
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise OSError("its name leads out of the folder")
        if file.exists() and not file.is_file():
            raise OSError("it is no file")
        if file.stat().st_size > LARGEST_FILE:
            raise OSError(f"it has more than {LARGEST_FILE >> 20} MiB")
        return file.read_bytes()

    return read


def _of_files(path: Path) -> Source:
    """What a folder, a zip or a file gives."""
    files = Files(path)
    name = path.name if path.is_dir() or path.suffix == ".zip" else path.stem
    source = Source(name.removesuffix(".zip"), str(path.resolve()))
    rows = list(itertools.islice(_rows(files), MOST_ROWS + 1))
    if not rows:
        raise ConfigError(f"{files.main} of {path} has no rows.")
    if len(rows) > MOST_ROWS:
        raise ConfigError(f"{files.main} of {path} has more than {MOST_ROWS:,} rows. Give a part of it: a person's ratings are a few hundred.")
    columns = set(rows[0][1])
    kind = next((kind for kind, wanted in FORMS.items() if wanted <= columns), "")
    if not kind:
        wanted = "; ".join(f"{kind} has {', '.join(sorted(names))}" for kind, names in FORMS.items())
        raise ConfigError(f"{files.main} of {path} has the columns {', '.join(sorted(map(str, columns)))}, which is no known form: {wanted}.")
    reader = {"an event log": _events, "pairs": _pairs, "rated images": _images}[kind]
    reader(source, files, rows)
    if not source.rated:
        raise ConfigError(f"{files.main} of {path} has {len(rows):,} rows and no rating among them.")
    return source


def _rows(files: Files) -> Iterator[tuple[str, Row]]:
    """A file's rows, each with where it is.

    Raises:
        ConfigError: a line is not what it should be.
    """
    name = files.main
    data = files.read(name)
    if name.endswith(".parquet"):
        yield from _parquet(name, data)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}, line {data[: error.start].count(10) + 1}: this is no text in UTF-8.") from error
    if name.endswith(".csv"):
        table = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in table:
                if None in row or None in row.values():
                    raise ConfigError(f"{name}, line {table.line_num}: it has another number of columns than the first line.")
                yield f"{name}, line {table.line_num}", {key: value if value != "" else None for key, value in row.items()}
        except csv.Error as error:
            raise ConfigError(f"{name}, line {table.line_num}: this is no CSV ({_short(error)}).") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{name}, line {number}: this is no JSON ({_short(error)}).") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{name}, line {number}: this is no JSON object, but {_short(line)}.")
            yield f"{name}, line {number}", row


def _parquet(name: str, data: bytes) -> Iterator[tuple[str, Row]]:
    import pandas

    try:
        table = pandas.read_parquet(io.BytesIO(data))
    except ImportError as error:
        raise ConfigError(f"{name} is a parquet file, which needs pyarrow: pip install pyarrow. Or give JSON lines.") from error
    except Exception as error:  # whatever the library raises at a damaged file
        raise ConfigError(f"{name} cannot be read as parquet ({_short(error)}).") from error
    for number, row in enumerate(table.to_dict("records"), 1):
        yield f"{name}, row {number}", {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _events(source: Source, files: Files, rows: Sequence[tuple[str, Row]]) -> None:
    """The event log: what counts of it, folded as the run folded it. The board's images, rated or not, are in metadata.jsonl beside it."""
    boards: dict[int, dict[str, str]] = {}
    if "metadata.jsonl" in files.names and files.main != "metadata.jsonl":
        files_of_board = Files(files.path)
        files_of_board.main, files_of_board.prefix = "metadata.jsonl", files.prefix
        board_rows = list(itertools.islice(_rows(files_of_board), MOST_ROWS))
        ours = bool(board_rows) and {"round", "file_name", "prompt"} <= set(board_rows[0][1])  # another file may lie beside a single one
        for where, row in board_rows if ours else []:
            boards.setdefault(_whole(row, "round", where), {})[_text(row, "file_name", where)] = _prompt(row, "prompt", where)
    for where, row in rows:
        board = boards.setdefault(_whole(row, "round", where), {})
        for image in filter(None, (_text(row, "image", where), row.get("other"))):
            board.setdefault(str(image), _prompt(row, "prompt", where))
    said: dict[int, list[RatingRow]] = {}
    places: dict[tuple[int, str], str] = {}
    for number, (where, row) in enumerate(rows):
        if not _truth(row, "counts", where):
            continue
        at, kind, value = _whole(row, "round", where), _text(row, "kind", where), _number(row, "value", where)
        image, other = _text(row, "image", where), row.get("other")
        if not valid(kind, value, other is not None):
            raise ConfigError(f"{where}: kind {kind!r} with value {value} is no rating that can be made{' of a pair' if other else ''}.")
        ids = {name: id for id, name in enumerate(boards[at])}
        pair = ids[str(other)] if other else None
        said.setdefault(at, []).append(RatingRow(number, where, ids[image], _rater(row, "rater"), kind, value, None, None, 0.0, pair, at))
        places |= {(at, name): where for name in (image, str(other)) if name in ids and (at, name) not in places}
    for at, events in said.items():
        names = dict(enumerate(boards[at]))
        asked = {id: boards[at][name] for id, name in names.items()}
        taken: dict[int, str] = {}
        for rater, told in opinions(asked, latest(events)).items():
            for id, opinion in told.items():
                if id not in taken:
                    taken[id] = source.take(_reader(files, names[id]), places.get((at, names[id]), f"Round {at}, {names[id]}"))
                source.add(rater, asked[id], opinion, taken[id])


def _pairs(source: Source, files: Files, rows: Sequence[tuple[str, Row]]) -> None:
    """Preference pairs: of each rater, prompt and round (where there are rounds) strengths by :mod:`rewards.pairs`."""
    told: dict[tuple[str, str, int | None], tuple[list[Verdict], dict[str, int]]] = {}
    for where, row in rows:
        if row.get("has_label") is not None and not _truth(row, "has_label", where):
            continue
        labels = [_number(row, name, where) for name in ("label_0", "label_1")]
        if labels not in ([0, 1], [1, 0], [0.5, 0.5]):
            raise ConfigError(f"{where}: label_0 is {labels[0]} and label_1 is {labels[1]}; one is 1 and the other 0, or both are 0.5 for a tie.")
        key = (_rater(row, "user_id"), _prompt(row, "caption", where), None if row.get("round") is None else _whole(row, "round", where))
        verdicts, ids = told.setdefault(key, ([], {}))
        first, second = (ids.setdefault(source.take(_bytes_of(files, row, side, where), where), len(ids)) for side in ("jpg_0", "jpg_1"))
        if first != second:
            verdicts.append((first, second, float((labels[0] or 0) - (labels[1] or 0))))
    for (rater, prompt, _), (verdicts, ids) in told.items():
        found = strengths(verdicts)
        for name, id in ids.items():
            if id in found:
                source.add(rater, prompt, found[id], name)


def _images(source: Source, files: Files, rows: Sequence[tuple[str, Row]]) -> None:
    """Rated images: a mean over raters, or with a column ``rater`` one line for each of them. Where nobody rated there is nothing to take."""
    for where, row in rows:
        rating = _number(row, "rating", where)
        if rating is None:
            continue
        prompt = _prompt(row, next((name for name in ("prompt", "text", "caption") if name in row), "prompt"), where)
        source.add(_rater(row, "rater"), prompt, rating, source.take(_reader(files, _text(row, "file_name", where)), where))


def _reader(files: Files, name: str) -> Read:
    return lambda: files.read(name)


def _bytes_of(files: Files, row: Row, side: str, where: str) -> Read:
    """An image that a row names, or holds."""
    value = row.get(side)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    if isinstance(value, bytes):
        data = value
        return lambda: data
    return _reader(files, _text(row, side, where))


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {name} is {_short(value)}; it must be a text.")
    return value


def _prompt(row: Row, name: str, where: str) -> str:
    text = _text(row, name, where)
    if len(text) > MAX_PROMPT_CHARACTERS or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{where}: {name} is no prompt: it has {len(text):,} characters, or bytes that are no text.")
    return text


def _rater(row: Row, name: str) -> str:
    """Who said so; "somebody" where that is not told."""
    value = row.get(name)
    text = "" if value is None else str(value)
    return text[:200].encode("utf-8", "replace").decode("utf-8") or "somebody"


def _number(row: Row, name: str, where: str) -> float | None:
    value = row.get(name)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or (number is not None and not abs(number) <= LARGEST_NUMBER):
        raise ConfigError(f"{where}: {name} is {_short(value)}; it must be a number from -{LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}, or nothing.")
    return number


def _whole(row: Row, name: str, where: str) -> int:
    number = _number(row, name, where)
    if number is None or not number.is_integer():
        raise ConfigError(f"{where}: {name} is {_short(row.get(name))}; it must be a whole number.")
    return int(number)


def _truth(row: Row, name: str, where: str) -> bool:
    value = str(row.get(name)).lower()
    if value not in ("true", "false", "1", "0", "1.0", "0.0"):
        raise ConfigError(f"{where}: {name} is {_short(row.get(name))}; it must be true or false.")
    return value in ("true", "1", "1.0")


def _short(value: object) -> str:
    """What was found, short enough for a message."""
    text = str(value) if isinstance(value, (BaseException, str)) else repr(value)
    return " ".join(text.split())[:120] or type(value).__name__


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
        raise StoreError(f"An image of {source.name} is gone since it was read ({_short(error)}). Start again once it is back.") from error
    if _hash(data) != Path(name).stem:
        raise StoreError(f"An image of {source.name} has changed since it was read. Start again once nothing writes there.")
    return data


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


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
        raise ValueError(f"{_short(each.image)} is no image of it")
    if isinstance(each.opinion, bool) or not abs(each.opinion) <= LARGEST_NUMBER:
        raise ValueError(f"{_short(each.opinion)} is no opinion")
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
    return StoreError(f"{file} is damaged ({_short(error)}). Start a new run with these ratings.")


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
            if source.take(_reader_in(folder / RATINGS, image), where) != image:
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
