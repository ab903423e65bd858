"""What the benchmarks share: a run made and its policy at a round, held-out pictures judged, the distance from the base, lines and curves.

Lines. A line of results holds the configuration of its run (:func:`effective`), so that settings which come from a preset are part of what it says;
a line counts as known only where that is what would be run now (:func:`same_settings`). The first lines did not have it: they count by what they say.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpo import monitor
from ddpo.__main__ import config_from, parser
from ddpo.checkpoint import load_result
from ddpo.config import ConfigError, RunConfig
from ddpo.evaluate import held_out_images
from ddpo.monitor import drawn
from ddpo.policy import Policy, StableDiffusionPolicy, fingerprint
from ddpo.rollout import batches, derive_seed, rollout
from ddpo.store import RunStore
from ddpo.trainer import PHASES
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


def precision_of(folder: Path) -> str:
    """What the run's networks are evaluated in on this machine, such as ``bfloat16``."""
    return str(policy_at(folder, 0).autocast or torch.float32).removeprefix("torch.")


def before_and_after(folder: Path, number: int, count: int, strength: float = 1.0) -> tuple[list[str], list[Image.Image], list[Image.Image]]:
    """Prompts, base pictures and pictures by a strength of what was trained, of the same held-out seeds."""
    store = RunStore(folder)
    config = store.config
    store.close()
    policy = policy_at(folder, number)
    prompts, base = held_out_images(policy, config, base=True, count=count)
    with policy.scaled(strength):
        return prompts, base, held_out_images(policy, config, base=False, count=count)[1]


def animal_accuracy(images: list[Image.Image], prompts: list[str]) -> float:
    """The share of pictures in which the judge sees the prompt's subject."""
    return float(np.mean([v["subject"] for v in judge_images(the_judge(), images, prompts)]))


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


def share_error(share: float, count: int) -> float:
    """The standard error of a share of so many pictures."""
    return float((share * (1 - share) / (count - 1)) ** 0.5) if count > 1 else 0.0


def plus_minus(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard error as text; a single value has no error."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if len(values) > 1 else "")


@cache
def the_judge() -> Judge:
    """The judge, loaded once."""
    return Judge.load()


@cache
def judge_name() -> str:
    """Tells this judge's weights from another's. Every line that it has judged holds it."""
    return fingerprint(the_judge())


def judged_before(lines: Sequence[Mapping[str, Any]]) -> str:
    """A sentence of how many lines another judge has judged; empty where none. The first lines do not name theirs."""
    count = sum(line.get("judge") != judge_name() for line in lines)
    return f"{count} of {len(lines)} lines were judged by an earlier judge." if count else ""


def asked(options: Sequence[str]) -> RunConfig:
    """The configuration that ``python -m ddpo run`` makes of these options.

    Raises:
        SystemExit: a setting cannot work.
    """
    try:
        return config_from(parser().parse_args(["run", "--out", "unused", *options]))
    except ConfigError as error:
        raise SystemExit(str(error)) from error


def effective(config: RunConfig) -> dict[str, Any]:
    """All settings of a run as ``config.json`` holds them, but for those that are no part of what is compared: its seed, its device, how much goes
    through the model at once, and what is watched."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    aside = (
        "seed",
        "device",
        "microbatch",
        "update_microbatch",
        "reuse_forward",
        "held_out_prompts",
        "watch_every",
        "watch_images",
        "watch_rewards",
        "on_alarm",
        "tracker",
    )
    return {name: value for name, value in found.items() if name not in aside}


def same_settings(line: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether a line is of a run with these settings, whatever its seed; a line of the first ones, which does not say, counts as one."""
    if line.get("config") is None:
        return True
    try:
        return effective(RunConfig.from_dict(dict(line["config"]))) == effective(config)
    except ConfigError:  # a setting that there no longer is
        return False


def unrecorded(lines: Sequence[Mapping[str, Any]]) -> str:
    """A sentence of the lines that do not hold their run's configuration; empty where all do."""
    seeds = sorted({line["seed"] for line in lines if line.get("config") is None})
    return f"Seed {', '.join(map(str, seeds))}: the line does not say what its run took from the preset." if seeds else ""


def short_hash(text: str) -> str:
    """Eight letters for a name that must differ where the options do."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_run(folder: Path, options: Sequence[str]) -> None:
    """The run of ``python -m ddpo run`` with these options; one that is in its folder already is gone on with, and nothing is done where it is over.

    Raises:
        SystemExit: the folder holds a run with other settings; the command failed, with its last words; or somebody stopped the run.
    """
    wanted = asdict(asked(options))
    if (folder / "config.json").exists():
        found = asdict(RunConfig.load(folder / "config.json"))
        if other := [name for name in wanted if name != "device" and found[name] != wanted[name]]:
            said = ", ".join(f"{name} is {str(found[name])[:60]} and not {str(wanted[name])[:60]}" for name in other)
            raise SystemExit(f"{folder} holds a run with other settings: {said}. Name another folder with --out, or delete this one.")
    finish_run(folder, options)


def finish_run(folder: Path, options: Sequence[str] = ()) -> None:
    """The run in the folder, gone on with as it is; or a new one with these options."""
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


def seconds_of(metrics: Mapping[str, list[tuple[int, float | None]]]) -> dict[str, float]:
    """A run's seconds by phase, over all of its rounds."""
    return {phase: round(sum(value or 0.0 for _, value in metrics[f"seconds_{phase}"]), 1) for phase in PHASES.values()}


def kl_to_base(policy: Policy, prompts: Sequence[str], count: int, microbatch: int = 16) -> Tensor:
    """Each step's KL divergence from the base model's, in nats, along the policy's own trajectories of fixed seeds, (count, steps)
    (:func:`ddpo.monitor.kl_to_base`).

    It depends on the sampler: σ grows with η, and the mean moves less per unit of the prediction. In the pocket model's schedule of 10 steps the same
    change of the prediction is 34 to 40 times as many nats at η 0.1 as at η 1, 80 times at the last step but one, 37 times over the three steps that
    the preset trains. That step but one holds most of the sum over all steps: 86 % at η 1 and 93 % at η 0.1 where the prediction changes equally at
    each, the last step 1 %. The i-th trajectory has the i-th prompt, in turn; where there are more prompts than trajectories, of a fixed draw among
    them (:func:`ddpo.monitor.drawn`). In bfloat16 trajectories are the policy's in bfloat16.
    """
    prompts = drawn(prompts, count)
    kl = torch.zeros(count, len(policy.schedule))
    for batch in batches(count, microbatch):
        chosen = [prompts[i % len(prompts)] for i in batch]
        trajectory, _ = rollout(policy, chosen, [derive_seed("probe", i) for i in batch])
        kl[batch.start : batch.stop] = monitor.kl_to_base(policy, trajectory, chosen, microbatch)
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


def band(axis: Any, x: Sequence[float], mean: Sequence[float], error: Sequence[float], label: str, style: str = "-") -> Any:
    """A curve and its errors as a band; returns the colour."""
    (curve,) = axis.plot(x, mean, marker="o", markersize=3, linewidth=1.6, linestyle=style, label=label)
    axis.fill_between(x, [m - e for m, e in zip(mean, error, strict=True)], [m + e for m, e in zip(mean, error, strict=True)], alpha=0.2)
    return curve.get_color()


def save_figure(figure: Any, file: Path) -> None:
    import matplotlib.pyplot as plt

    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata=dict(Date=None))
    plt.close(figure)
