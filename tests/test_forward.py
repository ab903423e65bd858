"""Passes of sampling that the first optimiser step takes up: the same numbers, fewer passes, within the memory there is."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddpo.config import RunConfig
from ddpo.diffusion import Gaussian
from ddpo.engine import Engine
from ddpo.forward import KeptForward
from ddpo.policy import StableDiffusionPolicy
from ddpo.trainer import Trainer
from tests.models import save_tiny_model
from tests.toys_ddpo import Brightness, Choosy, LinearPolicy, outcome, spread_scores, tiny_config, toy_config, toy_trainer


def reusing(**changes: Any) -> dict[str, Any]:
    """Settings of 16 images in microbatches of 8, whose passes can be taken up."""
    return dict(images_per_round=16, images_per_update=16, microbatch=8, update_microbatch=8, reward_offload=False, held_out_images=0) | changes


class Counting:
    """Counts a policy's passes: without a graph, and with one."""

    def __init__(self, policy: Any) -> None:
        self.plain, self.graphs, self.images, self.inner = 0, 0, list[int](), policy.step
        policy.step = self

    def __call__(self, x_t: Tensor, index: Tensor, condition: Any) -> Gaussian:
        self.plain, self.graphs = self.plain + (not torch.is_grad_enabled()), self.graphs + torch.is_grad_enabled()
        self.images.append(len(x_t))
        found: Gaussian = self.inner(x_t, index, condition)
        return found


def scored(folder: Path, config: RunConfig, reward: Any = None) -> Trainer:
    """A trainer whose first round is sampled and scored, by a reward that knows images by their row."""
    trainer = toy_trainer(folder, config, reward)
    trainer.engine.scores_ahead = lambda name: False  # type: ignore[method-assign]
    spread_scores(trainer)
    return trainer


def run_of(folder: Path, config: RunConfig, model: bool = False, kept: bool = True, reward: Any = None) -> Trainer:
    """A finished run of the toy or of a tiny Stable Diffusion, that keeps its passes or forgets them all."""
    trainer = toy_trainer(folder, config, reward, policy=StableDiffusionPolicy.load(config) if model else None)
    if not kept:
        trainer.engine.kept.take = lambda key: None  # type: ignore[method-assign]
    assert trainer.run()
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(images_per_update=8, passes=2),
        dict(objective="ddpo-sf", kl_weight=0.01, skip_last_steps=1, skip_first_steps=1),
        dict(images_per_update=8, ratio="normalised", shared_start=True, eta=0.5),
        dict(training="full", learning_rate=1e-4),
        dict(images_per_update=8, passes=2, guidance_in_training=False),
        dict(objective="ddpo-sf", guidance_in_training=False),
    ],
    ids=["one-update", "four-updates", "sf-kl", "normalised", "full", "unguided", "sf-unguided"],
)
def test_a_kept_pass_and_one_computed_again_are_the_same_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Two runs of a tiny Stable Diffusion, of which one forgets every pass: the same weights, moments, metrics and images."""
    config = tiny_config(save_tiny_model(tmp_path / "model"), **reusing(rounds=2, **changes))
    assert config.reuses_forward
    for kept in (True, False):
        run_of(tmp_path / str(kept), config, model=True, kept=kept)
    assert outcome(tmp_path / "True") == outcome(tmp_path / "False")


@pytest.mark.parametrize(
    "changes",
    [dict(), dict(images_per_update=8), dict(images_per_update=8, guidance_in_training=False)],
    ids=["one-update", "two-updates", "unguided"],
)
def test_the_update_is_the_one_without_kept_passes(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The same images, and weights that differ by the order of float32 sums alone (which AdamW's first step magnifies)."""
    model = save_tiny_model(tmp_path / "model")
    for reuse in (True, False):
        config = tiny_config(model, **reusing(rounds=1, reuse_forward=reuse, learning_rate=1e-3, **changes))
        run_of(tmp_path / str(reuse), config, model=True)
    one, other = outcome(tmp_path / "True"), outcome(tmp_path / "False")
    assert sorted(one["images"], key=lambda row: row[1])[0][5] == other["images"][0][5]
    for name in ("kl_update", "grad_norm", "loss", "ratio_std"):
        assert dict(one["metrics"][name]) == pytest.approx(dict(other["metrics"][name]), rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(("images_per_update", "again"), [(16, 0), (8, 4)])
def test_the_first_step_makes_no_pass_of_its_own(tmp_path: Path, images_per_update: int, again: int) -> None:
    """Four denoising steps of two microbatches are eight passes; whose images are learned from first, those leave their graph standing, and only the
    others are computed again."""
    trainer = toy_trainer(tmp_path / "run", toy_config(**reusing(rounds=1, images_per_update=images_per_update)))
    counting = Counting(trainer.engine.policy)
    trainer.store.start_round(1)
    trainer.sample(1)
    assert counting.graphs == images_per_update // 2
    trainer.store.mark(1, "sampled")
    trainer.score(1)
    trainer.update(1)
    assert counting.graphs == images_per_update // 2 + again
    assert dict(trainer.store.metrics()["ratio_max_deviation"])[1] == 0 or images_per_update == 8


def test_images_are_made_in_the_order_in_which_they_are_learned_from(tmp_path: Path) -> None:
    """With two updates a round the first microbatch is what the first one learns from; each image is still its position's, by prompt and seed."""
    config = toy_config(**reusing(rounds=1, images_per_update=8))
    trainer, plain = run_of(tmp_path / "run", config), run_of(tmp_path / "plain", config.with_changes(reuse_forward=False))
    order = torch.randperm(16, generator=trainer.engine._generator(1, 0)).tolist()
    assert trainer.engine.microbatches(1) == {0: order[:8], 8: order[8:]} and order != list(range(16))
    assert plain.engine.microbatches(1) == {0: list(range(8)), 8: list(range(8, 16))}

    def pictures(of: Trainer) -> dict[int, tuple[str, int, bytes]]:
        return {row.position: (row.prompt, row.seed, (of.store.folder / row.image).read_bytes()) for row in of.store.samples(1)}

    assert pictures(trainer) == pictures(plain)


def test_kept_passes_end_with_the_weights_they_are_of(tmp_path: Path) -> None:
    """After an optimiser step none is left, those of a microbatch that nobody rated neither; nor after a round that nobody rated."""
    half = scored(tmp_path / "half", toy_config(**reusing(rounds=1)), Choosy(unrated=range(1, 9)))
    kept, steps = half.engine.kept, list[int]()
    assert len(kept._kept) == 8
    inner = half.engine._step
    half.engine._step = lambda: (inner(), steps.append(len(kept._kept)))[0]  # type: ignore[method-assign, func-returns-value]
    half.update(1)
    assert steps == [0]
    nobody = scored(tmp_path / "nobody", toy_config(**reusing(rounds=1)), Choosy(unrated=range(100)))
    assert nobody.engine.kept._kept
    nobody.update(1)
    assert not nobody.engine.kept._kept


@pytest.mark.parametrize("unrated", [3, 6])
def test_of_a_microbatch_that_is_mostly_unrated_the_rest_is_computed_anew(tmp_path: Path, unrated: int) -> None:
    """Five of eight images are learned from by the whole microbatch's pass, two of eight by one of their own. Either way the gradient is theirs."""
    gradients = []
    for reuse in (True, False):
        config = toy_config(**reusing(rounds=1, images_per_round=8, images_per_update=8, max_grad_norm=1e9, reuse_forward=reuse))
        trainer = scored(tmp_path / str(reuse), config, Choosy(unrated=range(1, unrated + 1)))  # rows count from 1
        counting = Counting(trainer.engine.policy)
        trainer.update(1)
        if reuse:
            assert counting.images == ([] if unrated == 3 else [2] * 4)
        (parameter,) = trainer.engine.parameters.values()
        gradients.append(trainer.engine.optimiser.state[parameter]["exp_avg"] / 0.1)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6 * float(gradients[0].abs().max()))


class Layer:
    """A policy of one layer: its graph holds a frozen weight of 4,000 bytes, the latents and what comes between them."""

    device, schedule = torch.device("cpu"), range(3)

    def __init__(self) -> None:
        self.frozen, self.shift = torch.ones(1000), nn.Parameter(torch.ones(1000))

    def step(self, x_t: Tensor, index: Tensor, condition: Any) -> Gaussian:
        mean = (((x_t.flatten(1) * self.shift) * self.frozen) ** 2).reshape(x_t.shape)
        return Gaussian(mean, torch.ones(len(x_t), 1, 1, 1))


def test_no_more_passes_are_kept_than_a_quarter_of_the_free_memory_holds() -> None:
    """A pass on two latents of 4,000 bytes each holds them and the square's argument, 16,000 bytes, and a weight that does not count: of 320,000 free
    bytes five fit a quarter. Further passes leave no graph, and a place that was taken can be filled again."""
    policy = Layer()
    kept, index = KeptForward(policy, free=lambda device: 320_000), torch.zeros(2, dtype=torch.long)  # type: ignore[arg-type]

    def sample(start: int) -> Gaussian:
        with torch.no_grad():
            return kept.step((1, start, 0), torch.randn(2, 1, 10, 100), index, None)

    given = [sample(start) for start in range(8)]
    assert kept._bytes == 16_000 and not any(gaussian.mean.requires_grad for gaussian in given)
    taken = [kept.take((1, start, 0)) for start in range(8)]
    assert [one is not None for one in taken] == [True] * 5 + [False] * 3
    for one, gaussian in zip(taken, given, strict=False):
        assert one is None or (one.mean.requires_grad and torch.equal(one.mean, gaussian.mean))
    little = KeptForward(policy, free=lambda device: 4 * 30_000)  # type: ignore[arg-type]
    for start in range(3):
        with torch.no_grad():
            little.step((1, start, 0), torch.randn(2, 1, 10, 100), index, None)
    assert little._bytes == 20_000 and len(little._kept) == 1  # with the frozen weight; a second one would be one too many
    sample(9)
    assert kept.take((1, 9, 0)) is not None and kept.take((1, 9, 0)) is None


@pytest.mark.parametrize("free", [10**9, 10**5])
def test_what_is_let_go_leaves_nothing_behind(free: int) -> None:
    """A pass that nobody went backwards through is freed, one that was counted too: an output that its own graph holds could hold it for ever."""
    held = list[weakref.ref[Tensor]]()

    class Exponential(Layer):
        def step(self, x_t: Tensor, index: Tensor, condition: Any) -> Gaussian:
            out = (x_t.flatten(1) * self.shift).exp()  # whose gradient needs its outcome
            held.append(weakref.ref(out))
            return Gaussian((out * self.frozen).reshape(x_t.shape), torch.ones(len(x_t), 1, 1, 1))

    kept = KeptForward(Exponential(), free=lambda device: free)  # type: ignore[arg-type]
    for start in range(4):
        with torch.no_grad():
            kept.step((1, start, 0), torch.randn(2, 1, 10, 100), torch.zeros(2, dtype=torch.long), None)
    kept.clear()
    gc.collect()
    assert len(held) == 4 and not any(ref() is not None for ref in held)


def test_a_pass_that_is_too_large_is_not_kept() -> None:
    kept = KeptForward(Layer(), free=lambda device: 50_000)  # type: ignore[arg-type]
    with torch.no_grad():
        kept.step((1, 0, 0), torch.randn(2, 1, 10, 100), torch.zeros(2, dtype=torch.long), None)
    assert not kept._kept


def test_passes_are_taken_up_only_where_they_are_those_that_the_step_would_compute() -> None:
    able: dict[str, Any] = dict(images_per_round=32, images_per_prompt=8, images_per_update=32, microbatch=16)
    assert RunConfig(**able).reuses_forward
    for changes in (
        dict(reuse_forward=False), dict(objective="nft"), dict(trained_fraction=0.5),
        dict(gradient_checkpointing=True), dict(ahead=32), dict(reward_offload=True), dict(microbatch=4), dict(update_microbatch=8),
        dict(images_per_update=8), dict(microbatch=24, update_microbatch=24),
    ):  # fmt: skip
        assert not RunConfig(**(able | changes)).reuses_forward, changes
    assert RunConfig(**(able | dict(microbatch=64, update_microbatch=32))).reuses_forward  # more than there are


def test_an_older_run_goes_on_as_it_began(tmp_path: Path) -> None:
    """Its config.json does not have the setting."""
    RunConfig().save(tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    line = next(line for line in text.splitlines(keepends=True) if "reuse_forward" in line)
    (tmp_path / "config.json").write_text(text.replace(line, ""))
    assert not RunConfig.load(tmp_path / "config.json").reuse_forward and RunConfig().reuse_forward


def test_every_combination_of_sizes_makes_each_image_once() -> None:
    """Whatever the sizes, the microbatches of a round are its positions, each once."""
    for n, update, micro in itertools.product((16, 24, 32), (8, 16, 24, 32), (8, 16)):
        if n % update:
            continue
        config = toy_config(images_per_round=n, images_per_update=update, microbatch=micro, update_microbatch=16, reward_offload=False)
        found = Engine(config, Path("nowhere"), LinearPolicy(config), Brightness).microbatches(3)
        assert sorted(p for batch in found.values() for p in batch) == list(range(n)) and list(found) == list(range(0, n, micro))
