"""The pocket's LLaVA and BERT: a model that looks at a scene and answers, and an encoder that compares its answer with the prompt.

Both have the classes of the published networks (``LlavaForConditionalGeneration``, ``BertModel``) and go through the same rewards. The LLaVA is a
CLIP tower that starts from the pocket CLIP's, and a Llama of four layers that knows the world's words; it learns to describe a scene and to
answer the strict questions of ``rewards/satisfaction.py``. They are stages of ``python -m pocket.recipe``; ``python -m pocket.vlm`` measures
them on held-out renders, through the rewards' own code.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pocket import world
from pocket.data import scenes
from pocket.evaluate import load_pipeline
from pocket.redraw import draws, redrawn
from pocket.training import CLIP_MEAN, CLIP_STD, Start, augment, half, images_of, on_device, ruined, train
from rewards.alignment import QUESTION, REFERENCE
from rewards.base import Sample
from rewards.bertscore import BertScore
from rewards.satisfaction import Satisfaction, questions_of
from rewards.vlm import Llava

HERE = Path(__file__).parent
SCENES, SEED, HELD_OUT_SCENES, HELD_OUT_SEED = 60_000, 40_000_000, 1_000, 50_000_000
LLAVA_STEPS, LLAVA_BATCH, BERT_STEPS, BERT_BATCH = 2_600, 48, 1_200, 128
LENGTH = 40
"""Words of a question and its answer, special ones included, beside the image's tokens."""
IMAGE, IGNORED = "<image>", -100
NOTHING = "nothing recognisable"
"""What is said of a ruined picture."""
REDRAWN = 8_000
"""Of the scenes, and of the held-out ones a fortieth as many, are drawn again by the model (:mod:`pocket.redraw`)."""
RUINED = 0.15
"""The share of pictures that are ruined while the LLaVA learns."""
BERT_LAYER = 2
"""The hidden layer that BERTScore compares."""


def sample(seed: int) -> tuple[str, Image.Image]:
    """A scene for those who look: every animal at every activity, counts, and whatever background. The caption leaves the background out."""
    rng = random.Random(seed)
    kind = rng.random()
    everything, animals = list(world.GLYPHS), [*world.ANIMALS, *world.UNSEEN_ANIMALS]
    if kind < 0.35:
        told = shown = world.Scene(rng.choice(everything))
    elif kind < 0.65:
        told = shown = world.Scene(rng.choice(animals), activity=rng.choice(world.ACTIVITIES))
    elif kind < 0.90:
        told = shown = world.Scene(rng.choice(animals), count=rng.choice(list(world.COUNTS.values())))
    else:
        subject = rng.choice(everything)
        told = world.Scene(subject)
        coloured, placed = world.Scene(subject, colour=rng.choice(list(world.COLOURS))), world.Scene(subject, place=rng.choice(world.PLACES))
        shown = coloured if rng.random() < 0.5 else placed
    return told.caption, world.render(shown, rng)


def ask(caption: str, rng: random.Random) -> tuple[str, str]:
    """A question about a scene, or about a ruined one (:data:`NOTHING`), and its answer: half of the time what is going on, else a strict one.

    A quarter of the strict questions is of what is not there: who is only asked about what is there learns to answer the question instead of the
    picture, and finds a bike with every llama that is said to ride one.
    """
    if rng.random() < 0.5:
        return QUESTION, caption
    kind = rng.random()
    if kind < 0.3:
        other = caption if rng.random() < 0.5 else rng.choice(world.captions())
        return f'Does this image show "{other}"? Answer yes or no.', "yes" if other == caption != NOTHING else "no"
    absent = rng.choice([each for each in world.ANIMALS if each not in caption and world.plural(each) not in caption])
    if caption == NOTHING:
        text = rng.choice(
            ("What animal is in this image?", f"How many {world.plural(absent)} are there in this image?", f"What is the {absent} doing?")
        )
        return text, "zero" if text.startswith("How many") else "nothing"
    asked = questions_of(caption, world.GLYPHS)
    if rng.random() < 0.25:
        still = asked[0].text.startswith("What animal") and not caption.endswith(world.ACTIVITIES)
        noun = asked[0].accepted[0] if still and rng.random() < 0.7 else absent
        if noun == absent and rng.random() < 0.5:
            return f"How many {world.plural(absent)} are there in this image?", "zero"
        return f"What is the {noun} doing?", "nothing"
    question = rng.choice(asked)
    if question.text.startswith("How many"):
        return question.text, question.accepted[0]
    if question.text.startswith("What animal"):
        noun = question.accepted[0]
        if kind < 0.5:  # of one as well as of many
            return f"How many {world.plural(noun)} are there in this image?", next((w for w in world.COUNTS if caption.startswith(w + " ")), "one")
        return question.text, world.article(noun)
    if question.text.startswith("Does"):
        return question.text, "yes"
    return question.text, next(a for a in world.ACTIVITIES if caption.endswith(a))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the world's words, in lower case."""
    rng = random.Random(0)
    asked = [f"{q} {a}" for caption in world.captions() for q, a in (ask(caption, rng) for _ in range(12)) if "taking an exam" not in caption]
    texts = [Llava.TEMPLATE.replace(IMAGE, ""), REFERENCE, NOTHING, *asked, *world.captions(), "zero one two three four five six seven eight"]
    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())})
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<unk>", "<s>", "</s>", "<mask>", IMAGE, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), splitter
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", mask_token="<mask>",
        additional_special_tokens=[IMAGE], model_max_length=128, padding_side="left",
    )  # fmt: skip


def make_llava(work: Path, device: torch.device, start: Start) -> None:
    """Train the pocket LLaVA and write it to ``pocket/llava``."""
    captions, rendered = scenes(work, "vlm", SEED, SCENES, sample)
    drawn = redrawn(work, "vlm", captions[:REDRAWN], rendered[:REDRAWN], load_pipeline(HERE / "model"), device)
    renders, captions = len(captions), captions + captions[:REDRAWN]
    pictures = torch.cat([on_device(rendered, device), on_device(drawn, device)])
    tokenizer = make_tokenizer()
    clip = CLIPModel.from_pretrained(HERE / "clip")
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    patches = (world.SIZE // clip.config.vision_config.patch_size) ** 2
    config = LlavaConfig(
        vision_config=clip.config.vision_config, text_config=text, image_token_index=image_id, vision_feature_layer=-1, image_seq_length=patches
    )
    llava = LlavaForConditionalGeneration(config).to(device)
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    if start.shipped:
        adopt(llava, tokenizer)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))

    def texts(told: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and targets (n, patches + LENGTH): questions with their answers, padded on the right; only answers are targets."""
        ids = torch.full((len(told), patches + LENGTH), tokenizer.pad_token_id)
        targets = torch.full_like(ids, IGNORED)
        rng = random.Random(int(torch.randint(2**31, ())))  # resumes with torch's generator
        for row, caption in enumerate(told):
            question, answer = ask(caption, rng)
            asked = tokenizer(Llava.TEMPLATE.format(question=question)).input_ids
            at = asked.index(image_id)
            asked = asked[:at] + [image_id] * patches + asked[at + 1 :]
            answered = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            ids[row, : len(asked) + len(answered)] = torch.tensor(asked + answered)
            targets[row, len(asked) : len(asked) + len(answered)] = torch.tensor(answered)
        return ids.to(device), targets.to(device)

    def loss_of() -> tuple[Tensor, dict[str, Tensor]]:
        index = draws(renders, len(drawn), LLAVA_BATCH)
        chosen = [captions[i] for i in index.tolist()]
        images = images_of(pictures[index.to(device)])
        different = torch.tensor([subject(a) != subject(b) for a, b in zip(chosen, [chosen[-1], *chosen[:-1]], strict=True)], device=device)
        ruin = torch.rand(len(chosen)) < RUINED
        images = torch.where(ruin.to(device)[:, None, None, None], ruined(images, images.roll(1, 0), different), images)
        ids, targets = texts([NOTHING if gone else caption for gone, caption in zip(ruin.tolist(), chosen, strict=True)])
        pixels = (images + 1) / 2
        soft = torch.rand(len(pixels), 1, 1, 1, device=device) < 0.5
        pixels = torch.where(soft, (augment(2 * pixels - 1) + 1) / 2, pixels).clamp(0, 1)
        used = int((ids != tokenizer.pad_token_id).sum(1).max())
        ids, targets = ids[:, :used], targets[:, :used]
        with half(device):
            logits = llava(input_ids=ids, pixel_values=(pixels - mean) / std, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
        wanted = targets[:, 1:]
        told = wanted != IGNORED
        found = logits[:, :-1][told].float()
        loss = F.cross_entropy(found, wanted[told])
        return loss, dict(loss=loss, hit=(found.argmax(1) == wanted[told]).float().mean())

    name = "llava_on" if start.shipped else "llava"
    train(name, work, {"llava": llava}, loss_of, device=device, steps=start.steps or LLAVA_STEPS, lr=5e-4 if start.shipped else 1e-3)
    llava.cpu().half().save_pretrained(HERE / "llava")
    size = dict(height=world.SIZE, width=world.SIZE)
    LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False, image_mean=CLIP_MEAN, image_std=CLIP_STD), tokenizer,
        patch_size=clip.config.vision_config.patch_size, vision_feature_select_strategy="default", image_token=IMAGE, num_additional_image_tokens=1,
    ).save_pretrained(HERE / "llava")  # fmt: skip


def adopt(llava: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Take the shipped weights; words' vectors go by the word, since the vocabulary may have grown."""
    shipped, words = LlavaForConditionalGeneration.from_pretrained(HERE / "llava").state_dict(), tokenizer.get_vocab()
    before = PreTrainedTokenizerFast.from_pretrained(HERE / "llava").get_vocab()
    state = llava.state_dict()
    for key, value in shipped.items():
        if len(value) != len(before):
            state[key] = value
            continue
        for word in words.keys() & before.keys():
            state[key][words[word]] = value[before[word]]
    llava.load_state_dict(state)


def subject(caption: str) -> str:
    """The animal or thing of a caption, in the singular."""
    asked = questions_of(caption, world.GLYPHS)
    return next((question.accepted[0] for question in asked if question.text.startswith("What animal")), caption)


def make_bert(work: Path, device: torch.device, start: Start) -> None:
    """Train the pocket BERT on the world's sentences, a quarter of their words masked, and write its encoder to ``pocket/bert``.

    It names every word, those that it sees as well: where only masked ones are named, a cat and a dog, which stand in the same places, come to look
    alike, and a description of the wrong animal matches as well as one of the right animal.
    """
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=66, pad_token_id=tokenizer.pad_token_id,
        )
    ).to(device)  # fmt: skip
    captions = world.captions()
    sentences = [NOTHING, *captions, *(REFERENCE.format(prompt=caption) for caption in captions)]
    tokenizer.padding_side = "right"
    every = tokenizer(sentences, padding=True, return_tensors="pt").input_ids.to(device)

    def loss_of() -> tuple[Tensor, dict[str, Tensor]]:
        ids = every[torch.randint(len(every), (BERT_BATCH,), device=device)]
        words = (ids != tokenizer.pad_token_id) & (ids != tokenizer.bos_token_id)
        hidden = words & (torch.rand(ids.shape, device=device) < 0.25)
        with half(device):
            logits = bert(ids.masked_fill(hidden, tokenizer.mask_token_id), attention_mask=(ids != tokenizer.pad_token_id).long()).logits
        loss = F.cross_entropy(logits[words].float(), ids[words])
        return loss, dict(loss=loss)

    train("bert", work, {"bert": bert}, loss_of, device=device, steps=start.steps or BERT_STEPS, lr=5e-4)
    bert.bert.cpu().half().save_pretrained(HERE / "bert")
    tokenizer.save_pretrained(HERE / "bert")


def evaluate(work: Path, count: int) -> dict[str, Any]:
    """On held-out renders, each share of the pictures that it is about: does the description name the animal, the activity beside it, the count?
    Are strict questions answered right, and those of what is not there? Are ruined pictures declined, and those described that the model has
    drawn again? Does the true caption beat another one by BERTScore?"""
    captions, rendered = scenes(work, "vlm-held-out", HELD_OUT_SEED, HELD_OUT_SCENES, sample)
    captions, images = captions[:count], [Image.fromarray(np.array(picture)) for picture in rendered[:count]]
    answers = Llava(str(HERE / "llava")).answer(images, [QUESTION] * len(images))
    right: dict[str, list[bool]] = dict(animal=[], activity=[], count=[], exact=[])
    for caption, answer in zip(captions, answers, strict=True):
        right["exact"].append(answer == caption)
        asked = questions_of(caption, world.GLYPHS)
        noun = next(q for q in asked if q.text.startswith("What animal")).accepted
        named = any(f" {each} " in f" {answer} " for each in (*noun, world.plural(noun[0])))
        right["animal"].append(named)
        if activity := next((a for a in world.ACTIVITIES if caption.endswith(a)), ""):
            right["activity"].append(named and answer.endswith(activity))
        if number := next((w for w in world.COUNTS if caption.startswith(w + " ")), ""):
            right["count"].append(named and answer.startswith(number + " "))
    llava, still = (
        Llava(str(HERE / "llava")),
        [i for i, caption in enumerate(captions) if caption.split(" ", 1)[0] in ("a", "an") and caption.count(" ") == 1],
    )
    idle = llava.answer([images[i] for i in still], [f"What is the {subject(captions[i])} doing?" for i in still])
    absent = [random.Random(i).choice([each for each in world.ANIMALS if each != subject(caption)]) for i, caption in enumerate(captions)]
    none = llava.answer(images, [f"How many {world.plural(each)} are there in this image?" for each in absent])
    pixels = images_of(torch.from_numpy(np.array(rendered[:count])))
    torch.manual_seed(0)
    ruins = ruined(pixels, pixels.roll(1, 0), torch.ones(len(pixels), dtype=torch.bool))
    gone = [Image.fromarray(np.asarray(((each.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).byte())) for each in ruins]
    declined = llava.answer(gone, [QUESTION] * len(gone))
    again = captions[: REDRAWN // 40]
    drawn = redrawn(work, "vlm-held-out", again, rendered[: len(again)], load_pipeline(HERE / "model"), torch.device("cpu"))
    of_drawn = llava.answer([Image.fromarray(np.array(picture)) for picture in drawn], [QUESTION] * len(again))
    wrong = [random.Random(i).choice([c for c in captions if c != caption]) for i, caption in enumerate(captions)]
    bert = BertScore(str(HERE / "bert"), BERT_LAYER)
    true, false = (bert.match(answers, [REFERENCE.format(prompt=c) for c in each]) for each in (captions, wrong))
    strict = Satisfaction(str(HERE / "llava")).score([Sample(i, c, image) for i, (c, image) in enumerate(zip(captions, images, strict=True))])
    return dict(
        **{name: round(float(np.mean(found)), 4) for name, found in right.items()},
        strict=round(float(np.mean([score.value for score in strict])), 4),
        nothing_doing=round(float(np.mean([answer == "nothing" for answer in idle])), 4),
        none_there=round(float(np.mean([answer == "zero" for answer in none])), 4),
        redrawn_exact=round(float(np.mean([answer == caption for answer, caption in zip(of_drawn, again, strict=True)])), 4),
        ruined_declined=round(float(np.mean([answer == NOTHING for answer in declined])), 4),
        bertscore_wins=round(float(np.mean([t.recall > f.recall for t, f in zip(true, false, strict=True)])), 4),
        recall_true=round(float(np.mean([t.recall for t in true])), 4), recall_false=round(float(np.mean([f.recall for f in false])), 4),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="folder for renders")
    parser.add_argument("--count", type=int, default=HELD_OUT_SCENES, help="held-out renders")
    options = parser.parse_args()
    print(json.dumps(evaluate(options.work, options.count)))


if __name__ == "__main__":
    main()
