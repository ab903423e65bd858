"""The denoiser as a policy: what the trainer needs of a model, and diffusers' Stable Diffusion 1.x as one.

A policy turns prompts into conditions, a latent and a condition into a :class:`Gaussian` over the next latent, and a clean latent into a picture.
Its trainable part is a LoRA adapter in float32 (Hu et al. 2022, arXiv 2106.09685); the base model is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ddpo.config import ConfigError, RunConfig
from ddpo.diffusion import Gaussian, Schedule

ADAPTER_LAYERS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "all": [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "proj_in",
        "proj_out",
        "ff.net.0.proj",
        "ff.net.2",
        "conv1",
        "conv2",
        "conv_shortcut",
        "time_emb_proj",
    ],
}
"""The denoiser's layers that get an adapter, by the setting ``lora_targets``."""


class Policy(Protocol):
    """What the trainer needs of a model. Latents are (n, channels, height, width), float32."""

    schedule: Schedule
    latent_shape: tuple[int, int, int]
    device: torch.device

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Conditions (n, ...) of prompts."""
        ...

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """The model's (guided) output for latents at training timesteps (n,), given conditions; float32, shaped like ``x_t``."""
        ...

    def step(self, x_t: Tensor, index: Tensor, condition: Tensor) -> Gaussian:
        """The distribution of the next latent at step ``index`` (n,) of the schedule, given latents and conditions."""
        ...

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of clean latents."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable weights by name, float32."""
        ...

    def base(self) -> AbstractContextManager[None]:
        """Within this context the policy is the base model."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the trained part as a file that people can take away."""
        ...


def pick_device(setting: str) -> torch.device:
    """The device of the setting ``device``; "auto" takes a GPU when there is one.

    Raises:
        ConfigError: this machine, or this build of PyTorch, has no such device.
    """
    if setting != "auto":
        device = torch.device(setting)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device is {setting}, but PyTorch {torch.__version__} sees {torch.cuda.device_count()} such GPUs. Choose auto or cpu.")
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise ConfigError(f"device is mps, but PyTorch {torch.__version__} sees no Apple GPU. Choose auto or cpu.")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(setting: str, device: torch.device) -> torch.dtype | None:
    """The type that the setting ``precision`` casts the denoiser to, or None for float32.

    "auto" takes bfloat16 where it is fast: on GPUs and CPUs with instructions for it.
    """
    if setting != "auto":
        return torch.bfloat16 if setting == "bf16" else None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else None


class StableDiffusionPolicy:
    """A Stable Diffusion 1.x pipeline with a LoRA adapter, sampled by DDIM with guidance.

    The prediction is the *guided* one in sampling and in training, ε_u + w (ε_c - ε_u), with gradient through both branches: trained on the
    conditional branch alone, samples deteriorate from the second round on (Black et al. 2023, App. E.1). The networks stay in
    eval mode throughout, so that sampling and training see the same function.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, config: RunConfig) -> None:
        self.pipeline, self.guidance = pipeline, config.guidance
        self.device = pick_device(config.device)
        self.schedule = Schedule.ddim(DDIMScheduler.from_config(pipeline.scheduler.config), config.steps, config.eta)
        self.unet, self.vae, self.text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
        side = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, side, side)
        for network in (self.unet, self.vae, self.text_encoder):
            network.requires_grad_(False).eval().to(self.device)
        self.autocast = pick_dtype(config.precision, self.device)
        if self.autocast:
            self.unet.to(self.autocast)
        if self.device.type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())  # on CPUs the plain product beats the fused kernel, whose backward is slow
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            layers = ADAPTER_LAYERS[config.lora_targets]
            self.unet.add_adapter(LoraConfig(r=config.lora_rank, target_modules=layers, lora_alpha=config.lora_alpha, init_lora_weights="gaussian"))
        self.unet.eval()  # the adapter's new layers too
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
        self._conditions: dict[str, Tensor] = {}

    @classmethod
    def load(cls, config: RunConfig) -> StableDiffusionPolicy:
        """Load the model that the configuration names; never from pickles.

        Raises:
            ConfigError: the folder is missing or is no such model.
        """
        for library in (diffusers_logging, transformers_logging):
            library.set_verbosity_error()
            library.disable_progress_bar()
        pipeline = StableDiffusionPipeline.from_pretrained(
            config.model_folder, safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False, use_safetensors=True
        )
        return cls(pipeline, config)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text states (n, 2, tokens, width): those of the empty prompt and those of the prompt. Computed once a prompt."""
        if missing := [p for p in dict.fromkeys(["", *prompts]) if p not in self._conditions]:
            tokenizer = self.pipeline.tokenizer
            ids = tokenizer(missing, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt").input_ids
            for prompt, one in zip(missing, ids, strict=True):  # one by one: a prompt's states do not depend on its neighbours
                self._conditions[prompt] = self.text_encoder(one[None].to(self.device))[0][0].float()
        return torch.stack([torch.stack([self._conditions[""], self._conditions[p]]) for p in prompts])

    def step(self, x_t: Tensor, index: Tensor, condition: Tensor) -> Gaussian:
        return self.schedule.step(x_t, index, self.predict(x_t, self.schedule.timesteps.to(self.device)[index], condition))

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """The guided prediction, float32."""
        if self.guidance == 1.0:
            return self._denoise(x_t, timestep, condition[:, 1])
        states = torch.cat([condition[:, 0], condition[:, 1]])
        unconditional, conditional = self._denoise(torch.cat([x_t, x_t]), torch.cat([timestep, timestep]), states).chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _denoise(self, x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output: Tensor = self.unet(x_t, timestep, encoder_hidden_states=states, return_dict=False)[0]
        return output.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        pixels = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(np.ascontiguousarray(p)) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    @contextmanager
    def base(self) -> Iterator[None]:
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()

    def save_adapter(self, folder: Path) -> None:
        """``pytorch_lora_weights.safetensors``, as ``pipeline.load_lora_weights`` of plain diffusers reads it.

        The names are peft's own (lora_A, lora_B) for all layers: diffusers' older names exist for attention only, and of a file that mixes both
        the loader drops the attention.
        """
        layers = get_peft_model_state_dict(self.unet)
        metadata = {"unet": self.unet.peft_config["default"]}
        self.pipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=_plain(metadata["unet"]))


def _plain(config: LoraConfig) -> dict[str, object]:
    """The adapter's configuration as JSON can hold it."""
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
