"""Overoptimisation, live: every so many rounds the same pictures are made anew and measured, by prompts and seeds that are never trained on.

What is measured of each picture (:attr:`ddpo.records.ProbeRow.found`), beside what rewards say of it:

========= ================================================================================================ =================================
kl        nats between the policy and the base model along the picture's own denoising, exact in float32    Fan et al. 2023, arXiv 2305.16381
diversity how far the picture is from the others of its prompt, mean of ½ ‖f - g‖²: 1 - cosine of CLIP's
          unit states, or of plain pixels where there is no CLIP
noise     share of the luminance's energy in frequencies above half of the highest one                      white noise has 1 - π/16 = 0.80
flatness  share of pixels that hardly differ from their neighbours                                          a blank or blurred picture has 1
clipping  share of colour values that are at an end of their range
========= ================================================================================================ =================================

Of all watched pictures together, the Vendi score says how many different ones there are in effect (:func:`vendi_of`), by the same features.

The rewards are the one that is optimised, and others that are not and cost next to nothing: closed formulas, and networks where they are the
pocket's (a large one only where the setting ``watch_rewards`` names it). Every picture has its twin of the base model, by the same prompt and seed:
so what has moved is known from few pictures. What goes wrong, :mod:`ddpo.alarms` says.

Watching changes nothing: it draws from no generator that is not its own, and leaves the weights as they are. It is done by the process that leads.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import rewards
from ddpo.alarms import PAYS, Alarm, judged, paid_for, spread_of_base
from ddpo.config import RunConfig
from ddpo.engine import Engine
from ddpo.files import read_image, write_images
from ddpo.generalisation import TRAINED, others_of
from ddpo.policy import Policy
from ddpo.records import ProbeRow
from ddpo.rollout import batches, derive_seed, rollout
from ddpo.store import RunStore
from ddpo.trajectory import Trajectory
from rewards.base import Reward, RewardError, Sample
from rewards.blend import Blend, Standard
from rewards.networks import Clip
from rewards.statistics import luminance

CHEAP = ("jpeg_compressibility", "image_statistics", "aesthetic", "clip_score")
"""Rewards that are always asked, where they have no networks or the pocket's."""
KL_SHARE = 8
"""The distance from the base model is measured on one in so many pictures."""
NEAR = 4.0
"""Grey levels of 255 by which neighbours in a flat place differ at most."""
TOLD_BY = 8
"""Degrees of freedom, images less prompts, from which on a correlation is told: chance alone comes to 0.7 in one round of fifty then, and in
the mean of three hardly ever."""
SIDE = 32
"""Pictures are compared in this size where there is no CLIP."""

Found = dict[str, float | None]


# --- the pictures ---------------------------------------------------------------------------------------------------------------


def drawn(prompts: Sequence[str], count: int) -> list[str]:
    """All prompts, or so many of them drawn by a fixed seed: a stride would meet the order of the file."""
    return list(prompts) if count >= len(prompts) else random.Random(0).sample(list(prompts), count)


def watched_prompts(config: RunConfig) -> list[tuple[str, str]]:
    """Group and prompt of each watched picture: at least two of each prompt; half of them of the run's prompts, where there are other groups."""
    own = list(dict.fromkeys(config.prompts))
    others = list(others_of(config).items())[: max(0, config.watch_images // 4 - 1)]
    share = config.watch_images // 2 // max(1, len(others))
    groups = {name: (prompts, share) for name, prompts in others}
    groups = {TRAINED: (tuple(own), config.watch_images - share * len(others)), **groups}
    found = []
    for name, (prompts, count) in groups.items():
        chosen = drawn(prompts, max(1, count // 2))
        found += [(name, chosen[i % len(chosen)]) for i in range(count)]
    return found


def panel(config: RunConfig, reward: str) -> list[str]:
    """What is asked about pictures: what is optimised, where it needs no people, and rewards that are not."""
    asked = [] if "human" in rewards.parts(reward) else [reward]
    cheap = [name for name in CHEAP if not rewards.card(name).published or config.networks_of(name) == "pocket"]
    return list(dict.fromkeys([*asked, *(name for name in rewards.parts(reward) if asked), *cheap, *config.watched_rewards]))


def scorer(name: str, store: RunStore, make: Callable[[str], Reward]) -> Reward:
    """The automatic reward of that name; a blend in the spread of its parts' first scores in the run."""
    if not name.startswith(rewards.BLEND):
        return make(name)
    weights = rewards.parts(name)
    standards = {part: Standard.of(store.first_values(part)) for part in weights}
    return Blend(name, weights, standards, {part: make(part) for part in weights})


# --- what is measured -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def kl_to_base(policy: Policy, trajectory: Trajectory, prompts: Sequence[str], size: int = 16) -> Tensor:
    """Each step's KL divergence from the base model's, in nats, at the latents of some trajectories, (n, steps).

    Steps are Gaussians of equal std, so KL(p || p_base) = ‖μ - μ_base‖² / 2σ² is exact at each latent; along the policy's own trajectories its sum
    over the steps has the KL of the two distributions of trajectories as its mean (chain rule), which bounds that of images (Fan et al. 2023). A step
    without noise counts 0. In float32: in bfloat16 two predictions that hardly differ are rounded apart, at a small η by more nats than they differ.
    ``size`` steps go through the model at once.
    """
    kl = torch.zeros(trajectory.log_probs.shape)
    conditions = policy.encode(prompts)
    items = torch.cartesian_prod(torch.arange(len(prompts)), torch.tensor(policy.schedule.actions))
    with policy.exact():
        for part in items.split(size):
            image, step = part.unbind(1)
            x_t, index = trajectory.latents[image, step].to(policy.device), step.to(policy.device)
            own = policy.step(x_t, index, conditions[image])
            with policy.base():
                base = policy.step(x_t, index, conditions[image])
            kl[image, step] = own.kl(base).cpu()
    return kl


def noise_of(image: Image.Image) -> float:
    """The share of the luminance's energy, its mean left out, in frequencies above half of Nyquist's; 0 of a blank picture."""
    grey = luminance(np.asarray(image.convert("RGB"), dtype=np.float64))
    energy = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.fftfreq(grey.shape[1])[None])
    total = float(energy.sum())
    return float(energy[frequency > 0.25].sum()) / total if total > 1e-9 * grey.size else 0.0


def flatness_of(image: Image.Image) -> float:
    """The share of pixels whose luminance differs from those to the right and below by less than :data:`NEAR`."""
    grey = luminance(np.asarray(image.convert("RGB"), dtype=np.float64))
    across, down = np.abs(np.diff(grey, axis=1))[:-1], np.abs(np.diff(grey, axis=0))[:, :-1]
    return float((np.maximum(across, down) < NEAR).mean())


def clipping_of(image: Image.Image) -> float:
    """The share of colour values that are 0 or 255."""
    pixels = np.asarray(image.convert("RGB"))
    return float(((pixels == 0) | (pixels == 255)).mean())


MEASURES: Mapping[str, Callable[[Image.Image], float]] = dict(noise=noise_of, texture=lambda image: 1 - flatness_of(image), clipping=clipping_of)
"""What a reward may pay for. Texture is what is not flat."""


def pays_for(images: Sequence[Image.Image], prompts: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """What a reward pays for, -1 to 1: the correlation, within prompts, of images' scores with what is measured of them. What differs within no
    prompt has none, and few images say nothing (:data:`TOLD_BY`). It says what the reward will be chased by before it is: JPEG size goes with texture
    by 0.9 from the first round on."""
    if len(values) - len(set(prompts)) < TOLD_BY:
        return {}
    found = {}
    scores = _within(values, prompts)
    for name, measure in MEASURES.items():
        measured = _within([measure(image) for image in images], prompts)
        size = float(np.linalg.norm(scores) * np.linalg.norm(measured))
        if size > 1e-9:
            found[f"{PAYS}{name}"] = float(scores @ measured) / size
    return found


def _within(values: Sequence[float], prompts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Values without their prompt's mean."""
    means = {prompt: fmean(value for value, other in zip(values, prompts, strict=True) if other == prompt) for prompt in dict.fromkeys(prompts)}
    return np.array([value - means[prompt] for value, prompt in zip(values, prompts, strict=True)])


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    """Small pictures as vectors (n, d) of length 1 at most."""
    small = [np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32) / 255 for image in images]
    found: Tensor = torch.tensor(np.stack(small)).flatten(1) / (3 * SIDE * SIDE) ** 0.5
    return found


def spread_of(features: Tensor, prompts: Sequence[str]) -> list[float | None]:
    """How far each picture is from the others of its prompt: the mean of ½ ‖f - g‖² over them; None of one that is alone."""
    apart = 0.5 * torch.cdist(features.double(), features.double()) ** 2
    found: list[float | None] = []
    for i, prompt in enumerate(prompts):
        others = [j for j, other in enumerate(prompts) if other == prompt and j != i]
        found.append(float(apart[i, others].mean()) if others else None)
    return found


def vendi_of(features: Tensor) -> float:
    """The Vendi score of n pictures' features (n, d): the exponential of the Shannon entropy of the eigenvalues of K / n, with K their cosine
    similarities (Friedman and Dieng 2022, arXiv 2210.02410). It is how many pictures there are in effect: 1 where all are alike, n
    where no two have anything in common."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(unit @ unit.T / len(unit))
    return float(torch.special.entr(eigenvalues.clamp(min=0)).sum().exp())


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def metrics_of(now: Sequence[ProbeRow], base: Sequence[ProbeRow], reward: str) -> dict[str, float]:
    """The run's metrics from its watched pictures after a round and from the base model's:

    * ``watched_…``, the means; of ``diversity`` the share of the base model's;
    * ``moved_…``, by how many of the base pictures' standard deviations a mean has moved;
    * ``reward_on_…``, the mean of the reward that is optimised, by group of prompts, where there are several.
    """
    found: dict[str, float | None] = {}
    for name in dict.fromkeys(name for row in now for name in row.found):
        mean, first = (mean_of(row.found.get(name) for row in rows) for rows in (now, base))
        key = name_of(name)
        found[f"watched_{key}"] = mean
        if name == "kl" or mean is None or first is None:
            continue
        if name == "diversity":
            found[f"watched_{key}"] = mean / first if first else None
            continue
        spread = spread_of_base(name, [value for row in base if (value := row.found.get(name)) is not None])
        found[f"moved_{key}"] = (mean - first) / spread if spread else None
    groups = dict.fromkeys(row.kind for row in now)
    if len(groups) > 1:
        found |= {f"reward_on_{kind}": mean_of(row.found.get(reward) for row in now if row.kind == kind) for kind in groups}
    return {name: value for name, value in found.items() if value is not None}


def name_of(reward: str) -> str:
    """What a reward is called in a metric's name."""
    return "blend" if reward.startswith(rewards.BLEND) else reward


# --- watching -------------------------------------------------------------------------------------------------------------------


class Monitor:
    """Makes, measures and keeps the watched pictures of a run."""

    def __init__(self, config: RunConfig, store: RunStore, engine: Engine) -> None:
        self.config, self.store, self.engine = config, store, engine
        self._silent: set[str] = set()

    def due(self, number: int) -> bool:
        """Whether a round is to be watched, and was not yet: so many after the last that was, and the run's last one. Twice as soon where the reward
        pays for what covers pictures; half as soon while an alarm is on, which has been told."""
        if not self.config.watch_every or not number or self._known(number):
            return False
        found = judged(self.store)
        last, every = max((at for at in found.rounds if at < number), default=0), self.config.watch_every
        if last in found.alarms:
            every *= 2
        elif last and paid_for(self.store, [number])[number]:
            every = -(-every // 2)
        return number == self.config.rounds or number - last >= every

    def _known(self, number: int) -> bool:
        return self.store.has_metric(number, "watched_noise")

    def watch(self, number: int, report: Callable[[int, int], None]) -> dict[str, float]:
        """Measure the present policy, which is that after round ``number``, and before it, where it is not there, the base model; returns the round's
        metrics, which its caller writes when it has said what is wrong: a round that has them is watched no more."""
        started, device = time.monotonic(), self.engine.policy.device
        reward = self.store.reward_at(number)
        with torch.random.fork_rng(devices=[] if device.type != "cuda" else [device], device_type="cuda"), self.engine.averaged():
            if not self._known(0):
                self._make(0, reward, report)
            self._complete_base(reward)
            self._make(number, reward, report)
        base, now = self.store.probes(0), self.store.probes(number)
        vendi = self._vendi(now, base)
        if not self._known(0):
            self.store.add_metrics(0, metrics_of(base, base, self.store.reward_at(1)) | dict.fromkeys(vendi, 1.0))
        if self.config.reward_offload:
            self.engine.free()
        return metrics_of(now, base, reward) | vendi | dict(seconds_watching=time.monotonic() - started)

    def alarm(self, number: int) -> Alarm | None:
        """What is wrong after a watched round, if anything is."""
        return judged(self.store).alarms.get(number)

    def _make(self, number: int, reward: str, report: Callable[[int, int], None]) -> None:
        """The pictures of the base model (0) or of the present policy, by the base model's prompts and seeds, measured, on disk."""
        policy, config = self.engine.policy, self.config
        probes = -(-config.watch_images // KL_SHARE)
        chosen = [(row.kind, row.prompt, row.seed) for row in self.store.probes(0)]  # a run keeps its pictures, whatever is chosen for new ones
        chosen = chosen or [(kind, prompt, derive_seed("probe", i)) for i, (kind, prompt) in enumerate(watched_prompts(config))]
        kinds, prompts, seeds = [kind for kind, _, _ in chosen], [prompt for _, prompt, _ in chosen], [seed for _, _, seed in chosen]
        images: list[Image.Image] = []
        kl: list[float | None] = []
        for batch in batches(len(prompts), config.microbatch):
            report(batch.start, len(prompts))
            with policy.base() if number == 0 else contextlib.nullcontext():
                trajectory, made = rollout(policy, [prompts[i] for i in batch], [seeds[i] for i in batch])
            images += made
            if number:
                kl += self._distances(trajectory, [prompts[i] for i in batch if i < probes])
        report(len(prompts), len(prompts))
        kl = [*(kl or [0.0] * probes), *[None] * (len(prompts) - probes)]
        paths = write_images(self.store.folder, number, images)
        pictures = [read_image(self.store.folder / path) for path in paths]
        found: list[Found] = [
            dict(kl=distance, diversity=spread, noise=noise_of(image), flatness=flatness_of(image), clipping=clipping_of(image))
            for distance, spread, image in zip(kl, self._spread(pictures, prompts), pictures, strict=True)
        ]
        for name, values in self._asked(self._panel(reward), prompts, pictures).items():
            for each, value in zip(found, values, strict=True):
                each[name] = value
        self.store.add_probes(number, kinds, prompts, seeds, paths, found)

    def _distances(self, trajectory: Trajectory, prompts: Sequence[str]) -> list[float | None]:
        """The distance from the base model of the first of some trajectories, as many as there are prompts."""
        if not prompts or "kl" in self._silent:
            return [None] * len(prompts)
        part = Trajectory(trajectory.latents[: len(prompts)], trajectory.log_probs[: len(prompts)])
        try:
            return [float(nats) for nats in kl_to_base(self.engine.policy, part, prompts, self.config.update_microbatch).sum(1)]
        except torch.OutOfMemoryError:
            self._be_silent("kl", "The distance from the base model needs the denoiser in float32 for a moment, for which there is no memory.")
            return [None] * len(prompts)

    def _be_silent(self, name: str, why: str) -> None:
        """Say once why something is not measured any more by this worker."""
        self._silent.add(name)
        self.store.add_event("watch", why)

    def _complete_base(self, reward: str) -> None:
        """Ask what has not been asked about the base model's pictures: a reward that is optimised only since a while."""
        rows = self.store.probes(0)
        missing = [name for name in self._panel(reward) if any(name not in row.found for row in rows)]
        if not missing:
            return
        prompts, pictures = [row.prompt for row in rows], [read_image(self.store.folder / row.image) for row in rows]
        said = self._asked(missing, prompts, pictures)
        found = [{**row.found, **{name: values[row.position] for name, values in said.items()}} for row in rows]
        self.store.add_probes(0, [row.kind for row in rows], prompts, [row.seed for row in rows], [row.image for row in rows], found)

    def _panel(self, reward: str) -> list[str]:
        return panel(self.config, reward)

    def scorer(self, name: str) -> Reward:
        """The automatic reward of that name, with the worker's networks."""
        return scorer(name, self.store, self.engine.reward)

    def _asked(self, names: Sequence[str], prompts: Sequence[str], pictures: Sequence[Image.Image]) -> Mapping[str, list[float | None]]:
        """What rewards say of pictures. One that fails is not asked again by this worker, and has no values; the run goes on."""
        samples = [Sample(0, prompt, image) for prompt, image in zip(prompts, pictures, strict=True)]
        said: dict[str, list[float | None]] = {}
        for name in names:
            try:
                if name not in self._silent:
                    said[name] = [score.value for score in self.scorer(name).score(samples)]
            except RewardError as error:
                self._be_silent(name, f"{name} cannot be asked about the watched pictures: {error}")
        return said

    def _features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What pictures are compared by, (n, d): what CLIP sees, where one is at hand.

        Raises:
            RewardError: CLIP cannot be loaded.
        """
        clip = None
        if "clip_score" in self._panel("human"):
            clip = getattr(self.engine.reward("clip_score").reward, "clip", None)
        return torch.nn.functional.normalize(clip.states(pictures), dim=1) if isinstance(clip, Clip) else pixels_of(pictures)

    def _spread(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float | None]:
        """How far each picture is from the others of its prompt."""
        with contextlib.suppress(RewardError):
            return spread_of(self._features(pictures), prompts)
        return [None] * len(prompts)

    def _vendi(self, now: Sequence[ProbeRow], base: Sequence[ProbeRow]) -> dict[str, float]:
        """``watched_vendi``: the Vendi score of all watched pictures, as a share of the base model's. It is no sign of the alarm: one number of few
        pictures, without a twin of each, does not say what chance would make of it."""
        with contextlib.suppress(RewardError, OSError):
            after, before = (vendi_of(self._features([read_image(self.store.folder / row.image) for row in rows])) for rows in (now, base))
            return dict(watched_vendi=after / before)
        return {}
