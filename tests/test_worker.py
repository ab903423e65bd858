"""What a worker says when things go wrong: one plain line, nothing lost, and Resume works."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddpo import checkpoint, worker
from ddpo.__main__ import changes_from, parser
from ddpo.config import RunConfig
from ddpo.fork import config_of
from ddpo.lock import WorkerLock
from ddpo.store import RunStore
from ddpo.trajectory import Trajectory
from rewards.vlm import Remote
from tests.models import save_tiny_model
from tests.test_config import ODD
from tests.toys_ddpo import outcome, tiny_config

SMALL = dict(rounds=2, held_out_images=0, steps=2, skip_last_steps=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def create(folder: Path, model: Path, **changes: Any) -> Path:
    RunStore.create(folder, tiny_config(model, **(SMALL | changes))).close()
    return folder


def ending(folder: Path) -> tuple[str, str]:
    """A run's state and last message."""
    store = RunStore(folder)
    status = store.status()
    store.close()
    return status.state, status.message


def stop_after_first_round(folder: Path) -> Callable[..., None]:
    """A watcher that asks to stop once the first round learns."""
    store = RunStore(folder)
    asked: list[int] = []

    def watcher(state: str, number: int, done: int, total: int) -> None:
        if state == "updating" and not asked:
            asked.append(store.add_request("stop_after_round"))

    return watcher


@pytest.mark.parametrize("failing", ["part-", ".png", ".state.safetensors", "pytorch_lora_weights"])
def test_a_full_disk_is_said_plainly_and_resume_goes_on(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Whichever file of round 2 finds no room, half of it written: state failed, plain words, no half file, and then the straight run's end."""
    create(tmp_path / "straight", model)
    assert worker.run(tmp_path / "straight") == 0
    folder, write_bytes = create(tmp_path / "run", model), Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if failing in self.name and "0002" in str(self):
            write_bytes(self, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write_bytes(self, data)

    def full_too(tensors: dict[str, torch.Tensor], file: Path | str, metadata: dict[str, str]) -> None:
        if failing in Path(file).name and "0002" in str(file):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, file, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        patch.setattr(checkpoint, "save_file", full_too)
        patch.setattr(safetensors.torch, "save_file", full_too)  # diffusers takes it from there
        assert worker.run(folder) == 1
    assert ending(folder) == ("failed", "The disk is full. Make room and press Resume: nothing that was finished is lost.")
    assert worker.run(folder) == 0 and ending(folder)[0] == "finished"
    assert outcome(folder) == outcome(tmp_path / "straight")


def test_what_is_advised_can_be_done(tmp_path: Path, model: Path) -> None:
    """Where the memory is full: what the message names are options of a run that goes on from a round of this one."""
    message = worker.explain(MemoryError())
    (command,) = re.findall(r"`python -m ddpo (fork .*)`", message)
    options = parser().parse_args(command.replace("RUN", "a").replace("N ", "1 ").replace("NEW", "b").replace("…", "2").split())
    store = RunStore.create(tmp_path / "run", tiny_config(model))
    config = config_of(store, 1, changes_from(options))
    assert options.command == "fork" and (config.microbatch, config.reuse_forward) == (2, False)
    store.close()


def test_a_full_database_is_said_in_the_log_and_resume_goes_on(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite itself is out of pages (long prompts fill them): perhaps not even the ending can be written, so the log says it as well."""
    folder, connect = create(tmp_path / "run", model, prompts=("a cat " * 1500, "a dog " * 1500)), sqlite3.connect

    def tight(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db = connect(*arguments, **options)
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
        return db

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", tight)
        code = worker.run(folder)
    said = capsys.readouterr().err
    assert code == 1 and "The disk is full. Make room and press Resume" in said
    assert worker.run(folder) == 0 and ending(folder)[0] == "finished"


def test_weights_that_are_no_numbers_end_the_run_and_keep_the_checkpoint(tmp_path: Path) -> None:
    """NaN from the model in round 2: a plain message, state failed, round 1's checkpoint untouched; with the model healed, Resume finishes."""
    model = save_tiny_model(tmp_path / "model")
    folder = create(tmp_path / "run", model)
    assert worker.run(folder, stop_after_first_round(folder)) == 0 and ending(folder)[0] == "stopped"
    weights, checkpoint = model / "text_encoder" / "model.safetensors", folder / "checkpoints" / "0001" / "state.safetensors"
    good, kept = weights.read_bytes(), checkpoint.read_bytes()
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert worker.run(folder) == 1
    state, message = ending(folder)
    assert state == "failed" and "NaN" in message and "lower learning rate: `python -m ddpo fork RUN" in message and "Traceback" not in message
    assert checkpoint.read_bytes() == kept
    weights.write_bytes(good)
    assert worker.run(folder) == 0 and ending(folder)[0] == "finished"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_ratio_that_is_not_1_is_refused_with_the_numbers(tmp_path: Path, model: Path, precision: str) -> None:
    """Defect 1 through the worker: latents rounded behind its back, as the reference stores them, are refused before a weight moves; the
    message has both numbers and what to do."""
    folder = create(tmp_path / "run", model, precision=precision, steps=20)

    def tamper(state: str, number: int, done: int, total: int) -> None:
        if (state, done) == ("scoring", 0):
            for file in (folder / "rounds" / "0001").glob("part-*"):
                kept = Trajectory.load(file)
                Trajectory(kept.latents.bfloat16().float(), kept.log_probs).save(file)

    assert worker.run(folder, tamper) == 1
    state, message = ending(folder)
    assert state == "failed" and "moves the ratio by" in message and "no more than 6.4e-04 will do" in message and "precision fp32" in message
    assert RunStore(folder).checkpoints() == {}


@pytest.mark.parametrize("damage", ["gone", "not a model", "cut short"])
def test_a_model_that_cannot_be_loaded_ends_the_run_in_plain_words(tmp_path: Path, damage: str) -> None:
    model = save_tiny_model(tmp_path / "model")
    folder = create(tmp_path / "run", model)
    if damage == "gone":
        model.rename(tmp_path / "elsewhere")
    elif damage == "not a model":
        (model / "model_index.json").unlink()
    else:
        weights = model / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    assert worker.run(folder) == 1
    state, message = ending(folder)
    words = dict(gone="does not exist", **{"not a model": "is no diffusers model", "cut short": "damaged or incomplete"})
    assert state == "failed" and words[damage] in message


def test_an_apply_that_a_dead_worker_left_is_kept_for_the_round_that_waits(tmp_path: Path) -> None:
    """Also where the next board was made ahead: the worker goes on with the round that is not complete."""
    folder = create(tmp_path / "run", tmp_path / "nowhere", reward="human", ahead=32)
    store = RunStore(folder)
    for number in (1, 2):
        store.start_round(number)
        store.mark(number, "sampled")
    store.add_request("apply", round=1)
    assert worker.run(folder) == 1 and "does not exist" in ending(folder)[1]
    assert [request.kind for request in store.pending_requests()] == ["apply"] and store.status().round == 1
    store.close()


def test_odd_prompts_go_through_a_whole_run_unharmed(tmp_path: Path, model: Path) -> None:
    """5,000 characters, emoji, markup, control characters: encoded, sampled, stored and trained on, and read back as they were."""
    n = len(ODD)
    folder = create(tmp_path / "run", model, prompts=ODD, images_per_round=2 * n, images_per_prompt=2, images_per_update=2 * n, rounds=1)
    assert worker.run(folder) == 0, RunStore(folder).status()
    rows = RunStore(folder).samples(1)
    assert sorted(row.prompt for row in rows) == sorted(2 * ODD) and all((folder / row.image).exists() for row in rows)


def test_ctrl_c_stops_and_resume_goes_on(tmp_path: Path, model: Path) -> None:
    folder = create(tmp_path / "run", model)

    def press(state: str, number: int, done: int, total: int) -> None:
        if (state, number) == ("updating", 2):
            raise KeyboardInterrupt

    assert worker.run(folder, press) == 0 and ending(folder)[0] == "stopped"
    assert worker.run(folder) == 0 and ending(folder) == ("finished", "All 2 rounds are done.")


def test_what_cannot_begin_leaves_with_2_and_one_line(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.run(tmp_path) == 2
    assert "is no run folder" in capsys.readouterr().err
    folder = create(tmp_path / "run", model)
    lock = WorkerLock(folder / "worker.lock")
    assert worker.run(folder) == 2
    said = capsys.readouterr().err
    assert "Another worker already runs" in said and len(said.splitlines()) == 1
    lock.release()


# --- rewards with networks


def test_a_reward_s_networks_are_refused_before_anything_is_sampled(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = create(tmp_path / "run", model, reward="pickscore")
    assert worker.run(folder) == 1
    state, message = ending(folder)
    assert state == "failed" and "PickScore_v1" in message and "hf download" in message
    assert not list((folder / "samples").rglob("*.png"))


def test_a_run_is_scored_by_the_pocket_s_networks(tmp_path: Path, model: Path) -> None:
    folder = create(tmp_path / "run", model, reward="clip_score", reward_models="pocket")
    assert worker.run(folder) == 0
    store = RunStore(folder)
    scores = store.scores(1, "clip_score")
    assert len(scores) == store.config.images_per_round and all("cosine" in score.explanation for score in scores.values())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (dict(reward="aesthetic"), "pocket"),
        (dict(reward="pickscore"), "published"),
        (dict(reward="aesthetic", model="some/model"), "published"),
        (dict(reward="aesthetic", model="some/model", reward_models="pocket"), "pocket"),
    ],
)
def test_auto_takes_the_pocket_s_networks_for_the_pocket_model_where_there_are_some(changes: dict[str, Any], wanted: str) -> None:
    config = RunConfig(**changes)
    assert config.networks_of(config.reward) == wanted


def test_what_looks_at_images_is_a_setting_of_those_rewards_alone() -> None:
    made = worker.reward_source(RunConfig(reward_vlm="http://localhost:1/v1"))
    assert isinstance(made("satisfaction").vlm, Remote)  # type: ignore[attr-defined]
    assert not hasattr(made("clip_score"), "vlm")
