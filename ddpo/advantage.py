"""Scores to advantages: how much better an image is than others, and the weights that RWR makes of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


def group_advantages(scores: Sequence[float | None], prompts: Sequence[str], clip: float) -> Tensor:
    """Standardise scores within each prompt: (score - mean) / std, clipped to ±``clip``; shape (n,), float32.

    The paper standardises by a running mean and std per prompt (Black et al. 2023, App. D), whose warm-up never ends with a handful
    of images a round; with several images of each prompt the round itself has the statistics (the group-relative form; Shao et al.
    2024, arXiv 2402.03300).

    An image without a score gets advantage 0 and does not count in its group. A group whose scores are all equal says nothing: 0, never NaN.
    """
    if len(scores) != len(prompts):
        raise ValueError(f"{len(scores)} scores for {len(prompts)} prompts.")
    advantages = torch.zeros(len(scores))
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt and scores[i] is not None]
        values = [float(scores[i]) for i in rows]  # type: ignore[arg-type]
        advantages[rows] = standardised(values, values)
    return advantages.clamp(-clip, clip)


def centred_advantages(scores: Sequence[float | None], prompts: Sequence[str], clip: float) -> Tensor:
    """Each score less its prompt's mean, in standard deviations of all such differences of the round, clipped to ±``clip``; shape (n,), float32.

    One spread for all prompts (Liu et al. 2025, arXiv 2503.20783, leave the group's own out): a prompt whose images differ by next to nothing then
    weighs next to nothing, where its own spread would make as much of that as of a right answer beside a wrong one. For rewards that are answers.
    """
    rows = [i for i, score in enumerate(scores) if score is not None]
    values = torch.tensor([float(scores[i]) for i in rows], dtype=torch.float64)  # type: ignore[arg-type]
    for prompt in dict.fromkeys(prompts):
        own = torch.tensor([prompts[i] == prompt for i in rows], dtype=torch.bool)
        if bool(own.any()):
            values[own] -= values[own].mean()
    advantages = torch.zeros(len(scores))
    largest = max((abs(float(score)) for score in scores if score is not None), default=0.0)
    spread = float(values.pow(2).mean().sqrt()) if len(values) else 0.0
    if spread > 1e-8 * max(1.0, largest):
        advantages[rows] = (values / spread).float()
    return advantages.clamp(-clip, clip)


def round_advantages(scores: Sequence[float | None], clip: float) -> Tensor:
    """Standardise scores over the whole round, whatever the prompt, clipped to ±``clip``; shape (n,), float32.

    With it the model is also taught to look like the prompts that score well.
    """
    rows = [i for i, score in enumerate(scores) if score is not None]
    values = [float(scores[i]) for i in rows]  # type: ignore[arg-type]
    advantages = torch.zeros(len(scores))
    advantages[rows] = standardised(values, values)
    return advantages.clamp(-clip, clip)


def history_advantages(
    scores: Sequence[float | None], prompts: Sequence[str], history: Mapping[str, Sequence[float]], clip: float, buffer: int = 32, enough: int = 16
) -> Tensor:
    """Standardise each score by its prompt's last ``buffer`` scores, this round's included, clipped to ±``clip``; shape (n,), float32.

    The paper's way (Black et al. 2023, App. D: buffer 32, minimum 16). A prompt with fewer than ``enough`` scores so far is standardised
    by the round.

    Args:
        history: each prompt's scores of earlier rounds, oldest first.
    """
    advantages = round_advantages(scores, clip=float("inf"))
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt and scores[i] is not None]
        values = [float(scores[i]) for i in rows]  # type: ignore[arg-type]
        past = [*history.get(prompt, ()), *values][-buffer:]
        if len(past) >= enough:
            advantages[rows] = standardised(values, past)
    return advantages.clamp(-clip, clip)


def standardised(values: Sequence[float], reference: Sequence[float]) -> Tensor:
    """(value - mean) / std by the mean and std of ``reference``; zeros where that has fewer than two values or no spread. Float32."""
    numbers = torch.tensor(reference, dtype=torch.float64)
    if len(numbers) < 2 or float(spread := numbers.std(correction=0)) <= 1e-8 * max(1.0, float(numbers.abs().max())):
        return torch.zeros(len(values))
    return ((torch.tensor(values, dtype=torch.float64) - numbers.mean()) / spread).float()


def saturation(advantages: Tensor, scores: Sequence[float | None], clip: float) -> float:
    """The share of the images with a score whose advantage, (n,), is cut to ±``clip``; NaN where none has a score."""
    rated = torch.tensor([score is not None for score in scores], dtype=torch.bool)
    return float((advantages[rated].abs() >= clip).double().mean())


def reward_weights(advantages: Tensor, prompts: Sequence[str], rated: Sequence[bool], beta: float) -> Tensor:
    """RWR's weights: exp(β A) / Z, the softmax within each prompt times the number of its images, so that their mean is 1; shape (n,).

    The paper takes β = 0.2 on raw rewards (Black et al. 2023, section 4.1; its code multiplies by the number of images too), which means
    something else for every reward; here β is on the advantages. Images without a score weigh 0, and so do the images of a prompt whose
    scores are all equal: fitting them would only make the model more like itself, liked or not.
    """
    weights = torch.zeros(len(prompts))
    for rows in _spread(advantages, prompts, rated):
        weights[rows] = len(rows) * torch.softmax(beta * advantages[rows], 0)
    return weights


def percentile_weights(advantages: Tensor, prompts: Sequence[str], rated: Sequence[bool], quantile: float) -> Tensor:
    """RWR-sparse's weights: 1 for the images of each prompt at or above the quantile, else 0; shape (n,).

    Of a prompt whose images all scored alike, none.
    """
    weights = torch.zeros(len(prompts))
    for rows in _spread(advantages, prompts, rated):
        weights[rows] = (advantages[rows] >= torch.quantile(advantages[rows], quantile, interpolation="higher")).float()
    return weights


def _spread(advantages: Tensor, prompts: Sequence[str], rated: Sequence[bool]) -> Iterator[list[int]]:
    """The rated images of each prompt that has better and worse ones."""
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt and rated[i]]
        if rows and bool(advantages[rows].max() > advantages[rows].min()):
            yield rows
