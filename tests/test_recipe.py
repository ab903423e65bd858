"""The recipe of the pocket model, run from end to end on a few scenes and a few steps: it works, it resumes, its result loads and samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pocket import aesthetic, data, evaluate, judge, recipe, training, vlm, world

FONT = any(Path(path).exists() for path in world.FONT_PATHS)


@pytest.mark.skipif(not FONT, reason="SKIPPED: the font Noto Color Emoji is not installed, the pocket recipe is not tested")
@pytest.mark.timeout(900)
def test_recipe_makes_a_model_that_diffusers_loads(tmp_path, monkeypatch, capsys):
    for name, value in dict(
        HERE=tmp_path, TRAIN_SCENES=48, JUDGE_SCENES=48, HELD_OUT_SCENES=48, CLIP_STEPS=2, VAE_STEPS=2, SHARP_STEPS=2, UNET_STEPS=2,
        JUDGE_STEPS=2, JUDGE_BATCH=28, JUDGE_REDRAWN=8, VAE_BATCH=4, UNET_BATCH=4,
    ).items():  # fmt: skip
        monkeypatch.setattr(recipe, name, value)
    for name, value in dict(HERE=tmp_path, SCENES=48, HELD_OUT_SCENES=48, STEPS=2, BATCH=8).items():
        monkeypatch.setattr(aesthetic, name, value)
    for name, value in dict(
        HERE=tmp_path, SCENES=48, HELD_OUT_SCENES=24, REDRAWN=80, LLAVA_STEPS=2, LLAVA_BATCH=4, BERT_STEPS=2, BERT_BATCH=8
    ).items():
        monkeypatch.setattr(vlm, name, value)
    recipe.main(["--work", str(tmp_path / "work"), "--device", "cpu"])
    pipeline = evaluate.load_pipeline(tmp_path / "model")
    (picture,) = evaluate.pictures(pipeline, ["a dog"], seed=0, steps=2)
    assert picture.size == (world.SIZE, world.SIZE)
    accuracy = json.loads((tmp_path / "judge" / "accuracy.json").read_text())
    assert set(accuracy) == {
        *("subject", "activity", "count", "subject of pairs never shown", "activity of pairs never shown", "ruins"),
        *("subject drawn again", "activity drawn again", "count drawn again"),
    }
    judge.Judge.load(tmp_path / "judge")
    assert set(aesthetic.evaluate(tmp_path / "work")) == {"renders", "with_distorted"}
    assert {"animal", "activity", "count", "bertscore_wins", "strict"} <= set(vlm.evaluate(tmp_path / "work", 24))
    capsys.readouterr()
    recipe.main(["--work", str(tmp_path / "work"), "--device", "cpu"])
    assert capsys.readouterr().out.count("exists") == 7, "a stage with a result is not run again"
    shipped, decoder = weights(tmp_path, "unet"), weights(tmp_path, "vae")
    on = ["--work", str(tmp_path / "work"), "--device", "cpu", "--force", "--continue", "--steps", "1"]
    for _ in range(2):  # a second continuation goes on from the first one's result
        recipe.main([*on, "--only", "unet"])
        moved = weights(tmp_path, "unet")
        assert not torch.equal(moved, shipped) and (moved - shipped).abs().max() < 0.02, "it starts from the shipped weights"
        shipped = moved
    assert (tmp_path / "work" / "latents.npy").exists()
    recipe.main([*on, "--only", "vae"])
    assert not torch.equal(weights(tmp_path, "vae"), decoder)
    assert not (tmp_path / "work" / "latents.npy").exists(), "latents belong to their autoencoder"


def weights(folder: Path, network: str) -> torch.Tensor:
    """A network's output layer."""
    name = dict(unet="conv_out.weight", vae="decoder.conv_out.weight")[network]
    return load_file(folder / "model" / network / "diffusion_pytorch_model.safetensors")[name].float()


@pytest.mark.skipif(not FONT, reason="SKIPPED: the font Noto Color Emoji is not installed, the pocket world cannot be drawn")
def test_scenes_are_drawn_once_and_alike(tmp_path):
    captions, pictures = data.scenes(tmp_path, "some", 7, 3)
    again, same = data.scenes(tmp_path, "some", 7, 3)
    assert captions == again == [world.sample(7 + i)[0] for i in range(3)]
    assert (pictures == same).all()


def make_line(work: Path, steps: int, until: int | None = None) -> torch.nn.Linear:
    """A line fitted for ``steps`` steps, cut off after ``until`` of them."""
    torch.manual_seed(0)
    line = torch.nn.Linear(2, 1)
    done = 0

    def loss_of() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        nonlocal done
        if done == until:
            raise KeyboardInterrupt
        done += 1
        x = torch.randn(16, 2)
        loss = (line(x) - x.sum(1, keepdim=True)).square().mean()
        return loss, dict(loss=loss)

    training.train("line", work, {"line": line}, loss_of, device=torch.device("cpu"), steps=steps, lr=0.05, warmup=2, ema=0.5)
    return line


def test_training_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", -1.0)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir(), resumed.mkdir()
    expected = make_line(straight, 40)
    with pytest.raises(KeyboardInterrupt):
        make_line(resumed, 40, until=25)
    found = make_line(resumed, 40)
    assert torch.equal(expected.weight, found.weight)
    assert (expected.weight - 1).abs().max() < 0.1


def test_latents_are_standardised_and_pictures_stay_the_same():
    torch.manual_seed(0)
    vae = recipe.new_vae()
    images = torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        recipe.standardise(vae, images)
        latents = vae.encode(images).latent_dist.mean
        after = vae.decode(latents).sample
    assert (before - after).abs().max() < 1e-4
    assert latents.mean((0, 2, 3)).abs().max() < 1e-5
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_ruined_pictures_keep_their_pixels_apart():
    """Ruins are not copies of what they were made from, and where two subjects are the same neither is spliced into the other."""
    torch.manual_seed(0)
    images, others = torch.full((32, 3, 64, 64), -1.0), torch.ones(32, 3, 64, 64)
    same = training.ruined(images, others, torch.zeros(32, dtype=torch.bool))
    assert torch.allclose(same, images)
    mixed = training.ruined(images, others, torch.ones(32, dtype=torch.bool))
    assert (mixed.mean((1, 2, 3)) > -1).any()
    detailed = torch.rand(32, 3, 64, 64)
    assert ((training.ruined(detailed, others, torch.zeros(32, dtype=torch.bool)) - detailed).abs().mean((1, 2, 3)) > 0.1).all()
