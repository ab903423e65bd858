"""The process that scores for the page: it comes and goes as it should, whatever happens to it. Real rewards throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import serve
from toys import filled_run, picture

from app import scoring as module
from app.scoring import Cell, Desk, DeskError, Scoring, Setting

ROOT = Path(__file__).parent.parent
SMALL, CLIP = Setting("jpeg_incompressibility"), Setting("clip_score")
ECHO = "import json, os, sys\nfor line in sys.stdin: print(json.dumps(dict(offline=os.environ.get('HF_HUB_OFFLINE'))), flush=True)"

FETCHES = """import json, os, sys
for line in sys.stdin:
    answer = dict(scores=[dict(value=1.0, explanation={})] * len(json.loads(line)['items']))
    print(json.dumps(dict(error='not here', missing=True) if os.environ.get('HF_HUB_OFFLINE') else answer), flush=True)"""
"""Has its networks only where it may download them."""
UNREACHABLE = """import json, os, sys
for line in sys.stdin:
    how = 'offline' if os.environ.get('HF_HUB_OFFLINE') else 'online'
    print(json.dumps(dict(error='cannot reach the Hub: ' + how, missing=True)), flush=True)"""
FAR = Setting("aesthetic", "published")


def until(true: Callable[[], Any], seconds: float = 200) -> Any:
    """What is true in the end. The process makes way for everything else: on a busy machine its networks may take minutes to load."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def scoring() -> Iterator[Scoring]:
    found = Scoring()
    yield found
    found.close()


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    for i in range(10):
        picture(i).save(tmp_path / f"{i}.png")
    return [Cell(SMALL, tmp_path / f"{i}.png", "") for i in range(10)]


def settled(scoring: Scoring, cells: Sequence[Cell]) -> tuple[list[Any], dict[Setting, Any]]:
    """What is said in the end: a value for each cell, or why there is none."""
    return until(lambda: (found := scoring.ask(cells)) and (all(found[0]) or found[1]) and found)  # type: ignore[return-value]


def test_nothing_runs_before_the_first_question_and_values_come_in_portions(scoring: Scoring, cells: list[Cell]) -> None:
    assert scoring.desk.pid is None and scoring.ask([]) == ([], {}) and scoring.desk.pid is None
    values, failures = settled(scoring, cells)
    assert len(values) == 10 > module.AT_ONCE and not failures and all(value["value"] > 0 for value in values)
    assert scoring.desk.pid and scoring.ask(cells)[0] == values
    polite = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert psutil.Process(scoring.desk.pid).nice() == polite, "a training run goes first"


def test_rewards_without_networks_go_first(scoring: Scoring, cells: list[Cell]) -> None:
    clip = [Cell(CLIP, cells[0].image, "a cat")]
    seen = until(lambda: [v for v in scoring.ask([*clip, *cells])[0] if v])
    assert all("size_kb" in each["explanation"] for each in seen), "asked for last, there first"
    values, _ = settled(scoring, [*clip, *cells])
    assert "cosine" in values[0]["explanation"]


def test_killed_between_questions_it_starts_again_and_nobody_notices(scoring: Scoring, cells: list[Cell]) -> None:
    settled(scoring, cells[:1])
    os.kill(first := scoring.desk.pid or 0, signal.SIGKILL)
    until(lambda: scoring.desk.pid is None)
    values, failures = settled(scoring, cells[:2])
    assert all(values) and not failures and scoring.desk.pid not in (None, first)


def test_killed_while_it_scores_it_says_so_and_retry_works(scoring: Scoring, cells: list[Cell]) -> None:
    asked = [Cell(CLIP, cells[0].image, "a cat")]
    scoring.ask(asked)
    os.kill(until(lambda: scoring.now and scoring.desk.pid), signal.SIGKILL)
    _, failures = settled(scoring, asked)
    assert "was ended" in failures[CLIP].text and not failures[CLIP].missing
    values, failures = settled(scoring, cells[:1])
    assert values and not failures, "the other rewards go on"
    assert scoring.ask(asked)[1], "and nobody tries again by himself"
    scoring.retry(CLIP)
    values, failures = settled(scoring, asked)
    assert values[0] and not failures


def test_stop_ends_it_at_once_and_the_next_question_starts_it(scoring: Scoring, cells: list[Cell]) -> None:
    asked = [Cell(CLIP, cells[0].image, "a cat")]
    scoring.ask(asked)
    pid = until(lambda: scoring.now and scoring.desk.pid)
    scoring.stop()
    until(lambda: not alive(pid) and scoring.now is None)
    assert settled(scoring, asked)[0][0]


def test_stop_also_ends_what_is_only_being_started(cells: list[Cell]) -> None:
    """Defect: a stop in that moment met no process, and what was started went on, a download as well."""

    class Slow(Desk):
        starting = False

        def _start(self, online: bool) -> None:
            self.starting = True
            time.sleep(0.5)
            super()._start(online)

    desk = Slow([sys.executable, "-c", "import time; time.sleep(600)"])
    scoring = Scoring(desk)
    scoring.retry(FAR, download=True)
    scoring.ask([Cell(FAR, cells[0].image, "a cat")])
    until(lambda: desk.starting)
    scoring.stop()
    assert scoring.now is None and desk.pid is None and desk.starts == 1
    scoring.close()


def test_stop_also_ends_what_a_function_has_started(cells: list[Cell]) -> None:
    """Defect: a program that lived on held the pipe of answers open, and whoever waited for one waited for it."""
    code = "import subprocess, time\nprint(subprocess.Popen(['sleep', '600']).pid, file=open('PLACE', 'w'), flush=True)\ntime.sleep(600)"
    place = cells[0].image.parent / "pid"
    scoring = Scoring(Desk([sys.executable, "-c", code.replace("PLACE", str(place))]))
    scoring.ask([Cell(CLIP, cells[0].image, "a cat")])
    pid = until(lambda: place.exists() and place.read_text().endswith("\n") and int(place.read_text()))
    started = time.monotonic()
    scoring.stop()
    assert scoring.now is None and time.monotonic() - started < module.END_SECONDS / 2
    until(lambda: not alive(pid))
    scoring.close()


def test_an_idle_process_ends_and_comes_back(cells: list[Cell]) -> None:
    scoring = Scoring(idle_seconds=0.3)
    settled(scoring, cells[:1])
    until(lambda: scoring.desk.pid is None)
    assert settled(scoring, cells[:2])[0][1] and scoring.desk.starts == 2
    scoring.close()


def test_what_nobody_asks_for_again_is_not_scored(scoring: Scoring, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """The page was closed while the process was still loading: of many portions only the one under way is made."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    asked = [Cell(CLIP, cell.image, f"{n} cats") for n in range(4) for cell in cells]
    scoring.ask(asked)
    until(lambda: scoring.now)
    until(lambda: scoring.now is None)
    time.sleep(0.3)
    assert scoring.now is None and sum(value is not None for value in scoring._known.values()) == module.AT_ONCE


def test_a_failure_is_forgotten_after_a_pause(scoring: Scoring, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Cell(Setting("pickscore"), cells[0].image, "a cat")]
    assert "no pocket networks" in settled(scoring, asked)[1][asked[0].setting].text
    monkeypatch.setattr(module, "FORGET_SECONDS", 0.0)
    assert scoring.ask(asked) == ([None], {})


def test_nothing_is_downloaded_unless_somebody_allows_it(
    scoring: Scoring, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    asked = [Cell(Setting("aesthetic", "published"), cells[0].image, "")]
    failure = settled(scoring, asked)[1][asked[0].setting]
    assert failure.missing and "is not in" in failure.text
    desk = Desk((sys.executable, "-c", ECHO))
    assert [desk.ask({}, online)["offline"] for online in (False, True, None, True, False)] == ["1", None, None, None, "1"] and desk.starts == 3
    desk.close()


def test_download_starts_it_online_and_retry_gives_a_value(cells: list[Cell]) -> None:
    """The process has no network at first: a failure that a download can mend; then the download is allowed, once."""
    scoring, asked = Scoring(Desk((sys.executable, "-c", FETCHES))), [Cell(FAR, cell.image, "") for cell in cells]
    assert settled(scoring, asked)[1][FAR].missing
    scoring.retry(FAR)
    assert settled(scoring, asked)[1][FAR].missing, "to try again is no leave to download"
    scoring.retry(FAR, download=True)
    values, failures = settled(scoring, asked)
    assert not failures and {value["value"] for value in values} == {1.0} and scoring._downloads == {}
    scoring.close()


def test_a_download_that_fails_is_no_dead_end(cells: list[Cell]) -> None:
    scoring, asked = Scoring(Desk((sys.executable, "-c", UNREACHABLE))), [Cell(FAR, cells[0].image, "")]
    assert settled(scoring, asked)[1][FAR].missing
    scoring.retry(FAR, download=True)
    failure = settled(scoring, asked)[1][FAR]
    assert not failure.missing and failure.text == "cannot reach the Hub: online", "it was tried"
    scoring.close()


def test_leave_counts_where_the_process_has_answered_before(cells: list[Cell]) -> None:
    """Networks that were freed, and then cannot be read any more, say: the process without network must not be asked again and again."""
    scoring, asked = Scoring(Desk((sys.executable, "-c", FETCHES))), [Cell(FAR, cells[0].image, "")]
    assert settled(scoring, asked)[1][FAR].missing
    scoring._loaded.add((scoring.desk.starts, FAR))
    scoring.retry(FAR, download=True)
    assert settled(scoring, asked)[0][0]["value"] == 1.0 and scoring.desk.starts == 2
    scoring.close()


def test_leave_to_download_is_for_one_setting_and_ends_with_stop_and_with_the_page(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    scoring, other = Scoring(Desk((sys.executable, "-c", FETCHES))), Setting("aesthetic", "published", "cpu")
    scoring.retry(FAR, download=True)
    assert settled(scoring, [Cell(other, cells[0].image, "")])[1][other].missing
    scoring.stop()
    assert settled(scoring, [Cell(FAR, cells[0].image, "")])[1][FAR].missing
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    scoring.retry(FAR, download=True)
    with scoring._wake:
        assert scoring._next() == [] and scoring._downloads == {}
    scoring.close()


def test_a_damaged_picture_is_its_own_failure_and_one_that_is_gone_holds_up_nobody(scoring: Scoring, cells: list[Cell]) -> None:
    cells[1].image.write_text("no picture")
    cells[2].image.unlink()
    values, failures = until(lambda: (found := scoring.ask(cells)) and sum(each is not None for each in found[0]) == 9 and found)
    assert not failures and "no picture" in values[1]["error"] and values[2] is None
    assert all("value" in each for each in (*values[:1], *values[3:])) and str(cells[1].image) not in values[1]["error"]


@pytest.mark.parametrize("answer", ["dict(scores=[])", "dict(scores=[1])", "dict(odd=1)", "[]", "None", "'x'"])
def test_an_odd_answer_is_a_failure_and_the_thread_lives_on(cells: list[Cell], answer: str) -> None:
    scoring = Scoring(Desk((sys.executable, "-c", f"import json, sys\nfor line in sys.stdin: print(json.dumps({answer}), flush=True)")))
    assert settled(scoring, cells[:1])[1][SMALL].text and scoring._thread and scoring._thread.is_alive()
    scoring.close()


def test_a_full_disk_is_a_failure_and_the_thread_lives_on(scoring: Scoring, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.tempfile, "TemporaryFile", full)
        assert "No space left" in settled(scoring, cells[:1])[1][SMALL].text
    scoring.retry(SMALL)
    assert settled(scoring, cells[:1])[0][0]["value"] > 0


def test_a_process_that_cannot_work_tells_its_last_words(cells: list[Cell]) -> None:
    for command, words in [
        ((sys.executable, "-c", "raise SystemExit('No module named torch')"), "No module named torch"),
        ((sys.executable, "-c", "print('no answer')"), "was ended"),
        (("/nowhere/python",), "cannot be started"),
    ]:
        desk = Desk(command)
        with pytest.raises(DeskError, match=words):
            desk.ask({})
        desk.close()


def test_it_ends_with_the_server(tmp_path: Path) -> None:
    filled_run(tmp_path / "a", rounds=1).close()
    body = dict(rewards=["clip_score"], prompt="", models="pocket", device="auto", vlm="", items=[dict(run="a", sample=1)])
    for studio in serve(tmp_path):
        httpx.post(f"{studio.url}/studio/rewards/scores", json=body).raise_for_status()
        [pid] = until(lambda: [child.pid for child in psutil.Process().children() if child.cmdline()[-2:] == ["rewards", "serve"]])
    until(lambda: not alive(pid), 10)  # though it was still loading


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_it_ends_when_the_server_is_killed(cells: list[Cell]) -> None:
    server = "import sys, time; from pathlib import Path; from app.scoring import *; s = Scoring()\n"
    server += "cells = [Cell(Setting('jpeg_compressibility'), Path(sys.argv[1]), '')]\n"
    server += "while not s.ask(cells)[0][0]: time.sleep(0.05)\n"
    server += "print(json.dumps(s.desk.pid), flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", server, str(cells[0].image)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    pid = json.loads(process.stdout.readline())
    assert alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not alive(pid), 20)
