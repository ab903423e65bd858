"""Loading models: from the setting ``model`` to a diffusers pipeline, or to an error that says what to do. Never from pickles."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ddpo.config import ConfigError, RunConfig
from ddpo.source import ModelSource, model_source, pipeline_of
from rewards.networks import causes, unreachable

Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline
"""The pipelines that can be finetuned: Stable Diffusion 1.x and 2.x, and XL."""

UNUSED: dict[str, Any] = dict(safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False)
"""Parts of a Stable Diffusion 1.x or 2.x pipeline that finetuning does not need."""
UNUSED_XL: dict[str, Any] = dict(feature_extractor=None, image_encoder=None)
"""The same of XL."""


HUB: dict[str, Any] = {}
"""Further arguments of every request to the Hub; empty but in tests."""


def load_pipeline(config: RunConfig) -> Pipeline:
    """The pipeline that the setting ``model`` names, in float32.

    Raises:
        ConfigError: it is missing, gated, offline, no such pipeline, or has no safetensors weights.
    """
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    source = model_source(config)
    try:
        pipeline = LOADERS[source.kind](source, config)
        _check_channels(source.name, pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels)
        return pipeline
    except (ConfigError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ConfigError(remedy(source, config, error)) from error


def _from_folder(source: ModelSource, config: RunConfig) -> Pipeline:
    return _with_half_where_needed(source.name, source.pipeline, local_files_only=True)


def _from_hub(source: ModelSource, config: RunConfig) -> Pipeline:
    """The class stands in the repository's ``model_index.json``."""
    settings = dict(revision=config.revision or None, **HUB)
    index = hf_hub_download(source.name, "model_index.json", **settings)
    return _with_half_where_needed(source.name, pipeline_of(Path(index).parent, source.name), **settings)


def _from_file(source: ModelSource, config: RunConfig) -> Pipeline:
    """A checkpoint in the original layout; the sizes, the tokenizer and the noise schedule come from ``model_config``."""
    with safe_open(source.name, framework="pt") as stored:
        keys = list(stored.keys())
        if FIRST_LAYER in keys:
            _check_channels(source.name, stored.get_slice(FIRST_LAYER).get_shape()[1])
    if any(key.startswith("conditioner.embedders.0.model.") for key in keys):
        raise ConfigError(f"{source.name} is XL's refiner, which finishes another model's images. Give the base model, which makes them.")
    xl = any(key.startswith("conditioner.embedders.1.") for key in keys)
    if not config.model_config and ("v_pred" in keys or any(key.startswith("cond_stage_model.model.") for key in keys)):
        raise ConfigError(
            f"{source.name} may predict noise or velocity, and the file does not say which sizes and which of them. "
            "Give model_config: the folder, or the name on the Hub, of the pipeline that it was made from."
        )
    xl = xl if not source.pipeline else source.pipeline == "StableDiffusionXLPipeline"
    cls = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    settings = dict(torch_dtype=torch.float32, **(UNUSED_XL if xl else UNUSED))
    if config.model_config:
        settings["config"] = str(Path(config.model_config).expanduser()) if source.pipeline else config.model_config
    pipeline: Pipeline = cls.from_single_file(source.name, **settings)
    return pipeline


FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
"""The denoiser's first layer in the original layout."""


def _check_channels(name: str, taken: int, latent: int = 4) -> None:
    """Refuse a denoiser that wants to see more than the latent."""
    if taken != latent:
        raise ConfigError(
            f"{name} is not a text-to-image model: its denoiser takes {taken} channels where a latent has {latent}, as models for inpainting, "
            "depth or editing do. Give the text-to-image model that it was made from."
        )


def _with_half_where_needed(name: str, pipeline: str, **settings: Any) -> Pipeline:
    """The pipeline in float32, from its half-precision files where it has no others."""
    cls = StableDiffusionXLPipeline if pipeline == "StableDiffusionXLPipeline" else StableDiffusionPipeline
    settings |= dict(use_safetensors=True, dtype=torch.float32, **(UNUSED if cls is StableDiffusionPipeline else UNUSED_XL))
    try:
        found: Pipeline = cls.from_pretrained(name, **settings)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, LocalEntryNotFoundError):
        raise
    except OSError as error:
        if NO_FILE not in str(error):
            raise
        try:
            found = cls.from_pretrained(name, variant="fp16", **settings)
        except (OSError, ValueError):
            raise error from None
    return found


NO_FILE = "no file named"
"""What diffusers and transformers say of a weight file that is not there."""


LOADERS: dict[str, Callable[[ModelSource, RunConfig], Pipeline]] = dict(folder=_from_folder, file=_from_file, hub=_from_hub)


def remedy(source: ModelSource, config: RunConfig, error: BaseException) -> str:
    """What went wrong with loading, in plain words, and what to do."""
    name, chain = source.name, causes(error)
    text = " ".join(str(e) for e in chain)
    absent = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError)
    if source.kind == "file" and (unreachable(chain) or any(isinstance(e, absent) for e in chain)):
        return (
            f"{name} is a single file, whose sizes, tokenizer and noise schedule come from a pipeline of its architecture, and "
            f"{config.model_config or 'the usual one on the Hub'} cannot be had. Give model_config: the folder of such a pipeline, or "
            "a name on the Hub that can be reached or is in this machine's cache."
        )
    if any(isinstance(e, GatedRepoError) for e in chain):
        return (
            f"The model {name} is gated: its owner wants its licence accepted first. Accept it at https://huggingface.co/{name}, "
            "log in on this machine with `hf auth login`, and start again."
        )
    if any(isinstance(e, RevisionNotFoundError) for e in chain):
        return f"The model {name} has no revision {config.revision!r}. See its revisions at https://huggingface.co/{name}/tree/main."
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return (
            f"There is no model {name} on the Hub, or it is private. Check the spelling; for a private model log in with `hf auth login`. "
            "A folder on this machine is named by its path, for instance ./my-model."
        )
    if any(isinstance(e, RemoteEntryNotFoundError) for e in chain):
        return f"{name} on the Hub is no diffusers pipeline: it has no model_index.json. Name a repository in the diffusers layout."
    if source.kind == "hub" and unreachable(chain):
        mode = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        revision = f" --revision {config.revision}" if config.revision else ""
        return (
            f"The model {name} is not in this machine's cache ({constants.HF_HUB_CACHE}) and the Hub cannot be reached{mode}. "
            f"Where there is a network, run `hf download {name}{revision}` and copy the cache, or give the path of a folder that holds the model."
        )
    if NO_FILE in text and "safetensors" in text:
        return (
            f"{name} lacks a safetensors file ({error}). Other weight files are pickles, which can run code, and are never loaded. "
            "Convert it: load it with diffusers where you trust it, and write it with save_pretrained."
        )
    return f"The model {name} cannot be loaded; its files may be damaged or incomplete: {error}"


def encode_prompt(pipeline: Pipeline, prompt: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """States (2, tokens, width) of the empty prompt and of the prompt, float32; and for XL their pooled embeddings (2, width)."""
    found = pipeline.encode_prompt(prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True)
    states = torch.cat([found[1], found[0]]).float()
    return states, torch.cat([found[3], found[2]]).float() if isinstance(pipeline, StableDiffusionXLPipeline) else None


def ddim(pipeline: Pipeline) -> DDIMScheduler:
    """The pipeline's noise schedule as a DDIM sampler. What would make a step something else than a Gaussian of the prediction is refused.

    Raises:
        ConfigError: the schedule is none of DDPM's kind, or clips, thresholds or rescales.
    """
    if "beta_schedule" not in pipeline.scheduler.config:
        raise ConfigError(
            f"The model's scheduler is a {type(pipeline.scheduler).__name__}, without betas; models of DDPM's noise schedule can be finetuned."
        )
    scheduler = DDIMScheduler.from_config({"clip_sample": False, **pipeline.scheduler.config})
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ConfigError(f"The model predicts {scheduler.config.prediction_type!r}; epsilon, v_prediction and sample are known.")
    for setting in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
        if getattr(scheduler.config, setting):
            raise ConfigError(
                f"The model's scheduler has {setting}, with which a denoising step is not the policy that is trained. Use another model."
            )
    if getattr(pipeline.vae.config, "latents_mean", None) is not None:
        raise ConfigError("The model's autoencoder shifts its latents by latents_mean, which is not supported. Use another model.")
    return scheduler
