"""Rewards: what is good? This table is the one place where they have names; each is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rewards.base import Reward, Sample, Score

NAMES: dict[str, tuple[str, str]] = {
    "human": ("rewards.human:Human", "People rate the images in the browser."),
    "jpeg_compressibility": ("rewards.jpeg:Compressibility", "Small JPEG files are good: minus the file size in kB."),
    "jpeg_incompressibility": ("rewards.jpeg:Incompressibility", "Large JPEG files are good: the file size in kB."),
}
"""Name of a reward: where it lives, and what it asks for in one sentence."""


def load(name: str, **arguments: Any) -> Reward:
    """Make the reward of that name.

    Raises:
        KeyError: there is no reward of that name.
    """
    module, _, attribute = NAMES[name][0].partition(":")
    reward: Reward = getattr(import_module(module), attribute)(**arguments)
    return reward


__all__ = ["NAMES", "Reward", "Sample", "Score", "load"]
