"""Pictures to compare, without a browser or a model: made once, in order, by a process that goes when nobody needs it; beside a run at work only
where somebody said so."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.numpy import save

from app import comparing as module
from app.comparing import Comparing, Picture
from app.comparisons import ComparisonError, at_work, build_comparisons, compared, told_differences, values_of
from app.launch import Launcher
from app.pages import compare
from app.pages import rewards as rewards_page
from app.pictures import Pictures
from app.runs import Runs
from app.scores import build_scores
from app.scoring import Desk, Scoring
from ddpo.lock import WorkerLock
from ddpo.result import roll_back
from ddpo.states import State
from ddpo.store import RunStore
from rewards.jpeg import size_kb
from tests.toy_compare import drawn
from tests.toys import comparable_run, filled_run, named_model_run, picture

TOY = (sys.executable, "-m", "tests.toy_compare")


def until(said: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """A run of two rounds, over a model of which there is no more than its name."""
    found = named_model_run(tmp_path)
    yield found
    found.close()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """What the process was asked for so far."""
    file = tmp_path / "log"
    monkeypatch.setenv("TOY_COMPARE_LOG", str(file))
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def work() -> list[str]:
    """The runs that are at work: none, until the test says so."""
    return []


@pytest.fixture
def comparing(store: RunStore, work: list[str], log: object) -> Iterator[Comparing]:
    found = Comparing(store.folder.parent, lambda: next(iter(work), None), Desk(TOY))
    yield found
    found.close()


def wanted(store: RunStore, number: int = 1, seeds: int = 3, **changes: Any) -> list[Picture]:
    return Picture.all_of(State(store.folder, number, **changes), ["a cat"] * seeds, range(seeds))


def test_pictures_come_by_and_by_and_none_is_made_twice(store: RunStore, comparing: Comparing, log: Callable[[], list[Any]]) -> None:
    """Not even by a server that starts anew: what determines a picture is its name on disk."""
    pictures = wanted(store, seeds=12)
    assert not any(comparing.ask(pictures)[0])
    until(lambda: all(comparing.ask(pictures)[0]))
    sizes = [len(question["items"]) for question in log()]
    assert sum(sizes) == 12 and max(sizes) <= module.AT_ONCE
    path = comparing.path(pictures[3].key)
    assert path
    with Image.open(path) as image:
        assert image.tobytes() == picture(drawn(log()[0], log()[0]["items"][3])).tobytes()
    again = Comparing(store.folder.parent, lambda: None, Desk(TOY))
    assert all(again.ask(wanted(store, seeds=12))[0]) and again._thread is None
    again.close()


def test_what_was_asked_for_last_is_made_first(store: RunStore, comparing: Comparing, log: Callable[[], list[Any]], work: list[str]) -> None:
    """A row that somebody types does not wait for the grid."""
    work.append("taste")
    grid, row = wanted(store, 1), wanted(store, 2, seeds=1)
    comparing.ask(grid)
    comparing.ask(row)
    work.clear()
    until(lambda: all(comparing.path(picture.key) for picture in (*grid, *row)))
    assert [question["round"] for question in log()] == [2, 1]


def test_beside_a_run_at_work_nothing_is_made_unless_somebody_said_so(store: RunStore, comparing: Comparing, work: list[str]) -> None:
    work.append("other")
    first, second = wanted(store, 1), wanted(store, 2)
    comparing.ask(first)
    until(lambda: all(comparing.ask(second, beside=True)[0]))
    time.sleep(0.1)
    assert not any(comparing.ask(first)[0]) and comparing.now is None
    work.clear()
    until(lambda: all(comparing.ask(first)[0]))


def test_the_process_ends_when_idle_and_starts_again(store: RunStore, work: list[str], log: object) -> None:
    found = Comparing(store.folder.parent, lambda: None, Desk(TOY), idle_seconds=0.3)
    until(lambda: all(found.ask(wanted(store, 1))[0]))
    assert found.desk.pid
    until(lambda: found.desk.pid is None)
    until(lambda: all(found.ask(wanted(store, 2))[0]))
    assert found.desk.starts == 2
    found.close()


def test_the_model_is_let_go_of_when_a_run_starts(store: RunStore, comparing: Comparing, work: list[str]) -> None:
    until(lambda: all(comparing.ask(wanted(store, 1))[0]))
    assert comparing.desk.pid
    work.append("other")
    until(lambda: comparing.desk.pid is None)


def test_weights_that_have_changed_since_are_not_shown_under_the_old_name(store: RunStore, comparing: Comparing, work: list[str]) -> None:
    """Asked for while a run is at work, and made when it is done: in the meantime the file has been written anew."""
    work.append("other")
    pictures = wanted(store, 1)
    comparing.ask(pictures)
    weights = pictures[0].state.weights
    weights.write_bytes(weights.read_bytes() + b" ")
    work.clear()
    until(lambda: bool(comparing.ask(pictures)[1]))
    assert "have changed" in comparing.ask(pictures)[1][pictures[0].state] and not any(comparing.ask(pictures)[0])


def test_a_studio_that_closes_keeps_nobody_waiting(store: RunStore, comparing: Comparing, work: list[str]) -> None:
    work.append("other")
    comparing.close()
    with pytest.raises(ComparisonError, match="closing"):
        compared(Runs(store.folder.parent), comparing, dict(sides=[dict(run=store.name)] * 2, prompts=["a cat"], seeds=[1], beside=True))


def test_what_nobody_asks_for_again_is_not_made(store: RunStore, comparing: Comparing, work: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    work.append("taste")
    pictures = wanted(store)
    comparing.ask(pictures)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    with comparing._wake:
        assert comparing._next(free=True) == [] and comparing._wanted == {}


@pytest.mark.parametrize("manner", ["broken", "dies"])
def test_a_state_that_fails_says_why_and_is_tried_anew_when_asked(
    store: RunStore, comparing: Comparing, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    """The other state goes on being made by the process, or by the next one."""
    monkeypatch.setenv("TOY_COMPARE", "broken")
    if manner == "dies":
        comparing.desk.command = (sys.executable, "-c", "raise SystemExit('out of luck')")
    first, second = wanted(store, 1), wanted(store, 2)
    until(lambda: bool(comparing.ask(first)[1]))
    assert ("The toy is broken." if manner == "broken" else "ended: out of luck") in comparing.ask(first)[1][first[0].state]
    monkeypatch.setenv("TOY_COMPARE", "")
    comparing.desk.command = TOY
    comparing.stop()
    comparing.desk.end()
    until(lambda: all(comparing.ask(second)[0]))
    until(lambda: all(comparing.ask(first)[0]))


def test_stop_gives_up_what_is_wanted_at_once(store: RunStore, comparing: Comparing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_COMPARE", "slow")
    pictures = wanted(store, seeds=12)
    comparing.ask(pictures)
    until(lambda: comparing.path(pictures[0].key) is not None)
    comparing.stop()
    until(lambda: comparing.now is None and comparing.desk.pid is None)
    assert comparing._wanted == {} and comparing.path(pictures[11].key) is None
    assert comparing._failures == {}, "what was stopped has not failed"


def test_stop_also_ends_what_is_only_being_started(store: RunStore, comparing: Comparing, monkeypatch: pytest.MonkeyPatch) -> None:
    started, starting = comparing.desk._start, threading.Event()

    def slowly(online: bool) -> None:
        starting.set()
        time.sleep(0.5)
        started(online)

    monkeypatch.setenv("TOY_COMPARE", "slow")
    monkeypatch.setattr(comparing.desk, "_start", slowly)
    comparing.ask(wanted(store, seeds=12))
    assert starting.wait(20)
    comparing.stop()
    assert comparing.now is None and comparing.desk.pid is None and comparing.desk.starts == 1


def test_the_oldest_pictures_go_when_there_are_too_many(store: RunStore, comparing: Comparing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    comparing.folder.mkdir()
    for i in range(3):
        (comparing.folder / f"{i}.png").write_bytes(b"")
        os.utime(comparing.folder / f"{i}.png", (i, i))
    comparing._make_room()
    assert sorted(path.name for path in comparing.folder.iterdir()) == ["1.png", "2.png"]


class Started(Launcher):
    """A server whose own worker of a run lives: it has its lock, or is about to take it."""

    def starting(self, folder: Path) -> bool:
        return folder.name == "taste"


def test_a_run_at_work_is_one_whose_worker_uses_the_machine(store: RunStore) -> None:
    runs = Runs(store.folder.parent)
    (store.folder.parent / "damaged").mkdir()
    (store.folder.parent / "damaged" / "config.json").write_text("{")
    assert at_work(runs, Launcher()) is None and at_work(runs, Started()) == "taste"
    lock = WorkerLock(store.folder / "worker.lock")
    for state, works in (("updating", True), ("awaiting", False), ("paused", False), ("loading", True)):
        store.set_progress(state, 1)
        for launcher in (Launcher(), Started()):
            assert at_work(runs, launcher) == ("taste" if works else None), state
    lock.release()
    assert at_work(runs, Launcher()) is None
    runs.close()


# --- routes ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(store: RunStore, comparing: Comparing) -> Iterator[TestClient]:
    runs, scoring, pictures, app = Runs(store.folder.parent), Scoring(), Pictures(), FastAPI()
    app.include_router(build_comparisons(runs, comparing))
    app.include_router(build_scores(runs, pictures, scoring, comparing))
    with TestClient(app) as found:
        yield found
    scoring.close()
    pictures.close()
    runs.close()


def asked(web: TestClient, **changes: Any) -> Any:
    body = dict(sides=[dict(run="taste"), dict(run="taste", round=2)], prompts=["a cat", "a dog"], seeds=[1, 2, 3], make=True) | changes
    return web.post("/studio/compare/pictures", json=body)


def complete(web: TestClient, **changes: Any) -> dict[str, Any]:
    until(lambda: all(key for row in asked(web, **changes).json()["grid"] for pair in row for key in pair))
    return dict(asked(web, **changes).json())


def test_a_grid_has_a_row_for_each_prompt_and_a_pair_for_each_seed(web: TestClient, store: RunStore) -> None:
    found = complete(web)
    assert [len(row) for row in found["grid"]] == [3, 3] and found["failures"] == ["", ""] and found["busy"] is None and found["differ"] == ""
    expected = [
        [[p.key for p in Picture.all_of(State(store.folder, n), [prompt], [seed])] for n in (0, 2)]
        for prompt in ("a cat", "a dog")
        for seed in (1, 2, 3)
    ]
    assert [[[key] for key in pair] for row in found["grid"] for pair in row] == expected
    answer = web.get(f"/studio/compare/picture/{found['grid'][0][0][1]}")
    assert answer.headers["content-type"] == "image/png" and "immutable" in answer.headers["cache-control"]
    for odd in ("0" * 32, "..%2Ftaste%2Fconfig.json", "x"):
        assert web.get(f"/studio/compare/picture/{odd}").status_code == 404


def test_to_look_makes_nothing(web: TestClient, log: Callable[[], list[Any]]) -> None:
    assert asked(web, make=False).json()["grid"] == [[[None, None]] * 3] * 2
    time.sleep(0.1)
    assert log() == []


def test_a_side_that_is_not_there_says_so_and_the_other_is_made(web: TestClient) -> None:
    sides = [dict(run="taste", round=7), dict(run="taste")]
    until(lambda: all(pair[1] for row in asked(web, sides=sides).json()["grid"] for pair in row))
    found = asked(web, sides=sides).json()
    assert "Round 7 of taste has no weights" in found["failures"][0] and found["failures"][1] == ""
    for side, says in (
        (dict(run="gone"), "There is no run gone"),
        (dict(run="../taste"), "cannot name a run"),
        (dict(run="taste", lora="/nowhere/at.all"), "cannot be read as a .safetensors file"),
        (dict(run="taste", round=1, strength=9), "from 0 to 1.5"),
        (dict(run="taste", round=True), "whole number"),
        (dict(run="taste", strength="1"), "strength a number"),
        ("taste", "names a run"),
    ):
        assert says in asked(web, sides=[side, dict(run="taste")]).json()["failures"][0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(sides=[dict(run="taste")]), "a list of two"),
        (dict(prompts=["a cat", "  "]), "1 to 10,000 characters"),
        (dict(prompts=["x" * 10_001]), "1 to 10,000 characters"),
        (dict(seeds=[-1]), "whole numbers from 0"),
        (dict(seeds=[True]), "whole numbers from 0"),
        (dict(seeds=list(range(200))), "At most 256 pairs"),
    ],
)
def test_what_is_no_question_is_refused_in_words(web: TestClient, changes: dict[str, Any], says: str) -> None:
    answer = asked(web, **changes)
    assert answer.status_code == 422 and says in answer.json()["detail"]
    assert web.post("/studio/compare/pictures", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


def test_pictures_that_were_made_are_scored_as_any_others(web: TestClient, comparing: Comparing) -> None:
    pair = complete(web)["grid"][0][0]
    items = [dict(made=key, prompt="a cat") for key in (*pair, "0" * 32)]
    question = dict(rewards=["jpeg_compressibility"], prompt="", items=items, models="pocket", device="auto", vlm="")

    def values() -> Any:
        answer = web.post("/studio/rewards/scores", json=question).json()
        assert answer["gone"] == [2]
        return answer["scores"]["jpeg_compressibility"]["values"][:2]

    until(lambda: all(values()))
    for key, value in zip(pair, values(), strict=True):
        path = comparing.path(key)
        assert path
        with Image.open(path) as image:
            assert value["value"] == -size_kb(image)


def test_a_lora_file_is_brought_once_and_what_is_none_leaves_nothing(web: TestClient, store: RunStore, comparing: Comparing) -> None:
    data = (store.checkpoints()[1] / "pytorch_lora_weights.safetensors").read_bytes()
    octets = {"content-type": "application/octet-stream"}
    first = web.post("/studio/compare/loras", params=dict(name="../../my lora!.safetensors"), content=data, headers=octets).json()["lora"]
    again = web.post("/studio/compare/loras", params=dict(name="another name"), content=data, headers=octets).json()["lora"]
    assert first == again and Path(first).read_bytes() == data and Path(first).name == "my-lora.safetensors"
    assert Path(first).is_relative_to(comparing.folder.resolve())
    until(lambda: all(pair[1] for row in asked(web, sides=[dict(run="taste"), dict(run="taste", lora=first)]).json()["grid"] for pair in row))
    for odd, says in ((b"", "no .safetensors file"), (data[:100], "no .safetensors file"), (save({"x": np.ones(1)}), "no LoRA layers")):
        answer = web.post("/studio/compare/loras", params=dict(name="odd"), content=odd, headers=octets)
        assert answer.status_code == 422 and says in answer.json()["detail"]
    assert [path.name for path in (comparing.folder / "loras").rglob("*") if path.is_file()] == ["my-lora.safetensors"]
    assert web.post("/studio/compare/loras", content=data, headers={"content-type": "text/plain"}).status_code == 415


def test_both_sides_are_scored_by_the_networks_of_the_second(store: RunStore, tmp_path: Path) -> None:
    """Of two runs that would take different ones: their values are to be on one scale."""
    other = comparable_run(tmp_path / "runs" / "other", model=store.config.model, reward_models="pocket")
    comparing, asked = Comparing(tmp_path / "made", lambda: None), list[Any]()

    class Asked:
        def ask(self, cells: Any) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
            asked.extend(cells)
            return [dict(value=1.0) for _ in cells], {}

    for first, second, wanted in ((store, other, "pocket"), (other, store, "published")):
        one, two = (Picture.all_of(State(each.folder), ["a cat"], [1])[0] for each in (first, second))
        found = values_of(comparing, Asked(), [(one, two)], ["aesthetic"])  # type: ignore[arg-type]
        assert [found[0][side]["values"] for side in "ab"] == [dict(aesthetic=1.0)] * 2
        assert {cell.setting.models for cell in asked} == {wanted}
        asked.clear()
    assert values_of(comparing, Asked(), [], ["aesthetic"]) == []  # type: ignore[arg-type]
    comparing.close()
    other.close()


def test_runs_that_sample_differently_are_told_apart(store: RunStore, tmp_path: Path) -> None:
    other = comparable_run(tmp_path / "runs" / "other", model=store.config.model, steps=20, eta=0.5)
    told = told_differences([State(store.folder), State(other.folder, 1)])
    assert told == "A and B are also made differently: denoising steps 10 and 20, sampler noise (eta) 1.0 and 0.5."
    other.close()


# --- the page -------------------------------------------------------------------------------------------------------------------


def test_the_page_offers_the_rounds_whose_weights_are_there(store: RunStore, tmp_path: Path) -> None:
    created = (store.folder / "config.json").stat().st_mtime
    wanted = dict(run="taste", created=created, rounds=[1, 2], result=2, rolled=None, pocket=False, full=False, held_out=False, rewards=[])
    assert compare.choice(store) == wanted
    roll_back(store, 1)
    assert compare.choice(store) == wanted | dict(result=1, rolled=1)
    auto = filled_run(tmp_path / "auto", rounds=1, reward="blend: 1 human, 1 aesthetic")
    assert compare.choice(auto)["rounds"] == [] and compare.choice(auto)["rewards"] == ["aesthetic"]
    value = compare.page_value("taste", [compare.choice(store)])
    assert json.dumps(value) and value["strongest"] == 1.5 and len(value["cards"]) == len(rewards_page.cards())
    auto.close()


def test_prompts_are_those_of_a_run_or_of_a_set(store: RunStore) -> None:
    runs = Runs(store.folder.parent)
    assert compare.prompts_of(runs, dict(run="taste"))["prompts"] == list(dict.fromkeys(store.config.prompts))
    assert "a cat" in compare.prompts_of(runs, dict(set="animals", run="taste"))["prompts"]
    filled_run(runs.folder / "held", rounds=1, held_out_prompts=("a hen",)).close()
    assert [compare.choice(runs.open(name))["held_out"] for name in ("taste", "held")] == [False, True]
    assert [compare.prompts_of(runs, dict(run=name, set="held-out"))["prompts"] for name in ("taste", "held")] == [[], ["a hen"]]
    for odd in (None, [], dict(run="gone"), dict(set=[], run="gone")):
        assert compare.prompts_of(runs, odd) == dict(prompts=[])
    runs.close()
