"""Pictures of the same prompts and seeds by a run's model at several strengths of what was trained, and what rewards say of them.

Imports torch for the making alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import rewards
from ddpo.config import ConfigError
from ddpo.dataset import public_names, public_reward
from ddpo.files import read_image
from ddpo.store import RunStore
from rewards.base import Reward, RewardError, Sample

AT_ONCE = 32
"""Pictures in memory while they are scored."""

Report = Callable[[int, int], None]
Values = tuple[float | None, ...]
Failure = tuple[str, str]
"""The name of a reward that could not be asked, and why."""


@dataclass(frozen=True)
class Twin:
    """Pictures of one prompt and seed, and what rewards say of each."""

    group: str
    """What the prompt is told together with."""
    prompt: str
    seed: int
    files: tuple[str, ...]
    """By strength: within the folder."""
    values: Mapping[str, Values]
    """By the rewards' names, by strength."""


def make(
    store: RunStore,
    number: int,
    place: Path,
    folder: Path,
    items: Sequence[tuple[str, str, int]],
    strengths: Mapping[str, float],
    report: Report = lambda done, total: None,
) -> tuple[list[Twin], list[Failure]]:
    """Make pictures by a round's weights, keep them in a folder, and score them by what is optimised, where that needs no people, and by the rewards
    that are watched.

    Args:
        place: the round's checkpoint.
        items: group, prompt and seed of each.
        strengths: how much of what was trained, by the name that the files have; 0 is the base model.

    Returns:
        The pictures, and the rewards that could not be asked.

    Raises:
        ConfigError: the model cannot be loaded, or what is optimised cannot be asked.
        CheckpointError: the weights cannot be read, or are of another base model.
    """
    from ddpo.checkpoint import load_state
    from ddpo.monitor import panel, scorer
    from ddpo.policy import StableDiffusionPolicy
    from ddpo.rollout import batches, rollout
    from ddpo.worker import reward_source, with_own_lora
    from rewards.cache import Cached

    config, reward = with_own_lora(store.config, store.folder), store.reward_at(number)
    source, failures = reward_source(config), list[Failure]()
    made = cache(lambda part: Cached(source(part)))
    try:
        for part in rewards.parts(reward):  # before anything that takes long
            if part != "human":
                made(part).ready(config.prompts[0])
                made(part).free()
    except RewardError as error:
        raise ConfigError(f"{public_reward(reward)} cannot be asked. {error}") from error
    policy = StableDiffusionPolicy.load(config)
    load_state(place, policy.parameters(), base=policy.fingerprint, averaged=True)
    (folder / "pictures").mkdir()
    files = [tuple(f"pictures/{i:04d}-{name}.png" for name in strengths) for i in range(len(items))]
    total = len(strengths) * len(items)
    for side, strength in enumerate(strengths.values()):
        with policy.scaled(strength) if strength else policy.base():
            for batch in batches(len(items), config.microbatch):
                report(side * len(items) + batch.start, total)
                for i, image in zip(batch, rollout(policy, [items[i][1] for i in batch], [items[i][2] for i in batch])[1], strict=True):
                    image.save(folder / files[i][side])
    del policy  # a reward's networks may need its memory
    report(total, total)

    def said(scores: Reward, side: int) -> Values:
        found: list[float | None] = []
        for batch in batches(len(items), AT_ONCE):
            found += [score.value for score in scores.score([Sample(i, items[i][1], read_image(folder / files[i][side])) for i in batch])]
        return tuple(found)

    values: list[dict[str, Values]] = [{} for _ in items]
    asked = panel(config, reward)
    called = public_names(asked) | {reward: public_reward(reward)}
    for name in asked:
        try:
            scores = scorer(name, store, made)
            for told, each in zip(values, zip(*(said(scores, side) for side in range(len(strengths))), strict=True), strict=True):
                told[called[name]] = each
        except RewardError as error:
            failures.append((called[name], str(error)))
    return [Twin(*item, names, told) for item, names, told in zip(items, files, values, strict=True)], failures
