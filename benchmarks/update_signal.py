"""How much of an update is signal? ``python -m benchmarks.update_signal``: one update from many images, and the same with shuffled scores.

At the base model of the pocket (a fresh adapter) each of n images' gradient Σ_t w_t ∇ log p(x_t-1 | x_t) is computed once. An update is a sum of
them, each times its image's advantage by JPEG compressibility: ``sgd``; or AdamW's path through them in groups of 16: ``adam``; or with the empirical
Fisher matrix in front, (F + λ)⁻¹, by its kernel form: ``natural``. It is made as long as is needed for a gain of about ``--gain`` percent of the
held-out pictures' size. Then the scores are shuffled, within groups of 32 as a round does, and the same update is made again, ``--shams`` times.
``ratio`` is the shams' root
mean square over the gain: what chance alone does, in units of what is learned. It falls with the root of the number of images.

Takes about 0.1 s an image for sampling, 0.3 s for its gradient, and 8 s a sham, on two cores; and 2.4 MB of memory an image at rank 64.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from ddpo.advantage import group_advantages
from ddpo.config import RunConfig
from ddpo.evaluate import held_out_images
from ddpo.policy import StableDiffusionPolicy
from ddpo.presets import presets
from ddpo.rollout import batches, derive_seed, rollout
from rewards.jpeg import size_kb

BOARD = 32


def learned(policy: StableDiffusionPolicy) -> list[torch.nn.Parameter]:
    """The weights that have a gradient at a fresh adapter."""
    return [p for name, p in policy.parameters().items() if "lora_B" in name]


def sample(policy: StableDiffusionPolicy, config: RunConfig, images: int) -> tuple[list[str], list[float], Tensor]:
    """Prompts, one for each group of images; scores; and each image's gradient, (images, weights)."""
    k = config.images_per_prompt
    prompts = [config.prompts[i // k % len(config.prompts)] for i in range(images)]
    seeds = [derive_seed("update signal", i) for i in range(images)]
    starts = [derive_seed("update signal start", i // k) for i in range(images)]
    latents, scores = [], []
    for b in batches(images, 16):
        found, pictures = rollout(policy, [prompts[i] for i in b], [seeds[i] for i in b], [starts[i] for i in b] if config.shared_start else None)
        latents.append(found.latents)
        scores += [-size_kb(picture) for picture in pictures]
    conditions, weights = policy.encode(prompts), learned(policy)
    steps = torch.tensor(list(config.trained_steps))
    balance = 1 / policy.schedule.gradient_scale[steps]
    balance = balance / balance.mean()
    rows = torch.empty(images, sum(p.numel() for p in weights))
    for i, x in enumerate(torch.cat(latents)):
        gaussian = policy.step(x[steps], steps, conditions[torch.full((len(steps),), i)])
        gradient = torch.autograd.grad((balance * gaussian.log_prob(x[steps + 1])).sum(), weights)
        rows[i] = torch.cat([g.flatten() for g in gradient])
    return [f"{prompt} {i // k}" for i, prompt in enumerate(prompts)], scores, rows


def sgd(advantages: Tensor, gradients: Tensor) -> Tensor:
    return advantages @ gradients


def adam(advantages: Tensor, gradients: Tensor) -> Tensor:
    """AdamW's path, but for its weight decay, if the gradients did not change on the way."""
    path = torch.nn.Parameter(torch.zeros(gradients.shape[1]))
    optimiser = torch.optim.AdamW([path], lr=1.0, weight_decay=0.0)
    for a, g in zip(advantages.split(16), gradients.split(16), strict=True):
        path.grad = -(a @ g) / len(a)
        torch.nn.utils.clip_grad_norm_([path], 1.0)
        optimiser.step()
    return path.detach()


def natural(advantages: Tensor, gradients: Tensor, damping: float = 0.3) -> Tensor:
    kernel = gradients @ gradients.T
    kernel = kernel / kernel.diagonal().mean() + damping * torch.eye(len(kernel))
    solved: Tensor = torch.linalg.solve(kernel, advantages)
    return solved @ gradients


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = dict(sgd=sgd, adam=adam, natural=natural)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--held-out", type=int, default=96)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--shared-start", action="store_true")
    parser.add_argument("--methods", nargs="+", default=["sgd"], choices=METHODS)
    parser.add_argument("--shams", type=int, default=8)
    parser.add_argument("--gain", type=float, default=6.0)
    options = parser.parse_args()
    settings = dict(lora_rank=options.rank, eta=options.eta, shared_start=options.shared_start, skip_last_steps=2)
    config = presets()["compress"].config.with_changes(guidance_in_training=True, **settings)
    policy = StableDiffusionPolicy.load(config)
    groups, scores, gradients = sample(policy, config, options.images)
    weights = learned(policy)
    sizes = [p.numel() for p in weights]

    def held_out(update: Tensor) -> float:
        with torch.no_grad():
            for p, part in zip(weights, update.split(sizes), strict=True):
                p.copy_(part.view_as(p))
        return statistics.mean(size_kb(picture) for picture in held_out_images(policy, config, base=False, count=options.held_out)[1])

    base = held_out(torch.zeros(sum(sizes)))
    for name in options.methods:
        method = METHODS[name]
        update = method(group_advantages(scores, groups, config.advantage_clip), gradients)
        length, gain = 1.0, 0.0
        for _ in range(8):
            gain = 100 * (base - held_out(update * length / update.norm())) / base
            if 0.7 * options.gain < gain < 1.4 * options.gain:
                break
            length *= min(3.0, max(0.4, options.gain / max(gain, 0.3)))
        else:
            raise SystemExit(f"{name}: no length of the update gains about {options.gain} %.")
        shams = []
        for number in range(options.shams):
            generator = torch.Generator().manual_seed(number)
            order = [i for b in batches(options.images, BOARD) for i in (torch.randperm(len(b), generator=generator) + b.start).tolist()]
            sham = method(group_advantages([scores[i] for i in order], groups, config.advantage_clip), gradients)
            shams.append(100 * (base - held_out(sham * length / update.norm())) / base)
        size = statistics.mean(s**2 for s in shams) ** 0.5
        report = dict(method=name, rank=options.rank, eta=options.eta, shared_start=options.shared_start, images=options.images)
        report |= dict(length=round(length, 2), gain=round(gain, 2), shams=[round(s, 2) for s in shams], ratio=round(size / gain, 3))
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
