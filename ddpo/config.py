"""The settings of one run: frozen, validated when made, one sentence a field. Imports no torch.

The sentences are the help texts of the command line and of the Run page; ``tests/test_docs.py`` holds ``docs/running.md`` to them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import rewards

SCHEMA_VERSION = 1
PROMPT_FOLDER = Path(__file__).parent / "prompts"
MAX_PROMPT_CHARACTERS = 10_000
FEWEST_REUSED = 8
"""The fewest images at once of which a pass is worth keeping (``benchmarks/NOTEBOOK.md``)."""


FEWEST_WATCHED = 8
"""The fewest watched pictures of which some are of prompts that are not trained (:func:`ddpo.monitor.watched_prompts`)."""


class ConfigError(ValueError):
    """A setting that cannot work; the message names it, gives the numbers, and says what to do."""


EIGHT_BITS = "optimiser is adamw8bit, which needs bitsandbytes: `pip install bitsandbytes`, or choose adamw."
"""What is said where its package is not installed."""


def prompt_sets() -> dict[str, tuple[str, ...]]:
    """The prompt sets that come with the project, by name; each a text file in ``ddpo/prompts`` with one prompt a line."""
    return {file.stem: read_prompts(file) for file in sorted(PROMPT_FOLDER.glob("*.txt"))}


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a text file: one a line, blank lines and lines that start with # left out.

    Raises:
        ConfigError: the file cannot be read or holds no prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The prompt file {file} cannot be read ({error}). Give a text file with one prompt a line.") from error
    prompts = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not prompts:
        raise ConfigError(f"The prompt file {file} holds no prompt. Write one prompt a line.")
    return prompts


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field with its sentence and its limits: ``low``, ``high``, ``above`` (exclusive), ``choices`` or ``form`` (a pattern and examples)."""
    return field(default=default, metadata=dict(help=help, **limits))


DEVICES = (r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?", "auto, cpu, cuda, cuda:1, mps")
"""The form of a device's name, and examples."""

TOWERS = dict(clip="clip_score", pickscore="pickscore")
"""The rewards whose image towers a model of taste can see with."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Task": ("model", "revision", "model_config", "reward", "reward_models", "reward_vlm", "prompts", "held_out_prompts", "rating", "repeats",
        "preference", "preference_sees", "ratings_from", "ahead",
    ),
    "Rounds": ("rounds", "images_per_round", "images_per_prompt", "board_images", "board_every", "images_per_update", "passes", "seed"),
    "Sampling": ("steps", "guidance", "eta", "shared_start", "resolution"),
    "Objective": (
        "objective", "advantage", "advantage_clip", "clip_nats", "ratio", "kl_weight", "guidance_in_training", "step_weights", "skip_first_steps",
        "skip_last_steps", "trained_fraction", "forward_draws", "rwr_beta", "rwr_quantile", "nft_advantage", "nft_mix",
    ),
    "Optimiser": ("optimiser", "learning_rate", "warmup_rounds", "weight_decay", "max_grad_norm", "ema_decay"),
    "Weights": ("training", "lora_rank", "lora_alpha", "lora_targets", "init_lora"),
    "Machine": (
        "device", "precision", "microbatch", "update_microbatch", "reuse_forward", "gradient_checkpointing", "vae_tiling", "reward_device",
        "reward_precision", "reward_offload",
    ),
    "Measuring": ("watch_every", "watch_images", "watch_rewards", "on_alarm", "held_out_images", "held_out_every", "tracker", "shuffle_scores"),
}  # fmt: skip
"""The settings by what they are about: the sections of the command line's help and of the Run page."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run does; written once to ``config.json`` before the worker starts."""

    model: str = setting(
        "pocket",
        "The model to finetune: `pocket`, or a Stable Diffusion 1.x, 2.x or XL: a diffusers folder, a .safetensors file, or a name on the Hub.",
    )
    model_config: str = setting(
        "", "For a single .safetensors file: the folder or name on the Hub of a pipeline of its architecture; empty is the family's own on the Hub."
    )
    revision: str = setting("", "The branch, tag or commit of a model from the Hub; empty is its main branch.")
    resolution: int = setting(0, "Width and height of the images, in pixels; 0 is the model's own.", low=0, high=4096)
    reward: str = setting(
        "human",
        "What scores the images: your ratings, an automatic reward, a `blend: 1 aesthetic, 0.5 clip_score`, or your own path/to/file.py:function.",
    )
    reward_models: str = setting(
        "auto",
        "Which networks score: the published ones, or the pocket's; `auto` takes the pocket's for the pocket model, where there are some.",
        choices=("auto", "published", "pocket"),
    )
    reward_device: str = setting("auto", "Where an automatic reward's networks run.", form=DEVICES)
    reward_precision: str = setting(
        "auto",
        "The precision of an automatic reward's networks: `auto` is fp16 on a GPU, else fp32; `4bit` is for what looks (needs bitsandbytes).",
        choices=("auto", "fp32", "bf16", "fp16", "4bit"),
    )
    reward_offload: bool = setting(
        False, "Give the memory of an automatic reward's networks back after each round's scores: less memory, slower, and no scoring while sampling."
    )
    reward_vlm: str = setting(
        "", "What looks at images for alignment and satisfaction: a LLaVA's folder or name on the Hub, or an endpoint, http://host/v1#model."
    )
    prompts: tuple[str, ...] = setting(("a cat", "a dog", "a horse", "a fox"), "The prompts that images are made for.")
    held_out_prompts: tuple[str, ...] = setting(
        (),
        "Prompts that are never trained on, to see how far what is learned reaches: the group `held_out` of watched pictures and reports; empty is "
        "the sets that the project keeps for its own prompt sets, and none for other prompts.",
    )
    rating: str = setting(
        "thumbs",
        "How people rate at first: thumbs, one to five stars, the good ones and the best of each prompt, the best and the worst of each, or pairs.",
        choices=("thumbs", "stars", "best", "best-worst", "pairs"),
    )
    repeats: int = setting(
        0,
        "How many prompts of an earlier board each board shows once more, unmarked: they teach nothing, and tell how far you agree with yourself.",
        low=0,
        high=16,
    )
    preference: str = setting(
        "off",
        "A model of your taste, from all your ratings so far: `assist` scores the images you did not rate, `lead` all, until many "
        "ratings show that it is wrong as often as right.",
        choices=("off", "assist", "lead"),
    )
    preference_sees: str = setting(
        "looks",
        "What the model of your taste sees: `looks` are colours, contrast, texture and layout; `clip` and `pickscore` add what these networks see, "
        "such as things, faces and styles (1.7 or 3.9 GB, but for the pocket's CLIP).",
        choices=("looks", *TOWERS),
    )
    ratings_from: str = setting(
        "",
        "Ratings that the model of your taste learns from as well: earlier runs, or what was taken away of them, separated by ;. They are copied.",
    )
    board_images: int = setting(
        0, "How many of a round's images you are shown: those whose ratings tell the model of your taste most; 0 is all.", low=0, high=4096
    )
    board_every: int = setting(
        1,
        "With preference lead: you are asked every so many rounds only, and the model of your taste scores the others alone; where it does not "
        "lead, you are asked each round.",
        low=1,
        high=1000,
    )
    ahead: int = setting(
        0,
        "With ddpo-is: how many of the next board's images are made while you rate this one, in whole microbatches: they are there at once, made "
        "before this round's ratings, and those of the rounds in between (board_every), were learned. A board of a few is chosen of them. Where "
        "guesses lead they are only rated, and the round's others are learned from; else the ratio corrects for their age, within its clip. "
        "0 is none.",
        low=0,
        high=4096,
    )
    objective: str = setting(
        "ddpo-is",
        "What the update ascends: DDPO with importance sampling, its on-policy form, reward-weighted regression (soft or sparse), or DiffusionNFT.",
        choices=("ddpo-is", "ddpo-sf", "rwr", "rwr-sparse", "nft"),
    )
    rounds: int = setting(20, "How many rounds of sample, score and update to run.", low=1, high=100_000)
    images_per_round: int = setting(16, "How many images a round makes and scores.", low=2, high=4096)
    images_per_prompt: int = setting(4, "How many images of each prompt a round makes; their scores are compared with one another.", low=1)
    advantage: str = setting(
        "group",
        "What a score is compared with: the round's images of its prompt, in their own spread (group) or in all prompts' (centred, for rewards that "
        "are answers), the prompt's last 32 scores (history, the paper's), or the whole round.",
        choices=("group", "centred", "history", "round"),
    )
    images_per_update: int = setting(16, "How many images one optimiser step learns from.", low=1)
    passes: int = setting(1, "How many times a round's images are gone through by the optimiser.", low=1, high=100)
    microbatch: int = setting(8, "How many images are made at once: they appear that many at a time.", low=1)
    update_microbatch: int = setting(
        64, "How many denoising steps of images the update takes through the model at once: memory, not learning.", low=1
    )
    reuse_forward: bool = setting(
        True,
        "With ddpo-is and ddpo-sf: a round's first optimiser step goes backwards through what sampling computed, instead of computing it once more: "
        "the same numbers in less time, for memory, where there is some. From 8 images at once on.",
    )
    steps: int = setting(10, "How many denoising steps make an image.", low=1, high=500)
    skip_first_steps: int = setting(
        0, "How many of the first denoising steps are not trained: with it only details are learned, and the composition stays.", low=0
    )
    skip_last_steps: int = setting(
        2, "How many of the last denoising steps are not trained: they add hardly any noise, so they teach little but noise; the paper's is 0.", low=0
    )
    step_weights: str = setting(
        "balanced",
        "How much each denoising step counts in ddpo-is and ddpo-sf: `equal` is the paper's; `balanced` gives each gradient the same noise.",
        choices=("balanced", "equal"),
    )
    trained_fraction: float = setting(
        1.0, "The share of the trained denoising steps that ddpo-is and ddpo-sf learn from in each image, drawn anew each pass.", above=0.0, high=1.0
    )
    guidance: float = setting(5.0, "The weight of classifier-free guidance; 1 is none.", low=0.0, high=100.0)
    guidance_in_training: bool = setting(
        True,
        "Train the guided prediction that images are made with, as the paper does; off, the prompt's alone, at half the cost: the pocket model "
        "learns several times faster so, while the paper saw Stable Diffusion's images decay.",
    )
    eta: float = setting(1.0, "The noise of the DDIM sampler: 1 is DDPM's, and 0 would leave no policy to train.", above=0.0, high=1.0)
    shared_start: bool = setting(
        False,
        "Start a round's images of one prompt from the same noise: they differ only by what is trained. Best with an eta of 0.5 or less.",
    )
    learning_rate: float = setting(1e-3, "AdamW's learning rate; for training full take 1e-5, the paper's.", above=0.0, high=1.0)
    warmup_rounds: int = setting(
        0,
        "In so many first rounds the learning rate rises evenly to its value: a model of taste knows little at first, and no step is taken back.",
        low=0,
    )
    weight_decay: float = setting(1e-4, "AdamW's weight decay.", low=0.0, high=1.0)
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm.", above=0.0)
    ema_decay: float = setting(
        0.0,
        "With 0.9 to 0.999 the weights that are measured and taken away are a moving average of the trained ones; 0 is off.",
        low=0.0,
        high=0.99999,
    )
    clip_nats: float = setting(
        1.64, "How far one step's log-probability may move, in nats, before PPO's clip holds it; 1.64 is the paper's setting.", above=0.0
    )
    ratio: str = setting(
        "plain",
        "The ratio of ddpo-is: the paper's, or normalised, so that every denoising step has the same mean and spread and the clip holds both sides.",
        choices=("plain", "normalised"),
    )
    kl_weight: float = setting(
        0.0, "What a step's distance from the base model costs: in ddpo-is and ddpo-sf, advantage per nat of KL divergence.", low=0.0
    )
    advantage_clip: float = setting(5.0, "Advantages are clipped to plus and minus this many standard deviations.", above=0.0)
    forward_draws: int = setting(5, "How many noise levels of each image rwr, rwr-sparse and nft learn from in each pass.", low=1, high=1000)
    rwr_beta: float = setting(
        1.0, "How sharply rwr prefers better images: weights are the softmax of this times the advantage.", above=0.0, high=100.0
    )
    rwr_quantile: float = setting(0.9, "rwr-sparse keeps the images of each prompt at or above this quantile.", above=0.0, high=1.0)
    nft_advantage: float = setting(2.0, "The advantage at which nft is certain that an image is good.", above=0.0)
    nft_mix: float = setting(1.0, "How far nft's positive and negative policies reach from the one that sampled (its beta).", above=0.0)
    training: str = setting(
        "lora", "What is trained: a LoRA adapter, or all weights of the denoiser (float32, with a copy of the base).", choices=("lora", "full")
    )
    lora_rank: int = setting(
        64, "The rank of the LoRA adapter: a small one sees less of the reward's gradient, with as much noise.", low=1, high=1024
    )
    lora_alpha: float = setting(0.0, "The scale of the LoRA adapter, relative to its rank; 0 is the rank itself, a scale of 1.", low=0.0)
    lora_targets: str = setting(
        "attention",
        "Which layers of the denoiser get an adapter: attention, or all, which can learn where things are, too, and are larger on disk.",
        choices=("attention", "all"),
    )
    init_lora: str = setting(
        "",
        "A LoRA to start from instead of none: a .safetensors file, or the folder of one, for diffusers or in kohya's layout. "
        "Its rank is taken where `lora_rank` is not given.",
    )
    precision: str = setting(
        "auto",
        "The precision of the denoiser: `auto` is bf16 where the device is fast at it, else fp32; trained weights are always float32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    device: str = setting(
        "auto",
        "Where the model runs: `auto` takes a GPU when there is one; or `cpu`, `cuda`, `cuda:1`, `mps`.",
        form=DEVICES,
    )
    optimiser: str = setting("adamw", "AdamW with moments in float32, or in 8 bits (needs bitsandbytes and a GPU).", choices=("adamw", "adamw8bit"))
    gradient_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, a third more time.")
    vae_tiling: bool = setting(False, "Decode large images in tiles: less memory, slower.")
    held_out_images: int = setting(32, "How many images, of seeds never trained on, measure an automatic reward before and after.", low=0, high=4096)
    held_out_every: int = setting(0, "Measure the held-out reward every so many rounds as well; 0 measures at the end only.", low=0)
    watch_every: int = setting(
        6,
        "Every so many rounds, watch for overoptimisation on pictures that are never trained on: distance from the base model, rewards that are not "
        "optimised, diversity, artefacts; 0 is never.",
        low=0,
        high=100_000,
    )
    watch_images: int = setting(
        12,
        "How many pictures are watched: of fixed prompts and seeds, half of them of prompts that are not trained, where there are such.",
        low=2,
        high=4096,
    )
    watch_rewards: str = setting(
        "", "Further rewards that are asked about the watched pictures, such as `clip_score, pickscore`; those that cost next to nothing always are."
    )
    on_alarm: str = setting(
        "continue",
        "What to do when what is watched goes wrong: say so and continue, pause (the model stays loaded), stop after the round, or rollback: stop, "
        "and take away the watched round at which no alarm was on and the present reward is highest (where people rate, the latest without an "
        "alarm; where there is none, the round half way to the first alarm).",
        choices=("continue", "pause", "stop", "rollback"),
    )
    tracker: str = setting(
        "off",
        "Where measures also go, beside the run's folder: TensorBoard, trackio or Weights & Biases; each needs its own package.",
        choices=("off", "tensorboard", "trackio", "wandb"),
    )
    shuffle_scores: bool = setting(False, "A control: scores are shuffled among the images, so that nothing can be learned.")
    seed: int = setting(0, "The seed of everything random in the run.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        for name in ("prompts", "held_out_prompts"):
            if not isinstance(prompts := getattr(self, name), (list, tuple)):
                raise ConfigError(f"{name} is {prompts!r}; it must be a list of texts.")
            object.__setattr__(self, name, tuple(prompts))
        for each in fields(self):
            _check(each.name, getattr(self, each.name), each.metadata, each.type)
        try:
            rewards.parts(self.reward)
        except rewards.RewardError as error:
            raise ConfigError(f"reward is {self.reward!r}. {error}") from error
        for name in self.watched_rewards:
            known = [each for each, found in rewards.REWARDS.items() if found.where and each != "human"]
            if name not in known:
                raise ConfigError(f"watch_rewards names {name!r}. Choose among {', '.join(known)}, or leave it empty.")
        try:
            rewards.check_address(self.reward_vlm)
        except rewards.RewardError as error:
            raise ConfigError(f"reward_vlm cannot be used. {error}") from error
        self._check_prompts()
        self._check_arithmetic()

    def _check_prompts(self) -> None:
        if not self.prompts:
            raise ConfigError("There is no prompt. Give at least one, one a line.")
        for prompt in (*self.prompts, *self.held_out_prompts):
            if not isinstance(prompt, str) or not prompt.strip():
                raise ConfigError("A prompt is empty. Write a text in each line, or remove the line.")
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):
                raise ConfigError(f"The prompt {prompt[:80]!a} holds bytes that are no text. Write it in UTF-8.")
            if len(prompt) > MAX_PROMPT_CHARACTERS:
                raise ConfigError(f"A prompt has {len(prompt):,} characters; the limit is {MAX_PROMPT_CHARACTERS:,}.")
        trained = set(map(as_read, self.prompts))
        if both := [prompt for prompt in self.held_out_prompts if as_read(prompt) in trained]:
            raise ConfigError(
                f"{both[0][:80]!r} is among held_out_prompts and is trained as well. Take it out of held_out_prompts, or out of prompts."
            )
        if self.held_out_prompts and self.watch_every and self.watch_images < FEWEST_WATCHED:
            raise ConfigError(
                f"watch_images is {self.watch_images}, too few to watch held_out_prompts beside the others. Choose at least {FEWEST_WATCHED}, or "
                "watch_every 0."
            )

    def _check_arithmetic(self) -> None:
        n, k, update = self.images_per_round, self.images_per_prompt, self.images_per_update
        if n % k:
            near = sorted({max(k, n // k * k), (n // k + 1) * k})
            raise ConfigError(
                f"images_per_round is {n} and images_per_prompt is {k}: {n} is not divisible by {k}. "
                f"Choose {' or '.join(map(str, near))} images a round, or another number of images per prompt."
            )
        if n % update:
            raise ConfigError(
                f"images_per_round is {n} and images_per_update is {update}: {n} is not divisible by {update}. "
                f"Choose a divisor of {n} for images_per_update."
            )
        if self.on_alarm != "continue" and not self.watch_every:
            raise ConfigError(
                f"on_alarm is {self.on_alarm}, but watch_every is 0, so nothing is watched. Choose watch_every 6, or on_alarm continue."
            )
        if self.ahead and self.objective != "ddpo-is":
            raise ConfigError(
                f"ahead is {self.ahead}, so images come from the model before the last update, and {self.objective} has no ratio that would correct "
                "for that. Choose objective ddpo-is, or ahead 0."
            )
        if self.preference != "off" and self.advantage not in ("group", "centred"):
            raise ConfigError(
                f"preference is {self.preference} and advantage is {self.advantage}: a model of your taste knows what is better among the images "
                "of one prompt only. Choose advantage group or centred, or preference off."
            )
        if self.preference != "off" and self.reward.startswith(rewards.BLEND) and "human" in rewards.parts(self.reward):
            raise ConfigError(
                f"preference is {self.preference} and reward is {self.reward!r}: what is guessed of your taste has no scale that other rewards could "
                "be added to. Choose reward human, or a run with preference off."
            )
        if self.preference_sees != "looks" and self.preference == "off":
            raise ConfigError(
                f"preference_sees is {self.preference_sees} and preference is off: there is no model of your taste that could see anything. Choose "
                "preference lead or assist, or preference_sees looks."
            )
        if self.preference_sees != "looks" and self.reward_models == "pocket" and not rewards.card(TOWERS[self.preference_sees]).pocket:
            raise ConfigError(
                f"preference_sees is {self.preference_sees}, of which there are no pocket networks. Choose clip, or reward_models auto."
            )
        if self.board_images > n or self.board_images == 1:
            raise ConfigError(f"board_images is {self.board_images} and images_per_round is {n}. Choose 2 to {n}, or 0 for all.")
        if 0 < self.board_images < n and self.preference == "off":
            raise ConfigError(
                f"board_images is {self.board_images}, so {n - self.board_images} of {n} images a round are never rated, and preference is off: "
                "they would teach nothing. Choose preference lead or assist, or board_images 0."
            )
        if self.board_every > 1 and self.preference != "lead":
            raise ConfigError(
                f"board_every is {self.board_every} and preference is {self.preference}: in rounds without a board nobody would say what is good. "
                "Choose preference lead, or board_every 1."
            )
        if self.ratings_sources and self.preference == "off":
            raise ConfigError(
                f"ratings_from is {self.ratings_from!r} and preference is off: earlier ratings are learned from by the model of your taste only. "
                "Choose preference lead or assist, or leave ratings_from empty."
            )
        if k < 2 and self.rating in ("best", "best-worst", "pairs"):
            raise ConfigError(
                f"images_per_prompt is 1 and rating is {self.rating}, which compares the images of one prompt. "
                "Choose at least 2 images per prompt, or rating thumbs or stars."
            )
        if k < 2 and (self.advantage in ("group", "centred") or self.objective.startswith("rwr")):
            raise ConfigError(
                "images_per_prompt is 1, so an image has no others of its prompt to be compared with. "
                "Choose at least 2, or advantage history or round with an objective other than rwr."
            )
        if self.objective == "ddpo-sf" and self.updates_per_round > 1:
            raise ConfigError(
                f"ddpo-sf learns from samples of the present policy only, so a round has one update; these settings make {self.updates_per_round}. "
                f"Choose images_per_update {n} and passes 1, or ddpo-is."
            )
        if self.training == "full" and self.learning_rate > 1e-4:
            raise ConfigError(
                f"learning_rate is {self.learning_rate:g}, which ruins a denoiser that is trained as a whole within a few steps. "
                "Choose at most 1e-4 (the paper takes 1e-5), or training lora."
            )
        if self.training == "full" and self.init_lora:
            raise ConfigError(
                f"init_lora is {self.init_lora!r}, and training is full, which has no LoRA. Choose training lora, or leave init_lora empty."
            )
        if self.optimiser == "adamw8bit" and self.device in ("cpu", "mps"):
            raise ConfigError(f"optimiser is adamw8bit, which needs an NVIDIA GPU, and device is {self.device}. Choose adamw.")
        if self.skip_first_steps + self.skip_last_steps >= self.steps:
            raise ConfigError(
                f"steps is {self.steps}, skip_first_steps is {self.skip_first_steps} and skip_last_steps is {self.skip_last_steps}: "
                f"no denoising step is left to train. Choose more steps, or leave out at most {self.steps - 1}."
            )
        if self.ratio == "normalised" and self.objective != "ddpo-is":
            raise ConfigError(f"ratio is normalised, but {self.objective} has no ratio. Choose objective ddpo-is, or ratio plain.")
        if self.shared_start and self.advantage not in ("group", "centred"):
            raise ConfigError(
                f"shared_start is on and advantage is {self.advantage}: a prompt's images then rise and fall together with their start. "
                "Choose advantage group or centred, or leave shared_start off."
            )
        if self.ratio == "normalised" and not self.guidance_in_training:
            raise ConfigError("ratio is normalised and guidance_in_training is off: images are then no samples of the trained policy. Choose one.")

    @property
    def prompts_per_round(self) -> int:
        """How many prompts a round draws; a list shorter than that is gone through again."""
        return self.images_per_round // self.images_per_prompt

    @property
    def updates_per_round(self) -> int:
        """Optimiser steps a round."""
        return self.passes * self.images_per_round // self.images_per_update

    def learning_rate_at(self, number: int) -> float:
        """The learning rate of a round: that of round n of w rounds of warm-up is n / (w + 1) of what it is then."""
        return self.learning_rate * min(1.0, number / (self.warmup_rounds + 1))

    @property
    def reuses_forward(self) -> bool:
        """Whether the first optimiser step's images are whole microbatches whose passes in sampling are those that it would compute again.

        A pass on few images takes as long as it takes to start its operations: below :data:`FEWEST_REUSED` larger parts are faster, computed anew.
        """
        together = min(self.microbatch, self.images_per_round)
        return (
            self.reuse_forward
            and self.objective in ("ddpo-is", "ddpo-sf")
            and self.trained_fraction == 1.0
            and not self.gradient_checkpointing
            and not self.ahead
            and not self.reward_offload
            and FEWEST_REUSED <= together <= self.update_microbatch
            and self.images_per_update % together == 0
        )

    @property
    def board_chosen(self) -> bool:
        """Whether people see some of a round's images, and not all."""
        return 0 < self.board_images < self.images_per_round

    @property
    def board_pool(self) -> int:
        """Of how many of a round's images the board is chosen, the first in the order of making: those that are made ahead, or all."""
        wanted = max(self.ahead, self.board_images) if self.ahead and self.board_chosen else self.images_per_round
        return min(self.images_per_round, math.ceil(wanted / self.microbatch) * self.microbatch)

    @property
    def keeps_means(self) -> bool:
        """Whether the update needs more of the policy that sampled than its log-probabilities: for the normalised ratio, and for the exact distance
        from what is trained where that is not what sampled."""
        return self.objective == "ddpo-is" and (self.ratio == "normalised" or not self.guidance_in_training)

    @property
    def trained_steps(self) -> range:
        """The denoising steps between those left out at both ends."""
        return range(self.skip_first_steps, self.steps - self.skip_last_steps)

    @property
    def rated_by_people(self) -> bool:
        """Whether the run begins with people's ratings."""
        return "human" in rewards.parts(self.reward)

    @property
    def ratings_sources(self) -> tuple[str, ...]:
        """The runs and files whose ratings are learned from as well."""
        return sources_of(self.ratings_from)

    @property
    def watched_rewards(self) -> tuple[str, ...]:
        """The further rewards that are asked about the watched pictures."""
        return tuple(name.strip() for name in self.watch_rewards.split(",") if name.strip())

    def networks_of(self, reward: str) -> str:
        """Which networks an automatic reward has in this run: ``published`` or ``pocket``."""
        if self.reward_models != "auto":
            return self.reward_models
        card = rewards.card(reward)
        elsewhere = self.reward_vlm and "vlm" in card.published  # its words are not the pocket BERT's
        return "pocket" if self.model == "pocket" and card.pocket and not elsewhere else "published"

    def clip_range(self, dimensions: int) -> float:
        """PPO's clip range for the ratio of mean-over-dimensions log-probabilities: ``clip_nats / dimensions``.

        The paper clips the ratio at 1e-4 with log-probabilities averaged over 16,384 latent dimensions, so a step's true log-probability may move by
        1e-4 x 16,384 = 1.64 nats. The same bound in nats, for a latent of another size, is this rule.
        """
        return self.clip_nats / dimensions

    def with_changes(self, **changes: Any) -> RunConfig:
        return replace(self, **changes)

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(dict(schema_version=SCHEMA_VERSION, **asdict(self)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> RunConfig:
        """Read ``config.json``.

        Raises:
            ConfigError: the file is missing, damaged, or of a version that this program does not know.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read ({error}). A run folder holds a config.json; is this one?") from error
        version = values.pop("schema_version", None) if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{file} is of version {version}; this program reads version {SCHEMA_VERSION}. Open it with the program that made it.")
        # Settings that the first runs did not have, with what was done then.
        values.setdefault("skip_last_steps", 0)
        values.setdefault("step_weights", "equal")
        values.setdefault("update_microbatch", values.get("microbatch", 4))
        values.setdefault("reuse_forward", False)
        values.setdefault("watch_every", 0)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"Unknown setting {', '.join(unknown)}. Known settings: {', '.join(sorted(known))}.")
        if isinstance(ahead := values.get("ahead"), bool):  # whether the next board is made ahead, before it was how much of it
            values = values | dict(ahead=values.get("images_per_round", cls.images_per_round) if ahead else 0)
        return cls(**values)


def as_read(prompt: str) -> str:
    """A prompt as CLIP's tokenizer reads it: in small letters, with single spaces."""
    return " ".join(prompt.lower().split())


def is_a(question: Callable[[], bool]) -> bool:
    """The answer of ``Path.is_dir`` or ``is_file``; no for a text that can be no path (too long, for instance)."""
    try:
        return question()
    except (OSError, ValueError):
        return False


def _check(name: str, value: Any, limits: Any, annotation: Any) -> None:
    """One value against its type and limits."""
    wanted: Any = {"int": int, "float": (int, float), "bool": bool, "str": str}.get(str(annotation))
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
        told = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
        raise ConfigError(f"{name} is {value!r}; it must be {told[str(annotation)]}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; it must be a finite number.")
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(limits['choices'])}.")
    if "form" in limits and not re.fullmatch(limits["form"][0], value):
        raise ConfigError(f"{name} is {value!r}; choose one of {limits['form'][1]}.")
    if "low" in limits and value < limits["low"]:
        raise ConfigError(f"{name} is {value}; it must be at least {limits['low']}.")
    if "above" in limits and value <= limits["above"]:
        raise ConfigError(f"{name} is {value}; it must be above {limits['above']:g}.")
    if "high" in limits and value > limits["high"]:
        raise ConfigError(f"{name} is {value}; it must be at most {limits['high']:,}.")


def sources_of(text: str) -> tuple[str, ...]:
    """The names that ``ratings_from`` holds, between single semicolons; a name's own ones are doubled."""
    return tuple(name.replace(";;", ";") for part in re.split(r"(?<!;);(?!;)", text) if (name := part.strip()))


def sources_text(names: Iterable[str]) -> str:
    """The same as ``ratings_from`` holds them."""
    doubled = (name.replace(";", ";;") for name in names)
    return "; ".join(f"{name} " if name.endswith(";") else name for name in doubled)
