"""Models that look and answer, and what is made of their answers: on tiny models of the real classes, and against an endpoint that misbehaves."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ddpo.config import prompt_sets
from pocket.vlm import NOTHING, ask, subject
from pocket.world import captions, plural
from rewards.alignment import QUESTION, Alignment
from rewards.base import RewardError, Sample, check_address
from rewards.bertscore import BertScore, Match, greedy
from rewards.networks import causes, unreachable
from rewards.satisfaction import ANIMALS, IRREGULAR, Question, Satisfaction, questions_of, says, singular
from rewards.vlm import ANSWER_TOKENS, HOST, KEY, Llava, Remote, open_vlm
from tests.toys import picture

WORDS = ("user", ":", "assistant", "a", "cat", "dog", "is", "riding", "bike", "the", "image", "contains", "two", "what", "in", "?")


def tiny_words(*special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<unk>", "<s>", "</s>", *special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    form = "<s> $A" if special else "<s> $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", additional_special_tokens=list(special),
        model_max_length=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LLaVA with a CLIP tower and a Llama of one layer each, as `save_pretrained` writes it."""
    folder, tokenizer = tmp_path_factory.mktemp("llava"), tiny_words("<image>")
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    ids = dict(bos_token_id=2, eos_token_id=3, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(**shape, image_size=16, patch_size=8),
                text_config=LlamaConfig(**shape, vocab_size=len(tokenizer), max_position_embeddings=256, **ids),
                image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1, image_seq_length=4,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    size = dict(height=16, width=16)
    pictures = CLIPImageProcessorPil(size=size, crop_size=size)
    LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, tokenizer = tmp_path_factory.mktemp("bert"), tiny_words()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=40, initializer_range=0.5
        )
        model = BertModel(BertConfig(**shape, vocab_size=len(tokenizer), pad_token_id=0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --- BERTScore


def test_greedy_matching_by_hand() -> None:
    """Candidate words e1, e2, reference words e1, (e1 + e2) / √2, e3: recall is the mean of 1, 1/√2 and 0, precision that of 1 and 1/√2."""
    e = torch.eye(3)
    half = (e[0] + e[1]) / math.sqrt(2)
    found = greedy(e[:2], torch.tensor([True, True]), torch.stack([e[0], half, e[2]]), torch.tensor([True] * 3))
    recall, precision = (1 + math.sqrt(0.5) + 0) / 3, (1 + math.sqrt(0.5)) / 2
    assert (found.precision, found.recall) == (pytest.approx(precision), pytest.approx(recall))
    assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_special_tokens_count_nothing_but_may_be_matched_with() -> None:
    e = torch.eye(3)
    found = greedy(torch.stack([e[2], e[0]]), torch.tensor([False, True]), torch.stack([e[0], e[2]]), torch.tensor([True, True]))
    assert (found.precision, found.recall) == (pytest.approx(1.0), pytest.approx(1.0))


def test_the_same_sentence_matches_wholly_and_an_empty_answer_not_at_all(tiny_bert: str) -> None:
    """Defect of the libraries: an empty candidate raises there, or gives NaN."""
    bert = BertScore(tiny_bert, 2, "cpu")
    found = bert.match(["a cat", "", "a dog is riding a bike", "   "], ["a cat", "a cat", "a cat", "a cat"])
    assert found[0].recall == pytest.approx(1.0, abs=1e-5) and found[0].f1 == pytest.approx(1.0, abs=1e-5)
    assert found[1] == found[3] == Match(0.0, 0.0, 0.0)
    assert 0 < abs(found[2].recall) < 1
    assert bert.match([], []) == []


def test_white_space_is_no_word_where_a_tokenizer_takes_it_for_one(tiny_bert: str) -> None:
    """The published encoder's does: three spaces are a token there."""
    bert = BertScore(tiny_bert, 2, "cpu")
    bert.parts[1].backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    nothing, same = bert.match(["   ", " cat "], ["a cat", "cat"])
    assert nothing == Match(0.0, 0.0, 0.0)
    alone = bert.match(["cat"], ["cat"])[0]
    assert (same.precision, same.recall, same.f1) == pytest.approx((alone.precision, alone.recall, alone.f1), abs=1e-6)  # batches round otherwise


def test_a_match_does_not_depend_on_its_neighbours_and_a_very_long_answer_is_cut(tiny_bert: str) -> None:
    bert = BertScore(tiny_bert, 1, "cpu")
    long = "the cat is riding a bike " * 500
    together = bert.match(["a dog", long, "two cat"], ["a cat"] * 3)
    alone = [bert.match([each], ["a cat"])[0] for each in ("a dog", long, "two cat")]
    for a, b in zip(together, alone, strict=True):
        assert a.recall == pytest.approx(b.recall, abs=1e-4) and a.precision == pytest.approx(b.precision, abs=1e-4)


def test_the_layer_is_the_one_that_is_asked_for(tiny_bert: str) -> None:
    """Layer 0 is the embedding before anything is mixed, so other layers match otherwise."""
    found = [BertScore(tiny_bert, layer, "cpu").match(["a dog is the cat"], ["two cat riding"])[0].recall for layer in (0, 1, 2)]
    assert len({round(value, 4) for value in found}) == 3


# --- LLaVA on this machine


def test_llava_answers_each_image_by_itself(tiny_llava: str) -> None:
    """In one call, in another order, and alone: the same answers; longer questions pad the others."""
    vlm = Llava(tiny_llava, "cpu")
    images, questions = (
        [picture(i) for i in range(18)],
        ["what is the image ?" if i % 3 else "what is the cat in the image ? a dog ?" for i in range(18)],
    )
    together = vlm.answer(images, questions)
    assert len(together) == 18 and any(together)
    assert vlm.answer(images[::-1], questions[::-1])[::-1] == together
    assert [vlm.answer([images[i]], [questions[i]])[0] for i in range(2)] == together[:2]
    assert vlm.answer([], []) == []
    assert vlm.answer([picture(0)], ['Does this image show "an <image>"?'])
    vlm.free()
    assert vlm._parts is None


def test_llava_is_asked_in_its_own_words(tiny_llava: str) -> None:
    """What the processor gets is LLaVA 1.5's template, and only the answer comes back."""
    vlm = Llava(tiny_llava, "cpu")
    model, processor = vlm.parts
    seen: list[Any] = []

    class Spy:
        tokenizer = processor.tokenizer
        batch_decode = staticmethod(processor.batch_decode)

        def __call__(self, **inputs: Any) -> Any:
            seen.append(inputs["text"])
            return processor(**inputs)

    vlm._parts = (model, Spy())
    answer = vlm.answer([picture(0)], ["what is in the image ?"])[0]
    assert seen == [["USER: <image>\nwhat is in the image ? ASSISTANT:"]] and not answer.lower().startswith("what is in the image")
    assert len(answer.split()) <= ANSWER_TOKENS


def test_alignment_explains_itself(tiny_llava: str, tiny_bert: str) -> None:
    reward = Alignment(tiny_llava, tiny_bert, layer="1", baseline="0.5", device="cpu")
    asked = [Sample(i, "a cat", picture(i)) for i in range(3)]
    for sample, score in zip(asked, reward.score(asked), strict=True):
        answer = reward.vlm.answer([sample.image], [QUESTION])[0]
        match = reward.bert.match([answer], ["The image contains a cat"])[0]
        assert score.explanation["answer"] == answer and score.value == pytest.approx(match.recall, abs=1e-4)
        assert score.explanation["calibrated"] == pytest.approx((match.recall - 0.5) / 0.5, abs=1e-3)
        assert {"precision", "recall", "f1"} <= set(score.explanation)
    reward.free()


# --- strict questions


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a fox", [("What animal is in this image?", ("fox",))]),
        ("an ant riding a bike", [("What animal is in this image?", ("ant",)), ("What is the ant doing?", ("bike", "bicycle", "cycling"))]),
        ("three foxes", [("How many foxes are there in this image?", ("three", "3")), ("What animal is in this image?", ("fox", "foxes"))]),
        ("two mice", [("How many mice are there in this image?", ("two", "2")), ("What animal is in this image?", ("mouse", "mice"))]),
        ("two sheep", [("How many sheep are there in this image?", ("two", "2")), ("What animal is in this image?", ("sheep", "sheep"))]),
        ("one octopus", [("How many octopus are there in this image?", ("one", "1")), ("What animal is in this image?", ("octopus", "octopus"))]),
        ("A car.", [('Does this image show "a car"? Answer yes or no.', ("yes",))]),
        (
            "three apples",
            [
                ("How many apples are there in this image?", ("three", "3")),
                ('Does this image show "apples"? Answer yes or no.', ("yes",)),
            ],
        ),
        (
            "a robot playing chess",
            [('Does this image show "a robot"? Answer yes or no.', ("yes",)), ("What is the robot doing?", ("chess",))],
        ),
        ("a cat in the snow", [('Does this image show "a cat in the snow"? Answer yes or no.', ("yes",))]),
        ("Golden hour, 35mm", [('Does this image show "Golden hour, 35mm"? Answer yes or no.', ("yes",))]),
    ],
)
def test_the_questions_of_a_prompt(prompt: str, wanted: list[tuple[str, tuple[str, ...]]]) -> None:
    assert questions_of(prompt) == [Question(*each) for each in wanted]


def test_the_known_animals_are_those_of_the_prompt_sets_in_one_or_many() -> None:
    sets = prompt_sets()
    assert tuple(prompt.split(" ", 1)[1] for name in ("animals", "unseen_animals") for prompt in sets[name]) == ANIMALS
    assert all(singular(plural(animal)) == animal for animal in ANIMALS)
    assert all(singular(f"{animal}es") == animal for animal in ("fox", "octopus", "rhinoceros", "fish"))
    assert all(many not in (f"{one}s", f"{one}es") for many, one in IRREGULAR.items())


def test_the_pocket_s_questions_are_those_that_it_was_trained_on() -> None:
    """Of every caption of the world, things as well: recorded before animals were told from things."""
    told = [ask(caption, random.Random(7919 * seed + i)) for i, caption in enumerate([*captions(), NOTHING]) for seed in range(12)]
    assert hashlib.sha256(json.dumps(told).encode()).hexdigest() == "9eb64ac0b2c55478e7a574632a40493677a65b692aed315fa646253bb73a314b"
    assert ("What animal is in this image?", "a car") in {ask("a car", random.Random(seed)) for seed in range(60)}
    assert subject("a car") == "car" and subject("three foxes") == "fox" and subject("a cat at night") == "a cat at night"


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("There are three foxes.", ("three", "3"), True),
        ("13 foxes", ("three", "3"), False),
        ("Two Foxes", ("fox",), True),
        ("an elephant", ("ant",), False),
        ("two wolves", ("wolf",), True),
        ("", ("yes",), False),
        ("Yes, it does.", ("yes",), True),
    ],
)
def test_an_answer_is_right_when_it_says_a_whole_word(answer: str, accepted: tuple[str, ...], right: bool) -> None:
    assert says(answer, accepted) is right


class Parrot:
    """Answers from a table."""

    def __init__(self, table: dict[str, str]) -> None:
        self.table = table

    def answer(self, images: list[Image.Image], questions: list[str]) -> list[str]:
        return [self.table.get(question, "I do not know") for question in questions]

    def free(self) -> None:
        pass


def test_satisfaction_is_the_share_of_right_answers_of_each_prompt() -> None:
    reward = Satisfaction("http://localhost/v1#none")
    reward.vlm = Parrot({"How many foxes are there in this image?": "3", "What animal is in this image?": "a cat"})  # type: ignore[assignment]
    found = reward.score([Sample(0, "three foxes", picture(0)), Sample(1, "a cat", picture(1)), Sample(2, "a dog", picture(2))])
    assert [score.value for score in found] == [0.5, 1.0, 0.0]
    said = found[0].explanation["answers"]
    assert said == [
        dict(question="How many foxes are there in this image?", answer="3", right=True),
        dict(question="What animal is in this image?", answer="a cat", right=False),
    ]


# --- an endpoint

Answer = Callable[[int, dict[str, Any]], tuple[int, bytes] | None]


class Endpoint:
    """A chat endpoint whose answers a test decides: (status, body), or None to hang up. It keeps what it was asked."""

    def __init__(self, reply: Answer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.say(200, json.dumps(dict(data=[dict(id="the-model")])).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.asked)
                    outer.asked.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                if (said := reply(number, body)) is not None:
                    self.say(*said)

            def say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def said(text: str | None) -> tuple[int, bytes]:
    return 200, json.dumps(dict(choices=[dict(message=dict(content=text))])).encode()


@pytest.fixture
def endpoint() -> Iterator[Callable[[Answer], Endpoint]]:
    made: list[Endpoint] = []

    def make(reply: Answer) -> Endpoint:
        made.append(Endpoint(reply))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()


def colour_of(body: dict[str, Any]) -> str:
    """What an endpoint sees: the colour in the middle of the picture that it was sent."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return str(image.convert("RGB").getpixel((5, 5)))


def test_the_endpoint_gets_each_picture_and_question_and_the_key(endpoint: Callable[[Answer], Endpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come back in the order of the images, whichever was done first."""
    monkeypatch.setenv(KEY, "secret")

    def slow_first(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.2 if number == 0 else 0)
        return said(f"{colour_of(body)} {body['messages'][0]['content'][1]['text']}")

    there = endpoint(slow_first)
    images = [Image.new("RGB", (10, 10), (i, 0, 0)) for i in range(12)]
    vlm = open_vlm(there.address)
    assert vlm.answer(images, [f"question {i}" for i in range(12)]) == [f"({i}, 0, 0) question {i}" for i in range(12)]
    assert {body["model"] for body in there.asked} == {"the-model"} and set(there.keys) == {"Bearer secret"}
    assert all(body["temperature"] == 0 for body in there.asked)
    named = open_vlm(f"{there.address}#another")
    named.answer(images[:1], ["?"])
    assert there.asked[-1]["model"] == "another"


@pytest.mark.parametrize(
    ("host", "sent"), [("", True), ("127.0.0.1", True), ("127.0.0.1:PORT", True), ("localhost", False), ("127.0.0.1:1", False), ("0.0.1", False)]
)
def test_the_key_goes_to_its_own_host_alone(endpoint: Callable[[Answer], Endpoint], monkeypatch: pytest.MonkeyPatch, host: str, sent: bool) -> None:
    there = endpoint(lambda number, body: said("x"))
    monkeypatch.setenv(KEY, "secret")
    monkeypatch.setenv(HOST, host.replace("PORT", str(there.server.server_port)))
    Remote(there.address, "m").answer([picture(0)], ["?"])
    assert there.keys == ["Bearer secret" if sent else None]


def test_an_endpoint_that_wants_a_key_that_is_another_s_is_told(endpoint: Callable[[Answer], Endpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    monkeypatch.setenv(HOST, "example.org")
    with pytest.raises(RewardError, match=r"is for example\.org alone"):
        Remote(endpoint(lambda number, body: (401, b"no")).address, "m").answer([picture(0)], ["?"])


@pytest.mark.parametrize("key", ["secret\n", " secret", "secret\r\n"])
def test_white_space_around_the_key_is_none_of_it(endpoint: Callable[[Answer], Endpoint], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    there = endpoint(lambda number, body: said("x"))
    monkeypatch.setenv(KEY, key)
    Remote(there.address, "m").answer([picture(0)], ["?"])
    assert there.keys == ["Bearer secret"]


@pytest.mark.parametrize("key", ["sec\nret", "secr\u2026t"])
def test_a_key_that_cannot_be_sent_is_named_and_not_shown(endpoint: Callable[[Answer], Endpoint], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Defect: the message of the library, which the page shows and the log keeps, held the key."""
    there = endpoint(lambda number, body: said("x"))
    monkeypatch.setenv(KEY, key)
    with pytest.raises(RewardError, match=KEY) as found:
        Remote(there.address, "m").answer([picture(0)], ["?"])
    assert "sec" not in str(found.value) and not there.asked


@pytest.mark.parametrize("key", [" ", "\n"])
def test_a_key_of_white_space_is_none(endpoint: Callable[[Answer], Endpoint], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Defect: where it was refused, nobody knew whose it was, and the question ended with a KeyError."""
    monkeypatch.setenv(KEY, key)
    with pytest.raises(RewardError, match="Put the right one into"):
        Remote(endpoint(lambda number, body: (401, b"no")).address, "m").answer([picture(0)], ["?"])


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_key_that_an_endpoint_repeats_is_not_shown(endpoint: Callable[[Answer], Endpoint], monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    there = endpoint(lambda number, body: (status, json.dumps(dict(error="bad: Bearer sk-secret")).encode()))
    with pytest.raises(RewardError, match="bad: Bearer …") as found:
        Remote(there.address, "m", tries=1).answer([picture(0)], ["?"])
    assert "sk-secret" not in str(found.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://me:secret@there/v1#m",
        " https://me:secret@there/v1",
        "https://me:se/secret@there/v1",
        "https://me:secret#s@there",
        "me:secret@there/v1",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(RewardError, match="DDPO_VLM_KEY") as found:
        open_vlm(address)
    assert "secret" not in str(found.value)
    for fine in ("http://[::1]:8080/v1", "http://there:80/v1#a:b@c", "/models/a@b", "llava-hf/llava-1.5-7b-hf", ""):
        check_address(fine)
    assert open_vlm("http://there/v1?a=b@c#llava@q4").model == "llava@q4"  # elsewhere in it the sign means nothing


def test_an_endpoint_that_names_a_time_is_given_it() -> None:
    """In seconds, and no more than a minute; where it names none, or a date, naps grow as ever."""
    naps: list[float] = []

    def send(request: httpx.Request) -> httpx.Response:
        wish = ["20", "4000", "Wed, 21 Oct 2015 07:28:00 GMT", ""][len(naps)]
        return httpx.Response(429, headers={"Retry-After": wish}, text="later", request=request)

    with httpx.Client(transport=httpx.MockTransport(send)) as client, pytest.raises(RewardError, match="failed 4 times"):
        Remote("http://there/v1", "m", tries=4, nap=naps.append)._ask(client, "m", picture(0), "?")
    assert 20 <= naps[0] < 21 and 60 <= naps[1] < 61 and naps[2] < 7


@pytest.mark.parametrize("address", ["http://", "http://[::1/v1"])
def test_what_is_no_address_is_said_at_once(address: str) -> None:
    """And is nothing that a download would help."""
    naps: list[float] = []
    with pytest.raises(RewardError, match=r"no endpoint's address.*Give one such as") as found:
        Remote(address, "m", nap=naps.append).answer([picture(0)], ["?"])
    assert not naps and not unreachable(causes(found.value))


def test_a_photograph_is_made_smaller_and_a_sample_is_sent_as_it_is(endpoint: Callable[[Answer], Endpoint]) -> None:
    def size(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
            return said(str(image.size))

    images = [Image.new("RGB", (4000, 3000)), Image.new("RGB", (1024, 1024))]
    assert Remote(endpoint(size).address, "m").answer(images, ["?", "?"]) == ["(2048, 1536)", "(1024, 1024)"]
    assert images[0].size == (4000, 3000)


def test_an_answer_in_parts_is_one_and_an_error_with_status_200_is_told(endpoint: Callable[[Answer], Endpoint]) -> None:
    parts = dict(choices=[dict(message=dict(content=[dict(type="text", text="a "), dict(type="text", text=None), "cat"]))])
    assert Remote(endpoint(lambda number, body: (200, json.dumps(parts).encode())).address, "m").answer([picture(0)], ["?"]) == ["a cat"]
    wrong = json.dumps(dict(error=dict(message="the model has crashed"))).encode()
    with pytest.raises(RewardError, match="the model has crashed"):
        Remote(endpoint(lambda number, body: (200, wrong)).address, "m", tries=2, nap=lambda seconds: None).answer([picture(0)], ["?"])


@pytest.mark.parametrize("trouble", ["500", "429", "garbage", "no choices", "hang up", "slow"])
def test_an_endpoint_that_recovers_is_asked_again(endpoint: Callable[[Answer], Endpoint], trouble: str) -> None:
    """Twice it misbehaves, then it answers; the naps grow."""

    def reply(number: int, body: dict[str, Any]) -> tuple[int, bytes] | None:
        if number >= 2:
            return said("a cat")
        if trouble == "slow":
            time.sleep(0.6)
            return None
        return {"500": (500, b"oops"), "429": (429, b"later"), "garbage": (200, b"<html>"), "no choices": (200, b"{}"), "hang up": None}[trouble]

    naps: list[float] = []
    vlm = Remote(endpoint(reply).address, "m", workers=1, seconds=0.3, nap=naps.append)
    assert vlm.answer([picture(0)], ["?"]) == ["a cat"]
    assert len(naps) == 2 and 0.5 <= naps[0] <= 1.5 and 1 <= naps[1] <= 3


@pytest.mark.parametrize(
    ("status", "wanted", "asked"),
    [(500, "failed 3 times; at last, it answers 500: oops.*try again", 3), (401, f"refuses the key.*{KEY}", 1), (404, "404", 1)],
)
def test_an_endpoint_that_stays_broken_is_given_up_with_a_reason(
    endpoint: Callable[[Answer], Endpoint], status: int, wanted: str, asked: int
) -> None:
    there = endpoint(lambda number, body: (status, b"oops"))
    with pytest.raises(RewardError, match=wanted):
        Remote(there.address, "m", tries=3, nap=lambda seconds: None).answer([picture(0)], ["?"])
    assert len(there.asked) == asked


def test_what_one_question_fails_of_for_good_is_what_is_told(endpoint: Callable[[Answer], Endpoint]) -> None:
    """The first question meets a busy endpoint again and again; the second one's key is refused, and the first does not go on trying."""

    def reply(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        return (500, b"busy") if body["messages"][0]["content"][1]["text"] == "busy" else (401, b"no")

    vlm = Remote(endpoint(reply).address, "m", workers=2, tries=1000, nap=lambda seconds: time.sleep(0.01))
    with pytest.raises(RewardError, match="refuses the key"):
        vlm.answer([picture(0), picture(1)], ["busy", "refused"])


def test_nobody_at_the_address_is_said(endpoint: Callable[[Answer], Endpoint]) -> None:
    there = endpoint(lambda number, body: said("x"))
    there.server.shutdown()
    there.server.server_close()
    with pytest.raises(RewardError, match="ConnectError"):
        Remote(there.address, "m", tries=2, nap=lambda seconds: None).answer([picture(0)], ["?"])


def test_an_empty_answer_is_an_answer(endpoint: Callable[[Answer], Endpoint]) -> None:
    assert Remote(endpoint(lambda number, body: said(None)).address, "m").answer([picture(0)], ["?"]) == [""]


def test_a_llava_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"LLaVA: .* cannot be loaded"):
        Llava(str(tmp_path)).answer([picture(0)], ["?"])
