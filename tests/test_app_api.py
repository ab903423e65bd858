"""The named calls that other programs make, through Gradio's own client."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest
from conftest import Studio
from gradio_client import Client
from safetensors.numpy import load

from ddpo.store import RunStore
from tests.toys import add_lora, filled_run


@pytest.fixture
def client(toy_studio: Studio):
    found = Client(toy_studio.url, verbose=False, analytics_enabled=False)
    yield found
    found.close()


def test_start_rate_and_stop_through_the_api(client: Client, toy_studio: Studio, tmp_path: Path) -> None:
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        "/start", "/stop", "/status", "/change_reward", "/retry", "/list_batch", "/rate", "/apply", "/export",
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
    with pytest.raises(Exception, match="There is no run"):
        client.predict("nothing", api_name="/status")
    client.predict("from-api", False, api_name="/stop")
    store = RunStore(toy_studio.runs / "from-api")
    while store.status().alive:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert store.status().state == "stopped" and [rating.rater for rating in store.ratings()] == ["anna"]
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
