"""The README that lies beside what people take away: a model card, or a data card, in the Hugging Face Hub's form. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddpo import blind, strengths
from ddpo.config import ConfigError, RunConfig
from ddpo.dataset import Row, public_reward
from ddpo.earlier import sources_in
from ddpo.generalisation import Generalisation, measured, rows_of
from ddpo.markup import quoted, shown, table, words_for
from ddpo.records import latest
from ddpo.source import model_source
from ddpo.store import RunStore, StoreError
from rewards.human import BOTH_BAD

MOST_ROUNDS = 25
"""Rounds in the card's table at most; of more, evenly chosen ones."""
MOST_PROMPTS = 30
LOADING = {
    "diffusers": 'pipeline.load_lora_weights(".")\n',
    "kohya": 'pipeline.load_lora_weights(".", weight_name="{file}")\n',
    "pipeline": "",
}
MODEL_TAGS = ("text-to-image", "diffusers", "reinforcement-learning", "ddpo-studio")
METHODS = {
    "ddpo-is": ("DDPO", "2305.13301"), "ddpo-sf": ("DDPO", "2305.13301"), "rwr": ("RWR", "2302.12192"), "rwr-sparse": ("RWR", "2302.12192"),
    "nft": ("DiffusionNFT", "2509.16117"),
}  # fmt: skip
"""What each objective's method is called, and its paper on arXiv."""


def model_card(
    store: RunStore, number: int, kind: str, family: str, file: str, strength: float, pictures: Sequence[str] = (), curves: Sequence[str] = ()
) -> str:
    """What was trained, by which reward, from how many ratings, how it went, and how to load it; ``pictures`` and ``curves`` are paragraphs of what
    lies beside the card (:mod:`ddpo.illustrations`)."""
    config = store.config
    base, lora, (method, paper) = base_name(config), kind != "pipeline", METHODS[config.objective]
    head = dict(
        base_model=base, base_model_relation="adapter" if lora else "finetune", library_name="diffusers", pipeline_tag="text-to-image",
        tags=[*MODEL_TAGS, method.lower(), "stable-diffusion-xl" if family == "xl" else "stable-diffusion", *(["lora"] if lora else [])],
    )  # fmt: skip
    what = "A LoRA adapter for" if lora else "A whole model, finetuned from"
    rounds = [row for row in store.rounds() if row.number <= number]
    scaled = "" if strength == 1 else f" Its strength is set to {strength:g} times what was trained."
    return "\n\n".join(
        [
            front_matter(head),
            f"# {store.name}",
            f"{what} `{base}`, made with DDPO Studio by reinforcement learning ([{method}](https://arxiv.org/abs/{paper})): images were sampled "
            f"and scored, and the model learned to make those that score well. This is round {number} of {config.rounds}.{scaled}",
            *(["## Pictures", *pictures] if pictures else []),
            "## What was trained",
            table(("what", "value"), facts(store, number)),
            *_held_out(store, number),
            *_generalisation(store, number),
            *_strengths(store, number, strength),
            *_blind(store, number),
            "## The reward, round by round",
            *curves,
            table(("round", "reward", "mean", "standard deviation", "images scored"), history(store, len(rounds), number)),
            "## How to load it",
            *([f"In A1111, Forge or ComfyUI: put `{file}` into the folder of LoRAs (`models/Lora`, `models/loras`). "
               f"In A1111's prompt it is `<lora:{Path(file).stem}:1>`."] if kind == "kohya" else []),
            f"With diffusers, in the folder of this file{_where(config) if lora else ''}:",
            f"```python\n{snippet(config, kind, family, file)}```",
            "## Prompts",
            _prompts(config.prompts),
            *(["Never trained on, to see how far it reaches:", _prompts(config.held_out_prompts)] if config.held_out_prompts else []),
            "## All settings",
            f"```json\n{json.dumps(public_settings(config), indent=1, ensure_ascii=False)}\n```",
            f"The licence of the base model, `{base}`, applies to what was made from it.",
        ]
    ) + "\n"  # fmt: skip


def facts(store: RunStore, number: int) -> list[tuple[str, ...]]:
    """What was trained, in a few rows."""
    config = store.config
    ratings, raters = ratings_until(store, number)
    scale = config.lora_alpha or config.lora_rank
    adapter = f"LoRA, rank {config.lora_rank}, alpha {scale:g}, {config.lora_targets} layers" if config.training == "lora" else "the whole denoiser"
    stretches = [f"{public_reward(reward)} (from round {first})" for first, reward in store.reward_stretches() if first <= number]
    updates = f"{config.updates_per_round} update{'' if config.updates_per_round == 1 else 's'} a round"
    warm = f" (reached after {config.warmup_rounds} round{'' if config.warmup_rounds == 1 else 's'} of warm-up)" if config.warmup_rounds else ""
    return [
        ("base model", f"`{base_name(config)}`"),
        ("trained", adapter),
        *([("started from", f"the LoRA `{Path(config.init_lora).name}`")] if config.init_lora else []),
        *([("goes on from", f"round {store.parent[1]} of the run `{store.parent[0]}`")] if store.parent else []),
        ("rounds", f"{number}, {config.images_per_round} images each"),
        ("ratings", f"{ratings:,} by {raters} {'person' if raters == 1 else 'people'}" if ratings else "none"),
        *_from_elsewhere(store),
        ("reward", stretches[0].rpartition(" (")[0] if len(stretches) == 1 else ", then ".join(stretches)),
        ("objective", f"{config.objective}, learning rate {config.learning_rate:g}{warm}, {updates}"),
        ("sampler", f"DDIM, {config.steps} steps, guidance {config.guidance:g}, η {config.eta:g}"),
        *_distance(store, number),
        ("weights taken", "a moving average of the trained ones" if config.ema_decay else "the trained ones"),
        ("seed", str(config.seed)),
    ]


def _from_elsewhere(store: RunStore) -> list[tuple[str, str]]:
    """How much a model of taste learned from besides, without the names of files; nothing where there is none, or it is damaged."""
    try:
        told = sources_in(store.folder)
    except StoreError:
        return []
    ratings, people = (sum(each[name] for each in told) for name in ("ratings", "raters"))
    whose = f"{words_for(people, 'person', 'people')} in {words_for(len(told), 'source')}"
    return [("ratings from elsewhere", f"{ratings:,} by {whose}")] if told else []


def _distance(store: RunStore, number: int) -> list[tuple[str, str]]:
    """How far from the base model the last watched round up to one is; nothing where it was not measured."""
    last, nats = max(((n, nats) for n, nats in store.metrics().get("watched_kl", []) if 0 < n <= number and nats is not None), default=(0, 0.0))
    pictures = sum(row.found.get("kl") is not None for row in store.probes(last))
    told = f"KL divergence over a picture's whole denoising, mean of {words_for(pictures, 'picture')}, after round {last} at full strength"
    return [("distance from the base model", f"{shown(nats)} nats ({told})")] if last else []


def ratings_until(store: RunStore, number: int) -> tuple[int, int]:
    """How many images were rated up to a round, each once a rater, and by how many people."""
    rated = rated_images(store, number)
    return sum(rated.values()), len(rated)


def rated_images(store: RunStore, number: int) -> Counter[str]:
    """How many images each rater has rated up to a round, by themselves or in pairs."""
    said = [row for rows in latest(row for row in store.ratings() if row.round <= number).values() for row in rows]
    judged = [row for row in said if row.value is not None or row.kind == BOTH_BAD]
    images = dict.fromkeys((row.rater, image) for row in judged for image in (row.sample, row.other) if image is not None)
    return Counter(rater for rater, _ in images)


def history(store: RunStore, rounds: int, number: int) -> list[tuple[str, ...]]:
    """The reward of each round up to one, from the first to that one."""
    metrics = {name: dict(points) for name, points in store.metrics().items()}
    every = -(-rounds // MOST_ROUNDS)
    chosen = [n for n in range(1, number + 1) if n == number or (n - 1) % max(1, every) == 0]
    columns = ("reward_mean", "reward_std", "scored_images")
    return [(str(n), public_reward(store.reward_at(n)), *(shown(metrics.get(name, {}).get(n)) for name in columns)) for n in chosen]


@dataclass(frozen=True)
class HeldOutChange:
    """The mean reward of images whose seeds were never trained on, by the reward in force: of the base model and after the last measured round. A
    value comes with its standard error, which is None where it is not known."""

    before: tuple[float, float | None]
    last: int
    after: tuple[float, float | None]


def held_out_change(store: RunStore, number: int) -> HeldOutChange | None:
    """Before and after, up to a round; None where it was not measured."""
    metrics = {name: dict(points) for name, points in store.metrics().items()}
    since = next(first for first, _ in reversed(store.reward_stretches()) if first <= number)
    of, start = ("held_out_reward", 0) if since == 1 else ("held_out_base", since)
    held = {n: value for n, value in metrics.get("held_out_reward", {}).items() if max(1, start) <= n <= number and value is not None}
    before = metrics.get(of, {}).get(start)
    if not held or before is None:
        return None
    last = max(held)
    error = {name: metrics.get(f"{name}_std_error", {}) for name in (of, "held_out_reward")}
    return HeldOutChange((before, error[of].get(start)), last, (held[last], error["held_out_reward"].get(last)))


def _held_out(store: RunStore, number: int) -> list[str]:
    """Before and after as a section of the card; nothing where it was not measured."""
    change = held_out_change(store, number)
    if change is None:
        return []
    cells = [f"{shown(value)} ± {shown(error)}" for value, error in (change.before, change.after)]
    return [
        "## Before and after",
        f"The mean reward (± its standard error) of {store.config.held_out_images} images whose seeds were never trained on.",
        table(("reward", "base model", f"after round {change.last}"), [(public_reward(store.reward_at(number)), *cells)]),
    ]


def generalisation_card(store: RunStore, found: Generalisation, missing: Sequence[str]) -> str:
    """What was measured of how far a run reaches, for people; ``missing`` names rewards that could not be asked."""
    told = (
        "`generalisation.csv` has a row for each pair of pictures, with what every reward says of either; `generalisation.json` has the table above. "
        f"The base model is `{base_name(store.config)}`; what was optimised is {found.reward}."
    )
    told += f" Could not be asked: {', '.join(missing)}." if missing else ""
    words = " ".join([REACH, *found.words()])
    return "\n\n".join([f"# {store.name}: how far it reaches after round {found.round}", words, table(*rows_of(found)), told]) + "\n"


def _blind(store: RunStore, number: int) -> list[str]:
    """What people said who did not know whose picture was whose, as a section of the card; nothing where nobody did."""
    found = blind.until(blind.results(store.folder), number)
    return ["## Blind tests", blind.MEANING, table(blind.COLUMNS, [blind.row_of(result) for result in found])] if found else []


def _generalisation(store: RunStore, number: int) -> list[str]:
    """How far it reaches as a section of the card; nothing where it was not measured."""
    found = measured(store, number)
    return ["## How far it reaches", " ".join([REACH, *found.words()]), table(*rows_of(found))] if found else []


def _strengths(store: RunStore, number: int, strength: float) -> list[str]:
    """What it is at less than its full strength, as a section of the card; nothing where it was not measured."""
    found = strengths.measured(store, number)
    if found is None:
        return []
    taken = [f"What lies beside this card is at {strengths.percent(strength)} already."] if strength != 1 else []
    return ["## How strong it should be", " ".join([*found.words(), *taken]), table(*strengths.rows_of(found))]


REACH = (
    "Each picture is compared with the base model's of the same prompt and seed, which was not trained on. The trained prompts come first; the "
    "others are none of this run's prompts. Intervals (95 %) are over the pictures of a single prompt, and of the trained prompts where all of these "
    "were measured and each with two pictures at least; else over the prompts, which stand for prompts like them."
)


def snippet(config: RunConfig, kind: str, family: str, file: str) -> str:
    """The Python that loads it and makes an image as the run did."""
    cls = "StableDiffusionXLPipeline" if family == "xl" else "StableDiffusionPipeline"
    source = _kind(config)
    base = json.dumps("pocket/model" if config.model == "pocket" else base_name(config), ensure_ascii=False)
    revision = f", revision={json.dumps(config.revision)}" if config.revision else ""
    load = f"{cls}.from_single_file({base})" if source == "file" else f"{cls}.from_pretrained({base}{revision})"
    if kind == "pipeline":
        load = f'{cls}.from_pretrained(".")'
    size = f", width={config.resolution}, height={config.resolution}" if config.resolution else ""
    prompt = json.dumps(config.prompts[0], ensure_ascii=False)
    return (
        f"import torch\nfrom diffusers import DDIMScheduler, {cls}\n\npipeline = {load}\n"
        f"pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)\n{LOADING[kind].format(file=file)}"
        f"image = pipeline({prompt}, num_inference_steps={config.steps}, guidance_scale={config.guidance:g}, eta={config.eta:g}{size},\n"
        f'                 generator=torch.Generator().manual_seed(0)).images[0]\nimage.save("image.png")\n'
    )


def data_card(store: RunStore, kind: str, rows: list[Row], named: bool) -> str:
    """What the files of ratings, pairs or images hold, and how to read them."""
    files, lines = DATA[kind]
    head = dict(task_categories=["text-to-image"], tags=["ddpo-studio", "human-feedback"], pretty_name=store.name)
    rounds = sorted({row["round"] for row in rows})
    who = "Raters are called by their names." if named else "Raters are called by a hash of their names, which is another one in each run."
    return "\n\n".join(
        [
            front_matter(head),
            f"# {store.name}: {TITLES[kind]}",
            f"From a run of DDPO Studio that finetuned `{base_name(store.config)}`: {len(rows):,} rows of {len(rounds)} rounds. {files}"
            + (f" {who}" if kind != "imagefolder" else ""),
            f"```python\n{lines}```",
            "## Prompts",
            _prompts(store.config.prompts),
        ]
    ) + "\n"  # fmt: skip


TITLES = dict(ratings="ratings", pairs="preference pairs", imagefolder="rated images")
DATA = {
    "ratings": (
        "`ratings.csv` and `ratings.jsonl` hold the same: every event in the order in which it came. By `kind`, `value` is: thumbs -1 or 1; stars 1 "
        "to 5; best 2 (the best of its prompt) or 1 (a good one); best-worst 1 (the best of its set) or -1 (the worst); pairs 1 (`image` is better), "
        "-1 (`other` is) or 0 (equally good). Without a value are bad (`image` and `other` both are), skip, and clear (an earlier one taken back). "
        "`other` is the second image of a pair. `counts` marks each rater's last word, be it that it came after the round had been learned from; "
        "`weight` is 0.5 where a rater counts half beside others, else 1. Times are seconds since 1970. "
        "`metadata.jsonl` names the images that people were asked about, in the order of the board.",
        'import pandas\n\nratings = pandas.read_json("ratings.jsonl", lines=True)\n'
        'print(ratings[ratings.counts].groupby(["kind", "prompt"]).value.mean())\n',
    ),
    "pairs": (
        "`pairs.jsonl` has Pick-a-Pic's columns, and `jpg_0` and `jpg_1` name files beside it (PNG, as they were made). Both images of a pair are of "
        "one prompt and round and were rated by the same person; `label_0` is 1 where the first is better, 0 where the second is, and 0.5 for a tie. "
        "Scripts of Diffusion-DPO want the images' bytes in these columns:",
        'import json\nfrom pathlib import Path\n\nwith open("pairs.jsonl", encoding="utf-8") as lines:\n'
        "    pairs = [json.loads(line) for line in lines]\n"
        'for pair in pairs:\n    pair |= {side: Path(pair[side]).read_bytes() for side in ("jpg_0", "jpg_1")}\n',
    ),
    "imagefolder": (
        "`metadata.jsonl` names each image's file, its prompt, `score` (what the run's reward said) and `rating` (people's, from -1 to 1, or null). "
        '`datasets.load_dataset("imagefolder", data_dir=".")` reads it; without that library:',
        'import json\n\nfrom PIL import Image\n\nwith open("metadata.jsonl", encoding="utf-8") as lines:\n'
        "    rows = [json.loads(line) for line in lines]\n"
        'best = max((row for row in rows if row["score"] is not None), key=lambda row: row["score"])\n'
        'Image.open(best["file_name"]).save("best.png")\n',
    ),
}  # fmt: skip
"""What each kind's files hold, and Python that reads them."""


# --- words ----------------------------------------------------------------------------------------------------------------------


def base_name(config: RunConfig) -> str:
    """The base model: its name on the Hub, or the name of its file or folder without what leads there."""
    return config.model if _kind(config) == "hub" else Path(config.model).name or config.model


def public_settings(config: RunConfig) -> dict[str, Any]:
    """The settings but for the prompts, without the folders and addresses of somebody's machines, and without the names of files of ratings, which
    may be people's."""
    changes: dict[str, Any] = dict(model=base_name(config), reward=public_reward(config.reward))
    changes |= {
        name: Path(getattr(config, name)).name for name in ("model_config", "reward_vlm", "init_lora") if Path(getattr(config, name)).is_absolute()
    }
    changes["ratings_from"] = words_for(len(config.ratings_sources), "source") if config.ratings_from else ""
    if "://" in config.reward_vlm:
        changes["reward_vlm"] = config.reward_vlm.partition("#")[2]
    return {name: value for name, value in (asdict(config) | changes).items() if name not in ("prompts", "held_out_prompts")}


def _kind(config: RunConfig) -> str:
    """Where the base model comes from: hub, file or folder; of one that is gone, what its name looks like."""
    try:
        return model_source(config).kind
    except ConfigError:
        return "file" if config.model.endswith(".safetensors") else "folder"


def _where(config: RunConfig) -> str:
    """What to say of a base model that is no name on the Hub."""
    return "" if _kind(config) == "hub" else ", where the base model's name stands for the path to it"


def _prompts(prompts: Sequence[str]) -> str:
    shown_ones = "\n".join(f"- {quoted(prompt)}" for prompt in prompts[:MOST_PROMPTS])
    more = len(prompts) - MOST_PROMPTS
    return f"{shown_ones}\n\n… and {more} more." if more > 0 else shown_ones


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML between dashes; each value as JSON, which YAML reads."""
    return "---\n" + "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()) + "\n---"
