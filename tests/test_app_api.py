"""The named calls that other programs make, through Gradio's own client."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest
from conftest import Studio
from gradio_client import Client
from PIL import Image
from safetensors.numpy import load

from ddpo.blind import Outcome, Result, keep
from ddpo.lock import WorkerLock
from ddpo.store import RunStore
from rewards.jpeg import size_kb
from tests.toys import add_lora, comparable_run, filled_run


@pytest.fixture
def client(toy_studio: Studio):
    found = Client(toy_studio.url, verbose=False, analytics_enabled=False)
    yield found
    found.close()


def test_start_rate_and_stop_through_the_api(client: Client, toy_studio: Studio, tmp_path: Path) -> None:
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        "/start", "/stop", "/status", "/metrics", "/change_reward", "/retry", "/list_batch",
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


def test_a_script_takes_a_lora_away(client: Client, toy_studio: Studio) -> None:
    store = filled_run(toy_studio.runs / "taste", rounds=2)
    add_lora(store, 1)
    file = client.predict("taste", "kohya", 1, 0.5, api_name="/export")
    data = urllib.request.urlopen(toy_studio.url + file["url"]).read()
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
    lock = WorkerLock(store.folder / "worker.lock")
    store.set_progress("updating", 1)
    with pytest.raises(Exception, match="taste is at work"):
        client.predict(base, latest, ["a dog"], [1], api_name="/compare")
    assert len(client.predict(base, latest, ["a dog"], [1], None, True, api_name="/compare")) == 1
    lock.release()
    store.close()
