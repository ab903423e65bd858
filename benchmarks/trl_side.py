"""One run of TRL's DDPOTrainer on a pipeline's folder, for ``benchmarks/against_trl.py``; it runs in an environment of its own and imports nothing
of ours."""

import argparse
import io
import json
import shutil
import time
import warnings
from itertools import count
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from PIL import Image

warnings.simplefilter("ignore")


def size_kb(pixels: torch.Tensor) -> float:
    """The size as a JPEG of quality 95, as the paper measures it."""
    data = io.BytesIO()
    array = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    Image.fromarray(array).save(data, "JPEG", quality=95)
    return len(data.getvalue()) / 1000


def with_older_tokenizer(model: Path, folder: Path) -> Path:
    """A copy of the pipeline whose tokenizer is in the files that the transformers of TRL's days reads."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    stored = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in stored["merges"]]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(stored["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, help="text file, one a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--started", type=float, required=True, help="when the command was given, in seconds since the epoch")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=int, default=10, help="rounds between two adapters on disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--per-prompt", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16, help="images of an update")
    parser.add_argument("--sample-batch", type=int, default=32, help="images sampled at once")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--clip-range", type=float, default=1.64 / 1024)
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    options = parser.parse_args()
    started = options.started

    from accelerate import PartialState
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    PartialState()  # its pipeline logs through accelerate

    prompts = [line.strip() for line in Path(options.prompts).read_text().splitlines() if line.strip() and not line.startswith("#")]
    drawn, generator = count(), torch.Generator().manual_seed(options.seed)
    order = [i for _ in range(1000) for i in torch.randperm(len(prompts), generator=generator).tolist()]
    means: list[float] = []

    def prompt() -> tuple[str, dict[str, str]]:
        return prompts[order[next(drawn) // options.per_prompt]], {}

    def reward(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[object, ...]) -> tuple[torch.Tensor, dict[str, str]]:
        found = torch.tensor([-size_kb(image) for image in images])
        means.append(float(found.mean()))
        return found, {}

    config = DDPOConfig(
        num_epochs=options.rounds, seed=options.seed, mixed_precision=options.precision, sample_num_steps=options.steps, sample_eta=1.0,
        sample_guidance_scale=5.0, sample_batch_size=options.sample_batch, sample_num_batches_per_epoch=options.images // options.sample_batch,
        train_batch_size=options.batch, train_learning_rate=options.learning_rate, train_gradient_accumulation_steps=1, train_cfg=True,
        train_adv_clip_max=5.0, train_clip_range=options.clip_range, per_prompt_stat_tracking=True, save_freq=10**9,
    )  # fmt: skip
    pipeline = DefaultDDPOStableDiffusionPipeline(
        str(with_older_tokenizer(Path(options.model), options.out.with_name(options.out.name + "-model"))), use_lora=True
    )
    trainer = DDPOTrainer(config, reward, prompt, pipeline)
    step, loaded = 0, time.time() - started
    for number in range(1, options.rounds + 1):
        before = time.time()
        step = trainer.step(number, step)
        print(
            json.dumps(dict(round=number, seconds=round(time.time() - before, 2), elapsed=round(time.time() - started, 2), reward=means[-1])),
            flush=True,
        )
        late = time.time() - started > 60 * options.minutes
        if number % options.every == 0 or number == options.rounds or late:
            layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
            StableDiffusionPipeline.save_lora_weights(options.out / f"{number:04d}", unet_lora_layers=layers)
        if late:
            break
    print(json.dumps(dict(loaded=round(loaded, 2), rounds=number)), flush=True)


if __name__ == "__main__":
    main()
