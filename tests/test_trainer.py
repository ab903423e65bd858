"""The round loop: what is learned from, what is refused, and that stopping anywhere changes nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ddpo import files
from ddpo.checkpoint import load_result
from ddpo.config import RunConfig
from ddpo.engine import Engine, PolicyMismatch, TrainingError
from ddpo.evaluate import held_out
from ddpo.policy import StableDiffusionPolicy, arithmetic_of
from ddpo.rollout import rescored, rollout
from ddpo.trainer import Trainer, summary
from ddpo.trajectory import Trajectory
from tests.models import save_tiny_model, tiny_pipeline
from tests.toys_ddpo import Brightness, Choosy, LinearPolicy, in_memory, outcome, spread_scores, tiny_config, toy_config, toy_trainer


def gradient_of_first_update(trainer: Trainer) -> torch.Tensor:
    """The gradient that the first update of a fresh AdamW saw: its first moment over 1 - β1."""
    return trainer.engine.optimiser.state[trainer.engine.policy.shift]["exp_avg"] / 0.1  # type: ignore[attr-defined]


def updated(folder: Path, reward: object = None, **changes: object) -> Trainer:
    trainer = toy_trainer(folder, toy_config(max_grad_norm=1e9, **changes), reward)  # type: ignore[arg-type]
    spread_scores(trainer)
    trainer.update(1)
    return trainer


@pytest.mark.parametrize(("skip", "step_weights"), [(0, "equal"), (1, "equal"), (3, "equal"), (1, "balanced")])
def test_the_update_ascends_the_score_function_gradient(tmp_path: Path, skip: int, step_weights: str) -> None:
    """One update at ratio 1 sees -(1 / nT) Σ_i A_i Σ_t ∇ log p(x_t-1 | x_t), REINFORCE's, over the T trained steps, computed here from the seeds
    alone."""
    trainer = updated(tmp_path / "run", skip_last_steps=skip, step_weights=step_weights)
    config, fresh = trainer.config, LinearPolicy(trainer.config)
    rows = trainer.store.samples(1)
    prompts = [row.prompt for row in rows]
    trajectory, _ = rollout(fresh, prompts, [row.seed for row in rows])
    advantages = trainer.weights(1).values
    assert set(advantages.sign().tolist()) == {-1.0, 1.0}
    trained = config.steps - skip
    weights = 1 / fresh.schedule.gradient_scale[:trained] if step_weights == "balanced" else torch.ones(trained)
    weights = weights / weights.mean()
    for step in range(trained):
        log_prob = fresh.step(trajectory.latents[:, step], torch.full((8,), step), fresh.encode(prompts)).log_prob(trajectory.latents[:, step + 1])
        (-weights[step] * (advantages * log_prob).sum() / (8 * trained)).backward()
    assert fresh.shift.grad is not None
    # 32 float32 terms are summed in another order; z carries 1e-5 from rounding x_prev beside its std.
    torch.testing.assert_close(gradient_of_first_update(trainer), fresh.shift.grad, rtol=1e-4, atol=1e-5 * float(fresh.shift.grad.abs().max()))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_microbatches_of_any_size_add_up_to_one_batch(tmp_path: Path, size: int) -> None:
    """32 pairs in parts of 1, of 3 (the last of 2) and of 5, against all at once: the same gradient but for the order of float32 sums."""
    whole, parts = (gradient_of_first_update(updated(tmp_path / str(m), update_microbatch=m)) for m in (64, size))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))


@pytest.mark.parametrize("reward", [Choosy(unrated=(2, 5, 6)), Choosy(unrated=(), equal="a cat")])
def test_unrated_images_and_zero_advantages_contribute_exactly_nothing(tmp_path: Path, reward: Choosy) -> None:
    """Their trajectories are overwritten with NaN before the update: not a bit of the gradient changes."""
    clean = updated(tmp_path / "clean", reward)
    dirty = toy_trainer(tmp_path / "dirty", toy_config(max_grad_norm=1e9), reward)
    spread_scores(dirty)
    nothing = dirty.weights(1).values == 0
    assert nothing.sum() in (3, 4)
    file = dirty.engine.part(1, 0)
    kept = Trajectory.load(file)
    kept.latents[nothing], kept.log_probs[nothing] = torch.nan, torch.nan
    kept.save(file)
    dirty.update(1)
    assert torch.equal(gradient_of_first_update(dirty), gradient_of_first_update(clean))


def test_a_round_nobody_rated_changes_no_weight(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "run", toy_config(rounds=1), Choosy(unrated=range(100)))
    assert trainer.run() and torch.equal(trainer.engine.policy.shift, torch.zeros_like(trainer.engine.policy.shift))  # type: ignore[attr-defined]
    assert dict(trainer.store.metrics()["updates"]) == {1: 0.0} and trainer.store.checkpoints()


def test_rounding_latents_after_scoring_is_refused(tmp_path: Path) -> None:
    """Defect 1: what the reference did, half-precision latents beside float32 log-probabilities, ends with a plain explanation."""
    trainer = toy_trainer(tmp_path / "run", toy_config())
    spread_scores(trainer)
    kept = Trajectory.load(trainer.engine.part(1, 0))
    Trajectory(kept.latents.bfloat16().float(), kept.log_probs).save(trainer.engine.part(1, 0))
    with pytest.raises(PolicyMismatch, match=r"moves the ratio by .* no more than 1\.0e-02 will do.*fp32"):
        trainer.update(1)
    assert torch.equal(trainer.engine.policy.shift, torch.zeros_like(trainer.engine.policy.shift))  # type: ignore[attr-defined]


class Rounded(LinearPolicy):
    """Its predictions are rounded, more coarsely than in half precision."""

    autocast = torch.bfloat16

    def predict(self, x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return (8 * super().predict(x_t, timestep, condition)).round() / 8


def test_a_round_is_learned_from_where_other_arithmetic_sampled_it(tmp_path: Path) -> None:
    """A run whose board was made on one machine and rated, and which goes on on another: nobody's ratings are lost for its roundings."""
    config = toy_config(rounds=1, images_per_update=4)
    spread_scores(toy_trainer(tmp_path / "run", config))
    shutil.copytree(tmp_path / "run", tmp_path / "unknown")
    part = toy_trainer(tmp_path / "unknown", config).engine.part(1, 0)
    dataclasses.replace(Trajectory.load(part), arithmetic="").save(part)
    with pytest.raises(PolicyMismatch):
        toy_trainer(tmp_path / "unknown", config, policy=Rounded(config)).update(1)
    trainer = toy_trainer(tmp_path / "run", config, policy=Rounded(config))
    trainer.update(1)
    assert dict(trainer.store.metrics()["updates"]) == {1: 2.0}
    assert [event.message for event in trainer.store.events() if "was sampled by" in event.message and "float32" in event.message]
    assert toy_trainer(tmp_path / "run", config).engine.trajectory_here(1)[1] == ""


def test_a_batch_that_is_scored_anew_by_the_same_arithmetic_says_the_same(tmp_path: Path) -> None:
    config = tiny_config(save_tiny_model(tmp_path / "model"), guidance_in_training=False)
    policy, prompts = StableDiffusionPolicy.load(config), list(config.prompts[:1]) * 3
    found, _ = rollout(policy, prompts, [1, 2, 3], keep_means=True)
    again = rescored(policy, dataclasses.replace(found, log_probs=torch.zeros_like(found.log_probs), arithmetic="elsewhere"), prompts)
    assert found.arithmetic == again.arithmetic == arithmetic_of(policy) and "float32" in again.arithmetic
    assert torch.equal(found.log_probs, again.log_probs) and found.means is not None and torch.equal(found.means, again.means)


class Lumpy(LinearPolicy):
    """It rounds by how many images go through it at once, as the kernels of GPUs do in half precision."""

    def predict(self, x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return super().predict(x_t, timestep, condition) + 0.01 * (len(x_t) != 8)


@pytest.mark.parametrize("reuse", [True, False])
def test_the_self_check_looks_in_the_batches_in_which_the_first_step_will(tmp_path: Path, reuse: bool) -> None:
    config = toy_config(rounds=1, microbatch=8, update_microbatch=16, reuse_forward=reuse, reward_offload=False)
    assert config.reuses_forward == reuse
    trainer = toy_trainer(tmp_path / "run", config, policy=Lumpy(config))
    if reuse:
        assert trainer.run()
        return
    with pytest.raises(PolicyMismatch, match="update_microbatch equal to microbatch, or a larger clip_nats"):
        trainer.run()
    assert not trainer.store.samples(1)  # before anybody could rate


def test_the_ratio_is_1_before_the_first_update_and_moves_after_it(tmp_path: Path) -> None:
    """Defect 1 live: with one update a round every trained ratio is 1; a second pass sees other ratios, and clips some at a small range."""
    once = updated(tmp_path / "once").store.metrics()
    assert once["ratio_max_deviation"][0][1] == pytest.approx(0.0, abs=1e-6) and dict(once["updates"]) == {1: 1.0}
    again = updated(tmp_path / "again", passes=3, images_per_update=4, clip_nats=0.02).store.metrics()
    assert dict(again["updates"]) == {1: 6.0} and (again["ratio_max_deviation"][0][1] or 0) > 1e-3
    assert (again["clip_fraction_up"][0][1] or 0) + (again["clip_fraction_down"][0][1] or 0) > 0
    assert all((again[f"ratio_std_quarter_{i}"][0][1] or 0) > 0 for i in range(1, 5)), "each of the four steps begins in a quarter of its own"


def test_a_round_says_how_many_advantages_the_clip_has_cut(tmp_path: Path) -> None:
    """As many of the six that have a score as lie beyond one deviation by the same advantages without a limit; of none there is no share."""
    reward = Choosy(unrated=(1, 5))
    limited = updated(tmp_path / "limited", reward, advantage_clip=1.0)
    free = updated(tmp_path / "free", reward, advantage_clip=100.0).weights(1).values.abs()
    share = dict(limited.store.metrics()["advantage_saturation"])[1]
    assert share == pytest.approx(float((free > 1.0).sum()) / 6) and 0 < share < 1
    assert dict(updated(tmp_path / "none", Choosy(unrated=range(100))).store.metrics()["advantage_saturation"]) == {1: None}


def test_images_per_second_are_of_the_time_in_which_they_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A microbatch of four takes 2 s by this clock, and every report 10 s, as where somebody pauses. A worker that finds half of a round made counts
    what it makes itself, and says nothing where that is nothing."""
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slowly(self: Engine, *arguments: Any) -> Any:
        wait(2.0)
        return made(self, *arguments)

    made = Engine._rollout
    monkeypatch.setattr(Engine, "_rollout", slowly)
    monkeypatch.setattr("ddpo.trainer.time", SimpleNamespace(monotonic=lambda: now))
    for folder, first, wanted in (("whole", None, 2.0), ("half", 4, 2.0), ("all", 8, None)):
        config = toy_config(microbatch=4, rounds=1)
        if first:
            begun = toy_trainer(tmp_path / folder, config)
            begun.store.start_round(1)
            begun.sample(1, most=first)
            begun.store.close()
        trainer = toy_trainer(tmp_path / folder, config)
        trainer.control.watcher = lambda *report: wait(10.0)
        assert trainer.run()
        assert dict(trainer.store.metrics().get("images_per_second", [])) == ({1: wanted} if wanted else {}), folder


def test_a_warm_up_raises_the_learning_rate_round_by_round(tmp_path: Path) -> None:
    """A fresh AdamW's first step is as long as its learning rate: of four rounds' way up to 0.08 the first has a fourth, and from the fourth on
    nothing is held back."""
    warm = updated(tmp_path / "warm", warmup_rounds=3, learning_rate=0.08).engine.policy.shift  # type: ignore[attr-defined]
    slow = updated(tmp_path / "slow", learning_rate=0.02).engine.policy.shift  # type: ignore[attr-defined]
    assert torch.equal(warm, slow) and bool(slow.detach().any())
    config = toy_config(warmup_rounds=3, learning_rate=0.08)
    assert [round(config.learning_rate_at(number), 6) for number in (1, 2, 3, 4, 5)] == [0.02, 0.04, 0.06, 0.08, 0.08]
    trainer = toy_trainer(tmp_path / "long", toy_config(warmup_rounds=1, rounds=2))
    assert trainer.run() and trainer.engine.optimiser.param_groups[0]["lr"] == 0.05


def test_shuffled_scores_are_the_same_scores_of_other_images(tmp_path: Path) -> None:
    """The control permutes what is learned from, not what is stored, and the same way again when asked again."""
    plain, control = (toy_trainer(tmp_path / str(s), toy_config(shuffle_scores=s, images_per_prompt=8)) for s in (False, True))
    for trainer in (plain, control):
        spread_scores(trainer)
    assert plain.store.scores(1, "jpeg_compressibility") == control.store.scores(1, "jpeg_compressibility")
    one, two = plain.weights(1).values, control.weights(1).values
    assert not torch.equal(one, two) and torch.equal(one.sort().values, two.sort().values)
    assert torch.equal(two, control.weights(1).values)


def test_prompts_are_drawn_in_groups_and_all_before_any_twice(tmp_path: Path) -> None:
    config = toy_config(prompts=("a", "b", "c", "a"), images_per_round=20, images_per_prompt=4, images_per_update=20)
    trainer = toy_trainer(tmp_path / "run", config)
    for number in range(1, 8):
        drawn = trainer.engine.draw_prompts(number)
        groups = [drawn[i : i + 4] for i in range(0, 20, 4)]
        assert all(len(set(group)) == 1 for group in groups) and drawn == trainer.engine.draw_prompts(number)
        assert {group[0] for group in groups[:3]} == {"a", "b", "c"}
    assert len({tuple(trainer.engine.draw_prompts(number)) for number in range(1, 20)}) > 1


@pytest.mark.parametrize("shape", ["poisoned policy", "poisoned scores"])
def test_a_diverged_policy_ends_the_run_and_keeps_the_last_checkpoint(tmp_path: Path, shape: str) -> None:
    """NaN weights in round 2 raise a TrainingError in plain words, in sampling or in the update; round 1's checkpoint stays as it was."""
    trainer = toy_trainer(tmp_path / "run", toy_config(rounds=1))
    assert trainer.run()
    state = tmp_path / "run" / "checkpoints" / "0001" / "state.safetensors"
    before = state.read_bytes()
    config = toy_config(rounds=2)
    if shape == "poisoned policy":
        trainer = Trainer(config, trainer.store, LinearPolicy(config), trainer.control, Brightness)
        trainer.restore = lambda: trainer.engine.parameters["shift"].data.fill_(torch.nan)  # type: ignore[method-assign]
        with pytest.raises(TrainingError, match="images that are no numbers"):
            trainer.run()
    else:
        spread_scores(trainer, 2)
        trainer.engine.parameters["shift"].data.fill_(torch.nan)
        with pytest.raises(TrainingError, match=r"loss is no number.*lower learning rate"):
            trainer.update(2)
    assert state.read_bytes() == before and not (tmp_path / "run" / "checkpoints" / "0002").exists()


def test_a_prompt_s_images_share_their_start_and_nothing_else(tmp_path: Path) -> None:
    """Two prompts, one of them drawn twice a round, in microbatches of five: x_T is the same within a prompt and another for each prompt and round;
    what comes after it differs. Without the setting every x_T is its own. The ratio of such samples is 1, or the update would refuse."""
    for shared in (True, False):
        trainer = toy_trainer(tmp_path / str(shared), toy_config(shared_start=shared, microbatch=5, images_per_round=12, images_per_update=12))
        found: dict[tuple[int, str], set[tuple[float, ...]]] = {}
        for number in (1, 2):
            spread_scores(trainer, number)
            latents = torch.cat([Trajectory.load(trainer.engine.part(number, start)).latents for start in (0, 5, 10)]).flatten(2)
            for row, start in zip(trainer.store.samples(number), latents[:, 0].tolist(), strict=True):
                found.setdefault((number, row.prompt), set()).add(tuple(start))
            assert len({tuple(x) for x in latents[:, 1].tolist()}) == 12
            trainer.update(number)
            trainer.store.mark(number, "updated")
            trainer.checkpoint(number)
            trainer.store.mark(number, "checkpointed")
        assert len(found) == 4 and len(set.union(*found.values())) == (4 if shared else 24)
        assert {len(starts) for starts in found.values()} == ({1} if shared else {4, 8})


def test_guidance_in_training_is_the_update_s_alone(tmp_path: Path) -> None:
    """A round of the tiny Stable Diffusion whose training is not guided: images are made with both branches, apart, and checked before anybody rates,
    and learned from, with the prompt's alone. Passes on so many images, with and without a graph, by whose text is told."""
    tiny_pipeline().save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path / "model", guidance_in_training=False, rounds=1, passes=2, held_out_images=0)
    policy = StableDiffusionPolicy.load(config)
    inner, empty, seen = policy._denoise, policy.encode([""]).states[0, 0], list[tuple[bool, bool]]()

    def spy(x_t: Tensor, timestep: Tensor, states: Tensor, pooled: Tensor | None = None) -> Tensor:
        seen.append((torch.is_grad_enabled(), bool((states[0] == empty).all())))
        return inner(x_t, timestep, states, pooled)

    policy._denoise = spy  # type: ignore[method-assign]
    trainer = toy_trainer(tmp_path / "run", config, Brightness(), policy)
    spread_scores(trainer)
    made = Counter(seen)
    assert made[False, True] == 9 and made[False, False] == 10, "three steps of three microbatches, and the check"
    trainer.update(1)
    seen_in_training = Counter(seen) - made
    assert set(seen_in_training) == {(True, False)}


def test_a_round_that_an_older_version_sampled_without_guidance_in_training_is_not_learned_from_wrongly(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "run", toy_config(guidance_in_training=False, rounds=1))
    spread_scores(trainer)
    for start in trainer.engine.microbatches(1):
        kept = Trajectory.load(trainer.engine.part(1, start))
        assert kept.means is not None
        Trajectory(kept.latents, kept.log_probs).save(trainer.engine.part(1, start))
    with pytest.raises(TrainingError, match=r"Round 1 was sampled by an older version.*ddpo fork.*or start again"):
        trainer.update(1)


def test_the_moving_average_is_measured_and_taken_away_and_the_trained_weights_go_on(tmp_path: Path) -> None:
    """Three updates with decay 0.6, from the first update's weights on: the average by hand, in the checkpoint, in the file that people take, and in
    what is measured; the next round samples and trains as without one. Interrupted or not, the same."""
    plain = toy_trainer(tmp_path / "plain", toy_config())
    assert plain.run()
    trained = [load_file(tmp_path / "plain" / "checkpoints" / f"{n:04d}" / "state.safetensors")["weight/shift"] for n in (1, 2, 3)]
    average = trained[0]
    for weight in trained[1:]:
        average = 0.6 * average + 0.4 * weight
    config = toy_config(ema_decay=0.6)
    assert toy_trainer(tmp_path / "straight", config).run()
    for stop in (1, 2):
        first = toy_trainer(tmp_path / "resumed", config)
        first.config = config.with_changes(rounds=stop)
        assert first.run()
    resumed = toy_trainer(tmp_path / "resumed", config)
    assert resumed.run()
    assert outcome(tmp_path / "straight") == outcome(tmp_path / "resumed")
    place = tmp_path / "resumed" / "checkpoints" / "0003"
    state = load_file(place / "state.safetensors")
    assert torch.equal(state["weight/shift"], trained[2])
    torch.testing.assert_close(state["average/shift"], average)
    assert (place / "shift.bin").read_bytes() == state["average/shift"].numpy().tobytes()
    fresh = LinearPolicy(config)
    load_result(place, fresh.parameters())
    assert torch.equal(fresh.shift, state["average/shift"])
    resumed.measure(3)
    measured = dict(resumed.store.metrics()["held_out_reward"])
    assert measured[3] == held_out(fresh, Brightness(), config, base=False).mean
    assert torch.equal(resumed.engine.policy.shift, trained[2])  # type: ignore[attr-defined]


class Power(Exception):
    """The plug is pulled."""


def stopped_at(folder: Path, report: int, **changes: object) -> bool:
    """Run until the given report of progress, then fall over there; False when the run ended before."""
    left = report
    trainer = toy_trainer(folder, resume_config(**changes))

    def watcher(state: str, number: int, done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Power

    trainer.control.watcher = watcher
    try:
        trainer.run()
        trainer.measure(2)  # as the worker does at the end
    except Power:
        return True
    finally:
        trainer.store.close()
    return False


def resume_config(**changes: object) -> RunConfig:
    settings = dict(rounds=2, microbatch=5, update_microbatch=5, images_per_update=4, steps=2, held_out_every=1, held_out_images=4)
    return toy_config(**(settings | changes))


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(objective="nft", forward_draws=2),  # two updates a round: the second needs the predictions from before the first
        dict(advantage="history", trained_fraction=0.5, kl_weight=0.1, warmup_rounds=2),
        dict(shared_start=True, ratio="normalised", ema_decay=0.5, eta=0.5),
        dict(images_per_round=16, images_per_update=8, microbatch=8, update_microbatch=8, reward_offload=False),  # takes up sampling's passes
    ],
    ids=["ddpo-is", "nft", "history-fraction-kl-warmup", "shared-normalised-ema", "reuse-forward"],
)
def test_stopped_at_any_safe_point_and_resumed_equals_the_straight_run(changes: dict[str, Any]) -> None:
    """Defect 3: for every one of the run's reports: fall over there, go on with a new trainer, end with the straight run's weights, AdamW moments,
    metrics, images and scores, bit for bit. The trainers share nothing but the folder."""
    with in_memory() as memory:
        assert not stopped_at(memory / "straight", 10**9, **changes)
        straight = outcome(memory / "straight")
        assert list(straight["states"]) == [1, 2] and [r for r, _ in straight["metrics"]["held_out_reward"]] == [0, 1, 2]
        report = 0
        while stopped_at(folder := memory / "broken", report, **changes):
            assert not stopped_at(folder, 10**9, **changes)
            again = outcome(folder)
            assert {key for key in straight if again[key] != straight[key]} == set(), report
            shutil.rmtree(folder)
            report += 1
        assert report > 15  # 4 parts sampled, 4 scored, 8 microbatches learned from, 3 measurements, and the verbs themselves


def test_what_a_mark_promises_is_on_disk_with_the_names_that_lead_to_it_and_nothing_is_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each mark: the round's tensors when it is sampled, the new weights when it is updated, and their new name when it is checkpointed.
    Earlier checkpoints are left alone."""
    trainer, done = toy_trainer(tmp_path / "run", toy_config(rounds=2, held_out_images=0)), list[str]()
    sync, mark = files.sync, trainer.store.mark
    monkeypatch.setattr(files, "sync", lambda path: (done.append(path.relative_to(tmp_path).as_posix()), sync(path)))
    monkeypatch.setattr(trainer.store, "mark", lambda number, name: (done.append(name), mark(number, name)))
    assert trainer.run()
    second = done[done.index("checkpointed") + 1 :]
    sampled, scored, updated, checkpointed = map(second.index, ("sampled", "scored", "updated", "checkpointed"))
    folders = {"run", "run/rounds", "run/rounds/0002"}
    assert set(second[:sampled]) >= folders | {"run/rounds/0002/.part-00000.safetensors.partial"}
    assert set(second[scored:updated]) >= folders | {"run/rounds/0002/new", "run/rounds/0002/new/state.safetensors"}
    assert set(second[updated + 1 : checkpointed]) == {"run", "run/checkpoints"}


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    """Resuming a finished run computes nothing and moves no mark."""
    toy_trainer(tmp_path / "run", toy_config(rounds=1)).run()
    trainer = toy_trainer(tmp_path / "run", toy_config(rounds=1))
    marks, done = trainer.store.rounds(), outcome(tmp_path / "run")
    assert trainer.run() and trainer.store.rounds() == marks and outcome(tmp_path / "run") == done


def test_held_out_measurements_are_paired_and_of_the_right_policy(tmp_path: Path) -> None:
    """Round 0 is the base model whatever the weights; the same position is the same seed, so an unmoved policy measures the very same."""
    trainer = toy_trainer(tmp_path / "run", toy_config())
    fresh = held_out(trainer.engine.policy, Brightness(), trainer.config, base=False)
    trainer.engine.parameters["shift"].data.fill_(0.5)
    assert held_out(trainer.engine.policy, Brightness(), trainer.config, base=True) == fresh
    moved = held_out(trainer.engine.policy, Brightness(), trainer.config, base=False)
    assert all(after > before for after, before in zip(moved.values, fresh.values, strict=True))


def test_held_out_measurements_are_paired_and_of_the_right_policy_in_a_run(tmp_path: Path) -> None:
    """The trainer's own measurement: point 0 is the base model even when it is taken after training, and each point is taken once."""
    trainer = toy_trainer(tmp_path / "run", toy_config())
    want = held_out(trainer.engine.policy, Brightness(), trainer.config, base=True).mean
    trainer.engine.parameters["shift"].data.fill_(0.5)
    trainer.measure(3)
    points = dict(trainer.store.metrics()["held_out_reward"])
    assert points[0] == want and (points[3] or 0) > want + 0.01
    trainer.engine.parameters["shift"].data.fill_(1.0)
    trainer.measure(3)
    assert dict(trainer.store.metrics()["held_out_reward"]) == points


def test_the_summary_reads_the_first_and_the_last_measurement() -> None:
    metrics = {"held_out_reward": [(0, -2.0), (2, -1.5), (4, -1.0)], "seconds_sampling": [(1, 1.25), (2, None)], "seconds_checkpointing": [(4, 0.1)]}
    assert summary(metrics) == dict(
        rounds=4, result=4, reward_before=-2.0, reward_after=-1.0, gain_percent=50.0, seconds=dict(sampling=1.25, checkpointing=0.1)
    )
    assert summary({})["reward_after"] is None


def test_a_round_says_the_memory_that_it_took(tmp_path: Path) -> None:
    """A process with torch in it takes more than 0.1 GB, and no test here more than 50; units of 1,024 or of a thousand would be far off."""
    assert 0.1 < dict(updated(tmp_path / "run").store.metrics()["memory_gb"])[1] < 50
