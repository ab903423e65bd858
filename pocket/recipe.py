"""How the pocket model was made: ``python -m pocket.recipe --work build/pocket``.

Seven stages on rendered scenes (100,000 for training, others for the judge and for measuring), each resumable (a checkpoint every minute;
start again and it goes on), each skipped when its result exists:

========= ========================================================================================= =================
stage     what                                                                                      written to
========= ========================================================================================= =================
clip      a small CLIP on scenes and captions; scenes with the same caption count as positives      pocket/clip
vae       an autoencoder, 64 x 64 x 3 to 16 x 16 x 4; its decoder then sharpened by a discriminator pocket/model/vae
unet      the denoiser: noise prediction, min-SNR weights, 10 % of prompts dropped for guidance     pocket/model
judge     a classifier of renders, some drawn again by the model, by which the model is measured    pocket/judge
aesthetic LAION's predictor on the CLIP's image tower, trained on synthetic ratings                   pocket/aesthetic
llava     a CLIP tower and a small Llama that describe a scene and answer about it                  pocket/llava
bert      an encoder of the world's sentences, for BERTScore                                        pocket/bert
========= ========================================================================================= =================

``--only unet --force --continue --steps 5000`` trains the shipped denoiser on instead of starting from nothing.
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
from pocket.aesthetic import make_aesthetic
from pocket.data import Draw, scenes
from pocket.evaluate import load_pipeline
from pocket.judge import CLASSES, NOTHING, Judge, label_of
from pocket.redraw import draws, redrawn
from pocket.training import CLIP_MEAN, CLIP_STD, Start, augment, half, images_of, on_device, ruined, train
from pocket.vlm import make_bert, make_llava, sample

HERE = Path(__file__).parent
TOKENS = 16
"""Length of a tokenised prompt."""

TRAIN_SCENES, HELD_OUT_SCENES, HELD_OUT_SEED = 100_000, 4_000, 10_000_000
JUDGE_SCENES, JUDGE_SEED, JUDGE_LOOKS_SEED = 30_000, 20_000_000, 60_000_000
"""The judge learns from as many of the world's scenes as of those for who looks (:func:`pocket.vlm.sample`), where every animal does everything."""
PAIRS_SEED = 70_000_000
JUDGE_REDRAWN = 4_000
"""Of each of the two, and of the held-out ones an eighth as many, are drawn again by the model (:mod:`pocket.redraw`)."""


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


def make_clip(work: Path, device: torch.device, start: Start) -> None:
    captions, rendered = scenes(work, "train", 0, TRAIN_SCENES)
    pictures = on_device(rendered, device)
    tokenizer = make_tokenizer()
    sentences, inverse = np.unique(captions, return_inverse=True)
    ids = tokenize(tokenizer, list(sentences)).to(device)
    sentence_of = torch.from_numpy(inverse).to(device)
    special = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    shape = dict(hidden_size=128, intermediate_size=512, num_attention_heads=4, projection_dim=64)
    torch.manual_seed(0)
    text = dict(shape, num_hidden_layers=3, vocab_size=len(tokenizer), max_position_embeddings=TOKENS, **special)
    vision = dict(shape, num_hidden_layers=4, image_size=world.SIZE, patch_size=8)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64, attn_implementation="eager")).to(device)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))

    def loss_of() -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(captions), (128,), device=device)
        pixels = ((images_of(pictures[index]) + 1) / 2 - mean) / std
        sentence = sentence_of[index]
        with half(device):
            logits = clip(input_ids=ids[sentence], pixel_values=pixels).logits_per_image.float()
        same = (sentence[:, None] == sentence[None]).float()
        target = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        hit = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return loss, dict(loss=loss, hit=hit)

    train("clip", work, {"clip": clip}, loss_of, device=device, steps=start.steps or CLIP_STEPS, lr=1e-3)
    clip.cpu().save_pretrained(HERE / "clip")
    tokenizer.save_pretrained(HERE / "clip")
    from transformers import CLIPImageProcessor

    size = dict(height=world.SIZE, width=world.SIZE)
    CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=CLIP_MEAN, image_std=CLIP_STD
    ).save_pretrained(HERE / "clip")  # fmt: skip


CLIP_STEPS = 1000
# --- the autoencoder ------------------------------------------------------------------------------------------------------------


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def difference(decoded: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute and squared error of the pixels and absolute error of their differences; and the squared error alone."""
    mse = F.mse_loss(decoded, images)
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(images), strict=True))
    return F.l1_loss(decoded, images) + mse + 0.3 * edge, mse


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=world.SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


class Discriminator(nn.Sequential):
    """Is this 18 x 18 patch of a render or of the decoder? (PatchGAN: Isola et al. 2017, https://arxiv.org/abs/1611.07004)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 4, 2, 1), nn.GroupNorm(8, 128), nn.LeakyReLU(0.2),
            nn.Conv2d(128, 192, 3, 1, 1), nn.GroupNorm(8, 192), nn.LeakyReLU(0.2),
            nn.Conv2d(192, 1, 1),
        )  # fmt: skip


def make_vae(work: Path, device: torch.device, start: Start) -> None:
    """Encoder and decoder together; then the decoder alone, on latents with noise in them and with a discriminator.

    So the decoder forgives what the denoiser leaves of its noise, and draws crisp edges where it cannot know them. The loss of the second
    part is Esser et al. 2021 (https://arxiv.org/abs/2012.09841) without the perceptual network; one optimiser holds both sides, each with
    a term that leaves the other's weights alone.
    """
    captions, rendered = scenes(work, "train", 0, TRAIN_SCENES)
    pictures = on_device(rendered, device)
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(HERE / "model" / "vae") if start.shipped else new_vae()
    vae.to(device)

    def batch() -> Tensor:
        return images_of(pictures[torch.randint(len(captions), (VAE_BATCH,), device=device)])

    def together() -> tuple[Tensor, dict[str, Tensor]]:
        images = batch()
        with half(device):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        error, mse = difference(decoded, images)
        return error + KL_WEIGHT * kl, dict(error=error, mse=mse, kl=kl)

    if not start.shipped:
        train("vae", work, {"vae": vae}, together, device=device, steps=VAE_STEPS, lr=2.5e-3, weight_decay=0.0)
        standardise(vae, images_of(pictures[:2048]))
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    discriminator = Discriminator().to(device)

    def apart() -> tuple[Tensor, dict[str, Tensor]]:
        images = batch()
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        with half(device):
            with torch.no_grad():
                latents = vae.encode(images).latent_dist.mean
                latents = latents + LATENT_NOISE * torch.rand(VAE_BATCH, 1, 1, 1, device=device) * torch.randn_like(latents)
            decoded = vae.decode(latents).sample.float()
            fooled = torch.func.functional_call(discriminator, frozen, (decoded,)).float()
            real, fake = discriminator(images).float(), discriminator(decoded.detach()).float()
        error, mse = difference(decoded, images)
        guess = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        return error - ADVERSARY_WEIGHT * fooled.mean() + guess, dict(error=error, mse=mse, guess=guess)

    train(
        "vae_on" if start.shipped else "vae_sharp",
        work,
        {"vae": vae, "adversary": discriminator},
        apart,
        device=device,
        steps=start.steps or SHARP_STEPS,
        lr=4e-4,
        weight_decay=0.0,
    )
    anonymous(vae).cpu().eval().half().save_pretrained(HERE / "model" / "vae")
    (work / "latents.npy").unlink(missing_ok=True)


def anonymous(network: AutoencoderKL | UNet2DConditionModel) -> AutoencoderKL | UNet2DConditionModel:
    """The network without the folder that it was loaded from, which diffusers would save with it."""
    network.register_to_config(_name_or_path="pocket/model")
    return network


def standardise(vae: AutoencoderKL, images: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1, by changing the two 1 x 1 convolutions around the latent; pictures stay the same."""
    c = vae.config.latent_channels
    with torch.no_grad():
        means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(256)])
        shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3))
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
        vae.post_quant_conv.weight *= scale[None, :, None, None]
        vae.quant_conv.weight[:c] /= scale[:, None, None, None]
        vae.quant_conv.bias[:c] = (vae.quant_conv.bias[:c] - shift) / scale
        vae.quant_conv.bias[c:] -= 2 * scale.log()


LATENT_CHANNELS, VAE_CHANNELS, VAE_BATCH = 4, (16, 48, 96), 16
VAE_STEPS, SHARP_STEPS = 5_000, 1_200
KL_WEIGHT, ADVERSARY_WEIGHT, LATENT_NOISE = 1e-4, 0.02, 0.25


# --- the denoiser ---------------------------------------------------------------------------------------------------------------


def latents_of(work: Path, vae: AutoencoderKL, pictures: np.ndarray, device: torch.device) -> Tensor:
    """Scaled latent means of all pictures, (n, 4, 16, 16) float16, kept on disk."""
    file = work / "latents.npy"
    if not file.exists():
        parts = []
        with torch.no_grad(), half(device):
            for start in range(0, len(pictures), 250):
                posterior = vae.encode(images_of(on_device(pictures[start : start + 250], device))).latent_dist
                parts.append((posterior.mean.float() * vae.config.scaling_factor).half().cpu().numpy())
        np.save(file.with_suffix(".partial.npy"), np.concatenate(parts))
        file.with_suffix(".partial.npy").rename(file)
    return torch.from_numpy(np.load(file)).to(device)


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.x's schedule."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(2, 4, 6),
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def timestep_weights() -> Tensor:
    """How often each timestep is trained: the middle ones, where the shape is decided, most (Esser et al. 2024, section 3.1)."""
    return 0.4 + torch.exp(-0.5 * ((torch.arange(1000) - 480) / 180) ** 2)


def make_unet(work: Path, device: torch.device, start: Start) -> None:
    captions, rendered = scenes(work, "train", 0, TRAIN_SCENES)
    vae = AutoencoderKL.from_pretrained(HERE / "model" / "vae").to(device)
    tokenizer = CLIPTokenizer.from_pretrained(HERE / "clip")
    text_encoder = CLIPTextModel.from_pretrained(HERE / "clip").eval()
    latents = latents_of(work, vae, rendered, device)
    sentences, inverse = np.unique([*captions, ""], return_inverse=True)
    with torch.no_grad():
        states = torch.cat([text_encoder(tokenize(tokenizer, list(part))).last_hidden_state for part in np.array_split(sentences, 16)]).to(device)
    sentence_of = torch.from_numpy(inverse).to(device)
    empty = int(sentence_of[-1])
    scheduler = make_scheduler()
    alphas = scheduler.alphas_cumprod.to(device)
    weights = timestep_weights().to(device)
    torch.manual_seed(0)
    unet = new_unet()
    if start.shipped:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(HERE / "model" / "unet").state_dict())
    unet.to(device)

    def loss_of() -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(captions), (UNET_BATCH,), device=device)
        t = torch.multinomial(weights, UNET_BATCH, replacement=True)
        x_0 = latents[index].float()
        noise = torch.randn_like(x_0)
        dropped = torch.rand(UNET_BATCH, device=device) < 0.1
        context = states[torch.where(dropped, empty, sentence_of[index])]
        alpha = alphas[t][:, None, None, None]
        with half(device):
            predicted = unet(alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise, t, encoder_hidden_states=context).sample
        error = ((predicted.float() - noise) ** 2).mean((1, 2, 3))
        snr = alphas[t] / (1 - alphas[t])
        loss = (error * snr.clamp(max=5.0) / snr).mean()
        return loss, dict(loss=loss, mse=error.mean())

    train("unet_on" if start.shipped else "unet", work, {"unet": unet}, loss_of, device=device, steps=start.steps or UNET_STEPS, lr=1e-3, ema=0.999)
    pipeline = StableDiffusionPipeline(
        vae.cpu(), text_encoder, tokenizer, unet.cpu(), scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    save_pipeline(pipeline)


UNET_STEPS, UNET_BATCH = 9_000, 64


def save_pipeline(pipeline: StableDiffusionPipeline) -> None:
    """Denoiser and autoencoder are stored in half precision (their weights to 3 digits); diffusers loads them as float32.

    The text encoder stays float32, since transformers loads a model in the precision in which it is stored.
    """
    anonymous(pipeline.unet).half()
    anonymous(pipeline.vae).half()
    pipeline.save_pretrained(HERE / "model", safe_serialization=True)


# --- the judge ------------------------------------------------------------------------------------------------------------------


def never_shown(captions: list[str]) -> list[int]:
    """Which captions have an animal at an activity that the world never shows it at."""
    shown = {world.Scene(animal, activity=activity).caption for animal in world.ACTIVE_ANIMALS for activity in world.ACTIVITIES}
    return [i for i, caption in enumerate(captions) if caption.endswith(world.ACTIVITIES) and caption not in shown]


def make_judge(work: Path, device: torch.device, start: Start) -> None:
    pipeline = load_pipeline(HERE / "model")

    def shown(name: str, seed: int, count: int, again: int, draw: Draw) -> tuple[list[str], Tensor, Tensor]:
        """Captions and renders, and the first few drawn again."""
        captions, rendered = scenes(work, name, seed, count, draw)
        drawn = redrawn(work, name, captions[:again], rendered[:again], pipeline, device)
        return captions, on_device(rendered, device), on_device(drawn, device)

    def labels_of(captions: list[str]) -> Tensor:
        return torch.tensor([label_of(c) for c in captions], device=device)

    own, own_pictures, own_drawn = shown("judge", JUDGE_SEED, JUDGE_SCENES, JUDGE_REDRAWN, world.sample)
    looks, looks_pictures, looks_drawn = shown("judge-looks", JUDGE_LOOKS_SEED, JUDGE_SCENES, JUDGE_REDRAWN, sample)
    labels = labels_of(own + looks + own[: len(own_drawn)] + looks[: len(looks_drawn)])
    pictures = torch.cat([own_pictures, looks_pictures, own_drawn, looks_drawn])
    renders = len(own) + len(looks)
    test_captions, test_pictures, test_drawn = shown("held_out", HELD_OUT_SEED, HELD_OUT_SCENES, JUDGE_REDRAWN // 8, world.sample)
    pair_captions, pair_pictures, pair_drawn = shown("held_out-looks", PAIRS_SEED, HELD_OUT_SCENES, JUDGE_REDRAWN // 8, sample)
    kept = never_shown(pair_captions)
    drawn_labels = labels_of(test_captions[: len(test_drawn)] + pair_captions[: len(pair_drawn)])
    test_labels, pair_labels = labels_of(test_captions), labels_of([pair_captions[i] for i in kept])
    pairs = pair_pictures[kept]
    torch.manual_seed(1)
    judge = Judge().to(device)
    if start.shipped:
        judge.load_state_dict(Judge.load().state_dict())

    def loss_of() -> tuple[Tensor, dict[str, Tensor]]:
        index = draws(renders, len(pictures) - renders, JUDGE_BATCH).to(device)
        label, images = labels[index], images_of(pictures[index])
        ruins = ruined(images[:12], images[12:24], label[:12, 0] != label[12:24, 0])
        images = augment(torch.cat([ruins, images[12:]]))
        subject = torch.cat([torch.full_like(label[:12, 0], NOTHING), label[12:, 0]])
        with half(device):
            logits = judge(images)
        loss = F.cross_entropy(logits[0].float(), subject)
        for i in (1, 2):
            loss = loss + F.cross_entropy(logits[i][12:].float(), label[12:, i])
        return loss, dict(loss=loss, hit=(logits[0].argmax(1) == subject).float().mean())

    name, lr = ("judge_on", 1e-3) if start.shipped else ("judge", 2e-3)
    train(name, work, {"judge": judge}, loss_of, device=device, steps=start.steps or JUDGE_STEPS, lr=lr, weight_decay=0.05)
    judge.eval()
    caught, half_count = 0, HELD_OUT_SCENES // 2

    def accuracy_on(pictures: Tensor, labels: Tensor) -> dict[str, float]:
        hits = torch.zeros(len(CLASSES))
        for part in torch.arange(len(pictures), device=device).split(250):
            hits += torch.tensor([(head.argmax(1) == labels[part, i]).sum().item() for i, head in enumerate(judge(images_of(pictures[part])))])
        return dict(zip(CLASSES, (hits / len(pictures)).tolist(), strict=True))

    with torch.no_grad():
        accuracy = accuracy_on(test_pictures, test_labels)
        accuracy |= {f"{name} of pairs never shown": value for name, value in accuracy_on(pairs, pair_labels).items() if name != "count"}
        accuracy |= {f"{name} drawn again": value for name, value in accuracy_on(torch.cat([test_drawn, pair_drawn]), drawn_labels).items()}
        for part in torch.arange(half_count, device=device).split(250):
            other = part + half_count
            ruins = ruined(images_of(test_pictures[part]), images_of(test_pictures[other]), test_labels[part, 0] != test_labels[other, 0])
            caught += (judge(ruins)[0].argmax(1) == NOTHING).sum().item()
    accuracy |= dict(ruins=caught / half_count)
    judge.cpu().save(HERE / "judge", accuracy)
    print("judge, held-out accuracy:", accuracy)


JUDGE_STEPS, JUDGE_BATCH = 3_000, 64


STAGES: dict[str, tuple[str, Callable[[Path, torch.device, Start], None]]] = dict(
    clip=("clip/preprocessor_config.json", make_clip),
    vae=("model/vae/diffusion_pytorch_model.safetensors", make_vae),
    unet=("model/model_index.json", make_unet),
    judge=("judge/model.safetensors", make_judge),
    aesthetic=("aesthetic/model.safetensors", make_aesthetic),
    llava=("llava/processor_config.json", make_llava),
    bert=("bert/tokenizer.json", make_bert),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the pocket model from emoji renders; resumable.")
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="folder for renders and checkpoints (about 5 GB)")
    parser.add_argument("--only", choices=STAGES, action="append", help="run these stages only; repeat for several")
    parser.add_argument("--force", action="store_true", help="run a stage although its result exists")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    parser.add_argument(
        "--continue",
        dest="shipped",
        action="store_true",
        help="start vae (its second part), unet, judge or llava from the shipped weights; the other stages always start anew",
    )
    parser.add_argument("--steps", type=int, help="steps of the stage, instead of the recipe's")
    options = parser.parse_args(arguments)
    for name, (result, make) in STAGES.items():
        if options.only and name not in options.only:
            continue
        if (HERE / result).exists() and not options.force:
            print(f"{name}: {result} exists")
            continue
        started = time.monotonic()
        make(options.work, options.device, Start(options.shipped, options.steps))
        for checkpoint in options.work.glob(f"{name}*.ckpt"):  # done: what comes next starts anew
            checkpoint.unlink()
        print(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
