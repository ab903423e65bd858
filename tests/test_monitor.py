"""What is watched: each measure on pictures whose answer is known, and that watching changes nothing."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpo.alarms import Judgement
from ddpo.config import ConfigError, RunConfig, prompt_sets
from ddpo.diffusion import Gaussian
from ddpo.files import read_image
from ddpo.monitor import clipping_of, flatness_of, kl_to_base, metrics_of, noise_of, pays_for, pixels_of, spread_of, vendi_of, watched_prompts
from ddpo.policy import StableDiffusionPolicy
from ddpo.records import ProbeRow
from ddpo.rollout import rollout
from ddpo.store import RunStore
from rewards.base import RewardError, Sample, Score
from tests.models import save_tiny_model, tiny_pipeline
from tests.toys_ddpo import Brightness, LinearPolicy, in_memory, outcome, spread_scores, state_bits, tiny_config, toy_config, toy_trainer

# --- measures of a picture --------------------------------------------------------------------------------------------------------


def grey(values: np.ndarray[Any, Any]) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def wave(cycles: float, side: int = 64) -> np.ndarray[Any, Any]:
    return 127.5 + 100 * np.sin(2 * np.pi * cycles * np.arange(side) / side)[None].repeat(side, 0)


def test_noise_is_the_energy_above_half_of_nyquist() -> None:
    """Of 64 pixels Nyquist's frequency has 32 cycles: 15 are below half of it, 17 above; a sum of both by their squared amplitudes; white noise has
    the area outside the circle, 1 - π/16; a blank picture has nothing. (Rounding to whole grey levels makes a noise of 1/12.)"""
    assert noise_of(grey(wave(15))) == pytest.approx(0, abs=1e-3) and noise_of(grey(wave(17))) == pytest.approx(1, abs=1e-3)
    both = 127.5 + 0.6 * (wave(4) - 127.5) + 0.3 * (wave(20) - 127.5)
    assert noise_of(grey(both)) == pytest.approx(0.3**2 / (0.3**2 + 0.6**2), abs=2e-3)
    white = np.random.default_rng(0).normal(127.5, 30, (64, 64))
    assert noise_of(grey(white)) == pytest.approx(1 - math.pi / 16, abs=0.03)
    assert noise_of(Image.new("RGB", (64, 64), "teal")) == 0


def test_flatness_is_the_share_of_pixels_like_their_neighbours() -> None:
    """63 × 63 pixels have neighbours to the right and below. One vertical edge leaves one column of them; noise hardly any; blurred, most."""
    assert flatness_of(Image.new("RGB", (64, 64), "teal")) == 1
    edge = np.full((64, 64), 50.0)
    edge[:, 32:] = 200
    assert flatness_of(grey(edge)) == pytest.approx(1 - 1 / 63)
    white = grey(np.random.default_rng(0).normal(127.5, 60, (64, 64)))
    assert flatness_of(white) < 0.05
    assert flatness_of(white.resize((2, 2), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BICUBIC)) > 0.95


def test_clipping_is_the_share_of_values_at_an_end() -> None:
    picture = Image.new("RGB", (8, 8), (0, 128, 255))
    assert clipping_of(picture) == pytest.approx(2 / 3) and clipping_of(Image.new("RGB", (8, 8), (1, 128, 254))) == 0


def test_pictures_of_a_prompt_are_apart_by_half_their_squared_distance() -> None:
    """Of unit vectors that is 1 - cosine; equal ones are at no distance, opposite ones at 2; of another prompt nothing is seen, and one alone has
    no spread. Of black and white pixels it is ½, whatever their size."""
    features = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 0], [1, 0], [0, 1]])
    found = spread_of(features, ["a", "a", "a", "b", "b", "c"])
    assert found == [pytest.approx(1.5), pytest.approx(1.0), pytest.approx(1.5), 0.0, 0.0, None]
    black_and_white = pixels_of([Image.new("RGB", (20, 20), "black"), Image.new("RGB", (50, 30), "white")])
    assert spread_of(black_and_white, ["a", "a"]) == [pytest.approx(0.5), pytest.approx(0.5)]


def test_the_vendi_score_counts_different_pictures() -> None:
    """Friedman and Dieng's own cases: n alike are 1, n with nothing in common n, two kinds, each of them twice, 2; whatever their length and order.
    By hand, two with the cosine ½ have the eigenvalues ¾ and ¼."""
    one, other = torch.tensor([1.0, 0, 0]), torch.tensor([0, 3.0, 0])
    assert vendi_of(one.repeat(5, 1)) == pytest.approx(1) and vendi_of(torch.eye(6)) == pytest.approx(6)
    assert vendi_of(torch.stack([one, other, 2 * one, other])) == pytest.approx(2)
    wanted = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert vendi_of(torch.tensor([[1.0, 0], [0.5, 0.75**0.5]])) == pytest.approx(wanted)
    assert vendi_of(torch.zeros(3, 2)) == 1


# --- distance from the base -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_kl_is_the_closed_formula_whatever_the_batch(eta: float) -> None:
    """A shift δ of the predicted noise makes KL_t = c_t² ‖δ‖² / 2σ_t², c_t = √(ᾱ_s (1-ᾱ_t)/ᾱ_t) - √(1-ᾱ_s-σ_t²), at any latent."""
    config = toy_config(eta=eta, steps=6)
    policy, prompts = LinearPolicy(config), ["a cat", "a dog", "a cat"]
    with torch.no_grad():
        policy.shift.copy_(0.1 * torch.randn(policy.shift.shape, generator=torch.Generator().manual_seed(0)))
    trajectory, _ = rollout(policy, prompts, [1, 2, 3])
    s = policy.schedule
    moved = (s.alpha_prev * (1 - s.alpha) / s.alpha).sqrt() - (1 - s.alpha_prev - s.std**2).clamp(min=0).sqrt()
    wanted = torch.stack([(policy.shift[i] ** 2).sum() * moved**2 / (2 * s.std**2) for i in (0, 1, 0)]).detach()
    for size in (4, 100):
        torch.testing.assert_close(kl_to_base(policy, trajectory, prompts, size), wanted, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_kl_in_half_precision_is_that_of_float32_and_leaves_every_bit(tmp_path: Path, precision: str) -> None:
    """A small LoRA, whose differences half precision rounds to something else: the distance is that of the same weights in float32. Afterwards all
    weights have their types and bits, and so have predictions."""
    save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path / "model", eta=0.1)
    half = StableDiffusionPolicy.load(config.with_changes(precision=precision))
    full = StableDiffusionPolicy.load(config)
    with torch.no_grad():
        for mine, other in zip(half.unet.parameters(), full.unet.parameters(), strict=True):
            other.copy_(mine.float())  # the rounded base
        for (name, mine), (_, other) in zip(half.parameters().items(), full.parameters().items(), strict=True):
            for p in (mine, other):
                p.copy_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    prompts = ["a cat", "a dog"]
    trajectory, _ = rollout(half, prompts, [1, 2])
    before = {name: p.detach().clone() for name, p in half.unet.named_parameters()}
    exact = kl_to_base(half, trajectory, prompts)
    torch.testing.assert_close(exact, kl_to_base(full, trajectory, prompts), rtol=0.01, atol=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "exact", LinearPolicy(toy_config()).exact)
        assert not 0.7 < float(kl_to_base(half, trajectory, prompts).sum() / exact.sum()) < 1.3
    assert {p.dtype for p in half.unet.parameters() if not p.requires_grad} == {half.autocast}
    for name, p in half.unet.named_parameters():
        assert p.dtype == before[name].dtype and torch.equal(p, before[name]), name
    assert torch.equal(rollout(half, prompts, [1, 2])[0].latents, trajectory.latents)


# --- which pictures ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "images", "wanted"),
    [
        ("animals", 16, dict(trained=(8, 4), unseen_animals=(4, 2), objects=(4, 2))),
        ("activities_seen", 32, dict(trained=(16, 8), activities_unseen=(8, 4), unseen_activities=(8, 4))),
        ("counting", 16, dict(trained=(8, 4), unseen_animals_counted=(8, 4))),
        ("objects", 16, dict(trained=(16, 8))),
        ("animals", 8, dict(trained=(4, 2), unseen_animals=(4, 2))),
        ("animals", 3, dict(trained=(3, 1))),
    ],
)
def test_half_of_the_pictures_are_of_prompts_that_are_not_trained(prompts: str, images: int, wanted: dict[str, tuple[int, int]]) -> None:
    """Each group with its number of pictures and of prompts; at least two pictures of each prompt; always the same."""
    config = RunConfig(prompts=prompt_sets()[prompts], watch_images=images)
    found = watched_prompts(config)
    assert found == watched_prompts(config.with_changes(seed=5))
    for kind, (count, different) in wanted.items():
        chosen = [prompt for each, prompt in found if each == kind]
        assert len(chosen) == count and len(set(chosen)) == different and min(chosen.count(prompt) for prompt in chosen) > 1
        assert set(chosen) <= set(prompt_sets()[prompts if kind == "trained" else kind])
    assert {kind for kind, _ in found} == set(wanted)


def test_own_prompts_are_all_watched_alike() -> None:
    own = ("a red car", "a boat", "a tram", "a train")
    found = watched_prompts(RunConfig(prompts=own, watch_images=16))
    assert {prompt: found.count(("trained", prompt)) for prompt in own} == dict.fromkeys(own, 4)
    assert [kind for kind, _ in watched_prompts(RunConfig(watch_images=12))] == ["trained"] * 6 + ["unseen_animals"] * 3 + ["objects"] * 3


def test_held_out_prompts_are_half_of_what_is_watched_instead_of_the_sets() -> None:
    own, held_out = ("a red car", "a boat"), ("a tram", "a train", "a tram")
    for prompts, images in ((own, 16), (prompt_sets()["animals"], 8)):
        found = watched_prompts(RunConfig(prompts=prompts, held_out_prompts=held_out, watch_images=images))
        assert [kind for kind, _ in found] == ["trained"] * (images // 2) + ["held_out"] * (images // 2)
        assert {prompt: found.count(("held_out", prompt)) for prompt in held_out} == dict.fromkeys(held_out, images // 4)


@pytest.mark.parametrize("names", ["human", "blend", "nonsense", "clip_score, human"])
def test_what_cannot_be_asked_is_refused(names: str) -> None:
    with pytest.raises(ConfigError, match="watch_rewards names"):
        RunConfig(watch_rewards=names)
    assert RunConfig(watch_rewards=" clip_score,pickscore ").watched_rewards == ("clip_score", "pickscore")


# --- metrics ----------------------------------------------------------------------------------------------------------------------


def rows(number: int, **found: Sequence[float | None]) -> list[ProbeRow]:
    """Probes by position, the second half of them of another group."""
    count = len(next(iter(found.values())))
    return [
        ProbeRow(i, number, i, "trained" if 2 * i < count else "objects", "a", 0, "", {name: values[i] for name, values in found.items()})
        for i in range(count)
    ]


def test_metrics_are_means_moves_and_groups() -> None:
    """By hand: a reward from mean 2, deviation 1, to 4 has moved by 2; clipping that the base has nowhere, by its share over one percent; diversity
    is a share of the base's; what is unknown is left out."""
    base = rows(0, kl=[0.0, None], aesthetic=[1.0, 3.0], clipping=[0.0, 0.0], diversity=[0.2, 0.4], pickscore=[None, None])
    now = rows(5, kl=[6.0, None], aesthetic=[3.0, 5.0], clipping=[0.02, 0.04], diversity=[0.1, 0.2], pickscore=[1.0, 1.0])
    found = metrics_of(now, base, "aesthetic")
    assert found == pytest.approx(
        dict(
            watched_kl=6, watched_aesthetic=4, moved_aesthetic=2, watched_clipping=0.03, moved_clipping=3, watched_diversity=0.5, watched_pickscore=1
        )
        | dict(reward_on_trained=3, reward_on_objects=5)
    )
    at_base = metrics_of(base, base, "aesthetic")
    assert at_base["moved_aesthetic"] == 0 and at_base["watched_diversity"] == 1 and at_base["watched_kl"] == 0


# --- a run ------------------------------------------------------------------------------------------------------------------------


def watched_config(**changes: Any) -> RunConfig:
    settings: dict[str, Any] = dict(watch_every=2, watch_images=8, rounds=5, reward_offload=False)
    return toy_config(**(settings | changes))


def test_a_watched_run_has_its_series_and_its_pictures(tmp_path: Path) -> None:
    """Rounds 2, 4 and the last one, and the base model before them, on the same eight seeds; the policy goes ever further from the base."""
    trainer = toy_trainer(tmp_path / "run", watched_config())
    assert trainer.run()
    metrics = trainer.store.metrics()
    for name in ("watched_kl", "watched_diversity", "watched_vendi", "watched_noise", "moved_jpeg_compressibility", "watched_image_statistics"):
        assert [number for number, _ in metrics[name]] == [0, 2, 4, 5], name
    kl = [value or 0.0 for _, value in metrics["watched_kl"]]
    assert kl[0] == 0 and kl == sorted(kl) and kl[-1] > 0
    probes = trainer.store.probes()
    first, last = ([row.found["jpeg_compressibility"] or 0.0 for row in probes if row.round == n] for n in (0, 5))
    _, images = rollout(LinearPolicy(trainer.config), [row.prompt for row in probes[:8]], [row.seed for row in probes[:8]])
    assert first == [score.value for score in Brightness().score([Sample(0, "", image) for image in images])]
    assert dict(metrics["moved_jpeg_compressibility"])[5] == pytest.approx((np.mean(last) - np.mean(first)) / np.std(first))
    assert [row.round for row in probes] == [n for n in (0, 2, 4, 5) for _ in range(8)]
    assert len({(row.position, row.prompt, row.seed) for row in probes}) == 8
    assert all((tmp_path / "run" / row.image).exists() for row in probes)
    assert trainer.store.probe(probes[3].id) == probes[3] and trainer.store.probes(4) == probes[16:24]
    assert [number for number, _ in metrics["seconds_watching"]] == [2, 4, 5]
    pictures = {n: pixels_of([Image.open(tmp_path / "run" / row.image) for row in probes if row.round == n]) for n in (0, 5)}
    vendi = dict(metrics["watched_vendi"])
    assert vendi[0] == 1 and vendi[5] == pytest.approx(vendi_of(pictures[5]) / vendi_of(pictures[0])) and vendi[5] != 1


def test_a_run_that_an_older_version_watched_goes_on_with_a_vendi_score(tmp_path: Path) -> None:
    """It is of the base model's pictures, which are there; where one of their files is gone, there is none, and the run goes on."""
    trainer = toy_trainer(tmp_path / "run", watched_config(watch_every=1, rounds=3))
    trainer.control.stop_after_round = True
    assert not trainer.run()
    trainer.store._db.execute("DELETE FROM metric WHERE name = 'watched_vendi'")
    trainer.control.stop_after_round = False
    first = trainer.store.probes(0)[0]
    watch = trainer.monitor.watch

    def then_lose_one(number: int, report: Any) -> dict[str, float]:
        found = watch(number, report)
        (tmp_path / "run" / first.image).unlink(missing_ok=True)
        return found

    trainer.monitor.watch = then_lose_one  # type: ignore[method-assign]
    assert trainer.run()
    metrics = trainer.store.metrics()
    assert [number for number, _ in metrics["watched_vendi"]] == [2] and [number for number, _ in metrics["watched_noise"]] == [0, 1, 2, 3]


def test_what_a_reward_pays_for_is_a_correlation_within_prompts() -> None:
    """Scores follow texture within each prompt, whatever lies between prompts; a prompt of one image says nothing, nor do few or equal pictures."""
    images = [grey(level * np.tile([[0.0, 1.0], [1.0, 0.0]], (8, 8))) for level in (0, 60, 255, 0, 60, 0, 60, 255, 0, 60, 90)]
    prompts, values = ["a cat"] * 5 + ["a dog"] * 5 + ["a fly"], [0.0, 5.0, 5.0, 0.0, 5.0, 10.0, 15.0, 15.0, 10.0, 15.0, -99.0]
    found = pays_for(images, prompts, values)
    assert found["pays_for_texture"] == pytest.approx(1) and set(found) == {"pays_for_texture", "pays_for_noise", "pays_for_clipping"}
    assert pays_for(images, prompts, [-value for value in values])["pays_for_texture"] == pytest.approx(-1)
    assert pays_for(images[1:], prompts[1:], values[1:]) == {}, "seven degrees of freedom are too few"
    by_hand = np.corrcoef([0, 5, 5, 0, 5], [clipping_of(image) for image in images[:5]])[0, 1]
    assert found["pays_for_clipping"] == pytest.approx(by_hand)
    assert pays_for([images[0]] * 9, ["a"] * 9, list(range(9))) == {}
    assert pays_for(images, prompts, [7.0] * 11) == {} and pays_for([], [], []) == {}


def test_a_watched_run_says_what_its_reward_pays_for(tmp_path: Path) -> None:
    """A picture that is lost costs this, and not the run."""
    trainer = toy_trainer(tmp_path / "run", watched_config(rounds=1, images_per_round=16))
    assert trainer.run()
    rows = trainer.store.samples(1)
    images = [read_image(trainer.store.folder / row.image) for row in rows]
    values = [trainer.store.scores(1, "jpeg_compressibility")[row.id].value or 0.0 for row in rows]
    wanted = pays_for(images, [row.prompt for row in rows], values)
    assert wanted and {name: trainer.store.metric(1, name) for name in wanted} == pytest.approx(wanted)
    losing = toy_trainer(tmp_path / "lost", watched_config(rounds=1, images_per_round=16))
    describe = losing._describe_scores

    def lose_one(number: int) -> None:
        (losing.store.folder / losing.store.samples(1)[3].image).unlink()
        describe(number)

    losing._describe_scores = lose_one  # type: ignore[method-assign]
    assert losing.run() and losing.store.metric(1, "reward_mean") is not None and losing.store.metric(1, "pays_for_texture") is None


@pytest.mark.parametrize(
    ("paid", "alarms", "wanted"),
    [
        (0.0, (), [6, 12, 18, 24, 30, 32]),
        (0.9, (), [6, 9, 12, 15, 18, 21, 24, 27, 30, 32]),
        (0.9, (9,), [6, 9, 21, 24, 27, 30, 32]),
        (0.0, (12, 24), [6, 12, 24, 32]),
        (0.69, (), [6, 12, 18, 24, 30, 32]),
    ],
)
def test_a_run_is_watched_sooner_where_covering_pictures_pays_and_later_once_an_alarm_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paid: float, alarms: Sequence[int], wanted: Sequence[int]
) -> None:
    trainer = toy_trainer(tmp_path / "run", watched_config(watch_every=6, rounds=32))
    watched = [0]
    monkeypatch.setattr("ddpo.monitor.judged", lambda store: Judgement(tuple(watched), dict.fromkeys(alarms), 0))  # type: ignore[arg-type]
    for number in range(1, 33):
        trainer.store.add_metrics(number, dict(pays_for_noise=-0.9, pays_for_texture=paid))
        watched += [number] * trainer.monitor.due(number)
    assert watched[1:] == list(wanted)


def test_what_was_watched_and_measured_is_known_without_reading_all_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for each round of a long run that is resumed."""
    trainer = toy_trainer(tmp_path / "run", watched_config(held_out_images=8, held_out_every=1))
    assert trainer.run()
    trainer.measure(5)
    monkeypatch.setattr(trainer.store, "metrics", None)
    assert not any(trainer.monitor.due(number) for number in range(6))
    for number in range(1, 6):
        trainer.measure(number)


def test_watching_changes_nothing(tmp_path: Path) -> None:
    """Watched or not: the same weights, moments, images and scores, bit for bit; and no generator of the process moves, moving average or not."""
    for ema in (0.0, 0.5):
        plain, watched = (tmp_path / f"{name}-{ema}" for name in ("plain", "watched"))
        assert toy_trainer(plain, watched_config(watch_every=0, ema_decay=ema)).run()
        trainer = toy_trainer(watched, watched_config(watch_every=1, ema_decay=ema))
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert trainer.run()
        assert torch.equal(torch.get_rng_state(), states[0]) and (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
        one, other = outcome(plain), outcome(watched)
        extra = ("watched_", "moved_", "reward_on_", "pays_for_")
        other["metrics"] = {name: points for name, points in other["metrics"].items() if not name.startswith(extra)}
        assert other == one


def test_a_run_keeps_its_watched_pictures_whatever_is_chosen_for_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is compared with its twin, by position."""
    trainer = toy_trainer(tmp_path / "run", watched_config(watch_every=1, rounds=2))
    trainer.control.stop_after_round = True
    assert not trainer.run()
    was = [(row.kind, row.prompt, row.seed) for row in trainer.store.probes(0)]
    monkeypatch.setattr("ddpo.monitor.watched_prompts", lambda config: [("objects", config.prompts[-1])] * config.watch_images)
    assert toy_trainer(tmp_path / "run", watched_config(watch_every=1, rounds=2)).run()
    assert was == [(row.kind, row.prompt, row.seed) for row in trainer.store.probes(2)] and {kind for kind, _, _ in was} != {"objects"}


@pytest.mark.parametrize(("training", "precision"), [("lora", "bf16"), ("full", "fp32")])
def test_watching_between_sampling_and_the_update_changes_nothing(tmp_path: Path, training: str, precision: str) -> None:
    """While people rate, sampling's passes are kept with their graphs; the weights that they need are widened, averaged or exchanged for the base's
    by watching, and put back: the update's weights and moving average are the same, bit for bit."""
    save_tiny_model(tmp_path / "model")
    changes = dict(images_per_update=8, microbatch=8, update_microbatch=8, ema_decay=0.5, watch_every=1, watch_images=4, rounds=2, held_out_images=0)
    config = tiny_config(tmp_path / "model", training=training, precision=precision, learning_rate=1e-4, **changes)
    ends = []
    for watched in (False, True):
        trainer = toy_trainer(tmp_path / f"{watched}", config, Brightness(), StableDiffusionPolicy.load(config))
        for number in (1, 2):
            spread_scores(trainer, number)
            assert trainer.engine.kept._kept
            if watched and number == 2:
                trainer.monitor.watch(1, lambda done, total: None)
            trainer.update(number)
            trainer.store.mark(number, "updated")
            trainer.checkpoint(number)
        ends.append(state_bits(trainer.store.checkpoints()[2] / "state.safetensors"))
        trainer.store.close()
    assert ends[0] == ends[1]


def test_the_moving_average_is_what_is_watched(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "run", watched_config(ema_decay=0.5))
    assert trainer.run()
    fresh, last = LinearPolicy(trainer.config), trainer.store.probes(5)
    fresh.shift.data = trainer.engine.average.shadow_params[0]  # type: ignore[union-attr]
    trajectory, images = rollout(fresh, [row.prompt for row in last], [row.seed for row in last])
    assert [row.found["jpeg_compressibility"] for row in last] == [s.value for s in Brightness().score([Sample(0, "", image) for image in images])]
    assert last[0].found["kl"] == pytest.approx(float(kl_to_base(fresh, trajectory, [row.prompt for row in last])[0].sum()), rel=1e-5)


class Power(Exception):
    """The plug is pulled."""


def test_stopped_at_any_safe_point_a_watched_run_equals_the_straight_one() -> None:
    """Fall over at each of the run's reports, watching's among them, and go on with a new trainer: the same metrics and probes."""
    config = watched_config(rounds=2, watch_every=1, watch_images=4, microbatch=5, update_microbatch=8, steps=2, ema_decay=0.5)

    def run(folder: Path, reports: int) -> bool:
        trainer, left = toy_trainer(folder, config), [reports]

        def watcher(state: str, number: int, done: int, total: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Power

        trainer.control.watcher = watcher
        try:
            return not trainer.run()
        except Power:
            return True
        finally:
            trainer.store.close()

    def said(folder: Path) -> Any:
        store = RunStore(folder)
        try:
            return outcome(folder), [(row.round, row.position, row.image, dict(row.found)) for row in store.probes()]
        finally:
            store.close()

    with in_memory() as memory:
        assert not run(memory / "straight", 10**9)
        straight = said(memory / "straight")
        assert [number for number, _ in straight[0]["metrics"]["watched_kl"]] == [0, 1, 2]
        report = 0
        while run(folder := memory / "broken", report):
            assert not run(folder, 10**9)
            assert said(folder) == straight, report
            shutil.rmtree(folder)
            report += 1
        assert report > 20


class Broken:
    """A reward that cannot be asked."""

    name = "clip_score"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        self.asked += 1
        raise RewardError("no network")


def test_a_reward_that_fails_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    """It is said once, not asked again, and nobody is waited for; all else is measured."""
    trainer, broken = toy_trainer(tmp_path / "run", watched_config(watch_rewards="clip_score")), Broken()
    trainer.engine.source = lambda name: broken if name == "clip_score" else Brightness(name)
    assert trainer.run()
    metrics = trainer.store.metrics()
    assert broken.asked == 1 and "watched_clip_score" not in metrics and [n for n, _ in metrics["watched_noise"]] == [0, 2, 4, 5]
    assert [event.message for event in trainer.store.events() if event.kind == "watch"] == [
        "clip_score cannot be asked about the watched pictures: no network"
    ]


def test_a_distance_for_which_there_is_no_memory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once; the other measures go on, and each round is watched once."""

    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("ddpo.monitor.kl_to_base", full)
    trainer = toy_trainer(tmp_path / "run", watched_config())
    assert trainer.run() and not trainer.monitor.due(4)
    metrics = trainer.store.metrics()
    assert metrics["watched_kl"] == [(0, 0.0)] and [number for number, _ in metrics["watched_noise"]] == [0, 2, 4, 5]
    assert next(event.message for event in trainer.store.events() if event.kind == "watch").endswith("for which there is no memory.")
    assert sum(event.kind == "watch" for event in trainer.store.events()) == 1


def test_another_reward_is_compared_with_the_base_s_pictures_too(tmp_path: Path) -> None:
    """A change of reward after round 2: the base model's pictures, made before, are asked about by the new one, so that its move is known at once."""
    trainer = toy_trainer(tmp_path / "run", watched_config(rounds=2))
    assert trainer.run()
    assert "pickscore" not in trainer.store.probes(0)[0].found
    trainer.store.add_request("reward", reward="pickscore")
    trainer = toy_trainer(tmp_path / "run", watched_config(rounds=4))
    assert trainer.run()
    base, last = trainer.store.probes(0), trainer.store.probes(4)
    assert base[0].found["pickscore"] is not None and base[0].found["kl"] == 0 and last[0].found["pickscore"] is not None
    assert [number for number, _ in trainer.store.metrics()["moved_pickscore"]] == [4]


def test_the_base_model_s_own_metrics_are_those_of_the_first_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the reward was changed before anything was watched: what stands at round 0 is of the rounds from the first one on."""
    config, prompts = watched_config(rounds=3), watched_prompts(watched_config())

    class Other(Brightness):
        def score(self, samples: Sequence[Sample]) -> list[Score]:
            return [Score(100.0)] * len(samples)

    groups = [("objects" if i % 2 else kind, prompt) for i, (kind, prompt) in enumerate(prompts)]
    monkeypatch.setattr("ddpo.monitor.watched_prompts", lambda config: groups)
    trainer = toy_trainer(tmp_path / "run", config)
    trainer.control.stop_after_round = True
    assert not trainer.run() and trainer.store.probes() == []
    trainer.store.add_request("reward", reward="pickscore")
    trainer = toy_trainer(tmp_path / "run", config)
    trainer.engine.source = lambda name: Other(name) if name == "pickscore" else Brightness(name)
    assert trainer.run()
    base = [row.found["jpeg_compressibility"] or 0.0 for row in trainer.store.probes(0) if row.kind == "trained"]
    assert trainer.store.metric(0, "reward_on_trained") == pytest.approx(np.mean(base))


def test_while_people_rate_the_round_before_is_watched(tmp_path: Path) -> None:
    """No watching between Enter and the next board: round 2 is watched while the board of round 3 waits, by the very weights of round 2. Nor
    is it asked what their ratings pay for."""
    trainer = toy_trainer(tmp_path / "run", watched_config(reward="human", rounds=3, held_out_images=0, images_per_round=16))
    seen: list[tuple[str, int, bool]] = []

    def watcher(state: str, number: int, done: int, total: int) -> None:
        known = bool(trainer.store.probes(2))
        seen.append((state, number, known))
        if state == "awaiting" and (number < 3 or known):
            trainer.store.add_request("apply", round=number) if not trainer.store.pending_requests() else None
            for row in trainer.store.samples(number):
                trainer.store.add_rating(f"{row.id}", row.id, "anna", "thumbs", 1.0 if row.position % 2 else -1.0)

    trainer.control.watcher = watcher
    assert trainer.run()
    assert ("measuring", 2) not in {(state, number) for state, number, _ in seen}
    first = next(i for i, (_, _, known) in enumerate(seen) if known)
    assert seen[first - 1][:2] == ("awaiting", 3)
    metrics = trainer.store.metrics()
    assert [number for number, _ in metrics["watched_kl"]] == [0, 2, 3] and not [name for name in metrics if name.startswith("pays_for")]


def test_a_stable_diffusion_is_watched_from_start_to_end(tmp_path: Path) -> None:
    """The real policy, tiny, over the real trainer: KL 0 at the base and more after each update; the animals' groups have their own reward."""
    tiny_pipeline().save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path / "model", prompts=prompt_sets()["animals"], watch_every=1, watch_images=8, rounds=2, held_out_images=0)
    trainer = toy_trainer(tmp_path / "run", config, Brightness(), StableDiffusionPolicy.load(config))
    assert trainer.run()
    kl = [value or 0.0 for _, value in trainer.store.metrics()["watched_kl"]]
    assert kl[0] == 0 and kl[1] > 0 and kl[2] > 0
    assert {"reward_on_trained", "reward_on_unseen_animals"} <= set(trainer.store.metrics())


def test_a_gaussian_is_no_nats_from_itself() -> None:
    same = Gaussian(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 1))
    moved: Tensor = Gaussian(torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 1, 1)).kl(same)
    assert float(same.kl(same)) == 0 and float(moved) == pytest.approx(4 * 0.5**2 / 2)
