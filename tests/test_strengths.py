"""How strong: the pictures of a real model at several strengths, what is said of them, and what becomes of it in the files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpo import strengths
from ddpo.__main__ import main
from ddpo.export import export
from ddpo.generalisation import Gain
from ddpo.rollout import derive_seed, rollout
from ddpo.strengths import STRENGTHS, TASTE, Strengths, measure, measured, rows_of, save
from rewards.base import Sample
from rewards.jpeg import Compressibility
from rewards.preference import Guess, Looks
from tests.test_export import Run
from tests.toys import filled_run


def gains(*values: float, half: float = 0.5) -> tuple[Gain, ...]:
    return tuple(Gain(1.0, 1.0 + value, value, value - half, value + half) for value in values)


def found_of(reward: str, variety: tuple[float | None, ...] = (None,) * 4, **gains: tuple[Gain, ...]) -> Strengths:
    return Strengths(7, reward, 16, 32, {name.replace("taste", TASTE): each for name, each in gains.items()}, variety)


def test_what_is_kept_at_each_strength_and_what_surely_falls_in_words() -> None:
    """1, 2, 3 of 4 are 25, 50 and 75 %. A fall is told from the strength from which on all are sure: one that recovers, or may be chance, is none,
    nor is one of what has no merit in itself."""
    others = dict(clip_score=gains(-0.1, -0.2, -0.6, -0.9), pickscore=gains(-1, -2, -3, -4), satisfaction=gains(-1, -1, -1, 0))
    others |= dict(jpeg_compressibility=gains(-1, -2, -3, -4))
    found = found_of("aesthetic", (0.9, 0.8, 0.7, None), aesthetic=gains(1, 2, 3, 4), **others)
    assert found.words() == [
        "32 pictures of 16 prompts at each strength of what was learned until round 7, of seeds that were not trained on, beside the base model's.",
        "Of what aesthetic gains at full strength, 25 % keeps 25 %, 50 % keeps 50 % and 75 % keeps 75 %.",
        "clip_score surely falls from 75 % on.",
        "pickscore surely falls at each of them.",
    ]
    head, rows = rows_of(found)
    assert head == ("gain, ± half of its 95 % interval", "base model", "25 %", "50 %", "75 %", "100 %")
    assert rows[0] == ("aesthetic", "1", "+1.00 ± 0.50", "+2.00 ± 0.50", "+3.00 ± 0.50", "+4.00 ± 0.50")
    assert rows[-1] == ("how much a prompt's pictures differ", "100 %", "90 %", "80 %", "70 %", "–")


def test_a_gain_has_the_decimals_that_its_interval_allows() -> None:
    told = [
        rows_of(found_of("clip_score", clip_score=gains(value, 0, 0, 0, half=half)))[1][0][2]
        for value, half in ((110, 9.2), (1234, 150), (-0.0123, 0.0456))
    ]
    assert told == ["+110.0 ± 9.2", "+1234 ± 150", "-0.012 ± 0.046"]


def test_where_people_rate_other_tastes_may_fall() -> None:
    found = found_of("human", clip_score=gains(-1, -2, -3, -4), aesthetic=gains(-1, -2, -3, -4))
    assert found.words()[2:] == ["clip_score surely falls at each of them."]


def test_a_gain_that_is_not_sure_is_shared_out_to_nobody() -> None:
    for whole, words in ((0.4, "aesthetic does not surely gain at full strength."), (-3, "aesthetic surely falls at full strength.")):
        assert found_of("aesthetic", aesthetic=gains(0.1, 0.2, 0.3, whole)).words()[1:] == [words]
    (_, few) = found_of("aesthetic", aesthetic=(Gain(0, 1, 1, None, None),) * 4).words()
    assert few == "The pictures are too few to say what aesthetic gains."
    assert "look at them" in found_of("human", clip_score=gains(1, 1, 1, 1)).words()[1]
    taste = tuple(Gain(0, value, value, None, None) for value in (1, 2, 3, 4))
    assert "as the model of taste guesses, 25 % keeps 25 %" in found_of("human", taste=taste).words()[1]
    assert "guesses that nothing" in found_of("human", taste=tuple(Gain(0, -value, -value, None, None) for value in (1, 2, 3, 4))).words()[1]
    assert rows_of(found_of("human", taste=taste))[1][0] == (TASTE, "–", "+1.00", "+2.00", "+3.00", "+4.00")


def test_the_pictures_are_the_model_s_at_each_strength(tmp_path: Path) -> None:
    """The same prompts and seeds, two of each prompt; gains are of the very pictures that are kept."""
    run = Run(tmp_path, "sd1", prompts=("a cat", "a dog", "a fox"), reward="jpeg_compressibility")
    folder = tmp_path / "made"
    folder.mkdir()
    made: list[tuple[int, int]] = []
    found, twins, failures = measure(run.store, 1, run.store.checkpoints()[1], folder, 4, lambda *now: made.append(now))
    assert not failures and made[0] == (0, 20) and made[-1] == (20, 20)
    prompts, seeds = [twin.prompt for twin in twins], [twin.seed for twin in twins]
    assert seeds == [derive_seed("strengths", i) for i in range(4)] and len(set(prompts)) == 2 and prompts[:2] == prompts[2:]
    sizes: list[list[float]] = []
    for side, strength in enumerate((0.0, *STRENGTHS)):
        with run.policy.scaled(strength):
            wanted = rollout(run.policy, prompts, seeds)[1]
        stored = [Image.open(folder / twin.files[side]).convert("RGB") for twin in twins]
        for one, other in zip(stored, wanted, strict=True):
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1  # sums in other batch shapes round otherwise
        sizes.append([score.value or 0.0 for score in Compressibility().score([Sample(0, "", image) for image in stored])])
        assert [twin.values["jpeg_compressibility"][side] for twin in twins] == sizes[-1]
    for gain, values in zip(found.gains["jpeg_compressibility"], sizes[1:], strict=True):
        assert gain.gain == pytest.approx(np.mean(values) - np.mean(sizes[0])) and gain.before == pytest.approx(np.mean(sizes[0]))
    assert found.wanted == "jpeg_compressibility" and measured(run.store, 1) == found
    # Two of three prompts stand for the third, so the interval is over prompts: that of two means has one degree of freedom, 12.7 standard errors.
    (whole,) = found.gains["jpeg_compressibility"][3:]
    means = (np.array(sizes[4]) - np.array(sizes[0])).reshape(2, 2).mean(0)
    assert whole.high is not None and whole.high - whole.gain == pytest.approx(12.7062 * abs(means[0] - means[1]) / 2, rel=1e-3)
    small = [[np.asarray(Image.open(folder / twin.files[side]).resize((32, 32), Image.Resampling.BOX), float) for twin in twins] for side in range(5)]
    apart = [np.mean([np.square(side[i] - side[i + 2]).mean() for i in (0, 1)]) for side in small]
    assert found.variety == pytest.approx([side / apart[0] for side in apart[1:]], rel=1e-3)
    run.store.close()


@pytest.mark.parametrize("changes", [dict(training="full"), dict(ema_decay=0.5)], ids=["full", "average"])
def test_the_weakest_is_near_the_base_model_however_it_was_trained(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = Run(tmp_path, "sd1", prompts=("a cat",), reward="jpeg_compressibility", **changes)
    (tmp_path / "made").mkdir()
    found, twins, _ = measure(run.store, 1, run.store.checkpoints()[1], tmp_path / "made", 2)
    pixels = [np.asarray(Image.open(tmp_path / "made" / file).convert("RGB"), float) for file in twins[0].files]
    far = [np.abs(each - pixels[0]).mean() for each in pixels[1:]]
    assert 0 < far[0] < far[3] and found.prompts == 1 and found.gains["jpeg_compressibility"][3].high is not None
    run.store.close()


def test_the_taste_of_people_is_asked_about_each_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taste that likes bright pictures guesses what is brighter at each strength, by the pictures themselves."""
    run = Run(tmp_path, "sd1", prompts=("a cat", "a dog"), reward="human")
    monkeypatch.setattr("ddpo.taster.Taster.trusted", lambda self, number: Bright())
    (tmp_path / "made").mkdir()
    found, twins, _ = measure(run.store, 1, run.store.checkpoints()[1], tmp_path / "made", 4)
    light = [[brightness_of(tmp_path / "made" / file) for file in twin.files] for twin in twins]
    for side, gain in enumerate(found.gains[TASTE], start=1):
        assert gain.gain == pytest.approx(np.mean([each[side] - each[0] for each in light]), abs=1e-3) and gain.low is None
    assert found.wanted == TASTE and next(iter(found.gains)) == TASTE
    run.store.close()


def brightness_of(file: Path) -> float:
    with Image.open(file) as image:
        rgb = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), float) / 255
    return float((rgb @ [0.2126, 0.7152, 0.0722]).mean())


class Bright:
    """A taste whose guess is a picture's mean brightness, read off its looks."""

    def guess(self, seen: Looks, prompts: Sequence[str]) -> Guess:
        light = seen["whole"][:, 0]
        return Guess(light, light, light, light, 1.0, 1.0)


def test_it_is_one_page_and_stands_in_card_and_report_afterwards(tmp_path: Path) -> None:
    run = Run(tmp_path, "sd1", prompts=("a cat", "a <b>dog</b>"), reward="human")
    assert main(["export", str(run.store.folder), "--as", "strengths", "--pictures", "4", "--out", str(tmp_path / "out")]) == 0
    (file,) = (tmp_path / "out").iterdir()
    text = file.read_text(encoding="utf-8")
    assert file.name == "taste-strengths.html" and text.count("<img") == 2 * 5 and "a &lt;b&gt;dog&lt;/b&gt;, 75 %" in text
    assert not re.search(r'(src|href)="(?!data:)', text), "it opens offline"
    assert "look at them" in text, "nobody has rated, so that no taste is known"
    export(run.store, "diffusers", tmp_path / "lora")
    assert "## How strong it should be" in (tmp_path / "lora" / "README.md").read_text()
    export(run.store, "report", tmp_path / "report", pictures=0)
    assert "How strong it should be" in (tmp_path / "report" / "taste-report.html").read_text()
    run.store.close()


def test_what_was_measured_is_read_again_and_a_broken_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled_run(tmp_path / "run", rounds=3)
    found = Strengths(2, "human", 16, 32, dict(clip_score=gains(1, 2, 3, 4)), (1.0, 1.0, None, 0.5))
    assert measured(store, 2) is None
    save(store, found)
    assert measured(store, 2) == found and measured(store, 3) is None
    file = store.folder / "strengths" / "0002.json"
    told = json.loads(file.read_text())
    monkeypatch.setattr(strengths, "STRENGTHS", (0.2, 0.4, 0.6, 1.0))
    assert measured(store, 2) is None, "of other strengths"
    monkeypatch.undo()
    file.write_text(json.dumps(told | dict(version=1)))
    assert measured(store, 2) == found, "as it was written before"
    short = dict(gains=dict(clip_score=told["gains"]["clip_score"][:3])), dict(gains=dict(clip_score=[])), dict(variety=[])
    changes = (dict(gains=[]), dict(gains=dict(clip_score=[1.0] * 4)), dict(round="first"), dict(reward="beauty"), dict(variety=None), *short)
    without = json.dumps({name: value for name, value in told.items() if name != "gains"})
    for broken in ("{", "[" * 100_000, "[]", "\0", without, *(json.dumps(told | change) for change in changes)):
        file.write_text(broken)
        assert measured(store, 2) is None, broken
    export(store, "report", tmp_path / "report", pictures=0)
    store.close()
