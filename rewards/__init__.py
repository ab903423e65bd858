"""Rewards: what is good? The table below is the one place where they have names; each is imported when it is first used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from rewards.base import Reward, RewardError, Sample, Score, check_address
from rewards.function import offered

POCKET = Path(__file__).parent.parent / "pocket"
"""The folder of the networks that come with the project."""


@dataclass(frozen=True)
class Card:
    """What people are told of a reward before they choose it."""

    where: str
    """The module and the class; empty for a blend, whose parts are scored one by one."""
    asks: str
    """What it asks for, in one sentence."""
    unit: str
    range: str
    source: str
    fooled_by: str
    prompted: bool = False
    """Whether it compares an image with its prompt, and has nothing to say without one."""
    licence: str = "no weights"
    """The licence of its weights."""
    download: str = ""
    """The published networks with their sizes, for people."""
    published: Mapping[str, str] = field(default_factory=dict)
    """The networks of the publication: arguments of the class, each a name on the Hub."""
    pocket: Mapping[str, str] = field(default_factory=dict)
    """The same of the pocket world; what names a network is a folder within :data:`POCKET`."""


REWARDS: dict[str, Card] = {
    "human": Card(
        where="rewards.human:Human",
        asks="People rate the images in the browser.",
        unit="opinion",
        range="−1 to 1",
        source="thumbs −1 or 1, stars −1 to 1, picks, best–worst counts, pairs by Bradley–Terry; the mean over raters; none where nobody judged",
        fooled_by="your own changing mind",
    ),
    "jpeg_compressibility": Card(
        where="rewards.jpeg:Compressibility",
        asks="Small JPEG files are good: minus the file size in kB.",
        unit="kB",
        range="below 0",
        source="Black et al. 2023, section 5.1 (Pillow, quality 95)",
        fooled_by="blank and blurred images",
    ),
    "jpeg_incompressibility": Card(
        where="rewards.jpeg:Incompressibility",
        asks="Large JPEG files are good: the file size in kB.",
        unit="kB",
        range="above 0",
        source="Black et al. 2023, section 5.1 (Pillow, quality 95)",
        fooled_by="noise",
    ),
    "aesthetic": Card(
        where="rewards.aesthetic:Aesthetic",
        asks="Images that a network trained on people's ratings of beauty scores high.",
        unit="points",
        range="about 1 to 10",
        source="LAION aesthetic predictor V2 on CLIP ViT-L/14 (Schuhmann et al. 2022; Black et al. 2023, section 5.1)",
        fooled_by="one painterly style, whatever the prompt",
        licence="CLIP MIT, predictor Apache-2.0; pocket networks Apache-2.0",
        download="CLIP ViT-L/14 (1.7 GB) and the predictor (4 MB)",
        published=dict(clip="openai/clip-vit-large-patch14", head="trl-lib/ddpo-aesthetic-predictor"),
        pocket=dict(clip="clip", head="aesthetic"),
    ),
    "image_statistics": Card(
        where="rewards.statistics:ImageStatistics",
        asks="Colourful, contrasty, simple and well placed images by closed formulas: the gold beside the pocket's aesthetic.",
        unit="points",
        range="about 1 to 10",
        source="colourfulness (Hasler & Süsstrunk 2003), RMS contrast (Peli 1990), simplicity and rule of thirds (Ke et al. 2006, Datta et al. 2006)",
        fooled_by="loud colours and a single hard-edged spot",
    ),
    "clip_score": Card(
        where="rewards.clip:ClipScore",
        asks="Images that CLIP finds close to their prompt.",
        unit="100 × cosine",
        range="0 to 100, in practice 15 to 40",
        source="CLIPScore (Hessel et al. 2021, arXiv 2104.08718) on ViT-L/14, without its factor of 2.5 and its “A photo depicts” before the prompt",
        fooled_by="the prompt written into the image, and typical details piled up",
        prompted=True,
        licence="CLIP MIT; pocket networks Apache-2.0",
        download="CLIP ViT-L/14 (1.7 GB)",
        published=dict(clip="openai/clip-vit-large-patch14"),
        pocket=dict(clip="clip"),
    ),
    "alignment": Card(
        where="rewards.alignment:Alignment",
        asks="Images that a model which looks at them describes in words close to their prompt.",
        unit="BERTScore recall",
        range="in practice 0.5 to 0.9 with the published networks",
        source="LLaVA (Liu et al. 2023) and BERTScore recall (Zhang et al. 2020), as in Black et al. 2023, section 5.3",
        fooled_by="words written into the image, and whatever the describing model reads into it",
        prompted=True,
        licence="LLaVA 1.5 Llama 2 community licence, DeBERTa MIT; pocket networks Apache-2.0",
        download="LLaVA 1.5 7B (14 GB) and DeBERTa XLarge MNLI (3 GB)",
        published=dict(vlm="llava-hf/llava-1.5-7b-hf", bert="microsoft/deberta-xlarge-mnli", layer="40", baseline="0.517"),
        pocket=dict(vlm="llava", bert="bert", layer="2", baseline="0.217"),
    ),
    "satisfaction": Card(
        where="rewards.satisfaction:Satisfaction",
        asks="Images of which a model that looks at them gives the prompt's answers: which animal, how many, doing what.",
        unit="share of answers",
        range="0 to 1",
        source="the counting and animal questions of the authors' code (Black et al. 2023), and questions for activities and for other prompts",
        fooled_by="numbers and names written into the image, and a model that answers what it is asked about",
        prompted=True,
        licence="LLaVA 1.5 Llama 2 community licence; pocket networks Apache-2.0",
        download="LLaVA 1.5 7B (14 GB)",
        published=dict(vlm="llava-hf/llava-1.5-7b-hf"),
        pocket=dict(vlm="llava"),
    ),
    "pickscore": Card(
        where="rewards.clip:PickScore",
        asks="Images that people would pick among others for their prompt.",
        unit="logit",
        range="in practice 17 to 25",
        source="PickScore (Kirstain et al. 2023, arXiv 2305.01569)",
        fooled_by="saturated, polished close-ups",
        prompted=True,
        licence="MIT",
        download="PickScore (3.9 GB)",
        published=dict(clip="yuvalkirstain/PickScore_v1", processor="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    ),
    "blend": Card(
        where="",
        asks="A weighted sum of rewards, each in its own standard deviations: `blend: 1 aesthetic, 0.5 jpeg_compressibility`.",
        unit="standard deviations",
        range="around 0",
        source="means and standard deviations of the images that the run first scored by each part",
        fooled_by="whatever fools its heaviest part",
    ),
}
"""All rewards by name. Beside them there is `path/to/file.py:function`, a person's own (:mod:`rewards.function`)."""

BLEND = "blend:"
HEAVIEST = 1e6
"""The largest weight of a part."""
FUNCTION = re.compile(r"[^,]+\.py:[A-Za-z_]\w*")


def parts(reward: str) -> dict[str, float]:
    """The rewards that a setting names, each with its weight: one alone, or those of ``blend: 1 aesthetic, -0.5 jpeg_compressibility``.

    Raises:
        RewardError: it names no reward, or a weight is no number.
    """
    if not reward.startswith(BLEND):
        if reward == "blend":
            raise RewardError("A blend has parts. Write blend: with a weight and a reward each, such as `blend: 1 aesthetic, 0.5 clip_score`.")
        card(reward)
        return {reward: 1.0}
    found: dict[str, float] = {}
    for part in reward.removeprefix(BLEND).split(","):
        weight, _, name = part.strip().partition(" ")
        name = name.strip()
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name or not 0 < abs(value) <= HEAVIEST:
            raise RewardError(f"{part.strip()!r} is no part of a blend. Write a weight other than 0 and a reward, such as `0.5 clip_score`.")
        if name in found or name == "blend" or name.startswith(BLEND):
            raise RewardError(f"{name} cannot be a part here: each part of a blend is another reward, and no blend.")
        card(name)
        found[name] = value
    return found


def spell(weights: Mapping[str, float]) -> str:
    """The setting that names these rewards: the other way round of :func:`parts`."""
    names = list(weights)
    if len(names) == 1 and weights[names[0]] == 1:
        return names[0]
    return f"{BLEND} " + ", ".join(f"{weight:.15g} {name}" for name, weight in weights.items())


def card(name: str) -> Card:
    """What people are told of a reward, a function of their own included.

    Raises:
        RewardError: there is no such reward.
    """
    if name in REWARDS:
        return REWARDS[name]
    if FUNCTION.fullmatch(name):
        return Card("rewards.function:Function", "Your own function says.", "", "any number", name, "whatever it does not look at")
    raise RewardError(f"There is no reward {name!r}. Choose one of {', '.join(REWARDS)}, or a function in a Python file: path/to/file.py:function.")


def automatic() -> list[str]:
    """The rewards that score by themselves: those of the table, and the functions that whoever started this process offers."""
    return [*(name for name, each in REWARDS.items() if each.where and name != "human"), *offered()]


def load(name: str, models: str = "published", device: str = "auto", precision: str = "auto", vlm: str = "", **arguments: Any) -> Reward:
    """Make the reward of that name; its networks are loaded when it first scores.

    Args:
        models: ``published`` or ``pocket``: which networks.
        device: ``auto``, ``cpu``, ``cuda``, ... for rewards with networks.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16`` for the same.
        vlm: what looks at images, for rewards that have something that does; empty is the published or the pocket's.

    Raises:
        RewardError: there is no reward of that name, or it has no networks of that kind.
    """
    found = card(name)
    if not found.where:
        raise RewardError(f"The reward {name} cannot score by itself: its parts do.")
    if FUNCTION.fullmatch(name):
        arguments = dict(name=name) | arguments
    if found.published:
        if models == "pocket" and not found.pocket:
            raise RewardError(f"The reward {name} has no pocket networks. Choose reward_models published: {', '.join(found.published.values())}.")
        looks = dict(vlm=vlm) if vlm and "vlm" in found.published else {}
        arguments = _networks(found, models) | dict(device=device, precision=precision) | looks | arguments
    module, _, attribute = found.where.partition(":")
    reward: Reward = getattr(import_module(module), attribute)(**arguments)
    return reward


def _networks(found: Card, models: str) -> dict[str, Any]:
    """Which networks a reward has, as arguments of its class; of the pocket's, folders are made whole paths."""
    if models != "pocket":
        return dict(found.published)
    networks = {key: str(POCKET / value) if key in FOLDERS else value for key, value in found.pocket.items()}
    if missing := [path for key, path in networks.items() if key in FOLDERS and not Path(path).is_dir()]:
        raise RewardError(f"The pocket network {missing[0]} is missing. Make it: python -m pocket.recipe.")
    return networks


FOLDERS = ("clip", "head", "vlm", "bert")
"""Arguments of a reward that name a network."""

__all__ = ["POCKET", "REWARDS", "Card", "Reward", "RewardError", "Sample", "Score", "automatic", "card", "check_address", "load", "parts", "spell"]
