"""Starting points that people choose from, in the page and with ``python -m ddpo run --preset``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ddpo.config import RunConfig, prompt_sets


@dataclass(frozen=True)
class Preset:
    title: str
    description: str
    config: RunConfig


def presets() -> dict[str, Preset]:
    """All presets by name, the default first."""
    automatic = RunConfig(
        reward="jpeg_compressibility", prompts=prompt_sets()["animals"], rounds=50, images_per_round=32, images_per_prompt=8, images_per_update=32,
        learning_rate=6e-4, microbatch=32, eta=0.1, shared_start=True, skip_last_steps=7,
    )  # fmt: skip
    # The pocket model learns several times faster without guidance in training (ddpo/README.md; from ratings: benchmarks/hundred_ratings.py).
    sized = automatic.with_changes(
        rounds=20, eta=1.0, shared_start=False, skip_last_steps=2, learning_rate=1e-3, guidance_in_training=False, microbatch=16,
    )  # fmt: skip
    # A microbatch is there when Enter is pressed, and is rated while the model changes and makes the others.
    rated = RunConfig(guidance_in_training=False, images_per_update=4, ahead=8)
    # In ten steps nearly all of the pocket model's images are of their prompt, in five a third: that is something to learn, at half the price.
    # Answers are mostly equal where little noise tells a prompt's images apart, and a near miss is not to weigh as much as a miss.
    answered = automatic.with_changes(
        rounds=40, images_per_round=64, images_per_update=64, steps=5, eta=1.0, shared_start=False, skip_last_steps=1, advantage="centred",
        learning_rate=1e-3,
    )  # fmt: skip
    return {
        "rate": Preset(
            "Rate by hand",
            "Thumbs up or down on 16 images a round: steer colours, backgrounds or composition with your own eyes.",
            rated,
        ),
        "rate-stars": Preset(
            "Rate with stars",
            "One to five stars on 16 images a round: slower than thumbs, and each rating says more.",
            rated.with_changes(rating="stars"),
        ),
        "rate-few": Preset(
            "Rate some, guess the rest",
            "You rate 16 images at a time, made while you rated the last. A model of your taste, from all your ratings, scores six times as many.",
            rated.with_changes(
                ahead=16,
                preference="lead",
                images_per_round=48,
                images_per_prompt=4,  # a board of four prompts teaches more of taste than one of two
                images_per_update=8,
                board_images=16,
                board_every=2,
                lora_targets="all",
                lora_rank=16,
                # At 1e-3 and without a penalty a hundred ratings went too far for the animals; cold, the first steps follow guesses that know little
                # (benchmarks/NOTEBOOK.md, 2026-11-30).
                learning_rate=7e-4,
                warmup_rounds=5,
                kl_weight=0.2,
            ),
        ),
        "rate-sd15": Preset(
            "Rate Stable Diffusion 1.5",
            "For a GPU: few steps, boards chosen of what is made ahead, CLIP to see your taste. About 1,500 TFLOP a round (counted, not timed): 15 s "
            "where a card does 100 a second.",
            RunConfig(
                model="stable-diffusion-v1-5/stable-diffusion-v1-5",
                preference="lead",
                preference_sees="clip",
                ahead=32,  # the board is chosen of these; what is learned from beside it is new
                images_per_round=48,
                images_per_prompt=4,
                images_per_update=48,
                board_images=16,
                steps=14,
                trained_fraction=0.5,
                microbatch=4,
                update_microbatch=4,
                lora_rank=16,
                learning_rate=3e-4,
            ),
        ),
        "compress": Preset(
            "Compressible images",
            "The paper's JPEG compressibility: nobody rates; images grow plain, then empty.",
            sized,
        ),
        "incompress": Preset(
            "Incompressible images",
            "The paper's JPEG incompressibility: nobody rates; images fill with detail, then noise.",
            sized.with_changes(reward="jpeg_incompressibility"),
        ),
        "aesthetic": Preset(
            "Aesthetic images",
            "A network that guesses people's ratings of beauty; for the pocket model one of its own. Watch what it takes for beauty.",
            automatic.with_changes(reward="aesthetic"),
        ),
        "align": Preset(
            "Images of their prompt",
            "In five steps two of three images miss their prompt. A model describes each; its words are compared with the prompt. Each animal is "
            "trained at two activities: is the third learned?",
            answered.with_changes(reward="alignment", prompts=prompt_sets()["activities_seen"]),
        ),
        "count": Preset(
            "Counting",
            "A model is asked how many animals there are, and which. It learns to count, or to fool who looks: compare with your own eyes.",
            # Without a penalty two seeds of three walked away from the base model at no gain; with it two of five do not learn, in bf16
            # (benchmarks/NOTEBOOK.md, 2026-12-01).
            answered.with_changes(reward="satisfaction", prompts=prompt_sets()["counting"], kl_weight=3e-4),
        ),
    }


def preset_of(reward: str) -> str:
    """The name of the preset that a run by this reward starts from, where none is named."""
    return next((name for name, preset in presets().items() if preset.config.reward == reward), "rate")
