"""Sampling's forward passes, kept with their graphs for the round's first optimiser step.

Before that step the policy is still the one that sampled: the update would send the same latents through the same weights again, in order to have a
graph to go backwards through. Where sampling leaves its graphs standing (``reuse_forward``), the step only goes backwards. Nothing else changes: a
pass that was not kept, for want of memory or because the worker was started anew, is computed again, on the same batch and so to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ddpo.diffusion import Gaussian
from ddpo.memory import free_memory
from ddpo.policy import Policy

SHARE = 0.25
"""The part of the memory that is free when the first pass is kept that all kept passes may take."""

Key = tuple[int, int, int]
"""The round, the microbatch's first place in the order of sampling, and the denoising step."""


class KeptForward:
    """The passes that are kept at present.

    How much one takes is counted: at first all that its graph holds; then, on the second one, what the first one's graph does not hold, which still
    stands, so that weights, which all of them hold, count no more.
    """

    def __init__(self, policy: Policy, free: Callable[[torch.device], int] | None = None) -> None:
        """``free`` tells how many bytes of a device's memory are free."""
        self.policy, self._free = policy, free or free_memory
        self._kept: dict[Key, Gaussian] = {}
        self._budget = self._bytes = 0
        self._first: set[int] = set()
        self._known = False

    def step(self, key: Key, x_t: Tensor, index: Tensor, condition: Any) -> Gaussian:
        """The policy's step, without a graph, which is kept."""
        if self._bytes and (len(self._kept) + 1) * self._bytes > self._budget:
            return self.policy.step(x_t, index, condition)
        with torch.enable_grad(), nullcontext() if self._known else self._counting():
            gaussian = self.policy.step(x_t, index, condition)
        if self._bytes <= self._budget:
            self._kept[key] = gaussian.trained
        trained = gaussian.trained_mean
        return Gaussian(gaussian.mean.detach(), gaussian.std, None if trained is None else trained.detach())

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Counts what a pass's graph holds."""
        held = dict[int, int]()
        if not self._bytes:
            self._budget = int(SHARE * self._free(self.policy.device))

        def count(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()  # itself, the graph would hold its own end and never be freed but by going backwards

        with saved_tensors_hooks(count, lambda tensor: tensor):
            yield
        self._known = bool(self._kept)
        self._bytes = max(1, sum(size for place, size in held.items() if not self._known or place not in self._first))
        self._first = set(held)

    def take(self, key: Key) -> Gaussian | None:
        """What is trained by a kept pass, with its graph, to go backwards through once; None where there is none."""
        return self._kept.pop(key, None)

    def clear(self) -> None:
        """Let all go: the weights have changed, or the round is over."""
        self._kept.clear()
