"""Taking files away through the page's routes: made by a process, fetched once, and gone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import serve
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import load

from app import exports
from app.downloads import build_downloads
from app.exports import ExportFailure, Exports
from app.pages.takeaway import CHOICES, takeaway_value
from app.runs import Runs
from ddpo.export import EXPORTS
from ddpo.store import RunStore
from tests.toys import add_lora, filled_run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """A run of two rounds, rated, with the second round's LoRA."""
    found = filled_run(tmp_path / "runs" / "taste", rounds=2)
    add_lora(found, 2)
    yield found
    found.close()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test: a folder that can be looked into."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def web(store: RunStore, temporary: Path) -> Iterator[TestClient]:
    runs, files = Runs(store.folder.parent), Exports()
    app = FastAPI()
    app.include_router(build_downloads(runs, files))
    with TestClient(app) as found:
        yield found
    files.close()
    runs.close()


def asked(web: TestClient, kind: str, **options: object) -> bytes:
    answer = web.post("/studio/runs/taste/exports", json={"kind": kind, **options})
    assert answer.status_code == 200, answer.text
    file = answer.json()
    got = web.get(file["url"])
    assert got.status_code == 200 and len(got.content) == file["bytes"]
    assert file["name"] in got.headers["content-disposition"] and got.headers["cache-control"] == "no-store"
    assert web.get(file["url"]).status_code == 404  # fetched, and gone
    return got.content


def test_a_lora_is_made_fetched_once_and_gone(web: TestClient, temporary: Path) -> None:
    tensors = load(asked(web, "kohya"))
    assert {float(t) for name, t in tensors.items() if name.endswith(".alpha")} == {6.0}
    half = load(asked(web, "kohya", round=2, strength=0.5))
    assert {float(t) for name, t in half.items() if name.endswith(".alpha")} == {3.0}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("diffusers", {"README.md", "curves.svg", "pictures.png", "pytorch_lora_weights.safetensors"}),
        ("ratings", {"README.md", "ratings.csv", "ratings.jsonl", "metadata.jsonl", "images"}),
        ("pairs", {"README.md", "pairs.jsonl", "images"}),
    ],
)
def test_the_others_are_a_zip_with_their_card(web: TestClient, temporary: Path, kind: str, files: set[str]) -> None:
    with zipfile.ZipFile(io.BytesIO(asked(web, kind))) as archive:
        names = archive.namelist()
        top = f"taste-{kind}-round-2" if kind == "diffusers" else f"taste-{kind}"
        assert {name.split("/")[0] for name in names} == {top} and {name.split("/")[1] for name in names} == files
        assert archive.testzip() is None
        if kind == "ratings":
            rows = [json.loads(line) for line in archive.read(f"{top}/ratings.jsonl").decode().splitlines()]
            assert len(rows) == 16 and "anna" not in {row["rater"] for row in rows}
    assert list(temporary.iterdir()) == []


def test_raters_are_named_when_somebody_asks(web: TestClient) -> None:
    with zipfile.ZipFile(io.BytesIO(asked(web, "ratings", names=True, round=1))) as archive:
        assert b"anna" in archive.read("taste-ratings-round-1/ratings.csv")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"kind": "onnx"}, 422, "kind is one of"),
        ({"kind": "kohya", "round": 0}, 422, "round is a whole number"),
        ({"kind": "kohya", "round": True}, 422, "round is a whole number"),
        ({"kind": "kohya", "strength": 0}, 422, "strength is a number"),
        ({"kind": "kohya", "strength": "1"}, 422, "strength is a number"),
        ([], 422, "kind is one of"),
        ({"kind": "kohya", "round": 1}, 409, "Round 1 of taste has no checkpoint"),
    ],
)
def test_what_cannot_be_is_refused_in_words_and_leaves_nothing(web: TestClient, temporary: Path, body: object, status: int, says: str) -> None:
    answer = web.post("/studio/runs/taste/exports", json=body)
    assert answer.status_code == status and says in answer.json()["detail"]
    assert list(temporary.iterdir()) == []


def test_a_page_of_another_site_cannot_ask(web: TestClient) -> None:
    """A form may send text without asking first, but no JSON; and a run or a file that is not there is not found."""
    assert web.post("/studio/runs/taste/exports", content=b'{"kind": "ratings"}', headers={"content-type": "text/plain"}).status_code == 415
    assert web.post("/studio/runs/other/exports", json={"kind": "ratings"}).status_code == 404
    assert web.get("/studio/runs/taste/exports/..%2Frun.db").status_code == 404


def test_one_password_covers_the_files(store: RunStore) -> None:
    """With a password the real studio answers neither route without it."""
    serving = serve(store.folder.parent, auth=("me", "secret"))
    url = f"{next(serving).url}/studio/runs/taste/exports"
    assert httpx.post(url, json={"kind": "ratings"}).status_code == 401 and httpx.get(f"{url}/token").status_code == 401
    assert httpx.post(url, json={"kind": "ratings"}, auth=("me", "secret")).json()["name"] == "taste-ratings.zip"
    assert httpx.get(f"{url}/token", auth=("me", "secret")).status_code == 404
    next(serving, None)


def test_what_nobody_fetches_goes_in_time_and_with_the_studio(store: RunStore, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Exports()
    first = files.make(store.folder, "ratings")
    monkeypatch.setattr(exports, "KEEP_SECONDS", 0.0)
    second = files.make(store.folder, "ratings")
    assert files.find(first.token) is None and files.find(second.token) is not None and len(list(temporary.iterdir())) == 1
    files.close()
    assert list(temporary.iterdir()) == []


def test_closing_ends_the_process_that_is_at_work(tmp_path: Path, temporary: Path) -> None:
    """A process that would sleep for a minute: ended within seconds, its folder gone, and no other is started."""
    files, failures = Exports((sys.executable, "-c", "import time; time.sleep(60)")), []

    def work() -> None:
        try:
            files.make(tmp_path, "ratings")
        except ExportFailure as failure:
            failures.append(str(failure))

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 20
    while not files._processes and time.monotonic() < deadline:
        time.sleep(0.01)
    files.close()
    thread.join(20)
    assert len(failures) == 1 and "was ended by signal 9" in failures[0] and list(temporary.iterdir()) == []
    with pytest.raises(ExportFailure, match="closing"):
        files.make(tmp_path, "ratings")


def test_a_file_of_data_does_not_wait_for_pictures_and_both_are_behind_a_worker(tmp_path: Path, temporary: Path) -> None:
    """While an export that makes pictures is at work, one of another kind is done; the process is nicer than a worker, which is at 3."""
    slow = "'strengths' in sys.argv"
    files = Exports((sys.executable, "-c", f"import os, sys, time; time.sleep(60 if {slow} else 1); sys.exit(f'nice {{os.nice(0)}}')"))

    def work() -> None:
        with pytest.raises(ExportFailure, match="signal 9"):
            files.make(tmp_path, "strengths")

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 20
    while not files._processes and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ExportFailure, match=r"nice 1[0-9]"):
        files.make(tmp_path, "ratings")
    assert thread.is_alive() and len(files._processes) == 1
    files.close()
    thread.join(20)
    assert not thread.is_alive() and not files._processes


def test_a_lora_is_made_without_torch(store: RunStore, tmp_path: Path) -> None:
    """Beside a worker that trains, a file costs a process with numpy and moments: asked of a fresh interpreter."""
    order = ["export", str(store.folder), "--as", "kohya", "--out", str(tmp_path / "out")]
    code = f"import sys; from ddpo.__main__ import main; assert main({order}) == 0; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert said.stdout.strip().endswith("[]"), said.stdout + said.stderr


# --- what the panel says ----------------------------------------------------------------------------------------------------------


def offered(store: RunStore) -> dict[str, bool]:
    return {choice["kind"]: choice["enabled"] for choice in takeaway_value(store)["choices"]}


def test_the_panel_offers_what_there_is(store: RunStore, tmp_path: Path) -> None:
    assert set(CHOICES) == set(EXPORTS)
    assert offered(store) == dict.fromkeys(CHOICES, True)
    value = takeaway_value(store)
    assert value["saved"] == [2] and value["made"] == [1, 2] and json.dumps(value)
    fresh = filled_run(tmp_path / "fresh", rounds=0)
    assert offered(fresh) == dict.fromkeys(CHOICES, False)
    fresh.close()
    auto = filled_run(tmp_path / "auto", rounds=1, reward="jpeg_compressibility")
    add_lora(auto, 1)
    assert [kind for kind, enabled in offered(auto).items() if not enabled] == ["pairs", "ratings"]
    auto.close()


def test_a_run_that_trained_everything_offers_the_whole_model_and_no_lora(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "full", rounds=1, training="full", learning_rate=1e-5)
    unet = store.checkpoints()[1] / "unet"
    unet.mkdir()
    (unet / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    found = offered(store)
    assert found["pipeline"] and not {"kohya", "diffusers"} & set(found)
    store.close()
