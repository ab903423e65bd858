"""Tiny random models of the real classes, built and saved by the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
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
        text = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=8,
            max_position_embeddings=12, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=8 + 6 * 4,
        )  # fmt: skip
        base = tiny_pipeline(seed)
        vae = AutoencoderKL.from_config({**base.vae.config, "force_upcast": True, "scaling_factor": 0.13025})
        return StableDiffusionXLPipeline(vae, CLIPTextModel(text), CLIPTextModelWithProjection(text), tokenizer, tokenizer, unet, tiny_scheduler())
