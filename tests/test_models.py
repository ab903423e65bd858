"""Loading models: three families from folders and the Hub, and what is said when it cannot be done."""

from __future__ import annotations

import errno
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file

from ddpo import models
from ddpo.checkpoint import CheckpointError, load_state, save_state
from ddpo.config import ConfigError, RunConfig
from ddpo.crew import Crew
from ddpo.engine import TrainingError, make_optimiser
from ddpo.models import ddim, encode_prompt, load_pipeline
from ddpo.policy import StableDiffusionPolicy
from ddpo.rollout import rollout
from ddpo.trainer import Trainer
from ddpo.worker import load_policy
from tests.models import save_single_file, tiny_pipeline, tiny_scheduler, tiny_xl_pipeline
from tests.toys_ddpo import Brightness, outcome, tiny_config, toy_trainer

FAMILIES = {
    "sd1": tiny_pipeline,
    "sd2": partial(tiny_pipeline, prediction_type="v_prediction"),
    "xl": tiny_xl_pipeline,
}


def trained(folder: Path, config: RunConfig, rounds_first: bool = False) -> Trainer:
    """The run's trainer with the real policy, loaded from the model's folder, after all rounds; or stopped after the first."""
    trainer = toy_trainer(folder, config, Brightness(), StableDiffusionPolicy.load(config))
    trainer.control.stop_after_round = rounds_first
    trainer.run()
    return trainer


@pytest.mark.parametrize("training", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_from_rollout_to_export(tmp_path: Path, family: str, training: str) -> None:
    """Two rounds in one go and in two, from a saved folder: the same weights, bit for bit. What is saved, plain diffusers loads, and its
    denoiser predicts what the policy's does. The base model is still there, also where all weights were trained."""
    pipeline = FAMILIES[family]()
    pipeline.save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path / "model", rounds=2, training=training, held_out_images=0, learning_rate=1e-4)
    straight = trained(tmp_path / "straight", config)
    trained(tmp_path / "resumed", config, rounds_first=True).store.close()
    trained(tmp_path / "resumed", config).store.close()
    policy = straight.engine.policy
    assert isinstance(policy, StableDiffusionPolicy)
    straight.store.close()
    assert outcome(tmp_path / "straight")["states"] == outcome(tmp_path / "resumed")["states"]

    plain = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert type(plain) is type(pipeline)
    policy.save_adapter(tmp_path / "export")
    if training == "lora":
        plain.load_lora_weights(tmp_path / "export")
    else:
        plain.unet = type(plain.unet).from_pretrained(tmp_path / "export" / "unet")
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([801, 41])
    condition = policy.encode(["a cat", "a dog"])
    fresh = StableDiffusionPolicy(FAMILIES[family](), config)
    with torch.no_grad():
        states, pooled = condition.branches(1)
        mine = policy._denoise(x, t, states, pooled)
        sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
        added = None if pooled is None else dict(text_embeds=pooled, time_ids=sizes)
        theirs = plain.unet(x, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
        with policy.base():
            assert torch.equal(policy.predict(x, t, condition), fresh.predict(x, t, condition))
        assert float((policy._denoise(x, t, states, pooled) - fresh._denoise(x, t, states, pooled)).abs().max()) > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_guided_chain_is_the_pipeline_s_own(family: str) -> None:
    """Four DDIM steps of η 0.7 and guidance 3 with the same noise: our rollout's clean latents are those of the plain pipeline, added conditions,
    empty-prompt treatment and prediction type included. Float32 in other batch shapes: 1e-3 of latents of size 1 (guided predictions differ by 1e-6,
    and x̂_0 divides by sqrt(ᾱ) = 0.1)."""
    config = tiny_config(Path("unused"), steps=4, guidance=3.0, eta=0.7)
    policy = StableDiffusionPolicy(FAMILIES[family](), config)
    prompts, seeds = ["a cat", "a dog"], [5, 6]
    mine = rollout(policy, prompts, seeds)[0].latents[:, -1]
    pipeline = FAMILIES[family]()
    pipeline.scheduler = ddim(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    from ddpo.rollout import noise_of

    noise = torch.stack([noise_of(seed, 4, policy.latent_shape) for seed in seeds], 1)
    queue = list(noise[1:])
    step = pipeline.scheduler.step

    def with_our_noise(output: Any, t: Any, sample: Any, **settings: Any) -> Any:
        settings.pop("generator", None)
        return step(output, t, sample, variance_noise=queue.pop(0), **settings)

    pipeline.scheduler.step = with_our_noise
    # diffusers asks the scheduler's step which arguments it takes
    with_our_noise.__signature__ = __import__("inspect").signature(step)  # type: ignore[attr-defined]
    theirs = pipeline(
        prompts, num_inference_steps=4, guidance_scale=3.0, eta=0.7, latents=noise[0], output_type="latent", height=16, width=16
    ).images  # fmt: skip
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_xl_knows_the_empty_prompt_as_zeros() -> None:
    """XL's pipelines replace the empty prompt's text by zeros (force_zeros_for_empty_prompt)."""
    states, pooled = encode_prompt(tiny_xl_pipeline(), "a cat", torch.device("cpu"))
    assert states.shape == (2, 12, 16 + 24) and pooled is not None and pooled.shape == (2, 8)
    assert bool((states[0] == 0).all()) and bool((pooled[0] == 0).all()) and bool((states[1] != 0).any())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("training", ["lora", "full"])
def test_trained_weights_are_float32_in_every_precision(tmp_path: Path, precision: str, training: str) -> None:
    """Defect 5. Two rounds in one go and in two end with the same finite weights, which have moved; fp16's loss scale goes on where it was."""
    tiny_pipeline().save_pretrained(tmp_path / "model")
    config = tiny_config(
        tmp_path / "model", rounds=2, training=training, precision=precision, held_out_images=0, clip_nats=20.0, learning_rate=1e-4
    )  # fmt: skip
    trainer = trained(tmp_path / "run", config)
    weights, start = trainer.engine.policy.parameters(), StableDiffusionPolicy(tiny_pipeline(), config).parameters()
    assert {p.dtype for p in weights.values()} == {torch.float32}
    assert all(bool(torch.isfinite(p).all()) for p in weights.values())
    assert sum(not torch.equal(weights[n], start[n]) for n in weights) > len(weights) / 4
    assert trainer.engine.scaler.is_enabled() == (precision == "fp16")
    trainer.store.close()
    trained(tmp_path / "parts", config, rounds_first=True).store.close()
    resumed = trained(tmp_path / "parts", config)
    assert resumed.engine.scaler.state_dict() == trainer.engine.scaler.state_dict()
    resumed.store.close()
    assert outcome(tmp_path / "run")["states"] == outcome(tmp_path / "parts")["states"]


def test_an_overflow_in_fp16_repeats_the_step_and_loses_nothing(tmp_path: Path) -> None:
    """A loss scale that overflows is halved until the round's one step is made; were the step skipped, people's ratings would be gone. A gradient
    that stays no number ends the run instead."""
    tiny_pipeline().save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path / "model", rounds=1, precision="fp16", held_out_images=0, clip_nats=20.0, images_per_update=8)
    trainer = toy_trainer(tmp_path / "run", config, Brightness(), StableDiffusionPolicy.load(config))
    trainer.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    assert trainer.run()
    (norm,) = [value for _, value in trainer.store.metrics()["grad_norm"]]
    assert norm is not None and 0 < norm < 100 and trainer.engine.scaler.get_scale() < 2.0**40
    assert all(state["step"] == 1 for state in trainer.engine.optimiser.state.values())
    trainer.store.close()
    endless = toy_trainer(tmp_path / "endless", config, Brightness(), StableDiffusionPolicy.load(config))
    next(iter(endless.engine.parameters.values())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match="gradient is no number"):
        endless.run()
    endless.store.close()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        policy = StableDiffusionPolicy(tiny_pipeline(), tiny_config(Path("unused"), gradient_checkpointing=checkpointing))
        x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([801, 41])
        policy.predict(x, t, policy.encode(["a cat", "a dog"])).square().mean().backward()
        grads.append({n: p.grad for n, p in policy.parameters().items()})
    assert policy.unet.is_gradient_checkpointing
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name], msg=name)


def test_tiles_are_decoded_at_the_model_s_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the native size diffusers would decode in one piece, whatever its flag says."""
    policy = StableDiffusionPolicy(tiny_pipeline(), tiny_config(Path("unused"), vae_tiling=True))
    calls = []
    tiled = policy.vae.tiled_decode
    monkeypatch.setattr(policy.vae, "tiled_decode", lambda *a, **k: (calls.append(1), tiled(*a, **k))[1])
    images = policy.decode(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert len(calls) == 2 and [image.size for image in images] == [(16, 16)] * 2


def test_resolution_is_the_image_s() -> None:
    """Pixels over the autoencoder's factor of 2; the denoiser pads what does not halve."""
    policy = StableDiffusionPolicy(tiny_pipeline(), tiny_config(Path("unused"), resolution=24))
    assert policy.latent_shape == (4, 12, 12)
    (image,) = rollout(policy, ["a cat"], [1])[1]
    assert image.size == (24, 24)
    with pytest.raises(ConfigError, match=r"resolution is 23.*multiple of 2, for instance 24"):
        StableDiffusionPolicy(tiny_pipeline(), tiny_config(Path("unused"), resolution=23))


@pytest.mark.parametrize("setting", ["clip_sample", "thresholding", "rescale_betas_zero_snr"])
def test_a_schedule_that_makes_steps_something_else_is_refused(setting: str) -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = tiny_scheduler(**{setting: True})
    with pytest.raises(ConfigError, match=setting):
        StableDiffusionPolicy(pipeline, tiny_config(Path("unused")))


def test_eight_bits_without_a_gpu_or_the_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"needs an NVIDIA GPU, and device is cpu"):
        RunConfig(optimiser="adamw8bit", device="cpu")
    config = RunConfig(model="no/such-model", optimiser="adamw8bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch sees none"):  # and not: no such model
        load_policy(config, Crew())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        make_optimiser(config, [], Crew())


def test_another_optimiser_s_state_survives_its_checkpoint(tmp_path: Path) -> None:
    """As bitsandbytes keeps it: moments of bytes, and steps in whole numbers, which come back as such."""
    weight = torch.nn.Parameter(torch.ones(4))
    before, after = torch.optim.SGD([weight], lr=0.1), torch.optim.SGD([weight], lr=0.1)
    before.state[weight] = dict(step=3, state1=torch.arange(4, dtype=torch.uint8))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    save_state(tmp_path, RunConfig(), 7, {"w": weight}, before, scaler, None, "base")
    assert load_state(tmp_path, {"w": weight}, after, scaler, base="base") == 7
    assert after.state[weight]["step"] == 3 and isinstance(after.state[weight]["step"], int)
    assert torch.equal(after.state[weight]["state1"], before.state[weight]["state1"])
    with pytest.raises(CheckpointError, match="another base model"):
        load_state(tmp_path, {"w": weight}, base="other")


def test_a_fingerprint_tells_models_apart_and_not_precisions() -> None:
    one, two = StableDiffusionPolicy(tiny_pipeline(), tiny_config(Path("x"))), StableDiffusionPolicy(tiny_pipeline(1), tiny_config(Path("x")))
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint == StableDiffusionPolicy(tiny_pipeline(), tiny_config(Path("x"), precision="bf16", seed=3)).fingerprint


# --- what goes wrong


RESPONSE = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/org/name"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("gated", response=RESPONSE), ["org/name is gated", "https://huggingface.co/org/name", "hf auth login"]),
        (RepositoryNotFoundError("404", response=RESPONSE), ["no model org/name on the Hub", "spelling", "./my-model"]),
        (RevisionNotFoundError("404", response=RESPONSE), ["no revision 'v9'", "tree/main"]),
        (LocalEntryNotFoundError("offline"), ["not in this machine's cache", "hf download org/name"]),
        (OSError("We couldn't connect to the Hub"), ["Hub cannot be reached", "hf download org/name --revision v9"]),
        (httpx.ConnectError("no route"), ["Hub cannot be reached"]),
        (RemoteEntryNotFoundError("404", response=RESPONSE), ["org/name on the Hub is no diffusers pipeline", "model_index.json"]),
        (OSError("Error no file named model.safetensors found"), ["lacks a safetensors file", "pickles", "save_pretrained"]),
        (ValueError("odd"), ["cannot be loaded", "damaged or incomplete: odd"]),
    ],
)
def test_the_hub_s_errors_become_remedies(monkeypatch: pytest.MonkeyPatch, error: Exception, words: list[str]) -> None:
    def fails(*arguments: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(models, "hf_hub_download", fails)
    with pytest.raises(ConfigError) as refused:
        load_pipeline(RunConfig(model="org/name", revision="v9"))
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_full_memory_or_disk_is_not_the_model_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    tiny_pipeline().save_pretrained(tmp_path)

    def fails(*arguments: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", fails)
    with pytest.raises(type(error)):
        load_pipeline(RunConfig(model=str(tmp_path)))


def test_half_precision_files_serve_where_there_are_no_others(tmp_path: Path) -> None:
    half = tiny_pipeline()
    for network in (half.unet, half.vae, half.text_encoder):
        network.half()
    half.save_pretrained(tmp_path, variant="fp16")
    assert list(tmp_path.glob("unet/*.fp16.safetensors")) and not list(tmp_path.glob("unet/diffusion_pytorch_model.safetensors"))
    pipeline = load_pipeline(RunConfig(model=str(tmp_path)))
    assert {p.dtype for net in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in net.parameters()} == {torch.float32}


def test_a_damaged_file_is_called_damaged(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="damaged or incomplete"):
        load_pipeline(RunConfig(model=str(tmp_path)))


def test_a_schedule_without_betas_is_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ConfigError, match="FlowMatchEulerDiscreteScheduler, without betas"):
        StableDiffusionPolicy(pipeline, tiny_config(Path("unused")))


def test_an_offline_cache_serves_a_model_and_its_absence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loading code on a cache as the Hub's client writes it: a model that is there is loaded by name and revision; another is not."""
    from huggingface_hub import constants

    cache, commit = tmp_path / "hub", "0" * 40
    snapshot = cache / "models--org--name" / "snapshots" / commit
    tiny_pipeline().save_pretrained(snapshot)
    (cache / "models--org--name" / "refs").mkdir()
    (cache / "models--org--name" / "refs" / "main").write_text(commit)
    (cache / "models--org--name" / "refs" / "v1").write_text(commit)
    for module in (constants,):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(models, "HUB", dict(cache_dir=str(cache), local_files_only=True))
    for revision in ("", "v1"):
        loaded = load_pipeline(RunConfig(model="org/name", revision=revision))
        assert isinstance(loaded, StableDiffusionPipeline)
        for mine, theirs in zip(loaded.unet.parameters(), tiny_pipeline().unet.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    with pytest.raises(ConfigError, match=r"org/other is not in this machine's cache.*HF_HUB_OFFLINE is set.*hf download org/other"):
        load_pipeline(RunConfig(model="org/other"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_pipeline_that_it_was_made_of(tmp_path: Path, family: str) -> None:
    """The original layout, as community checkpoints are shared: every weight of every network arrives, and a round trains."""
    pipeline = FAMILIES[family](seed=3)
    save_single_file(pipeline, tmp_path / "model.safetensors", open_clip=family == "sd2")
    FAMILIES[family]().save_pretrained(tmp_path / "same architecture")
    config = tiny_config(tmp_path / "model.safetensors", model_config=str(tmp_path / "same architecture"), rounds=1)
    loaded = load_pipeline(config)
    assert type(loaded) is type(pipeline)
    assert loaded.scheduler.config.prediction_type == pipeline.scheduler.config.prediction_type
    for part in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if family == "xl" else [])):
        mine, theirs = getattr(loaded, part).state_dict(), getattr(pipeline, part).state_dict()
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(mine[name], value), (part, name)
            assert mine[name].dtype == torch.float32
    assert trained(tmp_path / "run", config).store.metrics()["updates"] == [(1, 2.0)]


def test_models_that_make_no_images_of_a_text_alone_are_refused(tmp_path: Path) -> None:
    """Inpainting models by their channels, in one file and in a folder; XL's refiner by its one encoder."""
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({first: torch.zeros(8, 9, 3, 3)}, tmp_path / "inpainting.safetensors")
    with pytest.raises(ConfigError, match="takes 9 channels where a latent has 4"):
        load_pipeline(RunConfig(model=str(tmp_path / "inpainting.safetensors")))
    save_file({first: torch.zeros(8, 4, 3, 3), "conditioner.embedders.0.model.ln_final.bias": torch.zeros(1)}, tmp_path / "refiner.safetensors")
    with pytest.raises(ConfigError, match=r"XL's refiner.*Give the base model"):
        load_pipeline(RunConfig(model=str(tmp_path / "refiner.safetensors")))
    pipeline = tiny_pipeline()
    pipeline.unet = type(pipeline.unet).from_config(pipeline.unet.config, in_channels=9)
    pipeline.save_pretrained(tmp_path / "inpainting")
    with pytest.raises(ConfigError, match="takes 9 channels"):
        load_pipeline(RunConfig(model=str(tmp_path / "inpainting")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model="weights.ckpt"), "no .safetensors file.*pickles"),
        (dict(model="model.safetensors", revision="v1"), "revision is 'v1'.*on this machine"),
        (dict(model="model.safetensors", model_config="no such"), "model_config is 'no such', which is no folder and no name on the Hub"),
        (dict(model="org/name", model_config="org/other"), "model_config is 'org/other', which only a single .safetensors file needs"),
        (dict(model="model.safetensors", model_config="org/other"), "model.safetensors is a single file.*org/other cannot be had.*Give model_config"),
        (dict(model="model.safetensors"), "model.safetensors is a single file.*Give model_config"),
        (dict(model="velocity.safetensors"), "velocity.safetensors may predict noise or velocity.*Give model_config"),
        (dict(model="damaged.safetensors"), "damaged.safetensors cannot be loaded; its files may be damaged"),
    ],
)
def test_what_a_single_file_needs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], words: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.ckpt").write_bytes(b"pickle")
    (tmp_path / "damaged.safetensors").write_bytes(b"half a file")
    save_single_file(tiny_pipeline(), tmp_path / "model.safetensors")
    save_file({"v_pred": torch.zeros(1)}, tmp_path / "velocity.safetensors")
    with pytest.raises(ConfigError, match=words):
        load_pipeline(RunConfig(**changes))


def test_a_folder_of_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ConfigError, match="holds a FluxPipeline"):
        load_pipeline(RunConfig(model=str(tmp_path)))


def test_the_pipeline_s_class_is_the_folder_s(tmp_path: Path) -> None:
    tiny_xl_pipeline().save_pretrained(tmp_path)
    assert isinstance(load_pipeline(RunConfig(model=str(tmp_path))), StableDiffusionXLPipeline)
