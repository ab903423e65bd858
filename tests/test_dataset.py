"""Ratings as data: the event log, preference pairs and rated images, and who is named in them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from ddpo.__main__ import main
from ddpo.config import RunConfig
from ddpo.dataset import public_reward
from ddpo.export import DATA, ExportError, export
from ddpo.store import RunStore
from rewards.human import BOTH_BAD, CLEAR, SKIP, VALUES
from tests.toys import ODD_PROMPTS, add_pictures, filled_run, picture

PICK_A_PIC = {
    "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_1_uid", "jpg_0", "jpg_1", "label_0", "label_1",
    "model_0", "model_1", "ranking_id", "user_id", "num_example_per_prompt",
}  # fmt: skip
"""Pick-a-Pic's columns, but for the addresses of its images on the web."""


def rated_run(folder: Path, prompt: str = "a cat", stars: bool = False, secret: str = "secret") -> RunStore:
    """One round: four images of one prompt, which Anna rated 1, 1, -1 and skipped, after she took a first word back; Ben rated two."""
    config = RunConfig(prompts=(prompt,), images_per_round=4, images_per_update=4, rating="stars" if stars else "thumbs")
    store = RunStore.create(folder, config)
    store.start_round(1)
    add_pictures(store, 1, range(4), [prompt] * 4, range(4), [picture(seed) for seed in range(4)])
    store.mark(1, "sampled")
    kind, good, bad = ("stars", 5, 2) if stars else ("thumbs", 1, -1)
    words = [("anna", 1, kind, bad), ("anna", 1, kind, good), ("anna", 2, kind, good), ("anna", 3, kind, bad), ("anna", 4, "skip", None)]
    words += [("ben", 1, kind, bad), ("ben", 2, kind, good), ("ben", 4, kind, good), ("ben", 4, "clear", None)]
    for at, (rater, sample, kind_of, value) in enumerate(words):
        store.add_rating(f"{secret}-{at}", sample, rater, kind_of, value, shown_at=10.0, answered_at=11.5)
    store.close_round(1)
    store.add_rating("late", 3, "anna", kind, good)  # after the round was closed: an event, but no word that counts
    return store


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def taken(tmp_path: Path, kind: str, store: RunStore, **options: Any) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path / kind
    export(store, kind, out, **options)
    return out, lines(out / ("metadata.jsonl" if kind == "imagefolder" else f"{kind}.jsonl"))


def test_every_rating_event_is_there_and_those_that_count_are_marked(tmp_path: Path) -> None:
    store = rated_run(tmp_path / "run")
    store.choose("rater ben", "half")
    out, rows = taken(tmp_path, "ratings", store, names=True)
    assert {(row["rater"], row["weight"]) for row in rows} == {("anna", 1.0), ("ben", 0.5)}
    assert [(row["kind"], row["value"], row["counts"]) for row in rows] == [
        ("thumbs", -1, False), ("thumbs", 1, True), ("thumbs", 1, True), ("thumbs", -1, True), ("skip", None, True),
        ("thumbs", -1, True), ("thumbs", 1, True), ("thumbs", 1, False), ("clear", None, False), ("thumbs", 1, False),
    ]  # fmt: skip
    assert {(row["prompt"], row["shown_at"]) for row in rows[:-1]} == {("a cat", 10.0)} and rows[0]["image"] == "images/0001-000.png"
    with open(out / "ratings.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["value"] for row in table] == ["" if row["value"] is None else str(row["value"]) for row in rows] and set(table[0]) == set(rows[0])
    store.close()


@pytest.mark.parametrize("stars", [False, True])
def test_pairs_have_pick_a_pic_s_columns_and_each_is_one_person_s(tmp_path: Path, stars: bool) -> None:
    """Anna's three opinions make three pairs, one of them a tie; Ben's two make one, the other way round. Nobody's word is set against another's."""
    store = rated_run(tmp_path / "run", stars=stars)
    out, rows = taken(tmp_path, "pairs", store, names=True)
    assert [(row["user_id"], row["jpg_0"][-5], row["jpg_1"][-5], row["label_0"], row["label_1"]) for row in rows] == [
        ("anna", "0", "1", 0.5, 0.5), ("anna", "0", "2", 1.0, 0.0), ("anna", "1", "2", 1.0, 0.0), ("ben", "0", "1", 0.0, 1.0),
    ]  # fmt: skip
    assert all(set(row) >= PICK_A_PIC for row in rows)
    assert [row["best_image_uid"] for row in rows] == ["tie", rows[1]["image_0_uid"], rows[2]["image_0_uid"], rows[3]["image_1_uid"]]
    assert {row["num_example_per_prompt"] for row in rows} == {4} and {row["caption"] for row in rows} == {"a cat"}
    assert sorted(path.name for path in (out / "images").iterdir()) == ["0001-000.png", "0001-001.png", "0001-002.png"]  # the fourth is in no pair
    for sample in store.samples(1)[:3]:
        assert (out / f"images/0001-{sample.position:03d}.png").read_bytes() == (store.folder / sample.image).read_bytes()
    store.close()


def test_pairs_and_picks_are_pairs_too(tmp_path: Path) -> None:
    """Verdicts on pairs are taken as they are, whatever side an image stood on, and instead of what marks say of the same two; picks set the best
    above the good and these above what was passed over; two bad images are a tie."""
    config = RunConfig(prompts=("a cat",), images_per_round=4, images_per_update=4, rating="pairs")
    store = RunStore.create(tmp_path / "run", config)
    store.start_round(1)
    add_pictures(store, 1, range(4), ["a cat"] * 4, range(4), [picture(seed) for seed in range(4)])
    store.mark(1, "sampled")
    for at, (one, other, kind, value) in enumerate([(2, 1, "pairs", 1), (2, 3, "pairs", 0), (4, 3, "bad", None)]):
        store.add_rating(f"pair-{at}", one, "anna", kind, value, other=other)
    for at, (sample, value) in enumerate([(1, 2), (2, 1)]):
        store.add_rating(f"pick-{at}", sample, "ben", "best", value)
    store.add_rating("verdict", 1, "ben", "pairs", -1, other=2)
    store.close_round(1)
    _, rows = taken(tmp_path, "pairs", store, names=True)
    found = {(row["user_id"], row["jpg_0"][-5], row["jpg_1"][-5]): row["label_0"] for row in rows}
    assert found == {
        ("anna", "0", "1"): 0.0, ("anna", "1", "2"): 0.5, ("anna", "2", "3"): 0.5,
        ("ben", "0", "1"): 0.0, ("ben", "0", "2"): 1.0, ("ben", "0", "3"): 1.0, ("ben", "1", "2"): 1.0,
        ("ben", "1", "3"): 1.0, ("ben", "2", "3"): 0.5,
    }  # fmt: skip
    _, rows = taken(tmp_path, "ratings", store, names=True)
    assert [(row["kind"], row["other"]) for row in rows[:3]] == [
        ("pairs", "images/0001-000.png"), ("pairs", "images/0001-002.png"), ("bad", "images/0001-002.png")
    ]  # fmt: skip
    _, rows = taken(tmp_path, "imagefolder", store)
    assert rows[1]["rating"] > rows[0]["rating"] and rows[0]["raters"] == 2
    store.close()


def test_images_carry_prompt_score_and_mean_rating(tmp_path: Path) -> None:
    store = rated_run(tmp_path / "run", prompt=ODD_PROMPTS[3])
    out, rows = taken(tmp_path, "imagefolder", store)
    assert [(row["rating"], row["raters"]) for row in rows] == [(0.0, 2), (1.0, 2), (-1.0, 1), (None, 0)]
    assert {row["prompt"] for row in rows} == {ODD_PROMPTS[3]} and all(row["score"] is None for row in rows)
    for row in rows:
        with Image.open(out / row["file_name"]) as image:
            assert image.size == (64, 64)
    store.close()
    scored = filled_run(tmp_path / "scored", rounds=2, reward="jpeg_compressibility")
    _, rows = taken(tmp_path / "two", "imagefolder", scored)
    assert [row["score"] for row in rows] == [score.value for n in (1, 2) for score in scored.scores(n, "jpeg_compressibility").values()]
    scored.close()


def test_raters_are_hashed_unless_names_are_asked_for(tmp_path: Path) -> None:
    """The hash is one and the same in each file of a run, another one in another run, and no file of a run has what it was made with."""
    store, other = rated_run(tmp_path / "run"), rated_run(tmp_path / "other", secret="secret too")
    found: dict[str, set[str]] = {}
    for place, run in (("mine", store), ("theirs", other)):
        for kind, key in (("ratings", "rater"), ("pairs", "user_id")):
            out, rows = taken(tmp_path / place, kind, run)
            found.setdefault(place, set()).update(row[key] for row in rows)
            text = "".join(file.read_text(encoding="utf-8") for file in out.rglob("*") if file.suffix != ".png" and file.is_file())
            assert "anna" not in text and "secret" not in text
    assert len(found["mine"]) == len(found["theirs"]) == 2 and not found["mine"] & found["theirs"]
    assert all(re.fullmatch(r"[0-9a-f]{12}", name) for name in found["mine"])
    _, rows = taken(tmp_path / "named", "ratings", store, names=True)
    assert {row["rater"] for row in rows} == {"anna", "ben"}
    store.close()
    other.close()


@pytest.mark.parametrize("kind", DATA)
def test_the_card_s_own_python_reads_the_files(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the card is run as it stands. A prompt with a line separator and one with markup come through."""
    store = filled_run(tmp_path / "run", rounds=2, prompts=("two\u2028lines", ODD_PROMPTS[3]))
    out, rows = taken(tmp_path, kind, store)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---")[1])["pretty_name"] == "run"
    assert f"{len(rows)} rows of 2 rounds" in text and "`pocket`" in text
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], names)
    if kind == "ratings":
        told = text.replace("`", "").partition("By kind, value is:")[2].partition("counts marks")[0]
        assert all(re.search(rf"\b{each}\b", told) for each in (*VALUES, BOTH_BAD, SKIP, CLEAR, "other")) and '.groupby(["kind", ' in text
        assert len(names["ratings"]) == 16 and set(names["ratings"].prompt) == {"two\u2028lines", ODD_PROMPTS[3]}
    if kind == "pairs":
        for side in ("jpg_0", "jpg_1"):
            with Image.open(io.BytesIO(names["pairs"][0][side])) as image:
                assert image.size == (64, 64)
        assert Counter(row["caption"] for row in names["pairs"]) == {"two\u2028lines": 12, ODD_PROMPTS[3]: 12}
    if kind == "imagefolder":
        assert Path("best.png").exists()
    store.close()


def test_one_round_or_all_and_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = filled_run(tmp_path / "run", rounds=2)
    assert {row["round"] for row in taken(tmp_path, "pairs", store)[1]} == {1, 2}
    assert {row["round"] for row in taken(tmp_path / "one", "ratings", store, number=2)[1]} == {2}
    with pytest.raises(ExportError, match=r"Round 7 of run has no images\. Choose one of 1, 2"):
        export(store, "imagefolder", tmp_path / "none", 7)
    store.close()
    filled_run(tmp_path / "auto", rounds=1, reward="jpeg_compressibility").close()
    assert main(["export", str(tmp_path / "auto"), "--as", "pairs", "--out", str(tmp_path / "none")]) == 2
    assert "nobody has rated two images of one prompt and round" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_an_image_that_is_gone_stops_the_export(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "run", rounds=1)
    (store.folder / store.samples(1)[0].image).unlink()
    with pytest.raises(ExportError, match="files cannot be read"):
        export(store, "imagefolder", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    store.close()


@pytest.mark.parametrize(
    ("reward", "public"),
    [
        ("human", "human"),
        ("/home/my house/mine.py:warm", "mine.py:warm"),
        ("blend: 1 aesthetic, 0.5 /home/my house/mine.py:warm", "blend: 1 aesthetic, 0.5 mine.py:warm"),
        ("blend: 1 /my/a/mine.py:warm, 2 /my/b/mine.py:warm, 3 /my/b/mine.py:cold", "blend: 1 a/mine.py:warm, 2 b/mine.py:warm, 3 mine.py:cold"),
        ("blend: 1 /home/a/r/mine.py:warm, 2 /home/b/r/mine.py:warm", "blend: 1 a/r/mine.py:warm, 2 b/r/mine.py:warm"),
        ("blend: 1 mine.py:warm, 2 b/mine.py:warm", "blend: 1 mine.py:warm, 2 b/mine.py:warm"),
    ],
)
def test_a_reward_is_named_without_the_folders_that_tell_nothing_apart(reward: str, public: str) -> None:
    assert public_reward(reward) == public
