"""Trajectories on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddpo.trajectory import Trajectory


def trajectory(n: int = 3, seed: int = 0) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    return Trajectory(torch.randn(n, 5, 4, 2, 2, generator=generator), torch.randn(n, 4, generator=generator))


def test_what_is_saved_is_what_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    """Defect 1: nothing is rounded on the way to disk and back."""
    before = trajectory()
    before.save(tmp_path / "part.safetensors")
    after = Trajectory.load(tmp_path / "part.safetensors")
    assert torch.equal(after.latents, before.latents) and torch.equal(after.log_probs, before.log_probs)
    assert [f.name for f in tmp_path.iterdir()] == ["part.safetensors"]


def test_parts_join_in_order() -> None:
    one, two = trajectory(2, seed=1), trajectory(3, seed=2)
    both = Trajectory.concatenate([one, two])
    assert len(both) == 5 and both.dimensions == 16
    assert torch.equal(both.latents[2:], two.latents) and torch.equal(both.log_probs[:2], one.log_probs)


def test_half_precision_is_refused() -> None:
    """Defect 1: the reference stored half-precision latents that it had scored in float32."""
    good = trajectory()
    with pytest.raises(TypeError, match="rounding after scoring biases the ratio"):
        Trajectory(good.latents.half(), good.log_probs)
    with pytest.raises(TypeError):
        Trajectory(good.latents, good.log_probs.bfloat16())


def test_tensors_that_do_not_belong_together_are_refused() -> None:
    good = trajectory()
    with pytest.raises(ValueError, match="do not belong together"):
        Trajectory(good.latents, good.log_probs[:, :3])
    with pytest.raises(ValueError, match="do not belong together"):
        Trajectory(good.latents, good.log_probs[:2])


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, before = tmp_path / "part.safetensors", trajectory()
    before.save(file)

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as partial:
            partial.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        trajectory(seed=9).save(file)
    assert torch.equal(Trajectory.load(file).latents, before.latents)
