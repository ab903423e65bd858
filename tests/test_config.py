"""Settings: what cannot work is refused before anything starts, with the numbers in the message."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import rewards
from ddpo.__main__ import config_from, main, parser, prompts_from
from ddpo.config import GROUPS, ConfigError, RunConfig, prompt_sets, read_prompts
from ddpo.presets import presets
from ddpo.source import located, model_source

ODD = ("long " * 1000, "🦊 a fox 🎨 \u202e", "${alert(1)}", "<script>alert(1)</script>", "two\nlines", "\x00nul \x1b[31m", "é̂ 日本語")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(images_per_round=10), ["images_per_round is 10", "images_per_prompt is 4", "8 or 12"]),
        (dict(images_per_round=2), ["images_per_round is 2", "not divisible by 4", "Choose 4"]),
        (dict(images_per_update=5), ["images_per_round is 16", "images_per_update is 5", "divisor of 16"]),
        (dict(images_per_update=32), ["images_per_update is 32"]),
        (dict(images_per_prompt=1), ["images_per_prompt is 1", "at least 2"]),
        (dict(rounds=0), ["rounds is 0", "at least 1"]),
        (dict(rounds=100_001), ["rounds is 100001", "at most 100,000"]),
        (dict(steps=501), ["steps is 501", "at most 500"]),
        (dict(eta=0.0), ["eta is 0.0", "above 0"]),
        (dict(eta=1.5), ["eta is 1.5", "at most 1"]),
        (dict(guidance=-1.0), ["guidance is -1.0", "at least 0"]),
        (dict(learning_rate=0), ["learning_rate is 0", "above 0"]),
        (dict(learning_rate=float("nan")), ["learning_rate is nan", "finite"]),
        (dict(clip_nats=float("inf")), ["clip_nats is inf", "finite"]),
        (dict(microbatch=0), ["microbatch is 0", "at least 1"]),
        (dict(update_microbatch=0), ["update_microbatch is 0", "at least 1"]),
        (dict(skip_last_steps=-1), ["skip_last_steps is -1", "at least 0"]),
        (dict(steps=3, skip_last_steps=3), ["steps is 3", "skip_last_steps is 3", "at most 2"]),
        (dict(steps=3, skip_first_steps=2, skip_last_steps=1), ["steps is 3", "skip_first_steps is 2", "skip_last_steps is 1", "at most 2"]),
        (dict(ratio="normalised", objective="nft"), ["ratio is normalised", "nft has no ratio", "ddpo-is"]),
        (dict(ratio="normalised", guidance_in_training=False), ["ratio is normalised", "guidance_in_training is off", "Choose one"]),
        (dict(shared_start=True, advantage="history"), ["shared_start is on", "advantage is history", "Choose advantage group"]),
        (dict(ema_decay=1.0), ["ema_decay is 1.0", "at most 0.99999"]),
        (dict(steps=10.0), ["steps is 10.0", "a whole number"]),
        (dict(steps=True), ["steps is True", "a whole number"]),
        (dict(guidance="5"), ["guidance is '5'", "a number"]),
        (dict(shuffle_scores=1), ["shuffle_scores is 1", "true or false"]),
        (dict(model=None), ["model is None", "a text"]),
        (dict(reward="beauty"), ["reward is 'beauty'", *rewards.REWARDS]),
        (dict(rating="smileys"), ["rating is 'smileys'", "thumbs, stars"]),
        (dict(training="full"), ["learning_rate is 0.001", "at most 1e-4", "training lora"]),
        (dict(optimiser="adamw8bit", device="cpu"), ["needs an NVIDIA GPU", "device is cpu"]),
        (dict(device="gpu"), ["device is 'gpu'", "auto, cpu, cuda, cuda:1, mps"]),
        (dict(precision="fp8"), ["precision is 'fp8'", "auto, fp32, bf16, fp16"]),
        (dict(reward_vlm="https://me:secret@host/v1#m"), ["reward_vlm", "name or password", "DDPO_VLM_KEY"]),
        (dict(seed=2**31), [f"seed is {2**31}", f"at most {2**31 - 1:,}"]),
        (dict(prompts=()), ["no prompt"]),
        (dict(prompts=("a cat", "  ")), ["prompt is empty"]),
        (dict(prompts=("x" * 10_001,)), ["10,001 characters", "10,000"]),
        (dict(prompts="a cat"), ["'a cat'", "list"]),
        (dict(prompts=7), ["7", "list"]),
        (dict(prompts=("half a \ud83e letter",)), ["no text"]),
        (dict(on_alarm="rollback", watch_every=0), ["rollback", "watch_every", "nothing is watched"]),
    ],
)
def test_what_cannot_work_is_refused_with_its_numbers(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        RunConfig(**changes)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert str(refused.value).endswith((".", "?")) and "secret" not in str(refused.value)


def test_the_sizes_a_refusal_suggests_do_work() -> None:
    """For many pairs of images a round and a prompt: every suggested number is accepted."""
    for n in range(2, 40):
        for k in range(2, 9):
            try:
                RunConfig(images_per_round=n, images_per_prompt=k, images_per_update=1)
            except ConfigError as refused:
                suggestion = str(refused).split("Choose ")[1].split(" images")[0]
                for size in suggestion.split(" or "):
                    RunConfig(images_per_round=int(size), images_per_prompt=k, images_per_update=1)


def test_derived_sizes() -> None:
    config = RunConfig(images_per_round=24, images_per_prompt=4, images_per_update=8, passes=2)
    assert (config.prompts_per_round, config.updates_per_round) == (6, 6)


def test_every_setting_has_its_sentence() -> None:
    for field in dataclasses.fields(RunConfig):
        assert field.metadata["help"].endswith("."), field.name


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    """Every field moved away from its default, odd prompts included, is the same after save and load; and equal configs give equal files. (What
    cannot go with a normalised ratio is moved apart.)"""
    config = RunConfig(
        model="somewhere", reward="jpeg_incompressibility", prompts=ODD, held_out_prompts=("\u202e", "é̂ 日"), rating="stars",
        ratio="normalised", model_config="base",
        preference="lead", preference_sees="clip", board_images=6, board_every=2, repeats=2, ratings_from="old",
        rounds=7, images_per_round=12, images_per_prompt=3,
        images_per_update=6, passes=2, microbatch=5, update_microbatch=7, steps=9, skip_first_steps=1, skip_last_steps=1, step_weights="equal",
        guidance=0, eta=0.7,
        ema_decay=0.9,
        learning_rate=3e-5, warmup_rounds=4, weight_decay=0.0, max_grad_norm=2.0, clip_nats=0.5, advantage_clip=4.0, lora_rank=2, lora_alpha=1.5,
        advantage="centred", kl_weight=0.1, trained_fraction=0.5, forward_draws=3, rwr_beta=2.0, rwr_quantile=0.5, nft_advantage=1.0, nft_mix=0.5,
        revision="v1", resolution=64, training="full", optimiser="adamw8bit", gradient_checkpointing=True, vae_tiling=True,
        reward_models="published", reward_vlm="http://localhost/v1", reward_device="cpu", reward_precision="bf16", reward_offload=True,
        lora_targets="all", precision="bf16", device="cuda:1", held_out_images=6, held_out_every=3, shuffle_scores=True, seed=11,
        watch_every=2, watch_images=8, watch_rewards="pickscore", on_alarm="stop", tracker="wandb",
    )  # fmt: skip
    assert [f.name for f in dataclasses.fields(RunConfig) if getattr(config, f.name) == f.default] == [
        "ahead",
        "objective",
        "reuse_forward",
        "guidance_in_training",
        "shared_start",
        "init_lora",
    ]
    for each in (
        config,
        config.with_changes(reuse_forward=False, objective="nft", ratio="plain", guidance_in_training=False, advantage="group", shared_start=True),
    ):
        each.save(tmp_path / "config.json")
        assert RunConfig.load(tmp_path / "config.json") == each


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["cannot be read"]),
        ("[1]", ["version None"]),
        ('{"schema_version": 99}', ["version 99", "reads version 1"]),
        ('{"schema_version": 1, "colour": "red"}', ["Unknown setting colour", "Known settings"]),
        ('{"schema_version": 1, "steps": 0}', ["steps is 0"]),
        ('{"schema_version": 1, "prompts": 3}', ["list"]),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_plain_words(tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError) as refused:
        RunConfig.load(tmp_path / "config.json")
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_a_missing_model_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    def refusal(model: str | Path) -> str:
        with pytest.raises(ConfigError) as refused:
            model_source(RunConfig(model=str(model)))
        return str(refused.value)

    assert "does not exist" in refusal(tmp_path / "nothing") and str(tmp_path / "nothing") in refusal(tmp_path / "nothing")
    assert "no diffusers model" in refusal(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert "holds a FluxPipeline" in refusal(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ConfigError, match=r"revision is 'v1', but .* is on this machine"):
        model_source(RunConfig(model=str(tmp_path), revision="v1"))
    for impossible in ("x" * 5000, "nul\x00byte", "~nobody-of-that-name/x"):
        assert "does not exist" in refusal(impossible)


def test_prompts_are_read_from_sets_files_and_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("# mine\na cat\n\n  a dog \n", encoding="utf-8")
    assert prompts_from(str(file)) == read_prompts(file) == ("a cat", "a dog")
    assert prompts_from("animals") == prompt_sets()["animals"] and len(prompt_sets()["animals"]) == 45
    assert prompts_from("a cat; a dog;;") == ("a cat", "a dog")
    long = "; ".join(f"an animal of many words, number {i}" for i in range(500))
    assert len(prompts_from(long)) == 500
    with pytest.raises(ConfigError, match=r"no\.txt cannot be read"):
        prompts_from("no.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        prompts_from(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts_from(str(tmp_path / "latin.txt"))


def test_held_out_prompts_are_named_as_prompts_are_and_none_of_them_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As CLIP reads them: capitals and spaces make no other prompt. Nothing is made where one is; a run's file of before there were any loads."""
    (tmp_path / "mine.txt").write_text("a van\n")
    for text, wanted in (
        ("objects", prompt_sets()["objects"]),
        (str(tmp_path / "mine.txt"), ("a van",)),
        ("a tram; a bus", ("a tram", "a bus")),
        ("", ()),
    ):
        options = parser().parse_args(["run", "--out", "unused", "--held-out-prompts", text])
        assert config_from(options) == presets()["rate"].config.with_changes(held_out_prompts=wanted)
    out = ["run", "--out", str(tmp_path / "run"), "--prompts", "a cat; a dog"]
    for options, words in (
        (["--held-out-prompts", "a fox; A  Cat"], "'A  Cat' is among held_out_prompts and is trained as well"),
        (["--held-out-prompts", "a fox", "--watch-images", "7"], "watch_images is 7, too few"),
        (["--held-out-prompts", "no.txt"], "cannot be read"),
    ):
        assert main([*out, *options]) == 2 and words in capsys.readouterr().err and not (tmp_path / "run").exists()
    for odd, words in (("a fox", "list of texts"), ((" ",), "A prompt is empty"), (("x" * 10_001,), "10,001 characters")):
        with pytest.raises(ConfigError, match=words):
            RunConfig(held_out_prompts=odd)  # type: ignore[arg-type]
    RunConfig(held_out_prompts=("a hen",)).save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json").held_out_prompts == ("a hen",)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["held_out_prompts"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert RunConfig.load(tmp_path / "config.json") == RunConfig()


def test_the_prompt_sets_hold_what_they_say() -> None:
    """The paper's 45 animals; nothing twice; the unseen ones are unseen."""
    sets = prompt_sets()
    assert set(sets) >= {"animals", "activities", "counting", "objects", "unseen_animals"}
    assert all(len(set(prompts)) == len(prompts) for prompts in sets.values())
    assert not set(sets["animals"]) & set(sets["unseen_animals"])
    assert {"a cat", "an ant"} <= set(sets["animals"]) and len(sets["counting"]) % 45 == 0


def test_presets_are_configs_that_work_and_the_default_rates_by_hand() -> None:
    assert next(iter(presets())) == "rate" and presets()["rate"].config.rated_by_people
    assert {p.config.reward for p in presets().values()} <= set(rewards.REWARDS)


def test_the_preset_for_a_gpu_tells_what_a_round_computes() -> None:
    """In TFLOP: a pass of Stable Diffusion 1.5's U-Net at 512 pixels has 0.803, a decoding 2.51 (counted by PyTorch's flop counter); a LoRA's
    backward pass goes through everything, and has no gradients of the large weights to compute."""
    preset = presets()["rate-sd15"]
    config, guided = preset.config, 2 * 0.803
    sampling = config.images_per_round * (config.steps * guided + 2.51)
    fresh = config.images_per_round - config.board_pool  # those of the board's pool are there to be rated
    learning = fresh * config.trained_fraction * len(config.trained_steps) * 2 * guided
    assert fresh >= config.board_images and config.board_pool >= 2 * config.board_images, "what is learned from is new, and the board is chosen"
    told = re.search(r"About ([\d,]+) TFLOP a round .* (\d+) s where a card does 100", preset.description)
    assert told and int(told[1].replace(",", "")) == round(sampling + learning, -2) and int(told[2]) == round((sampling + learning) / 100)


def test_a_run_of_the_first_version_goes_on_as_it_began(tmp_path: Path) -> None:
    """Its config.json has no skip_last_steps and one microbatch for sampling and learning."""
    RunConfig(steps=2, skip_last_steps=0, microbatch=2).save(tmp_path / "config.json")
    values = json.loads((tmp_path / "config.json").read_text())
    del values["skip_last_steps"], values["update_microbatch"], values["step_weights"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = RunConfig.load(tmp_path / "config.json")
    assert (config.skip_last_steps, config.update_microbatch, config.step_weights) == (0, 2, "equal")
    for ahead, images in ((True, config.images_per_round), (False, 0)):
        (tmp_path / "config.json").write_text(json.dumps(values | dict(ahead=ahead)))
        assert RunConfig.load(tmp_path / "config.json").ahead == images


def test_a_folder_is_known_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder that looks like a name on the Hub must not become one in a worker that starts elsewhere."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert located(RunConfig(model="models/mine")).model == str(tmp_path / "models" / "mine")
    for other in ("pocket", "org/name", "~nobody-of-that-name/x"):
        assert located(RunConfig(model=other)).model == other


def test_every_setting_is_in_one_section() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(f.name for f in dataclasses.fields(RunConfig))
