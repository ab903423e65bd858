"""When a reward fails, or people want another one: the round waits, what is scored is kept, nothing is sampled twice, and all of it is on record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from ddpo.control import Control
from ddpo.engine import Source
from ddpo.evaluate import held_out
from ddpo.store import RunStore
from ddpo.trainer import Trainer
from rewards.base import Reward, RewardError, Sample, Score
from rewards.blend import Standard
from tests.toys_ddpo import Brightness, brightness, outcome, spread_scores, toy_config, toy_trainer

NAME = "jpeg_compressibility"


class Darkness(Brightness):
    """Dark is good, in other units; takes a second name."""

    def __init__(self, name: str = "jpeg_incompressibility") -> None:
        super().__init__(name)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(100.0 - 50 * brightness(sample.image)) for sample in samples]


class Moody(Brightness):
    """Scores so many batches, then does what it is told."""

    def __init__(self, good: int, then: Callable[[], Any]) -> None:
        super().__init__()
        self.good, self.then, self.batches = good, then, 0

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        self.batches += 1
        if self.batches > self.good:
            found = self.then()
            return found if isinstance(found, list) else [Score(found)] * len(samples)
        return super().score(samples)


def fails() -> None:
    raise TimeoutError("no answer")


def both(first: Reward | None = None, second: Reward | None = None) -> Source:
    made = {NAME: first or Brightness(), "jpeg_incompressibility": second or Darkness()}
    return lambda name: made[name]


def trainer_with(folder: Path, source: Source, **changes: Any) -> Trainer:
    trainer = toy_trainer(folder, toy_config(**changes))
    trainer.engine.source = source
    return trainer


def when_failed(store: RunStore, ask: Callable[[], object], times: int = 1) -> threading.Thread:
    """Ask for something each time that the round waits with an error."""

    def wait() -> None:
        for n in range(1, times + 1):
            until = time.monotonic() + 20
            while time.monotonic() < until and (
                sum(event.kind == "reward_failed" for event in store.events()) < n
                or store._rows("SELECT state FROM progress") != [("reward_failed",)]
            ):
                time.sleep(0.01)
            ask()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("then", "says"),
    [
        (fails, "failed with TimeoutError: no answer"),
        (lambda: float("nan"), "nan for an image"),
        (lambda: float("inf"), "inf for an image"),
        (lambda: [Score(1.0)], "1 scores for 4 images"),
    ],
    ids=("raises", "nan", "inf", "miscounts"),
)
def test_the_round_waits_with_the_error_and_retry_asks_only_what_is_missing(tmp_path: Path, then: Callable[[], Any], says: str) -> None:
    moody = Moody(1, then)
    trainer = trainer_with(tmp_path / "run", both(moody), rounds=1, microbatch=4)
    seen: list[tuple[str, str, int]] = []

    def retry() -> None:
        status = trainer.store.status()
        seen.append((trainer.store._rows("SELECT state FROM progress")[0][0], status.message, len(trainer.store.scores(1, NAME))))
        moody.good = 1000
        trainer.store.add_request("retry")

    thread = when_failed(trainer.store, retry)
    assert trainer.run()
    thread.join()
    assert seen[0][0] == "reward_failed" and seen[0][2] == 4, "the first batch's scores are kept"
    assert says in next(event.message for event in trainer.store.events() if event.kind == "reward_failed")
    assert trainer.store.pending_requests() == [] and len(trainer.store.scores(1, NAME)) == 8
    straight = toy_trainer(tmp_path / "straight", toy_config(rounds=1, microbatch=4))
    assert straight.run()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_a_failure_again_waits_again_and_the_status_says_why(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path / "run", both(moody := Moody(0, fails)), rounds=1)
    told: list[str] = []

    def ask() -> None:
        told.append(trainer.store.status().message if trainer.store.status().alive else trainer.store.events()[-1].message)
        if len(told) == 2:
            moody.good = 1000
        trainer.store.add_request("retry")

    thread = when_failed(trainer.store, ask, times=2)
    assert trainer.run()
    thread.join()
    assert len([event for event in trainer.store.events() if event.kind == "reward_failed"]) == 2 and all("no answer" in text for text in told)


def test_another_reward_takes_over_at_once_without_sampling_again(tmp_path: Path) -> None:
    """The images of the round stay the same files; the change is an event, and stands in the round."""
    trainer = trainer_with(tmp_path / "run", both(Moody(1, fails)), rounds=2, microbatch=4)
    pictures: list[list[str]] = []

    def change() -> None:
        pictures.append([row.image for row in trainer.store.samples(1)])
        trainer.store.add_request("reward", reward="jpeg_incompressibility")

    thread = when_failed(trainer.store, change)
    assert trainer.run()
    thread.join()
    store = trainer.store
    assert [row.image for row in store.samples(1)] == pictures[0] and store.rounds()[0].reward == "jpeg_incompressibility"
    assert len(store.scores(1, NAME)) == 4 and len(store.scores(1, "jpeg_incompressibility")) == 8
    assert store.reward_stretches() == [(1, "jpeg_incompressibility")]
    assert any(event.kind == "reward" and "From round 1 on" in event.message for event in store.events())
    assert dict(store.metrics()["reward_mean"])[1] == pytest.approx(fmean(s.value or 0 for s in store.scores(1, "jpeg_incompressibility").values()))


def test_nobody_there_means_the_run_ends_with_the_reason(tmp_path: Path) -> None:
    """At a terminal there are no buttons: what is scored is kept, and resuming goes on."""
    trainer = trainer_with(tmp_path / "run", both(Moody(1, fails)), rounds=1, microbatch=4)
    trainer.control.waits = False
    with pytest.raises(RewardError, match="no answer"):
        trainer.run()
    assert len(trainer.store.scores(1, NAME)) == 4
    trainer.store.close()
    again = trainer_with(tmp_path / "run", both(), rounds=1, microbatch=4)
    assert again.run() and len(again.store.scores(1, NAME)) == 8


def test_a_change_waits_for_the_next_scoring_and_outlives_its_worker(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path / "run", both(), rounds=3)
    spread_scores(trainer, 1)
    trainer.store.add_request("reward", reward="jpeg_incompressibility")
    trainer.store.add_request("reward", reward="no such reward")
    trainer.store.add_request("reward", reward=f"blend: 1 {NAME}, 1 jpeg_incompressibility")
    trainer.control.report("updating", 1)
    assert [request.payload["reward"] for request in trainer.store.pending_requests()] == [
        "jpeg_incompressibility",
        f"blend: 1 {NAME}, 1 jpeg_incompressibility",
    ], "what names no reward is answered at once"
    trainer.store.close()
    again = trainer_with(tmp_path / "run", both(), rounds=3)
    assert again.run()
    assert again.store.reward_stretches() == [(1, NAME), (2, f"blend: 1 {NAME}, 1 jpeg_incompressibility")]
    assert again.store.pending_requests() == [] and again.store.reward_wanted is None


def test_a_change_while_people_are_waited_for_scores_the_waiting_images(tmp_path: Path) -> None:
    """Who tires of rating need not apply first: the very images are scored by the new reward, and what was rated is kept."""
    trainer = trainer_with(tmp_path / "run", both(), rounds=1, reward="human")

    def tire() -> None:
        until = time.monotonic() + 20
        while trainer.store._rows("SELECT state FROM progress") != [("awaiting",)] and time.monotonic() < until:
            time.sleep(0.01)
        trainer.store.add_rating("one", trainer.store.samples(1)[0].id, "anna", "thumbs", 1)
        trainer.store.add_request("reward", reward=NAME)

    thread = threading.Thread(target=tire)
    thread.start()
    assert trainer.run()
    thread.join()
    store = trainer.store
    assert store.rounds()[0].reward == NAME and len(store.scores(1, NAME)) == 8 and len(store.ratings(1)) == 1


def test_applied_ratings_are_not_taken_from_their_round_by_an_earlier_wish(tmp_path: Path) -> None:
    """Killed after people applied and before the scores are down: the round is still theirs, and the wish is for the next one."""
    store = toy_trainer(tmp_path / "run", toy_config(rounds=2, reward="human")).store
    control = Control(store)
    store.start_round(1)
    store.add_request("reward", reward=NAME)
    store.close_round(1)
    assert control.reward_for(1) == "human" and store.reward_wanted == NAME
    store.add_request("reward", reward="jpeg_incompressibility")
    assert control.reward_for(1) == "human"
    control.wait_for_reward(1, RewardError("a part of a blend has failed"))
    assert control.reward_for(1) == "jpeg_incompressibility"
    store.start_round(2)
    assert control.reward_for(2) == NAME, "the older wish"


def test_an_older_wish_does_not_end_the_wait_of_a_round_that_it_is_not_for(tmp_path: Path) -> None:
    """Else a part that fails after people applied would be asked again and again, without a pause."""
    store = toy_trainer(tmp_path / "run", toy_config(rounds=2, reward="human")).store
    control = Control(store)
    store.start_round(1)
    store.add_request("reward", reward=NAME)
    store.close_round(1)
    timer = threading.Timer(0.3, lambda: store.add_request("retry"))
    timer.start()
    started = time.monotonic()
    control.wait_for_reward(1, RewardError("no answer"))
    timer.join()
    assert time.monotonic() - started > 0.25


def test_a_pending_apply_goes_before_a_later_wish(tmp_path: Path) -> None:
    store = toy_trainer(tmp_path / "run", toy_config(rounds=2, reward="human")).store
    store.start_round(1)
    store.add_request("apply", round=1)
    store.add_request("reward", reward=NAME)
    assert Control(store).reward_for(1) == "human"


def test_what_is_sampled_ahead_is_asked_of_the_reward_that_is_wanted(tmp_path: Path) -> None:
    """Not of the one that people have left, and which may not even load."""

    def source(name: str) -> Reward:
        if name == NAME:
            raise RewardError("gone")
        return Darkness()

    trainer = trainer_with(tmp_path / "run", source, rounds=1, reward_offload=False)
    trainer.store.add_request("reward", reward="jpeg_incompressibility")
    trainer.ready()
    assert trainer.run() and list(trainer.engine.rewards) == ["jpeg_incompressibility"]


# --- blends ---------------------------------------------------------------------------------------------------------------------


def test_a_blend_is_scored_part_by_part_in_the_spread_of_its_first_round(tmp_path: Path) -> None:
    """z = 2 (bright - mean) / std - 0.5 (dark - mean) / std, with round 1's means and deviations in all rounds."""
    blend = f"blend: 2 {NAME}, -0.5 jpeg_incompressibility"
    trainer = trainer_with(tmp_path / "run", both(), rounds=12, images_per_round=16, images_per_update=16, images_per_prompt=8, reward=blend)
    assert trainer.run()
    trainer.measure(12)
    store = trainer.store
    first = {name: [store.scores(1, name)[row.id].value or 0 for row in store.samples(1)] for name in (NAME, "jpeg_incompressibility")}
    for number in (1, 2):
        for row in store.samples(number):
            bright, dark = (store.scores(number, name)[row.id].value or 0 for name in (NAME, "jpeg_incompressibility"))
            terms = [(x - fmean(first[name])) / pstdev(first[name]) for name, x in ((NAME, bright), ("jpeg_incompressibility", dark))]
            score = store.scores(number, blend)[row.id]
            assert score.value == pytest.approx(2 * terms[0] - 0.5 * terms[1]) and score.explanation == {NAME: bright, "jpeg_incompressibility": dark}
    held = dict(store.metrics()["held_out_reward"])
    assert held[12] is not None and held[0] is not None and held[12] > held[0], "darkness is brightness with a minus, so both parts agree"


def test_a_blend_of_one_part_is_trained_on(tmp_path: Path) -> None:
    """The natural way to turn a reward round."""
    trainer = trainer_with(tmp_path / "run", both(), rounds=2, reward=f"blend: -1 {NAME}")
    assert trainer.run()
    trainer.measure(2)
    metrics = dict(trainer.store.metrics())
    assert metrics["scored_images"] == [(1, 8.0), (2, 8.0)] and metrics["held_out_reward"][-1][0] == 2
    values = trainer.store.scores(1, f"blend: -1 {NAME}").values()
    assert fmean(score.value or 0 for score in values) == pytest.approx(0.0, abs=1e-9)


def test_the_spread_is_of_the_first_round_where_images_differ(tmp_path: Path) -> None:
    store = toy_trainer(tmp_path / "run", toy_config(rounds=2)).store
    for number, values in ((1, [3.0, 3.0]), (2, [1.0, 3.0]), (3, [0.0, 9.0])):
        store.start_round(number)
        store.add_samples(number, [0, 1], ["a cat"] * 2, [0, 1], [f"samples/{number}-{i}.png" for i in range(2)])
        store.add_scores("r", {row.id: Score(value) for row, value in zip(store.samples(number), values, strict=True)})
    assert Standard.of(store.first_values("r")) == Standard(2.0, 1.0)
    assert Standard.of(store.first_values("unknown")) == Standard()


# --- measuring ------------------------------------------------------------------------------------------------------------------


def test_after_a_change_the_base_model_is_measured_by_the_new_reward(tmp_path: Path) -> None:
    """Held-out numbers of two rewards are never compared: the second has a base of its own, at the round of the change."""
    from ddpo.trainer import summary

    trainer = trainer_with(tmp_path / "run", both(), rounds=2)
    spread_scores(trainer, 1)
    trainer.store.add_request("reward", reward="jpeg_incompressibility")
    assert trainer.run()
    trainer.measure(2)
    metrics = trainer.store.metrics()
    assert [at for at, _ in metrics["held_out_base"]] == [2] and [at for at, _ in metrics["held_out_reward"]] == [2]
    base, moved = (held_out(trainer.engine.policy, Darkness(), trainer.config, base=each).mean for each in (True, False))
    assert metrics["held_out_base"][0][1] == pytest.approx(base) and metrics["held_out_reward"][0][1] == pytest.approx(moved) and base != moved
    found = summary(metrics)
    assert 50 < float(str(found["reward_before"])) < 100 and 50 < float(str(found["reward_after"])) < 100


def test_a_measurement_that_failed_and_was_left_is_not_made_later(tmp_path: Path) -> None:
    """It would be of other weights, under the round's name."""
    moody = Moody(1000, fails)
    trainer = trainer_with(tmp_path / "run", both(moody), rounds=2, microbatch=8)
    spread_scores(trainer, 1)
    for mark in ("updated", "checkpointed"):
        trainer.verbs[mark](1)
        trainer.store.mark(1, mark)
    moody.good = 0
    thread = when_failed(trainer.store, lambda: trainer.store.add_request("reward", reward="jpeg_incompressibility"))
    trainer.measure(1)
    thread.join()
    moody.good = 1000
    trainer.measure(1)
    assert dict(trainer.store.metrics()["held_out_reward"])[1] is None


def test_no_opinion_on_any_held_out_image_is_no_error(tmp_path: Path) -> None:
    class Silent(Brightness):
        def score(self, samples: Sequence[Sample]) -> list[Score]:
            return [Score(None)] * len(samples)

    trainer = trainer_with(tmp_path / "run", both(Silent()), rounds=1)
    assert trainer.run()
    trainer.measure(1)
    assert trainer.store.metrics()["held_out_reward"] == [(0, None), (1, None)]


# --- ahead of time, and memory --------------------------------------------------------------------------------------------------


def test_scoring_ahead_asks_once_and_changes_nothing(tmp_path: Path) -> None:
    """JPEG rewards score microbatches while the next is made; each image is asked about once, and the run is the same without it."""
    counting = Moody(1000, fails)
    ahead = trainer_with(tmp_path / "ahead", both(counting), microbatch=4, rounds=2, held_out_images=0, reward_offload=False)
    assert ahead.engine.scores_ahead(NAME) and ahead.run()
    assert counting.batches == 4, "two batches a round"
    plain = trainer_with(tmp_path / "plain", both(), microbatch=4, rounds=2, held_out_images=0)
    assert not plain.engine.scores_ahead(NAME) and plain.run()
    assert outcome(tmp_path / "ahead") == outcome(tmp_path / "plain")


@pytest.mark.parametrize(
    ("reward", "changes", "ahead"),
    [
        ("aesthetic", {}, False),
        ("aesthetic", dict(reward_device="cuda"), True),
        ("alignment", dict(reward_vlm="http://host/v1"), True),
        ("aesthetic", dict(reward_vlm="http://host/v1"), False),
        ("jpeg_compressibility", {}, True),
        ("mine.py:r", {}, True),
        ("mine.py:r", dict(reward_offload=True), False),
    ],
)
def test_networks_on_the_model_s_own_cores_wait_their_turn(tmp_path: Path, reward: str, changes: dict[str, Any], ahead: bool) -> None:
    assert toy_trainer(tmp_path / "run", toy_config(reward=reward, **(dict(reward_offload=False) | changes))).engine.scores_ahead(reward) is ahead


def test_offload_frees_the_networks_after_each_round_s_scores(tmp_path: Path) -> None:
    class Heavy(Brightness):
        freed = 0

        def free(self) -> None:
            self.freed += 1

    heavy = Heavy()
    assert trainer_with(tmp_path / "run", both(heavy), rounds=3, reward_offload=True, held_out_images=0).run()
    assert heavy.freed == 3
