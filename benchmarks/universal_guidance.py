"""Guidance instead of training: ``python -m benchmarks.universal_guidance`` (Black et al. 2023, App. B) on the pocket's aesthetic predictor.

Universal guidance (Bansal et al. 2023, arXiv 2302.07121) changes no weight. At each denoising step it asks a differentiable score r of the picture
that is coming, and moves the predicted noise against the score's gradient (their Algorithm 1; their loss ℓ is -r)::

    x̂_0 = (x_t - √(1-ᾱ_t) ε) / √ᾱ_t            the clean latent that the model expects; ε is its prediction, guided by the prompt
    ε'  = ε - s √(1-ᾱ_t) ∇_{x_t} r(decode(x̂_0))  forward guidance; the gradient goes through the denoiser
    ε'' = ε' - √(ᾱ_t / (1-ᾱ_t)) Δ               backward guidance, if wanted: Δ from m steps of gradient ascent on r(decode(x̂_0 + Δ)), x̂_0 as of ε'
    x_s = the DDIM step of the project, by ε''
    x_t = √(ᾱ_t/ᾱ_s) x_s + √(1-ᾱ_t/ᾱ_s) ε_new    self-recurrence: k - 1 times the step is undone and made again

The signs and √(1-ᾱ_t) are also those of the authors' code (github.com/arpitbansal297/Universal-Guided-Diffusion, ddim_with_grad.py). All of a run is
in float32, the score's network too. With s = 0 it is plain DDIM with the same noise, so pictures are paired with the base's.

Each setting is one line of ``benchmarks/universal_guidance.jsonl`` (``--results``) with its configuration, and is not made again. Beside the guided
pictures stand the base's and those of a DDPO run after a quarter, half and all of its rounds (``--run``; one that is not there yet is made by the
preset ``aesthetic``, and one with another reward or sampler is refused); the lines' titles have a hash of the run's settings and seed. ``--report``
prints the table and draws proxy and gold over the guidance's strength into ``docs/``. Seconds are of making the pictures, beside whatever else the
machine was doing: run it alone for them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import rewards
from benchmarks.common import (
    DOCS,
    add_line,
    animal_accuracy,
    asked,
    band,
    effective,
    finish_run,
    flags,
    judge_name,
    judged_before,
    lines_of,
    mean_and_error,
    panels,
    policy_at,
    rounded,
    same_settings,
    save_figure,
    short_hash,
)
from ddpo.config import RunConfig, prompt_sets
from ddpo.diffusion import Schedule
from ddpo.evaluate import held_out_images
from ddpo.policy import Condition, StableDiffusionPolicy
from ddpo.presets import presets
from ddpo.rollout import batches, derive_seed, noise_of
from ddpo.store import RunStore
from rewards.aesthetic import Aesthetic
from rewards.base import Sample

RESULTS = Path(__file__).with_suffix(".jsonl")
PixelScore = Callable[[Tensor], Tensor]
"""From pixels (n, 3, h, w) in [0, 1] to scores (n,), differentiable."""


@dataclass(frozen=True)
class Guidance:
    """How pictures are guided."""

    strength: float
    """s, the weight of the score's gradient."""
    repeats: int = 1
    """k, how many times each step is made."""
    backward_steps: int = 0
    """m, how many steps of gradient ascent the clean latent gets; 0 is forward guidance alone."""
    backward_rate: float = 0.0
    """The size of such a step: each picture's gradient is scaled to this root mean square."""


SETTINGS = (
    *(Guidance(s) for s in (1.0, 3.0, 10.0, 30.0, 100.0)),
    Guidance(3.0, repeats=4),
    Guidance(3.0, backward_steps=3, backward_rate=0.1),
)


def aesthetic_of_pixels(reward: Aesthetic) -> PixelScore:
    """The aesthetic reward as a differentiable function. What the image processor does (scale to [0, 1], standardise) is linear; a picture of another
    size than the tower's, which the reward would resize, is refused."""
    model, _, processor = reward.clip.parts
    mean, std = (torch.tensor(values, device=reward.clip.device)[:, None, None] for values in (processor.image_mean, processor.image_std))
    side = model.config.vision_config.image_size

    def score(pixels: Tensor) -> Tensor:
        if pixels.shape[-2:] != (side, side):
            raise ValueError(f"The pictures are {tuple(pixels.shape[-2:])}; the aesthetic predictor's tower sees {side} × {side}.")
        seen = model.vision_model(pixel_values=((pixels - mean) / std).to(reward.clip.dtype))
        if reward.head.on_states:
            features = torch.cat([seen.pooler_output, seen.last_hidden_state[:, 1:].mean(1)], 1)
        else:
            features = torch.nn.functional.normalize(model.visual_projection(seen.pooler_output), dim=1)
        found: Tensor = reward.head(features.float())
        return found

    return score


def pixels_of(policy: StableDiffusionPolicy, latents: Tensor) -> Tensor:
    """Clean latents decoded to pixels in [0, 1] as ``policy.decode`` does it, but for the rounding to 256 levels, with gradient."""
    decoded: Tensor = policy.vae.decode(latents / policy.vae.config.scaling_factor, return_dict=False)[0]
    return (decoded / 2 + 0.5).clamp(0, 1)


def guided_noise(policy: StableDiffusionPolicy, score: PixelScore, x_t: Tensor, i: int, condition: Condition, how: Guidance) -> Tensor:
    """ε'' at step ``i`` for latents (n, c, h, w), shaped like them."""
    schedule = policy.schedule
    index = torch.full((len(x_t),), i, device=x_t.device)
    alpha = schedule.alpha.to(x_t.device)[index][:, None, None, None]
    with torch.set_grad_enabled(how.strength != 0):
        x_in = x_t.detach().requires_grad_(how.strength != 0)
        noise = policy.predict(x_in, schedule.timesteps.to(x_t.device)[index], condition)
        if how.strength:
            clean = schedule.clean_and_noise(x_in, noise, alpha)[0]
            gradient = torch.autograd.grad(score(pixels_of(policy, clean)).sum(), x_in)[0]
            noise = noise.detach() - how.strength * (1 - alpha).sqrt() * gradient
    if how.backward_steps:
        clean = schedule.clean_and_noise(x_t, noise, alpha)[0]
        noise = noise - (alpha / (1 - alpha)).sqrt() * ascent(policy, score, clean, how)
    return noise


def ascent(policy: StableDiffusionPolicy, score: PixelScore, clean: Tensor, how: Guidance) -> Tensor:
    """Δ of backward guidance, shaped like ``clean``: steps of plain gradient ascent from 0, each of a fixed root mean square for each picture."""
    delta = torch.zeros_like(clean)
    for _ in range(how.backward_steps):
        with torch.enable_grad():
            moved = (clean + delta).detach().requires_grad_(True)
            gradient = torch.autograd.grad(score(pixels_of(policy, moved)).sum(), moved)[0]
        size = (gradient**2).mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        delta = delta + how.backward_rate * gradient / size
    return delta


def renoised(schedule: Schedule, i: int, x_s: Tensor, noise: Tensor) -> Tensor:
    """Step ``i`` undone by the forward process: x_t = √(ᾱ_t/ᾱ_s) x_s + √(1-ᾱ_t/ᾱ_s) noise."""
    kept = (schedule.alpha[i] / schedule.alpha_prev[i]).to(x_s.device)
    return kept.sqrt() * x_s + (1 - kept).sqrt() * noise


@torch.no_grad()
def guided_latents(policy: StableDiffusionPolicy, score: PixelScore, prompts: Sequence[str], seeds: Sequence[int], how: Guidance) -> Tensor:
    """Clean latents of a batch, (n, c, h, w): the noise of ``ddpo.rollout.rollout`` for the same seeds, and more of it where steps are repeated."""
    schedule, condition = policy.schedule, policy.encode(prompts)
    if schedule.prediction_type != "epsilon":
        raise ValueError("This benchmark guides models that predict noise.")
    noise = torch.stack([noise_of(seed, len(schedule), policy.latent_shape) for seed in seeds], dim=1).to(policy.device)
    again = [torch.Generator().manual_seed(derive_seed("again", seed)) for seed in seeds]

    def more() -> Tensor:
        return torch.stack([torch.randn(policy.latent_shape, generator=each) for each in again]).to(policy.device)

    x_t = noise[0]
    for i in range(len(schedule)):
        index = torch.full((len(x_t),), i, device=x_t.device)
        for _ in range(how.repeats - 1):
            x_s = schedule.step(x_t, index, guided_noise(policy, score, x_t, i, condition, how)).sample(more())
            x_t = renoised(schedule, i, x_s, more())
        x_t = schedule.step(x_t, index, guided_noise(policy, score, x_t, i, condition, how)).sample(noise[i + 1])
    return x_t


def guided_images(
    policy: StableDiffusionPolicy, score: PixelScore, config: RunConfig, count: int, how: Guidance
) -> tuple[list[str], list[Image.Image]]:
    """Guided pictures of the held-out prompts and seeds."""
    prompts = [config.prompts[i % len(config.prompts)] for i in range(count)]
    seeds = [derive_seed("held out", i) for i in range(count)]
    images: list[Image.Image] = []
    for batch in batches(count, config.microbatch):
        images += policy.decode(guided_latents(policy, score, [prompts[i] for i in batch], [seeds[i] for i in batch], how))
    return prompts, images


def the_reward() -> Aesthetic:
    """The pocket's aesthetic predictor in float32, on a GPU as well."""
    found = rewards.load("aesthetic", "pocket", precision="fp32")
    assert isinstance(found, Aesthetic)
    return found


def described(prompts: list[str], images: list[Image.Image], seconds: float) -> dict[str, Any]:
    """Proxy, gold, animals and seconds a picture."""
    samples = [Sample(i, prompt, image) for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))]
    found: dict[str, Any] = {}
    for name, reward in (("proxy", the_reward()), ("gold", rewards.load("image_statistics"))):
        found[name], found[f"{name}_error"] = rounded(mean_and_error([score.value or 0.0 for score in reward.score(samples)]))
    judged = dict(animals=round(animal_accuracy(images, prompts), 4), judge=judge_name())
    return found | judged | dict(seconds_an_image=round(seconds / len(images), 3))


def report(lines: Sequence[dict[str, Any]], file: Path) -> None:
    """The table in Markdown, and the curve of the settings that differ in strength alone."""
    print("| | proxy | gold | animal right | seconds a picture |\n|---|---|---|---|---|")
    for line in lines:
        figures = f"{line['proxy']:.2f} ± {line['proxy_error']:.2f} | {line['gold']:.2f} ± {line['gold_error']:.2f} | {line['animals']:.2f}"
        print(f"| {name_of(line)} | {figures} | {line['seconds_an_image']:.2f} |")
    print(f"\n{judged_before(lines)}")
    curve = sorted((line for line in lines if strength_of(line) is not None), key=lambda line: strength_of(line) or 0.0)
    if not curve:
        return
    figure, axes = panels(1)
    strengths = [strength_of(line) or 0.0 for line in curve]
    for name, label in (("proxy", "proxy: aesthetic"), ("gold", "gold: image_statistics")):
        colour = band(axes[0], strengths, [line[name] for line in curve], [line[f"{name}_error"] for line in curve], label)
        for line in lines:
            if is_ddpo(line):
                axes[0].axhline(line[name], color=colour, linestyle=":", linewidth=1.2)
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].set(xlabel="strength of guidance (dotted: DDPO, no guidance)", ylabel="points", xlim=(0, strengths[-1]))
    axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, file)


BASE = "base model"


def strength_of(line: dict[str, Any]) -> float | None:
    """The strength of forward guidance alone, 0 for the base; None for other lines."""
    if line["title"] == BASE:
        return 0.0
    how = line["guidance"]
    return float(how["strength"]) if how and how["repeats"] == 1 and how["backward_steps"] == 0 else None


def title_of(how: Guidance) -> str:
    more = (f", each step {how.repeats} times" if how.repeats > 1 else "") + (
        f", {how.backward_steps} backward steps of {how.backward_rate:g}" if how.backward_steps else ""
    )
    return f"universal guidance, s = {how.strength:g}{more}"


def name_of(line: dict[str, Any]) -> str:
    """What a line is called in the table: the first lines' titles did not say all of their settings."""
    return title_of(Guidance(**line["guidance"])) if line["guidance"] else str(line["title"])


def is_ddpo(line: dict[str, Any]) -> bool:
    return line["guidance"] is None and line["title"] != BASE


def run_name(config: RunConfig) -> str:
    """What a DDPO run is called: a hash of its settings and its seed."""
    return f"DDPO {short_hash(json.dumps(effective(config) | dict(seed=config.seed), sort_keys=True))}"


RUN = dict(preset="aesthetic", held_out_images=0)
"""The options of the DDPO run that is made where there is none."""
SAMPLER = ("model", "revision", "model_config", "resolution", "reward", "reward_models", "steps", "guidance", "eta")
"""What a DDPO run must share with the preset, to be compared with guided pictures."""


def check_run(config: RunConfig, folder: Path) -> None:
    """Refuse a run that is no comparison.

    Raises:
        SystemExit: its reward or sampler is another one.
    """
    wanted = asked(flags(RUN))
    if other := [name for name in SAMPLER if getattr(config, name) != getattr(wanted, name)]:
        said = ", ".join(f"{name} is {getattr(config, name)} and not {getattr(wanted, name)}" for name in other)
        raise SystemExit(f"The run in {folder} cannot be compared with guided pictures: {said}. Name another with --run.")


def known(line: dict[str, Any], title: str, guidance: dict[str, Any] | None, key: dict[str, Any], config: RunConfig) -> bool:
    """Whether a line is of these pictures: of the same guidance, or of the base or run of that title, with the same configuration.

    The first lines do not hold theirs, and do not say which run they are of: they count for the run that was then made, the preset's of seed 0.
    """
    if {name: line[name] for name in key} != key or line["guidance"] != guidance or not same_settings(line, config):
        return False
    usual = line.get("config") is None and run_name(config) == run_name(asked(flags(RUN)))
    return guidance is not None or line["title"] == (title.replace(run_name(config), "DDPO") if usual else title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("build/tasks/aesthetic-0"), help="folder of a DDPO run on the reward aesthetic")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of lines")
    parser.add_argument("--prompts", default="animals", help="a prompt set, or one prompt, such as the paper's: a wolf")
    parser.add_argument("--images", type=int, default=90, help="held-out pictures")
    parser.add_argument("--strengths", type=float, nargs="+", help="forward guidance of these strengths only")
    parser.add_argument("--no-run", action="store_true", help="leave the DDPO run out")
    parser.add_argument("--report", action="store_true", help="print the table and draw the curve of what has been measured")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the report draws")
    options = parser.parse_args()
    key = dict(prompts=options.prompts, images=options.images)
    config = presets()["aesthetic"].config.with_changes(prompts=prompt_sets().get(options.prompts, (options.prompts,)), precision="fp32")
    if options.report:
        found = lines_of(options.results)
        lines = [line for line in found if {name: line[name] for name in key} == key and (is_ddpo(line) or same_settings(line, config))]
        print(f"Prompts: {options.prompts}; {options.images} pictures.")
        if len(found) > len(lines):
            print(f"{len(found) - len(lines)} lines of other options or settings are left out.")
        if old := sum(line.get("config") is None for line in lines):
            print(f"{old} lines do not say what else was set: the preset's sampler of their time, and --run's run.")
        print()
        usual = options.prompts == parser.get_default("prompts")
        report(lines, options.docs / f"universal-guidance{'' if usual else '-' + short_hash(options.prompts)}.svg")
        return
    score = aesthetic_of_pixels(the_reward())
    policy = StableDiffusionPolicy.load(config)
    policy.encode(config.prompts)

    def write(title: str, guidance: dict[str, Any] | None, config: RunConfig, make: Callable[[], tuple[list[str], list[Image.Image]]]) -> None:
        if any(known(line, title, guidance, key, config) for line in lines_of(options.results)):
            return
        started = time.perf_counter()
        prompts, images = make()
        found = described(prompts, images, time.perf_counter() - started)
        add_line(options.results, dict(title=title, guidance=guidance, **key, config=effective(config), seed=config.seed, **found))

    write(BASE, None, config, lambda: held_out_images(policy, config, True, options.images))
    for how in [Guidance(s) for s in options.strengths] if options.strengths else SETTINGS:
        write(title_of(how), asdict(how), config, lambda how=how: guided_images(policy, score, config, options.images, how))  # type: ignore[misc]
    if not options.no_run:
        if (options.run / "config.json").exists():
            check_run(RunConfig.load(options.run / "config.json"), options.run)
        finish_run(options.run, flags(RUN))
        store = RunStore(options.run)
        last, run = max(store.checkpoints()), store.config
        store.close()
        for number in sorted({last // 4, last // 2, last} - {0}):
            tuned = policy_at(options.run, number, precision="fp32")
            tuned.encode(config.prompts)
            title = f"{run_name(run)}, {number} rounds, no guidance"
            write(title, None, run, lambda tuned=tuned: held_out_images(tuned, config, False, options.images))  # type: ignore[misc]


if __name__ == "__main__":
    main()
