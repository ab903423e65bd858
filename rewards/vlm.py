"""Models that look at an image and answer a question: LLaVA on this machine, or any OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import io
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rewards.base import RewardError, check_address
from rewards.networks import Network, loaded

KEY = "DDPO_VLM_KEY"
"""The environment variable that holds a remote endpoint's key."""
HOST = "DDPO_VLM_HOST"
"""The environment variable that names the one host that gets the key, where people may name other endpoints; without it, every endpoint does."""
ANSWER_TOKENS = 64
"""Length of an answer at most."""
LARGEST_SIDE = 2048
"""Pixels of a picture's longer side that an endpoint gets at most: models look at fewer, and a photograph would be a request of tens of MB."""
LONGEST_NAP = 60.0
"""Seconds before a question is asked again, at most, whatever the endpoint wishes."""


class Vlm(Protocol):
    """Answers questions about images."""

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """One answer for each image and its question, in order.

        Raises:
            RewardError: no answer can be had.
        """
        ...

    def free(self) -> None:
        """Give the memory back."""
        ...


def open_vlm(name: str, device: str = "auto", precision: str = "auto") -> Vlm:
    """A folder or a name on the Hub of a LLaVA, or ``http://host/v1#model`` of an endpoint.

    Raises:
        RewardError: the endpoint's address holds a password.
    """
    check_address(name)
    if name.startswith(("http://", "https://")):
        address, _, model = name.partition("#")
        return Remote(address, model)
    return Llava(name, device, precision)


class Llava(Network[tuple[Any, Any]]):
    """LLaVA 1.5 (Liu et al. 2023, arXiv 2310.03744) through transformers, greedy."""

    TEMPLATE = "USER: <image>\n{question} ASSISTANT:"
    BATCH = 16

    def __init__(self, name: str, device: str = "auto", precision: str = "auto") -> None:
        """
        Args:
            precision: ``auto``, ``fp32``, ``bf16``, ``fp16``, or ``4bit`` (needs bitsandbytes and an NVIDIA GPU).
        """
        super().__init__(name, device, precision)

    def load(self) -> tuple[Any, Any]:
        """Model and processor."""

        def read() -> tuple[Any, Any]:
            local = Path(self.name).is_dir()
            processor = AutoProcessor.from_pretrained(self.name, local_files_only=local)
            processor.tokenizer.padding_side = "left"
            processor.image_processor = CLIPImageProcessorPil.from_pretrained(self.name, local_files_only=local)  # the same on every machine
            settings: dict[str, Any] = dict(use_safetensors=True, local_files_only=local)
            if self.precision == "4bit":
                from transformers import BitsAndBytesConfig

                quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16)
                settings |= dict(quantization_config=quantised, device_map=self.device)
                return LlavaForConditionalGeneration.from_pretrained(self.name, **settings).requires_grad_(False).eval(), processor
            model = LlavaForConditionalGeneration.from_pretrained(self.name, dtype=self.dtype, **settings)
            return model.requires_grad_(False).eval().to(self.device), processor

        return loaded("LLaVA", self.name, read)

    @torch.no_grad()
    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        model, processor = self.parts
        if len(images) != len(questions):
            raise ValueError(f"There are {len(images)} images and {len(questions)} questions.")
        asked = [question.replace("<image>", "image") for question in questions]  # a prompt may hold the word that stands for the picture
        answers: list[str] = []
        for start in range(0, len(images), self.BATCH):
            part = slice(start, start + self.BATCH)
            inputs = processor(
                images=[image.convert("RGB") for image in images[part]],
                text=[self.TEMPLATE.format(question=question) for question in asked[part]], padding=True, return_tensors="pt",
            ).to(self.device, model.dtype)  # fmt: skip
            ids = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
            answers += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]


class Remote:
    """An OpenAI-compatible chat endpoint (vLLM, Ollama, llama.cpp): images go as data URLs, several questions at once, failures are tried again."""

    def __init__(self, address: str, model: str, workers: int = 8, seconds: float = 60.0, tries: int = 5, nap: Callable[[float], None] = time.sleep):
        """
        Args:
            address: up to and with ``/v1``.
            model: the endpoint's name of the model; empty asks for its first.
            seconds: for one answer.
            tries: of one question, with longer and longer naps between.
        """
        self.given, self.address, self.model = address, address.rstrip("/"), model
        self.workers, self.seconds, self.tries, self.nap = workers, seconds, tries, nap
        self._failure: RewardError | None = None

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        headers = {"Authorization": f"Bearer {key}"} if (key := self._key()) else {}
        self._failure = None
        with httpx.Client(timeout=self.seconds, headers=headers) as client, ThreadPoolExecutor(self.workers) as pool:
            model = self.model or self._first_model(client)
            return list(pool.map(lambda pair: self._ask(client, model, *pair), zip(images, questions, strict=True)))

    def free(self) -> None:
        pass

    def _key(self) -> str:
        """The key for this endpoint; empty where there is none, or where it is for another host.

        Raises:
            RewardError: what should be one cannot be sent.
        """
        key, host = os.environ.get(KEY, "").strip(), os.environ.get(HOST, "").strip().lower()
        if not (key.isascii() and key.isprintable()):  # said here, since the libraries would show the key
            raise RewardError(f"The key in {KEY} has line breaks or letters that no key has. Put the right one into it, and start again.")
        if not host:
            return key
        try:
            url = httpx.URL(f"{self.address}/models")
        except httpx.InvalidURL:
            return ""
        return key if host in (url.host.lower(), url.netloc.decode().lower()) else ""

    def _first_model(self, client: httpx.Client) -> str:
        return self._patiently(lambda: str(self._json(client.get(f"{self.address}/models"))["data"][0]["id"]))

    def _ask(self, client: httpx.Client, model: str, image: Image.Image, question: str) -> str:
        file, seen = io.BytesIO(), image.convert("RGB")
        seen.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        seen.save(file, format="PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [dict(type="image_url", image_url=dict(url=url)), dict(type="text", text=question)]
        body = dict(model=model, messages=[dict(role="user", content=content)], max_tokens=ANSWER_TOKENS, temperature=0)

        def ask() -> str:
            found = self._json(client.post(f"{self.address}/chat/completions", json=body))["choices"][0]["message"]["content"]
            if isinstance(found, list):  # in parts
                found = "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in found)
            return str(found or "").strip()

        return self._patiently(ask)

    @staticmethod
    def _json(response: httpx.Response) -> Any:
        """What an endpoint answers; some say what went wrong with status 200."""
        response.raise_for_status()
        found = response.json()
        if isinstance(found, dict) and found.get("error"):
            raise ValueError(str(found["error"]))
        return found

    def _patiently(self, ask: Callable[[], str]) -> str:
        """Ask again where that may help. What one question has failed of for good, all others that are under way fail of too.

        Raises:
            RewardError: it did not help, or cannot.
        """
        for attempt in range(1, self.tries + 1):
            wished, no_address = 0.0, ""
            if self._failure is not None:
                raise self._failure
            try:
                return ask()
            except httpx.HTTPStatusError as error:
                status, problem = error.response.status_code, f"it answers {error.response.status_code}: {_quoted(error.response.text)}"
                if status in (401, 403):
                    wanted = f"Put the right one into {KEY}, and start again."
                    if os.environ.get(KEY, "").strip() and not self._key():
                        wanted = f"It was asked without one: the key in {KEY} is for {os.environ[HOST]} alone, which {HOST} says."
                    raise self._fail(f"The endpoint {self.address} refuses the key ({status}). {wanted}") from error
                if status < 500 and status not in (408, 409, 429):
                    raise self._fail(f"The endpoint {self.address} refuses the question; {problem}") from error
                wished = _seconds(error.response.headers.get("Retry-After", ""))
            except httpx.TimeoutException:
                problem = f"no answer within {self.seconds:g} s"
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                no_address = str(error)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                problem = f"its answer is no chat completion ({type(error).__name__}: {_quoted(str(error))})"
            if no_address:  # out of the handler: nothing that was not reached, and no download helps
                raise self._fail(f"{self.given} is no endpoint's address ({no_address}). Give one such as http://localhost:11434/v1#model.")
            if attempt < self.tries:
                self.nap(max(wished + random.random(), min(30.0, 0.5 * 2**attempt) * (0.5 + random.random())))  # not all at one instant
        raise self._fail(f"The endpoint {self.address} failed {self.tries} times; at last, {problem}. Mend it, then try again.")

    def _fail(self, message: str) -> RewardError:
        """The reason for giving up, for all questions."""
        self._failure = RewardError(message)
        return self._failure


def _quoted(text: str) -> str:
    """What an endpoint says, in short, and without the key where it repeats that."""
    key = os.environ.get(KEY, "").strip()
    return (text.replace(key, "…") if key else text)[:200]


def _seconds(wish: str) -> float:
    """How long an endpoint wishes that nobody asks it again; 0 where it names no seconds."""
    return min(float(wish), LONGEST_NAP) if wish.isascii() and wish.isdigit() else 0.0
