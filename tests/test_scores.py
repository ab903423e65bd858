"""What the Rewards page asks of the server, without a browser: pictures, values, and words."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from toys import ODD_PROMPTS, filled_run, picture

import rewards
from app import pictures as pictures_module
from app.pages import progress
from app.pages import rewards as page
from app.pictures import PictureError, Pictures
from app.runs import Runs
from app.scores import build_scores
from app.scoring import Failure, Scoring, Setting

BYTES = {"Content-Type": "application/octet-stream"}


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    found = Pictures()
    yield found
    found.close()


@pytest.fixture
def client(tmp_path: Path, pictures: Pictures) -> Iterator[TestClient]:
    filled_run(tmp_path / "toy", rounds=2, prompts=ODD_PROMPTS[:4]).close()
    runs, scoring, app = Runs(tmp_path), Scoring(), FastAPI()
    app.include_router(build_scores(runs, pictures, scoring))
    with TestClient(app) as found:
        yield found
    scoring.close()
    runs.close()


def bring(client: TestClient, data: bytes) -> Any:
    return client.post("/studio/rewards/pictures", content=data, headers=BYTES)


def question(**changes: Any) -> dict[str, Any]:
    return dict(rewards=["jpeg_compressibility"], prompt="a cat", models="pocket", device="auto", vlm="", items=[]) | changes


def settled(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    for _ in range(600):
        answer = client.post("/studio/rewards/scores", json=body).json()
        if all(
            each["failure"] or sum(v is not None for v in each["values"]) == len(body["items"]) - len(answer["gone"])
            for each in answer["scores"].values()
        ):
            return dict(answer)
        time.sleep(0.1)
    raise AssertionError("waited in vain")


# --- pictures -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_of_any_usual_format_is_kept_once_and_shown_as_it_is_scored(client: TestClient, format: str) -> None:
    data = file_of(picture(1, 300).convert("RGB"), format)
    first, second = bring(client, data).json(), bring(client, data).json()
    assert first == second and (first["width"], first["height"]) == (300, 300)
    large, small = (client.get(f"/studio/rewards/pictures/{first['picture']}{query}") for query in ("", "?small=true"))
    assert large.headers["content-type"] == "image/png" and "immutable" in large.headers["cache-control"]
    assert large.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(large.content)).size == (300, 300) and max(Image.open(io.BytesIO(small.content)).size) == pictures_module.SMALL


def test_grey_of_16_bits_is_kept_as_it_is_seen_and_fractions_are_refused(pictures: Pictures) -> None:
    grey = Image.frombytes("I;16", (256, 3), b"".join((257 * i).to_bytes(2, "little") for i in range(256)) * 3)
    for format in ("PNG", "TIFF"):
        path = pictures.path(pictures.add(file_of(grey, format))["picture"])
        assert path
        with Image.open(path) as kept:
            assert [kept.getpixel((i, 0)) for i in (0, 100, 255)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]
    with pytest.raises(PictureError, match="This picture has fractions instead of colours"):
        pictures.add(file_of(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_pictures_are_upright_and_without_transparency(pictures: Pictures) -> None:
    turned = Image.new("RGBA", (40, 20), (255, 0, 0, 128))
    exif = Image.Exif()
    exif[274] = 6
    key = pictures.add(file_of(turned, exif=exif))["picture"]
    path = pictures.path(key)
    assert path
    with Image.open(path) as kept:
        assert kept.size == (20, 40) and kept.mode == "RGB" and kept.getpixel((5, 5)) == (255, 127, 127), "half red, on white"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture"),
        (file_of(picture(1))[:200], "no picture"),
        (file_of(Image.new("1", (8000, 5001))), "8000 × 5001"),
        (file_of(Image.new("1", (20000, 10000))), "at most 40 million"),
        (file_of(Image.new("1", (404, 4))), "This picture has 404 × 4 pixels. Cut it: at most 100 times as long as wide."),
    ],
)
def test_what_cannot_be_taken_is_refused_with_what_to_do(client: TestClient, data: bytes, words: str) -> None:
    answer = bring(client, data)
    assert answer.status_code == 422 and words in answer.json()["detail"]


def test_large_files_and_other_content_types_are_refused(client: TestClient, pictures: Pictures) -> None:
    assert bring(client, b"x" * (20 * 1024 * 1024 + 1)).status_code == 413
    with pytest.raises(PictureError, match="20 MB"):
        pictures.add(b"x" * (20 * 1024 * 1024 + 1))
    for kind in ("text/plain", "multipart/form-data", "image/png", ""):
        assert client.post("/studio/rewards/pictures", content=file_of(picture(1)), headers={"Content-Type": kind}).status_code == 415
    for path in ("scores", "steer"):
        assert client.post(f"/studio/rewards/{path}", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415


@pytest.mark.parametrize("key", ["x", "0" * 32, "..%2f..%2fetc%2fpasswd", "0" * 31 + "g"])
def test_a_picture_that_is_not_there_is_not_found(client: TestClient, key: str) -> None:
    bring(client, file_of(picture(1)))
    assert client.get(f"/studio/rewards/pictures/{key}").status_code == 404


def test_the_oldest_pictures_make_room_and_all_go_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "MOST_PICTURES", 3)
    pictures = Pictures()
    keys = [pictures.add(file_of(picture(i)))["picture"] for i in range(5)]
    assert [pictures.path(key) is not None for key in keys] == [False, False, True, True, True]
    folder = pictures.path(keys[-1]).parent  # type: ignore[union-attr]
    assert len(list(folder.iterdir())) == 6
    assert pictures.add(file_of(picture(2)))["picture"] == keys[2]
    pictures.add(file_of(picture(5)))
    assert [pictures.path(key) is not None for key in keys[2:]] == [True, False, True], "one that was brought again is one of the latest"
    pictures.close()
    assert not folder.exists()


# --- values ---------------------------------------------------------------------------------------------------------------------


def test_pictures_brought_and_pictures_of_a_run_are_scored_together(client: TestClient) -> None:
    key = bring(client, file_of(picture(7))).json()["picture"]
    items = [dict(picture=key), dict(run="toy", sample=1), dict(picture="0" * 32), dict(run="toy", sample=999), dict(run="gone", sample=1)]
    answer = settled(client, question(rewards=["jpeg_compressibility", "pickscore", "image_statistics"], items=items))
    assert answer["gone"] == [2, 3, 4]
    values = answer["scores"]["jpeg_compressibility"]["values"]
    assert values[0]["value"] < 0 and values[0]["notes"][0]["text"].startswith("JPEG file of") and values[1] and values[2:] == [None] * 3
    assert "no pocket networks" in answer["scores"]["pickscore"]["failure"]["text"]
    assert len(answer["scores"]["image_statistics"]["values"]) == 5 and answer["scores"]["image_statistics"]["values"][1]


def test_a_sample_keeps_its_own_prompt_unless_the_typed_one_is_wanted(client: TestClient) -> None:
    """The same picture three times: CLIPScore tells which prompt it was compared with."""
    items = [dict(run="toy", sample=1), dict(run="toy", sample=1, typed=True)]
    own, typed = settled(client, question(rewards=["clip_score"], items=items))["scores"]["clip_score"]["values"]
    same, _ = settled(client, question(rewards=["clip_score"], items=items, prompt=ODD_PROMPTS[2]))["scores"]["clip_score"]["values"]
    assert own == same and own["explanation"]["cosine"] != typed["explanation"]["cosine"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(rewards=["human"]), "rewards"),
        (dict(rewards=["beauty"]), "rewards"),
        (dict(rewards="aesthetic"), "rewards"),
        (dict(items=[dict(picture="x")] * 65), "At most 64 pictures"),
        (dict(items={}), "pictures"),
        (dict(items=[5]), "A picture"),
        (dict(prompt="x" * 10_001), "10,000 characters"),
        (dict(prompt=None), "prompt"),
        (dict(models="best"), "models"),
        (dict(device="cuda:0; rm"), "device"),
        (dict(vlm=5), "vlm"),
    ],
)
def test_odd_questions_are_refused_in_words(client: TestClient, changes: dict[str, Any], words: str) -> None:
    answer = client.post("/studio/rewards/scores", json=question(**changes))
    assert answer.status_code == 422 and words in answer.json()["detail"]


def test_a_sample_of_another_run_of_the_same_name_is_gone(client: TestClient, tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    url = page.round_pictures(runs, dict(run="toy", round=1))["pictures"][0]
    runs.close()
    items = [dict(run="toy", sample=url["sample"], image=image) for image in (url["image"], "0" * 64, None, 5)]
    assert settled(client, question(items=items))["gone"] == [1, 2, 3]


def test_a_damaged_picture_is_said_without_the_server_s_folders(client: TestClient, pictures: Pictures) -> None:
    keys = [bring(client, file_of(picture(i))).json()["picture"] for i in range(3)]
    (path := pictures.path(keys[1])) and path.write_bytes(b"damaged")
    answer = settled(client, question(items=[dict(picture=key) for key in keys]))["scores"]["jpeg_compressibility"]
    assert answer["failure"] is None and [each["value"] is None for each in answer["values"]] == [False, True, False]
    assert "no picture" in answer["values"][1]["error"] and "/" not in answer["values"][1]["error"]


def test_an_edited_function_gives_new_values(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.py"
    monkeypatch.setenv("DDPO_TRUSTED_REWARDS", f"{file}\n{file}:own")
    found, versions = [], set()
    for value in (1, 2):
        file.write_text(f"def own(images, prompts): return [({value}, dict(answers=5)) for _ in images]")
        os.utime(file, ns=(value * 10**9, value * 10**9))
        answer = settled(client, question(rewards=[f"{file}:own"], items=[dict(run="toy", sample=1)]))["scores"][f"{file}:own"]
        found += [each["value"] for each in answer["values"]]
        versions.add(next(card["version"] for card in page.cards() if card["name"] == f"{file}:own"))
    assert found == [1.0, 2.0] and len(versions) == 2


@pytest.mark.parametrize("number", [-1, 0, 2**63, True, "1", None, 1.5])
def test_odd_samples_are_gone(client: TestClient, number: object) -> None:
    answer = client.post("/studio/rewards/scores", json=question(items=[dict(run="toy", sample=number)]))
    assert answer.json()["gone"] == ([] if number is True else [0])


def test_stop_retry_and_download_are_all_there_is_to_steer(client: TestClient) -> None:
    networks = dict(models="published", device="auto", vlm="")
    for body in (dict(kind="stop"), networks | dict(kind="retry", reward="aesthetic"), networks | dict(kind="download", reward="aesthetic")):
        assert client.post("/studio/rewards/steer", json=body).status_code == 200
    for odd in (
        dict(kind="explode"), networks | dict(kind="retry", reward="beauty"), [], networks | dict(kind="download", reward=["aesthetic"]),
        dict(kind="retry", reward="aesthetic"), networks | dict(kind="retry", reward="aesthetic", vlm=5),
    ):  # fmt: skip
        assert client.post("/studio/rewards/steer", json=odd).status_code == 422


# --- words ----------------------------------------------------------------------------------------------------------------------


def test_every_machine_s_reward_has_a_card(tmp_path: Path) -> None:
    cards = {card["name"]: card for card in page.page_value(dict(run=None))["cards"]}
    assert set(cards) == set(rewards.automatic())
    json.dumps(cards)
    store = filled_run(tmp_path / "a", rounds=2)
    assert page.page_value(progress.gallery_value(store)) | dict(cards=0) == dict(run="a", rounds=[1, 2], cards=0, most=64)
    store.close()


def test_a_round_s_pictures_bring_their_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled_run(tmp_path / "a", rounds=1, prompts=ODD_PROMPTS[:4]).close()
    runs = Runs(tmp_path)
    found = page.round_pictures(runs, dict(run="a", round=1))["pictures"]
    assert all(each["image"] in each["url"] for each in found)
    assert len(found) == 8 and {each["prompt"] for each in found} <= set(ODD_PROMPTS)
    for odd in (None, [], dict(run="gone", round=1), dict(run="a", round="x"), dict(run="a", round=99)):
        assert page.round_pictures(runs, odd) == dict(pictures=[], more=0)
    monkeypatch.setattr(page, "MOST_PICTURES", 5)
    found = page.round_pictures(runs, dict(run="a", round=1))
    assert len(found["pictures"]) == 5 and found["more"] == 3, "what is left out is said"
    runs.close()


@pytest.mark.parametrize(
    ("explanation", "lines"),
    [
        (dict(answers=5), ["answers 5"]),
        (dict(answers=["a"], answer=5), ["answer 5"]),
        (dict(size_kb="big"), ["size kb big"]),
        (dict(precision="high", recall=0.5, f1=None), ["precision high", "recall 0.5"]),
        (dict(why="too_dark", hue=0.25, list=[1], none=None), ["why too_dark", "hue 0.25"]),
        (dict(hue=10**400, blue=float("inf"), red=float("nan")), []),
        (dict(points="many"), []),
    ],
)
def test_odd_explanations_of_a_person_s_own_function_are_lines(explanation: dict[str, Any], lines: list[str]) -> None:
    assert [each["text"] for each in page.notes(explanation)] == lines


def test_explanations_are_lines_that_people_read() -> None:
    answers = [dict(question="How many?", answer="two", right=True), dict(question="What?", answer="a cat", right=False)]
    assert page.notes(dict(answers=answers)) == [dict(text="How many? “two”", right=True), dict(text="What? “a cat”", right=False)]
    found = page.notes(dict(answer="A cat sits.", precision=0.5, recall=0.75, f1=0.6, calibrated=-0.1))
    assert [each["text"] for each in found] == ["“A cat sits.”", "P 0.5 · R 0.75 · F1 0.6", "calibrated −0.1"]
    assert page.notes(dict(size_kb=2.4142)) == [dict(text="JPEG file of 2.414 kB")]
    assert page.notes(dict(points=5.0)) == [] and page.notes({}) == []


def test_a_failure_says_what_to_download_and_how_large_it_is() -> None:
    missing = page.failure_value(Setting("aesthetic", "published"), Failure("…", True, 0))
    assert "1.7 GB" in missing["text"] and missing["download"] and missing["commands"][0] == "hf download openai/clip-vit-large-patch14"
    refused = page.failure_value(Setting("pickscore", "pocket"), Failure("…", False, 0))
    assert "no pocket networks" in refused["text"] and "3.9 GB" in refused["text"] and not refused["retry"]
    other = page.failure_value(Setting("aesthetic", "published"), Failure("Set reward_models to pocket.", False, 0))
    assert other["text"] == "Set Networks that score to pocket." and other["retry"] and not other["download"]
    alignment = page.failure_value(Setting("alignment", "published"), Failure("…", True, 0))
    assert alignment["commands"] == ["hf download llava-hf/llava-1.5-7b-hf", "hf download microsoft/deberta-xlarge-mnli"]


def test_a_typed_network_is_the_one_that_is_missing() -> None:
    typed = page.failure_value(Setting("satisfaction", "published", vlm="someone/llava"), Failure("…", True, 0))
    assert typed["text"] == "Its network is not on this computer: someone/llava." and typed["commands"] == ["hf download someone/llava"]
    both = page.failure_value(Setting("alignment", "published", vlm="someone/llava"), Failure("…", True, 0))
    assert both["download"] == "someone/llava and DeBERTa XLarge MNLI (3 GB)"
    assert both["commands"] == ["hf download someone/llava", "hf download microsoft/deberta-xlarge-mnli"]
    pocket = page.failure_value(Setting("alignment", "pocket", vlm="someone/llava"), Failure("…", True, 0))
    assert pocket["commands"] == ["hf download someone/llava"] and pocket["download"] == "someone/llava"
    remote = page.failure_value(Setting("alignment", "published", vlm="http://host/v1#m"), Failure("…", True, 0))
    assert remote["commands"] == ["hf download microsoft/deberta-xlarge-mnli"] and remote["download"] == "DeBERTa XLarge MNLI (3 GB)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The pocket network /home/anna/ddpo/pocket/clip is missing.", "The pocket network clip is missing."),
        ("The reward C:\\Users\\anna\\own.py:red failed.", "The reward own.py:red failed."),
        ("The endpoint http://host:80/v1/x refuses.", "The endpoint http://host:80/v1/x refuses."),
        ("1/2 of a/b/c", "1/2 of a/b/c"),
    ],
)
def test_a_failure_names_no_folder_of_the_server(text: str, shown: str) -> None:
    assert page.failure_value(Setting("jpeg_compressibility"), Failure(text, False, 0))["text"] == shown
