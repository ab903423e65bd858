"""What people take away from a run: its model in the forms that other programs load, and its ratings. Imports torch for a whole model only."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ddpo import strengths
from ddpo.card import data_card, generalisation_card, model_card
from ddpo.dataset import Row, board_rows, copy_pictures, image_rows, pair_rows, raters_of, rating_rows, write_lines, write_table
from ddpo.generalisation import TRAINED, groups_of, measure
from ddpo.illustrations import curves, pictures
from ddpo.report import Pair, held_out_pairs, report, watched_pairs
from ddpo.result import result_until, rolled_back
from ddpo.source import LORA_FILE
from ddpo.store import RunStore
from ddpo.twins import Failure, Report

MODELS = {
    "diffusers": "a LoRA for diffusers (pytorch_lora_weights.safetensors)",
    "kohya": "a LoRA for A1111, Forge and ComfyUI (one .safetensors file)",
    "pipeline": "the whole model as a diffusers folder, the LoRA merged in",
}
DATA = {
    "ratings": "every rating, as CSV and JSON lines, with the images that were rated",
    "pairs": "preference pairs in Pick-a-Pic's columns, with their images",
    "imagefolder": "the images, with prompts, scores and ratings",
}
REPORT = {"report": "the run as one HTML file: curves, pictures, ratings, settings"}
MEASURED = {
    "generalisation": "how far it reaches: the reward on trained and on unseen prompts, base against a round, with every picture",
    "strengths": "how strong: the same pictures at 0 to 100 % of what was trained, and what rewards say of them, as one HTML file",
}
EXPORTS = MODELS | DATA | REPORT | MEASURED
"""The kinds of export, each with what it is."""
PAGES = ("report", "strengths")
"""Those that are one HTML file."""
PRECISIONS = ("fp32", "fp16")


class ExportError(RuntimeError):
    """This cannot be taken away; the message says why and what to do."""


PICTURES = dict(report=(8, 64), generalisation=(48, 1024), strengths=(32, 1024))
"""How many pictures before and after a report has by itself, and at most; each group of prompts of how far it reaches; and each strength."""


def export(
    store: RunStore,
    kind: str,
    out: Path,
    number: int | None = None,
    strength: float = 1.0,
    precision: str = "fp32",
    names: bool = False,
    pictures: int | None = None,
    unseen: Mapping[str, Sequence[str]] | None = None,
    report: Report = lambda done, total: None,
) -> int | None:
    """Make the folder ``out`` with an export and its README.md, or with a page; all of it or nothing. Returns the round of a model's weights, or
    the last one of a report.

    Args:
        number: the round; by default for a model the last one with a checkpoint, or the one that the run is rolled back to, and for data all rounds.
        strength: how much of what was trained, for a model: 1 is all of it.
        names: call raters by their names instead of a hash.
        pictures: how many pictures before and after a report has, or each group of prompts, or each strength; they take the model.
        unseen: prompts that were not trained on, by a name for them, for how far it reaches; by default those kept for the run.
        report: called with how many pictures are made, and of how many.

    Raises:
        ExportError: there is no such round, nothing to export, or the folder cannot be written.
    """
    if kind not in EXPORTS:
        raise ExportError(f"{kind!r} is no kind of export; choose one of {', '.join(EXPORTS)}.")
    by_itself, most = PICTURES.get(kind, (0, 0))
    pictures, least = by_itself if pictures is None else pictures, 1 if kind in MEASURED else 0
    if most and not least <= pictures <= most:
        raise ExportError(f"pictures is {pictures}; it must be between {least} and {most}.")
    if unseen and kind != "generalisation":
        raise ExportError("Unseen prompts are for generalisation only. Leave out --unseen.")
    if not 0 < strength <= 10:
        raise ExportError(f"strength is {strength:g}; it must be above 0 and at most 10. 1 is what was trained.")
    try:
        with new_folder(out) as folder:
            if kind in DATA:
                write_data(store, kind, folder, number, names)
                return number
            if kind in REPORT:
                return write_report(store, folder, number, names, pictures)
            number, place = checkpoint_of(store, number)
            if kind == "generalisation":
                write_generalisation(store, folder, number, place, pictures, unseen or {}, report)
            elif kind == "strengths":
                write_strengths(store, folder, number, place, pictures, report)
            else:
                write_model(store, kind, folder, number, place, strength, precision)
            return number
    except OSError as error:
        raise ExportError(f"{out} cannot be written, or the run's files cannot be read: {error}.") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when all is in it, and goes away when something fails.

    Raises:
        ExportError: there is something already.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out} exists already. Choose another name, or delete it.")
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        rights = 0o666 & ~_umask()
        for file in partial.rglob("*.safetensors"):
            file.chmod(rights)  # safetensors keeps its files to their owner
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """What the process takes away from the rights of new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def saved_rounds(store: RunStore) -> dict[int, Path]:
    """The rounds whose weights are there, with the folders of their checkpoints."""
    of_full = "unet/diffusion_pytorch_model.safetensors"
    file = of_full if store.config.training == "full" else LORA_FILE
    return {number: place for number, place in store.checkpoints().items() if (place / file).exists() or any(place.glob("unet/*.index.json"))}


def round_to_take(store: RunStore) -> int | None:
    """The round whose model is taken away where none is named: the one that the run is rolled back to, or else the last; None where none is saved."""
    places, number = saved_rounds(store), rolled_back(store)
    return number if number in places else max(places, default=None)


def checkpoint_of(store: RunStore, number: int | None) -> tuple[int, Path]:
    """A round and its checkpoint's folder; by default that of :func:`round_to_take`.

    Raises:
        ExportError: no round, or not this one, has a checkpoint.
    """
    places = saved_rounds(store)
    number = round_to_take(store) if number is None else number
    if not places or number is None:
        raise ExportError(f"No round of {store.name} is finished yet, so there are no weights to take away. Wait for its first round.")
    if number not in places:
        raise ExportError(f"Round {number} of {store.name} has no checkpoint. Choose one of {listed(sorted(places))}, or leave out --round.")
    return number, places[number]


def write_model(store: RunStore, kind: str, folder: Path, number: int, place: Path, strength: float, precision: str) -> None:
    """The weights of a round, in one of MODELS, and their card.

    Raises:
        ExportError: the run has no LoRA, or its base model is not the one that was trained.
    """
    import numpy as np

    from ddpo import lora

    config = store.config
    if config.training == "full":
        if kind != "pipeline":
            raise ExportError(
                f"{store.name} trained the whole denoiser, so there is no LoRA to take away. Choose pipeline, which is the whole model."
            )
        family = merge(store, place, folder, strength, precision)
        file = ""
    else:
        try:
            adapter = lora.read_lora(place / LORA_FILE)
        except lora.LoraError as error:
            raise ExportError(str(error)) from error
        family, dtype = lora.model_family(config, adapter), np.float16 if precision == "fp16" else np.float32
        file = LORA_FILE if kind == "diffusers" else f"{store.name}-round-{number}.safetensors"
        if kind == "pipeline":
            family = merge(store, place, folder, strength, precision)
        elif kind == "diffusers":
            lora.write_diffusers(adapter, folder / file, strength, dtype)
        else:
            told = kohya_words(store, number, strength)
            lora.write_kohya(adapter, folder / file, family, told, strength, dtype)
    card = model_card(store, number, kind, family, file, strength, pictures(store, number, strength, folder), curves(store, number, folder))
    (folder / "README.md").write_text(card, encoding="utf-8", errors="replace")


def kohya_words(store: RunStore, number: int, strength: float) -> dict[str, str]:
    """What a kohya file says of itself beside its numbers."""
    from ddpo.card import METHODS, base_name, ratings_until

    ratings, raters = ratings_until(store, number)
    rated = f"{ratings} ratings by {raters}" if ratings else "no ratings"
    title = f"{store.name}, round {number}"
    return {
        "ss_output_name": f"{store.name}-round-{number}",
        "ss_sd_model_name": base_name(store.config),
        "ss_seed": str(store.config.seed),
        "ss_learning_rate": f"{store.config.learning_rate:g}",
        "ss_training_comment": f"DDPO Studio: {number} rounds, {rated}, strength {strength:g}",
        "modelspec.title": title,
        "modelspec.description": f"LoRA of {base_name(store.config)} by reinforcement learning ({METHODS[store.config.objective][0]})",
    }


def merge(store: RunStore, place: Path, folder: Path, strength: float, precision: str) -> str:
    """The whole model with what was trained in it, merged in float32, as a diffusers folder; returns its family.

    Raises:
        ExportError: the base model is another one now.
        ConfigError: it cannot be loaded.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors import safe_open

    from ddpo.checkpoint import FILE
    from ddpo.models import load_pipeline
    from ddpo.policy import fingerprint

    config = store.config
    pipeline = load_pipeline(config)
    with safe_open(place / FILE, framework="numpy") as stored:
        was = stored.metadata().get("base")
    if was and was != fingerprint(pipeline.unet):
        raise ExportError(
            f"The base model {config.model} is another one now than {store.name} was trained over. Put the old one back (for one from the Hub, "
            "name its revision), or take away the LoRA."
        )
    if config.training == "full":
        trained = UNet2DConditionModel.from_pretrained(place / "unet", use_safetensors=True, local_files_only=True)
        with torch.no_grad():
            for new, old in zip(trained.parameters(), pipeline.unet.parameters(), strict=True):
                old.copy_(new if strength == 1 else old + strength * (new - old))
    else:
        pipeline.load_lora_weights(place)
        pipeline.fuse_lora(lora_scale=strength)
        pipeline.unload_lora_weights()
    pipeline.to(torch.float16 if precision == "fp16" else torch.float32)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return "xl" if type(pipeline).__name__ == "StableDiffusionXLPipeline" else "sd1"


def write_data(store: RunStore, kind: str, folder: Path, number: int | None, names: bool) -> None:
    """Ratings, pairs or images of a round, or of all, and their card.

    Raises:
        ExportError: there is nothing of it.
    """
    made = [row.number for row in store.rounds() if store.samples(row.number)]
    rounds = made if number is None else [number]
    if number is not None and number not in made:
        raise ExportError(f"Round {number} of {store.name} has no images. Choose one of {listed(made)}, or leave out --round.")
    naming = raters_of(store, names)
    rows: list[Row]
    if kind == "ratings":
        rows = rating_rows(store, rounds, naming)
    elif kind == "pairs":
        rows = pair_rows(store, rounds, naming)
    else:
        rows = image_rows(store, rounds)
    if not rows:
        raise ExportError(f"{store.name} has nothing to take away as {kind} yet: {EMPTY[kind]}")
    used: set[str] | None = None
    if kind == "ratings":
        board = board_rows(store, rounds)
        write_table(rows, folder / "ratings.csv")
        write_lines(board, folder / "metadata.jsonl")
        used = {row["file_name"] for row in board}
    elif kind == "pairs":
        used = {row[side] for row in rows for side in ("jpg_0", "jpg_1")}
    copy_pictures(store, rounds, folder, used)
    write_lines(rows, folder / ("metadata.jsonl" if kind == "imagefolder" else f"{kind}.jsonl"))
    (folder / "README.md").write_text(data_card(store, kind, rows, names), encoding="utf-8", errors="replace")


def write_generalisation(
    store: RunStore, folder: Path, number: int, place: Path, count: int, unseen: Mapping[str, Sequence[str]], report: Report
) -> None:
    """How far the run reaches after a round: the table as README.md and JSON, and every picture with its values as a row of a CSV file.

    Raises:
        ExportError: all prompts of a group were trained on.
    """
    if TRAINED in unseen:
        raise ExportError(f"{TRAINED} is what the run's own prompts are called. Give the file of unseen prompts another name.")
    groups = groups_of(store.config, unseen)
    if trained := [name for name in unseen if name not in groups]:
        raise ExportError(f"All prompts of {', '.join(trained)} were trained on, so they cannot show how far the run reaches. Name others.")
    with explained():
        found, twins, failures = measure(store, number, place, folder, count, unseen, report)
    rows: list[Row] = []
    for twin in twins:
        told = {f"{name}_{side}": value for name, both in twin.values.items() for side, value in zip(("before", "after"), both, strict=True)}
        rows.append(dict(group=twin.group, prompt=twin.prompt, seed=twin.seed, before=twin.files[0], after=twin.files[1]) | told)
    write_table(rows, folder / "generalisation.csv")
    (folder / "generalisation.json").write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    missing = tell(failures)
    (folder / "README.md").write_text(generalisation_card(store, found, missing), encoding="utf-8", errors="replace")


@contextmanager
def explained() -> Iterator[None]:
    """What fails within, but for files, in words that say what to do: a model or a reward that does not load, or for which there is no memory.

    Raises:
        ExportError: something failed.
    """
    from ddpo.worker import explain

    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ExportError(explain(error)) from error


def tell(failures: Sequence[Failure]) -> list[str]:
    """Say on the command line which rewards could not be asked, and why; their names."""
    for name, why in failures:
        print(f"Could not be asked: {name}: {why}", file=sys.stderr)
    return [name for name, _ in failures]


def write_strengths(store: RunStore, folder: Path, number: int, place: Path, count: int, report: Report) -> None:
    """How strong what was trained until a round should be, as one HTML file.

    Raises:
        ExportError: a model or a reward does not load.
    """
    with explained():
        told, failures = strengths.page(store, number, place, count, report)
    tell(failures)
    (folder / f"{store.name}-strengths.html").write_text(told, encoding="utf-8", errors="replace")


def write_report(store: RunStore, folder: Path, number: int | None, names: bool, pictures: int) -> int:
    """The report of the run up to a round, by default the last one that is scored. Returns that round.

    Raises:
        ExportError: there is no such round.
    """
    scored = [row.number for row in store.rounds() if row.scored_at is not None]
    if not scored:
        raise ExportError(f"No round of {store.name} is scored yet, so there is nothing to report. Wait for its first round.")
    number = scored[-1] if number is None else number
    if number not in scored:
        raise ExportError(f"Round {number} of {store.name} is not scored. Choose one of {listed(scored)}, or leave out --round.")
    pairs, why_not = before_and_after(store, result_until(store, number), pictures)
    told = report(store, number, raters_of(store, names), pairs, why_not)
    (folder / f"{store.name}-report.html").write_text(told, encoding="utf-8", errors="replace")
    return number


def before_and_after(store: RunStore, number: int, count: int) -> tuple[list[Pair], str]:
    """Pictures by the base model and after a round: those that were watched then, or made from the round's weights, or watched before; where there
    can be none, why."""
    if not count:
        return [], ""
    watched = watched_pairs(store, number, count)
    place = saved_rounds(store).get(number)
    if place is None or (watched and watched[0].round == number):
        return watched, f"The weights of round {number} are not kept, so no pictures of the same seeds can be made."
    try:
        return held_out_pairs(store, number, place, count), ""
    except Exception as error:  # whatever a model raises that does not load here: the report is worth having without; it names no places
        print(f"No pictures from the weights: {error}", file=sys.stderr)
        return watched, "Pictures of the same seeds could not be made: the base model cannot be loaded here, or is another one now."


EMPTY = dict(
    ratings="nobody has rated an image.",
    pairs="nobody has rated two images of one prompt and round.",
    imagefolder="no image is made.",
)


def listed(numbers: list[int]) -> str:
    """Round numbers for a message: all of a few, or the ends of many."""
    if not numbers:
        return "none yet"
    return ", ".join(map(str, numbers)) if len(numbers) <= 12 else f"{numbers[0]} to {numbers[-1]}"
