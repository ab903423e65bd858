"""What a model of taste believes: what the worker writes down, what the page and the report show of it, and its words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.pages.taste import signed, taste_value
from ddpo import beliefs
from ddpo.beliefs import FILE, LISTED, NEAREST, believe, in_short, read, trust
from ddpo.card import facts, model_card
from ddpo.config import RunConfig
from ddpo.dataset import raters_of
from ddpo.earlier import create, rated_in
from ddpo.rating_files import Rated
from ddpo.records import SampleRow
from ddpo.report import report
from ddpo.store import RATINGS, RunStore
from ddpo.taster import Taster
from rewards.base import Score
from rewards.human import scores
from rewards.preference import OWN, Taste
from tests.toys import add_images, filled_run


def tasted(folder: Path, earlier: Path | None = None, rounds: int = 2, prompts: tuple[str, ...] = RunConfig().prompts) -> RunStore:
    """A run of sixteen pictures a round, of which people like the bright ones, whose model of taste has said what it makes of the last round."""
    config = RunConfig(preference="lead", images_per_round=16, images_per_prompt=8, rounds=4, ratings_from=str(earlier or ""), prompts=prompts)
    store = create(folder, config)
    taster = Taster(config, store)
    for number in range(1, rounds + 1):
        add_images(store, number)
        rows = store.samples(number)
        bright = {row.id: float(np.asarray(Image.open(folder / row.image).convert("L")).mean()) for row in rows}
        for row in rows[::2]:
            middle = float(np.median([bright[each.id] for each in rows if each.prompt == row.prompt]))
            store.add_rating(f"{number}-{row.id}", row.id, "anna", "thumbs", 1.0 if bright[row.id] > middle else -1.0)
        store.close_round(number)
        said = scores(store.asked(number), store.latest_ratings(number))
        store.add_scores("human", {row.id: said.get(row.id, Score(None)) for row in rows})
        taster.guess(number)
        store.mark(number, "scored")
    return store


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return tasted(tmp_path / "toy")


def test_the_worker_writes_down_what_it_believes(store: RunStore) -> None:
    told = read(store)
    assert told and told["round"] == 2 and told["ratings"] == 16 and told["pairs"] > 0
    means = {int(id): found["mean"] for id, found in told["images"].items()}
    assert [len(told[name]) for name in ("liked", "disliked", "unsure")] == [LISTED] * 3
    assert min(means[id] for id in told["liked"]) > max(means[id] for id in told["disliked"])
    assert [means[id] for id in told["liked"]] == sorted((means[id] for id in told["liked"]), reverse=True)
    known = {row.id for number in (1, 2) for row in store.samples(number)}
    rated = {row.sample for row in store.ratings()}
    assert set(means) <= rated | {row.id for row in store.samples(2)} <= known, "what was rated, and the last round"
    wide = {int(id): found["wide"] for id, found in told["images"].items()}
    assert min(wide[id] for id in told["unsure"]) >= max(wide[id] for id in wide.keys() - set(told["unsure"])), "of all others it is surer"
    for id, found in told["images"].items():
        assert (found["said"] is not None) == (int(id) in rated)
        assert len(found["near"]) == NEAREST and [each["alike"] for each in found["near"]] == sorted(
            (each["alike"] for each in found["near"]), reverse=True
        )
        assert all(each["id"] in rated and each["id"] != int(id) for each in found["near"])
    assert (store.folder / FILE).stat().st_size < 30_000


def test_neighbours_may_come_from_elsewhere_and_each_picture_comes_once(tmp_path: Path) -> None:
    first = tasted(tmp_path / "first", rounds=1)
    second = tasted(tmp_path / "second", first.folder, rounds=1)
    told = read(second)
    assert told and told["earlier"] == 8 and told["ratings"] == 8
    near = [each for found in told["images"].values() for each in found["near"]]
    strange = [each for each in near if each["id"] is None]
    # The same pictures: a rated one's nearest neighbour is itself, as it was rated in the earlier run.
    assert strange and {each["source"] for each in strange} == {"first"}
    assert all((second.folder / RATINGS / each["image"]).exists() for each in strange)
    value = taste_value(second)
    urls = [each["url"] for group in value["lists"] for image in group["images"] for each in image["near"]]
    assert any(re.fullmatch(r"/studio/runs/second/earlier/[0-9a-f]{32}\.png", url) for url in urls)
    assert len(rated_in(second.folder)) == 8


def test_one_picture_of_several_raters_is_one_neighbour(store: RunStore) -> None:
    rows = store.samples(1)[:4]
    seen = dict(shape=np.random.default_rng(0).normal(size=(4, 3)))
    earlier = [Rated("old", rater, "a cat", value, "images/same.png") for rater, value in (("ann", 1.0), ("ben", -1.0))]
    everything = {kind: np.concatenate([values, values[:1], values[:1]]) for kind, values in seen.items()}
    taste = Taste(everything, ["a cat"] * 6, [1.0, -1.0, 1.0, -1.0, 1.0, -1.0], whose=[OWN] * 4 + ["old/ann", "old/ben"])
    found = believe(taste, rows, seen, list(zip(rows, [1.0, -1.0, 1.0, -1.0], strict=True)), earlier)
    first = found["images"][str(rows[0].id)]
    assert sum(each["image"] == "images/same.png" for each in first["near"]) == 1 and first["near"][0]["alike"] > 0.5


def test_what_others_said_is_shown_in_their_own_numbers(store: RunStore) -> None:
    """Those of a file may be on any scale, where a sign and a limit would be ours."""
    written = json.loads((store.folder / FILE).read_text())
    id = str(written["liked"][0])
    written["images"][id]["near"][0] |= dict(id=None, image=f"images/{'0' * 32}.png", source="file", said=70.0)
    written["images"][id]["near"][1] |= dict(said=1.0)
    (store.folder / FILE).write_text(json.dumps(written))
    near = taste_value(store)["lists"][0]["images"][0]["near"]
    assert [each["opinion"] for each in near[:2]] == ["70", "+1"]
    assert taste_value(store)["who"] == "you"
    store.add_rating("another", store.samples(1)[0].id, "ben", "thumbs", 1.0)
    assert taste_value(store)["who"] == "people, on average,"


def test_names_of_files_of_ratings_are_published_nowhere(tmp_path: Path) -> None:
    """They may be people's: cards and reports say how many there are."""
    first = tasted(tmp_path / "annas-secret-run", rounds=1)
    second = tasted(tmp_path / "second", first.folder, rounds=1)
    card = model_card(second, 1, "diffusers", "1", "lora.safetensors", 1.0)
    text = report(second, 1, raters_of(second), [])
    assert "annas-secret-run" not in card + text and str(tmp_path) not in card + text
    assert "8 by 1 person in 1 source" in card and "8 by 1 person in 1 source" in text and '"ratings_from": "1 source"' in card
    assert "--ratings-from RATINGS" in text and "RATINGS stands for the ratings from elsewhere" in text
    assert "ratings from elsewhere" not in dict(facts(first, 1))
    (second.folder / RATINGS / "sources.json").write_text("[1]")
    assert "ratings from elsewhere" not in dict(facts(second, 1)), "damaged"


def test_the_page_says_whose_word_is_learned_from(store: RunStore) -> None:
    for likely, words in ((0.6, "Round 2 is learned from its guesses"), (0.5, "Round 2 is learned from its own ratings")):
        store.add_metrics(2, dict(preference_likely=likely))
        assert words in taste_value(store)["text"]


def test_few_pictures_are_not_most_and_least_liked_at_once() -> None:
    rows = [SampleRow(i, 1, i, "a cat", i, f"{i}.png", 0.0) for i in range(3)]
    seen = dict(shape=np.random.default_rng(0).normal(size=(3, 3)))
    found = believe(Taste(seen, ["a cat"] * 3, [1.0, -1.0, 1.0]), rows, seen, [(row, 1.0) for row in rows], [])
    assert len(found["liked"]) == len(found["disliked"]) == 1 and found["liked"] != found["disliked"]


def test_words_say_how_far_it_can_be_trusted() -> None:
    assert "cannot be tested" in trust(dict(ratings=4, pairs=0))
    luck = trust(dict(ratings=1, pairs=3, accuracy=0.9, least=0.4))
    assert "1 rated image of this run" in luck and "90 of 100" in luck and "prove little" in luck and "more," not in luck
    sure = trust(dict(ratings=1200, earlier=30, pairs=30, accuracy=0.8, least=0.7, more=40.0))
    assert "1,200 rated images of this run and 30 ratings from elsewhere" in sure and "Rate about 40 more" in sure
    assert "more than half of your taste" in trust(dict(ratings=12, pairs=30, accuracy=0.8, least=0.7, more=0.0))
    assert "the raters like better" in trust(dict(ratings=12, pairs=30, accuracy=0.8, least=0.7), "the raters")
    assert [signed(value) for value in (0.4, -0.25, 0.0, 0.001)] == ["+0.4", "−0.25", "0", "0"]


def test_who_rates_is_told_in_short(store: RunStore) -> None:
    """What it came to in the last round that says it, where that is more than chance."""
    add_images(store, 3)
    accuracy = store.metric(2, "preference_accuracy")
    assert accuracy and in_short(store, 3) == "", "few ratings prove little"
    picked = f"Of two images it picks the one that you like better in {100 * accuracy:.0f} of 100 cases."
    store.add_metrics(2, dict(preference_more=40.0, preference_least=0.6))
    assert (
        in_short(store, 3) == in_short(store, 5) == f"{picked} It knows half of your taste after about 40 more ratings." and in_short(store, 1) == ""
    )
    store.add_metrics(2, dict(preference_more=0.0))
    assert in_short(store, 3) == f"{picked} It knows half of your taste." and in_short(store, 30) == "", "long ago"
    store.add_metrics(2, dict(preference_least=0.5))
    assert in_short(store, 3) == ""


def test_the_page_shows_it_and_says_what_is_missing(store: RunStore, tmp_path: Path) -> None:
    value = taste_value(store)
    assert value["run"] == "toy" and [group["key"] for group in value["lists"]] == ["liked", "disliked", "unsure"]
    image = value["lists"][0]["images"][0]
    assert (
        -1 <= image["low"] < image["mean"] <= image["high"] <= 1
        and image["url"].startswith("/studio/runs/toy/image/")
        and len(image["near"]) == NEAREST
    )
    fresh = RunStore.create(tmp_path / "fresh", RunConfig(preference="assist"))
    assert taste_value(fresh)["lists"] == [] and "Once a board is rated" in taste_value(fresh)["text"]
    assert taste_value(filled_run(tmp_path / "off", 1)) == dict(run=None), "a run without such a model"
    for broken in ("", "[]", "{", '{"images": 1}', "[" * 100_000):
        (store.folder / FILE).write_text(broken)
        assert taste_value(store)["lists"] == []


def test_a_file_of_others_shows_pictures_of_the_run_alone(store: RunStore, tmp_path: Path) -> None:
    """Whatever path it names; and a broken one is as none, on the page and in the report."""
    written = json.loads((store.folder / FILE).read_text())
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    key = str(written["liked"][0])
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        changed = json.loads(json.dumps(written))
        changed["images"][key]["image"] = changed["images"][key]["near"][0]["image"] = name
        (store.folder / FILE).write_text(json.dumps(changed))
        assert read(store) == read(store) and name not in json.dumps(read(store)) and taste_value(store)["lists"]
        assert report(store, 2, raters_of(store), [])
        changed["images"][key]["near"][0]["id"] = None
        (store.folder / FILE).write_text(json.dumps(changed))
        assert read(store) is None, "what came from elsewhere is named by its hash"
    for change in (
        dict(round=None), dict(liked=[[1]]), dict(unsure=1), dict(pairs="many"), dict(accuracy=None), dict(least=float("nan")),
        dict(images={key: written["images"][key] | dict(mean="high")}), dict(images={key: {}}), dict(images={"x": written["images"][key]}),
        dict(images={"999999": written["images"][key]}), dict(images={key: written["images"][key] | dict(near=[{}])}),
    ):  # fmt: skip
        (store.folder / FILE).write_text(json.dumps(written | change))
        assert taste_value(store)["lists"] == [] and "What the model of taste believes" not in report(store, 2, raters_of(store), []), change


def test_the_report_shows_it_up_to_its_round(store: RunStore) -> None:
    text = report(store, 2, raters_of(store), [])
    assert "What the model of taste believes" in text and "What it takes people to like best" in text and "the raters like better" in text
    told = read(store)
    assert told and text.count("not rated") == sum(
        told["images"][str(id)]["said"] is None for name in ("liked", "disliked", "unsure") for id in told[name]
    )
    assert "What the model of taste believes" not in report(store, 1, raters_of(store), []), "it has gone on since"
    beliefs.write(store, 2, {}, dict(images={}, liked=[], disliked=[], unsure=[]))
    assert "cannot be tested" in report(store, 2, raters_of(store), [])


def test_pictures_from_elsewhere_are_served_by_their_hash_alone(client: TestClient, tmp_path: Path) -> None:
    first = tasted(tmp_path / "first", rounds=1)
    second = create(tmp_path / "toy", RunConfig(preference="lead", ratings_from=str(first.folder)))
    image = rated_in(second.folder)[0].image
    answer = client.get(f"/studio/runs/toy/earlier/{Path(image).name}")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert answer.content == (second.folder / RATINGS / image).read_bytes()
    for name in ("0" * 32 + ".png", "..%2f..%2frun.db", "x.png", "rated.jsonl"):
        assert client.get(f"/studio/runs/toy/earlier/{name}").status_code == 404
