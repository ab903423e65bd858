"""Tiny worlds for the tests."""

from __future__ import annotations

import colorsys
import json
import math
import random
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ddpo.config import RunConfig
from ddpo.files import write_images
from ddpo.records import MARKS
from ddpo.store import RunStore
from rewards.base import Score

ODD_PROMPTS = (
    "a cat & a dog",
    "${alert(1)}",
    "{{value}} `${document.title = 'broken'}`",
    "<script>document.title = 'broken'</script><img src=x onerror=alert(1)>",
    "🦊 a fox 🎨 \u202e in the snow",
    "two\nlines",
    "long " * 1000,
)
"""Prompts that must be shown as text everywhere."""


def picture(seed: int, size: int = 64) -> Image.Image:
    """A small picture that differs for each seed: a disc on a ground."""
    draw = random.Random(seed)
    hue = draw.random()

    def colour(lightness: float, shift: float = 0.0) -> tuple[int, ...]:
        return tuple(round(255 * c) for c in colorsys.hls_to_rgb((hue + shift) % 1, lightness, 0.55))

    image = Image.new("RGB", (size, size), colour(0.82))
    x, y, r = (round(draw.uniform(low, high) * size) for low, high in ((0.35, 0.65), (0.35, 0.65), (0.15, 0.3)))
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=colour(0.45, 0.12))
    return image


def filled_run(
    folder: Path, rounds: int = 3, awaiting: bool = False, config: RunConfig | None = None, prompts: tuple[str, ...] | None = None, **changes: Any
) -> RunStore:
    """A run as a worker would have left it: ``rounds`` complete rounds, and with ``awaiting`` one more that waits for ratings.

    Nobody holds its lock: it shows as interrupted, or as finished where all its rounds are done.
    """
    config = config or RunConfig(**(dict(rounds=max(rounds, 3), images_per_round=8, images_per_update=8, **changes)))
    if prompts is not None:
        config = config.with_changes(prompts=prompts)
    store = RunStore.create(folder, config)
    store.add_event("started", "Model pocket on cpu, fp32, process 1.")
    for number in range(1, rounds + 1):
        add_round(store, number)
    if awaiting:
        add_images(store, rounds + 1)
        store.set_progress("awaiting", rounds + 1, 0, config.images_per_round)
    elif rounds >= config.rounds:
        store.add_event("finished", f"All {rounds} rounds are done.")
        store.set_progress("finished", rounds)
    elif rounds:
        store.set_progress("sampling", rounds + 1, 2, config.images_per_round)
    return store


def add_pictures(
    store: RunStore,
    number: int,
    positions: Sequence[int],
    prompts: Sequence[str],
    seeds: Sequence[int],
    images: Sequence[Image.Image],
    shown: Container[int] | None = None,
) -> None:
    """Pictures as a worker adds them: files first, then rows."""
    store.add_samples(number, positions, prompts, seeds, write_images(store.folder, number, images), shown)


def on_board(config: RunConfig, number: int) -> set[int] | None:
    """The positions of a round that people are asked about, as many of each prompt; None for all."""
    if (number - 1) % config.board_every:
        return set()
    of_each = config.board_images // config.prompts_per_round
    return {i for i in range(config.images_per_round) if i % config.images_per_prompt < of_each} if of_each else None


def add_images(store: RunStore, number: int) -> None:
    """A round with its images, and nothing more."""
    config = store.config
    n, k = config.images_per_round, config.images_per_prompt
    store.start_round(number)
    drawn = [config.prompts[(number * config.prompts_per_round + i // k) % len(config.prompts)] for i in range(n)]
    seeds = [1000 * number + i for i in range(n)]
    add_pictures(store, number, range(n), drawn, seeds, [picture(seed) for seed in seeds], on_board(config, number))
    store.mark(number, "sampled")


def add_round(store: RunStore, number: int) -> None:
    """A complete round with images, scores, ratings where people rate, and metrics."""
    draw, config = random.Random(number), store.config
    add_images(store, number)
    values = {}
    for row in store.samples(number):
        value = draw.choice((-1.0, 1.0, 1.0)) if config.rated_by_people else round(-3.0 + 0.2 * number + draw.gauss(0, 0.3), 3)
        if config.rated_by_people:
            kind, given = ("thumbs", value) if config.rating == "thumbs" else ("stars", 3 + 2 * value)
            store.add_rating(f"toy-{number}-{row.id}", row.id, "anna", kind, given, answered_at=row.created_at + 2)
        values[row.id] = Score(value, {"raters": 1} if config.rated_by_people else {"size_kb": -value})
    if config.rated_by_people:
        store.close_round(number)
    store.add_scores(config.reward, values)
    store.add_metrics(number, round_metrics(number, [score.value or 0.0 for score in values.values()]))
    for mark in MARKS[1:]:
        store.mark(number, mark)
    place = store.folder / "checkpoints" / f"{number:04d}"
    place.mkdir(parents=True, exist_ok=True)
    store.add_checkpoint(number, place)


def add_watched(store: RunStore, number: int, fallen: float = 0.0) -> None:
    """Four watched pictures after a round, whose CLIPScore has fallen by so many standard deviations of the base model's, as have three times the
    diversity's percents."""
    seeds = [900_000 + i + (0 if number == 0 else 10 * number) for i in range(4)]
    found = [dict(kl=10.0 * number, clip_score=20.0 + 2 * i - 2.3 * fallen, diversity=0.3 - 0.1 * min(fallen, 2)) for i in range(4)]
    paths = write_images(store.folder, number, [picture(seed) for seed in seeds])
    store.add_probes(number, ["trained"] * 4, [f"{store.config.prompts[i % 2]}" for i in range(4)], range(4), paths, found)
    store.add_metrics(number, dict(watched_kl=10.0 * number, moved_clip_score=-fallen, watched_diversity=1 - 0.3 * min(fallen, 2)))


def add_lora(store: RunStore, number: int) -> None:
    """A small LoRA in a round's checkpoint, as a worker leaves it: rank 2, alpha 6."""
    import numpy as np
    from safetensors.numpy import save_file

    draw = np.random.default_rng(number)
    tensors = {}
    for layer in ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k"):
        for side, shape in (("A", (2, 768)), ("B", (32, 2))):
            tensors[f"unet.{layer}.lora_{side}.weight"] = draw.normal(size=shape).astype(np.float32)
    settings = {"unet.r": 2, "unet.lora_alpha": 6.0, "unet.peft_type": "LORA", "unet.target_modules": ["to_k"]}
    place = store.checkpoints()[number]
    save_file(tensors, place / "pytorch_lora_weights.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})


def comparable_run(folder: Path, rounds: int = 2, **changes: Any) -> RunStore:
    """A run whose rounds have weights, as far as somebody who only looks whether they are there can tell."""
    store = filled_run(folder, rounds, **changes)
    for number, place in store.checkpoints().items():
        add_lora(store, number)
        (place / "state.safetensors").write_bytes(b"weights of round %d" % number)
    return store


def named_model_run(folder: Path) -> RunStore:
    """A comparable run called taste, over a model of which there is no more than its name."""
    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return comparable_run(folder / "runs" / "taste", model=str(folder / "model"))


def round_metrics(number: int, scores: list[float]) -> dict[str, float]:
    """The metrics that the trainer writes for a round, made up."""
    draw = random.Random(100 + number)
    mean = sum(scores) / len(scores)
    return dict(
        reward_mean=mean,
        reward_std=math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores)),
        scored_images=float(len(scores)),
        loss=-0.02 * draw.random(),
        ratio_mean=1 + draw.gauss(0, 2e-5),
        ratio_std=3e-5 + 1e-5 * draw.random(),
        ratio_max_deviation=2e-4 + 1e-4 * draw.random(),
        clip_fraction_up=0.1 * draw.random(),
        clip_fraction_down=0.1 * draw.random(),
        kl_update=0.002 + 0.003 * draw.random(),
        grad_norm=0.3 + 0.2 * draw.random(),
        advantage_abs_mean=0.8,
        zero_spread_prompts=float(draw.randrange(3)),
        seconds_sampling=4 + draw.random(),
        seconds_scoring=10 + 20 * draw.random(),
        seconds_updating=6 + draw.random(),
        seconds_checkpointing=0.2,
    )
