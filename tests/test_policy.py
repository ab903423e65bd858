"""Stable Diffusion as a policy: guidance, the adapter, and what diffusers makes of its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from ddpo.config import ConfigError, RunConfig
from ddpo.models import Pipeline, encode_prompt
from ddpo.policy import StableDiffusionPolicy, pick_device
from tests.models import save_tiny_model, tiny_pipeline, tiny_xl_pipeline
from tests.toys_ddpo import tiny_config

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([801, 41])
TARGETS = ["attention", "all"]


def policy_with(adapter: float = 0.0, **changes: object) -> StableDiffusionPolicy:
    """A policy; its adapter moved away from zero by that much."""
    policy = StableDiffusionPolicy(tiny_pipeline(), tiny_config(Path("unused"), **changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter += adapter * torch.randn(parameter.shape, generator=generator)
    return policy


def denoised(pipeline: StableDiffusionPipeline, states: Tensor) -> Tensor:
    with torch.no_grad():
        return pipeline.unet(X, T, encoder_hidden_states=states, return_dict=False)[0]


@pytest.mark.parametrize("pipeline", [tiny_pipeline, tiny_xl_pipeline])
def test_what_is_kept_of_a_prompt_is_its_own_and_the_empty_one_s_is_kept_once(pipeline: Callable[[], Pipeline]) -> None:
    """What each condition is made of equals the pipeline's own, bit for bit, while what lies in memory for three prompts is that of four texts."""
    policy = StableDiffusionPolicy(pipeline(), tiny_config(Path("unused")))
    prompts = ["a cat", "a dog", "a horse"]
    condition = policy.encode(prompts)
    for row, prompt in enumerate(prompts):
        states, pooled = encode_prompt(policy.pipeline, prompt, policy.device)
        assert torch.equal(condition.states[row], states)
        assert pooled is None if condition.pooled is None else torch.equal(condition.pooled[row], pooled)
    kept = [each for texts in (*policy._said.values(), policy._empty) for each in texts]
    one = sum(each[0, 0].nbytes for each in (condition.states, condition.pooled) if each is not None)
    assert sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}.values()) == 4 * one


def plain_guided(pipeline: StableDiffusionPipeline, weight: float, prompts: list[str]) -> Tensor:
    """Guidance written down with plain diffusers: ε_u + w (ε_c - ε_u), conditions from the pipeline's own encode_prompt."""
    conditional, unconditional = pipeline.encode_prompt(prompts, torch.device("cpu"), 1, True)
    nothing, something = denoised(pipeline, unconditional), denoised(pipeline, conditional)
    return nothing + weight * (something - nothing)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5, 7.5])
def test_the_prediction_is_diffusers_own_guided_one(weight: float) -> None:
    """Weights 0 and 1 included, where one branch vanishes. Float32 sums in other batch shapes: 1e-5 of predictions of size 1, times the weight."""
    with torch.no_grad():
        policy = policy_with(guidance=weight)
        got = policy.predict(X, T, policy.encode(["a cat", "a dog"]))
    torch.testing.assert_close(got, plain_guided(tiny_pipeline(), weight, ["a cat", "a dog"]), rtol=0, atol=1e-4)


def test_gradient_flows_through_both_branches() -> None:
    """App. E.1: d(guided)/dθ = (1 - w) dε_u/dθ + w dε_c/dθ. Checked against the two branches' gradients computed apart."""
    weight = 3.0
    policy = policy_with(adapter=0.1, guidance=weight)
    condition, parameters = policy.encode(["a cat", "a dog"]), list(policy.parameters().values())
    target = torch.randn(X.shape, generator=torch.Generator().manual_seed(2))
    whole = torch.autograd.grad((policy.predict(X, T, condition) * target).sum(), parameters)
    branches = [torch.autograd.grad((policy._denoise(X, T, *condition.branches(k)) * target).sum(), parameters) for k in (0, 1)]
    for name, got, nothing, something in zip(policy.parameters(), whole, *branches, strict=True):
        size = float(got.abs().max())
        torch.testing.assert_close(got, (1 - weight) * nothing + weight * something, rtol=1e-3, atol=1e-4 * size, msg=name)
    assert all(any(g.abs().max() > 0 for g in branch) for branch in branches)


def test_the_prompt_matters_and_each_state_is_its_own() -> None:
    """A prompt's condition does not depend on the prompts beside it, and a repeated prompt is encoded once."""
    one, two = policy_with(), policy_with()
    together = one.encode(["a cat", "a dog", "a cat"])
    states = together.states
    assert torch.equal(states[0], states[2]) and not torch.equal(states[0], states[1])
    assert torch.equal(two.encode(["a dog"]).states[0], states[1])
    assert states.dtype == torch.float32 and torch.equal(states[0, 0], states[1, 0]) and together.pooled is None


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_adapter_learns_and_it_is_float32(targets: str, precision: str) -> None:
    """Defect 5: trainable weights are float32 whatever the model's precision; the base, the VAE and the text encoder are frozen."""
    policy = policy_with(lora_targets=targets, precision=precision)
    trainable = {n for net in (policy.unet, policy.vae, *policy.encoders) for n, p in net.named_parameters() if p.requires_grad}
    assert trainable == set(policy.parameters()) and trainable and all("lora" in name for name in trainable)
    assert {p.dtype for p in policy.parameters().values()} == {torch.float32}
    base = {p.dtype for n, p in policy.unet.named_parameters() if "lora" not in n}
    assert base == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.parametrize("rank", [1, 8])
def test_an_alpha_of_zero_is_a_scale_of_one_whatever_the_rank(rank: int) -> None:
    layers = [m for m in policy_with(lora_rank=rank, lora_alpha=0.0).unet.modules() if hasattr(m, "scaling")]
    assert layers and all(layer.scaling["default"] == 1.0 for layer in layers)


def test_all_layers_means_more_than_attention() -> None:
    layers = {t: {n.split(".lora")[0] for n in policy_with(lora_targets=t).parameters()} for t in TARGETS}
    assert layers["attention"] < layers["all"]
    assert any("conv1" in name for name in layers["all"]) and not any("conv" in name for name in layers["attention"])


@pytest.mark.parametrize("targets", TARGETS)
def test_a_fresh_adapter_changes_nothing_and_base_is_the_base_model(targets: str) -> None:
    """Before training, and within base() after it, predictions equal those of a policy never adapted, bit for bit."""
    trained, fresh = policy_with(adapter=0.1, lora_targets=targets), policy_with(lora_targets=targets)
    condition = fresh.encode(["a cat", "a dog"])
    with torch.no_grad():
        fresh.unet.disable_adapters()
        want = fresh.predict(X, T, condition)
        fresh.unet.enable_adapters()
        assert torch.equal(fresh.predict(X, T, condition), want)
        moved = trained.predict(X, T, condition)
        with trained.base():
            assert torch.equal(trained.predict(X, T, condition), want)
        assert torch.equal(trained.predict(X, T, condition), moved)
    assert float((moved - want).abs().max()) > 0.01


@pytest.mark.parametrize("training", ["lora", "full"])
def test_base_ends_when_its_body_fails(training: str) -> None:
    policy = policy_with(adapter=0.1, training=training, learning_rate=1e-5)
    condition = policy.encode(["a cat", "a dog"])
    with torch.no_grad():
        before = policy.predict(X, T, condition)
        with pytest.raises(RuntimeError), policy.base():
            raise RuntimeError
        assert torch.equal(policy.predict(X, T, condition), before)


@pytest.mark.parametrize("targets", TARGETS)
def test_plain_diffusers_loads_the_adapter_and_computes_the_same(tmp_path: Path, targets: str) -> None:
    """`pipe.load_lora_weights` of the saved file gives the same denoiser: rank 2 and alpha 6, so a lost scale of 3 would show."""
    policy = policy_with(adapter=0.1, lora_targets=targets, lora_rank=2, lora_alpha=6.0)
    policy.save_adapter(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(tmp_path)
    states = policy.encode(["a cat", "a dog"]).states[:, 1]
    with torch.no_grad():
        want = policy._denoise(X, T, states)
    torch.testing.assert_close(denoised(pipeline, states), want, rtol=0, atol=1e-5)
    assert float((want - denoised(tiny_pipeline(), states)).abs().max()) > 0.01


def test_decode_is_the_pipeline_s_own_picture() -> None:
    """Latents through the VAE and to 8 bits as diffusers does: equal but for a level where a float32 sum falls on a rounding edge."""
    policy = policy_with()
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    pipeline = tiny_pipeline()
    with torch.no_grad():
        theirs = pipeline.image_processor.postprocess(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor)[0], output_type="pil")
    for ours, other in zip(policy.decode(latents), theirs, strict=True):
        difference = torch.tensor(list(ours.tobytes())) - torch.tensor(list(other.tobytes()))
        assert ours.size == (16, 16) and ours.mode == "RGB" and difference.abs().max() <= 1


def test_the_adapter_s_start_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """Same seed, same weights, whatever the global generator was; and loading leaves that generator as it was. Another seed, other weights."""
    config = tiny_config(save_tiny_model(tmp_path / "model"))
    torch.manual_seed(1)
    first = StableDiffusionPolicy.load(config).parameters()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = StableDiffusionPolicy(tiny_pipeline(), config).parameters()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[n], second[n]) for n in first)
    third = StableDiffusionPolicy(tiny_pipeline(), config.with_changes(seed=1)).parameters()
    assert any(not torch.equal(first[n], third[n]) for n in first)


@pytest.mark.parametrize(
    "prompt", ["long " * 1000, "🦊 a fox 🎨 \u202e", "${alert(1)}", "<script>alert(1)</script>", "two\nlines", "\x00nul", "é" * 5000]
)
def test_odd_prompts_are_encoded_as_text(prompt: str) -> None:
    """5,000 characters, emoji, markup, control characters: a finite condition of the usual shape."""
    condition = policy_with().encode([prompt])
    assert condition.states.shape == (1, 2, 12, 16) and torch.isfinite(condition.states).all()


def test_a_model_is_never_loaded_from_a_pickle(tmp_path: Path) -> None:
    """A folder whose denoiser is only there as a .bin is refused: a pickle runs code."""
    folder = save_tiny_model(tmp_path / "model")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(Exception, match="safetensors"):
        StableDiffusionPolicy.load(RunConfig(model=str(folder), device="cpu"))


@pytest.mark.parametrize("setting", ["cuda:99", "mps"])
def test_a_device_that_is_not_there_is_named(setting: str) -> None:
    if setting == "mps" and torch.backends.mps.is_available():
        pytest.skip("SKIPPED: this machine has an Apple GPU")
    with pytest.raises(ConfigError, match=rf"device is {setting}.*Choose auto or cpu"):
        pick_device(setting)
