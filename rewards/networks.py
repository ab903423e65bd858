"""What rewards with networks share: where they run, how they are loaded, and what to do when they cannot be."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging

from rewards import REWARDS
from rewards.base import RewardError

Found = TypeVar("Found")

BATCH = 32
"""Images that go through a network at once."""


def pick_device(setting: str) -> torch.device:
    """The device of a setting; ``auto`` takes a GPU when there is one."""
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    if setting == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())  # by number: another thread would take the first
    return torch.device(setting)


def pick_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The type of a setting; ``auto`` is float16 on GPUs and float32 elsewhere, and so is what has no 4 bits."""
    if setting in ("auto", "4bit"):
        return torch.float16 if device.type == "cuda" else torch.float32
    return dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)[setting]


def loaded(what: str, name: str, load: Callable[[], Found]) -> Found:
    """What ``load`` gives of a network from a folder or the Hub.

    Raises:
        RewardError: it cannot be had; the message says what to do.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # transformers would ask the Hub for converted files, even of a cached model
    try:
        return load()
    except (OSError, ValueError, ImportError, SafetensorError, pickle.UnpicklingError) as error:
        raise RewardError(f"{what}: {remedy(name, error)}") from error


def remedy(name: str, error: BaseException) -> str:
    """What went wrong, from the error and what it came from, and what to do."""
    chain = causes(error)
    if any(isinstance(each, GatedRepoError) for each in chain):
        return f"{name} is gated. Ask for access on its page on the Hub, then `hf auth login`."
    if any(isinstance(each, RepositoryNotFoundError) for each in chain):
        return f"there is no {name} on the Hub, or it is private: `hf auth login` with an account that may read it."
    if unreachable(chain):
        instead = "; or choose reward_models pocket" if has_pocket(name) else ""
        return (
            f"{name} is not in {constants.HF_HUB_CACHE}, and the Hub cannot be reached. "
            f"Run `hf download {name}` on a machine with network, and copy that folder here{instead}."
        )
    return f"{name} cannot be loaded ({type(error).__name__}: {error})."


def has_pocket(name: str) -> bool:
    """Whether a network is one of a publication in whose place the pocket world has its own."""
    return any(name in card.published.values() and card.pocket for card in REWARDS.values())


def causes(error: BaseException | None) -> list[BaseException]:
    """The error and what caused it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def unreachable(chain: Sequence[BaseException]) -> bool:
    """Whether something is not in the cache and the Hub could not be asked, by an error and its causes."""
    kinds = (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError, ConnectionError)
    return any(isinstance(each, kinds) or "connect to" in str(each) for each in chain)


class Network(Generic[Found]):
    """A network and what belongs to it, loaded when it is first used: what CLIP, BERTScore and LLaVA share. ``load`` says how."""

    def __init__(self, name: str, device: str, precision: str) -> None:
        """``name`` is a folder or a name on the Hub."""
        self.name, self.precision = name, precision
        self.device = pick_device(device)
        self.dtype = pick_dtype(precision, self.device)
        self._parts: Found | None = None

    def load(self) -> Found:
        """All parts, from the disk or the Hub.

        Raises:
            RewardError: they cannot be had.
        """
        raise NotImplementedError

    @property
    def parts(self) -> Found:
        """All parts; errors as of ``load``."""
        if self._parts is None:
            self._parts = self.load()
        return self._parts

    def free(self) -> None:
        """Give the memory back; the next use loads again."""
        self._parts = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


PROCESSORS = (CLIPTokenizer, CLIPImageProcessorPil)


class Clip(Network[tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]]):
    """The two towers of a CLIP model (Radford et al. 2021, arXiv 2103.00020), loaded when they are first used."""

    def __init__(self, name: str, processor: str = "", device: str = "auto", precision: str = "auto") -> None:
        """
        Args:
            name: a folder or a name on the Hub.
            processor: where the tokenizer and the pictures' sizes are from; by default the same.
        """
        super().__init__(name, device, precision)
        self.processor = processor or name

    def load(self) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
        """Model, tokenizer and image processor. The latter is Pillow's on every machine, so that a score does not depend on what is installed."""

        def network() -> CLIPModel:
            model = CLIPModel.from_pretrained(self.name, use_safetensors=True, dtype=self.dtype, local_files_only=Path(self.name).is_dir())
            return model.requires_grad_(False).eval().to(self.device)

        def processors() -> tuple[CLIPTokenizer, CLIPImageProcessorPil]:
            found = [cls.from_pretrained(self.processor, local_files_only=Path(self.processor).is_dir()) for cls in PROCESSORS]
            return found[0], found[1]

        return (loaded("CLIP", self.name, network), *loaded("CLIP's processors", self.processor, processors))

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors of images, (n, d), float32, on the CPU."""
        model = self.parts[0]
        rows = [torch.nn.functional.normalize(model.visual_projection(seen.pooler_output).float(), dim=1).cpu() for seen in self._look(images)]
        return torch.cat(rows) if rows else torch.zeros(0, model.config.projection_dim)

    @torch.no_grad()
    def states(self, images: Sequence[Image.Image]) -> Tensor:
        """The image tower's pooled state beside the mean of its patches' states, (n, 2 w), float32, on the CPU: what was seen, not only its name."""
        rows = [torch.cat([seen.pooler_output, seen.last_hidden_state[:, 1:].mean(1)], 1).float().cpu() for seen in self._look(images)]
        return torch.cat(rows) if rows else torch.zeros(0, 2 * self.parts[0].config.vision_config.hidden_size)

    def _look(self, images: Sequence[Image.Image]) -> Iterator[Any]:
        """What the image tower gives of a batch after the other."""
        model, _, processor = self.parts
        for start in range(0, len(images), BATCH):
            pixels = processor([image.convert("RGB") for image in images[start : start + BATCH]], return_tensors="pt").pixel_values
            yield model.vision_model(pixel_values=pixels.to(self.device, self.dtype))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, (n, d), float32, on the CPU; what is too long is cut off."""
        model, tokenizer, _ = self.parts
        longest = model.config.text_config.max_position_embeddings
        rows = []
        for start in range(0, len(texts), BATCH):
            ids = tokenizer(list(texts[start : start + BATCH]), padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
            pooled = model.text_model(ids.input_ids.to(self.device), attention_mask=ids.attention_mask.to(self.device)).pooler_output
            rows.append(torch.nn.functional.normalize(model.text_projection(pooled).float(), dim=1).cpu())
        return torch.cat(rows) if rows else torch.zeros(0, model.config.projection_dim)

    @property
    def scale(self) -> float:
        """What the model multiplies cosines with."""
        return float(self.parts[0].logit_scale.float().exp())
