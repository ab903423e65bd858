"""An export on the Hub: through the real client, against a server that takes what the Hub takes and refuses what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from huggingface_hub import constants

from app.downloads import build_downloads
from app.exports import Exports
from app.runs import Runs
from ddpo.export import export
from ddpo.hub import HubError, prepare
from ddpo.store import RunStore
from tests.test_exports import store

__all__ = ["store"]

TOKEN = "hf_write_of_anna"


class Hub(ThreadingHTTPServer):
    """Repositories in memory, by the Hub's own calls: create, preupload, LFS, commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def read(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self) -> None:
        data = self.read()
        assert hashlib.sha256(data).hexdigest() == self.path.rpartition("/")[2]
        self.server.stored[self.path.rpartition("/")[2]] = data
        self.say({})

    def do_GET(self) -> None:
        name = "/".join(self.path.partition("?")[0].split("/")[3:5])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.say({"error": "Invalid credentials"}, 401)
        if (repo := self.server.repos.get(name)) is None:
            return self.say({"error": "Repository not found"}, 404)
        return self.say({"id": name, "private": repo["visibility"] == "private", "siblings": [], "tags": [], "downloads": 0, "likes": 0})

    def do_POST(self) -> None:
        data = self.read()
        self.server.seen.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.say({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            told = json.loads(data)
            if told["organization"] not in (None, "anna"):
                return self.say({"error": "Forbidden"}, 403)
            name = f"{told['organization'] or 'anna'}/{told['name']}"
            self.server.repos.setdefault(name, dict(kind=told["type"], visibility=told.get("visibility"), files={}))
            return self.say({"url": f"{self.server.url}/{'datasets/' if told['type'] == 'dataset' else ''}{name}"})
        if self.path.endswith("/objects/batch"):
            return self.say({"transfer": "basic", "objects": [
                dict(oid=each["oid"], size=each["size"], actions=dict(upload=dict(href=f"{self.server.url}/lfs/{each['oid']}")))
                for each in json.loads(data)["objects"]
            ]})  # fmt: skip
        if self.path == "/api/validate-yaml":
            yaml.safe_load(json.loads(data)["content"].split("---")[1])
            return self.say({"warnings": [], "errors": []})
        repo = self.server.repos["/".join(self.path.split("/")[3:5])]
        if "/preupload/" in self.path:
            files = [each["path"] for each in json.loads(data)["files"]]
            modes = {path: "lfs" if path.endswith((".safetensors", ".png")) else "regular" for path in files}
            return self.say({"files": [dict(path=path, uploadMode=mode, shouldIgnore=False) for path, mode in modes.items()]})
        assert "/commit/" in self.path
        for line in data.splitlines():
            told = json.loads(line)
            if told["key"] == "file":
                repo["files"][told["value"]["path"]] = base64.b64decode(told["value"]["content"])
            elif told["key"] == "lfsFile":
                repo["files"][told["value"]["path"]] = self.server.stored[told["value"]["oid"]]
        return self.say(
            {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}{self.path.removeprefix('/api').removeprefix('/models')}"}
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub that this process meets, and those that are started now."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in (("HF_ENDPOINT", server.url), ("HF_HUB_DISABLE_XET", "1")):
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def pushed(folder: Path, repo: str, *options: str, typed: str = "", **surroundings: str) -> subprocess.CompletedProcess[str]:
    order = [sys.executable, "-W", "ignore", "-m", "ddpo", "push", str(folder), repo, *options]
    return subprocess.run(order, input=typed, capture_output=True, text=True, timeout=240, env=os.environ | surroundings)


def test_a_model_and_data_are_sent_file_by_file(hub: Hub, store: RunStore, tmp_path: Path) -> None:
    """The folder's own files, bit by bit; a model in a model's repository for its owner only, ratings in a dataset that everybody may see."""
    export(store, "diffusers", tmp_path / "lora")
    made = pushed(tmp_path / "lora", "anna/warm", typed=f"{TOKEN}\n")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == dict(url=f"{hub.url}/anna/warm")
    repo = hub.repos["anna/warm"]
    assert repo["kind"] == "model" and repo["visibility"] == "private"
    assert repo["files"] == {file.name: file.read_bytes() for file in (tmp_path / "lora").iterdir()}
    assert {"README.md", "pytorch_lora_weights.safetensors"} <= set(repo["files"])
    export(store, "ratings", tmp_path / "data")
    made = pushed(tmp_path / "data", "said", "--public", HF_TOKEN=TOKEN)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == dict(url=f"{hub.url}/datasets/anna/said")
    assert hub.repos["anna/said"]["kind"] == "dataset" and hub.repos["anna/said"]["visibility"] != "private" and hub.repos["anna/said"]["files"]


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("anna/warm", "hf_stolen", "does not accept this token"),
        ("ben/warm", TOKEN, "may not write to ben/warm"),
        ("anna/warm", "", "needs a token"),
        ("anna/warm", "hf stolen", "needs a token"),
        ("a/b/c", TOKEN, "can be no repository"),
        ("anna/wa rm", TOKEN, "can be no repository"),
        ("anna/warm.", TOKEN, "can be no repository"),
    ],
)
def test_what_the_hub_refuses_is_said_before_anything_is_made(hub: Hub, repo: str, token: str, words: str) -> None:
    with pytest.raises(HubError, match=words) as refused:
        prepare(repo, token, model=True)
    assert not token or token not in str(refused.value)
    assert not hub.repos


def test_what_everybody_sees_gets_nothing_private(hub: Hub) -> None:
    assert prepare("warm", TOKEN, model=False, private=False) == "anna/warm"
    with pytest.raises(HubError, match="everybody may see it"):
        prepare("anna/warm", TOKEN, model=False)
    assert prepare("anna/warm", TOKEN, model=False, private=False) == "anna/warm" and prepare("anna/own", TOKEN, model=True) == "anna/own"
    assert prepare("anna/own", TOKEN, model=True) == "anna/own"


def test_a_hub_that_is_away_or_off_is_said(hub: Hub, store: RunStore, tmp_path: Path) -> None:
    export(store, "diffusers", tmp_path / "lora")
    away = pushed(tmp_path / "lora", "anna/warm", typed=f"{TOKEN}\n", HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 2 and "cannot be reached" in away.stderr and TOKEN not in away.stderr
    off = pushed(tmp_path / "lora", "anna/warm", typed=f"{TOKEN}\n", HF_HUB_OFFLINE="1")
    assert off.returncode == 2 and "HF_HUB_OFFLINE is set" in off.stderr and TOKEN not in off.stderr
    nothing = pushed(tmp_path / "nothing", "anna/warm", typed=f"{TOKEN}\n")
    assert nothing.returncode == 2 and "is no folder" in nothing.stderr


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's own client
def test_the_page_sends_it_too(hub: Hub, store: RunStore) -> None:
    runs, exports, app = Runs(store.folder.parent), Exports(), FastAPI()
    app.include_router(build_downloads(runs, exports))
    client = TestClient(app)
    body = dict(kind="kohya", round=None, strength=1.0, names=False, repo="anna/warm", token=TOKEN, public=False)
    answer = client.post("/studio/runs/taste/push", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == dict(url=f"{hub.url}/anna/warm")
    assert [name for name in hub.repos["anna/warm"]["files"] if name.endswith(".safetensors")] == ["taste-round-2.safetensors"]
    for changed in (
        dict(token="hf_stolen"),
        dict(repo="a b"),
        dict(repo=""),
        dict(token=""),
        dict(kind="report"),
        dict(kind="strengths"),
        dict(token=[1]),
    ):
        assert client.post("/studio/runs/taste/push", json=body | changed).status_code == 422
    assert client.post("/studio/runs/taste/push", json=body | dict(round=1)).status_code == 409  # it has no checkpoint
    exports.close()
    runs.close()
