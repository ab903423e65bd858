"""Tiny random models of the real classes, built and saved by the tests."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = ("a", "cat", "dog", "horse", "fox", "one", "two")


def tiny_tokenizer() -> CLIPTokenizer:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = {word: i for i, word in enumerate([*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)


def tiny_scheduler(**changes: object) -> DDIMScheduler:
    settings = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return DDIMScheduler(**(settings | changes))


def tiny_pipeline(seed: int = 0, prediction_type: str = "epsilon", dropout: float = 0.0) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x pipeline with a 4 x 8 x 8 latent and 16 x 16 pictures; random weights. The denoiser may have dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=12, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            dropout=dropout,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=16, scaling_factor=1.0,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        return StableDiffusionPipeline(
            vae, text, tokenizer, unet, tiny_scheduler(prediction_type=prediction_type),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    tiny_pipeline(seed).save_pretrained(folder)
    return folder


def tiny_xl_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL pipeline of the shape of :func:`tiny_pipeline`: two text encoders, pooled text and sizes as added conditions."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        narrow, wide = (
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=8,
                max_position_embeddings=12, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            for width in (16, 24)
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16 + 24, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=8 + 6 * 4,
        )  # fmt: skip
        base = tiny_pipeline(seed)
        vae = AutoencoderKL.from_config({**base.vae.config, "force_upcast": True, "scaling_factor": 0.13025})
        return StableDiffusionXLPipeline(vae, CLIPTextModel(narrow), CLIPTextModelWithProjection(wide), tokenizer, tokenizer, unet, tiny_scheduler())


UNET_LAYOUT = (
    ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
    ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"), ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"), ("conv_out", "out.2"), ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"), ("down_blocks.0.resnets.0", "input_blocks.1.0"),
    ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
    ("down_blocks.1.resnets.0", "input_blocks.3.0"), ("down_blocks.1.attentions.0", "input_blocks.3.1"),
    ("up_blocks.0.resnets.0", "output_blocks.0.0"), ("up_blocks.0.attentions.0", "output_blocks.0.1"),
    ("up_blocks.0.resnets.1", "output_blocks.1.0"), ("up_blocks.0.attentions.1", "output_blocks.1.1"),
    ("up_blocks.0.upsamplers.0.conv", "output_blocks.1.2.conv"),
    ("up_blocks.1.resnets.0", "output_blocks.2.0"), ("up_blocks.1.resnets.1", "output_blocks.3.0"),
)  # fmt: skip
RESNET_LAYOUT = (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"), ("conv2",
"out_layers.3"),
                 ("conv_shortcut", "skip_connection"))  # fmt: skip
VAE_LAYOUT = (
    (r"mid_block.resnets.0", "mid.block_1"), (r"mid_block.resnets.1", "mid.block_2"), (r"mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    (r"mid_block.attentions.0.to_([qkv])", r"mid.attn_1.\1"), (r"mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    (r"down_blocks.(\d).resnets.(\d)", r"down.\1.block.\2"), (r"down_blocks.(\d).downsamplers.0", r"down.\1.downsample"),
    (r"up_blocks.0.resnets.(\d)", r"up.1.block.\1"), (r"up_blocks.1.resnets.(\d)", r"up.0.block.\1"), (r"up_blocks.0.upsamplers.0", "up.1.upsample"),
    (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
)  # fmt: skip
OPEN_CLIP_LAYOUT = (
    ("embeddings.position_embedding.weight", "positional_embedding"), ("embeddings.", ""), ("encoder.layers", "transformer.resblocks"),
    ("final_layer_norm", "ln_final"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("fc1", "c_fc"), ("fc2", "c_proj"), ("self_attn", "attn"),
)  # fmt: skip


def save_single_file(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, file: Path, open_clip: bool = False) -> None:
    """A tiny pipeline as one file in the original layout, as community checkpoints are shared; ``open_clip`` lays the text encoder of a 1.x out as
    2.x has it."""
    tensors: dict[str, Tensor] = {}
    for name, value in pipeline.unet.state_dict().items():
        new = next((name.replace(ours, theirs) for ours, theirs in UNET_LAYOUT if name.startswith(ours + ".")), name)
        if ".resnets." in name:
            new = next(new.replace(f".{ours}.", f".{theirs}.") for ours, theirs in RESNET_LAYOUT if f".{ours}." in new)
        tensors["model.diffusion_model." + new] = value
    for name, value in pipeline.vae.state_dict().items():
        for pattern, new in VAE_LAYOUT:
            name = re.sub(pattern, new, name)
        is_linear = "mid.attn_1" in name and name.endswith("weight") and "norm" not in name
        tensors["first_stage_model." + name] = value[..., None, None] if is_linear else value
    if isinstance(pipeline, StableDiffusionXLPipeline):
        tensors |= _clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        tensors |= _open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    elif open_clip:
        tensors |= _open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        tensors |= _clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, file)


def _clip(encoder: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()}


def _open_clip(encoder: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's names; queries, keys and values are one tensor there."""
    found: dict[str, Tensor] = {}
    for name, value in encoder.state_dict().items():
        new = name.removeprefix("text_model.")
        for ours, theirs in OPEN_CLIP_LAYOUT:
            new = new.replace(ours, theirs)
        if new == "text_projection.weight":
            found[prefix + "text_projection"] = value.T
        elif match := re.fullmatch(r"(.*)\.q_proj\.(weight|bias)", new):
            three = [encoder.state_dict()[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[f"{prefix}{match[1]}.in_proj_{match[2]}"] = torch.cat(three)
        elif not re.search(r"\.[kv]_proj\.", new):
            found[prefix + new] = value
    return found
