"""What people take away of a model: three layouts that other programs load, and a card that says what it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ddpo import blind, lora
from ddpo.__main__ import main
from ddpo.checkpoint import save_state
from ddpo.config import RunConfig
from ddpo.evaluate import held_out_images
from ddpo.export import ExportError, export
from ddpo.models import ddim
from ddpo.policy import StableDiffusionPolicy
from ddpo.records import MARKS
from ddpo.report import held_out_pairs
from ddpo.rollout import rollout
from ddpo.source import LORA_FILE
from ddpo.store import RunStore
from tests.models import RESNET_LAYOUT, UNET_LAYOUT, tiny_pipeline, tiny_xl_pipeline
from tests.toys import picture
from tests.toys_ddpo import noise_batch, tiny_config

FAMILIES: dict[str, Callable[[], Any]] = {
    "sd1": lambda: tiny_pipeline(),
    "sd2": lambda: tiny_pipeline(prediction_type="v_prediction"),
    "xl": lambda: tiny_xl_pipeline(),
}
PROMPTS, SEEDS = ["a cat", "a dog"], [5, 6]


class Run:
    """A run of one round over a tiny model, whose trained weights are moved far: rank 2 and alpha 6, so that a lost scale of 3 would show."""

    def __init__(self, folder: Path, family: str, name: str = "taste", **changes: Any) -> None:
        self.model = folder / "model"
        if not self.model.exists():
            FAMILIES[family]().save_pretrained(self.model)
        settings: dict[str, Any] = dict(rounds=2, steps=4, guidance=3.0, eta=0.7, lora_rank=2, lora_alpha=6.0, lora_targets="all", learning_rate=1e-5)
        config = tiny_config(self.model, **(settings | changes))
        self.store, self.policy = RunStore.create(folder / name, config), StableDiffusionPolicy.load(config)
        self.moved(0.1 if config.training == "lora" else 0.02)
        self.save(1)

    def moved(self, by: float) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.policy.parameters().values():
                parameter += by * torch.randn(parameter.shape, generator=generator)

    def save(self, number: int) -> None:
        """A round as the trainer leaves it."""
        store, policy = self.store, self.policy
        store.start_round(number)
        for mark in MARKS:
            store.mark(number, mark)
        store.add_metrics(
            number, dict(reward_mean=-2.5 + number, reward_std=0.25, scored_images=8.0, held_out_reward=-2.0, held_out_reward_std_error=0.125)
        )
        store.add_metrics(0, dict(held_out_reward=-3.0, held_out_reward_std_error=0.25))
        place = store.folder / "checkpoints" / f"{number:04d}"
        optimiser = torch.optim.AdamW(policy.parameters().values())
        save_state(place, store.config, number, policy.parameters(), optimiser, torch.amp.GradScaler("cpu", enabled=False), None, policy.fingerprint)
        policy.save_adapter(place)
        store.add_checkpoint(number, place)

    def images(self) -> Tensor:
        """The policy's own images, as clean latents."""
        with torch.no_grad():
            return rollout(self.policy, PROMPTS, SEEDS)[0].latents[:, -1]


@pytest.fixture(params=FAMILIES)
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    made = Run(tmp_path, request.param)
    yield made
    made.store.close()


def images_of(pipeline: Any, config: RunConfig) -> Tensor:
    """Images of a plain pipeline, as clean latents, from the noise that the run's own come from."""
    pipeline.scheduler = ddim(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    noise = noise_batch(SEEDS, config.steps, (4, 8, 8)).transpose(0, 1)
    queue, step = list(noise[1:]), pipeline.scheduler.step

    def with_our_noise(output: Any, t: Any, sample: Any, **settings: Any) -> Any:
        settings.pop("generator", None)
        return step(output, t, sample, variance_noise=queue.pop(0), **settings)

    pipeline.scheduler.step = with_our_noise
    with_our_noise.__signature__ = __import__("inspect").signature(step)  # type: ignore[attr-defined]
    settings = dict(num_inference_steps=config.steps, guidance_scale=config.guidance, eta=config.eta, height=16, width=16)
    found: Tensor = pipeline(PROMPTS, latents=noise[0], output_type="latent", **settings).images
    return found


def assert_same_images(run: Run, pipeline: Any) -> None:
    """Within 1e-3 of latents of size 1, as far as float32 sums in other batch shapes go; the base model's are far away."""
    mine = run.images()
    torch.testing.assert_close(images_of(pipeline, run.store.config), mine, rtol=1e-3, atol=1e-3)
    with run.policy.base():
        assert float((run.images() - mine).abs().max()) > 0.1


def by_hand(pipeline: Any, file: Path, xl: bool) -> Any:
    """A kohya file applied by its convention alone: each layer's name without dots, W += up @ down * alpha / rank. An XL's layers are
    called as in the original layout, which the tests' own table of names gives."""
    tensors = load_file(file)
    names = {}
    for name, module in pipeline.unet.named_modules():
        called = original(name) if xl else name
        names[f"lora_unet_{called.replace('.', '_')}"] = module
    keys = {key.split(".")[0] for key in tensors}
    assert len(tensors) == 3 * len(keys) and keys <= set(names)
    with torch.no_grad():
        for key in keys:
            down, up, alpha = (tensors[f"{key}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
            change = up.flatten(1) @ down.flatten(1) * (alpha / len(down))
            names[key].weight += change.reshape(names[key].weight.shape)
    return pipeline


def original(name: str) -> str:
    found = next((name.replace(ours, theirs) for ours, theirs in UNET_LAYOUT if name.startswith(ours + ".")), name)
    return next(
        (found.replace(f".{ours}", f".{theirs}") for ours, theirs in RESNET_LAYOUT if ".resnets." in name and name.endswith(f".{ours}")), found
    )


# --- the three layouts ------------------------------------------------------------------------------------------------------------


def test_diffusers_loads_the_lora(run: Run, tmp_path: Path) -> None:
    export(run.store, "diffusers", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["README.md", "curves.svg", LORA_FILE]
    pipeline = DiffusionPipeline.from_pretrained(run.model)
    pipeline.load_lora_weights(tmp_path / "out")
    assert_same_images(run, pipeline)


def test_a_program_that_overlooks_the_metadata_gets_the_same_lora(run: Run, tmp_path: Path) -> None:
    """Without metadata diffusers takes the rank for alpha, and so does ComfyUI."""
    export(run.store, "diffusers", tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(run.model)
    pipeline.load_lora_weights(load_file(tmp_path / "out" / LORA_FILE))
    assert_same_images(run, pipeline)


def test_a_kohya_file_is_read_by_diffusers_and_applied_by_hand(run: Run, tmp_path: Path) -> None:
    export(run.store, "kohya", tmp_path / "out")
    file = tmp_path / "out" / "taste-round-1.safetensors"
    xl = hasattr(run.policy.pipeline, "text_encoder_2")
    assert_same_images(run, by_hand(DiffusionPipeline.from_pretrained(run.model), file, xl))
    pipeline = DiffusionPipeline.from_pretrained(run.model)
    pipeline.load_lora_weights(tmp_path / "out", weight_name=file.name)
    assert_same_images(run, pipeline)


def test_the_whole_model_loads_by_itself(run: Run, tmp_path: Path) -> None:
    export(run.store, "pipeline", tmp_path / "out")
    shutil.rmtree(run.model)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipeline) is type(run.policy.pipeline)
    assert not [name for name in pipeline.unet.state_dict() if "lora" in name or "base_layer" in name]
    assert_same_images(run, pipeline)


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_strength_scales_what_was_trained_alike_in_every_layout(tmp_path: Path, strength: float) -> None:
    """Every layer's change of weight is strength times the trained one, 3 B A: alpha over rank is 6 / 2."""
    run = Run(tmp_path, "sd1")
    trained = lora.read_lora(run.store.folder / "checkpoints" / "0001" / LORA_FILE)
    plain = tiny_pipeline().unet.state_dict()
    for kind in ("diffusers", "kohya", "pipeline"):
        export(run.store, kind, tmp_path / kind, strength=strength)
    again = lora.read_lora(tmp_path / "diffusers" / LORA_FILE)
    whole = load_file(tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    hand = by_hand(tiny_pipeline(), tmp_path / "kohya" / "taste-round-1.safetensors", xl=False).unet.state_dict()
    assert again.alpha == again.rank == 2
    for layer, (down, up) in trained.layers.items():
        wanted = 3 * strength * torch.tensor(up).flatten(1) @ torch.tensor(down).flatten(1)
        mine = torch.tensor(again.layers[layer][1]).flatten(1) @ torch.tensor(again.layers[layer][0]).flatten(1)
        torch.testing.assert_close(mine, wanted)
        for found in (hand, whole):
            change = found[f"{layer}.weight"] - plain[f"{layer}.weight"]
            torch.testing.assert_close(change.flatten(1), wanted, rtol=1e-4, atol=1e-5)
    run.store.close()


def test_half_precision_is_half_the_size(tmp_path: Path) -> None:
    run = Run(tmp_path, "sd1")
    for kind in ("diffusers", "kohya", "pipeline"):
        export(run.store, kind, tmp_path / kind, precision="fp16")
        weights = [load_file(file) for file in (tmp_path / kind).rglob("*.safetensors")]
        floats = {t.dtype for tensors in weights for name, t in tensors.items() if not name.endswith(".alpha") and t.is_floating_point()}
        assert floats == {torch.float16}, kind
    assert DiffusionPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float16).unet.dtype == torch.float16
    run.store.close()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_denoiser_trained_as_a_whole_is_taken_away_as_a_whole(tmp_path: Path, strength: float) -> None:
    """With half the strength its weights are half way from the base model's. There is no LoRA of it, and the refusal says what to do."""
    run = Run(tmp_path, "sd1", training="full")
    export(run.store, "pipeline", tmp_path / "out", strength=strength)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    if strength == 1:
        assert_same_images(run, pipeline)
    base, trained = tiny_pipeline().unet.state_dict(), run.policy.unet.state_dict()
    for name, tensor in pipeline.unet.state_dict().items():
        torch.testing.assert_close(tensor, base[name] + strength * (trained[name] - base[name]))
    for kind in ("diffusers", "kohya"):
        with pytest.raises(ExportError, match=r"trained the whole denoiser.*Choose pipeline"):
            export(run.store, kind, tmp_path / kind)
        assert not (tmp_path / kind).exists()
    run.store.close()


def test_a_merge_over_another_base_model_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, "sd1")
    shutil.rmtree(run.model)
    tiny_pipeline(seed=1).save_pretrained(run.model)
    with pytest.raises(ExportError, match="another one now"):
        export(run.store, "pipeline", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    run.store.close()


# --- which round, and where -------------------------------------------------------------------------------------------------------


def test_the_round_is_the_last_saved_one_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    run = Run(tmp_path, "sd1")
    run.moved(0.1)
    run.save(2)
    assert export(run.store, "diffusers", tmp_path / "last") == 2 and export(run.store, "diffusers", tmp_path / "first", 1) == 1
    first, last = (lora.read_lora(tmp_path / name / LORA_FILE).layers for name in ("first", "last"))
    assert all((first[layer][1] != last[layer][1]).any() for layer in first)
    with pytest.raises(ExportError, match=r"Round 3 of taste has no checkpoint\. Choose one of 1, 2"):
        export(run.store, "kohya", tmp_path / "third", 3)
    run.store.close()


def test_nothing_is_written_over_and_nothing_is_left_half(tmp_path: Path) -> None:
    run = Run(tmp_path, "sd1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "poem.txt").write_text("roses")
    with pytest.raises(ExportError, match="exists already"):
        export(run.store, "diffusers", tmp_path / "mine")
    (run.store.folder / "checkpoints" / "0001" / LORA_FILE).write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"cannot be read as a LoRA.*take another round"):
        export(run.store, "kohya", tmp_path / "out")
    with pytest.raises(ExportError, match="strength is 0"):
        export(run.store, "kohya", tmp_path / "out", strength=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model", "taste"]
    assert (tmp_path / "mine" / "poem.txt").read_text() == "roses"
    run.store.close()


def test_a_run_without_a_round_has_nothing_to_take_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunStore.create(tmp_path / "new", RunConfig()).close()
    assert main(["export", str(tmp_path / "new"), "--out", str(tmp_path / "out")]) == 2
    assert "No round of new is finished yet" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_the_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, "sd1")
    out = tmp_path / "deep" / "out"
    assert main(["export", str(run.store.folder), "--as", "kohya", "--round", "1", "--strength", "0.5", "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"run": str(run.store.folder), "round": 1, "as": "kohya", "out": str(out), "files": 3}
    with safe_open(out / "taste-round-1.safetensors", framework="pt") as stored:
        assert {float(stored.get_tensor(name)) for name in stored.keys() if name.endswith(".alpha")} == {3.0}  # noqa: SIM118
    run.store.close()


# --- names and cards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", "input_blocks.4.1.transformer_blocks.1.attn2.to_k"),
        ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
        ("mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj", "middle_block.1.transformer_blocks.9.ff.net.0.proj"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_out.0", "output_blocks.2.1.transformer_blocks.0.attn1.to_out.0"),
        ("up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2", "output_blocks.3.1.transformer_blocks.0.ff.net.2"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
    ],
)
def test_the_published_xl_s_layers_have_the_names_that_its_original_has(layer: str, name: str) -> None:
    """XL of full size: two layers a block. The names are those of its published original denoiser."""
    assert lora.original_name(layer, 2) == name


@pytest.mark.parametrize(("width", "family", "v2"), [(768, "sd1", "False"), (1024, "sd2", "True"), (2048, "xl", "False")])
def test_a_kohya_file_says_which_family_it_is_for(tmp_path: Path, width: int, family: str, v2: str) -> None:
    """A1111 lists a LoRA with models of its family only; where the base model is not on this machine, the width of its text tells."""
    import numpy as np

    layer = "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k"
    found = lora.Lora({layer: (np.ones((4, width), np.float32), np.ones((320, 4), np.float32))}, 8.0, {})
    assert lora.model_family(RunConfig(model="somebody/model"), found) == family
    lora.write_kohya(found, tmp_path / "x.safetensors", family, {})
    with safe_open(tmp_path / "x.safetensors", framework="pt") as stored:
        told = stored.metadata()
    assert told["ss_v2"] == v2 and told["ss_network_dim"] == "4" and told["ss_network_alpha"] == "8"
    assert told["ss_base_model_version"] == lora.VERSIONS[family][0]


def test_a_kohya_file_says_what_it_is(run: Run, tmp_path: Path) -> None:
    export(run.store, "kohya", tmp_path / "out", strength=0.5)
    with safe_open(tmp_path / "out" / "taste-round-1.safetensors", framework="pt") as stored:
        told = stored.metadata()
    assert told["ss_network_module"] == "networks.lora" and (told["ss_network_dim"], told["ss_network_alpha"]) == ("2", "3")
    assert told["ss_sd_model_name"] == "model" and told["modelspec.title"] == "taste, round 1" and "strength 0.5" in told["ss_training_comment"]
    assert told["ss_base_model_version"].startswith("sdxl") == hasattr(run.policy.pipeline, "text_encoder_2")


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "pipeline"])
def test_the_card_s_own_python_makes_an_image(run: Run, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the card is run as it stands, beside the base model's folder."""
    export(run.store, kind, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    if kind != "pipeline":
        (tmp_path / "out" / "model").symlink_to(run.model)
    monkeypatch.chdir(tmp_path / "out")
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], {})
    with Image.open("image.png") as image:
        assert image.size == (16, 16)


def test_the_card_says_what_was_trained_and_how_it_went(tmp_path: Path) -> None:
    file = tmp_path / "house" / "mine.py"
    file.parent.mkdir()
    file.write_text("def warm(images, prompts):\n    return [0] * len(images)\n")
    run = Run(tmp_path, "sd1", reward=f"blend: 1 human, 0.5 {file}:warm", prompts=("a | b", "a cat"))
    store = run.store
    store.add_samples(1, range(3), ["a cat"] * 3, range(3), write_images_of(store, 3))
    for sample, rater, value in ((1, "anna", 1), (1, "ben", -1), (2, "anna", 1), (2, "anna", -1), (3, "anna", None)):
        store.add_rating(f"{sample}{rater}{value}{len(store.ratings())}", sample, rater, "skip" if value is None else "thumbs", value)
    blind.keep(store.folder, blind.Result("ab", 0.0, ("base model", "round 1"), (0, 1), 8, 2, blind.Outcome(1, 4, 2, 1), (3, 5)))
    blind.keep(store.folder, blind.Result("cd", 0.0, ("base model", "round 2"), (0, 2), 8, 2, blind.Outcome(1, 4, 2, 1), (3, 5)))
    export(store, "diffusers", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| base model | round 1 | 8 | 2 | 1 | 4 | 2 | 1 | 80 % (38 to 96 %) | 0.375 | 0.7266 |" in text and "round 2" not in text
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == "model" and head["library_name"] == "diffusers" and {"lora", "ddpo", "stable-diffusion"} <= set(head["tags"])
    assert "| ratings | 3 by 2 people |" in text and "| rounds | 1, 8 images each |" in text
    assert "| reward | blend: 1 human, 0.5 mine.py:warm |" in text
    assert "| blend: 1 human, 0.5 mine.py:warm | -3 ± 0.25 | -2 ± 0.125 |" in text
    assert "| 1 | blend: 1 human, 0.5 mine.py:warm | -1.5 | 0.25 | 8 |" in text
    assert '- "a | b"' in text and "rank 2, alpha 6, all layers" in text
    assert str(tmp_path) not in text and "house" not in text
    store.close()


def test_a_report_s_pictures_are_the_run_s_held_out_ones(tmp_path: Path) -> None:
    """Made anew from the checkpoint, by the base model and by the trained weights: pixel by pixel those that the run is measured on."""
    run = Run(tmp_path, "sd1", prompts=("a cat", "a dog", "a fox"))
    pairs = held_out_pairs(run.store, 1, run.store.checkpoints()[1], 4)
    prompts, before = held_out_images(run.policy, run.store.config, base=True, count=4)
    _, after = held_out_images(run.policy, run.store.config, base=False, count=4)
    assert [pair.prompt for pair in pairs] == prompts == ["a cat", "a dog", "a fox", "a cat"] and len({pair.seed for pair in pairs}) == 4
    for pair, old, new in zip(pairs, before, after, strict=True):
        assert pair.before.tobytes() == old.tobytes() and pair.after.tobytes() == new.tobytes() and old.tobytes() != new.tobytes()
    run.store.close()


def write_images_of(store: RunStore, count: int) -> list[str]:
    from ddpo.files import write_images

    return write_images(store.folder, 1, [picture(seed) for seed in range(count)])
