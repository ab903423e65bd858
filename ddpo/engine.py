"""What every process of a run does: make, score and learn from its share of a round. It knows the run's folder, but not its database.

A run is one process, or several (:mod:`ddpo.crew`); :class:`ddpo.trainer.Trainer`, which leads, calls these tasks on all of them at once.
"""

from __future__ import annotations

import contextlib
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor

import rewards
from ddpo.checkpoint import load_state, save_moments, save_state
from ddpo.config import EIGHT_BITS, ConfigError, RunConfig
from ddpo.crew import Crew, Task
from ddpo.diffusion import Gaussian
from ddpo.files import read_image, write_images
from ddpo.forward import KeptForward
from ddpo.objective import Lesson, TrajectoryLesson, Weights, make_lesson
from ddpo.policy import Policy, arithmetic_of
from ddpo.rollout import Step, batches, denoise, derive_seed, noises_of, rescored
from ddpo.trajectory import Trajectory
from rewards.base import Reward, RewardError, Sample
from rewards.cache import Cached

Source = Callable[[str], Reward]
"""Makes the reward of a name; its networks are loaded when it first scores."""

Report = Callable[[str, int, int, int], None]
"""What is being done, in which round, and how far it has come. A safe point: it may wait, or raise to stop."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, in plain words, and what to do."""


class PolicyMismatch(TrainingError):
    """Re-scoring the round's own samples does not give back their log-probabilities."""


@dataclass(frozen=True)
class Part:
    """Items of an optimiser step that go through the model at once."""

    items: Tensor
    """(m, 2): image and moment."""
    start: int = 0
    """Of a part that was sampled as it is: the microbatch's place in the order of sampling ..."""
    batch: tuple[int, ...] = ()
    """... and the positions of all its images, those without an item too; else empty."""


class Engine:
    """One process's policy, optimiser and reward, and what it does with them."""

    def __init__(
        self, config: RunConfig, folder: Path, policy: Policy, source: Source, crew: Crew | None = None, report: Report | None = None
    ) -> None:
        """
        Args:
            source: makes the automatic rewards.
            report: what is called at safe points; by default nothing.
        """
        self.config, self.folder, self.policy, self.source = config, folder, policy, source
        self.rewards: dict[str, Cached] = {}
        self.crew, self.report = crew or Crew(), report or (lambda state, number, done, total: None)
        self.crew.tasks = self.tasks
        self.parameters = policy.parameters()
        self.optimiser, self.moments = make_optimiser(config, self.parameters.values(), self.crew)
        self.scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.autocast is torch.float16)
        self.scaler.scale(torch.zeros((), device=policy.device))  # it has a scale then, also where a step gives this process nothing to do
        self.average = EMAModel(self.parameters.values(), decay=config.ema_decay, min_decay=config.ema_decay) if config.ema_decay else None
        self.kept = KeptForward(policy)
        self.checked = False

    @property
    def tasks(self) -> Mapping[str, Task]:
        """What the leader may ask of every process."""
        return dict(sample=self.sample, score=self.score, ready=self.ready, free=self.free, learn=self.learn, save=self.save, load=self.load)

    # --- sample -----------------------------------------------------------------------------------------------------------------

    def sample(self, number: int, starts: Sequence[int], ahead: Sequence[str] = ()) -> list[dict[str, list[Any]]]:
        """Make this process's share of the microbatches that begin at ``starts``: trajectories and images, on disk.

        Args:
            ahead: the rewards that may score each microbatch while the next one is made.

        Returns:
            For each microbatch its positions, prompts, seeds and images' paths.
        """
        made, microbatches = list[dict[str, list[Any]]](), self.microbatches(number)
        prompts, seeds = self.draw_prompts(number), self.draw_seeds(number)
        for start in self.crew.share(list(starts)):
            batch = microbatches[start]
            found: dict[str, list[Any]] = dict(positions=batch, prompts=[prompts[i] for i in batch], seeds=[seeds[i] for i in batch])
            trajectory, images = self._rollout(number, start, found["prompts"], found["seeds"])
            if not self.checked:
                self.check(trajectory, found["prompts"])
            for name in filter(self.scores_ahead, ahead):
                with contextlib.suppress(RewardError):  # told when it is asked for scores
                    self.reward(name).ahead([Sample(0, prompt, image.convert("RGB")) for prompt, image in zip(found["prompts"], images, strict=True)])
            made.append(found | dict(paths=write_images(self.folder, number, images)))
        return made

    def draw_prompts(self, number: int) -> list[str]:
        """The prompt of each of the round's images, each drawn prompt ``images_per_prompt`` times in a row."""
        prompts, wanted = list(dict.fromkeys(self.config.prompts)), self.config.prompts_per_round
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, number, "prompts"))
        drawn: list[str] = []
        while len(drawn) < wanted:
            drawn += [prompts[i] for i in torch.randperm(len(prompts), generator=generator).tolist()]
        return [prompt for prompt in drawn[:wanted] for _ in range(self.config.images_per_prompt)]

    def draw_seeds(self, number: int) -> list[int]:
        """The seed of each of the round's images."""
        return [derive_seed(self.config.seed, number, "sample", i) for i in range(self.config.images_per_round)]

    def draw_starts(self, number: int, prompts: Sequence[str]) -> list[int] | None:
        """The seed of x_T of images of some prompts, where a round's images of a prompt share it."""
        if not self.config.shared_start:
            return None
        return [derive_seed(self.config.seed, number, "start", prompt) for prompt in prompts]

    def noises(self, number: int, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """What images of a round are denoised by, (steps + 1, n, c, h, w)."""
        return noises_of(self.policy, seeds, self.draw_starts(number, prompts))

    def microbatches(self, number: int) -> dict[int, list[int]]:
        """The positions of the images that are made at once, by the place of the first of them in the order of sampling. That is the order in which
        they are first learned from, where the first optimiser step takes some of them only, and takes up their passes."""
        n = self.config.images_per_round
        learned = self.config.reuses_forward and self.config.images_per_update < n
        order = torch.randperm(n, generator=self._generator(number, 0)).tolist() if learned else list(range(n))
        return {batch.start: order[batch.start : batch.stop] for batch in batches(n, self.config.microbatch)}

    def _generator(self, number: int, p: int) -> torch.Generator:
        """Draws the order of a round's pass ``p`` first, and then whatever the update draws."""
        return torch.Generator().manual_seed(derive_seed(self.config.seed, number, "update", p))

    def _rollout(self, number: int, start: int, prompts: list[str], seeds: list[int]) -> tuple[Trajectory, list[Image.Image]]:
        """A microbatch, on disk. (A file whose rows are missing is of a worker that was killed, perhaps before the last update: it is made anew.)"""
        step = self._keeping(number, start) if self.config.reuses_forward and start < self.config.images_per_update else None
        trajectory, images = denoise(self.policy, prompts, self.noises(number, prompts, seeds), step, self.config.keeps_means)
        file = self.part(number, start)
        if not bool(torch.isfinite(trajectory.latents).all()):
            raise TrainingError(
                "The model makes images that are no numbers (NaN). Go on from an earlier round with a lower learning rate: "
                "`python -m ddpo fork RUN --round N --out NEW --learning-rate …`."
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        trajectory.save(file)
        return trajectory, images

    def _keeping(self, number: int, start: int) -> Step:
        """The policy's steps in their order, whose passes are kept where they are trained."""
        indices = iter(range(len(self.policy.schedule)))
        trained = set(self.policy.schedule.actions) & set(self.config.trained_steps)

        def step(x_t: Tensor, index: Tensor, condition: Any) -> Gaussian:
            i = next(indices)
            return self.kept.step((number, start, i), x_t, index, condition) if i in trained else self.policy.step(x_t, index, condition)

        return step

    def check(self, trajectory: Trajectory, prompts: list[str]) -> None:
        """Before anybody rates: does the first optimiser step see the same function as the sampler did, in the batches in which it will look?

        Raises:
            PolicyMismatch: it does not.
        """
        self.checked = True
        if self.config.objective not in ("ddpo-is", "ddpo-sf"):
            return
        n = len(prompts)
        weights = Weights(torch.ones(n), torch.ones(n, dtype=torch.bool))
        conditions = self.policy.encode(prompts, self.config.guidance_in_training)
        lesson = make_lesson(self.config.with_changes(ratio="plain"), self.policy, trajectory, conditions, weights, 0, lambda: None)
        items = lesson.items(torch.arange(n), 0, torch.Generator().manual_seed(0))
        most = self.config.update_microbatch
        parts = self._as_sampled(items, {0: range(n)})[:: max(1, len(items) // most)] if self.config.reuses_forward else [Part(items[:most])]
        with torch.no_grad():
            self._refuse(lesson, max(lesson.loss(part.items[:, 0], part.items[:, 1])[1] for part in parts))

    def _refuse(self, lesson: Lesson, deviation: float) -> None:
        """Raise :class:`PolicyMismatch` where a ratio that should be 1 is not."""
        if deviation > lesson.tolerance:
            wider = ", or a larger clip_nats" if self.config.objective == "ddpo-is" else ""
            raise PolicyMismatch(
                f"Re-scoring the model's own images moves the ratio by {deviation:.1e}, and no more than {lesson.tolerance:.1e} will do. "
                "Sampling and training do not see the same function: start a run with precision fp32, with an update_microbatch equal to "
                f"microbatch{wider}."
            )

    # --- score ------------------------------------------------------------------------------------------------------------------

    def reward(self, name: str) -> Cached:
        """The automatic reward of that name, made when it is first asked for.

        Raises:
            RewardError: it cannot be made.
        """
        if name not in self.rewards:
            self.rewards[name] = Cached(self.source(name))
        return self.rewards[name]

    def scores_ahead(self, name: str) -> bool:
        """Whether a reward scores while images are made: not where its networks and the model would share the same processor's cores."""
        if self.config.reward_offload:
            return False
        card, remote = rewards.card(name), self.config.reward_vlm.startswith("http")
        on_cpu = self.policy.device.type == "cpu" and self.config.reward_device in ("auto", "cpu")
        return not (card.published and on_cpu and not (remote and "vlm" in card.published))

    def score(self, reward: str, groups: Sequence[Sequence[tuple[int, str, str]]]) -> dict[str, Any]:
        """Ask an automatic reward about this process's share of some microbatches of samples (id, prompt, image's path).

        Returns:
            ``scores``: id, value and explanation of each; or ``error``: why there are none.
        """
        mine = [row for group in self.crew.share(list(groups)) for row in group]
        try:
            scores = self.reward(reward).score([Sample(id, prompt, read_image(self.folder / path)) for id, prompt, path in mine])
        except RewardError as error:
            traceback.print_exception(error)
            return dict(error=str(error))
        return dict(scores=[(id, score.value, dict(score.explanation)) for (id, _, _), score in zip(mine, scores, strict=True)])

    def ready(self, names: Sequence[str]) -> str:
        """Load what automatic rewards need; returns why that cannot be, or nothing."""
        try:
            for name in names:
                self.reward(name).ready(self.config.prompts[0])
        except RewardError as error:
            return str(error)
        return ""

    def free(self, keep: Sequence[str] = ()) -> None:
        """Give the memory of rewards' networks back, but for some."""
        for name, reward in self.rewards.items():
            if name not in keep:
                reward.free()

    # --- learn ------------------------------------------------------------------------------------------------------------------

    def learn(self, number: int, values: Sequence[float], rated: Sequence[bool], stale: bool = False) -> dict[str, Any]:
        """Learn from the round together: every process takes its share of each step's items, and all make the same step. (What the round's first
        policy says beyond its log-probabilities, where that is needed, every process computes for itself.)

        Args:
            values, rated: the round's weights, by position (:class:`ddpo.objective.Weights`).
            stale: whether an update came between the round's images and this one; the ratio is then no longer 1 at the start.

        Returns:
            The sums of this process's health, the norms of all gradients, the most memory that it has taken so far, in GB, and what some images
            were sampled by, where this process rounds otherwise.

        Raises:
            PolicyMismatch: the ratio is not 1 before the first step.
            TrainingError: the loss or the gradient is no number.
        """
        for settings in self.optimiser.param_groups:
            settings["lr"] = self.config.learning_rate_at(number)
        n, size = self.config.images_per_round, self.config.images_per_update
        microbatches, trajectory, elsewhere = self.microbatches(number), *self.trajectory_here(number)
        if trajectory.means is None and self.config.keeps_means and not self.config.guidance_in_training:
            raise TrainingError(
                f"Round {number} was sampled by an older version, which did not keep what is needed to learn from it without guidance in training. "
                "Go on from the round before it by `python -m ddpo fork`, or start again, with this run's ratings by ratings_from."
            )
        conditions = self.policy.encode(self.draw_prompts(number), self.config.guidance_in_training)
        weights = Weights(torch.tensor(values, dtype=torch.float32), torch.tensor(rated))
        lesson = make_lesson(self.config, self.policy, trajectory, conditions, weights, number, lambda: self.report("updating", number, 0, 0))
        total = self.config.passes * len(lesson.images) * lesson.moments
        done = 0
        norms: list[float] = []
        self.report("updating", number, 0, total)
        for p in range(self.config.passes):
            generator = self._generator(number, p)
            order = torch.randperm(n, generator=generator)
            for k, group in enumerate(order.split(size)):
                group = group[torch.isin(group, lesson.images)]
                if not len(group):
                    continue
                items = lesson.items(group, p, generator)
                items = items[torch.randperm(len(items), generator=generator)]
                if p == k == 0 and self.config.reuses_forward:
                    parts = self._as_sampled(items, microbatches)
                else:
                    parts = self.split(items)
                norm = math.inf
                while not math.isfinite(norm):  # more than once where fp16 overflows: the loss is then scaled by half as much
                    seen = done
                    for part in self.crew.share(parts):
                        self._accumulate(lesson, part, number, size * lesson.moments, check=not norms and not stale)
                        seen += len(part.items) * self.crew.size
                        self.report("updating", number, min(total, seen), total)
                    norm = self._step()
                done += len(items)
                norms.append(norm)
        self.kept.clear()
        return dict(health=asdict(lesson.health), norms=norms, memory_gb=peak_memory(self.policy.device), elsewhere=elsewhere)

    def split(self, items: Tensor) -> list[Part]:
        """Some items in parts of ``update_microbatch`` at most, as many of them for each process."""
        wanted = self.crew.size * math.ceil(len(items) / (self.crew.size * self.config.update_microbatch))
        return [Part(part) for part in items.tensor_split(min(len(items), wanted))]

    def _as_sampled(self, items: Tensor, microbatches: Mapping[int, Sequence[int]]) -> list[Part]:
        """The items of the first optimiser step in the parts in which they were sampled: a microbatch at one denoising step each. With a number of
        microbatches that the processes share evenly, each process learns from what it sampled."""
        parts = []
        for moment in items[:, 1].unique().tolist():
            images = set(items[items[:, 1] == moment, 0].tolist())
            for start, batch in microbatches.items():
                mine = torch.tensor([position for position in batch if position in images])
                if len(mine):
                    parts.append(Part(torch.stack([mine, torch.full_like(mine, moment)], 1), start, tuple(batch)))
        return parts

    def _gaussian(self, lesson: Lesson, part: Part, number: int) -> Gaussian | None:
        """The policy at a part's items from the pass that sampled the whole microbatch, kept or computed again, where it is worth that."""
        if not isinstance(lesson, TrajectoryLesson) or not part.batch:
            return None
        moment = int(part.items[0, 1])
        kept = self.kept.take((number, part.start, moment))
        if 2 * len(part.items) < len(part.batch):
            return None
        whole = torch.tensor(part.batch)
        gaussian = kept or lesson.gaussian(whole, torch.full_like(whole, moment))
        rows = torch.isin(whole, part.items[:, 0]).nonzero()[:, 0].to(gaussian.mean.device)
        return Gaussian(gaussian.mean[rows], gaussian.std[rows])

    def _accumulate(self, lesson: Lesson, part: Part, number: int, count: int, check: bool) -> None:
        """Add the gradient of a part's items to that of the mean over ``count`` items."""
        loss, deviation = lesson.loss(part.items[:, 0], part.items[:, 1], self._gaussian(lesson, part, number))
        if not math.isfinite(deviation) or not bool(torch.isfinite(loss).all()):
            raise TrainingError("The loss is no number (NaN): training has diverged. Start again with a lower learning rate, or in fp32.")
        if check:
            self._refuse(lesson, deviation)
        self.scaler.scale(loss.sum() / count).backward()

    def _step(self) -> float:
        """One optimiser step; returns the gradient's norm before it was scaled down, or infinity where fp16 overflowed and no step was made."""
        self.crew.gate()
        self.crew.sum_gradients(self.parameters.values())
        self.scaler.unscale_(self.optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.max_grad_norm))
        if not math.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1.0):
            raise TrainingError("The gradient is no number (NaN): training has diverged. Start again with a lower learning rate, or in fp32.")
        self.crew.listening(lambda: self.scaler.step(self.optimiser))
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.kept.clear()
        if not math.isfinite(norm):
            return math.inf
        if self.average is not None:
            self.average.step(self.parameters.values())
        return norm

    # --- weights ----------------------------------------------------------------------------------------------------------------

    def save(self, place: str, number: int) -> None:
        """Write the state after a round, and the file that people take away, into a place named by its path in the run's folder."""
        folder = self.folder / place
        if not self.crew.leads:
            if self.moments is not self.optimiser:
                save_moments(folder, self.crew.rank, self.parameters, self.moments)
            return
        save_state(folder, self.config, number, self.parameters, self.moments, self.scaler, self.average, self.policy.fingerprint)
        with self.averaged():
            self.policy.save_adapter(folder)

    def load(self, place: str) -> None:
        """Go on from a saved state, named by its path in the run's folder."""
        self.kept.clear()
        load_state(self.folder / place, self.parameters, self.moments, self.scaler, self.average, self.policy.fingerprint)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the weights are their moving average, where one is kept: those are measured and taken away."""
        if self.average is None:
            yield
            return
        trained = [p.data for p in self.parameters.values()]
        try:
            for parameter, shadow in zip(self.parameters.values(), self.average.shadow_params, strict=True):
                parameter.data = shadow
            yield
        finally:
            for parameter, data in zip(self.parameters.values(), trained, strict=True):
                parameter.data = data

    def trajectory_here(self, number: int) -> tuple[Trajectory, str]:
        """What was sampled in a round, by position; and what it was sampled by, where that is not what this process computes by: on another machine,
        or with half precision there and not here. Such microbatches are scored anew, since a ratio of one arithmetic's probabilities to another's is
        that of their roundings. (Where images were made ahead of an update, that update then counts as theirs.)"""
        microbatches, prompts = self.microbatches(number), self.draw_prompts(number)
        parts, here, elsewhere = list[Trajectory](), arithmetic_of(self.policy), ""
        for start, batch in microbatches.items():
            part = Trajectory.load(self.part(number, start))
            if part.arithmetic not in ("", here) and self.config.objective in ("ddpo-is", "ddpo-sf"):
                part, elsewhere = rescored(self.policy, part, [prompts[i] for i in batch]), part.arithmetic
            parts.append(part)
        order = torch.tensor([position for batch in microbatches.values() for position in batch])
        return Trajectory.concatenate(parts)[order.argsort()], elsewhere

    def part(self, number: int, start: int) -> Path:
        """The file of the microbatch of a round that begins at position ``start``."""
        return self.folder / "rounds" / f"{number:04d}" / f"part-{start:05d}.safetensors"


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has taken so far, in GB: tensors' where the model is on a GPU, else all of it; NaN where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def make_optimiser(config: RunConfig, parameters: Iterable[torch.nn.Parameter], crew: Crew) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """AdamW with the paper's betas, and the part of it that holds this process's moments. (In 8 bits every process keeps them all.)

    Raises:
        ConfigError: 8 bits are asked for, and their package is not installed.
    """
    settings: dict[str, Any] = dict(lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay, eps=1e-8)
    if config.optimiser == "adamw":
        return crew.optimiser(parameters, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(EIGHT_BITS) from error
    optimiser: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
    return optimiser, optimiser
