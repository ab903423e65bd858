"""A run that starts from a LoRA: it begins where the LoRA is, whatever its layout and scale; what cannot be is refused before the run is made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.pages import new_run
from app.runs import Runs
from ddpo.__main__ import config_from, main, parser
from ddpo.config import ConfigError, RunConfig
from ddpo.crew import Crew
from ddpo.export import export
from ddpo.policy import StableDiffusionPolicy
from ddpo.presets import presets
from ddpo.report import held_out_pairs
from ddpo.source import LORA_FILE, adapter_for, fitted, init_lora_file, lora_file
from ddpo.store import INIT_LORA, RunStore
from ddpo.trainer import Trainer
from ddpo.worker import load_policy, with_own_lora
from tests.test_export import FAMILIES, Run
from tests.toys_ddpo import Brightness, tiny_config, toy_trainer

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([801, 41])


def prediction(policy: StableDiffusionPolicy) -> torch.Tensor:
    with torch.no_grad():
        return policy.predict(X, T, policy.encode(["a cat", "a dog"]))


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Run]:
    """A trained run of the tiny Stable Diffusion 1.x, all layers, rank 2 and alpha 6."""
    run = Run(tmp_path, "sd1")
    yield run
    run.store.close()


def lora_of(run: Run, kind: str, folder: Path) -> Path:
    export(run.store, kind, folder)
    return folder if kind == "diffusers" else folder / "taste-round-1.safetensors"


@pytest.mark.parametrize("kind", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_begins_where_the_lora_is(tmp_path: Path, family: str, kind: str) -> None:
    """The new run's scale is 1/2 and the LoRA's 3: its first prediction is nevertheless the LoRA's, and without the adapter the base model's."""
    run = Run(tmp_path, family)
    config = run.store.config.with_changes(init_lora=str(lora_of(run, kind, tmp_path / "out")), lora_alpha=1.0, seed=5)
    policy = StableDiffusionPolicy.load(config)
    torch.testing.assert_close(prediction(policy), prediction(run.policy), rtol=1e-4, atol=1e-4)
    fresh = StableDiffusionPolicy.load(config.with_changes(init_lora=""))
    assert float((prediction(policy) - prediction(fresh)).abs().max()) > 0.01
    with policy.base(), fresh.base():
        assert torch.equal(prediction(policy), prediction(fresh))
    assert set(policy.parameters()) == set(fresh.parameters()) and policy.fingerprint == fresh.fingerprint
    run.store.close()


def test_in_half_precision_the_lora_is_still_float32(taken: Run, tmp_path: Path) -> None:
    """The LoRA's numbers come through a bf16 denoiser unrounded."""
    config = taken.store.config.with_changes(init_lora=str(lora_of(taken, "diffusers", tmp_path / "out")), precision="bf16")
    mine = StableDiffusionPolicy.load(config).parameters()
    theirs = taken.policy.parameters()
    for name, parameter in mine.items():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, theirs[name])


def test_layers_that_the_lora_lacks_start_as_in_any_run(taken: Run, tmp_path: Path) -> None:
    """An attention LoRA in a run of all layers: what it lacks is as the seed makes it, and does nothing yet."""
    attention = Run(tmp_path, "sd1", name="attention", lora_targets="attention")
    export(attention.store, "diffusers", tmp_path / "out")
    config = taken.store.config.with_changes(init_lora=str(tmp_path / "out"), lora_targets="all")
    policy, fresh = StableDiffusionPolicy.load(config), StableDiffusionPolicy.load(config.with_changes(init_lora=""))
    others = [name for name in policy.parameters() if "conv1" in name]
    assert others and all(torch.equal(policy.parameters()[name], fresh.parameters()[name]) for name in others)
    torch.testing.assert_close(prediction(policy), prediction(attention.policy), rtol=1e-4, atol=1e-4)
    attention.store.close()


def test_an_export_for_kohya_can_be_started_from_by_its_folder(taken: Run, tmp_path: Path) -> None:
    """Whatever its file is called; where there are several, one must be named. What is exported can be read by whoever may read other files."""
    file, plain = lora_of(taken, "kohya", tmp_path / "out"), tmp_path / "plain.txt"
    folder = file.parent
    plain.touch()
    assert lora_file(str(folder)) == file and file.stat().st_mode == plain.stat().st_mode
    RunStore.create(tmp_path / "next", taken.store.config.with_changes(init_lora=str(folder))).close()
    shutil.copy(file, folder / "other.safetensors")
    with pytest.raises(ConfigError, match=r"several LoRA files: .*other\.safetensors.*Name one of them"):
        lora_file(str(folder))
    assert lora_file(str(tmp_path)) == tmp_path / LORA_FILE


def test_a_run_keeps_its_own_copy(taken: Run, tmp_path: Path) -> None:
    """The LoRA's file goes away after the run was made; the run starts from its copy, trains, goes on from its checkpoint, and has its pictures."""
    out = lora_of(taken, "diffusers", tmp_path / "out")
    config = taken.store.config.with_changes(init_lora=str(out), rounds=2, held_out_images=0, reward="jpeg_compressibility")
    RunStore.create(tmp_path / "next", config).close()
    (out / LORA_FILE).unlink()
    assert (tmp_path / "next" / INIT_LORA).exists()

    def trained(stop_first: bool) -> Trainer:
        policy = load_policy(with_own_lora(config, tmp_path / "next"), Crew())
        assert isinstance(policy, StableDiffusionPolicy)
        torch.testing.assert_close(prediction(policy), prediction(taken.policy), rtol=1e-4, atol=1e-4)
        trainer = toy_trainer(tmp_path / "next", config, Brightness(), policy)
        trainer.control.stop_after_round = stop_first
        trainer.run()
        return trainer

    trained(True).store.close()
    trainer = trained(False)
    assert list(trainer.store.checkpoints()) == [1, 2] and len(held_out_pairs(trainer.store, 2, trainer.store.checkpoints()[2], 2)) == 2
    export(trainer.store, "kohya", tmp_path / "again")
    text = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert "| started from | the LoRA `out` |" in text and str(tmp_path) not in text
    trainer.store.close()


# --- refusals ---------------------------------------------------------------------------------------------------------------------


def changed(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(file)), file)


REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda file: file.unlink(), r"cannot be read as a \.safetensors file.*Give a LoRA's file"),
    "a pickle": (lambda file: file.write_bytes(b"\x80\x02}q\x00."), r"cannot be read as a \.safetensors file"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:100]), r"cannot be read as a \.safetensors file"),
    "with a text encoder": (
        lambda file: changed(file, lambda t: t | {"text_encoder.text_model.encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 4)}),
        "changes the text encoder as well",
    ),
    "a whole model": (lambda file: changed(file, lambda t: {"conv_in.weight": torch.ones(4, 4)}), "no LoRA layers"),
    "DoRA": (lambda file: changed(file, lambda t: t | {"lora_unet_x.dora_scale": torch.ones(4)}), "DoRA scales"),
    "of mixed ranks": (lambda file: changed(file, lambda t: t | {"unet.conv_in.lora_A.weight": torch.ones(9, 4)}), "layers of ranks 2, 9"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_no_lora_that_can_be_trained_is_refused(taken: Run, tmp_path: Path, what: str) -> None:
    breaks, says = REFUSALS[what]
    out = lora_of(taken, "diffusers", tmp_path / "out")
    breaks(out / LORA_FILE)
    with pytest.raises(ConfigError, match=says):
        init_lora_file(taken.store.config.with_changes(init_lora=str(out)))


def test_another_rank_is_refused_before_the_run_is_made(taken: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line and on the page: the message names both ranks, and no run folder is left."""
    out = lora_of(taken, "diffusers", tmp_path / "out")
    order = ["run", "--model", str(taken.model), "--reward", "jpeg_compressibility", "--init-lora", str(out), "--lora-rank", "4"]
    assert main([*order, "--out", str(tmp_path / "runs" / "first")]) == 2
    assert "has rank 2, and lora_rank is 4. Choose lora_rank 2." in capsys.readouterr().err
    runs = Runs(tmp_path / "runs")
    values = {key: getattr(presets()["compress"].config, key) for key in new_run.SETTINGS} | dict(model=str(taken.model), init_lora=str(out))
    with pytest.raises(ConfigError, match="has rank 2"):
        new_run.create(runs, "second", values)
    assert not list((tmp_path / "runs").glob("*"))
    assert new_run.create(runs, "third", values | dict(lora_rank=2)).config.init_lora == str(out)
    runs.close()


def test_an_adapter_takes_what_nobody_gave_from_the_lora(taken: Run, tmp_path: Path) -> None:
    """Rank 2 and all layers, on the command line, for scripts and in the form; what is given stays, and what can be no start changes nothing."""
    out = lora_of(taken, "kohya", tmp_path / "out")
    order = ["run", "--out", "x", "--preset", "aesthetic", "--init-lora", str(out)]
    found = [config_from(parser().parse_args(order + more)) for more in ([], ["--lora-rank", "4"], ["--lora-targets", "attention"])]
    assert [(each.lora_rank, each.lora_targets) for each in found] == [(2, "all"), (4, "all"), (2, "attention")]
    runs, preset = Runs(tmp_path / "runs"), presets()["aesthetic"].config
    values = {key: getattr(preset, key) for key in new_run.SETTINGS} | dict(model=str(taken.model), init_lora=str(out))
    made = new_run.create(runs, "script", values, given=("model", "init_lora")).config
    assert (made.lora_rank, made.lora_targets, preset.lora_rank, preset.lora_targets) == (2, "all", 64, "attention")
    runs.close()
    assert new_run.fit_adapter(f" {out} ") == [2, "all"]
    attention = {name: tensor for name, tensor in load_file(out).items() if "_to_k." in name}
    changed(out, lambda t: t | {"lora_unet_conv_in.lora_down.weight": torch.ones(9, 4)})
    assert adapter_for(str(out)) == dict(lora_targets="all"), "of two ranks neither is taken"
    save_file(attention, out)
    few = fitted(RunConfig(init_lora=str(out), lora_targets="all"), ())
    assert (few.lora_rank, few.lora_targets) == (2, "all"), "an adapter may have more layers than the LoRA"
    out.write_bytes(b"no weights")
    assert not any(adapter_for(lora) for lora in (str(out), str(tmp_path), "nowhere", ""))


def test_a_lora_with_layers_that_nothing_trains_is_refused_by_their_name(taken: Run, tmp_path: Path) -> None:
    """Beside layers of ``all``, what halves a picture: no setting of lora_targets would do."""
    out = lora_of(taken, "diffusers", tmp_path / "out")
    conv, name = torch.ones(2, 16, 3, 3), "unet.down_blocks.0.downsamplers.0.conv"
    changed(out / LORA_FILE, lambda t: t | {f"{name}.lora_A.weight": conv, f"{name}.lora_B.weight": torch.ones(16, 2, 1, 1)})
    for targets in ("all", "attention"):
        with pytest.raises(ConfigError, match=r"all has not either, such as down_blocks\.0\.downsamplers\.0\.conv \(1 of .*Take a LoRA without them"):
            StableDiffusionPolicy.load(taken.store.config.with_changes(init_lora=str(out), lora_targets=targets, lora_alpha=2.0))


def test_a_lora_of_another_model_or_of_more_layers_is_refused(taken: Run, tmp_path: Path) -> None:
    out = lora_of(taken, "diffusers", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"has the layer .*lora_targets is attention.*Choose lora_targets all"):
        StableDiffusionPolicy.load(taken.store.config.with_changes(init_lora=str(out), lora_targets="attention"))
    FAMILIES["xl"]().save_pretrained(tmp_path / "xl")
    with pytest.raises(ConfigError, match="which is none of"):
        StableDiffusionPolicy.load(tiny_config(tmp_path / "xl", lora_targets="all", init_lora=str(out)))
    with pytest.raises(ConfigError, match="training is full, which has no LoRA"):
        RunConfig(training="full", learning_rate=1e-5, init_lora=str(out))
