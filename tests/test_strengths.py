"""How strong: the pictures of a real model at several strengths, what is said of them, and what becomes of it in the files."""

from __future__ import annotations

import json
import re
from pathlib import Path

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
from tests.test_export import Run
from tests.toys import filled_run


def gains(*values: float, half: float = 0.5) -> tuple[Gain, ...]:
    return tuple(Gain(1.0, 1.0 + value, value, value - half, value + half) for value in values)


def test_what_is_kept_at_each_strength_and_what_surely_falls_in_words() -> None:
    """1, 2, 3 of 4 are 25, 50 and 75 %. A fall is told from the strength from which on all are sure: one that recovers, or may be chance, is none,
    nor is one of what has no merit in itself."""
    others = dict(clip_score=gains(-0.1, -0.2, -0.6, -0.9), pickscore=gains(-1, -2, -3, -4), satisfaction=gains(-1, -1, -1, 0))
    others |= dict(jpeg_compressibility=gains(-1, -2, -3, -4))
    found = Strengths(7, "aesthetic", 32, dict(aesthetic=gains(1, 2, 3, 4), **others), (0.9, 0.8, 0.7, None))
    assert found.words() == [
        "Of what aesthetic gains at full strength, 25 % keeps 25 %, 50 % keeps 50 % and 75 % keeps 75 %.",
        "clip_score surely falls from 75 % on.",
        "pickscore surely falls at each of them.",
    ]
    head, rows = rows_of(found)
    assert head == ("gain, ± half of its 95 % interval", "base model", "25 %", "50 %", "75 %", "100 %")
    assert rows[0] == ("aesthetic", "1", "+1 ± 0.5", "+2 ± 0.5", "+3 ± 0.5", "+4 ± 0.5")
    assert rows[-1] == ("how much a prompt's pictures differ", "100 %", "90 %", "80 %", "70 %", "–")


def test_where_people_rate_other_tastes_may_fall() -> None:
    found = Strengths(7, "human", 32, {name: gains(-1, -2, -3, -4) for name in ("clip_score", "aesthetic")}, (None,) * 4)
    assert found.words()[1:] == ["clip_score surely falls at each of them."]


def test_a_gain_that_is_not_sure_is_shared_out_to_nobody() -> None:
    for whole in (0.4, -3):
        (words, *_) = Strengths(7, "aesthetic", 32, dict(aesthetic=gains(0.1, 0.2, 0.3, whole)), (None,) * 4).words()
        assert words == "aesthetic surely gains nothing at full strength."
    assert "look at them" in Strengths(7, "human", 32, dict(clip_score=gains(1, 1, 1, 1)), (None,) * 4).words()[0]
    assert f"Of what {TASTE} gains" in Strengths(7, "human", 32, {TASTE: gains(1, 1, 1, 1)}, (None,) * 4).words()[0]


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
    run.store.close()


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
    found = Strengths(2, "human", 32, dict(clip_score=gains(1, 2, 3, 4)), (1.0, 1.0, None, 0.5))
    assert measured(store, 2) is None
    save(store, found)
    assert measured(store, 2) == found and measured(store, 3) is None
    file = store.folder / "strengths" / "0002.json"
    told = json.loads(file.read_text())
    monkeypatch.setattr(strengths, "STRENGTHS", (0.5, 1.0))
    assert measured(store, 2) is None, "of other strengths"
    monkeypatch.undo()
    for broken in ("{", json.dumps({name: value for name, value in told.items() if name != "gains"})):
        file.write_text(broken)
        assert measured(store, 2) is None
    store.close()
