"""The pocket's aesthetic predictor: LAION's layers on the pocket CLIP's image tower, trained on synthetic ratings.

The ratings are those of ``rewards/statistics.py`` (the gold) plus a rater's noise, of rendered scenes and of the same scenes with other colours,
contrast, sharpness and noise. It is a stage of ``python -m pocket.recipe``; ``python -m pocket.aesthetic`` measures it on held-out renders, and
``--measure`` the gold's typical values.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from pocket.data import scenes
from pocket.training import Start, train
from rewards.aesthetic import Head
from rewards.networks import Clip
from rewards.statistics import STATISTICS, points, statistics_of

HERE = Path(__file__).parent
SCENES, HELD_OUT_SCENES, HELD_OUT_SEED = 30_000, 2_000, 10_000_000
STEPS, BATCH = 4_000, 1_024
RATER_NOISE = 0.5
"""Standard deviation of a synthetic rater's error, in points."""


def distorted(picture: Image.Image, draw: random.Random) -> Image.Image:
    """The picture with other colours, contrast, brightness, sharpness or noise, as a model that is being trained may come to make it."""
    for enhance, low, high in ((ImageEnhance.Color, 0.0, 2.5), (ImageEnhance.Contrast, 0.4, 1.9), (ImageEnhance.Brightness, 0.6, 1.4)):
        if draw.random() < 0.5:
            picture = enhance(picture).enhance(draw.uniform(low, high))
    if draw.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 2.5)))
    if draw.random() < 0.25:
        noise = np.random.default_rng(draw.getrandbits(32)).normal(0, draw.uniform(4, 40), (*picture.size[::-1], 3))
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    return picture


def rated(pictures: np.ndarray, clip: Clip, also_distorted: bool) -> tuple[Tensor, Tensor]:
    """The tower's states (n, width) and gold points (n,) of pictures (m, 64, 64, 3); with their distorted twins n is 2 m."""
    draw = random.Random(0)
    states, gold = [], []
    for start in range(0, len(pictures), 256):
        images = [Image.fromarray(picture) for picture in pictures[start : start + 256]]
        if also_distorted:
            images += [distorted(image, draw) for image in images]
        states.append(clip.states(images))
        gold += [points(statistics_of(image)) for image in images]
    return torch.cat(states), torch.tensor(gold)


def make_aesthetic(work: Path, device: torch.device, start: Start) -> None:
    """Train the predictor and write it to ``pocket/aesthetic``."""
    clip = Clip(str(HERE / "clip"), device=str(device))
    _, pictures = scenes(work, "aesthetic", 30_000_000, SCENES)
    states, gold = rated(pictures, clip, also_distorted=True)
    mean, std = states.mean(0), states.std(0)
    standing, gold = ((states - mean) / std).to(device), gold.float().to(device)
    torch.manual_seed(0)
    ratings = gold + RATER_NOISE * torch.randn_like(gold)
    head = Head(states.shape[1], on_states=True).to(device)
    with torch.no_grad():
        list(head.parameters())[-1].fill_(float(gold.mean()))

    def loss_of() -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(ratings), (BATCH,), device=device)
        loss = torch.nn.functional.mse_loss(head(standing[index]), ratings[index])
        return loss, dict(loss=loss)

    train("aesthetic", work, {"head": head}, loss_of, device=device, steps=start.steps or STEPS, lr=1e-3)
    first = head.cpu().layers[0]
    assert isinstance(first, torch.nn.Linear)
    with torch.no_grad():  # the standardisation becomes part of the first layer
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)
    head.save(HERE / "aesthetic")
    print("aesthetic:", json.dumps(evaluate(work)))


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of values without ties."""
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def evaluate(work: Path) -> dict[str, float]:
    """Rank correlation of proxy and gold on held-out renders, and on those and their distorted twins."""
    clip, head = Clip(str(HERE / "clip")), Head.load(str(HERE / "aesthetic"))
    _, pictures = scenes(work, "aesthetic-held-out", HELD_OUT_SEED, HELD_OUT_SCENES)
    found = {}
    for name, twins in (("renders", False), ("with_distorted", True)):
        states, gold = rated(pictures, clip, also_distorted=twins)
        with torch.no_grad():
            found[name] = round(rank_correlation(head(states), gold), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="folder for renders")
    parser.add_argument("--measure", action="store_true", help="print mean and standard deviation of each statistic over renders instead")
    options = parser.parse_args()
    if not options.measure:
        print(json.dumps(evaluate(options.work)))
        return
    _, pictures = scenes(options.work, "aesthetic-held-out", HELD_OUT_SEED, HELD_OUT_SCENES)
    rows = [statistics_of(Image.fromarray(picture)) for picture in pictures]
    print({name: (round(float(np.mean([r[name] for r in rows])), 4), round(float(np.std([r[name] for r in rows])), 4)) for name in STATISTICS})


if __name__ == "__main__":
    main()
