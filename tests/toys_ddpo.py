"""Tiny worlds for the tests of ``ddpo``: a linear-Gaussian policy, rewards that see one thing, and workers that are killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from ddpo.config import RunConfig
from ddpo.control import Control
from ddpo.diffusion import Gaussian, Schedule
from ddpo.files import write_file
from ddpo.rollout import noise_of
from ddpo.store import RunStore
from ddpo.trainer import Trainer
from rewards.base import Reward, Sample, Score
from tests.models import tiny_scheduler

THREADS = {"OMP_NUM_THREADS": "1"}
PROJECT = Path(__file__).resolve().parent.parent


class LinearPolicy:
    """A policy that can be solved on paper: latents 1 x 4 x 4 that are standard normal at the end, plus a learned shift for each prompt.

    The prediction is ε̂ = sqrt(1 - ᾱ) x_t - shift, the best guess where data are standard normal, moved by ``shift``; a positive shift makes
    latents larger, hence pictures brighter. A picture is the latent through a sigmoid.
    """

    device, autocast, fingerprint = torch.device("cpu"), None, "linear"
    latent_shape = (1, 4, 4)

    def __init__(self, config: RunConfig) -> None:
        self.schedule = Schedule.ddim(tiny_scheduler(), config.steps, config.eta)
        self.prompts = list(dict.fromkeys(config.prompts))
        self.shift = nn.Parameter(torch.zeros(len(self.prompts), *self.latent_shape))
        self.is_base = False

    def encode(self, prompts: Sequence[str], guided: bool = True) -> Tensor:
        return torch.tensor([self.prompts.index(p) if p in self.prompts else len(p) % len(self.prompts) for p in prompts])  # any other as one of them

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        guess = (1 - self.schedule.alpha_at(timestep)).sqrt() * x_t
        return guess if self.is_base else guess - self.shift[condition]

    def step(self, x_t: Tensor, index: Tensor, condition: Tensor) -> Gaussian:
        return self.schedule.step(x_t, index, self.predict(x_t, self.schedule.timesteps[index], condition))

    def decode(self, latents: Tensor) -> list[Image.Image]:
        return [Image.fromarray((255 * x[0].sigmoid()).round().to(torch.uint8).numpy()) for x in latents]

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"shift": self.shift}

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        self.is_base = True
        yield
        self.is_base = False

    def exact(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def save_adapter(self, folder: Path) -> None:
        write_file(folder / "shift.bin", self.shift.detach().numpy().tobytes())


def brightness(image: Image.Image) -> float:
    """Mean of the picture, 0 to 1."""
    return float(np.asarray(image.convert("L"), dtype=np.float64).mean()) / 255


class Brightness:
    """Bright is good. It takes the name of an automatic reward, since a run's settings name one."""

    def __init__(self, name: str = "jpeg_compressibility") -> None:
        self.name = name

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(brightness(sample.image)) for sample in samples]


class Choosy:
    """Brightness, with no opinion on some images and the same opinion of a whole prompt."""

    name = "jpeg_compressibility"

    def __init__(self, unrated: Sequence[int], equal: str = "") -> None:
        self.unrated, self.equal = unrated, equal

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        scores = Brightness().score(samples)
        return [
            Score(None) if sample.id in self.unrated else Score(0.25) if sample.prompt == self.equal else score
            for sample, score in zip(samples, scores, strict=True)
        ]


def toy_config(**changes: Any) -> RunConfig:
    """A run of the toy policy that takes about a second. Its rewards score when they are asked: some of them know images by their row."""
    settings: dict[str, Any] = dict(
        reward="jpeg_compressibility", prompts=("a cat", "a dog"), rounds=3, images_per_round=8, images_per_update=8, images_per_prompt=4,
        microbatch=16, update_microbatch=16, steps=4, skip_last_steps=0, step_weights="equal", learning_rate=0.05, device="cpu", held_out_images=16,
        reward_offload=True, watch_every=0,
    )  # fmt: skip
    return RunConfig(**(settings | changes))


def toy_trainer(folder: Path, config: RunConfig, reward: Reward | None = None, policy: Any = None) -> Trainer:
    """The real trainer over a real store, with the toy policy and reward; an existing run is gone on with."""
    store = RunStore(folder) if (folder / "config.json").exists() else RunStore.create(folder, config)
    control = Control(store)
    return Trainer(config, store, policy or LinearPolicy(config), control, lambda name: reward or Brightness(name))


def spread_scores(trainer: Trainer, number: int = 1) -> None:
    """Make a round up to its scores."""
    trainer.store.start_round(number)
    trainer.sample(number)
    trainer.store.mark(number, "sampled")
    trainer.score(number)
    trainer.store.mark(number, "scored")


def state_bits(file: Path) -> dict[str, bytes]:
    """Every tensor of a checkpoint as bytes. (The file's own bytes vary: safetensors writes its header in no fixed order.)"""
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name).numpy().tobytes() for name in sorted(stored.keys())} | {"round": stored.metadata()["round"].encode()}


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run came to but for clocks: weights and moments, metrics, images, scores. Equal means equal bit for bit."""
    store = RunStore(folder)
    try:
        numbers = [row.number for row in store.rounds()]
        samples = [row for number in numbers for row in store.samples(number)]
        return dict(
            states={n: state_bits(place / "state.safetensors") for n, place in store.checkpoints().items()},
            metrics={name: points for name, points in store.metrics().items() if not name.startswith(("seconds_", "memory_", "images_per_second"))},
            images=[(s.round, s.position, s.prompt, s.seed, s.image, (folder / s.image).read_bytes()) for s in samples],
            scores=[store.scores(number, store.config.reward) for number in numbers],
            marks=[row.next_mark for row in store.rounds()],
        )
    finally:
        store.close()


def rate_rounds(folder: Path, thumb: Callable[[Path], float | None], acknowledged: list[tuple[str, int]], stop: threading.Event) -> None:
    """A person: rates every image of a round that waits, in an order of its own, applies, and waits for the next. Run it in a thread."""
    store = RunStore(folder)
    draw, seen = random.Random(7), set[str]()
    while not stop.wait(0.01):
        row = store.last_round()
        if row is None or row.sampled_at is None or row.closed_at is not None:
            continue
        rows = store.samples(row.number)
        for sample in draw.sample(rows, len(rows)):
            client, value = f"click-{sample.id}", thumb(store.folder / sample.image)
            if client not in seen and value is not None:
                store.add_rating(client, sample.id, "anna", "thumbs", value)
                acknowledged.append((client, sample.id))
                seen.add(client)
        if not any(request.kind == "apply" for request in store.pending_requests()):
            store.add_request("apply", round=row.number)
    store.close()


def tiny_config(model: Path, **changes: Any) -> RunConfig:
    """A run of the tiny Stable Diffusion that takes about a second: 4 updates of 3 rounds of 8 images."""
    settings: dict[str, Any] = dict(
        model=str(model), reward="jpeg_compressibility", prompts=("a cat", "a dog"), rounds=3, images_per_round=8, images_per_prompt=4,
        images_per_update=4, microbatch=3, update_microbatch=3, steps=3, skip_last_steps=0, step_weights="equal", lora_rank=2, lora_alpha=8.0,
        device="cpu", precision="fp32", held_out_images=4, learning_rate=1e-2, watch_every=0,
    )  # fmt: skip
    return RunConfig(**(settings | changes))


def noise_batch(seeds: Sequence[int], steps: int, shape: tuple[int, int, int]) -> Tensor:
    """The noise that ``rollout`` gives these seeds, (n, steps + 1, c, h, w)."""
    return torch.stack([noise_of(seed, steps, shape) for seed in seeds])


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A folder that goes away, on a disk of memory where the system has one: a thousand fsyncs cost nothing there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


# --- processes --------------------------------------------------------------------------------------------------------------------


def forks() -> Any:
    """A context whose processes start within milliseconds: forked from a server that has imported torch and diffusers once."""
    os.environ.update(THREADS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.toys_ddpo", "ddpo.policy", "ddpo.worker", "tests.models"])
    return context


def work(folder: Path, surroundings: Mapping[str, str] | None = None) -> None:
    """The worker's main function, in a process of its own that says what it says to the run's log; with more environment variables."""
    from ddpo import worker

    os.environ.update(surroundings or {})
    log = os.open(folder / "worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(worker.main([str(folder)]))


def kill_after(folder: Path, process: Any, changes: int, patience: float = 250.0) -> bool:
    """Kill -9 a worker once it has written that many times to the database; False when it ended before."""
    store, last, seen = RunStore(folder), "", -1
    deadline = time.monotonic() + patience
    try:
        while process.is_alive() and time.monotonic() < deadline:
            if (revision := store.revision) != last:
                last, seen = revision, seen + 1
            if seen >= changes:
                process.kill()
                break
            time.sleep(0.0002)
        process.join()
        return process.exitcode == -9
    finally:
        store.close()


def finish(folder: Path) -> int:
    """Let a worker run the folder to its end; its exit code."""
    process = forks().Process(target=work, args=(folder,))
    process.start()
    process.join()
    return int(process.exitcode)
