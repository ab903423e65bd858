"""What does an image's score see of the sampler's noise? ``python -m benchmarks.linearity``, on the pocket model and JPEG size.

A policy gradient sees the part of the score that is linear in the noise, and takes the rest for chance. All images of a prompt have the same x_T here
and differ by the noise of the denoising steps; each η gets the same noise.

``--etas``: the scores' standard deviation within a prompt, and their correlation with those at the smallest η, which are linear if any are (a
JPEG file is a whole number of bytes, so below 0.05 rounding shows).
``--share-at``: what part of the scores' variance at that η the noise of each step alone makes.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

from ddpo.diffusion import Schedule
from ddpo.models import ddim
from ddpo.policy import StableDiffusionPolicy
from ddpo.presets import presets
from ddpo.rollout import denoise, derive_seed, noise_of
from rewards.jpeg import size_kb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--images", type=int, default=16, help="images of each prompt")
    parser.add_argument("--etas", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0])
    parser.add_argument("--share-at", type=float, default=0.1)
    options = parser.parse_args()
    config = presets()["compress"].config
    policy = StableDiffusionPolicy.load(config)
    steps, names = config.steps, config.prompts[:: max(1, len(config.prompts) // options.prompts)][: options.prompts]

    def noise(prompt: str, *kind: object) -> Tensor:
        drawn = [noise_of(derive_seed("linearity", prompt, *kind, i), steps, policy.latent_shape) for i in range(options.images)]
        found = torch.stack(drawn, 1)
        found[0] = noise_of(derive_seed("linearity", prompt), 0, policy.latent_shape)[0]
        return found

    def scores(eta: float, only: int | None = None) -> Tensor:
        """Standing of each image within its prompt, (prompts, images): with all steps' noise, or one step's on top of what all share."""
        policy.schedule = Schedule.ddim(ddim(policy.pipeline), steps, eta)
        rows = []
        for prompt in names:
            drawn = noise(prompt)
            if only is not None:
                shared = drawn[:, :1].expand_as(drawn).clone()
                shared[only + 1] = drawn[only + 1]
                drawn = shared
            pictures = denoise(policy, [prompt] * options.images, drawn)[1]
            rows.append(torch.tensor([size_kb(picture) for picture in pictures], dtype=torch.float64))
        found = torch.stack(rows)
        return found - found.mean(1, keepdim=True)

    smallest: Tensor | None = None
    for eta in sorted(options.etas):
        found = scores(eta)
        smallest = found if smallest is None else smallest
        correlation = torch.nn.functional.cosine_similarity(found, smallest, dim=1).mean()
        print(json.dumps(dict(eta=eta, std=round(float(found.std(1).mean()), 4), correlation=round(float(correlation), 2))), flush=True)
    whole = scores(options.share_at).square().mean()
    for step in range(steps):
        share = float(scores(options.share_at, only=step).square().mean() / whole)
        print(json.dumps(dict(eta=options.share_at, step=step, share=round(share, 3))), flush=True)


if __name__ == "__main__":
    main()
