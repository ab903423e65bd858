"""Benchmarks where a mistake would be silent: the split of pairs, shares of a fooled model, guidance by a gradient, the distance from the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image, ImageColor
from torch import Tensor

import rewards
from benchmarks import alarms, evidence, four_prompts, penalty, tasks, universal_guidance
from benchmarks.common import (
    add_line,
    asked,
    effective,
    flags,
    judge_name,
    judged_before,
    kl_to_base,
    lines_of,
    make_run,
    mean_and_error,
    same_settings,
    share_error,
    short_hash,
)
from benchmarks.four_prompts import SETTINGS, SINGLES, is_green, is_night
from benchmarks.tasks import TASKS, fooling, measured, says_all, was_shown
from benchmarks.universal_guidance import Guidance, aesthetic_of_pixels, guided_latents, guided_noise, pixels_of, renoised
from ddpo.__main__ import config_from, parser
from ddpo.config import prompt_sets
from ddpo.diffusion import Schedule
from ddpo.monitor import drawn
from ddpo.policy import StableDiffusionPolicy
from ddpo.presets import presets
from ddpo.rollout import rollout
from ddpo.store import RunStore
from pocket import world
from pocket.evaluate import sheet
from pocket.judge import label_of
from rewards.aesthetic import Aesthetic
from rewards.base import Sample, Score
from tests.toys_ddpo import LinearPolicy, toy_config

PROMPTS, SEEDS = ("a cat", "a fox"), (3, 4)


@pytest.fixture(scope="module")
def policy() -> StableDiffusionPolicy:
    """The pocket model in float32, three steps."""
    config = presets()["aesthetic"].config.with_changes(steps=3, skip_last_steps=0, lora_rank=2, precision="fp32", device="cpu")
    return StableDiffusionPolicy.load(config)


@pytest.fixture(scope="module")
def reward() -> Aesthetic:
    found = rewards.load("aesthetic", "pocket", device="cpu")
    assert isinstance(found, Aesthetic)
    return found


# --- the split --------------------------------------------------------------------------------------------------------------------


def test_seen_and_unseen_pairs_are_a_balanced_partition() -> None:
    """Each animal is trained at two activities and left out at one, each activity with 30 and 15 animals, and of either part two thirds, rounded,
    are pairs with animals that the denoiser was shown at activities."""
    sets = prompt_sets()
    seen, unseen = sets["activities_seen"], sets["activities_unseen"]
    assert len(seen) == 90 and len(unseen) == 45
    assert {*seen, *unseen} == set(sets["activities"]) and not {*seen} & {*unseen}
    for part, by_animal, by_activity, shown in ((seen, 2, 30, 40), (unseen, 1, 15, 20)):
        labels = [label_of(prompt) for prompt in part]
        assert set(Counter(subject for subject, _, _ in labels).values()) == {by_animal}
        assert set(Counter(activity for _, activity, _ in labels).values()) == {by_activity}
        assert sum(was_shown(prompt) is True for prompt in part) == shown
    assert was_shown("a cat") is None and was_shown("an ant riding a bike") is True and was_shown("a dog riding a bike") is False
    assert sets["unseen_activities"] == tuple(world.Scene(animal, activity="taking an exam").caption for animal in world.ANIMALS)


def test_a_report_says_how_many_lines_an_earlier_judge_has_judged() -> None:
    lines = [dict(judge=judge_name()), dict(judge="another"), dict()]
    assert judged_before(lines) == "2 of 3 lines were judged by an earlier judge." and judged_before(lines[:1]) == ""


def test_every_group_has_prompts_that_the_judge_can_label() -> None:
    for task in TASKS:
        assert task.prompts in task.curves
        for group in (*task.curves, *task.ends):
            assert [label_of(prompt) for prompt in prompt_sets()[group]]


def test_the_commands_are_settings_that_work() -> None:
    for settings in [task.settings for task in TASKS] + [SETTINGS | dict(reward=each.reward, prompts=each.prompt, kl_weight=0.1) for each in SINGLES]:
        config = config_from(parser().parse_args(["run", "--out", "unused", *flags(settings)]))
        assert config.reward == settings["reward"] and config.held_out_images == 0
    assert config.prompts == ("a dog at night",) and config.eta == 1.0 and not config.shared_start and len(config.trained_steps) == 8


# --- shares -----------------------------------------------------------------------------------------------------------------------


def test_fooling_counts_what_the_model_says_and_the_judge_does_not_see() -> None:
    vlm = [True, True, True, False, False, True, False, True]
    judge = [True, False, True, True, False, False, False, False]
    assert fooling(vlm, judge) == dict(vlm_right=5 / 8, fooled=3 / 8)
    assert fooling([True], [True])["fooled"] == 0 and fooling([False], [False])["fooled"] == 0


def test_the_looking_model_is_right_only_with_every_fact() -> None:
    assert says_all(Score(1.0, dict(answers=[])), "two cats") is True
    assert says_all(Score(0.5, dict(answers=[])), "two cats") is False
    for answer, right in (("a fox playing chess", True), ("a fox", False), ("a wolf playing chess", False), ("", False)):
        assert says_all(Score(0.9, dict(answer=answer)), "a fox playing chess") is right
    for prompt in ("a fox taking an exam", "a robot", "three robots", "a robot playing chess"):
        assert says_all(Score(0.9, dict(answer=prompt)), prompt) is None, "it takes a question of yes or no"
    assert says_all(Score(0.9, dict(answer="a red car")), "a car") is True
    assert says_all(Score(6.0, dict(points=6.0)), "a fox") is None


class Agreeable:
    """A reward whose looking model sees in every picture what was asked for: by strict answers, or in a description."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(1.0, dict(answers=[]) if self.name == "satisfaction" else dict(answer=sample.prompt)) for sample in samples]


def test_a_model_that_says_yes_to_everything_is_fooled_by_empty_pictures() -> None:
    count = next(task for task in TASKS if task.name == "count")
    found = measured(count, "counting", 7, ["two cats", "three dogs"], 2 * [Image.new("RGB", (64, 64), "grey")], Agreeable("satisfaction"))
    assert (found.round, found.proxy, found.gold, found.vlm_right, found.fooled) == (7, 1.0, 0.0, 1.0, 1.0)
    assert found.shown is None and found.never_shown is None


def test_pairs_are_told_apart_by_whether_the_denoiser_was_shown_them() -> None:
    """Pictures of the pocket model's training: a cat on a bike is among them, a dog on one is not; on blank pictures neither is right."""
    align = next(task for task in TASKS if task.name == "align")
    prompts = ["a cat riding a bike", "a dog riding a bike", "a dog riding a bike"]
    found = measured(align, "activities_seen", 0, prompts, 3 * [Image.new("RGB", (64, 64), "grey")], Agreeable("alignment"))
    assert (found.shown, found.never_shown, found.gold, found.vlm_right, found.fooled) == (0.0, 0.0, 0.0, 1.0, 1.0)
    exam = measured(align, "unseen_activities", 0, ["a cat taking an exam"], [Image.new("RGB", (64, 64), "grey")], Agreeable("alignment"))
    assert exam.vlm_right is None and exam.fooled is None and exam.shown is None


def test_backgrounds_are_judged_by_their_border() -> None:
    green, night, day = (Image.new("RGB", (64, 64), colour) for colour in ((71, 179, 76), (20, 24, 55), (180, 200, 230)))
    green.paste((230, 90, 20), (8, 8, 56, 64))
    assert is_green(green) and not is_night(green)
    assert is_night(night) and not is_green(night)
    assert not is_green(day) and not is_night(day)


def test_mean_and_error() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    assert mean_and_error([5.0]) == (5.0, 0.0)


# --- lines and reports ------------------------------------------------------------------------------------------------------------

COUNT = next(task for task in TASKS if task.name == "count")


def line_of(seed: int, more: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """A line of the task count whose pictures were right half of the time, then three quarters."""

    def group(name: str, number: int, gold: list[float]) -> dict[str, Any]:
        share = sum(gold) / len(gold)
        kept = dict(proxy=gold, gold=gold, animals=[1] * len(gold), shown=[None] * len(gold), vlm=[True] * len(gold))
        return dict(
            round=number, group=name, count=len(gold), proxy=share, proxy_error=0.25, gold=share, gold_error=0.25, animals=1.0, shown=None,
            never_shown=None, vlm_right=1.0, fooled=1 - share, pictures=kept,
        )  # fmt: skip

    names = (*COUNT.curves, *COUNT.ends)
    found = [group(name, *each) for name in names for each in ((0, [1.0, 0.0, 1.0, 0.0]), (5, [1.0, 1.0, 1.0, 0.0]))]
    return dict(
        task="count", seed=seed, options=dict(every=5, images=4, more=list(more)), rounds=[0, 5], images=32, kl_trained_steps=[0.0, 2.0],
        kl_all_steps=[0.0, 9.0], measured=found, idle_prompts=0.5, seconds=dict(sampling=1.0), kl_prompts="spread",
        config=effective(asked([*tasks.options_of(COUNT, more), *flags(dict(seed=seed))])) | changes,
    )  # fmt: skip


def old(line: dict[str, Any]) -> dict[str, Any]:
    """The line as the first ones were."""
    found = {name: value for name, value in line.items() if name not in ("config", "kl_prompts")}
    return found | dict(measured=[{name: value for name, value in each.items() if name != "pictures"} for each in line["measured"]])


def test_a_line_is_known_by_all_settings_but_seed_and_device() -> None:
    config = asked(["--preset", "count"])
    line = dict(config=effective(config))
    assert same_settings(line, config.with_changes(seed=7, device="cpu")) and same_settings({}, config)
    assert same_settings(line, config.with_changes(held_out_prompts=("a hen",)))
    assert not same_settings(line, config.with_changes(learning_rate=2e-3))
    assert not same_settings(line, config.with_changes(prompts=config.prompts[1:]))
    assert not same_settings(dict(config=line["config"] | dict(a_setting_of_old=1)), config)
    options = dict(every=5, images=4, more=[])
    assert tasks.known(line_of(3), COUNT, options) and tasks.known(old(line_of(3)), COUNT, options)
    assert not tasks.known(line_of(3, lora_rank=4), COUNT, options) and not tasks.known(line_of(3), COUNT, options | dict(images=5))
    assert not tasks.known(line_of(3, ["--rounds", "5"]), COUNT, options)
    with pytest.raises(SystemExit, match="not divisible"):
        asked(["--images-per-round", "7"])


def test_evidence_knows_the_first_lines_and_tells_later_ones_by_all_settings() -> None:
    experiment = evidence.experiments()[0]
    line: dict[str, Any] = dict(name=experiment.name, reward="aesthetic", seed=1, options=experiment.options)
    config = effective(asked(evidence.command_of(experiment, "aesthetic", 0)))
    assert evidence.is_of(line, experiment) and evidence.is_of(line | dict(config=config), experiment)
    assert not evidence.is_of(line | dict(config=config | dict(weight_decay=0.5)), experiment)
    assert not evidence.is_of(line | dict(options={}), experiment)


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", asked(["--preset", "count", "--device", "cpu"])).close()
    with pytest.raises(SystemExit, match=r"holds a run with other settings: learning_rate is \S+ and not 0.0003, seed is 0 and not 2\. Name"):
        make_run(tmp_path / "run", ["--preset", "count", "--learning-rate", "3e-4", "--seed", "2"])


@pytest.mark.parametrize("more", ["--seed 3", "--see 3", "--reward=aesthetic", "--prompts animals", "--preset align", "--ou elsewhere"])
def test_options_that_make_a_task_are_not_handed_on(more: str) -> None:
    with pytest.raises(SystemExit, match="cannot be handed on"):
        tasks.handed_on(more.split())
    tasks.handed_on(["--learning-rate", "3e-4", "--no-shared-start"])


def test_a_report_says_what_was_handed_on_and_names_its_drawings_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, results = ["--learning-rate", "3e-4"], tmp_path / "lines.jsonl"
    for line in (line_of(0), line_of(1, more), line_of(2, more), line_of(2, more, eta=0.5)):
        add_line(results, line)
    capsys.readouterr()
    tasks.report(results, dict(every=5, images=4, more=more), tmp_path, tmp_path / "docs")
    said = capsys.readouterr().out
    assert said.startswith("About 4 pictures a group. Options handed on: --learning-rate 3e-4.")
    assert "Counting --learning-rate 3e-4" in said and "2 lines of other options or settings are left out." in said and "Seeds 1, 2;" in said
    assert [file.name for file in (tmp_path / "docs").iterdir()] == [f"task-count-{short_hash('--learning-rate 3e-4')}.svg"]
    tasks.report(results, dict(every=5, images=4, more=[]), tmp_path, tmp_path / "docs")
    assert (tmp_path / "docs" / "task-count.svg").exists() and "Options handed on: none." in capsys.readouterr().out


def test_the_base_s_error_is_over_pictures_and_the_change_s_is_paired() -> None:
    """Right on two of four pictures, then on three: 0.5 ± 0.29, and +0.25 ± 0.25, which is √(3/16 · 4/3 / 4); equal seeds have no error."""
    rows = tasks.table(COUNT, [line_of(0), line_of(1)]).splitlines()
    base, after, change = rows[2:5]
    assert base == "| counting | base | 0.50 ± 0.29 | 0.50 ± 0.29 | 1.00 ± 0.00 | – | – | 1.00 ± 0.00 | 0.50 ± 0.29 |"
    assert after == "| | after | 0.75 ± 0.00 | 0.75 ± 0.00 | 1.00 ± 0.00 | – | – | 1.00 ± 0.00 | 0.25 ± 0.00 |"
    assert change == "| | change, seed 0 | +0.25 ± 0.25 | +0.25 ± 0.25 | +0.00 ± 0.00 | – | – | +0.00 ± 0.00 | -0.25 ± 0.25 |"
    rows = tasks.table(COUNT, [old(line_of(0)), line_of(1)]).splitlines()
    assert rows[2].startswith("| counting | base | 0.50 ± 0.25 |") and "change, seed 1" in rows[4]  # the error that the old line holds
    assert "seeds 1, on a draw of the prompts" in rows[-2] and "seeds 0, on the first prompts of the file" in rows[-1]
    assert "change" not in "".join(tasks.table(COUNT, [old(line_of(0))]).splitlines()[:6])
    assert share_error(0.5, 4) == pytest.approx(mean_and_error([1.0, 0.0, 1.0, 0.0])[1])


def test_four_prompts_says_whose_reward_and_whose_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, single = dict(rounds_made=2, every=1, images=4), SINGLES[1]
    values = [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    line = dict(prompt=single.prompt, reward_name="clip_score", kl_weight=0.0, seed=3, options=key, rounds=[0, 2], kl_trained_steps=[0, 1])
    line |= {name: [0.5, 0.75] for name in four_prompts.COLUMNS} | dict(kl_all_steps=[0, 1], reward_error=[0.1, 0.1])
    line |= dict(aesthetic_error=[0.2, 0.2], image_statistics_error=[0.3, 0.3])
    later = line | dict(seed=4, pictures=dict.fromkeys(four_prompts.COLUMNS, values))
    four_prompts.report([line, later], "clip_score", key, tmp_path)
    said = capsys.readouterr().out
    assert "reward of all prompts: clip_score" in said and (tmp_path / f"four-prompts-{short_hash('clip_score')}.svg").exists()
    assert "| base | 0.50 ± 0.10 | 0.50 ± 0.29 | 0.50 ± 0.29 | 0.50 ± 0.20 | 0.50 ± 0.30 |" in said and "| 3, 4 |" in said
    assert "| change of one seed | +0.25 ± 0.25 |" in said and "Seed 3, 4: the line does not say" in said
    four_prompts.report([line, later], "", key, tmp_path)
    assert "2 lines of other options" in (said := capsys.readouterr().out) and "Not measured yet." in said


def test_guided_lines_are_known_by_all_of_their_guidance() -> None:
    how, key, config = Guidance(3.0, backward_steps=3, backward_rate=0.1), dict(prompts="animals", images=9), asked(["--preset", "aesthetic"])

    def known(line: dict[str, Any], guidance: Guidance) -> bool:
        return universal_guidance.known(line, universal_guidance.title_of(guidance), guidance.__dict__, key, config)

    first = dict(title="universal guidance, s = 3, 3 backward steps", guidance=dict(how.__dict__), **key)
    for line in (first, first | dict(config=effective(config))):
        assert known(line, how) and not known(line, Guidance(3.0, backward_steps=3, backward_rate=0.2)) and not known(line, Guidance(3.0))
        assert universal_guidance.name_of(line) == "universal guidance, s = 3, 3 backward steps of 0.1"
    assert not known(first | dict(config=effective(config.with_changes(eta=0.5))), how) and not known(first | dict(images=8), how)


def test_lines_of_a_run_name_it_and_other_rewards_and_samplers_are_refused() -> None:
    key, run = dict(prompts="animals", images=9), asked(flags(universal_guidance.RUN))
    line = dict(title="DDPO, 12 rounds, no guidance", guidance=None, **key)
    name = universal_guidance.run_name(run)
    assert name != universal_guidance.run_name(run.with_changes(seed=1)) != universal_guidance.run_name(run.with_changes(learning_rate=1e-4))
    assert universal_guidance.known(line, f"{name}, 12 rounds, no guidance", None, key, run)
    assert not universal_guidance.known(line, f"{name}, 25 rounds, no guidance", None, key, run)
    other = run.with_changes(seed=1)
    assert not universal_guidance.known(line, f"{universal_guidance.run_name(other)}, 12 rounds, no guidance", None, key, other)
    universal_guidance.check_run(other.with_changes(learning_rate=1e-4), Path("run"))
    for changes in (dict(eta=1.0), dict(reward="clip_score"), dict(steps=20)):
        with pytest.raises(SystemExit, match=f"cannot be compared with guided pictures: {next(iter(changes))} is"):
            universal_guidance.check_run(run.with_changes(**changes), Path("run"))


# --- which prompts ----------------------------------------------------------------------------------------------------------------


def test_pictures_are_spread_over_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the counting prompts, which go round two, three, four, has all three numbers; enough pictures have all prompts, equally often."""
    monkeypatch.setattr(
        tasks, "held_out_images", lambda policy, config, base, count: ([config.prompts[i % len(config.prompts)] for i in range(count)], [])
    )
    config, prompts = asked(["--preset", "count"]), prompt_sets()["counting"]

    def made(about: int) -> list[str]:
        return tasks.pictures(None, config, prompts, about, True)[0]  # type: ignore[arg-type]

    assert len(made(45)) == len(set(made(45))) == 45 and made(45) == made(45)
    assert min(Counter(prompt.split()[0] for prompt in made(45)).values()) > 8
    assert made(90) == list(prompts) and Counter(made(270)) == dict.fromkeys(prompts, 2)
    assert drawn(prompts[:16], 16) == list(prompts[:16]) and len({prompt.split()[1] for prompt in drawn(prompts, 16)}) > 10


def test_a_contact_sheet_shows_no_prompt_twice(tmp_path: Path) -> None:
    prompts = [*prompt_sets()["animals"]] * 2
    places = tasks.first_of_each(prompts, 8)
    assert len({prompts[i] for i in places}) == 8 and max(places) < 45
    assert tasks.first_of_each(["a", "a", "b", "c", "b"], 8) == [0, 2, 3]
    row = [Image.new("RGB", (64, 64), (2 * i, 0, 0)) for i in range(90)]
    tasks.contact_sheet(prompts, [row, row], tmp_path / "sheet.png")
    found = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert found.size == (2 * (8 * 66 - 2), 2 * (2 * 66 - 2))
    assert [found.getpixel((132 * i + 60, 60)) for i in range(8)] == [(2 * i, 0, 0) for i in places]


# --- guidance ---------------------------------------------------------------------------------------------------------------------


def test_the_differentiable_score_is_the_reward(policy: StableDiffusionPolicy, reward: Aesthetic) -> None:
    """On the very pixels of the pictures to four digits; on the unrounded ones that guidance sees, as near as 256 levels are."""
    trajectory, images = rollout(policy, PROMPTS, SEEDS)
    points = [score.value for score in reward.score([Sample(i, "", image) for i, image in enumerate(images)])]
    pixels = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3) for image in images])
    score = aesthetic_of_pixels(reward)
    with torch.no_grad():
        assert score(pixels.permute(0, 3, 1, 2).float() / 255).tolist() == pytest.approx(points, abs=1e-3)
        assert score(pixels_of(policy, trajectory.latents[:, -1])).tolist() == pytest.approx(points, abs=0.05)
    with pytest.raises(ValueError, match="sees 64"):
        score(torch.zeros(1, 3, 32, 32))


def test_guidance_of_no_strength_is_the_plain_sampler(policy: StableDiffusionPolicy, reward: Aesthetic) -> None:
    plain = rollout(policy, PROMPTS, SEEDS)[0].latents[:, -1]
    score = aesthetic_of_pixels(reward)
    assert torch.equal(guided_latents(policy, score, PROMPTS, SEEDS, Guidance(0.0)), plain)
    assert not torch.allclose(guided_latents(policy, score, PROMPTS, SEEDS, Guidance(5.0)), plain, atol=1e-2)


@pytest.mark.parametrize("how", [Guidance(0.5), Guidance(0.0, backward_steps=2, backward_rate=0.01)], ids=["forward", "backward"])
def test_a_little_guidance_raises_the_score_of_the_expected_picture(policy: StableDiffusionPolicy, reward: Aesthetic, how: Guidance) -> None:
    """At the second step, on both pictures: the clean latent that the guided noise implies scores more than the one that the plain noise does."""
    score, condition = aesthetic_of_pixels(reward), policy.encode(PROMPTS)
    x_t = rollout(policy, PROMPTS, SEEDS)[0].latents[:, 1]
    alpha = policy.schedule.alpha[1]

    def expected(guidance: Guidance) -> Tensor:
        noise = guided_noise(policy, score, x_t, 1, condition, guidance)
        with torch.no_grad():
            return score(pixels_of(policy, policy.schedule.clean_and_noise(x_t, noise, alpha)[0]))

    gain = expected(how) - expected(Guidance(0.0))
    assert bool((gain > 1e-3).all()), gain


def test_guidance_moves_the_noise_against_the_gradient(policy: StableDiffusionPolicy, reward: Aesthetic) -> None:
    """ε - ε' is s √(1-ᾱ_t) times the gradient through the denoiser: along it, the score of x_t changes as differences say."""
    score, condition = aesthetic_of_pixels(reward), policy.encode(PROMPTS[:1])
    x_t = rollout(policy, PROMPTS[:1], SEEDS[:1])[0].latents[:, 1]
    alpha, index = policy.schedule.alpha[1], torch.ones(1, dtype=torch.long)

    def value(x: Tensor) -> float:
        with torch.no_grad():
            noise = policy.predict(x, policy.schedule.timesteps[index], condition)
            return float(score(pixels_of(policy, policy.schedule.clean_and_noise(x, noise, alpha)[0])))

    with torch.no_grad():
        noise = guided_noise(policy, score, x_t, 1, condition, Guidance(0.0))
    gradient = (noise - guided_noise(policy, score, x_t, 1, condition, Guidance(2.0))) / (2.0 * (1 - alpha).sqrt())
    way = gradient / gradient.norm()
    slope = (value(x_t + 0.02 * way) - value(x_t - 0.02 * way)) / 0.04
    assert float(gradient.norm()) == pytest.approx(slope, rel=0.05)


def test_renoising_undoes_a_step(policy: StableDiffusionPolicy) -> None:
    """x_s of the forward process becomes x_t of it: means √ᾱ_t x_0, variances 1 - ᾱ_t."""
    schedule, ones = policy.schedule, torch.ones(1)
    for i in range(len(schedule)):
        mean = renoised(schedule, i, schedule.alpha_prev[i].sqrt() * ones, torch.zeros(1))
        spread = renoised(schedule, i, (1 - schedule.alpha_prev[i]).sqrt() * ones, torch.zeros(1)) ** 2 + renoised(schedule, i, 0 * ones, ones) ** 2
        assert float(mean) == pytest.approx(float(schedule.alpha[i].sqrt()), rel=1e-4)
        assert float(spread) == pytest.approx(float(1 - schedule.alpha[i]), rel=1e-4)


# --- alarms -----------------------------------------------------------------------------------------------------------------------


def test_an_alarm_is_judged_by_the_judge_s_animals_and_gold() -> None:
    """Animals fall by more than ten points at 15; gold is best at 10, and at 15 what it was at 5. What the best round keeps is a share of the gain,
    or of the value."""
    judged: dict[str, Any] = dict(rounds=[0, 5, 10, 15, 20], animals=[0.9, 0.9, 0.85, 0.7, 0.2], gold=[4.0, 5.0, 6.0, 5.0, 4.5], gold_error=[0.1] * 5)
    cases = ((15, 10), (20, 15), (5, 0), (None, 20), (10, 5))
    found = [alarms.verdict(alarm=first, best=best, every=5, **judged) for first, best in cases]
    assert [(f["alarm"], f["lost"], f["when"], f["false"]) for f in found] == [
        (15, 15, "with it", False), (20, 15, "late", False), (5, 15, "before", True), (None, 15, "never", False), (10, 15, "before", False),
    ]  # fmt: skip
    assert [(f["kept"], f["kept_value"]) for f in found[:4]] == [
        (1, 1),
        (0.5, pytest.approx(5 / 6, abs=1e-4)),
        (0, pytest.approx(4 / 6, abs=1e-4)),
        (0.25, 0.75),
    ]
    noisy = judged | dict(gold_error=[2.0] * 5)
    assert not alarms.verdict(alarm=5, best=5, every=5, **noisy)["false"], "that may be chance"
    rising = judged | dict(gold=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert all(alarms.verdict(alarm=first, best=5, every=5, **rising)["false"] for first in (5, 12, 20)), "the last one too"
    falling = judged | dict(gold=[1.0, 5.0, 5.0, 4.0, 0.0])
    assert alarms.verdict(alarm=10, best=5, every=10, **falling)["false"] is False and alarms.verdict(alarm=7, best=5, every=7, **falling)["false"]
    nothing = alarms.verdict(alarm=None, every=5, best=10, **judged | dict(gold=[0.0] * 5))
    run = judged | dict(preset="compress", seed=0, words="Noise has spread.", config=dict(precision="auto"))
    assert nothing["kept"] is None and nothing["kept_value"] is None and "| – |" in alarms.report([run | nothing])
    assert alarms.verdict(alarm=None, every=5, best=3, **judged)["kept_value"] is None, "it was not judged"
    told = alarms.report([run | f for f in found])
    assert "Of 5 runs that lose their animals, the alarm came before that in 2, with it in 1, late or never in 2." in told
    assert "while gold still rose in 1 of 5" in told and "| compress | 20 | 0 | 15 | 15 | with it | 90, 20 | 10 | 100 % (100 %) | no |" in told
    assert "* compress, 20 rounds, seed 0, round 15: Noise has spread." in told
    assert set(alarms.PRESETS) == set(alarms.FACTS) == {"compress", "incompress", "aesthetic", "align", "count"}


def test_a_line_of_the_alarms_says_what_the_alarm_makes_of_it_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what was watched, so that other thresholds need no new runs; and its pictures are drawn."""
    still, spread = [0.1, 0.12, 0.11, 0.1], [0.5, 0.52, 0.51, 0.5]
    watched = {
        "0": dict(noise=still, jpeg_incompressibility=[1.0] * 4),
        "6": dict(noise=still, jpeg_incompressibility=[2.0] * 4),
        "12": dict(noise=spread, jpeg_incompressibility=[3.0] * 4),
    }
    line = dict(preset="incompress", seed=0, run="incompress-0", config=dict(reward="jpeg_incompressibility"), rounds=[0, 6, 12], watched=watched)
    line |= dict(animals=[0.9, 0.9, 0.2], gold=[0.9, 0.9, 0.2], gold_error=[0.03] * 3, every=6, paid={})
    found = alarms.of_line(line)
    assert (found["alarm"], found["lost"], found["when"], found["false"], found["best"]) == (12, 12, "with it", False, 6)
    assert found["words"].startswith("The reward still rises, but noise has spread")
    monkeypatch.setattr("ddpo.alarms.SPREAD", 100.0)
    assert alarms.of_line(line)["alarm"] is None
    assert alarms.of_line(line | dict(paid={"12": ["noise"]}))["words"].startswith("The reward still rises, but noise, which it pays for, has spread")
    colours = ("red", "lime", "blue")
    strip = [[Image.new("RGB", (16, 16), colour)] * alarms.COLUMNS for colour in colours]
    sheet(strip, scale=1, gap=0).save(tmp_path / "strip.png")
    for best, shown in ((6, "red lime blue"), (0, "red blue"), (3, "red blue")):
        alarms.draw(tmp_path / "strip.png", found | dict(best=best), tmp_path / "drawn.png")
        drawn = Image.open(tmp_path / "drawn.png").convert("RGB")
        assert [drawn.getpixel((16, 132 * i + 16)) for i in range(drawn.height // 132 + 1)] == [ImageColor.getrgb(name) for name in shown.split()]


# --- distance ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [dict(eta=1.0), dict(eta=0.3, steps=6)])
def test_the_distance_from_the_base_is_the_closed_formula(changes: dict[str, Any]) -> None:
    """A shift δ of the predicted noise makes KL_t = c_t² ‖δ‖² / 2σ_t², c_t = √(ᾱ_s (1-ᾱ_t)/ᾱ_t) - √(1-ᾱ_s-σ_t²), wherever the trajectory goes."""
    config = toy_config(**changes)
    policy = LinearPolicy(config)
    assert float(kl_to_base(policy, config.prompts, 5, microbatch=2).abs().max()) == 0
    shift = 0.1 * torch.randn(policy.shift.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.shift.copy_(shift)
    found = kl_to_base(policy, config.prompts, 5, microbatch=2)
    schedule = policy.schedule
    moved = (schedule.alpha_prev * (1 - schedule.alpha) / schedule.alpha).sqrt() - (1 - schedule.alpha_prev - schedule.std**2).clamp(min=0).sqrt()
    wanted = torch.stack([(shift[i % 2] ** 2).sum() * moved**2 / (2 * schedule.std**2) for i in range(5)])
    assert bool((found > 0).all())
    assert torch.allclose(found, wanted, rtol=1e-3)


def test_the_base_of_the_pocket_model_is_at_no_distance_and_a_moved_one_is_not(policy: StableDiffusionPolicy) -> None:
    assert float(kl_to_base(policy, PROMPTS, 2).abs().max()) == 0
    name, weight = next((name, p) for name, p in policy.parameters().items() if "lora_B" in name)
    try:
        with torch.no_grad():
            weight.add_(0.1)
        assert float(kl_to_base(policy, PROMPTS, 2).min()) > 0, name
    finally:
        with torch.no_grad():
            weight.zero_()


def test_the_nats_of_a_prediction_in_the_pocket_s_schedule_are_those_that_are_told() -> None:
    """KL per ‖Δε‖² is c² / 2σ²: η 0.1 against η 1, and the share of the last step but one (``kl_to_base``)."""
    scheduler = DDIMScheduler.from_pretrained(rewards.POCKET / "model" / "scheduler")
    nats = []
    for eta in (1.0, 0.1):
        schedule = Schedule.ddim(scheduler, 10, eta)
        nats.append((schedule.gradient_scale**2 / schedule.alpha / 2).double())
    ratio = nats[1] / nats[0]
    assert 34 < float(ratio[[0, 1, 2, 3, 4, 5, 6, 7, 9]].min()) < float(ratio[[0, 1, 2, 3, 4, 5, 6, 7, 9]].max()) < 40
    assert float(ratio[8]) == pytest.approx(80, abs=0.5) and float(nats[1][:3].sum() / nats[0][:3].sum()) == pytest.approx(37, abs=0.5)
    assert [float(each[8] / each.sum()) for each in nats] == pytest.approx([0.86, 0.93], abs=0.005)
    assert [float(each[9] / each.sum()) for each in nats] == pytest.approx([0.01, 0.01], abs=0.005)


def test_the_distance_is_taken_on_a_draw_of_the_prompts() -> None:
    """Four trajectories of six prompts: not the first four."""

    class Listening(LinearPolicy):
        def encode(self, prompts: Sequence[str], guided: bool = True) -> Tensor:
            heard.extend(prompts)
            return super().encode(prompts, guided)

    heard, prompts = list[str](), ("a cat", "a dog", "a fox", "a cow", "a hen", "a pig")
    kl_to_base(Listening(toy_config(prompts=prompts)), prompts, 4)
    assert set(heard) == set(drawn(prompts, 4)) != set(prompts[:4])


def test_what_a_penalty_held_stands_by_run_and_weight() -> None:
    """Where the run goes on from, and the end of each weight; one that was not tried is a dash. What was measured stands in the docs."""
    lines = [
        dict(run="a", back=6, weight=0.0, rounds=[0, 2], reward=[1.0, 3.0], animals=[0.9, 0.5]),
        dict(run="a", back=6, weight=0.3, rounds=[0, 2], reward=[1.0, 2.0], animals=[0.9, 0.875]),
        dict(run="b", back=3, weight=0.3, rounds=[0, 2], reward=[1.5, 2.5], animals=[0.8, 0.75]),
    ]
    head, _, first, second = penalty.report(lines).splitlines()
    assert head == "| run | goes on from | there | 0 | 0.3 |"
    assert first == "| a | round 6 | 1.00, 90 % | 3.00, 50 % | 2.00, 88 % |" and second == "| b | round 3 | 1.50, 80 % | – | 2.50, 75 % |"
    docs = (Path(__file__).parent.parent / "docs" / "watching.md").read_text(encoding="utf-8")
    for line in lines_of(penalty.RESULTS):
        assert f"{line['reward'][-1]:.2f}, {100 * line['animals'][-1]:.0f} %" in docs, (line["run"], line["weight"])
