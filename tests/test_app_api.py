"""The named calls that other programs make, through Gradio's own client and over plain HTTP, with a password and without."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Studio
from gradio_client import Client
from PIL import Image
from safetensors.numpy import load, save_file

from ddpo.blind import Outcome, Result, keep
from ddpo.lock import WorkerLock
from ddpo.store import RunStore
from rewards.jpeg import size_kb
from tests.toys import add_lora, comparable_run, filled_run

PASSWORD = ("anna", "pass:wörd")
LOCKED = pytest.mark.parametrize("toy_studio", [PASSWORD], ids=["locked"], indirect=True)
OPEN_AND_LOCKED = pytest.mark.parametrize("toy_studio", [None, PASSWORD], ids=["open", "locked"], indirect=True)
ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture
def client(toy_studio: Studio):
    found = Client(toy_studio.url, httpx_kwargs={"auth": toy_studio.auth}, verbose=False, analytics_enabled=False)
    yield found
    found.close()


def example(language: str, which: int, *changes: tuple[str, str]) -> str:
    """An example of docs/running.md for scripts, as it stands there but for (old, new) words."""
    section = (Path(__file__).parent.parent / "docs" / "running.md").read_text(encoding="utf-8").split("\n## From a script\n")[1].split("\n## ")[0]
    found = re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)[which]
    for old, new in changes:
        assert found.count(old) == 1, f"the example has no {old} any more, or several"
        found = found.replace(old, new)
    return found


def call(studio: Studio, path: str, body: dict[str, Any]) -> tuple[str, Any]:
    """Put a call over HTTP, and fetch its answer: what became of it, and what it returned."""
    posted = httpx.post(f"{studio.url}/gradio_api/call/{path}", json=body, auth=studio.auth).raise_for_status().json()
    answer = httpx.get(f"{studio.url}/gradio_api/call/{path}/{posted['event_id']}", auth=studio.auth).raise_for_status().text
    return answered(answer)


@contextmanager
def at_work(store: RunStore, state: str) -> Iterator[None]:
    """A run that looks as if its worker lived."""
    lock = WorkerLock(store.folder / "worker.lock")
    try:
        store.set_progress(state, 2)
        yield
    finally:
        lock.release()


def answered(text: str) -> tuple[str, Any]:
    found = re.fullmatch(r"event: (\w+)\ndata: (.*)\n\n", text)
    assert found, text
    return found[1], json.loads(found[2])


def test_start_rate_and_stop_through_the_api(client: Client, toy_studio: Studio, tmp_path: Path) -> None:
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        "/start", "/stop", "/resume", "/status", "/metrics", "/change_reward", "/retry", "/list_batch",
        "/rate", "/count_rater", "/apply", "/export", "/compare", "/blind_results",
    }  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    client.predict("from-api", "rate", {"model": str(tmp_path / "model"), "rounds": 2}, api_name="/start")
    deadline = time.monotonic() + 60
    while client.predict("from-api", api_name="/status")["state"] != "awaiting":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    batch = client.predict("from-api", api_name="/list_batch")
    assert len(batch["images"]) == 16
    image = batch["images"][0]["id"]
    assert client.predict("from-api", image, 1, "anna", "once", api_name="/rate") is True
    assert client.predict("from-api", image, 1, "anna", "once", api_name="/rate") is False
    with pytest.raises(Exception, match="no rating"):
        client.predict("from-api", image, 7, "anna", "twice", api_name="/rate")
    assert client.predict("from-api", "anna", 0.5, api_name="/count_rater")["state"] == "awaiting"
    for rater, weight, told in (("eve", 0, "Nobody called 'eve'"), ("anna", 2, "choose 1, 0.5 or 0")):
        with pytest.raises(Exception, match=told):
            client.predict("from-api", rater, weight, api_name="/count_rater")
    with pytest.raises(Exception, match="There is no run"):
        client.predict("nothing", api_name="/status")
    client.predict("from-api", False, api_name="/stop")
    store = RunStore(toy_studio.runs / "from-api")
    while store.status().alive:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert store.status().state == "stopped" and [rating.rater for rating in store.ratings()] == ["anna"]
    assert store.weights == {"anna": 0.5}
    store.close()


def test_a_script_reads_measures_and_blind_tests(client: Client, toy_studio: Studio) -> None:
    store = filled_run(toy_studio.runs / "taste", rounds=2)
    assert {name: [tuple(point) for point in points] for name, points in client.predict("taste", api_name="/metrics").items()} == store.metrics()
    assert client.predict("taste", api_name="/blind_results") == []
    keep(store.folder, Result("ab", 5.0, ("base model", "round 2"), (0, 2), 8, 2, Outcome(a=1, b=4, tie=2, bad=1), (3, 5)))
    (found,) = client.predict("taste", api_name="/blind_results")
    assert found["titles"] == ["base model", "round 2"] and found["total"]["win_rate"] == 0.8 and found["total"]["p_value"] == 0.375
    for call in ("/metrics", "/blind_results"):
        with pytest.raises(Exception, match="nothing"):
            client.predict("nothing", api_name=call)
    store.close()


@OPEN_AND_LOCKED
def test_a_script_takes_a_lora_away(client: Client, toy_studio: Studio) -> None:
    store = filled_run(toy_studio.runs / "taste", rounds=2)
    add_lora(store, 1)
    file = client.predict("taste", "kohya", 1, 0.5, api_name="/export")
    data = httpx.get(toy_studio.url + file["url"], auth=toy_studio.auth).content
    assert file["name"] == "taste-round-1.safetensors" and len(data) == file["bytes"]
    alphas = {float(tensor) for name, tensor in load(data).items() if name.endswith(".alpha")}
    assert alphas == {3.0}
    with pytest.raises(Exception, match="no kind of export"):
        client.predict("taste", "onnx", api_name="/export")
    with pytest.raises(Exception, match=r"Round 2 of taste has no checkpoint"):
        client.predict("taste", "kohya", 2, api_name="/export")
    store.close()


def test_a_script_compares(client: Client, toy_studio: Studio) -> None:
    """Base against the latest round: files and values of both sides, and what cannot be is an error in words."""
    store = comparable_run(toy_studio.runs / "taste")
    base, latest = dict(run="taste"), dict(run="taste", round=2, strength=0.5)
    pairs = client.predict(base, latest, ["a cat"], [1, 2], ["jpeg_compressibility"], api_name="/compare")
    assert [(pair["prompt"], pair["seed"]) for pair in pairs] == [("a cat", 1), ("a cat", 2)]
    for side in (side for pair in pairs for side in (pair["a"], pair["b"])):
        with Image.open(side["file"]) as image:
            assert side["values"] == {"jpeg_compressibility": -size_kb(image)}
        assert urllib.request.urlopen(toy_studio.url + side["url"]).read() == Path(side["file"]).read_bytes()
    assert len({side["file"] for pair in pairs for side in (pair["a"], pair["b"])}) == 4
    for a, rewards, says in ((dict(run="taste", round=9), [], "has no weights"), (base, ["human"], "scores no pictures by itself")):
        with pytest.raises(Exception, match=says):
            client.predict(a, latest, ["a cat"], [1], rewards, api_name="/compare")
    with at_work(store, "updating"):
        with pytest.raises(Exception, match="taste is at work"):
            client.predict(base, latest, ["a dog"], [1], api_name="/compare")
        assert len(client.predict(base, latest, ["a dog"], [1], None, True, api_name="/compare")) == 1
    store.close()


@pytest.mark.parametrize(
    ("call", "values", "says"),
    [
        ("start", ["new", "rate", ["rounds"]], "settings is an object"),
        ("rate", ["taste", "abc", 1], "image is the id of an image"),
        ("rate", ["taste", 1, "good"], "value is a number"),
        ("apply", ["taste", "two"], "number is a round"),
        ("export", ["taste", "kohya", "two"], "number is a round"),
        ("export", ["taste", "kohya", 1, "x"], "strength is a number"),
        ("compare", [dict(run="taste", strenght=0.1), dict(run="taste"), ["a cat"], [1]], "has no 'strenght'; it has run, round, lora and strength"),
        ("compare", [dict(run="taste"), dict(run="taste"), ["a cat"], [1], "aesthetic"], "rewards is a list of names"),
        ("start", [5], "name is 5; it must be a text"),
        ("start", ["new", "rate", {"reward": 5}], "reward is 5; it must be a text"),
        ("start", ["new", "rate", {"shuffle_scores": "no"}], "shuffle_scores is 'no'; it must be true or false"),
        ("start", ["new", ["rate"]], r"preset is \['rate'\]; it must be a text"),
        ("stop", ["taste", "no"], "after_round is 'no'; it must be true or false"),
        ("change_reward", ["taste", None], "reward is None; it must be a text"),
        ("rate", ["taste", 1, 1, 5], "rater is 5; it must be a text"),
        ("count_rater", ["taste", "anna", [1]], r"weight is \[1\]; choose 1, 0.5 or 0"),
        ("export", ["taste", "ratings", 0, 1.0, "false"], "names is 'false'; it must be true or false"),
        ("export", ["taste", "kohya", 1, 10**400], "strength is a number above 0 and at most 10"),
        ("compare", [dict(run="taste"), dict(run="taste"), ["a cat"], [1], None, "yes"], "beside is 'yes'; it must be true or false"),
        ("resume", ["nothing"], "There is no run"),
    ],
)
def test_a_call_that_is_mistyped_is_told_so(client: Client, toy_studio: Studio, call: str, values: list[Any], says: str) -> None:
    filled_run(toy_studio.runs / "taste", rounds=1, awaiting=True).close()
    with pytest.raises(Exception, match=says):
        client.predict(*values, api_name=f"/{call}")
    assert not (toy_studio.runs / "new").exists()


def test_a_script_starts_from_a_lora_of_whatever_rank(client: Client, toy_studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    save_file({"unet.mid_block.attentions.0.proj_in.lora_A.weight": np.ones((5, 4), np.float32)}, tmp_path / "a.safetensors")
    settings = {"model": str(tmp_path / "model"), "init_lora": str(tmp_path / "a.safetensors")}
    with pytest.raises(Exception, match="has rank 5, and lora_rank is 16"):
        client.predict("given", "rate-few", settings | {"lora_rank": 16}, api_name="/start")
    client.predict("taken", "rate-few", settings, api_name="/start")
    store = RunStore(toy_studio.runs / "taken")
    assert (store.config.lora_rank, store.config.lora_targets) == (5, "all")
    store.close()


def test_a_script_has_a_run_go_on_that_was_stopped(client: Client, toy_studio: Studio) -> None:
    client.predict("again", "compress", {"rounds": 3}, api_name="/start")
    client.predict("again", False, api_name="/stop")
    store, deadline = RunStore(toy_studio.runs / "again"), time.monotonic() + 60
    while store.status().alive or store.status().state == "new":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.predict("again", api_name="/resume")
    while store.status().state != "finished":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(store.rounds()) == 3
    store.close()


def test_a_script_changes_the_reward_and_asks_it_again(client: Client, toy_studio: Studio) -> None:
    store = filled_run(toy_studio.runs / "sizes", rounds=1, reward="jpeg_compressibility")
    with pytest.raises(Exception, match="waits for no reward: it is interrupted"):
        client.predict("sizes", api_name="/retry")
    assert not store.pending_requests(), "nobody is there to ask"
    with at_work(store, "reward_failed"):
        for _ in range(2):  # asked for twice, it is asked once
            assert client.predict("sizes", api_name="/retry")["state"] == "reward_failed"
        assert client.predict("sizes", "blend: 1 jpeg_incompressibility", api_name="/change_reward")["state"] == "reward_failed"
        with pytest.raises(Exception, match="no reward"):
            client.predict("sizes", "beauty", api_name="/change_reward")
    asked = [(request.kind, request.payload.get("reward")) for request in store.pending_requests()]
    assert asked == [("retry", None), ("reward", "blend: 1 jpeg_incompressibility")]
    for what in (["/retry"], ["aesthetic", "/change_reward"]):
        with pytest.raises(Exception, match="There is no run"):
            client.predict("nothing", *what[:-1], api_name=what[-1])
    store.close()


@OPEN_AND_LOCKED
def test_the_example_for_scripts_trains_a_run(toy_studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "_telemetry_thread", lambda self: None)
    names: dict[str, Any] = {}
    changes = [
        (ADDRESS, toy_studio.url),
        ("None", repr(toy_studio.auth)),
        ('{"rounds": 5}', '{"rounds": 2}'),
        ("range(5)", "range(2)"),
    ]
    exec(example("python", 0, *changes), names)
    names["studio"].close()
    store = RunStore(toy_studio.runs / "reds")
    assert store.status().state == "finished" and all(row.updated_at for row in store.rounds()) and len(store.rounds()) == 2
    assert {rating.sample for rating in store.ratings()} == {row.id for number in (1, 2) for row in store.samples(number)}
    for number in (1, 2):
        said = {rating.sample: rating.value for rating in store.ratings() if rating.round == number and rating.rater == "script"}
        reds: dict[float, list[int]] = {1: [], -1: []}
        for row in store.samples(number):
            with Image.open(store.folder / row.image) as image:
                reds[said[row.id]].append(image.resize((1, 1)).getpixel((0, 0))[0])
        assert min(reds[1]) >= max(reds[-1])
    store.close()


def test_the_example_for_scripts_compares(client: Client, toy_studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    comparable_run(toy_studio.runs / "reds").close()
    changes = [('"round": 5', '"round": 2'), ('["aesthetic"], api', '["jpeg_compressibility"], api'), ('["aesthetic"])', '["jpeg_compressibility"])')]
    exec(example("python", 1, *changes), dict(studio=client))
    assert capsys.readouterr().out.count("('a dog', ") == 3


@LOCKED
def test_calls_over_plain_http_with_a_password(toy_studio: Studio) -> None:
    store = filled_run(toy_studio.runs / "reds", rounds=1, awaiting=True)
    event, (status,) = call(toy_studio, "status", {"data": ["reds"]})
    assert event == "complete" and status["run"] == "reds" and (event, [status]) == call(toy_studio, "v2/status", {"name": "reds"})
    image = store.samples(2)[0].id
    assert call(toy_studio, "rate", {"data": ["reds", image, 1, "ben", "once", None]}) == ("complete", [True])
    assert call(toy_studio, "v2/rate", {"name": "reds", "image": image, "value": -1}) == ("complete", [True])
    assert [(rating.rater, rating.value) for rating in store.ratings() if rating.sample == image] == [("ben", 1), ("api", -1)]
    event, why = call(toy_studio, "v2/rate", {"name": "reds", "image": image, "value": 7})
    assert event == "error" and "no rating" in why["error"]
    takes = httpx.get(f"{toy_studio.url}/gradio_api/info", auth=PASSWORD).json()["named_endpoints"]["/rate"]["parameters"]
    assert [(each["parameter_name"], each["parameter_default"]) for each in takes][2:4] == [("value", None), ("rater", "api")]
    store.close()


@LOCKED
def test_no_call_is_taken_or_answered_without_the_password(toy_studio: Studio) -> None:
    store = filled_run(toy_studio.runs / "reds", rounds=1, awaiting=True)
    calls, rating = f"{toy_studio.url}/gradio_api/call", {"name": "reds", "image": store.samples(2)[0].id, "value": 1}
    for wrong in (None, ("anna", "wrong")):
        assert httpx.post(f"{calls}/status", json={"data": ["reds"]}, auth=wrong).status_code == 401
        assert httpx.post(f"{calls}/v2/rate", json=rating, auth=wrong).status_code == 401
    assert not [each for each in store.ratings() if each.round == 2]
    id = httpx.post(f"{calls}/v2/rate", json=rating, auth=PASSWORD).json()["event_id"]
    assert httpx.get(f"{calls}/rate/{id}").status_code == 401
    assert answered(httpx.get(f"{calls}/rate/{id}", auth=PASSWORD).text) == ("complete", [True])
    with pytest.raises(Exception, match="Could not load"):
        Client(toy_studio.url, verbose=False, analytics_enabled=False)
    store.close()


@LOCKED
def test_the_example_in_the_shell(toy_studio: Studio) -> None:
    if not (shutil.which("sh") and shutil.which("curl")):
        pytest.skip("there is no sh, or no curl")
    filled_run(toy_studio.runs / "reds", rounds=1).close()
    script = example("sh", 0, (ADDRESS, toy_studio.url)).replace("user:password", ":".join(PASSWORD))
    said = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=60)
    event, (status,) = answered(said.stdout)
    assert event == "complete" and status["run"] == "reds", said.stderr
