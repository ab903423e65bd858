"""Rounds that people rate with a model of their taste: what is shown, what is learned from, and boards that are made ahead."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

import rewards
from ddpo import beliefs
from ddpo.__main__ import ask_for_reward
from ddpo.config import ConfigError, RunConfig
from ddpo.control import Control, StopRun
from ddpo.earlier import create
from ddpo.engine import Engine
from ddpo.files import write_images
from ddpo.rating_files import Rated
from ddpo.rollout import derive_seed
from ddpo.store import RATINGS, RunStore
from ddpo.taster import GUESS, Taster, first_board, thinned
from ddpo.trainer import Trainer
from rewards.base import Score
from rewards.human import scores
from rewards.preference import OWN, Accuracy, Taste, looks
from tests.toys_ddpo import Brightness, LinearPolicy, brightness, outcome, toy_config


def human_config(**changes: Any) -> RunConfig:
    settings: dict[str, Any] = dict(
        reward="human",
        preference="lead",
        images_per_round=16,
        images_per_prompt=8,
        images_per_update=16,
        board_images=6,
        rounds=4,
        advantage="centred",
    )
    return toy_config(**(settings | changes))


class Somebody(Control):
    """Likes bright pictures; rates and applies as soon as a board waits. ``until`` stops the run when that round waits."""

    def __init__(self, store: RunStore, until: int = 0) -> None:
        super().__init__(store)
        self.until = until
        self.boards: list[list[int]] = []

    def wait_until_applied(self, number: int, images: int) -> None:
        if number == self.until:
            raise StopRun
        board = self.store.board(number)
        self.boards.append([row.position for row in board])
        values = {row.id: brightness(Image.open(self.store.folder / row.image)) for row in board}
        middle = sorted(values.values())[len(values) // 2]
        for id, value in values.items():
            self.store.add_rating(f"click-{id}", id, "anna", "thumbs", 1.0 if value >= middle else -1.0)
        self.store.close_round(number)


class Watching(Somebody):
    """Remembers what the run said that it does."""

    def __init__(self, store: RunStore) -> None:
        super().__init__(store)
        self.states: set[str] = set()

    def report(self, state: str, number: int, done: int = 0, total: int = 0) -> None:
        super().report(state, number, done, total)
        self.states.add(state)


def trained(folder: Path, config: RunConfig, until: int = 0) -> tuple[Trainer, Somebody]:
    store = RunStore(folder) if (folder / "config.json").exists() else RunStore.create(folder, config)
    person = Somebody(store, until)
    trainer = Trainer(config, store, LinearPolicy(config), person)
    if until:
        with pytest.raises(StopRun):
            trainer.run()
    else:
        assert trainer.run()
    return trainer, person


@pytest.mark.parametrize(
    ("images_per_prompt", "board_images", "wanted"),
    [
        (8, 6, {0, 1, 2, 8, 9, 10}),
        (8, 16, set(range(16))),
        (4, 2, {0, 1}),
        (4, 4, {0, 1, 4, 5}),
        (4, 5, {0, 1, 2, 4, 5}),
        (4, 6, {0, 1, 4, 5, 8, 9}),
        (4, 9, {0, 1, 2, 4, 5, 8, 9, 12, 13}),
        (2, 4, {0, 1, 2, 3}),
    ],
)
def test_the_first_board_has_two_of_a_prompt_at_least(images_per_prompt: int, board_images: int, wanted: set[int]) -> None:
    assert first_board(human_config(images_per_prompt=images_per_prompt, board_images=board_images)) == wanted


def test_the_first_board_is_of_what_will_be_made_ahead() -> None:
    assert first_board(half(board_images=5)) == {0, 1, 2, 3, 4}
    assert first_board(half(images_per_prompt=4, board_images=5)) == {0, 1, 2, 4, 5}
    threes = dict(images_per_round=24, images_per_prompt=3, images_per_update=24, board_images=12, ahead=16, microbatch=8)
    assert first_board(human_config(**threes)) == set(range(15)) - {8, 11, 14}, "none is alone of its prompt"
    assert half(ahead=3).board_pool == 8, "whole microbatches, and as many as the board has"
    assert (half(ahead=0).board_pool, half(ahead=32).board_pool, half(board_images=0).board_pool) == (16, 16, 16)


def test_people_rate_a_few_and_all_are_learned_from(tmp_path: Path) -> None:
    trainer, person = trained(tmp_path / "run", human_config(seed=1))
    store = trainer.store
    assert [len(board) for board in person.boards] == [6, 6, 6, 6] and person.boards[0] == [0, 1, 2, 8, 9, 10]
    assert person.boards[1] != person.boards[0], "the later ones are chosen"
    for number in range(1, 5):
        said, guessed = store.scores(number, "human"), store.scores(number, GUESS)
        assert sum(score.value is not None for score in said.values()) == 6
        assert len(guessed) == 16 and all(score.value is not None and score.explanation["std"] > 0 for score in guessed.values())
        assert (trainer.taster.learned(number) == guessed) is trainer.taster.leads(number)
    metrics = store.metrics()
    assert [(likely or 0.0) > 0.52 for _, likely in metrics["preference_likely"]] == [trainer.taster.leads(number) for number in range(1, 5)]
    assert trainer.taster.leads(4)
    assert [value for _, value in metrics["preference_ratings"]] == [6, 12, 18, 24]
    assert all(value is not None and 0 <= value <= 1 for _, value in metrics["preference_known"])
    assert [value for _, value in metrics["scored_images"]] == [6] * 4, "people's own ratings are what is charted"


def test_boards_are_made_ahead_over_the_rounds_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model of taste is worth asking from the first board on."""
    monkeypatch.setattr(beliefs, "leads", lambda store, config, number: True)
    trainer, person = trained(tmp_path / "run", human_config(ahead=32, board_every=2, rounds=5))
    assert len(person.boards) == 3
    assert dict(trainer.store.metrics()["updates_behind"]) == {1: 0.0, 2: 0.0, 3: 2.0, 4: 0.0, 5: 2.0}
    assert [trainer.taster.next_board(n) for n in (1, 2, 3)] == [3, 3, 5]
    assert [len(trainer.store.board(n)) for n in range(1, 6)] == [6, 0, 6, 0, 6]
    assert person.boards[2] != sorted(first_board(trainer.config)), "the third is chosen by the ratings of the first"


def test_boards_made_ahead_stay_boards_and_others_come_between_as_the_model_of_taste_is_worth_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first ratings it mostly is, so 3 is made ahead of 2, and 5 ahead of 4; after 3 it is not, so people are asked about 4 as well."""
    monkeypatch.setattr(
        beliefs, "leads", lambda store, config, number: number in (1, 2, 4) and store.metric(number, "preference_accuracy") is not None
    )
    trainer, person = trained(tmp_path / "run", human_config(ahead=32, board_every=2, rounds=6))
    assert [len(trainer.store.board(n)) for n in range(1, 7)] == [6, 0, 6, 6, 6, 6] and len(person.boards) == 5
    assert dict(trainer.store.metrics()["updates_behind"]) == {1: 0.0, 2: 0.0, 3: 2.0, 4: 0.0, 5: 2.0, 6: 0.0}


def half(**changes: Any) -> RunConfig:
    """The first of two prompts is made ahead, and the board is of it."""
    return human_config(**(dict(ahead=8, microbatch=4, board_every=2, rounds=5) | changes))


@pytest.mark.parametrize("led", [True, False])
def test_what_is_made_ahead_to_be_rated_is_not_learned_from_where_guesses_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, led: bool) -> None:
    monkeypatch.setattr(beliefs, "leads", lambda store, config, number: led)
    learned: dict[int, tuple[list[bool], bool]] = {}
    learn = Engine.learn

    def spy(self: Engine, number: int, values: Sequence[float], rated: Sequence[bool], stale: bool = False) -> dict[str, Any]:
        assert all(value == 0 for value, known in zip(values, rated, strict=True) if not known)
        learned[number] = list(rated), stale
        return learn(self, number, values, rated, stale)

    monkeypatch.setattr(Engine, "learn", spy)
    trainer, person = trained(tmp_path / "run", half())
    store = trainer.store
    asked = [1, 3, 5] if led else [1, 2, 3, 4, 5]
    assert [n for n in range(1, 6) if store.board(n)] == asked and len(person.boards) == len(asked)
    assert all(position < 8 for board in person.boards for position in board) and {len(board) for board in person.boards} == {6}
    assert person.boards[-1] != person.boards[0], "it is chosen, of those that are there"
    for number, (rated, stale) in learned.items():
        ahead = [row.updates < number - 1 for row in store.samples(number)]
        assert ahead == [number in asked[1:] and (led or number != 2)] * 8 + [False] * 8
        assert rated == ([not each for each in ahead] if led else [True] * 16) and stale is (not led and any(ahead))
    behind = dict(store.metrics()["updates_behind"])
    assert behind == (dict.fromkeys(range(1, 6), 0.0) if led else {1: 0.0, 2: 0.0, 3: 2.0, 4: 1.0, 5: 1.0})


def test_a_round_is_learned_from_where_few_of_its_images_are_new_or_all_are_on_its_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beliefs, "leads", lambda store, config, number: True)
    for name, changes in dict(all=dict(ahead=16), nearly=dict(ahead=15, microbatch=5), shown=dict(ahead=8, board_images=0, board_every=1)).items():
        trainer, _ = trained(tmp_path / name, half(**changes))
        odd, even = (0.0, 2.0) if name != "shown" else (1.0, 1.0)
        assert dict(trainer.store.metrics()["updates_behind"]) == {1: 0.0, 2: odd, 3: even, 4: odd, 5: even}
        assert all(value == 16.0 for _, value in trainer.store.metrics()["learned_images"])


def test_a_board_that_is_chosen_of_what_is_made_ahead_stays_when_the_rest_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on the page, with more said meanwhile than was known when it was chosen."""
    monkeypatch.setattr(beliefs, "leads", lambda store, config, number: True)
    trainer, _ = trained(tmp_path / "run", half(), until=3)
    store = trainer.store
    board = [row.position for row in store.board(5)]
    assert len(board) == 6 and (len(store.samples(3)), len(store.samples(5))) == (16, 8)
    trainer, person = trained(tmp_path / "run", half(), until=5)
    assert [row.position for row in trainer.store.board(5)] == board and len(person.boards) == 1 and len(trainer.store.samples(5)) == 16
    anew = trainer.taster._taste(trainer.taster._rated(4), trainer.store.samples(5))
    assert anew is not None
    looks_of = trainer.taster._looks([row.image for row in trainer.store.samples(5)[:8]])
    seed = derive_seed(trainer.config.seed, 5, "board")
    assert anew.choose(looks_of, [row.prompt for row in trainer.store.samples(5)[:8]], 6, seed) != board, "it would be another one now"


@pytest.mark.parametrize("kill", [2, 3])
@pytest.mark.parametrize("led", [True, False])
def test_who_stops_while_a_board_is_made_ahead_finds_it_chosen_as_it_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, led: bool, kill: int
) -> None:
    monkeypatch.setattr(beliefs, "leads", lambda store, config, number: led)
    trained(tmp_path / "straight", half())
    store = RunStore.create(tmp_path / "stopped", half())

    class Stops(Somebody):
        count = 0

        def report(self, state: str, number: int, done: int = 0, total: int = 0) -> None:
            super().report(state, number, done, total)
            self.count += (state, number) == ("awaiting", 3)
            if self.count == kill:
                raise StopRun

    with pytest.raises(StopRun):
        Trainer(half(), store, LinearPolicy(half()), Stops(store)).run()
    store.close()
    trained(tmp_path / "stopped", half(), until=3)
    trained(tmp_path / "stopped", half())
    assert outcome(tmp_path / "straight") == outcome(tmp_path / "stopped")


@pytest.mark.parametrize(("images", "shown_as"), [(6, 0), (8, 4)])
def test_a_board_is_there_as_soon_as_its_images_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, shown_as: int) -> None:
    """In a round of its own, too, which was not made ahead; one that has all of them is seen as they come."""
    monkeypatch.setattr(beliefs, "leads", lambda store, config, number: False)
    store = RunStore.create(tmp_path / "run", half(rounds=2, board_images=images))
    seen: dict[int, int] = {}

    class Watches(Somebody):
        def report(self, state: str, number: int, done: int = 0, total: int = 0) -> None:
            super().report(state, number, done, total)
            if (state, number) == ("sampling", 2):
                seen[done] = len(store.board(2))

    assert Trainer(half(rounds=2, board_images=images), store, LinearPolicy(half(board_images=images)), Watches(store)).run()
    assert seen == {0: 0, 4: shown_as, 8: images, 12: images, 16: images}


@pytest.mark.parametrize(("ahead", "wanted"), [(8, [(1, 8), (3, 8), (1, 8), (2, 16), (5, 8), (3, 8), (4, 16), (5, 8)]), (0, [])])
def test_the_next_board_comes_before_what_is_only_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, wanted: list[tuple[int, int]]
) -> None:
    """So that who is quick with a board finds the next one there."""
    monkeypatch.setattr(beliefs, "leads", lambda store, config, number: True)
    made: list[int] = []
    add_samples = RunStore.add_samples

    def spy(self: RunStore, number: int, *positions: Any, **batch: Any) -> None:
        made.extend([number] * len(batch["positions"]))
        add_samples(self, number, *positions, **batch)

    monkeypatch.setattr(RunStore, "add_samples", spy)
    trained(tmp_path / "run", half(ahead=ahead))
    assert [(number, len(list(same))) for number, same in groupby(made)] == (wanted or [(number, 16) for number in range(1, 6)])


def test_where_nobody_rates_nothing_is_made_ahead(tmp_path: Path) -> None:
    """By an automatic reward from the start; boards and what is ahead mean nothing then."""
    store = RunStore.create(tmp_path / "run", half(reward="jpeg_compressibility", board_every=1))
    person = Watching(store)
    trainer = Trainer(store.config, store, LinearPolicy(store.config), person)
    assert trainer.run() and "awaiting" not in person.states
    assert {value for _, value in store.metrics()["updates_behind"]} == {0.0}


def test_people_see_the_next_board_while_rounds_without_one_are_made(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", human_config(ahead=32, board_every=2))
    one = write_images(store.folder, 1, [Image.new("L", (4, 4))])
    for number, shown in ((1, {0}), (3, {0}), (2, set())):
        store.start_round(number)
        store.add_samples(number, [0], ["a cat"], [number], one, shown)
        found = store.open_round()
        assert found and found.number == 1
    store.close_round(1)
    found = store.open_round()
    assert found and found.number == 3
    store.close_round(3)
    found = store.open_round()
    assert found and found.number == 3, "the newest"


def test_a_taste_of_bright_pictures_is_found(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path / "run", human_config())
    store, found = trainer.store, []
    for prompt in trainer.config.prompts:
        rows = [row for row in store.samples(4) if row.prompt == prompt]
        guessed = [store.scores(4, GUESS)[row.id].value or 0.0 for row in rows]
        found.append(np.corrcoef([brightness(Image.open(store.folder / row.image)) for row in rows], guessed)[0, 1])
    assert min(found) > 0.5


def test_two_who_are_not_equally_hard_to_please_are_on_levels_of_their_own(tmp_path: Path) -> None:
    """Anna rates half of each prompt's pictures with 1 and 2 stars, Ben the other half with 4 and 5; both like bright ones. Where all rated the same
    pictures, or one is left out, there is one level."""
    config = human_config(board_images=0)
    store = RunStore.create(tmp_path / "run", config)
    store.start_round(1)
    bright = [0.1, 0.7, 0.3, 0.9, 0.8, 0.2, 0.6, 0.4] * 2
    pictures = [Image.new("RGB", (16, 16), (round(255 * level),) * 3) for level in bright]
    store.add_samples(1, range(16), [prompt for prompt in config.prompts for _ in range(8)], range(16), write_images(store.folder, 1, pictures))
    rows, taster = store.samples(1), Taster(config, store)
    for row, level in zip(rows, bright, strict=True):
        anna = row.position % 4 < 2
        store.add_rating(f"{row.id}", row.id, "anna" if anna else "ben", "stars", (1.0 if anna else 4.0) + (level > 0.5))
    store.close_round(1)
    store.add_scores("human", scores(store.asked(1), store.last_words(1)))
    heard = taster._rated(1)
    assert [(each.whose, each.counts) for each in heard[:4]] == [('/["anna"]', 1.0)] * 2 + [('/["ben"]', 1.0)] * 2
    store.choose("rater ben", "half")
    assert [each.counts for each in taster._rated(1)[:4]] == [1.0, 1.0, 0.5, 0.5]
    taste = taster.trusted(1)
    assert taste is not None
    dark, light = taste.guess(looks([pictures[0], pictures[3]]), ["a cat"] * 2).mean
    assert dark < light
    store.choose("rater ben", "out")
    assert [(each.whose, each.counts) for each in taster._rated(1)] == [(OWN, 1.0)] * 8
    store.choose("rater ben", "in")
    for row in rows:
        for name in ("anna", "ben"):
            store.add_rating(f"all {name} {row.id}", row.id, name, "stars", 3.0, board=1)
    assert [(each.whose, each.counts, each.said) for each in taster._rated(1)] == [(OWN, 1.0, 0.0)] * 16


def test_the_taste_for_pictures_of_elsewhere(tmp_path: Path) -> None:
    """The brighter the better liked, of one prompt; nothing where nobody rated, or ratings and pictures have nothing in common."""
    trainer, _ = trained(tmp_path / "run", human_config(rounds=6, board_images=0))
    pictures = [Image.new("RGB", (16, 16), (level, level, level)) for level in (20, 120, 220)]
    taste = Taster(trainer.config.with_changes(preference="off"), trainer.store)
    trusted = taste.trusted(6)
    assert trusted is not None
    dark, grey, bright = trusted.guess(looks(pictures), ["a cat"] * 3).mean
    assert dark < grey < bright
    assert taste.trusted(0) is None
    store = RunStore.create(tmp_path / "alike", human_config())
    store.start_round(1)
    prompts = [prompt for prompt in human_config().prompts for _ in range(8)][:16]
    store.add_samples(1, range(16), prompts, range(16), write_images(store.folder, 1, pictures[:1] * 16))
    for i, row in enumerate(store.samples(1)):
        store.add_rating(f"{i}", row.id, "anna", "thumbs", (-1.0) ** i)
    store.close_round(1)
    store.add_scores("human", {row.id: Score((-1.0) ** i) for i, row in enumerate(store.samples(1))})
    assert Taster(human_config(), store).trusted(1) is None


def test_ratings_of_an_earlier_run_are_a_beginning_and_count_for_nothing_else(tmp_path: Path) -> None:
    first, _ = trained(tmp_path / "first", human_config(seed=1, rounds=2))
    config = human_config(seed=2, rounds=2, ratings_from=str(tmp_path / "first"))
    create(tmp_path / "second", config).close()
    first.store.close()
    shutil.rmtree(tmp_path / "first")
    trainer, person = trained(tmp_path / "second", config)
    alone, other = trained(tmp_path / "alone", human_config(seed=2, rounds=1))
    assert other.boards[0] == sorted(first_board(config)) != person.boards[0], "its first board is chosen by what is known"
    store = trainer.store
    metrics = {name: [value for _, value in points] for name, points in store.metrics().items()}
    assert metrics["preference_ratings"] == [6, 12] and metrics["preference_earlier"] == [12, 12] and metrics["scored_images"] == [6, 6]
    known = alone.store.metrics()["preference_known"][0][1]
    assert (metrics["preference_known"][0] or 0.0) > (known or 0.0)
    assert 0 < (metrics["preference_pairs"][0] or 0.0) <= 9, "pairs of six ratings of its own, not of eighteen"
    assert {row.rater for row in store.ratings()} == {"anna"} and len(store.ratings()) == 12


def test_of_very_many_earlier_ratings_some_from_all_over_are_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore.create(tmp_path / "run", human_config())
    (store.folder / RATINGS).mkdir()
    rows = [dict(source="old", rater="anna", prompt="a cat", opinion=i / 1000, image=f"images/{0:032}.png") for i in range(900)]
    (store.folder / RATINGS / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("ddpo.taster.MOST_EARLIER", 90)
    found = [each.opinion for each in Taster(store.config, store).earlier]
    assert found == [i / 1000 for i in range(0, 900, 10)]
    assert Taster(store.config.with_changes(preference="off", board_images=0), store).earlier == []


def test_assist_keeps_peoples_own_words(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path / "run", human_config(preference="assist", rounds=2))
    said, guessed, learned = trainer.store.scores(2, "human"), trainer.store.scores(2, GUESS), trainer.taster.learned(2)
    rated = {id for id, score in said.items() if score.value is not None}
    assert {id: learned[id].value for id in rated} == {id: said[id].value for id in rated}
    for prompt in trainer.config.prompts:
        ids = [row.id for row in trainer.store.samples(2) if row.prompt == prompt and row.id not in rated]
        values, guesses = ([scores[id].value or 0.0 for id in ids] for scores in (learned, guessed))
        np.testing.assert_allclose(np.diff(values), np.diff(guesses), atol=1e-12)


@pytest.mark.parametrize(("advantage", "preference"), [("group", "assist"), ("group", "lead"), ("centred", "assist")])
def test_faint_guesses_of_a_prompt_that_nobody_rated_count_as_much_as_they_are_known(tmp_path: Path, advantage: str, preference: str) -> None:
    """Standardised within their prompt they would count as much as anybody's own words. With one spread for all prompts they do not."""
    config = human_config(preference=preference, advantage=advantage, rounds=2, board_images=4, ahead=8, microbatch=8)
    trainer, _ = trained(tmp_path / "run", config)
    rows, guessed, sizes = trainer.store.samples(2), trainer.store.scores(2, GUESS), trainer.weights(2).values
    cat, dog = ([i for i, row in enumerate(rows) if row.prompt == prompt] for prompt in config.prompts)
    (certain,) = {guessed[rows[i].id].explanation["certain"] for i in dog}
    assert 0 < certain < 0.95 and any(rows[i].shown for i in cat) and not any(rows[i].shown for i in dog)
    assert trainer.taster.leads(2) is (preference == "lead")
    if advantage == "group":
        wanted = certain**0.5 if preference == "assist" else 1.0
        assert [float(sizes[own].pow(2).mean().sqrt()) for own in (cat, dog)] == pytest.approx([1.0, wanted], abs=1e-5)
    assert sizes[dog].mean().abs() < 1e-6


def test_guesses_beside_words_that_say_the_same_are_faint_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt whose images people all like, only guesses tell which are better."""
    monkeypatch.setattr(Judge, "said", {"a cat": 1.0, "a dog": 1.0})
    config = human_config(preference="assist", rounds=2, advantage="group")
    store = RunStore.create(tmp_path / "run", config)
    trainer = Trainer(config, store, LinearPolicy(config), Judge(store))
    assert trainer.run()
    guessed = store.scores(2, GUESS)
    assert trainer.taster.certainty(2) == pytest.approx([guessed[row.id].explanation["certain"] ** 0.5 for row in store.samples(2)])  # type: ignore[operator]


class Judge(Somebody):
    """Says of a prompt what it is told, whatever the picture."""

    said: ClassVar = {"a cat": 1.0, "a dog": 1.0}

    def wait_until_applied(self, number: int, images: int) -> None:
        for row in self.store.board(number):
            self.store.add_rating(f"click-{row.id}", row.id, "anna", "thumbs", self.said[row.prompt])
        self.store.close_round(number)


@pytest.mark.parametrize("dog", [1.0, -1.0])
@pytest.mark.parametrize("advantage", ["group", "centred"])
def test_to_be_shown_is_neither_good_nor_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dog: float, advantage: str) -> None:
    """Of who likes whole prompts, shown images and the others learn the same on average; of who likes everything, nothing is learned."""
    monkeypatch.setattr(Judge, "said", {"a cat": 1.0, "a dog": dog})
    config = human_config(preference="assist", rounds=2, advantage=advantage)
    store = RunStore.create(tmp_path / "run", config)
    trainer = Trainer(config, store, LinearPolicy(config), Judge(store))
    assert trainer.run()
    for number in (1, 2):
        advantages, rows = trainer.weights(number).values.tolist(), store.samples(number)
        for prompt in config.prompts:
            for shown in (True, False):
                own = [a for a, row in zip(advantages, rows, strict=True) if row.prompt == prompt and row.shown == shown]
                assert not own or abs(np.mean(own)) < 1e-5, (number, prompt, shown)
        assert any(advantages) or dog == 1.0


def test_it_sees_with_a_clip_as_well(tmp_path: Path) -> None:
    """The pocket's, by the run's own settings; each picture is looked at alone and once."""
    config = human_config(rounds=2, preference_sees="clip", reward_models="pocket", reward_offload=True)
    trainer, _ = trained(tmp_path / "run", config)
    store, taster = trainer.store, trainer.taster
    assert taster._tower is not None and taster._tower._parts is None, "its memory is given back"
    with Image.open(store.folder / store.samples(1)[0].image) as image:
        seen, plain = taster.look([image, image]), looks([image, image])
        vectors = rewards.load("clip_score", "pocket").clip.images([image]).numpy()
    assert set(seen) == {*plain, "clip"} and seen["clip"].shape == (2, vectors.shape[1])
    np.testing.assert_allclose(seen["clip"], [vectors[0], vectors[0]], atol=1e-6)
    assert "clip" in taster._looks([store.samples(2)[0].image])
    assert len(store.scores(2, GUESS)) == 16


def test_what_it_cannot_see_with_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = human_config(preference_sees="pickscore")
    store = RunStore.create(tmp_path / "run", config)
    with pytest.raises(rewards.RewardError, match="PickScore_v1 is not in"):
        Trainer(config, store, LinearPolicy(config), Somebody(store)).run()
    assert not store.rounds()
    with pytest.raises(ConfigError, match="Choose preference lead or assist"):
        RunConfig(preference_sees="clip")


@pytest.mark.parametrize(("likely", "leads"), [(0.53, True), (0.51, False)])
def test_it_does_not_lead_whom_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, likely: float, leads: bool) -> None:
    """Whose better one of two is not likely to be picked more often than not keeps their own words, as with assist."""
    monkeypatch.setattr(Taste, "accuracy", lambda self: Accuracy(0.4, 0.3, likely, 30))
    trainer, _ = trained(tmp_path / "run", human_config(rounds=2))
    for number in (1, 2):
        own = {id: score for id, score in trainer.store.scores(number, "human").items() if score.value is not None}
        learned = trainer.taster.learned(number)
        assert trainer.taster.leads(number) is leads and len(own) == 6
        assert (learned == trainer.store.scores(number, GUESS)) is leads and all(learned[id] == own[id] for id in own) is not leads


def test_of_many_ratings_from_elsewhere_whole_prompts_are_left() -> None:
    """A prompt's ratings teach by their differences: a part of each would teach little."""
    rated = [Rated(source, f"{i % 3}", f"prompt {i % 40}", float(i), f"{i}.png") for i in range(900) for source in ("one", "two")]
    groups = Counter((each.who, each.prompt) for each in rated)
    left = thinned(rated, 600)
    assert 560 < len(left) <= 600 and left == sorted(left, key=rated.index) == thinned(rated, 600)
    assert all(count == groups[name] for name, count in Counter((each.who, each.prompt) for each in left).items())
    assert {each.who for each in left} == {each.who for each in rated} and thinned(rated[:600], 600) == rated[:600]
    assert len(thinned([Rated("one", "ann", "a cat", 0.0, f"{i}.png") for i in range(700)], 600)) == 600


def test_without_it_nothing_changes(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path / "run", human_config(preference="off", board_images=0, rounds=2))
    assert trainer.store.scores(1, GUESS) == {} and not any(name.startswith("preference") for name in trainer.store.metrics())
    assert trainer.taster.learned(1) == trainer.store.scores(1, "human")


def test_a_board_that_somebody_has_begun_stays(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path / "run", human_config(), until=3)
    store = trainer.store
    before = [row.id for row in store.board(3)]
    store.add_rating("early", before[0], "anna", "thumbs", 1.0)
    for row in store.board(2):
        store.add_rating(f"changed-{row.id}", row.id, "bob", "thumbs", -1.0)
    Taster(trainer.config, store).choose(3)
    assert [row.id for row in store.board(3)] == before


def test_a_late_rating_teaches_the_model_of_taste_and_changes_no_score(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path / "run", human_config(), until=3)
    store, taster = trainer.store, Taster(trainer.config, trainer.store)
    row = store.round(1)
    assert row and row.closed_at
    before, scored = {each.row.id: each.said for each in taster._rated(2)}, store.scores(1, "human")
    first = store.board(1)[0].id
    store.add_rating("late", first, "anna", "thumbs", -before[first], board=1)
    store.add_rating("once more", store.board(1)[1].id, "anna", "thumbs", 1.0, board=4)
    assert {each.row.id: each.said for each in taster._rated(2)} == before | {first: -before[first]}
    assert store.scores(1, "human") == scored


def test_a_board_that_will_be_chosen_is_not_shown_before(tmp_path: Path) -> None:
    """No picture is taken from under somebody's hand: while the images are made nothing is shown, unless there is nothing to choose by."""
    config, seen = human_config(microbatch=4, rounds=2), dict[int, set[int]]()
    store = RunStore.create(tmp_path / "run", config)
    person = Somebody(store)
    person.watcher = lambda state, number, done, total: (  # type: ignore[assignment]
        seen.setdefault(number, set()).add(len(store.board(number))) if state == "sampling" and done < total else None
    )
    assert Trainer(config, store, LinearPolicy(config), person).run()
    assert seen == {1: {0, 3, 6}, 2: {0}} and [len(store.board(n)) for n in (1, 2)] == [6, 6]


def test_a_rating_while_the_board_is_chosen_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = trained(tmp_path / "run", human_config(), until=3)
    store, chosen = trainer.store, Taste.choose
    store.show(3, [row.id for row in store.samples(3)[:6]])
    before = [row.id for row in store.board(3)]

    def slow(self: Taste, *arguments: Any) -> list[int]:
        RunStore(store.folder).add_rating("meanwhile", before[0], "anna", "thumbs", 1.0)
        return chosen(self, *arguments)

    monkeypatch.setattr(Taste, "choose", slow)
    Taster(trainer.config, store).choose(3)
    assert [row.id for row in store.board(3)] == before


def test_while_it_is_right_more_often_than_not_the_model_of_taste_scores_alone_between_boards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else people are asked each time: here after the first and the third board. Where nobody was asked, its trust stays what it was."""
    monkeypatch.setattr(Taste, "accuracy", lambda self: Accuracy(0.6, 0.4, 0.5 if self.own.sum() in (6, 18) else 0.6, 9))
    trainer, _ = trained(tmp_path / "run", human_config(board_every=3, rounds=8))
    store, likely = trainer.store, dict(trainer.store.metrics()["preference_likely"])
    asked = [number for number in range(1, 9) if store.board(number)]
    promising = [number for number in range(1, 9) if (likely[number] or 0.0) > 0.52]
    assert 1 not in promising and asked == [number for number in range(1, 9) if number in (1, 4, 7) or number - 1 not in promising]
    assert 2 in asked and 6 not in asked
    for number in range(1, 9):
        assert bool(store.scores(number, "human")) is (number in asked) and len(store.scores(number, GUESS)) == 16
        assert number in asked or all(
            store.metric(number, f"preference_{name}") == store.metric(number - 1, f"preference_{name}") for name in TRUSTED
        )
        assert number in asked or trainer.taster.learned(number) == store.scores(number, GUESS)
    assert [value for _, value in store.metrics()["preference_ratings"]] == [6.0 * sum(board <= number for board in asked) for number in range(1, 9)]
    assert [value for _, value in store.metrics()["updates"]] == [1.0] * 8


TRUSTED = ("accuracy", "least", "likely", "pairs")


@pytest.mark.parametrize(
    "changes",
    [dict(), dict(ahead=16), dict(ahead=16, board_every=2), dict(ahead=8, microbatch=4), dict(ahead=4, board_images=0, microbatch=4)],
)
@pytest.mark.parametrize("until", [1, 3])
def test_a_run_that_stopped_while_people_rated_comes_to_the_same(tmp_path: Path, changes: dict[str, Any], until: int) -> None:
    config = human_config(**changes)
    trained(tmp_path / "straight", config)
    trained(tmp_path / "stopped", config, until)
    trained(tmp_path / "stopped", config)
    straight, stopped = outcome(tmp_path / "straight"), outcome(tmp_path / "stopped")
    assert straight == stopped


def test_the_next_board_is_made_while_this_one_is_rated(tmp_path: Path) -> None:
    """Made by the model that has not learned this board's ratings, and learned from with the ratio that this makes."""
    trainer, _ = trained(tmp_path / "run", human_config(ahead=32), until=2)
    store = trainer.store
    first, second, third = (store.round(n) for n in (1, 2, 3))
    assert first and second and third
    assert second.sampled_at is not None and first.updated_at is not None and second.sampled_at < first.updated_at
    assert third.sampled_at is not None and third.sampled_at > first.updated_at, "at most one update behind"
    found = store.open_round()
    assert found and found.number == 2, "people see the board that waits, not the one in the making"
    store.close()
    trainer, _ = trained(tmp_path / "run", human_config(ahead=32))
    behind = dict(trainer.store.metrics()["updates_behind"])
    assert behind == {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}
    deviation = dict(trainer.store.metrics()["ratio_mean"]) if "ratio_mean" in trainer.store.metrics() else {}
    assert not deviation or any(value != 1.0 for value in deviation.values())


class Killed(BaseException):
    """kill -9."""


class Plans(Control):
    """Does what it is told at each report of a state, by how many there have been."""

    def __init__(self, store: RunStore, state: str, plan: dict[int, Callable[[], Any]]) -> None:
        super().__init__(store)
        self.state, self.plan, self.count = state, plan, 0
        self.totals: list[tuple[int, int]] = []

    def report(self, state: str, number: int, done: int = 0, total: int = 0) -> None:
        if state == self.state:
            self.totals.append((number, total))
            self.count += 1
            self.plan.get(self.count, lambda: None)()
        super().report(state, number, done, total)


def test_the_first_images_of_the_next_board_are_made_while_this_one_is_rated(tmp_path: Path) -> None:
    """As many microbatches as hold so many, by the model that has not learned this board's ratings; the others by the one that has."""
    config = plain(ahead=5)
    trainer, _ = trained(tmp_path / "run", config, until=1)
    row = trainer.store.round(2)
    assert row and row.sampled_at is None and [sample.position for sample in trainer.store.samples(2)] == list(range(8))
    made = trainer.store.metric(2, "seconds_sampling")
    assert made
    trainer.store.close()
    trainer, _ = trained(tmp_path / "run", config)
    assert [row.updates for row in trainer.store.samples(2)] == [0] * 8 + [1] * 8
    assert [row.updates for row in trainer.store.samples(3)] == [1] * 8 + [2] * 8
    assert dict(trainer.store.metrics()["updates_behind"]) == {1: 0.0, 2: 1.0, 3: 1.0}
    assert (trainer.store.metric(2, "seconds_sampling") or 0.0) > made, "what was made ahead is part of the round's time"
    assert all(row.shown for row in trainer.store.samples(2))


def killed() -> None:
    raise Killed


def plain(**changes: Any) -> RunConfig:
    return human_config(**(dict(ahead=32, preference="off", board_images=0, rounds=3, microbatch=4) | changes))


def rate_all(store: RunStore, number: int) -> None:
    for i, row in enumerate(store.board(number)):
        store.add_rating(f"c{row.id}", row.id, "anna", "thumbs", 1.0 if i % 2 else -1.0)
    store.add_request("apply", round=number)


def test_a_round_half_made_ahead_is_known_to_be_behind(tmp_path: Path) -> None:
    """Killed while the next board is made, and gone on with by a reward that asks nobody: the rest of it is made by the next policy. What the dead
    worker left without a row is made anew."""
    config = plain()
    store = RunStore.create(tmp_path / "run", config)
    left = Trainer(config, store, LinearPolicy(config), Plans(store, "awaiting", {3: killed}))
    with pytest.raises(Killed):
        left.run()
    assert [row.updates for row in store.samples(2)] == [0] * 8
    half = left.engine.part(2, 8)
    half.write_bytes(left.engine.part(2, 0).read_bytes())  # the third part, without its rows
    store.add_request("reward", reward="jpeg_compressibility")
    trainer = Trainer(config, store, LinearPolicy(config), Control(store, waits=False), Brightness)
    assert trainer.run()
    assert [row.updates for row in store.samples(2)] == [0] * 8 + [1] * 8
    assert dict(store.metrics()["updates_behind"]) == {1: 0.0, 2: 1.0, 3: 0.0}


def test_a_file_without_rows_of_an_earlier_policy_is_made_anew(tmp_path: Path) -> None:
    config = plain(rounds=2)
    store = RunStore.create(tmp_path / "run", config)
    trainer = Trainer(config, store, LinearPolicy(config), Control(store, waits=False), Brightness)
    store.add_request("reward", reward="jpeg_compressibility")
    trainer.engine.sample(2, [0])
    assert trainer.run(), "an old file would be refused, as no sample of the present policy"
    assert dict(store.metrics()["updates_behind"]) == {1: 0.0, 2: 0.0}


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [2e9]

    class Clock:
        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        def time(self) -> float:
            now[0] -= 5.0
            return now[0]

    monkeypatch.setattr("ddpo.store.time", Clock())
    trainer, _ = trained(tmp_path / "run", human_config(ahead=32, rounds=3))
    assert dict(trainer.store.metrics()["updates_behind"]) == {1: 0.0, 2: 1.0, 3: 1.0}


def test_a_wish_after_people_applied_waits_for_the_next_round_also_when_killed(tmp_path: Path) -> None:
    config = plain(rounds=2)
    store = RunStore.create(tmp_path / "run", config)
    plan = {3: lambda: rate_all(store, 1), 4: lambda: store.add_request("reward", reward="jpeg_compressibility"), 5: killed}
    with pytest.raises(Killed):
        Trainer(config, store, LinearPolicy(config), Plans(store, "awaiting", plan)).run()
    first = store.round(1)
    assert first and first.closed_at is not None and store.scores(1, "human") == {}
    assert Trainer(config, store, LinearPolicy(config), Control(store, waits=False), Brightness).run()
    assert [store.reward_at(number) for number in (1, 2)] == ["human", "jpeg_compressibility"]


def test_the_boards_size_is_what_is_waited_for_all_along(tmp_path: Path) -> None:
    config = human_config(ahead=32, rounds=2, microbatch=4)
    store = RunStore.create(tmp_path / "run", config)
    plans = Plans(store, "awaiting", {6: lambda: rate_all(store, 1), 7: lambda: rate_all(store, 2)})
    assert Trainer(config, store, LinearPolicy(config), plans).run()
    assert plans.totals == [(1, 6)] * 6 + [(2, 6)]


def test_the_time_of_a_board_made_ahead_is_counted_once(tmp_path: Path) -> None:
    config = human_config(ahead=32, rounds=2)
    store = RunStore.create(tmp_path / "run", config)
    trainer = Trainer(config, store, LinearPolicy(config), Somebody(store))
    sample = trainer.sample

    def slow(*arguments: Any) -> None:
        time.sleep(2.0)
        sample(*arguments)

    trainer.sample = slow  # type: ignore[method-assign]
    assert trainer.run()
    seconds = store.metrics()
    assert (dict(seconds["seconds_sampling"])[2] or 0) >= 2 > (dict(seconds["seconds_scoring"])[1] or 9)


def test_a_blend_with_peoples_part_is_refused_in_the_middle_too(tmp_path: Path) -> None:
    config = human_config()
    store = RunStore.create(tmp_path / "run", config)
    blend = "blend: 1 human, 1 jpeg_compressibility"
    store.add_request("reward", reward=blend)
    Control(store).report("sampling", 1)
    assert store.pending_requests() == [] and "has no scale" in store.events()[-1].message
    with pytest.raises(ConfigError, match="has no scale"):
        ask_for_reward(store.folder, blend)


def test_an_apply_for_the_next_board_waits_for_its_turn(tmp_path: Path) -> None:
    """A real control: ratings of the next board are applied while the worker still learns from this one."""
    config = human_config(ahead=32, rounds=3)
    store = RunStore.create(tmp_path / "run", config)
    trainer = Trainer(config, store, LinearPolicy(config), Control(store))
    done = threading.Event()

    def person() -> None:
        own = RunStore(store.folder)
        for number in (1, 2, 3):
            while not ((row := own.open_round()) and row.number == number and row.sampled_at):
                if done.wait(0.002):
                    return
            for i, each in enumerate(own.board(number)):
                own.add_rating(f"c{each.id}", each.id, "anna", "thumbs", 1.0 if i % 2 else -1.0)
            own.add_request("apply", round=number)
            while not ((row := own.round(number)) and row.closed_at):
                if done.wait(0.002):
                    return
        own.close()

    thread = threading.Thread(target=person)
    thread.start()
    try:
        assert trainer.run()
    finally:
        done.set()
        thread.join()
    answers = [event.message for event in store.events() if event.kind == "answer"]
    assert answers == [f"ratings of round {n} applied" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(preference="off"), "never rated"),
        (dict(preference="assist", board_every=2), "nobody would say"),
        (dict(board_images=17), "Choose 2 to 16"),
        (dict(board_images=1), "Choose 2 to 16"),
        (dict(ahead=32, objective="ddpo-sf"), "ddpo-sf has no ratio"),
        (dict(ahead=32, objective="rwr"), "rwr has no ratio"),
        (dict(ahead=32, objective="rwr-sparse"), "rwr-sparse has no ratio"),
        (dict(ahead=32, objective="nft"), "nft has no ratio"),
        (dict(advantage="history"), "advantage is history"),
        (dict(advantage="round", preference="assist"), "advantage is round"),
        (dict(reward="blend: 1 human, 1 jpeg_compressibility"), "has no scale"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        human_config(**changes)
