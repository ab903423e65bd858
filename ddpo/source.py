"""Where a model comes from: what the setting ``model`` names. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rewards
from ddpo.config import ConfigError, RunConfig, is_a, sources_text

POCKET_MODEL = Path(__file__).parent.parent / "pocket" / "model"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    kind: str
    """folder, file or hub."""
    name: str
    """The path, or the name on the Hub."""
    pipeline: str = ""
    """The pipeline's class, for a folder."""


HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""The classes of pipelines that can be finetuned."""


def pipeline_of(folder: Path, name: str = "") -> str:
    """The class of the pipeline in a folder; ``name`` is what messages call it.

    Raises:
        ConfigError: the folder holds no pipeline, or none that can be finetuned.
    """
    name = name or str(folder)
    try:
        kind = str(json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{name} is no diffusers model: it has no readable model_index.json. Give a folder that `save_pretrained` of diffusers has written."
        ) from error
    if kind not in PIPELINES:
        raise ConfigError(f"{name} holds a {kind}; {' and '.join(PIPELINES)} can be finetuned.")
    return kind


def model_source(config: RunConfig) -> ModelSource:
    """What ``model`` names: a folder that exists, or a model on the Hub, which is looked up when it is loaded.

    Raises:
        ConfigError: there is no such folder, or it is no pipeline that can be finetuned.
    """
    path = POCKET_MODEL if config.model == "pocket" else Path(config.model)
    with contextlib.suppress(RuntimeError):  # a ~user that does not exist
        path = path.expanduser()
    here = is_a(path.exists)
    if here and config.revision:
        raise ConfigError(f"revision is {config.revision!r}, but {path} is on this machine. Leave revision empty, or name a model on the Hub.")
    if config.model_config and (is_a(path.is_dir) or (not here and path.suffix != ".safetensors")):
        raise ConfigError(f"model_config is {config.model_config!r}, which only a single .safetensors file needs. Leave it empty for {path}.")
    if is_a(path.is_dir):
        return ModelSource("folder", str(path), pipeline_of(path))
    if here:
        if path.suffix != ".safetensors":
            raise ConfigError(
                f"{path} is no .safetensors file. Other weight files are pickles, which can run code, and are never loaded. "
                "Convert it where you trust it, or give a folder in the diffusers layout."
            )
        folder = Path(config.model_config).expanduser()
        if config.model_config and not is_a(folder.is_dir) and not re.fullmatch(HUB_NAME, config.model_config):
            raise ConfigError(f"model_config is {config.model_config!r}, which is no folder and no name on the Hub.")
        return ModelSource("file", str(path), pipeline_of(folder) if config.model_config and is_a(folder.is_dir) else "")
    if re.fullmatch(HUB_NAME, config.model):
        return ModelSource("hub", config.model)
    raise ConfigError(
        f"The model {path} does not exist. Give `pocket`, a folder that `save_pretrained` of diffusers has written, a .safetensors file, "
        "or the name of a model on the Hub, such as stabilityai/stable-diffusion-2-1."
    )


LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA file where it is not told a name."""
LARGEST_HEADER = 100_000_000


def init_lora_file(config: RunConfig) -> Path | None:
    """The file of the LoRA that a run starts from, or None where it starts from none.

    Raises:
        ConfigError: it is missing, no LoRA, one that changes more than the denoiser, or one of another rank.
    """
    if not config.init_lora:
        return None
    file = lora_file(config.init_lora)
    shapes = tensor_shapes(file)
    if any(name.startswith(("text_encoder", "lora_te")) for name in shapes):
        raise ConfigError(
            f"init_lora is {config.init_lora!r}, which changes the text encoder as well; the denoiser alone is trained. Take another LoRA."
        )
    ranks = lora_ranks(shapes)
    if not ranks or any("dora_scale" in name for name in shapes):
        raise ConfigError(
            f"init_lora is {config.init_lora!r}, which is no plain LoRA: it has {'DoRA scales' if ranks else 'no LoRA layers'}. Take another one."
        )
    if ranks != {config.lora_rank}:
        has = f"rank {min(ranks)}" if len(ranks) == 1 else f"layers of ranks {', '.join(map(str, sorted(ranks)))}"
        advice = f"Choose lora_rank {min(ranks)}." if len(ranks) == 1 else "Take a LoRA whose layers have one rank."
        raise ConfigError(f"init_lora is {config.init_lora!r}, which has {has}, and lora_rank is {config.lora_rank}. {advice}")
    return file


def lora_file(lora: str) -> Path:
    """The file that a LoRA's setting names: itself, or in a folder diffusers' one, or else the only one that is there, as in an export for kohya.

    Raises:
        ConfigError: a folder has several files, and none of diffusers' name.
    """
    path = Path(lora)
    with contextlib.suppress(RuntimeError):
        path = path.expanduser()
    if not is_a(path.is_dir):
        return path
    if is_a((path / LORA_FILE).exists):
        return path / LORA_FILE
    files = sorted(path.glob("*.safetensors"))
    if len(files) > 1:
        raise ConfigError(f"{lora} holds several LoRA files: {', '.join(file.name for file in files[:10])}. Name one of them.")
    return files[0] if files else path / LORA_FILE


def fitted(config: RunConfig, given: Container[str]) -> RunConfig:
    """The same, with an adapter into which the LoRA that it starts from fits, but for settings that somebody has given.

    Raises:
        ConfigError: a run cannot have such an adapter.
    """
    return config.with_changes(**{name: value for name, value in adapter_for(config.init_lora).items() if name not in given})


def adapter_for(lora: str) -> dict[str, Any]:
    """The settings that an adapter needs for a LoRA: the rank, where its layers have one, and all layers, where it has others than attention's.
    Nothing where no LoRA can be read, which is refused when a run is made."""
    try:
        file = lora_file(lora) if lora else Path()
        shapes = tensor_shapes(file) if is_a(file.is_file) else {}
    except ConfigError:
        return {}
    ranks = lora_ranks(shapes)
    rank: dict[str, Any] = dict(lora_rank=min(ranks)) if len(ranks) == 1 else {}
    return rank if attention_alone(shapes) else rank | dict(lora_targets="all")


def attention_alone(names: Iterable[str]) -> bool:
    """Whether a LoRA's tensors are all of attention layers."""
    return all(re.search(r"to_(q|k|v|out)", name) for name in names)


def lora_ranks(shapes: Mapping[str, Sequence[int]]) -> set[int]:
    """The ranks of a LoRA's layers, by the shapes of its tensors, in diffusers' or kohya's layout."""
    return {shape[0] for name, shape in shapes.items() if shape and re.search(r"(lora_A|lora_down|lora\.down)\.weight$", name)}


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of a .safetensors file's tensors by name, from its header alone.

    Raises:
        ConfigError: it is none, or damaged.
    """
    try:
        with open(file, "rb") as stored:
            size = int.from_bytes(stored.read(8), "little")
            header: Any = json.loads(stored.read(size)) if 0 < size <= LARGEST_HEADER else None
        return {name: list(about["shape"]) for name, about in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read as a .safetensors file ({error}). Give a LoRA's file, or the folder of a {LORA_FILE}.") from error


LOCATED = ("model", "model_config", "init_lora")
"""Settings that may be the path of a file or a folder."""


def located(config: RunConfig) -> RunConfig:
    """The same, with files and folders as absolute paths: the worker, or a page that resumes the run, may start elsewhere."""
    try:
        config = config.with_changes(reward=located_reward(config.reward))
    except rewards.RewardError as error:
        raise ConfigError(f"reward is {config.reward!r}. {error}") from error
    found = {name: absolute(value) for name in LOCATED if (value := getattr(config, name)) != "pocket"}
    return config.with_changes(**found, ratings_from=sources_text(map(absolute, config.ratings_sources)))


def absolute(name: str) -> str:
    """A file's or folder's absolute path, or the name itself where there is none of that name."""
    with contextlib.suppress(RuntimeError):  # nobody's home
        path = Path(name).expanduser()
        if name and is_a(path.exists):
            return str(path.resolve())
    return name


def located_reward(reward: str) -> str:
    """The same, with the files of functions as absolute paths.

    Raises:
        RewardError: it names no reward.
    """
    weights = rewards.parts(reward)
    if not any(map(rewards.FUNCTION.fullmatch, weights)):
        return reward
    return rewards.spell({_absolute(name) if rewards.FUNCTION.fullmatch(name) else name: weight for name, weight in weights.items()})


def _absolute(function: str) -> str:
    file, _, name = function.rpartition(":")
    try:
        return f"{Path(file).expanduser().resolve()}:{name}"
    except (RuntimeError, ValueError, OSError) as error:
        raise rewards.RewardError(f"{file!r} cannot be a file: {error}.") from error
