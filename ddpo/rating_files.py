"""Files of ratings, and of the images that were rated: what was taken away of a run, or anybody's. Imports no torch.

Files are told apart by their columns: the event log and the ImageFolder of :mod:`ddpo.dataset`, and pairs in Pick-a-Pic's columns, each as JSON
lines, as CSV or as parquet, in a folder or a zip, with the images that they name beside them. They may be of people who mean no good: names that lead
elsewhere, pictures that are none and numbers that are beyond all scales are refused, with the line that holds them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from ddpo.config import MAX_PROMPT_CHARACTERS, ConfigError
from ddpo.records import RatingRow, latest
from rewards.base import LARGEST_PIXELS
from rewards.human import opinions, valid
from rewards.pairs import Verdict, strengths

MOST_ROWS = 20_000
"""So many lines a file may have: a model of one person's taste is no better for more."""
LARGEST_FILE = 256 * 2**20
"""So many bytes are read of a file at most, unpacked."""
MOST_COMPARED = 1_000
"""So many images of one board are compared in pairs by one rater at most: their strengths are found together, in memory and time that grow with the
square and the cube of their number."""
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
    taken: dict[str, str] = field(default_factory=dict)
    """These names by those that the images have in a folder or a zip."""

    def take(self, read: Read, where: str) -> str:
        """Take an image; returns its name in the folder of ratings.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            data = read()
            with Image.open(io.BytesIO(data), formats=tuple(SUFFIXES)) as image:
                (width, height), suffix = image.size, SUFFIXES.get(str(image.format), ".jpg")  # a JPEG with more pictures in it has another name
                if width * height > LARGEST_PIXELS:
                    raise ValueError(f"it has {width} × {height} pixels, and at most {LARGEST_PIXELS:,} are read")
                image.load()
        except UnidentifiedImageError as error:
            raise ConfigError(f"{where}: the image cannot be read. PNG, JPEG and WebP are read.") from error
        except Exception as error:  # whatever the library raises at a damaged file
            raise ConfigError(f"{where}: the image cannot be read ({short(error)}).") from error
        self.sizes.add((width, height))
        name = f"images/{hash_of(data)}{suffix}"
        self.files[name] = read
        return name

    def take_file(self, files: Files, name: str, where: str) -> str:
        """Take an image of a folder or a zip by its name there; one that was taken before is not read again."""
        if name not in self.taken:
            self.taken[name] = self.take(lambda: files.read(name), where)
        return self.taken[name]

    def add(self, rater: str, prompt: str, opinion: float, image: str) -> None:
        self.rated.append(Rated(self.name, rater, prompt, opinion, image))


# --- files ----------------------------------------------------------------------------------------------------------------------


class Files:
    """The files of a folder or of a zip. Names that lead out of it are refused."""

    def __init__(self, path: Path) -> None:
        """``path`` is a folder, a zip, or a file, beside which the others are."""
        self.path, self.main, self.prefix = path, "", ""
        self._archive: zipfile.ZipFile | None = None  # open as long as this is in use
        if path.is_dir():
            self.names = {file.name for file in path.iterdir()}
        elif zipfile.is_zipfile(path):
            self._archive = zipfile.ZipFile(path)
            inside = self._archive.namelist()
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
        if self._archive is None:
            return reader_in(self.path, name)()
        _refuse_outside(name)
        try:
            about = self._archive.getinfo(self.prefix + name)
        except KeyError as error:
            raise FileNotFoundError(f"the zip has no {name}") from error
        if about.file_size > LARGEST_FILE:
            raise OSError(f"it has more than {LARGEST_FILE >> 20} MiB")
        try:
            return self._archive.read(about)
        except (RuntimeError, NotImplementedError, zlib.error) as error:  # it is encrypted, or packed in a way that is not known, or damaged
            raise OSError(short(error)) from error


def _refuse_outside(name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise OSError("its name leads out of the folder")


def reader_in(folder: Path, name: str) -> Read:
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


def of_files(path: Path) -> Source:
    """What a folder, a zip or a file gives."""
    files = Files(path)
    name = path.name if path.is_dir() or path.suffix == ".zip" else path.stem
    source = Source(name.removesuffix(".zip"), str(path.resolve()))
    rows = list(itertools.islice(_rows(files, files.main), MOST_ROWS + 1))
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


def _rows(files: Files, name: str) -> Iterator[tuple[str, Row]]:
    """A file's rows, each with where it is.

    Raises:
        ConfigError: a line is not what it should be.
    """
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
            raise ConfigError(f"{name}, line {table.line_num}: this is no CSV ({short(error)}).") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{name}, line {number}: this is no JSON ({short(error)}).") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{name}, line {number}: this is no JSON object, but {short(line)}.")
            yield f"{name}, line {number}", row


def _parquet(name: str, data: bytes) -> Iterator[tuple[str, Row]]:
    import pandas

    try:
        table = pandas.read_parquet(io.BytesIO(data))
    except ImportError as error:
        raise ConfigError(f"{name} is a parquet file, which needs pyarrow: pip install pyarrow. Or give JSON lines.") from error
    except Exception as error:  # whatever the library raises at a damaged file
        raise ConfigError(f"{name} cannot be read as parquet ({short(error)}).") from error
    for number, row in enumerate(table.to_dict("records"), 1):
        yield f"{name}, row {number}", {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _events(source: Source, files: Files, rows: Sequence[tuple[str, Row]]) -> None:
    """The event log: what counts of it, folded as the run folded it. The board's images, rated or not, are in metadata.jsonl beside it."""
    boards: dict[int, dict[str, str]] = {}
    if "metadata.jsonl" in files.names and files.main != "metadata.jsonl":
        board_rows = list(itertools.islice(_rows(files, "metadata.jsonl"), MOST_ROWS))
        ours = bool(board_rows) and {"round", "file_name", "prompt"} <= set(board_rows[0][1])  # another file may lie beside a single one
        for where, row in board_rows if ours else []:
            boards.setdefault(_whole(row, "round", where), {})[_text(row, "file_name", where)] = _prompt(row, "prompt", where)
    for where, row in rows:
        board = boards.setdefault(_whole(row, "round", where), {})
        for image in filter(None, (_text(row, "image", where), _other(row, where))):
            board.setdefault(image, _prompt(row, "prompt", where))
    ids = {at: {name: id for id, name in enumerate(board)} for at, board in boards.items()}
    said: dict[int, list[RatingRow]] = {}
    places: dict[tuple[int, str], str] = {}
    compared: dict[tuple[int, str], set[str]] = {}
    for number, (where, row) in enumerate(rows):
        if not _truth(row, "counts", where):
            continue
        at, kind, value = _whole(row, "round", where), _text(row, "kind", where), _number(row, "value", where)
        image, other, rater = _text(row, "image", where), _other(row, where), _rater(row, "rater")
        if not valid(kind, value, other is not None):
            raise ConfigError(f"{where}: kind {kind!r} with value {value} is no rating that can be made{' of a pair' if other else ''}.")
        if other:
            together = compared.setdefault((at, rater), set())
            together |= {image, other}
            _refuse_many(len(together), "rater", where)
        pair = ids[at][other] if other else None
        said.setdefault(at, []).append(RatingRow(number, where, ids[at][image], rater, kind, value, None, None, 0.0, pair, at))
        for name in filter(None, (image, other)):
            places.setdefault((at, name), where)
    for at, events in said.items():
        names = list(boards[at])
        asked = dict(enumerate(boards[at].values()))
        for rater, told in opinions(asked, latest(events)).items():
            for id, opinion in told.items():
                place = places.get((at, names[id]), f"Round {at}, {names[id]}")
                source.add(rater, asked[id], opinion, source.take_file(files, names[id], place))


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
        first, second = (ids.setdefault(_image(source, files, row, side, where), len(ids)) for side in ("jpg_0", "jpg_1"))
        _refuse_many(len(ids), "user_id", where)
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
        source.add(_rater(row, "rater"), prompt, rating, source.take_file(files, _text(row, "file_name", where), where))


def _image(source: Source, files: Files, row: Row, side: str, where: str) -> str:
    """Take an image that a row names, or holds."""
    value = row.get(side)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    if isinstance(value, bytes):
        data = value
        return source.take(lambda: data, where)
    return source.take_file(files, _text(row, side, where), where)


def _refuse_many(images: int, column: str, where: str) -> None:
    """Refuse more images than strengths can be found of together."""
    if images > MOST_COMPARED:
        raise ConfigError(
            f"{where}: one rater compares more than {MOST_COMPARED:,} images with one another here, which is too many. Say whose each pair is in a "
            f"column {column}, or give a part of the file."
        )


def _other(row: Row, where: str) -> str | None:
    """The second image of a pair; None where there is none."""
    return _text(row, "other", where) if row.get("other") else None


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {name} is {short(value)}; it must be a text.")
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
        raise ConfigError(f"{where}: {name} is {short(value)}; it must be a number from -{LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}, or nothing.")
    return number


def _whole(row: Row, name: str, where: str) -> int:
    number = _number(row, name, where)
    if number is None or not number.is_integer():
        raise ConfigError(f"{where}: {name} is {short(row.get(name))}; it must be a whole number.")
    return int(number)


def _truth(row: Row, name: str, where: str) -> bool:
    value = str(row.get(name)).lower()
    if value not in ("true", "false", "1", "0", "1.0", "0.0"):
        raise ConfigError(f"{where}: {name} is {short(row.get(name))}; it must be true or false.")
    return value in ("true", "1", "1.0")


def short(value: object) -> str:
    """What was found, short enough for a message."""
    text = str(value) if isinstance(value, (BaseException, str)) else repr(value)
    return " ".join(text.split())[:120] or type(value).__name__


def hash_of(data: bytes) -> str:
    """What an image is called by."""
    return hashlib.sha256(data).hexdigest()[:32]
