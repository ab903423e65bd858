"""Against TRL's DDPOTrainer: ``python -m benchmarks.against_trl``, on the same pocket pipeline and machine, in alternating runs.

TRL 0.23.1, the last release that had the trainer, is installed from the registry into ``build/trl``, an environment of its own, on the first run.

At equal settings, the default (32 images a round, 8 a prompt, 10 denoising steps, all of them trained, guidance 5 in sampling and training, LoRA of
rank 4, learning rate 1e-3, one update a round, or ``--updates 2``): seconds a round, and the held-out compressibility after the same rounds.
``--best``: each one's best settings: wall clock from the command to a held-out gain. Held-out pictures are made by plain diffusers from both
adapters.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from benchmarks.common import flags, paired
from ddpo.config import PROMPT_FOLDER, prompt_sets
from ddpo.source import POCKET_MODEL
from ddpo.store import RunStore
from rewards.jpeg import size_kb

ENVIRONMENT = Path("build/trl")
PACKAGES = ["torch==2.13.0", "trl==0.23.1", "diffusers<0.38", "transformers<5", "peft", "accelerate", "datasets", "pillow"]


def environment() -> Path:
    """TRL's python."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (ENVIRONMENT / "ready").touch()
    return python


def held_out_kb(adapter: Path | None, count: int) -> list[float]:
    """JPEG sizes of pictures of fixed prompts and seeds, by plain diffusers."""
    pipeline = StableDiffusionPipeline.from_pretrained(POCKET_MODEL, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(adapter, weight_name="pytorch_lora_weights.safetensors")
    prompts = [prompt_sets()["animals"][i % 45] for i in range(count)]
    sizes = []
    for start in range(0, count, 16):
        part = prompts[start : start + 16]
        generators = [torch.Generator().manual_seed(10_000 + start + i) for i in range(len(part))]
        images = pipeline(part, num_inference_steps=10, guidance_scale=5.0, eta=1.0, generator=generators, height=64, width=64).images
        sizes += [size_kb(image) for image in images]
    return sizes


def run_trl(folder: Path, rounds: int, seed: int, *options: str) -> tuple[list[dict[str, Any]], float]:
    """Rounds as TRL's side tells them, and the seconds that loading took."""
    command = [environment(), "benchmarks/trl_side.py", "--model", POCKET_MODEL, "--prompts", PROMPT_FOLDER / "animals.txt", "--out", folder]
    command += ["--rounds", str(rounds), "--seed", str(seed), "--started", str(time.time()), *options]
    found = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    return lines[:-1], lines[-1]["loaded"]


def run_ours(folder: Path, rounds: int, seed: int, *options: str) -> tuple[list[dict[str, Any]], float]:
    """The same of ours: seconds of each round, and since the command."""
    command = [
        sys.executable,
        "-m",
        "ddpo",
        "run",
        "--preset",
        "compress",
        "--out",
        folder,
        "--rounds",
        rounds,
        "--seed",
        seed,
        "--held-out-images",
        0,
        "--watch-every",
        0,
        *options,
    ]
    started = time.time()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = RunStore(folder)
    rows = store.rounds()
    store.close()
    ends = [row.checkpointed_at or 0.0 for row in rows]
    starts = [row.started_at for row in rows]
    found = [dict(round=i + 1, seconds=end - start, elapsed=end - started) for i, (start, end) in enumerate(zip(starts, ends, strict=True))]
    return found, starts[0] - started


EQUAL = dict(
    objective="ddpo-is", images_per_round=32, images_per_prompt=8, steps=10, skip_last_steps=0, step_weights="equal", eta=1.0,
    guidance=5.0, guidance_in_training=True, shared_start=False, lora_rank=4, lora_alpha=4.0, learning_rate=1e-3, advantage="history",
    update_microbatch=80, precision="auto",
)  # fmt: skip
"""Ours, as TRL's side has it (both then standardise over the round until a prompt has 16 scores)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/against-trl"))
    parser.add_argument("--rounds", type=int, default=8, help="rounds of both; with --best of ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=96, help="held-out pictures")
    parser.add_argument("--updates", type=int, default=1, choices=(1, 2, 4), help="optimiser steps a round, of the equal settings")
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--target", type=float, default=8.0, help="the held-out gain, in percent, that --best measures the time to")
    parser.add_argument("--trl-minutes", type=float, default=15.0)
    parser.add_argument("--trl", nargs="+", default=[], help="options of TRL's side, for instance learning-rate=3e-4 precision=bf16")
    options = parser.parse_args()
    extra = [part for option in options.trl for part in ("--" + option.split("=")[0], option.split("=")[1])]
    size = 32 // options.updates
    settings = EQUAL | dict(images_per_update=size, microbatch=size)
    equal = flags(settings)
    environment()
    base = held_out_kb(None, options.images)

    def gain(adapter: Path) -> tuple[float, float]:
        change, error = paired(base, held_out_kb(adapter, options.images))
        return round(-100 * change / statistics.mean(base), 2), round(100 * error / statistics.mean(base), 2)

    for seed in options.seeds:
        sides = dict(trl=run_trl, ours=run_ours)
        for side, run in sides.items() if seed % 2 == 0 else reversed(sides.items()):
            folder = options.out / f"{'best' if options.best else 'equal'}-{side}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            if options.best:
                limit = ["--minutes", str(options.trl_minutes), "--every", "5", *extra] if side == "trl" else []
                rounds, loaded = run(folder, 1000 if side == "trl" else options.rounds, seed, *limit)
            else:
                rounds, loaded = run(folder, options.rounds, seed, *(["--batch", str(size), *extra] if side == "trl" else equal))
            adapters = sorted((folder / "checkpoints" if side == "ours" else folder).iterdir())
            report: dict[str, Any] = dict(side=side, seed=seed, updates=options.updates, rounds=len(rounds), loaded=round(loaded, 1))
            report["seconds_per_round"] = round(statistics.median(r["seconds"] for r in rounds), 2)
            if options.best:
                report["seconds_to_target"] = None
                for adapter in adapters if side == "trl" else adapters[1::2]:
                    report["gain_percent"] = gain(adapter)
                    if report["gain_percent"][0] >= options.target:
                        report["seconds_to_target"] = round(rounds[int(adapter.name) - 1]["elapsed"], 1)
                        break
            else:
                report["gain_percent"] = gain(adapters[-1])
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
