"""The run folder: rows are promises, ratings are durable, and nothing odd gets in."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddpo.config import ConfigError, RunConfig
from ddpo.records import MIGRATIONS, Status
from ddpo.store import RatingRefused, RunStore, StoreError, finite, runs_in
from rewards.base import Score
from tests.toys import add_pictures, picture

ODD = ("long " * 1000, "🦊 a fox 🎨 \u202e", "${alert(1)}", "<script>alert(1)</script>", "two\nlines", "\x00nul", "'; DROP TABLE rating; --")


def one_round(folder: Path) -> RunStore:
    """A run with one round of eight images, not rated."""
    store = RunStore.create(folder, RunConfig(images_per_round=8, images_per_update=8))
    store.start_round(1)
    add_pictures(store, 1, range(8), ["a cat"] * 4 + ["a dog"] * 4, range(8), [picture(i, 8) for i in range(8)])
    store.mark(1, "sampled")
    return store


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return one_round(tmp_path / "run")


def ids(store: RunStore) -> list[int]:
    return [row.id for row in store.samples(1)]


def schema(folder: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(folder / "run.db") as db:
        found = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        found.append(db.execute("PRAGMA user_version").fetchone())
    db.close()
    return found


# --- opening and migrating --------------------------------------------------------------------------------------------------------


def test_every_old_schema_is_brought_to_the_newest_and_no_further(tmp_path: Path) -> None:
    """From each number of migrations taken, nothing included, opening gives the schema of a fresh run; opening again changes nothing."""
    RunStore.create(tmp_path / "fresh", RunConfig()).close()
    for version in range(len(MIGRATIONS) + 1):
        folder = tmp_path / f"from-{version}"
        folder.mkdir()
        RunConfig().save(folder / "config.json")
        db = sqlite3.connect(folder / "run.db")
        db.executescript(";".join(MIGRATIONS[:version]) + f"; PRAGMA user_version = {version}")
        db.close()
        for _ in range(2):
            RunStore(folder).close()
            assert schema(folder) == schema(tmp_path / "fresh")


def test_images_of_older_runs_tell_how_many_updates_had_been_made(tmp_path: Path) -> None:
    """Two made before the first update, one of them ahead; one after it."""
    RunConfig().save(tmp_path / "config.json")
    db = sqlite3.connect(tmp_path / "run.db")
    db.executescript(";".join(MIGRATIONS[:3]) + "; PRAGMA user_version = 3")
    db.execute("INSERT INTO round (number, started_at, updated_at) VALUES (1, 0, 5), (2, 3, NULL)")
    for number, position, at in ((1, 0, 1), (2, 0, 4), (2, 1, 6)):
        db.execute("INSERT INTO sample (round, position, prompt, seed, image, created_at) VALUES (?, ?, '', 0, '', ?)", (number, position, at))
    db.commit()
    db.close()
    store = RunStore(tmp_path)
    assert [row.updates for number in (1, 2) for row in store.samples(number)] == [0, 0, 1]


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a migration is none: the statement before the broken one is undone, and the version stays."""
    RunStore.create(tmp_path / "run", RunConfig()).close()
    before = schema(tmp_path / "run")
    monkeypatch.setattr("ddpo.store.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE half (x INTEGER) STRICT; CREATE TABLE rating (x INTEGER)"))
    with pytest.raises(sqlite3.OperationalError, match="rating"):
        RunStore(tmp_path / "run")
    assert schema(tmp_path / "run") == before


def test_a_newer_run_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no config\.json"):
        RunStore(tmp_path)
    RunStore.create(tmp_path / "run", RunConfig()).close()
    with sqlite3.connect(tmp_path / "run" / "run.db") as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        RunStore(tmp_path / "run")


def test_a_damaged_database_is_refused_in_plain_words(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", RunConfig()).close()
    (tmp_path / "run" / "run.db").write_bytes(b"not a database at all, but some text" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        RunStore(tmp_path / "run")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a b", "a/../b c", "-x", "é", "x" * 81, "run\n", "nul\x00", "a:b"])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot name a run"):
        RunStore.create(Path(f"{tmp_path}/runs/{name}") if name else Path("/"), RunConfig())


def test_a_taken_name_and_an_unwritable_place_are_refused(tmp_path: Path, store: RunStore) -> None:
    with pytest.raises(StoreError, match="already exists"):
        RunStore.create(store.folder, RunConfig())
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written.*write permission"):
        RunStore.create(tmp_path / "file" / "run", RunConfig())


def test_a_full_disk_leaves_no_half_made_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json appears whole or not at all, so that no list of runs shows half a run, and the name stays free."""

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StoreError, match="No space left"):
            RunStore.create(tmp_path / "run", RunConfig())
    assert runs_in(tmp_path) == []
    RunStore.create(tmp_path / "run", RunConfig()).close()


# --- ratings ----------------------------------------------------------------------------------------------------------------------


def test_a_repeated_client_id_changes_nothing(store: RunStore) -> None:
    """A click sent twice over a bad line is one rating, even if it says something else the second time."""
    first, second = ids(store)[:2]
    assert store.add_rating("click", first, "anna", "thumbs", 1) is True
    assert store.add_rating("click", first, "anna", "thumbs", -1) is False
    assert store.add_rating("click", second, "bob", "thumbs", -1) is False
    assert [(r.sample, r.rater, r.value) for r in store.ratings(1)] == [(first, "anna", 1)]


def test_the_latest_of_each_rater_counts_and_clear_takes_it_back(store: RunStore) -> None:
    """Append-only: every event stays in the record, whatever counts."""
    first, second, third = ids(store)[:3]
    events = [
        (first, "anna", "thumbs", 1), (first, "bob", "thumbs", -1), (first, "anna", "thumbs", -1), (second, "anna", "thumbs", 1),
        (second, "anna", "clear", None), (third, "bob", "clear", None), (third, "bob", "stars", 4), (first, "bob", "skip", None),
    ]  # fmt: skip
    for n, event in enumerate(events):
        store.add_rating(f"c{n}", *event)
    latest = {(s, r.rater): (r.kind, r.value) for s, rows in store.latest_ratings(1).items() for r in rows}
    assert latest == {(first, "anna"): ("thumbs", -1), (first, "bob"): ("skip", None), (third, "bob"): ("stars", 4)}
    assert [(r.sample, r.rater, r.kind, r.value) for r in store.ratings(1)] == events


def test_a_rating_of_no_image_is_refused_in_plain_words(store: RunStore) -> None:
    for missing in (10_000, -1, 2**80):
        with pytest.raises(StoreError, match=f"no image {missing}"):
            store.add_rating("c", missing, "anna", "thumbs", 1)
    assert store.ratings() == [] and store.add_rating("c", ids(store)[0], "anna", "thumbs", 1)


def test_no_round_is_closed_between_the_look_whether_it_is_open_and_the_rating(store: RunStore) -> None:
    """A rating that is acknowledged counts: while it is asked whether it is taken, no other process can write."""
    sample, asked = ids(store)[0], list[int]()
    worker = sqlite3.connect(store.folder / "run.db", timeout=0)

    def refusal() -> str:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            worker.execute("UPDATE round SET closed_at = 1")
        asked.append(sample)
        return "" if len(asked) == 1 else "It is closed."

    assert store.add_rating("a", sample, "anna", "thumbs", 1.0, refusal=refusal)
    with pytest.raises(RatingRefused, match="closed"):
        store.add_rating("b", sample, "anna", "thumbs", -1.0, refusal=refusal)
    assert not store.add_rating("a", sample, "anna", "thumbs", 1.0, refusal=refusal) and len(asked) == 2, "what is there was taken"
    worker.close()
    assert [row.client_id for row in store.ratings()] == ["a"]


def test_closing_a_round_fixes_which_ratings_count(store: RunStore) -> None:
    one, two = ids(store)[:2]
    store.add_rating("before", one, "anna", "thumbs", 1)
    closed = store.close_round(1)
    store.add_rating("after", one, "anna", "thumbs", -1)
    store.add_rating("too", two, "anna", "thumbs", -1)
    assert store.close_round(1) == closed
    counted = store.latest_ratings(1, up_to=closed)
    assert {s: [r.value for r in rows] for s, rows in counted.items()} == {one: [1.0]} and len(store.ratings(1)) == 3


def test_the_latest_of_each_rater_on_a_pair_counts_whatever_its_sides(store: RunStore) -> None:
    """A pair and each of its images have verdicts of their own."""
    one, two, three = ids(store)[:3]
    events = [
        ("anna", one, two, "pairs", 1), ("anna", one, None, "thumbs", 1), ("anna", two, one, "pairs", 1), ("bob", one, two, "bad", None),
        ("anna", one, three, "pairs", 0), ("anna", three, one, "clear", None),
    ]  # fmt: skip
    for n, (rater, sample, other, kind, value) in enumerate(events):
        assert store.add_rating(f"c{n}", sample, rater, kind, value, other=other)
        assert not store.add_rating(f"c{n}", three, rater, "skip", None), "the same click"
    latest = {(r.rater, r.sample, r.other, r.kind, r.value) for rows in store.latest_ratings(1).values() for r in rows}
    assert latest == {("anna", one, None, "thumbs", 1), ("anna", two, one, "pairs", 1), ("bob", one, two, "bad", None)}
    with pytest.raises(StoreError, match=f"no image {one} or 999"):
        store.add_rating("none", one, "anna", "pairs", 1, other=999)


def test_choices_hold_until_the_next_and_leave_the_settings(store: RunStore) -> None:
    assert store.rating == "thumbs" and store.left_out == set()
    said = store.said
    store.choose("rating", "pairs")
    store.choose("rater out of here", "out")
    store.choose("rater bob", "out")
    store.choose("rater bob", "in")
    assert store.rating == "pairs" and store.left_out == {"out of here"} and store.said != said
    again = RunStore(store.folder)
    assert again.rating == "pairs" and again.config.rating == "thumbs"
    again.close()
    with pytest.raises(ConfigError, match="rating is 'love'"):
        store.choose("rating", "love")
    assert store.rating == "pairs"


def test_a_rater_who_is_left_out_is_left_out_of_the_latest(store: RunStore) -> None:
    one = ids(store)[0]
    for rater in ("anna", "bob"):
        store.add_rating(rater, one, rater, "thumbs", 1)
    store.choose("rater bob", "out")
    assert [r.rater for r in store.latest_ratings(1)[one]] == ["anna"]
    assert [r.rater for r in store.latest_ratings(1, everyone=True)[one]] == ["anna", "bob"] and len(store.ratings(1)) == 2


def test_ratings_are_of_their_round(store: RunStore) -> None:
    store.start_round(2)
    add_pictures(store, 2, [0], ["a cat"], [99], [picture(99, 8)])
    store.add_rating("x", store.samples(2)[0].id, "anna", "thumbs", 1)
    assert store.ratings(1) == [] and len(store.ratings(2)) == len(store.ratings()) == 1


# --- worker's rows ----------------------------------------------------------------------------------------------------------------


def test_marks_are_set_once_and_in_order(store: RunStore) -> None:
    """A second mark does not move the first one's time; the next missing mark is where work goes on."""
    sampled = store.rounds()[0].sampled_at
    time.sleep(0.01)
    store.mark(1, "sampled")
    assert store.rounds()[0].sampled_at == sampled and store.start_round(1).next_mark == "scored"
    for mark, following in (("scored", "updated"), ("updated", "checkpointed"), ("checkpointed", None)):
        store.mark(1, mark)
        assert store.rounds()[0].next_mark == following
    with pytest.raises(ValueError, match="started"):
        store.mark(1, "started")


def test_one_round_is_read_without_the_others(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over the rounds of a long run reads each once, not all of them each time."""
    for number in (2, 3, 4):
        store.start_round(number)
    rows, read = store._rows, list[int]()

    def counted(*asked: Any) -> Any:
        found = rows(*asked)
        read.append(len(found))
        return found

    monkeypatch.setattr(store, "_rows", counted)
    assert [row and row.number for row in (store.round(9), store.round(3), store.start_round(4), store.start_round(5))] == [None, 3, 4, 5]
    assert max(read) == 1


def test_samples_that_exist_stay_as_they_are(store: RunStore) -> None:
    """Sampling again after a crash moves no row, no file and no time."""
    rows = store.samples(1)
    add_pictures(store, 1, range(8), ["other"] * 8, range(100, 108), [picture(i, 8) for i in range(8)])
    assert store.samples(1) == rows
    for row in rows:
        with Image.open(store.folder / row.image) as image:
            assert image.convert("RGB").tobytes() == picture(row.seed, 8).tobytes()


def test_a_board_stays_once_any_of_its_round_is_rated(store: RunStore) -> None:
    store.show(1, ids(store)[:3])
    store.add_rating("c", ids(store)[0], "anna", "thumbs", 1)
    store.show(1, ids(store)[3:])
    assert [row.id for row in store.board(1)] == ids(store)[:3]


def test_numbers_that_are_none_become_none(store: RunStore) -> None:
    one, two, three = ids(store)[:3]
    store.add_scores("r", {one: Score(float("nan")), two: Score(None), three: Score(0.5, {"why": "🦊"})})
    assert store.scores(1, "r") == {one: Score(None), two: Score(None), three: Score(0.5, {"why": "🦊"})}
    store.add_metrics(1, dict(good=1.5, bad=float("nan"), worse=float("-inf")))
    store.add_metrics(2, dict(good=2.5))
    assert store.metrics() == dict(good=[(1, 1.5), (2, 2.5)], bad=[(1, None)], worse=[(1, None)])
    assert [store.has_metric(*key) for key in ((1, "bad"), (1, "good"), (2, "bad"), (1, "other"))] == [True, True, False, False]
    assert finite(None) is None and finite(3) == 3.0


@pytest.mark.parametrize("prompt", ODD)
def test_odd_prompts_come_back_as_they_went_in(store: RunStore, prompt: str) -> None:
    store.start_round(2)
    add_pictures(store, 2, [0], [prompt], [2**62], [picture(1, 8)])
    assert (store.samples(2)[0].prompt, store.samples(2)[0].seed) == (prompt, 2**62)
    store.add_rating(prompt, store.samples(2)[0].id, prompt, "thumbs", 1)
    assert (store.ratings(2)[0].client_id, store.ratings(2)[0].rater) == (prompt, prompt)


def test_what_is_left_of_a_phase_is_told_by_its_pace_so_far() -> None:
    """A quarter in 10 s leaves 30; at its start nothing is told, though it may begin half done."""
    phase = Status("sampling", 1, 8, 32, started_at=100.0, changed_at=110.0, pid=1)
    assert phase.seconds_left == 30.0
    for unknown in (dict(changed_at=100.0), dict(done=0), dict(done=32), dict(pid=None), dict(state="awaiting")):
        assert replace(phase, **unknown).seconds_left is None  # type: ignore[arg-type]
