"""What Stable Diffusion 1.5 costs: ``python -m benchmarks.sd15``, its shape with random weights, which cost what trained ones cost.

Every line is a run as a person would start it, ``python -m ddpo run`` with a LoRA and JPEG compressibility, of two rounds; told are images a second
of the second round, sampled and learned from, and the peak of the memory that tensors take (on a GPU; else the process's). ``--shape tiny`` tries the
benchmark itself on a small machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.common import flags, make_run
from ddpo.source import POCKET_MODEL
from ddpo.store import RunStore

SHAPES: dict[str, dict[str, Any]] = dict(
    sd15=dict(unet=(320, 640, 1280, 1280), vae=(128, 256, 512, 512), text=(768, 3072, 12, 12), groups=32, latent=64),
    tiny=dict(unet=(32, 64, 64, 64), vae=(16, 16, 32, 32), text=(32, 64, 2, 2), groups=8, latent=8),
)
GRID: dict[str, dict[str, Any]] = {
    "one at a time": dict(microbatch=1, update_microbatch=1),
    "one at a time, activations recomputed": dict(microbatch=1, update_microbatch=1, gradient_checkpointing=True),
    "four at a time": dict(microbatch=4, update_microbatch=4),
    "sixteen at a time": dict(microbatch=16, update_microbatch=16),
}


def pipeline_of(shape: str) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x pipeline of that shape, random, in float16; its tokenizer is the pocket's."""
    sizes = SHAPES[shape]
    hidden, intermediate, layers, heads = sizes["text"]
    tokenizer = CLIPTokenizer.from_pretrained(f"{POCKET_MODEL}/tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=sizes["latent"], block_out_channels=sizes["unet"], cross_attention_dim=hidden, attention_head_dim=8,
        norm_num_groups=sizes["groups"],
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=sizes["vae"], layers_per_block=2, latent_channels=4, sample_size=8 * sizes["latent"], norm_num_groups=sizes["groups"],
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    parts = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return StableDiffusionPipeline(vae, CLIPTextModel(text), tokenizer, unet, scheduler, **parts).to(torch.float16)


def measure(folder: Path, model: Path, images: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Images a second in the second round, and the run's peak memory."""
    shutil.rmtree(folder, ignore_errors=True)
    make_run(folder, flags(dict(model=str(model), reward="jpeg_compressibility", rounds=2, images_per_round=images, images_per_prompt=4,
                                images_per_update=images, held_out_images=0, skip_last_steps=0, eta=1.0) | settings))  # fmt: skip
    store = RunStore(folder)
    metrics = store.metrics()
    store.close()
    sampling, updating, memory = (dict(metrics[name])[2] or 0.0 for name in ("seconds_sampling", "seconds_updating", "memory_gb"))
    return dict(sampled_per_second=round(images / sampling, 3), learned_per_second=round(images / updating, 3), peak_gb=round(memory, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/sd15"), help="folder for the model and the runs")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sd15", help="the model's size")
    parser.add_argument("--images", type=int, default=16, help="images a round")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--precision", nargs="+", default=["bf16"], help="precisions to measure")
    options = parser.parse_args()
    model = options.out / f"model-{options.shape}"
    if not (model / "model_index.json").exists():
        pipeline_of(options.shape).save_pretrained(model)
    for precision in options.precision:
        for name, settings in GRID.items():
            settings = settings | dict(precision=precision, steps=options.steps)
            found = measure(options.out / "run", model, options.images, settings)
            print(json.dumps(dict(setting=name, precision=precision) | found), flush=True)


if __name__ == "__main__":
    main()
