"""``python -m ddpo``: training without a page."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpo.__main__ import config_from, main, parser
from ddpo.config import RunConfig
from ddpo.presets import presets
from ddpo.store import RunStore
from tests.models import save_tiny_model
from tests.toys_ddpo import PROJECT, THREADS

TINY = {
    "reward": "jpeg_compressibility", "images-per-round": 8, "images-per-prompt": 4, "images-per-update": 8, "steps": 2, "skip-last-steps": 1,
    "lora-rank": 2, "lora-alpha": 8, "device": "cpu", "held-out-images": 4, "prompts": "a cat; a dog", "rounds": 2,
}  # fmt: skip


def ddpo(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ddpo", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=250, env=os.environ | THREADS
    )


def test_a_run_ends_with_its_summary_as_json_and_a_second_call_changes_nothing(tmp_path: Path) -> None:
    """The last line of output, for scripts: rounds, reward before and after, seconds a phase. `resume` of a finished run says the same."""
    model = save_tiny_model(tmp_path / "model")
    done = ddpo("run", "--out", tmp_path / "run", "--model", model, *(part for name, value in TINY.items() for part in (f"--{name}", value)))
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["rounds"], said["state"], said["run"]) == (2, "finished", str(tmp_path / "run"))
    points = dict(RunStore(tmp_path / "run").metrics()["held_out_reward"])
    assert (said["reward_before"], said["reward_after"]) == (points[0], points[2]) and said["reward_before"] < 0
    assert set(said["seconds"]) == {"sampling", "scoring", "updating", "checkpointing", "watching"} and all(s >= 0 for s in said["seconds"].values())
    assert "Traceback" not in done.stderr
    again = ddpo("resume", tmp_path / "run")
    assert again.returncode == 0 and json.loads(again.stdout.splitlines()[-1]) == said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images-per-round", "10"], "images_per_round is 10"),
        (["--model", "/no/such/model"], "/no/such/model does not exist"),
        (["--prompts", "no.txt"], "no.txt cannot be read"),
        (["--prompts", " ; "], "no prompt"),
        (["--eta", "0"], "eta is 0"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--out", "bad name"], "cannot name a run"),
    ],
)
def test_bad_input_is_one_plain_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """And no run folder is left behind."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    options = ["run", "--out", str(tmp_path / "run"), "--model", str(tmp_path / "model"), *arguments]
    assert main(options) == 2
    said = capsys.readouterr()
    assert words in said.err and len(said.err.splitlines()) == 1 and said.out == ""
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten_and_a_folder_that_is_none_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    RunStore.create(tmp_path / "run", RunConfig(seed=7)).close()
    assert main(["run", "--out", str(tmp_path / "run"), "--model", str(tmp_path / "model")]) == 2
    assert "already exists" in capsys.readouterr().err and RunStore(tmp_path / "run").config.seed == 7
    assert main(["resume", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rating", "beauty"], ["--rounds", "many"], ["--colour", "red"]])
def test_what_the_command_line_does_not_know_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "--out", str(tmp_path / "run"), *arguments])
    assert left.value.code == 2 and arguments[-1] in capsys.readouterr().err


def test_a_reward_that_there_is_not_is_refused_before_the_run_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--out", str(tmp_path / "run"), "--reward", "beauty"]) == 2
    assert "no reward 'beauty'" in capsys.readouterr().err and not (tmp_path / "run").exists()
    RunStore.create(tmp_path / "run", RunConfig()).close()
    assert main(["resume", str(tmp_path / "run"), "--reward", "beauty"]) == 2
    assert "no reward 'beauty'" in capsys.readouterr().err and RunStore(tmp_path / "run").pending_requests() == []


def test_help_mentions_every_setting_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    for field in dataclasses.fields(RunConfig):
        assert "--" + field.name.replace("_", "-") in said, field.name
        assert field.metadata["help"].split(" ", 1)[1][:40] in said, field.name


def test_options_change_single_settings_of_a_preset() -> None:
    """Each setting given on the command line arrives; the rest is the preset's, chosen by name or by the reward."""
    chosen = config_from(parser().parse_args(["run", "--out", "x", "--preset", "compress", "--seed", "5", "--shuffle-scores"]))
    assert chosen == presets()["compress"].config.with_changes(seed=5, shuffle_scores=True)
    by_reward = config_from(parser().parse_args(["run", "--out", "x", "--reward", "jpeg_incompressibility"]))
    assert by_reward == presets()["incompress"].config
