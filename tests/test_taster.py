"""Rounds that people rate with a model of their taste: what is shown, what is learned from, and boards that are made ahead."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpo.config import ConfigError, RunConfig
from ddpo.control import Control, StopRun
from ddpo.store import RunStore, write_images
from ddpo.taster import GUESS, Taster, first_board
from ddpo.trainer import Trainer
from tests.toys_ddpo import LinearPolicy, brightness, outcome, toy_config


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


def test_the_first_board_has_as_many_of_each_prompt() -> None:
    config = human_config()
    assert first_board(config) == {0, 1, 2, 8, 9, 10}
    assert first_board(human_config(board_images=16)) == set(range(16))


def test_people_rate_a_few_and_all_are_learned_from(tmp_path: Path) -> None:
    trainer, person = trained(tmp_path / "run", human_config())
    store = trainer.store
    assert [len(board) for board in person.boards] == [6, 6, 6, 6] and person.boards[0] == [0, 1, 2, 8, 9, 10]
    assert person.boards[1] != person.boards[0], "the later ones are chosen"
    for number in range(1, 5):
        said, guessed = store.scores(number, "human"), store.scores(number, GUESS)
        assert sum(score.value is not None for score in said.values()) == 6
        assert len(guessed) == 16 and all(score.value is not None and score.explanation["std"] > 0 for score in guessed.values())
        assert trainer.taster.learned(number) == guessed
    metrics = store.metrics()
    assert [value for _, value in metrics["preference_ratings"]] == [6, 12, 18, 24]
    assert all(value is not None and 0 <= value <= 1 for _, value in metrics["preference_known"])
    assert [value for _, value in metrics["scored_images"]] == [6] * 4, "people's own ratings are what is charted"


def test_boards_are_made_ahead_over_the_rounds_between_them(tmp_path: Path) -> None:
    trainer, person = trained(tmp_path / "run", human_config(ahead=True, board_every=2, rounds=5))
    assert len(person.boards) == 3
    assert dict(trainer.store.metrics()["updates_behind"]) == {1: 0.0, 2: 0.0, 3: 2.0, 4: 0.0, 5: 2.0}
    assert [trainer.taster.next_board(n) for n in (1, 2, 3)] == [3, 3, 5]
    assert [len(trainer.store.board(n)) for n in range(1, 6)] == [6, 0, 6, 0, 6]


def test_people_see_the_next_board_while_rounds_without_one_are_made(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", human_config(ahead=True, board_every=2))
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


def test_assist_keeps_peoples_own_words(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path / "run", human_config(preference="assist", rounds=2))
    said, guessed, learned = trainer.store.scores(2, "human"), trainer.store.scores(2, GUESS), trainer.taster.learned(2)
    rated = {id for id, score in said.items() if score.value is not None}
    assert {id: learned[id].value for id in rated} == {id: said[id].value for id in rated}
    assert {id: learned[id].value for id in set(learned) - rated} == {id: guessed[id].value for id in set(learned) - rated}


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


def test_between_boards_the_model_of_taste_scores_alone(tmp_path: Path) -> None:
    trainer, person = trained(tmp_path / "run", human_config(board_every=2))
    assert len(person.boards) == 2
    store = trainer.store
    assert store.scores(2, "human") == {} and len(store.scores(2, GUESS)) == 16
    assert store.metrics()["preference_ratings"] == [(1, 6.0), (2, 6.0), (3, 12.0), (4, 12.0)]
    assert dict(store.metrics()["updates"]) == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}


@pytest.mark.parametrize(("ahead", "every"), [(False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize("until", [1, 3])
def test_a_run_that_stopped_while_people_rated_comes_to_the_same(tmp_path: Path, ahead: bool, every: int, until: int) -> None:
    config = human_config(ahead=ahead, board_every=every)
    trained(tmp_path / "straight", config)
    trained(tmp_path / "stopped", config, until)
    trained(tmp_path / "stopped", config)
    straight, stopped = outcome(tmp_path / "straight"), outcome(tmp_path / "stopped")
    assert straight == stopped


def test_the_next_board_is_made_while_this_one_is_rated(tmp_path: Path) -> None:
    """Made by the model that has not learned this board's ratings, and learned from with the ratio that this makes."""
    trainer, _ = trained(tmp_path / "run", human_config(ahead=True), until=2)
    store = trainer.store
    first, second, third = (store.round(n) for n in (1, 2, 3))
    assert first and second and third
    assert second.sampled_at is not None and first.updated_at is not None and second.sampled_at < first.updated_at
    assert third.sampled_at is not None and third.sampled_at > first.updated_at, "at most one update behind"
    found = store.open_round()
    assert found and found.number == 2, "people see the board that waits, not the one in the making"
    store.close()
    trainer, _ = trained(tmp_path / "run", human_config(ahead=True))
    behind = dict(trainer.store.metrics()["updates_behind"])
    assert behind == {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}
    deviation = dict(trainer.store.metrics()["ratio_mean"]) if "ratio_mean" in trainer.store.metrics() else {}
    assert not deviation or any(value != 1.0 for value in deviation.values())


def test_an_apply_for_the_next_board_waits_for_its_turn(tmp_path: Path) -> None:
    """A real control: ratings of the next board are applied while the worker still learns from this one."""
    config = human_config(ahead=True, rounds=3)
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
        (dict(ahead=True, objective="ddpo-sf"), "ddpo-sf learns from the present"),
        (dict(ahead=True, ratio="normalised"), "ratio normalised"),
        (dict(ahead=True, guidance_in_training=False), "guidance_in_training off"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        human_config(**changes)
