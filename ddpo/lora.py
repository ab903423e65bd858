"""LoRA files in the layouts that other programs read. Imports no torch.

A LoRA moves a layer's weight from W to W + (alpha / rank) B A (Hu et al. 2022, arXiv 2106.09685); diffusers calls A and B ``lora_A`` and ``lora_B``,
kohya's sd-scripts, A1111 and ComfyUI ``lora_down`` and ``lora_up``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ddpo.config import ConfigError, RunConfig
from ddpo.source import model_source

METADATA = "lora_adapter_metadata"

Array = np.ndarray[Any, Any]


class LoraError(RuntimeError):
    """This is no LoRA that can be used; the message says why and what to do."""


@dataclass(frozen=True)
class Lora:
    """A denoiser's adapter."""

    layers: Mapping[str, tuple[Array, Array]]
    """A (rank, in, ...) and B (out, rank, ...) by layer, as diffusers names the denoiser's layers."""
    alpha: float
    settings: Mapping[str, Any]
    """The adapter's configuration in peft's words, with the prefix ``unet.``."""

    @property
    def rank(self) -> int:
        return len(next(iter(self.layers.values()))[0])

    @property
    def text_width(self) -> int:
        """The width of the text that the denoiser attends to."""
        return next(int(down.shape[1]) for layer, (down, _) in self.layers.items() if layer.endswith("attn2.to_k"))


def read_lora(file: Path) -> Lora:
    """The LoRA that a checkpoint of a run holds.

    Raises:
        LoraError: it is missing, damaged, or not as the studio writes it.
    """
    found: dict[str, dict[str, Array]] = {}
    try:
        with safe_open(file, framework="numpy") as stored:
            settings = json.loads(stored.metadata()[METADATA])
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                layer, side = re.fullmatch(r"unet\.(.+)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
                found.setdefault(layer, {})[side] = stored.get_tensor(name)
        return Lora({layer: (sides["A"], sides["B"]) for layer, sides in found.items()}, float(settings["unet.lora_alpha"]), settings)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoraError(f"{file} cannot be read as a LoRA of the studio ({error}). Copy it back from a backup, or take another round.") from error


def write_diffusers(lora: Lora, file: Path, strength: float = 1.0, dtype: type = np.float32) -> None:
    """A file for ``pipeline.load_lora_weights``. What ``alpha`` and ``strength`` do is multiplied into B, so that alpha is the rank: programs that
    overlook the file's metadata take alpha for the rank anyway, and get the same images."""
    scale = lora.alpha / lora.rank * strength
    tensors: dict[str, Array] = {}
    for layer, (down, up) in lora.layers.items():
        tensors |= {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up * np.float32(scale)}
    settings = {**lora.settings, "unet.lora_alpha": lora.rank}
    _write(tensors, file, dtype, {"format": "pt", METADATA: json.dumps(settings, indent=2, sort_keys=True)})


def write_kohya(lora: Lora, file: Path, family: str, metadata: Mapping[str, str], strength: float = 1.0, dtype: type = np.float32) -> None:
    """A file for A1111, Forge, ComfyUI and kohya's scripts, of a model family ``sd1``, ``sd2`` or ``xl``: beside each layer's two matrices its
    alpha, which all of them divide by the rank."""
    alpha = lora.alpha * strength
    tensors: dict[str, Array] = {}
    for key, (down, up) in zip(kohya_names(lora, family), lora.layers.values(), strict=True):
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": np.array(alpha, np.float32)}
    version, architecture = VERSIONS[family]
    told = dict(
        ss_network_module="networks.lora", ss_network_dim=str(lora.rank), ss_network_alpha=f"{alpha:g}", ss_base_model_version=version,
        ss_v2=str(family == "sd2"),
    ) | {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": f"{architecture}/lora"}  # fmt: skip
    _write(tensors, file, dtype, {"format": "pt", **told, **metadata})


VERSIONS = {
    "sd1": ("sd_v1", "stable-diffusion-v1"),
    "sd2": ("sd_v2", "stable-diffusion-v2-768-v"),
    "xl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
"""What kohya's scripts and the model specification call a family. A1111 lists a LoRA with models of its family only, by these and by ``ss_v2``."""


def kohya_names(lora: Lora, family: str) -> list[str]:
    """The layers as kohya's scripts name them: of Stable Diffusion 1.x and 2.x by diffusers' names, of XL by those of the original layout."""
    depth = max(int(found[1]) for layer in lora.layers if (found := re.match(r"up_blocks\.\d+\.\w+\.(\d+)", layer)))
    layers = [original_name(layer, depth) if family == "xl" else layer for layer in lora.layers]
    return [f"lora_unet_{layer.replace('.', '_')}" for layer in layers]


def original_name(layer: str, depth: int) -> str:
    """A layer of a denoiser in the original layout, whose blocks are counted through; ``depth`` is diffusers' ``layers_per_block``.

    There, a block of the way down is ``depth`` layers and what halves the picture, after the first convolution; one of the way up is ``depth`` + 1.
    """
    side, block, kind, at, rest = re.fullmatch(r"(down|up|mid)_blocks?(?:\.(\d+))?\.(resnets|attentions)\.(\d+)\.(.+)", layer).groups()  # type: ignore[union-attr]
    inside = int(kind == "attentions")
    if side == "mid":
        place = f"middle_block.{2 * int(at) + inside}"
    else:
        number = int(block) * (depth + 1) + int(at)
        place = f"input_blocks.{1 + number}.{inside}" if side == "down" else f"output_blocks.{number}.{inside}"
    return f"{place}.{rest if inside else RESNET[rest]}"


RESNET = dict(conv1="in_layers.2", conv2="out_layers.3", time_emb_proj="emb_layers.1", conv_shortcut="skip_connection")


def model_family(config: RunConfig, lora: Lora) -> str:
    """``sd1``, ``sd2`` or ``xl``: by the class of a pipeline in a folder that is still there, or else by the width of its text."""
    with contextlib.suppress(ConfigError):
        if model_source(config).pipeline == "StableDiffusionXLPipeline":
            return "xl"
    return {1024: "sd2", 2048: "xl"}.get(lora.text_width, "sd1")


def _write(tensors: Mapping[str, Array], file: Path, dtype: type, metadata: dict[str, str]) -> None:
    save_file({name: tensor if tensor.ndim == 0 else np.ascontiguousarray(tensor, dtype) for name, tensor in tensors.items()}, file, metadata)
