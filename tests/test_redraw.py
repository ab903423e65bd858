"""Renders drawn again by the model: the autoencoder alone, from a little noise, cut off and gone on with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocket import redraw
from pocket.evaluate import load_pipeline
from pocket.training import images_of

CAPTIONS = ["a dog", "a fox riding a bike", "two cats", "a cup"]


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline()


@pytest.fixture(scope="module")
def rendered(pipeline):
    """Pictures of the model's own, which stand for renders: no font is needed."""
    generator = torch.Generator().manual_seed(0)
    found = pipeline(CAPTIONS, num_inference_steps=5, height=64, width=64, generator=generator).images
    return np.stack([np.asarray(image) for image in found])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def test_depth_zero_is_the_autoencoder_and_more_noise_is_further_away(pipeline, rendered):
    found = {depth: redraw.redraw(pipeline, CAPTIONS, rendered, depth, 1.0, torch.Generator().manual_seed(1)) for depth in (0, 2, 5)}
    with torch.no_grad():
        plain = pipeline.vae(images_of(torch.from_numpy(rendered))).sample.clamp(-1, 1)
    wanted = ((plain + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert distance(found[0], wanted) < 0.1
    assert distance(found[0], rendered) < distance(found[2], rendered) < distance(found[5], rendered) < 60
    other = redraw.redraw(pipeline, CAPTIONS, rendered, 2, 5.0, torch.Generator().manual_seed(1))
    assert 0 < distance(other, found[2]) < 30, "guidance is another picture of the same"


def test_what_was_cut_off_goes_on_and_is_the_same(pipeline, rendered, tmp_path, monkeypatch):
    monkeypatch.setattr(redraw, "BATCH", 2)
    device, done = torch.device("cpu"), redraw.redrawn(tmp_path / "whole", "some", CAPTIONS, rendered, pipeline, torch.device("cpu"))
    real = redraw.redraw

    def fails(pipeline, captions, *rest):
        if captions[0] == "two cats":
            raise KeyboardInterrupt
        return real(pipeline, captions, *rest)

    monkeypatch.setattr(redraw, "redraw", fails)
    with pytest.raises(KeyboardInterrupt):
        redraw.redrawn(tmp_path, "some", CAPTIONS, rendered, pipeline, device)
    made = []
    monkeypatch.setattr(redraw, "redraw", lambda pipeline, captions, *rest: made.append(captions) or real(pipeline, captions, *rest))
    again = redraw.redrawn(tmp_path, "some", CAPTIONS, rendered, pipeline, device)
    assert made == [CAPTIONS[2:]], "the first batch is not made again"
    assert np.array_equal(again, done)
    assert np.array_equal(redraw.redrawn(tmp_path, "some", CAPTIONS, rendered, pipeline, device), done) and len(made) == 1
    assert {file.name for file in tmp_path.glob("some*")} == {"some-redrawn-4.npy"}


def test_half_of_the_draws_are_of_those_drawn_again():
    torch.manual_seed(0)
    found = redraw.draws(100, 10, 4000)
    assert found.min() == 0 and found.max() == 109
    assert abs(float((found >= 100).float().mean()) - redraw.SHARE) < 0.03
