"""What the stages of the recipe share: one resumable training loop, and how pictures become what networks see."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_EVERY = 50
SAVE_EVERY_SECONDS = 60.0
CLIP_MEAN, CLIP_STD = [0.5, 0.5, 0.5], [0.27, 0.27, 0.27]
"""By which the pocket CLIP standardises pixels."""


@dataclass(frozen=True)
class Start:
    """Where a stage starts, and how far it goes: from nothing for the steps of the recipe, or from the shipped weights."""

    shipped: bool = False
    steps: int | None = None


def on_device(pictures: np.ndarray, device: torch.device) -> Tensor:
    """Pictures (n, 64, 64, 3) uint8 as a tensor."""
    return torch.from_numpy(np.array(pictures)).to(device)


def images_of(pictures: Tensor) -> Tensor:
    """Pictures (n, 64, 64, 3) uint8 as images (n, 3, 64, 64) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def half(device: torch.device) -> torch.autocast:
    """Arithmetic in bfloat16, weights in float32; all in float32 on a CPU without instructions for it, where bfloat16 is several times as slow."""
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def augment(images: Tensor) -> Tensor:
    """Noise, blur, brightness, colour shifts and loss of colour: so that the judge reads shapes, and forgives an autoencoder's softness."""
    n = len(images)
    draw = torch.rand(n, 9, 1, 1, 1, device=images.device)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + (soft - images) * draw[:, 0] * (draw[:, 1] < 0.5)
    images = images + (images.mean(1, keepdim=True) - images) * draw[:, 7] * (draw[:, 8] < 0.5)
    images = images * (0.8 + 0.4 * draw[:, 2]) + 0.3 * (draw[:, 3:6, 0] - 0.5)
    return images + 0.1 * draw[:, 6] * torch.randn_like(images)


def ruined(images: Tensor, others: Tensor, different: Tensor) -> Tensor:
    """Images whose subject can no longer be named, so that who looks at them learns to say so: shuffled tiles, strong warps, and, where the two
    subjects are ``different``, half of one beside half of the other, or both at once like a double exposure."""
    n, device = len(images), images.device
    tiles = images.unfold(2, 16, 16).unfold(3, 16, 16).reshape(n, 3, 16, 16, 16)
    order = torch.rand(n, 16, device=device).argsort(1)[:, None, :, None, None].expand_as(tiles)
    shuffled = tiles.gather(2, order).reshape(n, 3, 4, 4, 16, 16).permute(0, 1, 2, 4, 3, 5).reshape(images.shape)
    axis = torch.linspace(-1, 1, images.shape[-1], device=device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    bend = F.interpolate(0.22 * torch.randn(n, 2, 8, 8, device=device), size=images.shape[-1], mode="bilinear").permute(0, 2, 3, 1)
    warped = F.grid_sample(images, grid + bend, padding_mode="reflection", align_corners=False)
    upright = torch.rand(n, 1, 1, 1, device=device) < 0.5
    split = torch.where(torch.where(upright, axis[:, None] < 0, axis[None, :] < 0), images, others)
    blend = torch.lerp(images, others, 0.35 + 0.3 * torch.rand(n, 1, 1, 1, device=device))
    pick = torch.rand(n, 1, 1, 1, device=device)
    alone = torch.where(pick < 0.5, shuffled, warped)
    paired = torch.where(pick < 0.25, shuffled, torch.where(pick < 0.5, warped, torch.where(pick < 0.75, split, blend)))
    return torch.where(different[:, None, None, None], paired, alone)


def train(
    name: str,
    work: Path,
    modules: dict[str, nn.Module],
    loss_of: Callable[[], tuple[Tensor, dict[str, Tensor]]],
    *,
    device: torch.device,
    steps: int,
    lr: float,
    warmup: int = 200,
    weight_decay: float = 0.01,
    ema: float = 0.0,
) -> None:
    """AdamW with warm-up and linear decay to zero at ``steps``; a log line every 50 steps, a checkpoint every minute.

    ``loss_of`` draws its own batch from torch's generators and returns the loss with scalars to be logged. With ``ema`` the modules hold the
    averaged weights when this returns. ``WORK/NAME.ckpt`` holds everything that is needed to go on.
    """
    on_gpu = device.type == "cuda"
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    average = [p.detach().clone() for p in parameters] if ema else []
    checkpoint, first = work / f"{name}.ckpt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"].cpu())
        if on_gpu and state["gpu_rng"] is not None:
            torch.cuda.set_rng_state(state["gpu_rng"].cpu())
        average, first = state["average"], state["step"]
        print(f"{name}: going on at step {first}", flush=True)

    sums: dict[str, Tensor] = {}
    saved = started = time.monotonic()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup) * (1 - step / steps)
        loss, report = loss_of()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        for key, value in report.items():
            sums[key] = sums.get(key, torch.zeros_like(value)) + value.detach()
        if ema:
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(ema, (1 + step) / (10 + step)))
        if (step + 1) % LOG_EVERY == 0:
            since = min(LOG_EVERY, step + 1 - first)  # fewer, in the first line after going on
            means = "  ".join(f"{key} {value.item() / since:.4f}" for key, value in sums.items())
            pace = (time.monotonic() - started) / (step + 1 - first)
            print(f"{name} {step + 1}/{steps}  {means}  {1000 * pace:.0f} ms/step", flush=True)
            sums = {}
        if time.monotonic() - saved > SAVE_EVERY_SECONDS or step + 1 == steps:
            state = dict(
                modules={k: m.state_dict() for k, m in modules.items()},
                optimiser=optimiser.state_dict(),
                rng=torch.get_rng_state(),
                gpu_rng=torch.cuda.get_rng_state() if on_gpu else None,
                average=average,
                step=step + 1,
            )
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").rename(checkpoint)
            saved = time.monotonic()
    if ema:
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
