"""HERO's recipe (Hiranaka et al., ICLR 2025, arXiv 2410.05116) in the studio's own loop, to be compared with: :mod:`benchmarks.hundred_ratings`.

A person says of each image of a round whether it is good, and which is the best. A small network learns from the round's latents by triplet loss
(anchor the best, positives the good ones, negatives the others) to put what is liked near to the best one; an image's reward is how near it comes,
(1 + cosine)/2, standardised over the round. DDPO learns from it by some of the steps only. The next round begins from the noises of the best image
(half of it) and of good ones, √(1 − ε²) z + ε n.

Figures are those of the authors' published code (their ``config/hydra_configs``): 500 epochs of Adam at 1e-5 a round, margin 0.5, ε 0.1, learning
rate 1e-3, LoRA of rank 4, eight images an optimiser step. The network's reward is, as theirs, by the convolutional part; the head behind it is for
learning only. What differs: a round has 16 images, as the other ways have, and not 64 of one prompt. Five of ten steps are learned from, drawn anew
for each image: the code draws five of 50, where the paper speaks of the least noisy ones. A cosine is an image's own (their code takes it over the
batch), of x_0 (they take the latent before the last step).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import rewards
from ddpo.config import RunConfig
from ddpo.control import Control
from ddpo.crew import Crew
from ddpo.engine import Engine, Source
from ddpo.policy import Policy
from ddpo.rollout import derive_seed, noise_of
from ddpo.store import RunStore
from ddpo.taster import Taster
from ddpo.trainer import Trainer
from rewards.base import Score

SETTINGS: dict[str, Any] = dict(
    objective="ddpo-is", advantage="round", guidance_in_training=True, eta=1.0, shared_start=False, skip_last_steps=0,
    trained_fraction=0.5, step_weights="equal", learning_rate=1e-3, lora_rank=4, images_per_round=16, images_per_update=8, ahead=0,
)  # fmt: skip
"""What HERO sets of a run, at ten denoising steps."""
EPOCHS, LEARNING_RATE, MARGIN = 500, 1e-5, 0.5
NOISE = 0.1
"""ε: how much of a start is new."""
BEST = 0.5
"""The share of a round that starts from the best image's noise."""


class Chooser(Protocol):
    """Somebody who also says which image of a round is the best."""

    best: dict[int, int]
    """Round to position, in rounds in which something is better than all before."""


class Encoder(nn.Module):
    """Latents (n, c, h, w) to codes (n, 2048)."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(2 * channels, 4 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4 * channels, 8 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(8 * channels * (height // 8) * (width // 8), 2048), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 512))

    def forward(self, latents: Tensor) -> Tensor:
        found: Tensor = self.layers(latents)
        return found


def distance(x: Tensor, y: Tensor) -> Tensor:
    """1 less the cosine's place between −1 and 1."""
    return 1 - (nn.functional.cosine_similarity(x, y, dim=-1) + 1) / 2


class HeroEngine(Engine):
    """Starts a round from the noises that led to what was liked."""

    liked: Tensor | None = None
    """(m, c, h, w): the noises of good images and, last, of the best."""

    def liked_of(self, prompt: str) -> Tensor | None:
        """What an image of a prompt may start from: here the same for all."""
        return self.liked

    def noises(self, number: int, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        noise, seeds_of_round = super().noises(number, prompts, seeds), self.draw_seeds(number)
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if (liked := self.liked_of(prompt)) is None:
                continue
            good, best = liked[:-1], liked[-1]
            position, every = seeds_of_round.index(seed), round(1 / BEST)  # of each prompt as many
            chosen = good[derive_seed(seed, "hero") % len(good)] if len(good) and position % every else best
            fresh = noise_of(derive_seed(seed, "hero noise"), 0, self.policy.latent_shape)[0]
            noise[0, i] = (1 - NOISE**2) ** 0.5 * chosen + NOISE * fresh
        return noise


class HeroTaster(Taster):
    """Learns a round's rewards from what a person said of it, once."""

    def __init__(self, config: RunConfig, store: RunStore, engine: HeroEngine, chooser: Chooser) -> None:
        super().__init__(config, store)
        self.engine, self.chooser = engine, chooser
        torch.manual_seed(derive_seed(config.seed, "hero"))
        self.encoder = Encoder(*engine.policy.latent_shape)
        self.optimiser = torch.optim.Adam(self.encoder.parameters(), lr=LEARNING_RATE)
        self.loss = nn.TripletMarginWithDistanceLoss(distance_function=distance, margin=MARGIN)
        self.best: Tensor | None = None  # (1, c, h, w), the best image's latent
        self.best_noise: Tensor | None = None
        self.rewards: dict[int, dict[int, Score]] = {}

    def learned(self, number: int) -> dict[int, Score]:
        if number not in self.rewards:
            self.rewards[number] = self.learn(number)
        return self.rewards[number]

    def learn(self, number: int) -> dict[int, Score]:
        rows, said = self.store.samples(number), self.store.scores(number, "human")
        sampled = self.engine.trajectory_here(number)[0].latents
        noises, latents = sampled[:, 0], sampled[:, -1]
        good = [i for i, row in enumerate(rows) if row.id in said and (said[row.id].value or 0.0) > 0]
        bad = [i for i, row in enumerate(rows) if row.id in said and (said[row.id].value or 0.0) < 0]
        if (position := self.chooser.best.get(number)) is not None:
            self.best, self.best_noise = latents[position : position + 1], noises[position]
            good = [i for i in good if i != position]
        if self.best is None or self.best_noise is None:  # nothing was ever good
            return {row.id: Score(0.0) for row in rows}
        if good and bad:
            self.train(self.best, latents[good], latents[bad], derive_seed(self.config.seed, number, "hero"), len(rows))
        self.engine.liked = torch.cat([noises[good], self.best_noise[None]])
        with torch.no_grad():
            near = 1 - distance(self.encoder(latents), self.encoder(self.best))
        return {row.id: Score(float(value)) for row, value in zip(rows, near, strict=True)}

    def train(self, best: Tensor, good: Tensor, bad: Tensor, seed: int, count: int) -> None:
        """An epoch draws as many triplets as the round has images."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(EPOCHS):
            positive = good[torch.randint(len(good), (count,), generator=generator)]
            negative = bad[torch.randint(len(bad), (count,), generator=generator)]
            codes = self.encoder.head(self.encoder(torch.cat([best.expand(count, -1, -1, -1), positive, negative])))
            self.optimiser.zero_grad()
            self.loss(*codes.chunk(3)).backward()
            self.optimiser.step()


class HeroTrainer(Trainer):
    """The studio's loop by HERO's recipe. The run must be made in one go: what the network learned is not kept."""

    def __init__(
        self, config: RunConfig, store: RunStore, policy: Policy, control: Control, source: Source, crew: Crew | None = None, *, chooser: Chooser
    ) -> None:
        super().__init__(config, store, policy, control, source, crew)
        self.engine: HeroEngine = HeroEngine(config, store.folder, policy, source, self.crew, control.report)
        self.taster = HeroTaster(config, store, self.engine, chooser)


class ReusingEngine(HeroEngine):
    """Starts an image from the noises that led to what was liked of its own prompt: other prompts' say little of it."""

    def __init__(self, *given: Any) -> None:
        self.of_prompt: dict[str, Tensor] = {}
        super().__init__(*given)

    def liked_of(self, prompt: str) -> Tensor | None:
        return self.of_prompt.get(prompt)


class NoiseReuseTrainer(Trainer):
    """The studio's loop with one thing of HERO's: an image starts from the noises of the better half of its prompt's images in the last round that
    had some, by what was learned from. The run must be made in one go."""

    def __init__(
        self, config: RunConfig, store: RunStore, policy: Policy, control: Control, source: Source = rewards.load, crew: Crew | None = None
    ) -> None:
        super().__init__(config, store, policy, control, source, crew)
        self.engine: ReusingEngine = ReusingEngine(config, store.folder, policy, source, self.crew, control.report)

    def update(self, number: int) -> None:
        super().update(number)
        said, rows = self.taster.learned(number), self.store.samples(number)
        noises = self.engine.trajectory_here(number)[0].latents[:, 0]
        known: dict[str, list[tuple[float, int]]] = {}
        for i, row in enumerate(rows):
            if row.id in said and (value := said[row.id].value) is not None:
                known.setdefault(row.prompt, []).append((value, i))
        for prompt, found in known.items():
            if len(found) > 1:
                self.engine.of_prompt[prompt] = noises[[i for _, i in sorted(found)[len(found) // 2 :]]]
