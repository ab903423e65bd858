"""How the pocket model was made: ``python -m pocket.recipe --work build/pocket``.

Five stages, each resumable (a checkpoint every minute; start again and it goes on), each skipped when its result exists:

====== ========================================================================================== =================
stage  what                                                                                       written to
====== ========================================================================================== =================
data   render 100,000 scenes for training and 4,000 held-out ones                                 WORK
clip   a small CLIP on scenes and captions; scenes with the same caption count as positives       pocket/clip
vae    an autoencoder, 64 x 64 x 3 to 16 x 16 x 8                                                  pocket/model/vae
unet   the denoiser: noise prediction, min-SNR weights, 10 % of prompts dropped for guidance       pocket/model
judge  a classifier of renders, apart from everything above, by which the model is measured       pocket/judge
====== ========================================================================================== =================

``python -m pocket.evaluate`` then measures the model with the judge and draws its contact sheet.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from pocket import world
from pocket.data import scenes
from pocket.judge import CLASSES, Judge, label_of

HERE = Path(__file__).parent
TOKENS = 16
"""Length of a tokenised prompt."""

TRAIN_SCENES, HELD_OUT_SCENES, HELD_OUT_SEED = 100_000, 4_000, 10_000_000


def images_of(pictures: np.ndarray, index: np.ndarray) -> Tensor:
    """Pictures (n, 64, 64, 3) uint8 as images (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures[index])).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(
    name: str,
    work: Path,
    modules: dict[str, nn.Module],
    loss_of: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
    *,
    steps: int,
    lr: float,
    warmup: int = 100,
    weight_decay: float = 0.01,
    ema: float = 0.0,
    stop: int | None = None,
) -> None:
    """AdamW with warm-up and linear decay to zero at ``steps``, a log line every 50 steps, a checkpoint every minute.

    Training ends at ``stop`` if that is sooner. ``loss_of`` draws its own batch from the generator. With ``ema`` the modules hold the
    averaged weights when this returns.
    """
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    average = [p.detach().clone() for p in parameters] if ema else []
    generator = torch.Generator().manual_seed(0)
    checkpoint, first = work / f"{name}.ckpt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        average, first = state["average"], state["step"]
        print(f"{name}: going on at step {first}", flush=True)
    saved = started = time.monotonic()
    sums: dict[str, float] = {}
    last = steps if stop is None else stop
    for step in range(first, last):
        rate = lr * min(1.0, (step + 1) / warmup) * (1 - step / steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss, report = loss_of(generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if ema:
            decay = min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        for key, value in report.items():
            sums[key] = sums.get(key, 0.0) + value / 50
        if (step + 1) % 50 == 0:
            pace = (time.monotonic() - started) / (step + 1 - first)
            print(f"{name} {step + 1}/{steps}  " + "  ".join(f"{k} {v:.4f}" for k, v in sums.items()) + f"  {pace:.2f} s/step", flush=True)
            sums = {}
        if time.monotonic() - saved > 60 or step + 1 == last:
            state = dict(
                modules={k: m.state_dict() for k, m in modules.items()},
                optimiser=optimiser.state_dict(),
                generator=generator.get_state(),
                average=average,
                step=step + 1,
            )
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").rename(checkpoint)
            saved = time.monotonic()
    if ema:
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)


# --- CLIP -----------------------------------------------------------------------------------------------------------------------


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE over the world's words: any text can be encoded, the world's words are one token each."""
    from tokenizers import pre_tokenizers, trainers

    trained = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(world.captions(), trainer)
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    ids: Tensor = tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
    return ids


def make_clip(work: Path) -> None:
    captions, pictures = scenes(work, "train", 0, TRAIN_SCENES)
    tokenizer = make_tokenizer()
    ids = tokenize(tokenizer, captions)
    caption_id = torch.tensor(np.unique(captions, return_inverse=True)[1])
    special = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    shape = dict(hidden_size=128, intermediate_size=512, num_attention_heads=4, projection_dim=64)
    torch.manual_seed(0)
    text = dict(shape, num_hidden_layers=3, vocab_size=len(tokenizer), max_position_embeddings=TOKENS, **special)
    vision = dict(shape, num_hidden_layers=4, image_size=world.SIZE, patch_size=8)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64, attn_implementation="eager"))
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(captions), (128,), generator=generator)
        pixels = ((images_of(pictures, index.numpy()) + 1) / 2 - mean) / std
        with torch.autocast("cpu", torch.bfloat16):
            logits = clip(input_ids=ids[index], pixel_values=pixels).logits_per_image.float()
        same = (caption_id[index][:, None] == caption_id[index][None]).float()
        target = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        hit = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return loss, dict(loss=loss.item(), hit=hit.item())

    train("clip", work, {"clip": clip}, loss_of, steps=CLIP_STEPS, lr=1e-3)
    clip.save_pretrained(HERE / "clip")
    tokenizer.save_pretrained(HERE / "clip")
    from transformers import CLIPImageProcessor

    size = dict(height=world.SIZE, width=world.SIZE)
    CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=CLIP_MEAN, image_std=CLIP_STD
    ).save_pretrained(HERE / "clip")  # fmt: skip


CLIP_STEPS = 1000
CLIP_MEAN, CLIP_STD = [0.5, 0.5, 0.5], [0.27, 0.27, 0.27]


# --- the autoencoder ------------------------------------------------------------------------------------------------------------


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def new_vae(latent_channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=world.SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def widened(narrow: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder with twice the latent channels; the new ones start small and are ignored by the decoder at first."""
    c = narrow.config.latent_channels
    wide = new_vae(2 * c)
    state, own = narrow.state_dict(), wide.state_dict()
    for name, tensor in own.items():
        if tensor.shape == state[name].shape:
            tensor.copy_(state[name])
    old = [*range(c), *range(2 * c, 3 * c)]  # moments are means, then log variances
    own["encoder.conv_out.weight"][old], own["encoder.conv_out.bias"][old] = state["encoder.conv_out.weight"], state["encoder.conv_out.bias"]
    quant = torch.zeros_like(own["quant_conv.weight"])
    quant[[*range(4 * c)], [*range(4 * c)]] = 0.3
    quant[torch.tensor(old)[:, None], torch.tensor(old)] = state["quant_conv.weight"]
    bias = torch.zeros(4 * c)
    bias[3 * c :] = -6.0
    bias[old] = state["quant_conv.bias"]
    own["quant_conv.weight"].copy_(quant)
    own["quant_conv.bias"].copy_(bias)
    post = torch.eye(2 * c)[:, :, None, None]
    post[:c, :c] = state["post_quant_conv.weight"]
    own["post_quant_conv.weight"].copy_(post)
    own["post_quant_conv.bias"].zero_()[:c] = state["post_quant_conv.bias"]
    own["decoder.conv_in.weight"][:, :c] = state["decoder.conv_in.weight"]
    own["decoder.conv_in.weight"][:, c:] *= 0.1
    wide.load_state_dict(own)
    return wide


def standardised(vae: AutoencoderKL, images: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1, by changing the two 1 x 1 convolutions around the latent; pictures stay the same."""
    c = vae.config.latent_channels
    with torch.no_grad():
        means = vae.encode(images).latent_dist.mean
        shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3))
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
        vae.post_quant_conv.weight *= scale[None, :, None, None]
        vae.quant_conv.weight[:c] /= scale[:, None, None, None]
        vae.quant_conv.bias[:c] = (vae.quant_conv.bias[:c] - shift) / scale
        vae.quant_conv.bias[c:] -= 2 * scale.log()


def make_vae(work: Path) -> None:
    """First with 4 latent channels, then with 8: the wider one learns faster from the narrow one than from nothing."""
    captions, pictures = scenes(work, "train", 0, TRAIN_SCENES)

    def fit(name: str, vae: AutoencoderKL, steps: int, lr: float, stop: int) -> None:
        def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            images = images_of(pictures, torch.randint(len(captions), (16,), generator=generator).numpy())
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(images).latent_dist
                z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
                decoded = vae.decode(z).sample.float()
            kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
            edge = sum(F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(images), strict=True))
            mse = F.mse_loss(decoded, images)
            loss = F.l1_loss(decoded, images) + mse + 0.3 * edge + 1e-4 * kl
            return loss, dict(loss=loss.item(), mse=mse.item(), kl=kl.item())

        train(name, work, {"vae": vae}, loss_of, steps=steps, lr=lr, weight_decay=0.0, stop=stop)

    torch.manual_seed(0)
    narrow = new_vae(4)
    fit("vae_narrow", narrow, steps=4000, lr=2.5e-3, stop=NARROW_STEPS)
    wide = widened(narrow)
    fit("vae", wide, steps=VAE_STEPS, lr=2e-3, stop=VAE_STEPS)
    standardised(wide.eval(), images_of(pictures, np.arange(2048)))
    wide.save_pretrained(HERE / "model" / "vae")


NARROW_STEPS = 3400
VAE_STEPS = 1700


# --- the denoiser ---------------------------------------------------------------------------------------------------------------


def latents_of(work: Path, vae: AutoencoderKL, name: str, pictures: np.ndarray) -> np.ndarray:
    """Scaled latent means of all pictures, (n, 8, 16, 16) float16, kept on disk."""
    file = work / f"latents_{name}.npy"
    if not file.exists():
        parts = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(pictures), 250):
                images = images_of(pictures, np.arange(start, min(start + 250, len(pictures))))
                parts.append((vae.encode(images).latent_dist.mean.float() * vae.config.scaling_factor).half().numpy())
        np.save(file.with_suffix(".partial.npy"), np.concatenate(parts))
        file.with_suffix(".partial.npy").rename(file)
    latents: np.ndarray = np.load(file, mmap_mode="r")
    return latents


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.x's schedule."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )  # fmt: skip


UNET_STEPS = 3900


def make_unet(work: Path) -> None:
    captions, pictures = scenes(work, "train", 0, TRAIN_SCENES)
    vae = AutoencoderKL.from_pretrained(HERE / "model" / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(HERE / "clip")
    text_encoder = CLIPTextModel.from_pretrained(HERE / "clip").eval()
    latents = latents_of(work, vae, "train", pictures)
    sentences, inverse = np.unique([*captions, ""], return_inverse=True)
    with torch.no_grad():
        states = torch.cat([text_encoder(tokenize(tokenizer, list(part))).last_hidden_state for part in np.array_split(sentences, 16)])
    sentence_of = torch.from_numpy(inverse)
    empty = int(sentence_of[-1])
    scheduler = make_scheduler()
    alphas = scheduler.alphas_cumprod
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(2, 4, 6),
    )
    unet.set_attn_processor(AttnProcessor())

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(captions), (64,), generator=generator)
        t = torch.randint(1000, (64,), generator=generator)
        x_0 = torch.from_numpy(latents[index.numpy()]).float()
        noise = torch.randn(x_0.shape, generator=generator)
        dropped = torch.rand(64, generator=generator) < 0.1
        context = states[torch.where(dropped, empty, sentence_of[index])]
        alpha = alphas[t][:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise, t, encoder_hidden_states=context).sample
        error = ((predicted.float() - noise) ** 2).mean((1, 2, 3))
        snr = alphas[t] / (1 - alphas[t])
        loss = (error * snr.clamp(max=5.0) / snr).mean()
        return loss, dict(loss=loss.item(), mse=error.mean().item())

    train("unet", work, {"unet": unet}, loss_of, steps=UNET_STEPS, lr=1e-3, warmup=200, ema=0.999)
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    save_pipeline(pipeline)


def save_pipeline(pipeline: StableDiffusionPipeline) -> None:
    """Denoiser and autoencoder are stored in half precision (their weights to 3 digits); diffusers loads them as float32.

    The text encoder stays float32, since transformers loads a model in the precision in which it is stored.
    """
    pipeline.unet.half()
    pipeline.vae.half()
    pipeline.save_pretrained(HERE / "model", safe_serialization=True)


# --- the judge ------------------------------------------------------------------------------------------------------------------


def make_judge(work: Path) -> None:
    captions, pictures = scenes(work, "judge", 20_000_000, 40_000)
    test_captions, test_pictures = scenes(work, "held_out", HELD_OUT_SEED, HELD_OUT_SCENES)
    labels, test_labels = (torch.tensor([label_of(c) for c in part]) for part in (captions, test_captions))
    torch.manual_seed(1)
    judge = Judge()

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(captions), (64,), generator=generator)
        images = augment(images_of(pictures, index.numpy()), generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(images)
        loss = torch.stack([F.cross_entropy(head.float(), labels[index, i]) for i, head in enumerate(logits)]).sum()
        hit = (logits[0].argmax(1) == labels[index, 0]).float().mean()
        return loss, dict(loss=loss.item(), hit=hit.item())

    train("judge", work, {"judge": judge}, loss_of, steps=1500, lr=2e-3, weight_decay=0.05)
    judge.eval()
    hits = torch.zeros(3)
    with torch.no_grad():
        for part in np.array_split(np.arange(len(test_captions)), 16):
            found = judge(images_of(test_pictures, part))
            hits += torch.tensor([(head.argmax(1) == test_labels[part, i]).sum() for i, head in enumerate(found)])
    accuracy = dict(zip(CLASSES, (hits / len(test_captions)).tolist(), strict=True))
    judge.save(HERE / "judge", accuracy)
    print("judge, held-out accuracy:", accuracy)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, blur, brightness and colour shifts: so that the judge reads shapes, and forgives an autoencoder's softness."""
    n = len(images)
    draw = torch.rand(n, 8, 1, 1, 1, generator=generator)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + (soft - images) * draw[:, 0] * (draw[:, 1] < 0.5)
    images = images * (0.8 + 0.4 * draw[:, 2]) + 0.3 * (draw[:, 3:6, 0] - 0.5)
    return images + 0.1 * draw[:, 6] * torch.randn(images.shape, generator=generator)


STAGES: dict[str, tuple[str, Callable[[Path], None]]] = dict(
    clip=("clip/model.safetensors", make_clip),
    vae=("model/vae/config.json", make_vae),
    unet=("model/model_index.json", make_unet),
    judge=("judge/model.safetensors", make_judge),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the pocket model from emoji renders; resumable.")
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="folder for renders and checkpoints (about 2.5 GB)")
    parser.add_argument("--only", choices=STAGES, action="append", help="run these stages only; repeat for several")
    parser.add_argument("--force", action="store_true", help="run a stage although its result exists")
    options = parser.parse_args(arguments)
    for name, (result, make) in STAGES.items():
        if options.only and name not in options.only:
            continue
        if (HERE / result).exists() and not options.force:
            print(f"{name}: {result} exists")
            continue
        started = time.monotonic()
        make(options.work)
        print(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
