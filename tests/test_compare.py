"""Pictures of states: a round's are those that the run itself samples, the base model is the base model, and a strength is that share."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpo.compare import Warm, answer, pictures
from ddpo.export import export
from ddpo.policy import StableDiffusionPolicy
from ddpo.rollout import rollout
from ddpo.states import State, StateError, differences, picture_key
from tests.models import save_tiny_model
from tests.test_export import FAMILIES, PROMPTS, SEEDS, Run
from tests.toys_ddpo import tiny_config, toy_trainer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A trained run of a tiny Stable Diffusion 1.x, all layers, rank 2 and alpha 6."""
    found = Run(tmp_path, "sd1")
    yield found
    found.store.close()


def made(state: State, warm: Warm | None = None) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(image) for images in pictures(warm or Warm(), state, PROMPTS, SEEDS) for image in images]


def own(policy: StableDiffusionPolicy) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(image) for image in rollout(policy, PROMPTS, SEEDS)[1]]


def same(first: list[np.ndarray[Any, Any]], second: list[np.ndarray[Any, Any]]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_s_pictures_are_those_that_the_run_samples(tmp_path: Path, family: str) -> None:
    """Bit for bit, in one batch; the base model's are those without the adapter, from one load of the model. They differ a lot."""
    run, warm = Run(tmp_path, family), Warm()
    folder = run.store.folder
    assert same(made(State(folder, 1), warm), own(run.policy))
    with run.policy.base():
        base = own(run.policy)
    assert same(made(State(folder), warm), base) and same(made(State(folder, 1, strength=0), warm), base)
    assert same(made(State(folder, 1), warm), own(run.policy)) and warm.loads == 1
    assert not same(base, own(run.policy))
    run.store.close()


def test_the_pictures_of_a_trained_run_s_round_are_made_again(tmp_path: Path) -> None:
    """A real run: the images of round 2, by the weights after round 1, from the seeds in its database, but for the rounding of another batch."""
    config = tiny_config(save_tiny_model(tmp_path / "model"), rounds=2, held_out_images=0)
    trainer = toy_trainer(tmp_path / "run", config, policy=StableDiffusionPolicy.load(config))
    trainer.run()
    rows = trainer.store.samples(2)
    again = pictures(Warm(), State(tmp_path / "run", 1), [row.prompt for row in rows], [row.seed for row in rows])
    for row, image in zip(rows, (image for images in again for image in images), strict=True):
        with Image.open(trainer.store.folder / row.image) as sampled:
            assert np.abs(np.asarray(sampled).astype(int) - np.asarray(image)).max() <= 1
    trainer.store.close()


def test_with_a_moving_average_a_round_is_what_is_measured_and_taken_away(tmp_path: Path) -> None:
    config = tiny_config(save_tiny_model(tmp_path / "model"), rounds=1, held_out_images=0, ema_decay=0.9)
    policy = StableDiffusionPolicy.load(config)
    trainer = toy_trainer(tmp_path / "run", config, policy=policy)
    trainer.run()
    trained = own(policy)
    with trainer.engine.averaged():
        assert same(made(State(tmp_path / "run", 1)), own(policy))
    assert not same(made(State(tmp_path / "run", 1)), trained)
    trainer.store.close()


@pytest.mark.parametrize("training", ["lora", "full"])
def test_a_strength_is_that_share_of_what_was_trained(tmp_path: Path, training: str) -> None:
    """The prediction at strength s is that of weights base + s (trained - base); at 1 bit for bit the trained one's, and afterwards again."""
    run = Run(tmp_path, "sd1", training=training)
    policy, x, t = run.policy, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([801, 41])

    def predicted() -> torch.Tensor:
        with torch.no_grad():
            return policy.predict(x, t, policy.encode(PROMPTS))

    whole = predicted()
    with policy.scaled(1.0):
        assert torch.equal(predicted(), whole)
    with policy.base():
        base = predicted()
    with policy.scaled(0.0):
        assert torch.equal(predicted(), base)
    with policy.scaled(0.5):
        half = predicted()
    assert torch.equal(predicted(), whole)
    generator = torch.Generator().manual_seed(1)
    by = {name: (0.1 if training == "lora" else 0.02) * torch.randn(p.shape, generator=generator) for name, p in policy.parameters().items()}
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            if training == "full":
                parameter -= by[name] / 2
            elif "lora_B" in name:
                parameter /= 2
    torch.testing.assert_close(predicted(), half, rtol=1e-4, atol=1e-4)
    run.store.close()


@pytest.mark.parametrize("kind", ["diffusers", "kohya"])
def test_a_lora_file_of_either_layout_is_a_state_over_the_run_s_base(run: Run, tmp_path: Path, kind: str) -> None:
    """What was taken away from the run gives its round's pictures; another model's LoRA, or no LoRA at all, is refused in words."""
    export(run.store, kind, tmp_path / "out")
    file = next((tmp_path / "out").glob("*.safetensors"))
    for found, whole in zip(made(State(run.store.folder, lora=str(file))), own(run.policy), strict=True):
        assert np.abs(found.astype(int) - whole).max() <= 1
    assert len({State(run.store.folder, lora=str(file), strength=s).fixes() for s in (0.5, 1.0)}) == 2
    with pytest.raises(StateError, match=r"cannot be read as a \.safetensors file"):
        State(run.store.folder, lora=str(tmp_path / "model" / "model_index.json")).fixes()
    with pytest.raises(StateError, match=r"The LoRA is .*no LoRA layers"):
        State(run.store.folder, lora=str(next((tmp_path / "model" / "unet").glob("*.safetensors")))).settings()


def test_another_run_s_round_is_loaded_by_its_own_settings(run: Run, tmp_path: Path) -> None:
    """An attention LoRA, and one of more steps, beside one of all layers: each is its own run's; the settings that differ are told."""
    other, longer = Run(tmp_path, "sd1", name="other", lora_targets="attention"), Run(tmp_path, "sd1", name="longer", steps=5)
    warm = Warm()
    for each in (run, other, longer, run):
        assert same(made(State(each.store.folder, 1), warm), own(each.policy))
    assert differences(State(run.store.folder, 1), State(other.store.folder)) == {}
    assert differences(State(run.store.folder, 1), State(longer.store.folder)) == {"steps": (4, 5)}
    for each in (other, longer):
        each.store.close()


def test_a_picture_s_name_changes_with_what_determines_it_and_with_nothing_else(run: Run) -> None:
    folder = run.store.folder
    fixes = State(folder, 1).fixes()
    assert State(folder, 1).fixes() == fixes
    assert State(folder, 1, strength=0).fixes() == State(folder).fixes() != fixes != State(folder, 1, strength=0.5).fixes()
    assert len({picture_key(fixes, prompt, seed) for prompt in PROMPTS for seed in SEEDS}) == 4
    weights = State(folder, 1).weights
    base = State(folder).fixes()
    os.utime(weights, ns=(1, 1))
    assert State(folder, 1).fixes() != fixes and State(folder).fixes() == base
    unet = next((run.model / "unet").glob("*.safetensors"))
    os.utime(unet, ns=(1, 1))
    assert State(folder).fixes() != base
    with pytest.raises(StateError, match="Round 7 of taste has no weights"):
        State(folder, 7).fixes()
    with pytest.raises(StateError, match=r"must be from 0 to 1\.5"):
        State(folder, 1, strength=1.6)


def test_new_weights_under_an_old_name_are_seen(run: Run) -> None:
    """A run that was deleted and made again: the process that is warm does not show the old one's pictures."""
    warm = Warm()
    before = made(State(run.store.folder, 1), warm)
    run.moved(0.1)
    run.save(1)
    assert same(made(State(run.store.folder, 1), warm), own(run.policy)) and not same(before, own(run.policy))


def test_a_request_writes_whole_files_and_what_cannot_be_is_said(run: Run, tmp_path: Path) -> None:
    warm, files = Warm(), [tmp_path / f"{i}.png" for i in range(2)]

    def asked(number: int, **changes: object) -> dict[str, Any]:
        items = [dict(prompt=p, seed=s, file=str(f)) for p, s, f in zip(PROMPTS, SEEDS, files, strict=True)]
        return answer(warm, json.dumps(dict(run=str(run.store.folder), round=number, lora="", strength=1.0, items=items) | changes))

    assert asked(1) == dict(made=2)
    assert same([np.asarray(Image.open(io.BytesIO(f.read_bytes()))) for f in files], own(run.policy))
    assert not list(tmp_path.glob(".*"))
    assert "has no weights" in asked(9)["error"]
    assert "is no request" in answer(warm, "{")["error"] and "is no request" in asked(1, strength="much")["error"]
    run.policy.fingerprint = "another model's"
    run.save(1)
    assert "trained over another base model" in asked(1)["error"]


def test_the_process_answers_line_by_line_and_ends_with_its_input(run: Run, tmp_path: Path) -> None:
    item = dict(prompt="a cat", seed=5, file=str(tmp_path / "one.png"))
    line = json.dumps(dict(run=str(run.store.folder), round=0, lora="", strength=1.0, items=[item]))
    command = [sys.executable, "-W", "ignore", "-m", "ddpo.compare"]
    said = subprocess.run(command, cwd=ROOT, input=f"nonsense\n{line}\n", capture_output=True, text=True, timeout=240)
    first, second = map(json.loads, said.stdout.splitlines())
    assert "is no request" in first["error"] and second == dict(made=1)
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (16, 16)
