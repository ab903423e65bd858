"""Ratings from elsewhere: what is read of runs and files, what a run keeps of it, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from app.exports import packed
from app.raters import raters_value
from ddpo.__main__ import changes_from, parser
from ddpo.config import ConfigError, RunConfig, sources_of, sources_text
from ddpo.dataset import raters_of
from ddpo.earlier import create, gather, has_ratings, keep, kept, rated_in, sources_in, words
from ddpo.export import export
from ddpo.rating_files import Source
from ddpo.source import located
from ddpo.store import RATINGS, RunStore, StoreError
from rewards.human import opinions
from tests.toys import ODD_PROMPTS, add_pictures, filled_run, picture

MODES = ("thumbs", "stars", "best", "best-worst", "pairs")


def rated_run(folder: Path, mode: str = "thumbs", prompts: tuple[str, ...] = ("a cat", ODD_PROMPTS[4])) -> RunStore:
    """One round of two prompts, four images each, of which Anna and Ben rated some in a mode; Anna took one word back, and said one too late."""
    store = RunStore.create(folder, RunConfig(prompts=prompts, images_per_round=8, images_per_update=8, rating=mode))
    store.start_round(1)
    add_pictures(store, 1, range(8), [p for p in prompts for _ in range(4)], range(8), [picture(seed) for seed in range(8)])
    store.mark(1, "sampled")
    events: dict[str, list[tuple[str, int, float | None, int | None]]] = {
        "thumbs": [
            ("anna", 1, -1, None),
            ("anna", 1, 1, None),
            ("anna", 2, -1, None),
            ("anna", 6, 1, None),
            ("ben", 1, -1, None),
            ("ben", 2, 1, None),
        ],
        "stars": [("anna", 1, 5, None), ("anna", 2, 2, None), ("ben", 3, 4, None), ("ben", 5, 1, None)],
        "best": [("anna", 1, 2, None), ("anna", 3, 1, None), ("ben", 6, 1, None)],
        "best-worst": [("anna", 1, 1, None), ("anna", 4, -1, None), ("ben", 5, 1, None)],
        "pairs": [("anna", 1, 1, 2), ("anna", 3, -1, 2), ("ben", 5, 0, 6)],
    }
    for at, (rater, sample, value, other) in enumerate(events[mode]):
        store.add_rating(f"secret-{at}", sample, rater, mode, value, other=other)
    store.add_rating("skip", 8, "anna", "skip", None)
    if mode == "pairs":
        store.add_rating("bad", 7, "ben", "bad", None, other=8)
    store.close_round(1)
    store.add_rating("late", 3, "anna", "thumbs", -1)
    return store


def said(store: RunStore) -> set[tuple[str, str, float, str]]:
    """What everybody made of each image of a run: rater, prompt, opinion, and the hash of the image's file."""
    found, naming = set(), raters_of(store)
    for row in store.rounds():
        images = {sample.id: sample for sample in store.samples(row.number)}
        for rater, told in opinions(store.asked(row.number), store.last_words(row.number)).items():
            for id, opinion in told.items():
                data = (store.folder / images[id].image).read_bytes()
                found.add((naming(rater), images[id].prompt, round(opinion, 9), hashlib.sha256(data).hexdigest()))
    return found


def taken(folder: Path, names: Callable[[str], str] = str) -> set[tuple[str, str, float, str]]:
    """The same of what a run has from elsewhere."""
    return {
        (names(each.rater), each.prompt, round(each.opinion, 9), hashlib.sha256((folder / RATINGS / each.image).read_bytes()).hexdigest())
        for each in rated_in(folder)
    }


def new_run(tmp_path: Path, *named: Path, **changes: Any) -> RunStore:
    return create(tmp_path / "new", RunConfig(preference="lead", ratings_from="; ".join(map(str, named)), **changes))


@pytest.mark.parametrize("mode", MODES)
def test_taken_away_and_taken_in_again_ratings_and_images_are_the_same(tmp_path: Path, mode: str) -> None:
    store = rated_run(tmp_path / "old", mode)
    assert len(wanted := said(store)) > 2
    export(store, "ratings", tmp_path / "taken")
    new = new_run(tmp_path, packed(tmp_path / "taken", "ratings"))  # a zip, as the page gives it
    assert taken(new.folder) == wanted
    other = create(tmp_path / "straight", RunConfig(preference="assist", ratings_from=str(store.folder)))
    assert taken(other.folder, raters_of(store)) == wanted, "the same from the run itself"


@pytest.mark.parametrize("mode", MODES)
def test_pairs_come_back_in_the_order_in_which_they_were_said(tmp_path: Path, mode: str) -> None:
    store = rated_run(tmp_path / "old", mode)
    export(store, "pairs", tmp_path / "taken")
    found = taken(new_run(tmp_path, tmp_path / "taken").folder)
    wanted = {(who, prompt, sha): opinion for who, prompt, opinion, sha in said(store)}
    back = {(who, prompt, sha): opinion for who, prompt, opinion, sha in found}
    assert set(back) <= set(wanted) and len(back) > 1
    for one, here in back.items():
        for other, there in back.items():
            if one[:2] == other[:2] and wanted[one] > wanted[other] + 1e-9:
                assert here > there or (mode == "pairs" and here == there), "Pick-a-Pic has ties, and no two that are both bad"


def test_rated_images_come_back_with_the_mean_of_their_raters(tmp_path: Path) -> None:
    store = rated_run(tmp_path / "old")
    export(store, "imagefolder", tmp_path / "taken")
    found = taken(new_run(tmp_path, tmp_path / "taken").folder)
    by_image: dict[tuple[str, str], list[float]] = {}
    for _, prompt, opinion, sha in said(store):
        by_image.setdefault((prompt, sha), []).append(opinion)
    assert found == {("somebody", prompt, sum(told) / len(told), sha) for (prompt, sha), told in by_image.items()}


def test_a_table_and_a_parquet_file_say_the_same_as_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = rated_run(tmp_path / "old")
    wanted = said(store)
    export(store, "ratings", tmp_path / "log")
    (tmp_path / "log" / "ratings.jsonl").unlink()
    assert taken(new_run(tmp_path, tmp_path / "log").folder) == wanted, "CSV"
    export(store, "pairs", tmp_path / "taken")
    lines = [json.loads(line) for line in (tmp_path / "taken" / "pairs.jsonl").read_text().splitlines()]
    straight = {(each.rater, each.opinion, each.image) for each in gather([str(tmp_path / "taken")])[0].rated}
    for row in lines:
        row |= {side: {"bytes": (tmp_path / "taken" / row[side]).read_bytes(), "path": None} for side in ("jpg_0", "jpg_1")}
    monkeypatch.setattr(pandas, "read_parquet", lambda file: pandas.DataFrame(lines))
    (tmp_path / "alone.parquet").write_bytes(b"stands for a parquet file")
    assert {(each.rater, each.opinion, each.image) for each in gather([str(tmp_path / "alone.parquet")])[0].rated} == straight, "images within"


def test_a_run_stays_whole_when_the_old_one_is_gone_and_gives_it_on(tmp_path: Path) -> None:
    old = rated_run(tmp_path / "old")
    wanted = said(old)
    new = new_run(tmp_path, old.folder)
    old.close()
    for path in sorted(old.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert taken(new.folder, lambda name: name) and {row[3] for row in taken(new.folder)} == {row[3] for row in wanted}
    third = create(tmp_path / "third", RunConfig(preference="lead", ratings_from=f"{new.folder}; {new.folder}"))
    assert taken(third.folder) == taken(new.folder) and len(rated_in(third.folder)) == len(rated_in(new.folder)), "each of them once"
    assert [each["name"] for each in sources_in(third.folder)] == ["old"]


def test_none_of_it_counts_as_a_rating_of_the_run(tmp_path: Path) -> None:
    old = rated_run(tmp_path / "old")
    new = new_run(tmp_path, old.folder, resolution=128)
    assert new.ratings() == [] and raters_value(new)["raters"] == []
    assert "from old (64 × 64 of pocket)" in words(new.config, new.folder) and "none counts as a rating of this run" in words(new.config, new.folder)
    assert "another model" in words(new.config.with_changes(model="elsewhere/sd-1"), new.folder)
    assert words(RunConfig(), old.folder) == ""


def test_who_was_left_out_stays_out(tmp_path: Path) -> None:
    old = rated_run(tmp_path / "old")
    old.choose("rater ben", "out")
    assert {each.rater for each in rated_in(new_run(tmp_path, old.folder).folder)} == {"anna"}


def test_two_raters_of_one_name_in_two_runs_are_two(tmp_path: Path) -> None:
    stores = [rated_run(tmp_path / name) for name in ("one", "two")]
    found = rated_in(new_run(tmp_path, *(store.folder for store in stores)).folder)
    assert {each.who for each in found} == {"one/anna", "one/ben", "two/anna", "two/ben"}
    assert len(list((tmp_path / "new" / RATINGS / "images").iterdir())) == len({each.image for each in found}), "the same image once"


def refused(*named: object) -> str:
    with pytest.raises(ConfigError) as error:
        gather(map(str, named))
    return str(error.value)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing") and "does not exist" in refused("\0")
    (tmp_path / "empty").mkdir()
    assert "holds no ratings" in refused(tmp_path / "empty")
    assert "Nobody has rated" in refused(filled_run(tmp_path / "compress", 1, reward="jpeg_compressibility").folder)
    (tmp_path / "text.jsonl").write_text("")
    assert "has no rows" in refused(tmp_path / "text.jsonl")
    (tmp_path / "text.jsonl").write_text('{"a": 1}\n')
    assert "no known form" in refused(tmp_path / "text.jsonl") and "label_0" in refused(tmp_path / "text.jsonl")
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    assert "pyarrow" in refused(tmp_path / "pairs.parquet")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("x.txt", "nothing")
    assert "holds no ratings" in refused(tmp_path / "other.zip")
    with pytest.raises(ConfigError, match="preference is off"):
        RunConfig(ratings_from=str(tmp_path))


LOG: dict[str, Any] = dict(round=1, image="images/a.png", prompt="a cat", rater="anna", kind="thumbs", value=1, other=None, counts=True)
PAIR: dict[str, Any] = dict(caption="a cat", jpg_0="images/a.png", jpg_1="images/b.png", label_0=1, label_1=0)
IMAGE: dict[str, Any] = dict(file_name="images/a.png", prompt="a cat", rating=0.5)


@pytest.mark.parametrize(
    ("row", "change", "told"),
    [
        (LOG, dict(kind="hearts"), "kind 'hearts' with value 1.0 is no rating"),
        (LOG, dict(value=7), "with value 7.0"),
        (LOG, dict(value="many"), "value is many; it must be a number"),
        (LOG, dict(value=float("nan")), "it must be a number"),
        (LOG, dict(value=True), "it must be a number"),
        (LOG, dict(round=None), "round is None; it must be a whole number"),
        (LOG, dict(round=1.5), "whole number"),
        (LOG, dict(prompt=" "), "prompt is"),
        (LOG, dict(prompt="x" * 20_000), "no prompt"),
        (LOG, dict(prompt="\ud800"), "no prompt"),
        (LOG, dict(counts="perhaps"), "counts is perhaps; it must be true or false"),
        (LOG, dict(image="images/gone.png"), "cannot be read"),
        (LOG, dict(image="../a.png"), "leads out of the folder"),
        (LOG, dict(image="/etc/passwd"), "leads out of the folder"),
        (LOG, dict(image="images/linked.png"), "leads out of the folder"),
        (LOG, dict(image="images/text.png"), "cannot be read"),
        (LOG, dict(image=5), "image is 5; it must be a text"),
        (LOG, dict(kind="pairs", other=None), "no rating that can be made"),
        (LOG, dict(kind="pairs", other=""), "no rating that can be made"),
        (LOG, dict(kind="pairs", other=5), "other is 5; it must be a text"),
        (PAIR, dict(label_1=1), "label_0 is 1.0 and label_1 is 1.0"),
        (PAIR, dict(label_0=None), "label_0 is None"),
        (PAIR, dict(caption=None), "caption is None"),
        (PAIR, dict(jpg_1=None), "jpg_1 is None"),
        (PAIR, dict(jpg_1="images/text.png"), "cannot be read"),
        (IMAGE, dict(rating="good"), "rating is good"),
        (IMAGE, dict(prompt=None), "prompt is None"),
        (IMAGE, dict(file_name=None), "file_name is None"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path: Path, row: dict[str, Any], change: dict[str, Any], told: str) -> None:
    (tmp_path / "log" / "images").mkdir(parents=True)
    for name in ("a", "b"):
        picture(ord(name)).save(tmp_path / "log" / "images" / f"{name}.png")
    picture(3).save(tmp_path / "elsewhere.png")
    (tmp_path / "log" / "images" / "linked.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "log" / "images" / "text.png").write_text("no image")
    file = tmp_path / "log" / "metadata.jsonl"
    file.write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    assert gather([str(file)])[0].rated, "without the mistake it is read"
    file.write_text(json.dumps(row) + "\n\n" + json.dumps(row | change) + "\n")
    message = refused(tmp_path / "log")
    assert told in message and "metadata.jsonl, line 3" in message
    with pytest.raises(ConfigError):
        new_run(tmp_path, tmp_path / "log")
    assert not (tmp_path / "new").exists(), "before anything is made"


@pytest.mark.parametrize(
    ("row", "change", "told"),
    [
        (IMAGE, dict(rating=1e200), "rating is 1e+200; it must be a number from"),
        (IMAGE, dict(rating=10**399), "it must be a number from"),
        (LOG, dict(round=10**399), "it must be a number from"),
        (PAIR, dict(round=[1]), "round is [1]"),
        (PAIR, dict(round="first"), "round is first"),
        (PAIR, dict(jpg_0="images/pipe.png"), "it is no file"),
        (IMAGE, dict(file_name="images/pipe.png"), "it is no file"),
    ],
)  # fmt: skip
def test_numbers_and_files_without_end_are_named_too(tmp_path: Path, row: dict[str, Any], change: dict[str, Any], told: str) -> None:
    (tmp_path / "log" / "images").mkdir(parents=True)
    for name in ("a", "b"):
        picture(ord(name)).save(tmp_path / "log" / "images" / f"{name}.png")
    os.mkfifo(tmp_path / "log" / "images" / "pipe.png")
    (tmp_path / "log" / "metadata.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps(row | change) + "\n")
    message = refused(tmp_path / "log")
    assert told in message and "metadata.jsonl, line 3" in message


def test_a_pipe_or_a_device_is_no_file_of_ratings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ratings.jsonl")
    assert "neither a file nor a folder" in refused(tmp_path / "ratings.jsonl") and "neither a file" in refused("/dev/zero")
    assert "it is no file" in refused(tmp_path)


def test_broken_lines_and_tables_are_named(tmp_path: Path) -> None:
    file = tmp_path / "ratings.jsonl"
    for text, told in (('{"a": 1}\n{', "line 2: this is no JSON"), ("[1]\n", "line 1: this is no JSON object")):
        file.write_text(text)
        assert told in refused(file)
    file.write_bytes(b'{"a": 1}\n\xff\n')
    assert "line 2: this is no text in UTF-8" in refused(file)
    table = tmp_path / "ratings.csv"
    with open(table, "w", newline="") as out:
        csv.writer(out).writerows([list(LOG), ["1", "images/a.png"]])
    assert "ratings.csv, line 2: it has another number of columns" in refused(table)
    file.write_text(json.dumps(IMAGE | dict(rating=None)) + "\n")
    assert "no rating among them" in refused(file)
    file.write_text((json.dumps(LOG) + "\n") * 20_001)
    assert "more than 20,000 rows" in refused(file)


def test_an_image_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(IMAGE | dict(file_name="a.gif")) + "\n")
    Image.new("P", (8, 8)).save(tmp_path / "a.gif")
    monkeypatch.setitem(Image.OPEN, "GIF", (lambda *file: pytest.fail("it is not even opened"), None))
    assert "PNG, JPEG and WebP are read" in refused(tmp_path / "metadata.jsonl")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(IMAGE | dict(file_name="a.png")) + "\n")
    Image.new("1", (8000, 5001)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("it is unpacked"))
    assert "8000 × 5001 pixels" in refused(tmp_path / "metadata.jsonl")


def test_a_photo_with_a_second_picture_in_it_is_a_jpeg(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(IMAGE | dict(file_name="a.jpg")) + "\n")
    picture(1).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture(2)])
    assert gather([str(tmp_path)])[0].rated[0].image.endswith(".jpg")


def test_a_zip_is_opened_once_and_each_of_its_images_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(rated_run(tmp_path / "old", "pairs"), "ratings", tmp_path / "log")
    export(rated_run(tmp_path / "two", "thumbs"), "pairs", tmp_path / "pairs")
    zips = [packed(tmp_path / "log", "ratings"), packed(tmp_path / "pairs", "pairs")]
    opened, read = list[Path](), list[str]()

    class Counted(zipfile.ZipFile):
        def __init__(self, file: Path) -> None:
            opened.append(file)
            super().__init__(file)

        def read(self, name: Any, pwd: bytes | None = None) -> bytes:
            read.append(f"{self.filename} {name.filename}")
            return super().read(name, pwd)

    monkeypatch.setattr("ddpo.rating_files.zipfile.ZipFile", Counted)
    assert len(gather(map(str, zips))) == 2
    assert opened == zips and len(read) == len(set(read)) > 8


def test_an_empty_name_of_a_second_image_is_none(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "ratings.jsonl").write_text(json.dumps(LOG | dict(image="a.png", other="")) + "\n")
    assert [each.opinion for each in gather([str(tmp_path)])[0].rated] == [1.0]


@pytest.mark.parametrize("name", ["ratings", "pairs"])
def test_more_images_than_can_be_compared_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of one rater, and of one prompt or board: several may."""
    for each in "abc":
        picture(ord(each)).save(tmp_path / f"{each}.png")
    pairs = [("a.png", "b.png"), ("b.png", "c.png")]
    if name == "ratings":
        rows = [LOG | dict(kind="pairs", image=one, other=other) for one, other in pairs]
        who, another = "rater", dict(round=2)
    else:
        rows = [PAIR | dict(user_id="anna", jpg_0=one, jpg_1=other) for one, other in pairs]
        who, another = "user_id", dict(caption="a dog")
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gather([str(file)])[0].rated
    monkeypatch.setattr("ddpo.rating_files.MOST_COMPARED", 2)
    message = refused(file)
    assert f"{name}.jsonl, line 2: one rater compares more than 2 images" in message and f"in a column {who}" in message
    for change in ({who: "ben"}, another):
        file.write_text("".join(json.dumps(row) + "\n" for row in (rows[0], rows[1] | change)))
        assert gather([str(file)])[0].rated


def test_what_was_copied_and_is_damaged_is_said(tmp_path: Path) -> None:
    store = new_run(tmp_path, rated_run(tmp_path / "old").folder)
    (store.folder / RATINGS / "rated.jsonl").write_text('{"source": ')
    with pytest.raises(StoreError, match="damaged"):
        rated_in(store.folder)
    with pytest.raises(ConfigError, match="damaged"):
        kept(store.folder)
    for damage in ('[{"name": "old"}]', "{}x", "[1]", '[{"name": "old", "model": "", "sizes": [1], "ratings": 1, "images": 1, "raters": 1}]'):
        (store.folder / RATINGS / "sources.json").write_text(damage)
        with pytest.raises(StoreError, match="damaged"):
            words(store.config, store.folder)
        assert "damaged" in refused(store.folder)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("named", [True, False])
def test_ratings_that_lie_in_the_folder_of_a_new_run_are_never_replaced(tmp_path: Path, named: bool) -> None:
    """They may be the only ones: ``run --ratings-from exp/ratings --out exp``, and a run that names none."""
    export(rated_run(tmp_path / "old"), "ratings", tmp_path / "exp" / "ratings")
    before = everything(tmp_path / "exp")
    with pytest.raises(StoreError, match="exists, and a new run would keep its own ratings there"):
        create(tmp_path / "exp", RunConfig(preference="lead", ratings_from=str(tmp_path / "exp" / "ratings") if named else ""))
    with pytest.raises(StoreError, match="move ratings away"):
        keep(tmp_path / "exp", [])
    assert everything(tmp_path / "exp") == before
    (tmp_path / "free" / RATINGS).mkdir(parents=True)
    create(tmp_path / "free", RunConfig())


def test_files_of_others_in_the_folder_of_a_new_run_stay(tmp_path: Path) -> None:
    (tmp_path / "new" / "parent").mkdir(parents=True)
    (tmp_path / "new" / "parent" / "notes.txt").write_text("mine")
    (tmp_path / "new" / "parent" / "state.safetensors").write_text("of a fork that could not be made")
    new_run(tmp_path, rated_run(tmp_path / "old").folder)
    assert [path.name for path in (tmp_path / "new" / "parent").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("change", ["gone", "other"])
def test_what_cannot_be_copied_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, there: bool) -> None:
    old = rated_run(tmp_path / "old")
    gathered = gather([str(old.folder)])
    image = next((old.folder / "samples").rglob(f"{Path(rated_in(new_run(tmp_path, old.folder).folder)[-1].image).stem}.png"))
    image.unlink() if change == "gone" else picture(77).save(image)
    monkeypatch.setattr("ddpo.earlier.gather", lambda named: gathered)
    if there:
        (tmp_path / "bad").mkdir()
    with pytest.raises(StoreError, match="An image of old is gone" if change == "gone" else "An image of old has changed"):
        create(tmp_path / "bad", RunConfig())
    assert list((tmp_path / "bad").iterdir()) == [] if there else not (tmp_path / "bad").exists()


def test_a_run_that_fails_after_its_ratings_were_copied_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = rated_run(tmp_path / "old")
    (tmp_path / "new").mkdir()

    def full(config: RunConfig, file: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(RunConfig, "save", full)
    with pytest.raises(StoreError, match="No space left"):
        new_run(tmp_path, old.folder)
    assert list((tmp_path / "new").iterdir()) == []


# --- which sources are which ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["best", "best-worst"])
def test_a_file_alone_is_read_with_the_board_beside_it(tmp_path: Path, mode: str) -> None:
    """Where people picked, what they passed over is on the board only."""
    store = rated_run(tmp_path / "old", mode)
    export(store, "ratings", tmp_path / "taken")
    assert taken(new_run(tmp_path, tmp_path / "taken" / "ratings.jsonl").folder) == said(store)
    (tmp_path / "taken" / "metadata.jsonl").write_text(json.dumps(IMAGE) + "\n")
    assert gather([str(tmp_path / "taken" / "ratings.jsonl")])[0].rated, "something else of that name is not its board"


def test_two_files_of_one_name_are_two_sources(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        for name in ("a", "b"):
            picture(ord(name)).save(tmp_path / place / f"{name}.png")
        lines = [IMAGE | dict(file_name=f"{name}.png", rating=rating) for name, rating in (("a", 1), ("b", 0 if place == "one" else -1))]
        (tmp_path / place / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    new = new_run(tmp_path, tmp_path / "one" / "mine.jsonl", tmp_path / "two" / "mine.jsonl", tmp_path / "one" / "mine.jsonl")
    assert sorted((each.who, each.opinion) for each in rated_in(new.folder)) == [
        ("mine-2/somebody", -1),
        ("mine-2/somebody", 1),
        ("mine/somebody", 0),
        ("mine/somebody", 1),
    ]
    third = create(tmp_path / "third", RunConfig(preference="lead", ratings_from=f"{tmp_path / 'two' / 'mine.jsonl'}; {new.folder}"))
    assert len(rated_in(third.folder)) == 4 and {each["name"] for each in sources_in(third.folder)} == {"mine", "mine-2"}, "known by its place"


def test_a_board_that_is_open_is_not_taken(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "old", 1, awaiting=True)
    waiting = store.board(2)[0]
    store.add_rating("early", waiting.id, "anna", "thumbs", 1.0)
    images = {each.image for source in gather([str(store.folder)]) for each in source.rated}
    assert images and f"images/{Path(waiting.image).stem}.png" not in images
    alone = RunStore.create(tmp_path / "alone", RunConfig(images_per_round=4, images_per_update=4))
    alone.start_round(1)
    add_pictures(alone, 1, range(4), ["a cat"] * 4, range(4), [picture(seed) for seed in range(4)])
    alone.mark(1, "sampled")
    alone.add_rating("early", 1, "anna", "thumbs", 1.0)
    assert "not applied yet" in refused(alone.folder) and not has_ratings(alone)


def test_a_name_may_hold_the_separator(tmp_path: Path) -> None:
    for names in (("a", "b"), ("a;b", "c"), ("a;", ";b", "c;;d")):
        assert sources_of(sources_text(names)) == names
    assert sources_of(" a;b ; ; c") == ("a", "b", "c")
    old = rated_run(tmp_path / "a;b" / "old")
    options = parser().parse_args(["run", "--out", "x", "--preference", "lead", "--ratings-from", str(old.folder)])
    assert RunConfig(**changes_from(options)).ratings_sources == (str(old.folder),)
    assert located(RunConfig(**changes_from(options))).ratings_sources == (str(old.folder),)


# --- runs of others -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image", ["../../../escaped.png", "/nowhere/escaped.png", "images/../../x.png", "images/" + "0" * 32 + ".png", "images/a.png", 5]
)
def test_names_of_images_in_a_run_of_others_lead_nowhere(tmp_path: Path, image: object) -> None:
    """Its images are looked at as those of any other source: real ones, of that hash, in its folder."""
    store = new_run(tmp_path, rated_run(tmp_path / "old").folder)
    secret = tmp_path / "secret.png"
    picture(99).save(secret)
    (store.folder / RATINGS / "images" / ("0" * 32 + ".png")).symlink_to(secret)
    file = store.folder / RATINGS / "rated.jsonl"
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(first) | dict(image=image)), *others]) + "\n")
    assert any(word in refused(store.folder) for word in ("damaged", "leads out of the folder"))
    with pytest.raises(ConfigError):
        create(tmp_path / "next", RunConfig(preference="lead", ratings_from=str(store.folder)))
    assert not (tmp_path / "next").exists() and not list(tmp_path.glob("**/escaped.png"))


@pytest.mark.parametrize("damage", ["text", "another picture"])
def test_a_copied_image_that_is_another_one_is_refused(tmp_path: Path, damage: str) -> None:
    store = new_run(tmp_path, rated_run(tmp_path / "old").folder)
    image = store.folder / RATINGS / rated_in(store.folder)[0].image
    image.write_text("no image") if damage == "text" else picture(99).save(image)
    assert ("cannot be read" if damage == "text" else "another one than was rated") in refused(store.folder)


@pytest.mark.parametrize("image", ["../secret.png", "{folder}/secret.png", "samples/0001/linked.png"])
def test_pictures_outside_a_run_of_others_are_not_taken(tmp_path: Path, image: str) -> None:
    store = rated_run(tmp_path / "old")
    picture(99).save(tmp_path / "secret.png")
    (store.folder / "samples" / "0001" / "linked.png").symlink_to(tmp_path / "secret.png")
    with sqlite3.connect(store.folder / "run.db") as db:
        db.execute("UPDATE sample SET image = ? WHERE id = 2", (image.format(folder=tmp_path),))
    assert "leads out of the folder" in refused(store.folder)


def test_a_source_is_taken_in_once_whatever_it_is_called(tmp_path: Path) -> None:
    old = rated_run(tmp_path / "old")
    one = gather([str(old.folder)])
    both = gather([str(old.folder), f"{old.folder}/"])
    assert [len(source.rated) for source in both] == [len(source.rated) for source in one]
    assert isinstance(one[0], Source) and one[0].sizes == {(64, 64)}
