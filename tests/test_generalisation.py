"""How far a run reaches: the arithmetic on values whose answer is known, the pictures of a real model, and what becomes of it in the files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpo.__main__ import main, unseen_from
from ddpo.card import REACH
from ddpo.config import RunConfig, prompt_sets
from ddpo.export import ExportError, export
from ddpo.generalisation import Gain, Generalisation, Group, gain_of, groups_of, measure, measured, rows_of, save, words_of
from ddpo.presets import presets
from ddpo.rollout import derive_seed, rollout
from rewards.function import TRUSTED, trust
from rewards.jpeg import Compressibility
from tests.test_export import FAMILIES, Run
from tests.toys import filled_run

# --- arithmetic -------------------------------------------------------------------------------------------------------------------


def test_a_gain_is_the_mean_over_prompts_of_their_pictures_changes() -> None:
    """Changes 1 and 3 of one prompt, 8 of another: the prompts' means are 2 and 8, so 5, where a mean of pictures would be 4. Student's t of one
    degree of freedom has its 97.5 % point at 12.706, and the standard error is 3. A picture without a value on either side is left out."""
    found = gain_of(["a", "a", "b", "c"], [0.0, 1.0, 2.0, None], [1.0, 4.0, 10.0, 3.0])
    assert found == Gain(1.25, 6.25, 5.0, pytest.approx(5 - 12.7062 * 3, abs=1e-3), pytest.approx(5 + 12.7062 * 3, abs=1e-3))
    assert gain_of(["a"], [None], [1.0]) is None


def test_one_prompt_is_told_by_its_pictures_and_one_picture_has_no_interval() -> None:
    """Changes 1, 2 and 3: mean 2, standard error 1/√3, two degrees of freedom: 4.3027."""
    found = gain_of(["a"] * 3, [0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    half = 4.3027 / 3**0.5
    assert found == Gain(0.0, 2.0, 2.0, pytest.approx(2 - half, abs=1e-3), pytest.approx(2 + half, abs=1e-3))
    assert gain_of(["a"], [1.0], [3.0]) == Gain(1.0, 3.0, 2.0, None, None)


def test_trained_prompts_of_which_one_has_a_single_picture_are_told_as_others_are() -> None:
    """And so the cards say."""
    prompts, zeros, gains = ["a", "a", "b"], [0.0] * 3, [0.9, 1.1, 3.0]
    assert gain_of(prompts, zeros, gains, all_known=True) == gain_of(prompts, zeros, gains) and "and each with two pictures at least" in REACH


@pytest.mark.parametrize("all_known", [False, True])
def test_the_interval_holds_the_truth_as_often_as_it_says(all_known: bool) -> None:
    """12 prompts whose own gains differ (sd 1), two pictures each: in 95 % of 1,000 draws, within three standard errors of that count. Where the
    prompts stand for others, they are drawn anew each time; where they are all, they are the same, and the interval is narrower."""
    numbers = np.random.default_rng(0)
    own = numbers.normal(0, 1, 12)
    prompts, held, widths = [name for name in map(str, range(12)) for _ in range(2)], 0, []
    for _ in range(1000):
        of_prompts = own if all_known else numbers.normal(0, 1, 12)
        gains = 0.3 + of_prompts.repeat(2) + numbers.normal(0, 0.5, 24)
        found = gain_of(prompts, [0.0] * 24, gains.tolist(), all_known)
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 0.3 + (own.mean() if all_known else 0) <= found.high
        widths.append(found.high - found.low)
    assert abs(held - 950) < 21 and (np.mean(widths) < 0.5) == all_known


def gain(value: float, half: float) -> Gain:
    return Gain(0.0, value, value, value - half, value + half)


def test_what_it_says_of_groups_in_words() -> None:
    """A rise, a fall, no sure change; a share only of a gain on trained prompts that is surely one; few prompts are said to be few."""
    groups = [("trained", gain(2, 1)), ("unseen_animals", gain(1.5, 1)), ("objects", gain(-1, 0.5)), ("unseen", gain(0.1, 0.5))]
    found = Generalisation(3, "clip_score", tuple(Group(name, 4 if name != "unseen" else 1, 8, {"clip_score": each}) for name, each in groups))
    assert found.words() == [
        "After round 3, clip_score rises on unseen animals: +1.5 (0.5 to 2.5), 75 % of what it gains on trained prompts.",
        "After round 3, clip_score falls on objects: -1 (-1.5 to -0.5), -50 % of what it gains on trained prompts.",
        "After round 3, clip_score does not surely change on unseen (one prompt): +0.1 (-0.4 to 0.6), 5 % of what it gains on trained prompts.",
    ]
    head, rows = rows_of(found)
    assert head[4] == "round 3" and rows[0] == ("clip_score", "trained prompts (4)", "8", "0", "2", "+2 (1 to 3)", "") and rows[1][-1] == "75 %"
    for own in (gain(1, 2), gain(-2, 1)):
        unsure = Generalisation(3, "clip_score", (Group("trained", 4, 8, {"clip_score": own}), Group("objects", 4, 8, {"clip_score": gain(1, 2)})))
        assert unsure.words() == ["After round 3, clip_score does not surely change on objects: +1 (-1 to 3)."]
    (words,) = Generalisation(3, "blend: 1 human, 1 clip_score", found.groups).words()
    assert "a blind test asks people" in words


def test_the_groups_are_the_sets_that_are_kept_from_training_or_those_that_are_named() -> None:
    sets = prompt_sets()
    found = groups_of(RunConfig(prompts=sets["animals"]), {})
    assert list(found) == ["trained", "unseen_animals", "objects"] and not set(found["trained"]) & set(found["unseen_animals"])
    few = groups_of(RunConfig(prompts=sets["animals"][3:7]), {})
    assert few == {"trained": sets["animals"][3:7]} | {name: found[name] for name in ("unseen_animals", "objects")}, "a few of a set are of it"
    assert list(groups_of(RunConfig(prompts=sets["activities_seen"][:4]), {})) == ["trained", "activities_unseen", "unseen_activities"]
    assert list(groups_of(presets()["count"].config, {})) == ["trained", "unseen_animals_counted"]
    own = RunConfig(prompts=("a red car", "a boat"))
    assert list(groups_of(own, {})) == ["trained"]
    assert groups_of(own, dict(unseen=("a boat", "a train"))) == dict(trained=("a red car", "a boat"), unseen=("a train",))
    for prompts in (own.prompts, sets["animals"]):
        held_out = own.with_changes(prompts=prompts, held_out_prompts=("a tram", "a train", "a tram"))
        assert groups_of(held_out, {}) == dict(trained=prompts, held_out=("a tram", "a train"))
        assert list(groups_of(held_out, dict(unseen=("a ship",)))) == ["trained", "unseen"]
    assert words_of("held_out") == "held-out prompts" and words_of("unseen_animals") == "unseen animals"


def test_what_is_unseen_is_named_as_prompts_are(tmp_path: Path) -> None:
    (tmp_path / "cars.txt").write_text("a van\na bus\n")
    assert unseen_from(["objects", str(tmp_path / "cars.txt"), "a tram; a boat", "a ship"]) == dict(
        objects=prompt_sets()["objects"], cars=("a van", "a bus"), unseen=("a tram", "a boat", "a ship")
    )


# --- a model ----------------------------------------------------------------------------------------------------------------------


def test_the_pictures_are_the_models_and_every_value_is_told(tmp_path: Path) -> None:
    """Of either side those that the policy makes from the prompt and seed; the table is what the rows say; card and report have it from then on."""
    run = Run(tmp_path, "sd1", prompts=("a cat", "a dog"), reward="jpeg_compressibility")
    made: list[tuple[int, int]] = []
    export(run.store, "generalisation", tmp_path / "out", pictures=3, unseen=dict(unseen=("a fox", "a cat")), report=lambda *now: made.append(now))
    with open(tmp_path / "out" / "generalisation.csv", newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    seeds = [derive_seed("generalisation", i) for i in range(3)]
    assert [(row["group"], row["prompt"], int(row["seed"])) for row in rows] == [
        *zip(["trained"] * 3, ["a cat", "a dog", "a cat"], seeds, strict=True), *zip(["unseen"] * 3, ["a fox"] * 3, seeds, strict=True),
    ]  # fmt: skip
    assert made[0] == (0, 12) and made[-1] == (12, 12)
    prompts, seeds = [row["prompt"] for row in rows], [int(row["seed"]) for row in rows]
    after = rollout(run.policy, prompts, seeds)[1]
    with run.policy.base():
        before = rollout(run.policy, prompts, seeds)[1]
    for row, *wanted in zip(rows, before, after, strict=True):
        for side, image in zip(("before", "after"), wanted, strict=True):
            with Image.open(tmp_path / "out" / row[side]) as stored:
                assert np.abs(np.asarray(stored, int) - np.asarray(image, int)).max() <= 1  # sums in other batch shapes round otherwise
                assert float(row[f"jpeg_compressibility_{side}"]) == Compressibility().score([sample(stored)])[0].value
    found = measured(run.store, 1)
    assert found is not None and [group.name for group in found.groups] == ["trained", "unseen"]
    for group in found.groups:
        mine = [row for row in rows if row["group"] == group.name]
        told = gain_of(
            *([row["prompt"] for row in mine], *([float(row[f"jpeg_compressibility_{side}"]) for row in mine] for side in ("before", "after")))
        )
        assert told == group.gains["jpeg_compressibility"]
    told = json.loads((tmp_path / "out" / "generalisation.json").read_text())
    assert told["groups"][1]["gains"]["jpeg_compressibility"]["gain"] == found.groups[1].gains["jpeg_compressibility"].gain
    assert "image_statistics" in found.rewards and "| unseen (1) |" in (tmp_path / "out" / "README.md").read_text()
    export(run.store, "diffusers", tmp_path / "lora")
    assert "## How far it reaches" in (tmp_path / "lora" / "README.md").read_text()
    export(run.store, "report", tmp_path / "report", pictures=0)
    assert "How far it reaches" in (tmp_path / "report" / "taste-report.html").read_text()
    run.store.close()


def test_held_out_prompts_are_a_group_and_stand_in_the_card(tmp_path: Path) -> None:
    run = Run(tmp_path, "sd1", prompts=("a cat", "a dog"), held_out_prompts=("a fox",), reward="jpeg_compressibility")
    export(run.store, "generalisation", tmp_path / "out", pictures=2)
    found = measured(run.store, 1)
    assert found is not None and [(group.name, group.prompts) for group in found.groups] == [("trained", 2), ("held_out", 1)]
    assert "| held-out prompts (1) |" in (tmp_path / "out" / "README.md").read_text()
    export(run.store, "diffusers", tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert '- "a dog"\n\nNever trained on, to see how far it reaches:\n\n- "a fox"\n' in card and '"held_out_prompts"' not in card
    run.store.close()


def sample(image: Image.Image) -> object:
    from rewards.base import Sample

    return Sample(0, "", image.convert("RGB"))


def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, "sd1")
    trained = "; ".join(run.store.config.prompts)
    (tmp_path / "trained.txt").write_text("a ship\n")
    order = ["export", str(run.store.folder), "--as", "generalisation", "--out", str(tmp_path / "out")]
    for options, words in (
        (["--unseen", trained], "were trained on"),
        (["--pictures", "0"], "between 1 and"),
        (["--round", "7"], "no checkpoint"),
        (["--as", "report", "--unseen", "a ship"], "Leave out --unseen"),
        (["--unseen", str(tmp_path / "trained.txt")], "another name"),
    ):
        assert main([*order, *options]) == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run.store.close()


def test_a_blend_of_one_s_own_function_is_told_without_its_folder_and_asked_only_where_it_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the adapter that the run starts from is the run's own copy: the file that it was is gone. Afterwards the base model is another one."""
    file = tmp_path / "house" / "mine.py"
    file.parent.mkdir()
    file.write_text("def warm(images, prompts):\n    return [float(image.getpixel((0, 0))[0]) for image in images]\n")
    run = Run(tmp_path, "sd1", prompts=("a cat", "a dog"), reward=f"blend: 1 jpeg_compressibility, 2 {file}:warm")
    order = [
        "export",
        str(run.store.folder),
        "--as",
        "generalisation",
        "--pictures",
        "2",
        "--unseen",
        "a fox; a ship",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(order) == 2 and "trust" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*order, "--trust", str(file)]) == 0
    found = measured(run.store, 1)
    assert found is not None and found.rewards[:3] == ["blend: 1 jpeg_compressibility, 2 mine.py:warm", "jpeg_compressibility", "mine.py:warm"]
    text = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file())
    assert "mine.py:warm_before" in text and "house" not in text and "house" not in (run.store.folder / "generalisation" / "0001.json").read_text()
    capsys.readouterr()
    FAMILIES["sd1"]().save_pretrained(run.model)
    (run.model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"gone")
    assert main([*order[:-1], str(tmp_path / "again"), "--trust", str(file)]) == 2 and "Traceback" not in capsys.readouterr().err
    run.store.close()


def test_functions_of_one_name_in_two_folders_are_two_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED, "")
    files = [tmp_path / name / "mine.py" for name in ("one", "two")]
    for i, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(f"def warm(images, prompts):\n    return [float(image.getpixel((0, 0))[{i}]) for image in images]\n")
        trust(file)
    run = Run(tmp_path, "sd1", prompts=("a cat", "a dog"), reward=f"blend: 1 {files[0]}:warm, 2 {files[1]}:warm")
    (tmp_path / "made").mkdir()
    _, (twin, *_), failures = measure(run.store, 1, run.store.checkpoints()[1], tmp_path / "made", 2, {})
    assert not failures and list(twin.values)[:3] == ["blend: 1 one/mine.py:warm, 2 two/mine.py:warm", "one/mine.py:warm", "two/mine.py:warm"]
    with Image.open(tmp_path / "made" / twin.files[0]) as image:
        assert [twin.values[f"{name}/mine.py:warm"][0] for name in ("one", "two")] == list(image.convert("RGB").getpixel((0, 0))[:2])
    run.store.close()


def test_a_run_that_people_rate_tells_other_rewards_and_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, "sd1", prompts=("a cat", "a dog"), reward="human")
    export(run.store, "generalisation", tmp_path / "out", pictures=2)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "a blind test asks people" in text and "| jpeg_compressibility | trained prompts (2) |" in text
    run.store.close()


# --- keeping ----------------------------------------------------------------------------------------------------------------------


def test_the_latest_measurement_up_to_a_round_is_told_and_a_broken_file_is_none(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "run", rounds=3)
    assert measured(store, 3) is None
    first, third = (Generalisation(at, "human", (Group("trained", 1, 2, {"clip_score": Gain(1.0, 2.0, 1.0, None, None)}),)) for at in (1, 3))
    save(store, third)
    assert measured(store, 2) is None
    save(store, first)
    assert measured(store, 2) == first and measured(store, 3) == third
    file = store.folder / "generalisation" / "0003.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | dict(version=1)))
    assert measured(store, 3) == third, "as it was written before"
    (group,) = told["groups"]
    groups = ([], ["trained"], [group | dict(gains=[])], [group | dict(gains=dict(clip_score=[1.0]))], [group | dict(prompts="many")])
    changes = (dict(reward="beauty"), dict(reward=3), dict(groups={}), *(dict(groups=each) for each in groups))
    for broken in ("{", "[" * 100_000, "null", *(json.dumps(told | change) for change in changes)):
        file.write_text(broken)
        assert measured(store, 3) == first, broken
    (store.folder / "generalisation" / "².json").write_text("{}")
    export(store, "report", tmp_path / "report", pictures=0)
    with pytest.raises(ExportError, match="between"):
        export(store, "generalisation", tmp_path / "out", pictures=5000)
    store.close()
