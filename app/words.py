"""Plain words for states, settings, metrics and times."""

from __future__ import annotations

from pathlib import Path

import rewards

STATES: dict[str, tuple[str, str]] = {
    "new": ("Not started", "idle"),
    "loading": ("Loading the model", "busy"),
    "sampling": ("Making images", "busy"),
    "awaiting": ("Waiting for your ratings", "wait"),
    "scoring": ("Scoring the images", "busy"),
    "reward_failed": ("The reward failed", "bad"),
    "updating": ("Learning from the scores", "busy"),
    "checkpointing": ("Saving", "busy"),
    "measuring": ("Measuring on unseen images", "busy"),
    "paused": ("Paused", "wait"),
    "finished": ("Finished", "good"),
    "stopped": ("Stopped", "idle"),
    "failed": ("Failed", "bad"),
    "interrupted": ("Interrupted", "bad"),
}
"""A state's headline, and its tone: idle, busy, wait (for a person), good or bad."""

REWARDS: dict[str, str] = {
    "human": "Your ratings",
    "jpeg_compressibility": "JPEG compressibility",
    "jpeg_incompressibility": "JPEG incompressibility",
    "aesthetic": "Aesthetic (LAION)",
    "image_statistics": "Image statistics",
    "alignment": "Alignment (LLaVA and BERTScore)",
    "satisfaction": "Strict questions (LLaVA)",
    "clip_score": "CLIPScore",
    "pickscore": "PickScore",
    "blend": "A blend of rewards",
}
RATINGS: dict[str, str] = {
    "thumbs": "Thumbs up or down",
    "stars": "One to five stars",
    "best": "Good ones and the best",
    "best-worst": "Best and worst",
    "pairs": "Pairs",
}

LABELS: dict[str, str] = {
    "reward": "What scores the images",
    "held_out_prompts": "Held-out prompts",
    "rating": "How you rate",
    "repeats": "Prompts shown once more",
    "preference": "Model of your taste",
    "preference_sees": "What that model sees",
    "ratings_from": "Earlier ratings",
    "board_images": "Images shown of a round",
    "board_every": "A board every … rounds",
    "ahead": "Images made ahead",
    "reward_models": "Networks that score",
    "reward_vlm": "What looks at images",
    "reward_device": "Device of what scores",
    "reward_precision": "Precision of what scores",
    "reward_offload": "Free what scores after each round",
    "objective": "Objective",
    "advantage": "Scores compared with",
    "kl_weight": "KL penalty",
    "trained_fraction": "Share of steps trained",
    "forward_draws": "Noise levels learned from",
    "rwr_beta": "RWR sharpness (beta)",
    "rwr_quantile": "RWR-sparse quantile",
    "nft_advantage": "NFT advantage of certainty",
    "nft_mix": "NFT reach (beta)",
    "images_per_round": "Images a round",
    "images_per_prompt": "Images per prompt",
    "images_per_update": "Images per learning step",
    "passes": "Passes over each round",
    "microbatch": "Images made at once",
    "update_microbatch": "Steps learned from at once",
    "reuse_forward": "Learn from sampling's own passes",
    "steps": "Denoising steps",
    "step_weights": "Weight of each step",
    "skip_last_steps": "Last steps left untrained",
    "model_config": "Configuration of a single file",
    "guidance": "Guidance",
    "guidance_in_training": "Guidance in training",
    "ratio": "Ratio",
    "skip_first_steps": "First steps left untrained",
    "warmup_rounds": "Rounds of warm-up",
    "ema_decay": "Moving average of weights (decay)",
    "eta": "Sampler noise (eta)",
    "shared_start": "Same start for a prompt's images",
    "max_grad_norm": "Largest gradient norm",
    "clip_nats": "Clip range (nats)",
    "advantage_clip": "Advantage limit",
    "training": "What is trained",
    "vae_tiling": "VAE tiling",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA scale (alpha)",
    "lora_targets": "LoRA layers",
    "init_lora": "Start from a LoRA",
    "held_out_images": "Held-out images",
    "held_out_every": "Measure held-out every … rounds",
    "watch_every": "Watch every … rounds",
    "watch_images": "Watched pictures",
    "watch_rewards": "Further rewards to watch",
    "tracker": "Measures also go to",
    "on_alarm": "When it goes wrong",
    "shuffle_scores": "Shuffle the scores (a control)",
}
"""Settings whose name is no good label."""


def label(setting: str) -> str:
    """A setting's label on the page."""
    return LABELS.get(setting) or setting.replace("_", " ").capitalize()


def reward(setting: str) -> str:
    """What scores, as RunConfig's ``reward`` names it."""
    if setting in REWARDS:
        return REWARDS[setting]
    try:
        weights = rewards.parts(setting)
    except rewards.RewardError:
        return setting
    names = {name: REWARDS.get(name) or f"Your own {Path(name).name}" for name in weights}
    if setting in names:
        return names[setting]
    return "Blend: " + ", ".join(f"{number(weight)} × {names[name]}" for name, weight in weights.items())


def decision(name: str, value: str) -> str:
    """What somebody settled (:meth:`ddpo.store.RunStore.choose`), in a sentence."""
    kind, _, whom = name.partition(" ")
    at, _, changes = value.partition(" ")
    return {
        "rating": f"Rated from now on: {RATINGS.get(value, value)}.",
        "rater": f"{whom} {dict(out='is left out', half='counts half beside others').get(value, 'counts again')}.",
        "alarm": f"The alarm of round {value} was seen.",
        "result": f"Rolled back to round {value}: it is taken away, and later rounds are kept." if value else "The latest round is taken away again.",
        "fork": f"{whom} goes on from round {at}{f', with {changes}' if changes else ''}.",
    }.get(kind, f"{name}: {value}")


def number(value: float | None) -> str:
    """A number for people: three digits that matter; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text


def count(n: int, one: str, many: str | None = None) -> str:
    """``3 images``, ``1 image``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def short(text: str, limit: int) -> str:
    """A text in one line, with its end left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
