"""The denoiser as a policy: what the trainer needs of a model, and diffusers' Stable Diffusion 1.x, 2.x and XL as one.

A policy turns prompts into conditions, a latent and a condition into a :class:`Gaussian` over the next latent, and a clean latent into a picture.
Its trainable part, a LoRA adapter (Hu et al. 2022, arXiv 2106.09685) or the whole denoiser, is float32 whatever the arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor, nn

from ddpo.config import ConfigError, RunConfig
from ddpo.diffusion import Gaussian, Schedule
from ddpo.models import Pipeline, ddim, encode_prompt, load_pipeline
from ddpo.source import init_lora_file

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
    """What the trainer needs of a model. Latents are (n, channels, height, width), float32.

    Conditions are whatever ``encode`` gives for n prompts; the trainer only picks some of them, ``conditions[index]`` with an index (m,) on the CPU.
    """

    schedule: Schedule
    latent_shape: tuple[int, int, int]
    device: torch.device
    autocast: torch.dtype | None
    """The type of the denoiser's arithmetic, or None for float32."""
    fingerprint: str
    """Tells the frozen base model from any other."""

    def encode(self, prompts: Sequence[str], guided: bool = True) -> Any:
        """Conditions of n prompts: to be guided by, or the prompt's prediction alone."""
        ...

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        """The model's (guided) output for latents at training timesteps (n,), given conditions; float32, shaped like ``x_t``."""
        ...

    def step(self, x_t: Tensor, index: Tensor, condition: Any) -> Gaussian:
        """The distribution of the next latent at step ``index`` (n,) of the schedule, given latents and conditions; and what training moves, where
        that is another one."""
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

    def exact(self) -> AbstractContextManager[None]:
        """Within this context the denoiser's arithmetic is float32."""
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
        return dict(bf16=torch.bfloat16, fp16=torch.float16).get(setting)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else None


def precision_of(policy: Policy) -> str:
    """The name of the type that a policy is computed in."""
    return str(policy.autocast or torch.float32).removeprefix("torch.")


def arithmetic_of(policy: Policy) -> str:
    """What a policy is computed by: the kind of processor, and the type. Elsewhere the same weights round otherwise."""
    device = policy.device
    kind = {"cuda": torch.cuda.get_device_name, "cpu": lambda _: torch.backends.cpu.get_cpu_capability()}.get(device.type, lambda _: device.type)
    return f"{kind(device)}, {precision_of(policy)}"


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told of n prompts: each prompt's text beside the empty one's, at 0 the empty one's."""

    states: Tensor
    """Text states (n, 2, tokens, width), float32."""
    pooled: Tensor | None
    """XL's pooled embeddings (n, 2, width), float32."""
    guidance: float
    """The weight of guidance; 1 is the prompt's prediction alone."""

    def __getitem__(self, index: Tensor) -> Condition:
        index = index.to(self.states.device)
        return Condition(self.states[index], None if self.pooled is None else self.pooled[index], self.guidance)

    def branches(self, *sides: int) -> tuple[Tensor, Tensor | None]:
        """States and pooled embeddings of the sides (0 the empty prompt's, 1 the prompt's), one side's after the other's."""
        pooled = None if self.pooled is None else torch.cat([self.pooled[:, side] for side in sides])
        return torch.cat([self.states[:, side] for side in sides]), pooled


class StableDiffusionPolicy:
    """A Stable Diffusion pipeline (1.x, 2.x or XL), sampled by DDIM with guidance, that is trained by a LoRA adapter or as a whole.

    Images are sampled by the *guided* prediction, ε_u + w (ε_c - ε_u). With ``guidance_in_training`` it is also what is trained, with gradient
    through both branches (Black et al. 2023, App. E.1); without, what is trained is the prompt's prediction ε_c alone, on the same images. The
    networks stay in eval mode throughout, so that sampling and training see the same function.
    """

    def __init__(self, pipeline: Pipeline, config: RunConfig) -> None:
        self.pipeline, self.guidance, self.trains_guided = pipeline, config.guidance, config.guidance_in_training
        self.device = pick_device(config.device)
        self.schedule = Schedule.ddim(ddim(pipeline), config.steps, config.eta)
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.encoders = [e for e in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)) if e is not None]
        self.latent_shape = latent_shape(pipeline, config.resolution)
        self.fingerprint = fingerprint(self.unet)
        start = starting_layers(pipeline, config)
        self.autocast = pick_dtype(config.precision, self.device)
        if self.autocast and config.training == "lora":
            self.unet.to(self.autocast)  # before it goes to the device, where it may not fit in float32
        for network in (self.unet, self.vae, *self.encoders):
            network.requires_grad_(False).eval().to(self.device)
        if self.device.type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())  # on CPUs the plain product beats the fused kernel, whose backward is slow
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if config.vae_tiling:
            self.vae.enable_tiling()
            self.vae.enable_slicing()
            # diffusers tiles only what is larger than the autoencoder's own size, which the images usually are not
            self.vae.tile_sample_min_size //= 2
            self.vae.tile_latent_min_size //= 2
        self._base: dict[str, Tensor] = {}
        if config.training == "full":
            self.unet.requires_grad_(True)
            self._base = {name: p.detach().clone().cpu() for name, p in self.unet.named_parameters()}
        else:
            self._add_adapter(config, start)
        self._said: dict[str, list[Tensor]] = {}
        self._empty: list[Tensor] = []

    def _add_adapter(self, config: RunConfig, start: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """The adapter in float32, whatever the base; its start depends on the run's seed alone, and on the LoRA that it starts from.

        Raises:
            ConfigError: that LoRA has layers that the adapter has not.
        """
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            layers = ADAPTER_LAYERS[config.lora_targets]
            alpha = config.lora_alpha or config.lora_rank
            self.unet.add_adapter(LoraConfig(r=config.lora_rank, target_modules=layers, lora_alpha=alpha, init_lora_weights="gaussian"))
        self.unet.eval()  # the adapter's new layers too
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
        for name, (down, up) in start.items():
            layer = self.unet.get_submodule(name)
            if not isinstance(layer, BaseTunerLayer):
                if others := [name for name in start if not name.endswith(tuple(ADAPTER_LAYERS["all"]))]:
                    raise ConfigError(
                        f"init_lora is {config.init_lora!r}, which has layers that lora_targets all has not either, such as {others[0]} "
                        f"({len(others)} of {len(start)}). Take a LoRA without them, for instance one of attention alone."
                    )
                raise ConfigError(
                    f"init_lora is {config.init_lora!r}, which has the layer {name}, and lora_targets is {config.lora_targets}. "
                    "Choose lora_targets all, or another LoRA."
                )
            layer.lora_A["default"].weight.data.copy_(down)
            layer.lora_B["default"].weight.data.copy_(up / layer.scaling["default"])
        for layer in self.unet.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.cast_input_dtype_enabled = False  # autocast takes what comes; to float32 first and back again is for nothing

    @classmethod
    def load(cls, config: RunConfig) -> StableDiffusionPolicy:
        """Load the model that the configuration names; never from pickles.

        Raises:
            ConfigError: it cannot be loaded; the message says what to do.
        """
        pick_device(config.device)  # refused before a model is downloaded
        return cls(load_pipeline(config), config)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], guided: bool = True) -> Condition:
        """Conditions of the prompts. Computed once a prompt, one by one, so that a prompt's do not depend on its neighbours. What is kept of them
        lies on the CPU, the empty prompt's once: thousands of prompts would fill a GPU."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._said:
                found = [each for each in encode_prompt(self.pipeline, prompt, self.device) if each is not None]
                self._empty, self._said[prompt] = ([each[side].to("cpu", copy=True) for each in found] for side in (0, 1))
        own = [torch.stack(each) for each in zip(*(self._said[prompt] for prompt in prompts), strict=True)]
        both = [torch.stack([empty.expand_as(each), each], 1).to(self.device) for empty, each in zip(self._empty, own, strict=True)]
        return Condition(both[0], both[1] if len(both) > 1 else None, self.guidance if guided else 1.0)

    def step(self, x_t: Tensor, index: Tensor, condition: Condition) -> Gaussian:
        timestep = self.schedule.timesteps.to(self.device)[index]
        if self.trains_guided or condition.guidance == 1.0:
            return self.schedule.step(x_t, index, self.predict(x_t, timestep, condition))
        with torch.no_grad():  # apart, so that a graph is of the prompt's prediction alone
            unconditional = self._denoise(x_t, timestep, *condition.branches(0))
        conditional = self._denoise(x_t, timestep, *condition.branches(1))
        sampled = self.schedule.step(x_t, index, guided(unconditional, conditional.detach(), condition.guidance))
        return Gaussian(sampled.mean, sampled.std, self.schedule.step(x_t, index, conditional).mean)

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The guided prediction, float32."""
        if condition.guidance == 1.0:
            return self._denoise(x_t, timestep, *condition.branches(1))
        both = self._denoise(x_t.repeat(2, 1, 1, 1), timestep.repeat(2), *condition.branches(0, 1))
        unconditional, conditional = both.chunk(2)
        return guided(unconditional, conditional, condition.guidance)

    def _denoise(self, x_t: Tensor, timestep: Tensor, states: Tensor, pooled: Tensor | None = None) -> Tensor:
        added = None
        if pooled is not None:
            # XL is told the size that a picture had, where it was cropped, and the size that is wanted.
            height, width = (side * self.pipeline.vae_scale_factor for side in x_t.shape[-2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], device=x_t.device, dtype=torch.float32)
            added = dict(text_embeds=pooled, time_ids=sizes.expand(len(x_t), 6))
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output: Tensor = self.unet(x_t, timestep, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)[0]
        return output.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures, decoded in float32: XL's autoencoder overflows in half precision."""
        images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        pixels = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(np.ascontiguousarray(p)) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    @contextmanager
    def base(self) -> Iterator[None]:
        if self._base:
            with self._swapped():
                yield
            return
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Within this context only that share of what was trained is there: base + strength (trained - base)."""
        if self._base and strength != 1:
            with self._swapped(strength):
                yield
            return
        layers = {layer: layer.scaling["default"] for layer in self.unet.modules() if isinstance(layer, BaseTunerLayer)}
        try:
            for layer, scale in layers.items():
                layer.scaling["default"] = scale * strength
            yield
        finally:
            for layer, scale in layers.items():
                layer.scaling["default"] = scale

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within this context the denoiser's arithmetic is float32. Weights in half precision are widened in place, and narrowed again to the very
        same numbers."""
        autocast, frozen = self.autocast, [p for p in self.unet.parameters() if not p.requires_grad]
        if autocast is None:
            yield
            return
        try:
            self.autocast = None
            for parameter in frozen:
                parameter.data = parameter.data.to(torch.float32)
            yield
        finally:
            for parameter in frozen:
                parameter.data = parameter.data.to(autocast)
            self.autocast = autocast

    @contextmanager
    def _swapped(self, strength: float = 0.0) -> Iterator[None]:
        """The base weights, moved towards the trained ones by that share, in their place, and back. They are copied to the device each time."""
        parameters = self.parameters()
        trained = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                base = self._base[name].to(self.device)
                p.data = torch.lerp(base, trained[name], strength) if strength else base
            yield
        finally:
            for name, p in parameters.items():
                p.data = trained[name]

    def save_adapter(self, folder: Path) -> None:
        """The trained part as plain diffusers reads it: ``pytorch_lora_weights.safetensors`` for ``pipeline.load_lora_weights``, or, of a
        denoiser that was trained as a whole, the folder ``unet``.

        The names are peft's own (lora_A, lora_B) for all layers: diffusers' older names exist for attention only, and of a file that mixes both
        the loader drops the attention.
        """
        if self._base:
            self.unet.save_pretrained(folder / "unet", safe_serialization=True)
            return
        layers = get_peft_model_state_dict(self.unet)
        metadata = {"unet": self.unet.peft_config["default"]}
        self.pipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=_plain(metadata["unet"]))


def guided(unconditional: Tensor, conditional: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: ε_u + w (ε_c - ε_u) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6 with w = 1 + their w)."""
    return unconditional + weight * (conditional - unconditional)


def starting_layers(pipeline: Pipeline, config: RunConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """A and alpha / rank times B of the LoRA that a run starts from, float32, by the denoiser's layers, in whatever layout diffusers reads; nothing
    where it starts from none.

    Raises:
        ConfigError: the LoRA is missing, or none of this model.
    """
    file = init_lora_file(config)
    if file is None:
        return {}
    try:
        with torch.random.fork_rng():
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="start", local_files_only=True)
        layers = {name: layer for name, layer in pipeline.unet.named_modules() if isinstance(layer, BaseTunerLayer)}
        start = {
            name: (layer.lora_A["start"].weight.detach().clone(), layer.lora_B["start"].weight.detach() * layer.scaling["start"])
            for name, layer in layers.items()
            if bool(layer.lora_B["start"].weight.any())  # the others were never trained, or are not in the file
        }
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"init_lora is {config.init_lora!r}, which is none of {config.model}: {str(error).strip().splitlines()[-1]}") from error
    pipeline.unload_lora_weights()
    if not start:
        raise ConfigError(
            f"init_lora is {config.init_lora!r}, whose layers have other names than those of {config.model}. Take a LoRA of this model."
        )
    return start


def latent_shape(pipeline: Pipeline, resolution: int) -> tuple[int, int, int]:
    """Channels, height and width of a latent; a resolution of 0 is the model's own.

    Raises:
        ConfigError: the resolution does not fit the model.
    """
    side, pixels = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
    if resolution % pixels:
        near = max(1, round(resolution / pixels)) * pixels
        raise ConfigError(f"resolution is {resolution}; this model needs a multiple of {pixels}, for instance {near}.")
    side = resolution // pixels or side
    return (pipeline.unet.config.in_channels, side, side)


def fingerprint(network: nn.Module) -> str:
    """A name for the network's weights: a hash of each weight's name, shape, and a few of its numbers. Reads next to nothing of a large model."""
    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        flat = parameter.detach().flatten()
        few = flat[:: max(1, len(flat) // 8)][:8].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {few.tolist()}".encode())
    return digest.hexdigest()[:16]


def _plain(config: LoraConfig) -> dict[str, object]:
    """The adapter's configuration as JSON can hold it."""
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
