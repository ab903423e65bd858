"""Renders drawn again by the pocket model, for those who have to know its pictures.

A network that has only seen renders does not know what the denoiser makes of the same animal: a judge that was right on 99.9 % of renders was right
on 83 % of them once they had been through the autoencoder, and on 64 % after the last two of ten denoising steps, where nothing is lost that a person
would miss. So who looks at the model's pictures also learns from renders that were encoded, noised and denoised (SDEdit: Meng et al. 2022, arXiv
2108.01073), from so little noise that their subject stays what it was.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from torch import Tensor

from pocket.training import images_of, on_device

STEPS = 10
"""Steps of the schedule, of which the last few are made."""
DEPTHS = (0, 2, 3, 4, 5)
"""How many of them, in turn from batch to batch; none is the autoencoder alone. Five start at timestep 401 of Stable Diffusion's schedule."""
GUIDANCES = (1.0, 5.0)
BATCH = 32
SHARE = 0.5
"""The share of pictures drawn again while a network learns."""


def draws(first: int, second: int, count: int) -> Tensor:
    """Places (count,) among ``first`` renders and, behind them, ``second`` drawn again, of which :data:`SHARE` of the draws are."""
    again = torch.rand(count) < SHARE
    return torch.where(again, first + torch.randint(second, (count,)), torch.randint(first, (count,)))


def redrawn(
    folder: Path, name: str, captions: list[str], rendered: np.ndarray, pipeline: StableDiffusionPipeline, device: torch.device
) -> np.ndarray:
    """The renders (n, 64, 64, 3) uint8, drawn again by the pipeline; what is on disk is not made again, and what was cut off goes on.

    Each picture has noise of its own, named by its place.
    """
    file, unfinished, mark = (folder / f"{name}-redrawn-{len(captions)}{end}" for end in (".npy", ".partial.npy", ".done"))
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        first = int(mark.read_text()) if mark.exists() and unfinished.exists() else 0
        pictures = np.lib.format.open_memmap(unfinished, "r+" if first else "w+", np.uint8, rendered.shape)
        pipeline = pipeline.to(device)
        for number, start in enumerate(range(0, len(captions), BATCH)):
            if start < first:
                continue
            part = slice(start, min(start + BATCH, len(captions)))
            depth, guidance = DEPTHS[number % len(DEPTHS)], GUIDANCES[number // len(DEPTHS) % len(GUIDANCES)]
            noise = torch.Generator().manual_seed(start)
            pictures[part] = redraw(pipeline, captions[part], rendered[part], depth, guidance, noise)
            pictures.flush()
            mark.write_text(str(part.stop))
        unfinished.rename(file)
        mark.unlink()
    found: np.ndarray = np.load(file, mmap_mode="r")
    return found


@torch.no_grad()
def redraw(
    pipeline: StableDiffusionPipeline, captions: list[str], rendered: np.ndarray, depth: int, guidance: float, noise: torch.Generator
) -> np.ndarray:
    """Pictures (n, 64, 64, 3) uint8, encoded, noised to the last ``depth`` of :data:`STEPS` steps, denoised by DDIM with η = 1, and decoded."""
    if depth:
        again = StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
        again.set_progress_bar_config(disable=True)
        found = again(
            captions, image=rendered / 255, strength=depth / STEPS, num_inference_steps=STEPS, guidance_scale=guidance, eta=1.0, generator=noise,
            output_type="np",
        ).images  # fmt: skip
    else:
        decoded = pipeline.vae(images_of(on_device(rendered, pipeline.device))).sample
        found = pipeline.image_processor.postprocess(decoded, output_type="np")
    pictures: np.ndarray = (255 * found).round().astype(np.uint8)
    return pictures
