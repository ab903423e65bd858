"""Measure the pocket model with the judge, and draw its contact sheet: ``python -m pocket.evaluate``.

Prints one line of JSON: the judge's own accuracy on held-out renders, and how often the model's pictures show what the prompt says, over prompts and
fixed seeds, at 20 DDIM steps with η = 1 and guidance 5. Uses plain diffusers and none of the trainer's code.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from pocket import world
from pocket.judge import FOLDER, Judge, judge_images

MODEL = Path(__file__).parent / "model"


def load_pipeline(folder: Path = MODEL) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.device.type == "cpu":
        pipeline.unet.set_attn_processor(AttnProcessor())
    return pipeline


def pictures(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, steps: int = 20, guidance: float = 5.0) -> list[Image.Image]:
    """One picture a prompt; the i-th has the seed ``seed + i``."""
    found: list[Image.Image] = []
    for start in range(0, len(prompts), 15):
        part = prompts[start : start + 15]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        found += pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance, eta=1.0, generator=generators, height=world.SIZE, width=world.SIZE
        ).images
    return found


def groups() -> dict[str, list[str]]:
    """The prompts that the model is measured on, by group."""
    shown = [world.Scene(a, activity=k).caption for a in world.ACTIVE_ANIMALS for k in world.ACTIVITIES]
    unseen = [world.Scene(a, activity=k).caption for a in world.ANIMALS if a not in world.ACTIVE_ANIMALS for k in world.ACTIVITIES]
    return dict(
        animals=[world.article(a) for a in world.ANIMALS],
        unseen_animals=[world.article(a) for a in world.UNSEEN_ANIMALS],
        objects=[world.article(o) for o in world.OBJECTS],
        activities=shown,
        unseen_activities=unseen,
        counts=[world.Scene(a, count=n).caption for a in world.ANIMALS for n in world.COUNTS.values()],
    )


def sheet(rows: list[list[Image.Image]], scale: int = 2, gap: int = 4) -> Image.Image:
    """Pictures in rows, enlarged, on white."""
    side = world.SIZE * scale
    board = Image.new("RGB", (len(rows[0]) * (side + gap) - gap, len(rows) * (side + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            board.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (x * (side + gap), y * (side + gap)))
    return board


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the pocket model with the judge.")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the pipeline")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each animal; other groups get one picture a prompt")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--sheet", type=Path, help="also draw the 45 animals as a contact sheet into this PNG file")
    options = parser.parse_args(arguments)
    pipeline, judge = load_pipeline(options.model), Judge.load()
    report: dict[str, object] = dict(judge_accuracy=json.loads((FOLDER / "accuracy.json").read_text()), steps=options.steps)
    for name, prompts in groups().items():
        prompts = prompts * (options.seeds if name == "animals" else 1)
        found = pictures(pipeline, prompts, seed=1000, steps=options.steps)
        verdicts = judge_images(judge, found, prompts)
        report[name] = {key: round(sum(v[key] for v in verdicts) / len(verdicts), 3) for key in verdicts[0]}
        report[name]["all"] = round(sum(all(v.values()) for v in verdicts) / len(verdicts), 3)  # type: ignore[index]
        if name == "animals":
            wrong: dict[str, int] = {}
            for prompt, verdict in zip(prompts, verdicts, strict=True):
                wrong[prompt] = wrong.get(prompt, 0) + (not verdict["subject"])
            report["weakest"] = sorted((p for p in wrong if wrong[p]), key=lambda p: -wrong[p])[:8]
            if options.sheet:
                sheet([found[i : i + 15] for i in range(0, 45, 15)]).save(options.sheet)
    started = time.perf_counter()
    pictures(pipeline, ["a dog"] * 16, seed=1, steps=10)
    report["seconds_16_images_10_steps"] = round(time.perf_counter() - started, 2)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
