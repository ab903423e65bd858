"""Going on from a round of another run: its weights and moments, its settings or changed ones, and where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.pages.progress import charts_value
from ddpo.__main__ import main, parser
from ddpo.config import ConfigError
from ddpo.earlier import rated_in
from ddpo.fork import config_of, fork, spent, suggested
from ddpo.store import RunStore, StoreError
from tests.toys import comparable_run, filled_run
from tests.toys_ddpo import LinearPolicy, state_bits, toy_config, toy_trainer


@pytest.fixture
def parent(tmp_path: Path) -> RunStore:
    trainer = toy_trainer(tmp_path / "parent", toy_config(rounds=4, ema_decay=0.5))
    assert trainer.run()
    return trainer.store


def test_a_fork_begins_with_the_weights_and_the_optimiser_s_state_of_its_round(tmp_path: Path, parent: RunStore) -> None:
    """Weights, moments, step counts and moving average are those of the checkpoint, bit for bit; the settings are the parent's but for what is said;
    and the parent may be gone by then."""
    made = fork(parent, 2, tmp_path / "child", dict(learning_rate=0.01))
    assert parent.forks == [("child", 2)] and parent.choices()["fork child"] == "2 learning_rate 0.01"
    assert made.parent == ("parent", 2) and RunStore(tmp_path / "child").parent == ("parent", 2) and parent.parent is None
    assert made.config == parent.config.with_changes(rounds=2, learning_rate=0.01, seed=made.config.seed) and made.config.seed != parent.config.seed
    place = parent.checkpoints()[2]
    assert state_bits(made.folder / "parent" / "state.safetensors") == state_bits(place / "state.safetensors")
    wanted = LinearPolicy(parent.config)
    trainer = toy_trainer(parent.folder, parent.config)
    trainer.crew.together("load", place=place.relative_to(parent.folder).as_posix())
    wanted.shift.data = trainer.engine.parameters["shift"].detach().clone()
    moments = {key: value.clone() for key, value in trainer.engine.optimiser.state[trainer.engine.parameters["shift"]].items()}
    for file in sorted(parent.folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    child = toy_trainer(tmp_path / "child", made.config)
    child.restore()
    own = child.engine.parameters["shift"]
    assert torch.equal(own, wanted.shift) and child.engine.optimiser.param_groups[0]["lr"] == 0.01
    assert all(torch.equal(child.engine.optimiser.state[own][key], value) for key, value in moments.items())
    assert child.engine.average is not None and child.engine.average.optimization_step == 2
    assert child.run() and sorted(child.store.checkpoints()) == [1, 2] and not torch.equal(own, wanted.shift)


def test_a_fork_counts_what_the_rounds_before_it_cost(tmp_path: Path) -> None:
    """So that its curve beside its parent's, over images scored or time, begins where it branched off; those of a fork's fork as well."""
    store = filled_run(tmp_path / "a", rounds=3)
    made = fork(store, 2, tmp_path / "b")
    cost = {name: points[0][1] for name, points in made.metrics().items()}
    assert cost == spent(store.metrics(), 2) and all(value > 0 for value in cost.values()), "and nothing else yet"
    rounds = dict(scored_images=[(1, 5.0), (2, None), (3, 9.0)], seconds_sampling=[(1, 2.0), (3, 9.0)], seconds_updating=[(2, 1.0)])
    assert spent(rounds, 2) == dict(before_images=5.0, before_seconds=3.0)
    more = dict(before_images=[(0, 30.0)], before_seconds=[(0, 6.0)])
    assert spent(rounds | more, 2) == dict(before_images=35.0, before_seconds=9.0)
    made.add_metrics(1, dict(reward_mean=1.0, scored_images=5.0))
    assert not [chart["title"] for chart in charts_value(made)["charts"] if "efore" in chart["title"]], "that is no curve"
    made.close()
    store.close()


def test_a_fork_warms_up_for_as_many_rounds_as_were_left(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "warming", toy_config(rounds=3, warmup_rounds=2))
    assert trainer.run()
    assert [config_of(trainer.store, number, {}).warmup_rounds for number in (1, 2, 3)] == [1, 0, 0]
    assert config_of(trainer.store, 3, dict(warmup_rounds=2)).warmup_rounds == 2


def test_a_model_of_taste_keeps_the_ratings_of_the_run_that_it_goes_on_from(tmp_path: Path) -> None:
    store = comparable_run(tmp_path / "parent", preference="lead")
    child = fork(store, 1, tmp_path / "child")
    assert {each.source for each in rated_in(child.folder)} == {"parent"} and len(rated_in(child.folder)) == 16 and child.ratings() == []
    (tmp_path / "child" / "checkpoints" / "0001").mkdir(parents=True)
    child.start_round(1)
    child.add_checkpoint(1, tmp_path / "child" / "checkpoints" / "0001")
    assert len(rated_in(fork(child, 1, tmp_path / "grandchild").folder)) == 16, "what it has from elsewhere goes on"
    assert fork(store, 1, tmp_path / "off", dict(preference="off")).config.ratings_from == "", "nothing would learn from them"
    other = comparable_run(tmp_path / "other", preference="lead")
    both = fork(store, 1, tmp_path / "both", dict(ratings_from=str(other.folder)))
    assert {each.source for each in rated_in(both.folder)} == {"parent", "other"}, "those that are named come beside the parent's"
    with pytest.raises(ConfigError, match="preference is off"):
        fork(store, 1, tmp_path / "none", dict(preference="off", ratings_from=str(other.folder)))
    there = comparable_run(tmp_path / "a; b" / "parent", preference="lead")
    assert len(rated_in(fork(there, 1, tmp_path / "elsewhere").folder)) == 16, "a semicolon in its path is no end of it"
    store.choose("rater anna", "out")
    assert rated_in(fork(store, 1, tmp_path / "alone").folder) == [], "nobody's are left"


def test_a_run_that_was_rated_without_a_model_of_taste_can_go_on_with_one(tmp_path: Path) -> None:
    """The model learns from the ratings that there are from its first board on."""
    store = comparable_run(tmp_path / "parent", preference="off")
    child = fork(store, 1, tmp_path / "child", dict(preference="lead", board_images=8))
    assert (child.config.preference, child.config.board_images) == ("lead", 8)
    assert {each.source for each in rated_in(child.folder)} == {"parent"} and len(rated_in(child.folder)) == 16


def test_a_fork_that_was_cut_off_goes_on_with_its_own_rounds(tmp_path: Path, parent: RunStore) -> None:
    straight, broken = (fork(parent, 3, tmp_path / name, dict(rounds=2)) for name in ("straight", "broken"))
    assert toy_trainer(straight.folder, straight.config).run()
    first = toy_trainer(broken.folder, broken.config)
    first.config = broken.config.with_changes(rounds=1)
    assert first.run() and toy_trainer(broken.folder, broken.config).run()
    assert [state_bits(s.checkpoints()[2] / "state.safetensors") for s in (straight, broken)].count(
        state_bits(straight.checkpoints()[2] / "state.safetensors")
    ) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(lora_rank=3), "lora_rank is 3, and 64 in parent, whose weights"),
        (dict(ema_decay=0.0), "a moving average cannot begin or end"),
        (dict(images_per_round=7), "not divisible"),
        (dict(nonsense=1), "Unknown setting nonsense"),
    ],
)
def test_changes_that_the_state_does_not_fit_are_refused_and_leave_nothing(
    tmp_path: Path, parent: RunStore, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        fork(parent, 2, tmp_path / "child", changes)
    assert not (tmp_path / "child").exists()


def test_the_same_model_by_another_path_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
    store = RunStore.create(tmp_path / "parent", toy_config(rounds=4, model=str(tmp_path / "model")))
    assert config_of(store, 1, dict(model="./model")).model == str(tmp_path / "model")
    assert config_of(store, 1, dict(init_lora="", model_config="")).init_lora == ""
    (tmp_path / "pocket").mkdir()
    pocket = RunStore.create(tmp_path / "of-pocket", toy_config(rounds=4))
    assert pocket.config.model == config_of(pocket, 1, dict(model="pocket")).model == "pocket"
    (tmp_path / "org" / "name").mkdir(parents=True)
    hub = RunStore.create(tmp_path / "of-the-hub", toy_config(rounds=4, model="org/name"))
    assert config_of(hub, 1, dict(learning_rate=0.5)).learning_rate == 0.5, "a folder of that name here is none of its business"
    with pytest.raises(ConfigError, match=r"model is './other', and .* whose weights"):
        config_of(store, 1, dict(model="./other"))


def test_a_round_without_a_checkpoint_and_a_taken_name_are_refused(tmp_path: Path, parent: RunStore) -> None:
    with pytest.raises(StoreError, match=r"Round 9 of parent has no checkpoint. Saved rounds: 1, 2, 3, 4"):
        fork(parent, 9, tmp_path / "child")
    assert suggested(parent, 2).name == "parent-from-2"
    fork(parent, 2, suggested(parent, 2))
    assert suggested(parent, 2).name == "parent-from-2-2"
    with pytest.raises(StoreError, match="already exists"):
        fork(parent, 3, tmp_path / "parent-from-2")
    assert RunStore(tmp_path / "parent-from-2").parent == ("parent", 2)


def test_a_fork_is_scored_by_what_scored_its_round(tmp_path: Path, parent: RunStore) -> None:
    parent.set_reward(3, "jpeg_incompressibility")
    assert fork(parent, 2, tmp_path / "before").config.reward == "jpeg_compressibility"
    assert fork(parent, 3, tmp_path / "after").config.reward == "jpeg_incompressibility"


def test_the_command_makes_a_fork_and_trains_it(tmp_path: Path, parent: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[Path] = []
    monkeypatch.setattr("ddpo.__main__.work", lambda folder: worked.append(folder) or 0)
    child = tmp_path / "child"
    assert main(["fork", str(parent.folder), "--round", "3", "--out", str(child), "--kl-weight", "0.1"]) == 0
    assert worked == [child] and RunStore(child).config.kl_weight == 0.1
    assert json.loads((child / "parent" / "parent.json").read_text()) == dict(run="parent", round=3)
    assert main(["fork", str(parent.folder), "--round", "8", "--out", str(tmp_path / "other")]) == 2
    with pytest.raises(SystemExit):
        parser().parse_args(["fork", "run", "--out", "other"])
