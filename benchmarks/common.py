"""What the benchmarks share: a run made and its policy at a round, held-out pictures judged, the distance from the base, lines and curves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpo.checkpoint import load_result
from ddpo.evaluate import held_out_images
from ddpo.policy import Policy, StableDiffusionPolicy
from ddpo.rollout import batches, derive_seed, rollout
from ddpo.store import RunStore
from pocket.judge import Judge, judge_images

DOCS = Path(__file__).parent.parent / "docs"


def policy_at(folder: Path, number: int, **changes: Any) -> StableDiffusionPolicy:
    """The run's policy after a round, as it would be taken away; or with other settings, such as ``precision``. Round 0 is the base model."""
    store = RunStore(folder)
    policy = StableDiffusionPolicy.load(store.config.with_changes(**changes))
    if number:
        load_result(store.checkpoints()[number], policy.parameters())
    store.close()
    return policy


def before_and_after(folder: Path, number: int, count: int) -> tuple[list[str], list[Image.Image], list[Image.Image]]:
    """Prompts, base pictures and tuned pictures of the same held-out seeds."""
    store = RunStore(folder)
    config = store.config
    store.close()
    policy = policy_at(folder, number)
    prompts, base = held_out_images(policy, config, base=True, count=count)
    return prompts, base, held_out_images(policy, config, base=False, count=count)[1]


def animal_accuracy(images: list[Image.Image], prompts: list[str]) -> float:
    """The share of pictures in which the judge sees the prompt's subject."""
    return float(np.mean([v["subject"] for v in judge_images(Judge.load(), images, prompts)]))


def warmth(image: Image.Image) -> float:
    """Mean red minus mean blue, in [-1, 1]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    return float(pixels[..., 0].mean() - pixels[..., 2].mean())


def paired(before: list[float], after: list[float]) -> tuple[float, float]:
    """Mean difference and its standard error, paired by prompt and seed."""
    difference = np.asarray(after) - np.asarray(before)
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is 0."""
    found = np.asarray(values, dtype=np.float64)
    return float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else 0.0


def plus_minus(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard error as text; a single value has no error."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if len(values) > 1 else "")


@cache
def the_judge() -> Judge:
    """The judge, loaded once."""
    return Judge.load()


def make_run(folder: Path, options: Sequence[str]) -> None:
    """The run of ``python -m ddpo run`` with these options; one that is in its folder already is gone on with, and nothing is done where it is over.

    Raises:
        SystemExit: the command failed, with its last words; or somebody stopped the run.
    """
    command = ["resume", str(folder)] if (folder / "config.json").exists() else ["run", "--out", str(folder), *options]
    done = subprocess.run([sys.executable, "-m", "ddpo", *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
    store = RunStore(folder)
    made, wanted = max(store.checkpoints(), default=0), store.config.rounds
    store.close()
    if made < wanted:
        raise SystemExit(f"{folder}: stopped after {made} of {wanted} rounds. The same command goes on with it.")


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as ``python -m ddpo run`` takes them."""
    found = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        found += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return found


@torch.no_grad()
def kl_to_base(policy: Policy, prompts: Sequence[str], count: int, microbatch: int = 16) -> Tensor:
    """Each step's KL divergence from the base model's, in nats, along the policy's own trajectories of fixed seeds, (count, steps).

    Steps are Gaussians of equal std, so KL(p || p_base) = ‖μ - μ_base‖² / 2σ² is exact at each latent, and its sum over a trajectory's steps has the
    KL of the two distributions of trajectories as its mean (chain rule), which bounds that of images (Fan et al. 2023, arXiv 2305.16381).
    It depends on the sampler: σ grows with η, so the same change of the prediction is about 100 times as many nats at η 0.1 as at η 1. A step
    without noise counts 0. The i-th trajectory has the i-th prompt, in turn. Ask a policy in float32: in bfloat16 two predictions that hardly differ
    are rounded apart, which at η 0.1 alone makes more than ten nats a step.
    """
    kl = torch.zeros(count, len(policy.schedule))
    for batch in batches(count, microbatch):
        chosen = [prompts[i % len(prompts)] for i in batch]
        trajectory, _ = rollout(policy, chosen, [derive_seed("probe", i) for i in batch])
        condition = policy.encode(chosen)
        for i in policy.schedule.actions:
            x_t, index = trajectory.latents[:, i].to(policy.device), torch.full((len(batch),), i, device=policy.device)
            own = policy.step(x_t, index, condition)
            with policy.base():
                base = policy.step(x_t, index, condition)
            kl[batch.start : batch.stop, i] = own.kl(base).cpu()
    return kl


def lines_of(file: Path) -> list[dict[str, Any]]:
    """What has been measured, a line of JSON each; none where there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def add_line(file: Path, found: dict[str, Any]) -> None:
    """Write one measurement behind the others, and say it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(found, ensure_ascii=False) + "\n")
    print(json.dumps(found, ensure_ascii=False), flush=True)


def rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


def panels(count: int) -> tuple[Any, list[Any]]:
    """A figure of ``count`` panels side by side whose SVG is the same each time it is drawn."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "ddpo", "font.size": 9, "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False}
    )
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(3.4 * count + (3.0 if count == 1 else 0), 3.4), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def band(axis: Any, x: Sequence[float], mean: Sequence[float], error: Sequence[float], label: str) -> Any:
    """A curve and its standard errors as a band; returns the colour."""
    (curve,) = axis.plot(x, mean, marker="o", markersize=3, linewidth=1.6, label=label)
    axis.fill_between(x, [m - e for m, e in zip(mean, error, strict=True)], [m + e for m, e in zip(mean, error, strict=True)], alpha=0.2)
    return curve.get_color()


def save_figure(figure: Any, file: Path) -> None:
    import matplotlib.pyplot as plt

    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata=dict(Date=None))
    plt.close(figure)
