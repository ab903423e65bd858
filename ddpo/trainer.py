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
* After the first images of a worker, and before each round's first optimiser step, every ratio must be 1; if it is not, the run stops and says why
  (:class:`ddpo.engine.PolicyMismatch`). (Where that step takes up sampling's own passes, the second can only see what was stored.) Where images that
  were made ahead of earlier rounds' updates (``ahead``) are learned from, ratios start elsewhere, and only the first of these holds.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

import rewards
from ddpo.advantage import saturation
from ddpo.config import RunConfig
from ddpo.control import ChangeReward, Control, StopRun
from ddpo.crew import Crew
from ddpo.engine import Engine, Report, Source
from ddpo.evaluate import HeldOut, held_out
from ddpo.files import read_image, sync_names, sync_tree
from ddpo.loss import Health
from ddpo.monitor import Monitor, pays_for
from ddpo.objective import Weights, advantages_of, weights_of
from ddpo.policy import Policy
from ddpo.records import SampleRow
from ddpo.result import ROLLBACK, rolled_back, words_of
from ddpo.rollout import batches, derive_seed
from ddpo.store import PARENT, RunStore
from ddpo.taster import Taster
from ddpo.tracker import Tracker
from rewards.base import RewardError, Sample, Score
from rewards.blend import Standard, blended

LOOKED_AT = 64
"""Of a round's images so many are measured, to see what the reward pays for."""


class Trainer:
    """Runs the rounds of one run that are not on disk yet: it leads, and keeps the run's books."""

    def __init__(
        self, config: RunConfig, store: RunStore, policy: Policy, control: Control, source: Source = rewards.load, crew: Crew | None = None
    ) -> None:
        """``source`` makes the automatic rewards."""
        self.config, self.store, self.control, self.crew = config, store, control, crew or Crew()
        self.engine = Engine(config, store.folder, policy, source, self.crew, control.report)
        self.taster = Taster(config, store)
        self.monitor = Monitor(config, store, self.engine)
        self.tracker = Tracker(config, store)
        self._seconds_ahead = 0.0  # of other work within a phase
        self._made: dict[int, tuple[int, float]] = {}  # by round, how many images this worker has made, and in how many seconds
        self.verbs = dict(sampled=self.make, scored=self.score, updated=self.update, checkpointed=self.checkpoint)

    def run(self) -> bool:
        """Run to the last round; True when all rounds are done, False when somebody asked to stop before.

        Raises:
            StopRun: somebody asked to stop now.
            TrainingError: it cannot go on.
            RewardError: what the model of taste sees with cannot be had.
        """
        self.restore()
        if "human" in rewards.parts(self.store.reward_wanted or self.store.reward_at(self.config.rounds)):
            self.taster.ready()
        self.tracker.start()
        for number in range(1, self.config.rounds + 1):
            while (mark := self.store.start_round(number).next_mark) is not None:
                started, self._seconds_ahead = time.monotonic(), 0.0
                self.verbs[mark](number)
                self._done(number, mark, time.monotonic() - started - self._seconds_ahead)
            every = self.config.held_out_every
            if every and number % every == 0 and number < self.config.rounds:
                self.measure(number)
            if not self._people_rate(number + 1):
                self.watch(number)
            self.tracker.send()
            if self.control.stop_after_round and number < self.config.rounds:
                return False
        return True

    def _done(self, number: int, mark: str, seconds: float) -> None:
        if mark == "sampled":
            seconds += self.store.metric(number, "seconds_sampling") or 0.0  # of the first images, made ahead
            made, took = self._made.pop(number, (0, 0.0))
            self.store.add_metrics(number, dict(images_per_second=made / took) if made else {})
        self.store.add_metrics(number, {f"seconds_{PHASES[mark]}": seconds})
        self.store.mark(number, mark)

    # --- sample -----------------------------------------------------------------------------------------------------------------

    def make(self, number: int) -> None:
        """Make a round's images. Where people rate, a board of the first of them is there to be rated from then on, so the next board's come before
        the rest, which nobody waits for; they are by the same policy either way."""
        if self._people_rate(number) and self.config.board_pool < self.config.images_per_round:
            self.sample(number, most=self.config.board_pool)
            self.sample_ahead(number)
        self.sample(number)

    def sample(self, number: int, report: Report | None = None, most: int | None = None) -> None:
        """Denoise the round's images, a microbatch a process at a time, or with ``most`` the first microbatches that hold so many; what is on disk
        already is not sampled again."""
        n, report = self.config.images_per_round, report or self.control.report
        promised = {row.position for row in self.store.samples(number)}
        wanted = {start: batch for start, batch in self.engine.microbatches(number).items() if most is None or start < most}
        missing = [start for start, batch in wanted.items() if not (self.engine.part(number, start).exists() and promised.issuperset(batch))]
        ends = [*missing, max(start + len(batch) for start, batch in wanted.items())]
        report("sampling", number, ends[0], n)
        ahead = automatic(self.store.reward_wanted or self.store.reward_at(number))
        shown, updates = self.taster.shown(number), self._updates()
        for wave in batches(len(missing), self.crew.size):
            started, starts = time.monotonic(), [missing[i] for i in wave]
            for made in self.crew.together("sample", number=number, starts=starts, ahead=ahead):
                for batch in made:
                    self.store.add_samples(number, **batch, shown=shown, updates=updates)
            images, seconds = self._made.get(number, (0, 0.0))
            self._made[number] = images + sum(len(wanted[start]) for start in starts), seconds + time.monotonic() - started
            self.taster.choose(number)  # before anybody can stop it
            report("sampling", number, ends[wave.stop], n)
        sync_names(self.engine.part(number, 0), self.store.folder)
        self.taster.choose(number)  # where a worker was killed before it had

    def sample_ahead(self, number: int) -> None:
        """While people rate a round's board, make the next one, or its first images, by the model that these ratings have not reached. The time
        counts as the next one's."""
        following = self.taster.next_board(number)
        n, most = self.config.images_per_round, self.config.ahead
        most = self.config.board_pool if most and self.config.board_chosen else min(most, n)
        if not most or following > self.config.rounds:
            return
        self.store.start_round(following)
        if len(self.store.samples(following)) >= most:
            self.taster.choose(following)
            return
        started, images = time.monotonic(), len(self.store.board(number))

        def waiting(state: str, at: int, done: int, total: int) -> None:
            self.control.report("awaiting", number, 0, images)

        self.sample(following, waiting, most)
        self._seconds_ahead = time.monotonic() - started
        if len(self.store.samples(following)) == n:
            self._done(following, "sampled", self._seconds_ahead)
        else:
            self.store.add_metrics(following, dict(seconds_sampling=self._seconds_ahead))

    # --- score ------------------------------------------------------------------------------------------------------------------

    def score(self, number: int) -> None:
        """Ask the rewards; scores that exist already stay. Where one fails, the round waits for people to decide."""
        before = self.store.reward_at(number)
        while True:
            reward = self.control.reward_for(number)
            if reward != before:
                self.crew.together("free", keep=automatic(reward))
            before = reward
            try:
                for name in rewards.parts(reward):
                    self._score_by(name, number)
                break
            except RewardError as error:
                self.control.wait_for_reward(number, error)
            except ChangeReward:
                pass  # instead of rating
        if reward.startswith(rewards.BLEND):
            self._blend(number, reward, rewards.parts(reward))
        if self.config.reward_offload:
            self.crew.together("free")
        self._describe_scores(number)

    def ready(self) -> None:
        """Load what will score, on every process, before anything is sampled.

        Raises:
            RewardError: it cannot be had; the message says what to do.
        """
        last = max((row.number for row in self.store.rounds()), default=0)
        found = self.crew.together("ready", names=automatic(self.store.reward_wanted or self.store.reward_at(last)))
        for error in filter(None, found):
            raise RewardError(error)
        if self.config.reward_offload:
            self.crew.together("free")

    def _score_by(self, name: str, number: int) -> None:
        """Have one reward score what it has not scored yet, a microbatch a process at a time.

        Raises:
            RewardError: it failed; what it scored before is kept.
        """
        rows = self.store.samples(number)
        have = self.store.scores(number, name)
        missing = [row for row in rows if row.id not in have]
        if name == "human":
            self._ask_people(number, missing)
            return
        asked = [[(missing[i].id, missing[i].prompt, missing[i].image) for i in batch] for batch in batches(len(missing), self.config.microbatch)]
        for wave in batches(len(asked), self.crew.size):
            self.control.report("scoring", number, len(rows) - len(missing) + wave.start * self.config.microbatch, len(rows))
            found = self.crew.together("score", reward=name, groups=[asked[i] for i in wave])
            scores = [score for part in found for score in part.get("scores", ())]
            self.store.add_scores(name, {id: Score(value, explanation) for id, value, explanation in scores})
            for part in found:
                if "error" in part:
                    raise RewardError(part["error"])

    def _blend(self, number: int, reward: str, weights: Mapping[str, float]) -> None:
        """Blend the scores of its parts."""
        rows = self.store.samples(number)
        parts = {name: self._said(number, name) for name in weights}
        scores = blended(weights, self._standards(weights), {name: [found[row.id] for row in rows] for name, found in parts.items()})
        self.store.add_scores(reward, {row.id: score for row, score in zip(rows, scores, strict=True)})

    def _standards(self, names: Iterable[str]) -> dict[str, Standard]:
        return {name: Standard.of(self.store.first_values(name)) for name in names}

    def _ask_people(self, number: int, rows: list[SampleRow]) -> None:
        """Wait for people, for the whole board at once; then the model of their taste says what it makes of the round."""
        if any(row.shown for row in rows) and self.taster.asks(number):
            self.sample_ahead(number)
            self.watch(number - 1, meanwhile=number)
            human = rewards.load("human", collect=self.control.collect(number), weights=lambda: self.store.weights)
            board = [row for row in rows if row.shown]
            scores = human.score([Sample(row.id, row.prompt, read_image(self.store.folder / row.image)) for row in board])
            said = {row.id: score for row, score in zip(board, scores, strict=True)}
            self.store.add_scores(human.name, {row.id: said.get(row.id, Score(None)) for row in rows})
        self.taster.guess(number)

    def _describe_scores(self, number: int) -> None:
        rows = self.store.samples(number)
        prompts = [row.prompt for row in rows]
        said = self.store.scores(number, self.store.reward_at(number))  # by people themselves, whatever is guessed
        known = torch.tensor([score.value for score in said.values() if score.value is not None], dtype=torch.float64)
        weights = self.weights(number).values.tolist()
        idle = {p for p in prompts if not any(w != 0 for w, q in zip(weights, prompts, strict=True) if q == p)}
        metrics = dict(scored_images=float(len(known)), zero_spread_prompts=float(len(idle)))
        if len(known):
            metrics |= dict(reward_mean=float(known.mean()), reward_std=float(known.std(correction=0)))
        if (reward := self.store.reward_at(number)).startswith(rewards.BLEND):
            for name in rewards.parts(reward):
                scores = [score.value for score in self.store.scores(number, name).values() if score.value is not None]
                metrics |= {f"mean_of_{name}": fmean(scores)} if scores else {}
        if self.config.watch_every and "human" not in rewards.parts(reward):  # people are not kept waiting for it
            scored = [(row, value) for row in rows if row.id in said and (value := said[row.id].value) is not None][:LOOKED_AT]
            with contextlib.suppress(OSError):
                images = [read_image(self.store.folder / row.image) for row, _ in scored]
                metrics |= pays_for(images, [row.prompt for row, _ in scored], [value for _, value in scored])
        self.store.add_metrics(number, metrics)

    def _values(self, number: int) -> tuple[list[float | None], list[str]]:
        """The round's scores and prompts, by position."""
        rows, scores = self.store.samples(number), self._said(number, self.store.reward_at(number))
        return [scores[row.id].value if row.id in scores else None for row in rows], [row.prompt for row in rows]

    def _said(self, number: int, name: str) -> dict[int, Score]:
        """What a reward says of a round's samples, by id: of people's ratings, what is learned from them."""
        return self.taster.learned(number) if name == "human" else self.store.scores(number, name)

    def weights(self, number: int) -> Weights:
        """How much each of the round's images counts."""
        values, prompts = self._learned_values(number)
        return weights_of(self.config, values, prompts, self._weighed(number, self._advantages(number, values, prompts)))

    def _advantages(self, number: int, values: list[float | None], prompts: list[str]) -> Tensor:
        reward = self.store.reward_at(number)
        return advantages_of(self.config, values, prompts, lambda: self.store.score_history(reward, number))

    def _weighed(self, number: int, advantages: Tensor) -> Tensor:
        """Advantages by how sure the guesses are that they are from, where that counts."""
        guessed = self.store.reward_at(number) == "human" and self.config.advantage == "group"
        return advantages * torch.tensor(self.taster.certainty(number)) if guessed else advantages

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
        """Learn from the round, and put the new weights on disk beside it, durably."""
        self.control.report("updating", number)
        weights, behind = self._learnable(number, self.weights(number))
        new = self._new_state(number)
        shutil.rmtree(new, ignore_errors=True)  # of processes that were killed, and may have been others
        found = self.crew.together("learn", number=number, values=weights.values.tolist(), rated=weights.rated.tolist(), stale=behind > 0)
        if elsewhere := next((part["elsewhere"] for part in found if part["elsewhere"]), ""):
            self.store.add_event("sampling", f"Round {number} was sampled by {elsewhere}, and is learned from by another processor or type.")
        health, norms = Health.merged([Health(**part["health"]) for part in found]), found[0]["norms"]
        values, prompts = self._learned_values(number)
        advantages, learned = self._advantages(number, values, prompts), float(weights.rated.sum())
        metrics = dict(advantage_abs_mean=float(self._weighed(number, advantages).abs().mean()))
        metrics |= dict(advantage_saturation=saturation(advantages, values, self.config.advantage_clip))
        metrics |= dict(updates=float(len(norms)), updates_behind=float(behind), learned_images=learned)
        metrics |= dict(learning_rate=self.config.learning_rate_at(number))
        self.store.add_metrics(number, health.metrics() | metrics | dict(memory_gb=max(part["memory_gb"] for part in found)))
        if norms:
            self.store.add_metrics(number, dict(grad_norm=sum(norms) / len(norms)))
        self.crew.together("save", place=new.relative_to(self.store.folder).as_posix(), number=number)
        sync_tree(new)
        sync_names(new, self.store.folder)

    def _updates(self) -> int:
        """How many rounds the present policy has learned from."""
        return sum(row.updated_at is not None for row in self.store.rounds())

    def _learnable(self, number: int, weights: Weights) -> tuple[Weights, int]:
        """What of a round is learned from, and how many rounds have been learned from since the first of these images was made.

        Where guesses lead, images that a board was chosen of ahead of an update have done their work with being rated, and the present policy's own
        ones teach without a ratio to correct for; if there is a prompt's worth of them.
        """
        behind = self._updates() - torch.tensor([row.updates for row in self.store.samples(number)])
        fresh = (behind == 0) & weights.rated
        led = self.config.board_chosen and self.store.reward_at(number) == "human" and self.taster.leads(number)
        if led and int(fresh.sum()) >= self.config.images_per_prompt:
            weights, behind = Weights(weights.values * fresh, fresh), behind[fresh]
        return weights, int(behind.max())

    # --- checkpoint -------------------------------------------------------------------------------------------------------------

    def checkpoint(self, number: int) -> None:
        """Move the new weights to their place, promise them, and drop the round's tensors."""
        self.control.report("checkpointing", number, 0, 1)
        new, place = self._new_state(number), self.store.folder / "checkpoints" / f"{number:04d}"
        if new.exists():
            place.parent.mkdir(exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            new.rename(place)
        sync_names(place, self.store.folder)
        self.store.add_checkpoint(number, place)
        shutil.rmtree(self.engine.part(number, 0).parent, ignore_errors=True)

    def restore(self) -> None:
        """Take the weights of the last update that is on disk."""
        done = [row for row in self.store.rounds() if row.updated_at is not None]
        if not done:
            if self.store.parent is not None:
                self.crew.together("load", place=PARENT)
            return
        number = done[-1].number
        new, place = self._new_state(number), self.store.folder / "checkpoints" / f"{number:04d}"
        folder = new if done[-1].checkpointed_at is None and new.exists() else place
        self.crew.together("load", place=folder.relative_to(self.store.folder).as_posix())

    def _new_state(self, number: int) -> Path:
        return self.engine.part(number, 0).parent / "new"

    # --- measure ----------------------------------------------------------------------------------------------------------------

    def measure(self, number: int) -> None:
        """The round's automatic reward on seeds that are never trained on, of the base model and of the present one; each measured once."""
        reward = self.store.reward_at(number)
        if "human" in rewards.parts(reward) or not self.config.held_out_images or not number:
            return
        since = max(first for first, _ in self.store.reward_stretches() if first <= number)
        wanted = {(number, "held_out_reward"): False, (0, "held_out_reward") if since == 1 else (since, "held_out_base"): True}
        missing = {key: base for key, base in wanted.items() if not self.store.has_metric(*key)}
        for (at, name), base in missing.items():
            found = self._held_out(number, reward, base)
            if found is None:  # never, then: later it would be of other weights
                self.store.add_metrics(number, dict(held_out_reward=math.nan, held_out_reward_std_error=math.nan))
                return
            self.store.add_metrics(at, {name: found.mean, f"{name}_std_error": found.std_error})
        if missing and self.config.reward_offload:
            self.crew.together("free")

    def conclude(self) -> None:
        """At the end, measure what is taken away: the last round, or the one that the run is rolled back to, by its own weights."""
        last = max(self.store.checkpoints(), default=0)
        number = rolled_back(self.store) or last
        if number != last:
            self.crew.together("load", place=self.store.checkpoints()[number].relative_to(self.store.folder).as_posix())
        self.measure(number)

    def watch(self, number: int, meanwhile: int = 0) -> None:
        """Watch for overoptimisation after a round, where that is due and its weights are the present ones: by itself, or while people rate the board
        of the round ``meanwhile``.

        Raises:
            StopRun: it goes wrong while people rate, and the run rolls back.
        """
        if self._updates() != number or not self.monitor.due(number):
            return
        started, images = time.monotonic(), len(self.store.board(meanwhile)) if meanwhile else 0

        def report(done: int, total: int) -> None:
            self.control.report(*("awaiting", meanwhile, 0, images) if meanwhile else ("measuring", number, done, total))

        if meanwhile and self.engine.policy.autocast is not None:
            self.engine.kept.clear()  # they hold the weights in half precision, while watching holds them in full
        metrics = self.monitor.watch(number, report)
        self._seconds_ahead += time.monotonic() - started
        alarm = self.monitor.alarm(number)
        began = alarm is not None and alarm.began == number  # once, however long it lasts
        if alarm is not None and began:
            self.store.add_event("alarm", alarm.text)
            if self.config.on_alarm == "rollback":
                self.store.add_event(ROLLBACK, words_of(alarm))
        self.store.add_metrics(number, metrics)
        if alarm is not None and began and self.config.on_alarm == "rollback" and meanwhile and alarm.back:
            raise StopRun  # nobody is to rate a board of what is given up
        if began and self.config.on_alarm in ("stop", "rollback"):
            self.store.add_event("answer", self.control.stop_soon())
        elif began and self.config.on_alarm == "pause":
            self.control.pause()
            report(0, 0)

    def _people_rate(self, number: int) -> bool:
        """Whether people will be asked about a round, which leaves time for other work."""
        reward = self.store.reward_wanted or self.store.reward_at(number)
        return number <= self.config.rounds and "human" in rewards.parts(reward) and self.taster.asks(number)

    def _held_out(self, number: int, reward: str, base: bool) -> HeldOut | None:
        """One measurement; None where the reward failed and people asked for another one."""

        def report(done: int, total: int) -> None:
            self.control.report("measuring", number, done, total)

        while True:
            try:
                scorer = self.monitor.scorer(reward)
                with self.engine.averaged():
                    return held_out(self.engine.policy, scorer, self.config, base=base, report=report)
            except RewardError as error:
                self.control.wait_for_reward(number, error)
                if self.store.reward_wanted:
                    return None


def automatic(reward: str) -> list[str]:
    """The parts of a reward that need no people."""
    return [name for name in rewards.parts(reward) if name != "human"]


PHASES = dict(sampled="sampling", scored="scoring", updated="updating", checkpointed="checkpointing")


def summary(metrics: Mapping[str, list[tuple[int, float | None]]], result: int | None = None) -> dict[str, object]:
    """What a run came to: rounds, held-out reward before and after, seconds per phase.

    Args:
        result: the round that the run is rolled back to, if it is.
    """
    held, bases = dict(metrics.get("held_out_reward", [])), dict(metrics.get("held_out_base", []))
    last = result or max(held, default=0)
    before = bases[max(since)] if (since := [at for at in bases if at <= last]) else held.get(0)
    after = held.get(last) if last else None
    seconds = {
        name.removeprefix("seconds_"): round(sum(v or 0.0 for _, v in points), 2) for name, points in metrics.items() if name.startswith("seconds_")
    }
    gain = None if before in (None, 0) or after is None else round(100 * (after - before) / abs(before), 2)
    rounds = max((number for number, _ in metrics.get("seconds_checkpointing", [])), default=0)
    return dict(rounds=rounds, result=result or rounds, reward_before=before, reward_after=after, gain_percent=gain, seconds=seconds)
