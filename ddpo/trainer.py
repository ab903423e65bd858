"""The round loop: DDPO with importance sampling, or another objective.

As in Black et al. 2023, Algorithm 1 (DDPO-IS)::

    for each round:
        sample   draw prompts; denoise images with the present policy; keep x_T, ..., x_0 and log p(x_prev | x_t)
        score    r(x_0, prompt), by a reward or by people; advantage = standardised within each prompt
        update   for each group of images: ascend  Σ_t min(A ρ_t, A clip(ρ_t, 1 ± ε))  over all its denoising steps at once
                 (or one of the other objectives: :mod:`ddpo.objective`)
        checkpoint

Each of the four verbs leaves a durable mark; a worker that dies goes on at the first missing one. All randomness comes from seeds that are derived
from (run seed, round, purpose), so an interrupted run equals the straight one.

What differs from the paper, and why:

* By default advantages are standardised within the round's images of a prompt, not by a running mean per prompt: with 16 to 64 images a round
  the paper's warm-up never ends (:mod:`ddpo.advantage`).
* The clip range follows the latent's size (:meth:`ddpo.config.RunConfig.clip_range`).
* All denoising steps of a group of images go into one optimiser step. (The paper does that too; the order of accumulation is immaterial.)
* The last denoising steps are sampled but not trained (``skip_last_steps``). A step of noise σ moves its mean by c per unit of the prediction; its
  gradient's noise grows with c/σ while what it can find out shrinks with σ. With few steps the step that arrives at ᾱ_1 has c/σ of about 8 where the
  others have 1, and alone makes most of the gradient's variance (``benchmarks/NOTEBOOK.md``).
* Images that teach nothing are not computed (:mod:`ddpo.objective`).
* After the first images of a run, and before each round's first optimiser step, every ratio must be 1; if it is not, the run stops and says why
  (:class:`PolicyMismatch`).
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor

from ddpo.checkpoint import load_state, save_state
from ddpo.config import ConfigError, RunConfig
from ddpo.control import Control
from ddpo.evaluate import held_out
from ddpo.objective import Lesson, Weights, advantages_of, make_lesson, weights_of
from ddpo.policy import Policy
from ddpo.rollout import batches, derive_seed, rollout
from ddpo.store import RunStore, SampleRow, sync_tree
from ddpo.trajectory import Trajectory
from rewards.base import Reward, Sample, Score


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, in plain words, and what to do."""


class PolicyMismatch(TrainingError):
    """Re-scoring the round's own samples does not give back their log-probabilities."""


class Trainer:
    """Runs the rounds of one run that are not on disk yet."""

    def __init__(
        self,
        config: RunConfig,
        store: RunStore,
        policy: Policy,
        control: Control,
        reward_for: Callable[[int], Reward],
    ) -> None:
        """``reward_for`` gives the reward of a round: people's ratings belong to one round, automatic rewards are the same for all."""
        self.config, self.store, self.policy, self.control, self.reward_for = config, store, policy, control, reward_for
        self.parameters = policy.parameters()
        self.optimiser = make_optimiser(config, self.parameters.values())
        self.scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.autocast is torch.float16)
        self.average = EMAModel(self.parameters.values(), decay=config.ema_decay) if config.ema_decay else None
        self.checked = False
        self.verbs = dict(sampled=self.sample, scored=self.score, updated=self.update, checkpointed=self.checkpoint)

    def run(self) -> bool:
        """Run to the last round; True when all rounds are done, False when somebody asked to stop before.

        Raises:
            StopRun: somebody asked to stop now.
            TrainingError: it cannot go on.
        """
        self.restore()
        for number in range(1, self.config.rounds + 1):
            while (mark := self.store.start_round(number).next_mark) is not None:
                started = time.monotonic()
                self.verbs[mark](number)
                self.store.add_metrics(number, {f"seconds_{PHASES[mark]}": time.monotonic() - started})
                self.store.mark(number, mark)
            every = self.config.held_out_every
            if every and number % every == 0 and number < self.config.rounds:
                self.measure(number)
            if self.control.stop_after_round and number < self.config.rounds:
                return False
        return True

    # --- sample -----------------------------------------------------------------------------------------------------------------

    def sample(self, number: int) -> None:
        """Draw the round's prompts and denoise its images, a microbatch at a time; what is on disk already is not sampled again."""
        n = self.config.images_per_round
        prompts = self.draw_prompts(number)
        seeds = [derive_seed(self.config.seed, number, "sample", i) for i in range(n)]
        self._part(number, 0).parent.mkdir(parents=True, exist_ok=True)
        self.control.report("sampling", number, 0, n)
        promised = {row.position for row in self.store.samples(number)}
        for batch in batches(n, self.config.microbatch):
            file = self._part(number, batch.start)
            if not (file.exists() and promised.issuperset(batch)):
                trajectory, images = self._rollout(file, [prompts[i] for i in batch], [seeds[i] for i in batch])
                trajectory.save(file)
                self.store.add_samples(number, list(batch), [prompts[i] for i in batch], [seeds[i] for i in batch], images)
                if not self.checked:
                    self.check(trajectory, [prompts[i] for i in batch])
            self.control.report("sampling", number, batch.stop, n)

    def check(self, trajectory: Trajectory, prompts: list[str]) -> None:
        """Before anybody rates: does the update see the same function as the sampler did, in its own batch size?

        Raises:
            PolicyMismatch: it does not.
        """
        self.checked = True
        if self.config.objective not in ("ddpo-is", "ddpo-sf"):
            return
        n = len(prompts)
        weights = Weights(torch.ones(n), torch.ones(n, dtype=torch.bool))
        as_sampled = self.config.with_changes(guidance_in_training=True, ratio="plain")
        lesson = make_lesson(as_sampled, self.policy, trajectory, self.policy.encode(prompts), weights, 0, self.control.listen)
        items = lesson.items(torch.arange(n), 0, torch.Generator().manual_seed(0))[: self.config.update_microbatch]
        with torch.no_grad():
            self._refuse(lesson, lesson.loss(*items.unbind(1))[1])

    def _refuse(self, lesson: Lesson, deviation: float) -> None:
        """Raise :class:`PolicyMismatch` where a ratio that should be 1 is not."""
        if deviation > lesson.tolerance:
            raise PolicyMismatch(
                f"Re-scoring the model's own images moves the ratio by {deviation:.1e}, and no more than {lesson.tolerance:.1e} will do. "
                "Sampling and training do not see the same function: choose precision fp32, an update_microbatch equal to microbatch, "
                "or a larger clip_nats."
            )

    def _rollout(self, file: Path, prompts: list[str], seeds: list[int]) -> tuple[Trajectory, list[Image.Image]]:
        """A microbatch, from its file when only its rows are missing."""
        if file.exists():
            trajectory = Trajectory.load(file)
            return trajectory, self.policy.decode(trajectory.latents[:, -1].to(self.policy.device))
        trajectory, images = rollout(self.policy, prompts, seeds)
        if not bool(torch.isfinite(trajectory.latents).all()):
            raise TrainingError("The model makes images that are no numbers (NaN). Resume from an earlier round with a lower learning rate.")
        return trajectory, images

    def draw_prompts(self, number: int) -> list[str]:
        """The prompt of each of the round's images, each drawn prompt ``images_per_prompt`` times in a row."""
        prompts, wanted = list(dict.fromkeys(self.config.prompts)), self.config.prompts_per_round
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, number, "prompts"))
        drawn: list[str] = []
        while len(drawn) < wanted:
            drawn += [prompts[i] for i in torch.randperm(len(prompts), generator=generator).tolist()]
        return [prompt for prompt in drawn[:wanted] for _ in range(self.config.images_per_prompt)]

    # --- score ------------------------------------------------------------------------------------------------------------------

    def score(self, number: int) -> None:
        """Ask the reward; scores that exist already stay."""
        reward, rows = self.reward_for(number), self.store.samples(number)
        have = self.store.scores(number, reward.name)
        missing = [row for row in rows if row.id not in have]
        # People are asked for the whole board at once, automatic rewards a microbatch at a time.
        size = len(rows) if self.config.rated_by_people else self.config.microbatch
        for batch in batches(len(missing), size):
            part = [missing[i] for i in batch]
            if not self.config.rated_by_people:
                self.control.report("scoring", number, len(rows) - len(missing) + batch.start, len(rows))
            self.store.add_scores(reward.name, self._ask(reward, part))
        self._describe_scores(number)

    def _ask(self, reward: Reward, rows: list[SampleRow]) -> dict[int, Score]:
        scores = reward.score([Sample(row.id, row.prompt, read_image(self.store.folder / row.image)) for row in rows])
        if len(scores) != len(rows):
            raise TrainingError(f"The reward {reward.name} gave {len(scores)} scores for {len(rows)} images.")
        return {row.id: score for row, score in zip(rows, scores, strict=True)}

    def _describe_scores(self, number: int) -> None:
        values, prompts = self._values(number)
        known = torch.tensor([v for v in values if v is not None], dtype=torch.float64)
        weights = self.weights(number).values.tolist()
        idle = {p for p in prompts if not any(w != 0 for w, q in zip(weights, prompts, strict=True) if q == p)}
        metrics = dict(scored_images=float(len(known)), zero_spread_prompts=float(len(idle)))
        if len(known):
            metrics |= dict(reward_mean=float(known.mean()), reward_std=float(known.std(correction=0)))
        self.store.add_metrics(number, metrics)

    def _values(self, number: int) -> tuple[list[float | None], list[str]]:
        """The round's scores and prompts, by position."""
        rows, scores = self.store.samples(number), self.store.scores(number, self.config.reward)
        return [scores[row.id].value if row.id in scores else None for row in rows], [row.prompt for row in rows]

    def advantages(self, number: int) -> Tensor:
        """The round's advantages, (n,)."""
        return self._advantages(number, *self._learned_values(number))

    def weights(self, number: int) -> Weights:
        """How much each of the round's images counts."""
        values, prompts = self._learned_values(number)
        return weights_of(self.config, values, prompts, self._advantages(number, values, prompts))

    def _advantages(self, number: int, values: list[float | None], prompts: list[str]) -> Tensor:
        return advantages_of(self.config, values, prompts, lambda: self.store.score_history(self.config.reward, number))

    def _learned_values(self, number: int) -> tuple[list[float | None], list[str]]:
        """The scores that are learned from, by position, and the prompts: shuffled for the control, within each prompt where scores are compared
        with those of earlier rounds."""
        values, prompts = self._values(number)
        if not self.config.shuffle_scores:
            return values, prompts
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, number, "shuffle"))
        if self.config.advantage != "history":
            return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()], prompts
        shuffled = list(values)
        for prompt in dict.fromkeys(prompts):
            rows = [i for i, p in enumerate(prompts) if p == prompt]
            for row, other in zip(rows, torch.randperm(len(rows), generator=generator).tolist(), strict=True):
                shuffled[row] = values[rows[other]]
        return shuffled, prompts

    # --- update -----------------------------------------------------------------------------------------------------------------

    def update(self, number: int) -> None:
        """Learn from the round, and put the new weights on disk beside it.

        Raises:
            PolicyMismatch: the ratio is not 1 before the first step.
            TrainingError: the loss or the gradient is no number.
        """
        n, size = self.config.images_per_round, self.config.images_per_update
        self.control.report("updating", number)
        trajectory = Trajectory.concatenate([Trajectory.load(self._part(number, b.start)) for b in batches(n, self.config.microbatch)])
        conditions = self.policy.encode([row.prompt for row in self.store.samples(number)], self.config.guidance_in_training)
        lesson = make_lesson(self.config, self.policy, trajectory, conditions, self.weights(number), number, self.control.listen)
        total = self.config.passes * len(lesson.images) * lesson.moments
        done = 0
        norms: list[float] = []
        self.control.report("updating", number, 0, total)
        for p in range(self.config.passes):
            generator = torch.Generator().manual_seed(derive_seed(self.config.seed, number, "update", p))
            order = torch.randperm(n, generator=generator)
            for group in order.split(size):
                group = group[torch.isin(group, lesson.images)]
                if not len(group):
                    continue
                items = lesson.items(group, p, generator)
                items = items[torch.randperm(len(items), generator=generator)]
                norm = math.inf
                while not math.isfinite(norm):  # more than once where fp16 overflows: the loss is then scaled by half as much
                    for i, part in enumerate(items.split(self.config.update_microbatch)):
                        self._accumulate(lesson, part, size * lesson.moments, check=not norms)
                        self.control.report("updating", number, min(total, done + (i + 1) * self.config.update_microbatch), total)
                    norm = self._step()
                done += len(items)
                norms.append(norm)
        size_of = float(self.advantages(number).abs().mean())
        self.store.add_metrics(number, lesson.health.metrics() | dict(advantage_abs_mean=size_of, updates=float(len(norms))))
        if norms:
            self.store.add_metrics(number, dict(grad_norm=sum(norms) / len(norms)))
        new = self._new_state(number)
        save_state(new, self.config, number, self.parameters, self.optimiser, self.scaler, self.average, self.policy.fingerprint)
        with self.averaged():
            self.policy.save_adapter(new)
        sync_tree(new)

    @contextmanager
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

    def _accumulate(self, lesson: Lesson, items: Tensor, count: int, check: bool) -> None:
        """Add the gradient of some (image, moment) items, (m, 2), to that of the mean over ``count`` items."""
        loss, deviation = lesson.loss(*items.unbind(1))
        if not math.isfinite(deviation) or not bool(torch.isfinite(loss).all()):
            raise TrainingError("The loss is no number (NaN): training has diverged. Start again with a lower learning rate, or in fp32.")
        if check:
            self._refuse(lesson, deviation)
        self.scaler.scale(loss.sum() / count).backward()

    def _step(self) -> float:
        """One optimiser step; returns the gradient's norm before it was scaled down, or infinity where fp16 overflowed and no step was made."""
        self.scaler.unscale_(self.optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.max_grad_norm))
        if not math.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1.0):
            raise TrainingError("The gradient is no number (NaN): training has diverged. Start again with a lower learning rate, or in fp32.")
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if not math.isfinite(norm):
            return math.inf
        if self.average is not None:
            self.average.step(self.parameters.values())
        return norm

    # --- checkpoint -------------------------------------------------------------------------------------------------------------

    def checkpoint(self, number: int) -> None:
        """Move the new weights to their place, promise them, and drop the round's tensors."""
        self.control.report("checkpointing", number, 0, 1)
        new, place = self._new_state(number), self.store.folder / "checkpoints" / f"{number:04d}"
        if new.exists():
            place.parent.mkdir(exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            new.rename(place)
            sync_tree(place.parent)
        self.store.add_checkpoint(number, place)
        shutil.rmtree(self._part(number, 0).parent, ignore_errors=True)

    def restore(self) -> None:
        """Take the weights of the last update that is on disk."""
        done = [row for row in self.store.rounds() if row.updated_at is not None]
        if not done:
            return
        number = done[-1].number
        new, place = self._new_state(number), self.store.folder / "checkpoints" / f"{number:04d}"
        folder = new if done[-1].checkpointed_at is None and new.exists() else place
        load_state(folder, self.parameters, self.optimiser, self.scaler, self.average, self.policy.fingerprint)

    def _part(self, number: int, start: int) -> Path:
        return self.store.folder / "rounds" / f"{number:04d}" / f"part-{start:05d}.safetensors"

    def _new_state(self, number: int) -> Path:
        return self._part(number, 0).parent / "new"

    # --- measure ----------------------------------------------------------------------------------------------------------------

    def measure(self, number: int) -> None:
        """The automatic reward on prompts and seeds that are never trained on, of the base model and of the present one; each measured once."""
        if self.config.rated_by_people or not self.config.held_out_images:
            return
        known = {at for at, value in self.store.metrics().get("held_out_reward", []) if value is not None}
        reward = self.reward_for(number)
        for at in sorted({0, number} - known):

            def report(done: int, total: int) -> None:
                self.control.report("measuring", number, done, total)

            with self.averaged():
                result = held_out(self.policy, reward, self.config, base=at == 0, report=report)
            self.store.add_metrics(at, dict(held_out_reward=result.mean, held_out_reward_std_error=result.std_error))


def make_optimiser(config: RunConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with the paper's betas.

    Raises:
        ConfigError: 8 bits are asked for and cannot be had.
    """
    settings: dict[str, Any] = dict(lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay, eps=1e-8)
    if config.optimiser == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    if not torch.cuda.is_available():
        raise ConfigError("optimiser is adamw8bit, which needs an NVIDIA GPU, and PyTorch sees none. Choose adamw.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError("optimiser is adamw8bit, which needs bitsandbytes: `pip install bitsandbytes`, or choose adamw.") from error
    optimiser: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
    return optimiser


PHASES = dict(sampled="sampling", scored="scoring", updated="updating", checkpointed="checkpointing")


def read_image(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def summary(metrics: Mapping[str, list[tuple[int, float | None]]]) -> dict[str, object]:
    """What a run came to: rounds, held-out reward before and after, seconds per phase."""
    held = dict(metrics.get("held_out_reward", []))
    last = max(held) if held else None
    before, after = held.get(0), held.get(last) if last else None
    seconds = {
        name.removeprefix("seconds_"): round(sum(v or 0.0 for _, v in points), 2) for name, points in metrics.items() if name.startswith("seconds_")
    }
    gain = None if before in (None, 0) or after is None else round(100 * (after - before) / abs(before), 2)
    rounds = max((number for number, _ in metrics.get("seconds_checkpointing", [])), default=0)
    return dict(rounds=rounds, reward_before=before, reward_after=after, gain_percent=gain, seconds=seconds)
