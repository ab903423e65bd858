"""The evidence of ``ddpo/README.md``: ``python -m benchmarks.evidence`` makes what is missing of it, ``--pace`` measures the seconds, ``--report``
makes its tables and curves.

Every run is one line of ``benchmarks/evidence.jsonl``; a run that has its line is not made again, so that the whole can be interrupted at any time
and takes as many sittings as it needs. Runs are compared at equal numbers of reward queries (images made and scored), and every run is started as a
person would start it, by ``python -m ddpo run``. A run's results but its seconds are the same on a busy machine, and beside other runs; seconds are
therefore measured apart, by ``--pace``, with nothing else running (``benchmarks/evidence-pace.jsonl``). A processor without bf16 makes a run in
float32; its line and the table say so (lines that do not say are in bfloat16). What follows a ± in the tables, and the bands
of the curves, are standard deviations over seeds (not standard errors).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import (
    DOCS,
    add_line,
    animal_accuracy,
    asked,
    band,
    before_and_after,
    effective,
    flags,
    judge_name,
    judged_before,
    lines_of,
    make_run,
    panels,
    precision_of,
    same_settings,
    save_figure,
)
from ddpo.config import RunConfig
from ddpo.store import RunStore
from ddpo.trainer import PHASES

RESULTS = Path(__file__).with_suffix(".jsonl")
PACES = RESULTS.with_name("evidence-pace.jsonl")
QUERIES = 512
SEEDS = (0, 1, 2)
REWARDS = ("jpeg_compressibility", "jpeg_incompressibility", "aesthetic")
BASE: dict[str, Any] = dict(
    images_per_round=32, images_per_prompt=8, images_per_update=32, passes=1, objective="ddpo-sf", steps=10, skip_first_steps=0, skip_last_steps=2,
    step_weights="balanced", trained_fraction=1.0, guidance=5.0, guidance_in_training=True, eta=1.0, shared_start=False, learning_rate=1e-3,
    lora_rank=64, lora_alpha=0.0, lora_targets="attention", kl_weight=0.0, ratio="plain", shuffle_scores=False, precision="auto", microbatch=16,
    update_microbatch=32, forward_draws=5, rwr_beta=1.0, rwr_quantile=0.9, nft_advantage=2.0, nft_mix=1.0, clip_nats=1.64,
)  # fmt: skip
"""What every run has but for its experiment's changes: the paper's sampler (η 1, each image its own start), and one update a round."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One setting; it is run once a seed and reward, and stands in the tables of its groups."""

    name: str
    groups: tuple[str, ...]
    title: str
    changes: dict[str, Any]
    rewards: tuple[str, ...] = REWARDS[:1]

    @property
    def options(self) -> dict[str, Any]:
        return BASE | self.changes


GROUPS = ("objectives", "regression", "noise", "guidance", "steps", "interleaving", "adapter", "clip")


def experiments() -> list[Experiment]:
    """All settings."""
    four = dict(objective="ddpo-is", images_per_update=8)
    rwr = dict(passes=4, images_per_update=16, learning_rate=1e-4)
    fast = rwr | dict(learning_rate=1e-3)
    quiet = dict(eta=0.1, shared_start=True)
    return [
        Experiment("ddpo-sf", GROUPS, "DDPO-SF, one update a round", {}, REWARDS),
        Experiment("ddpo-is", ("objectives", "clip", "guidance"), "DDPO-IS, four updates a round", four, REWARDS),
        Experiment(
            "rwr",
            ("objectives", "interleaving", "regression"),
            "RWR, eight updates a round (four passes), learning rate 1e-4",
            dict(objective="rwr", **rwr),
            REWARDS,
        ),
        Experiment("rwr-sparse", ("objectives", "regression"), "RWR-sparse, the same", dict(objective="rwr-sparse", **rwr), REWARDS),
        Experiment("nft", ("objectives",), "NFT, two updates a round", dict(objective="nft", images_per_update=16), REWARDS),
        Experiment("sham", ("objectives", "guidance"), "DDPO-SF, scores shuffled", dict(shuffle_scores=True), REWARDS),
        Experiment("rwr-sham", ("objectives", "regression"), "RWR, scores shuffled", dict(objective="rwr", shuffle_scores=True, **rwr), REWARDS),
        Experiment(
            "rwr-sparse-sham",
            ("objectives", "regression"),
            "RWR-sparse, scores shuffled",
            dict(objective="rwr-sparse", shuffle_scores=True, **rwr),
            REWARDS,
        ),
        Experiment("rwr-unguided", ("regression",), "RWR on the conditional branch only", dict(objective="rwr", guidance_in_training=False, **rwr)),
        Experiment("rwr-1e-3", ("regression",), "RWR, learning rate 1e-3", dict(objective="rwr", **fast), REWARDS[:2]),
        Experiment("rwr-sparse-1e-3", ("regression",), "RWR-sparse, learning rate 1e-3", dict(objective="rwr-sparse", **fast), REWARDS[:2]),
        Experiment("eta-0.3", ("noise",), "η 0.3, each image its own start", dict(eta=0.3)),
        Experiment("eta-1-shared", ("noise",), "η 1, shared start", dict(shared_start=True)),
        Experiment("eta-0.3-shared", ("noise",), "η 0.3, shared start", dict(eta=0.3, shared_start=True)),
        Experiment("eta-0.1-shared", ("noise",), "η 0.1, shared start", quiet),
        Experiment("eta-0.1-first-3", ("noise",), "η 0.1, shared start, first 3 steps (the preset's)", dict(skip_last_steps=7, **quiet)),
        Experiment("eta-0.1-sham", ("noise",), "the same, scores shuffled", dict(skip_last_steps=7, shuffle_scores=True, **quiet)),
        Experiment("unguided", ("guidance", "adapter"), "conditional branch only", dict(guidance_in_training=False), REWARDS),
        Experiment(
            "unguided-sham", ("guidance",), "conditional branch only, scores shuffled", dict(guidance_in_training=False, shuffle_scores=True), REWARDS
        ),
        Experiment(
            "unguided-is", ("guidance",), "conditional branch only, DDPO-IS, four updates a round", dict(guidance_in_training=False) | four, REWARDS
        ),
        Experiment("paper-steps", ("steps",), "all 10 steps, equal weights (the paper's)", dict(skip_last_steps=0, step_weights="equal")),
        Experiment("equal", ("steps",), "8 of 10 steps, equal weights", dict(step_weights="equal")),
        Experiment("first-3", ("steps",), "first 3 of 10 steps", dict(skip_last_steps=7)),
        Experiment("middle-3", ("steps",), "steps 4 to 6 of 10", dict(skip_first_steps=3, skip_last_steps=4)),
        Experiment("late-3", ("steps",), "steps 6 to 8 of 10", dict(skip_first_steps=5, skip_last_steps=2)),
        Experiment("half", ("steps",), "a random half of the 8", dict(trained_fraction=0.5)),
        Experiment("steps-20", ("steps",), "16 of 20 steps", dict(steps=20, skip_last_steps=4)),
        Experiment("steps-50", ("steps",), "40 of 50 steps", dict(steps=50, skip_last_steps=10)),
        Experiment("rounds-of-64", ("interleaving",), "64 images a round, two updates", dict(objective="ddpo-is", images_per_round=64)),
        Experiment("rounds-of-128", ("interleaving",), "128 images a round, four updates", dict(objective="ddpo-is", images_per_round=128)),
        Experiment("rwr-rounds-of-128", ("interleaving",), "RWR, 128 images a round", dict(objective="rwr", **rwr, images_per_round=128)),
        Experiment("rank-4", ("adapter",), "rank 4", dict(lora_rank=4)),
        Experiment("rank-16", ("adapter",), "rank 16", dict(lora_rank=16)),
        Experiment("all-layers", ("adapter",), "rank 64, all layers", dict(lora_targets="all")),
        Experiment(
            "unguided-all", ("adapter",), "conditional branch only, rank 64, all layers", dict(guidance_in_training=False, lora_targets="all")
        ),
        Experiment("unguided-all-16", ("adapter",), "the same, rank 16", dict(guidance_in_training=False, lora_targets="all", lora_rank=16)),
        Experiment("normalised", ("clip",), "four updates, normalised ratio", four | dict(ratio="normalised")),
        Experiment("kl", ("clip",), "one update, KL penalty 0.01", dict(kl_weight=0.01)),
    ]


def results() -> dict[tuple[str, str, int], dict[str, Any]]:
    """What has been measured with the present settings, by experiment, reward and seed; the first lines hold those of the experiment alone, the later
    ones all settings of their run."""
    wanted = {experiment.name: experiment for experiment in experiments()}
    known = [found for found in lines_of(RESULTS) if found["name"] in wanted and is_of(found, wanted[found["name"]])]
    return {(found["name"], found["reward"], found["seed"]): found for found in known}


def is_of(line: dict[str, Any], experiment: Experiment) -> bool:
    """Whether a line is of the experiment as it would be run now."""
    return bool(line["options"] == experiment.options) and (
        "config" not in line or same_settings(line, asked(command_of(experiment, line["reward"], line["seed"])))
    )


def command_of(experiment: Experiment, reward: str, seed: int, **changes: Any) -> list[str]:
    """What ``python -m ddpo run`` is given."""
    size = experiment.options["images_per_round"]
    options = (
        dict(reward=reward, rounds=QUERIES // size, held_out_every=max(1, 128 // size), held_out_images=48, watch_every=0, seed=seed)
        | experiment.options
    )
    return ["--preset", "compress", *flags(options | changes)]


def pace(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """How long all rounds of the experiment would take: as long as the second and third one, and nothing for what is measured in between."""
    shutil.rmtree(folder, ignore_errors=True)
    make_run(folder, command_of(experiment, REWARDS[0], 0, rounds=3, held_out_every=0, held_out_images=0))
    store = RunStore(folder)
    metrics = store.metrics()
    store.close()
    rounds = [sum(dict(metrics[f"seconds_{phase}"])[number] or 0.0 for phase in PHASES.values()) for number in (2, 3)]
    seconds = statistics.mean(rounds) * QUERIES / experiment.options["images_per_round"]
    return dict(name=experiment.name, options=experiment.options, seconds=round(seconds, 1))


def paces() -> dict[str, float]:
    """The seconds that have been measured with the present settings, by experiment."""
    wanted = {experiment.name: experiment.options for experiment in experiments()}
    return {found["name"]: found["seconds"] for found in lines_of(PACES) if found["options"] == wanted.get(found["name"])}


def measure(experiment: Experiment, reward: str, seed: int, folder: Path) -> dict[str, Any]:
    """Make one run and read what came of it."""
    size = experiment.options["images_per_round"]
    shutil.rmtree(folder, ignore_errors=True)
    make_run(folder, command_of(experiment, reward, seed))
    store = RunStore(folder)
    config, metrics = store.config, store.metrics()
    last = max(number for number, _ in metrics["held_out_reward"])
    store.close()
    prompts, base, tuned = before_and_after(folder, last, 96)
    return dict(
        name=experiment.name, reward=reward, seed=seed, options=experiment.options,
        queries=[number * size for number, _ in metrics["held_out_reward"]],
        held_out=[round(value or 0.0, 4) for _, value in metrics["held_out_reward"]],
        std_error=[round(value or 0.0, 4) for _, value in metrics["held_out_reward_std_error"]],
        animals_before=round(animal_accuracy(base, prompts), 3), animals_after=round(animal_accuracy(tuned, prompts), 3),
        config=effective(config), precision=precision_of(folder), judge=judge_name(),
    )  # fmt: skip


def percent(found: dict[str, Any]) -> list[float]:
    """The held-out reward's change since the base model, in percent of the base's size, at each measurement."""
    start = found["held_out"][0]
    return [100 * (value - start) / abs(start) for value in found["held_out"]]


def table(group: str, reward: str) -> str:
    """The group's results on a reward at the last measurement, in Markdown: mean ± standard deviation over the seeds."""
    found, seconds = results(), paces()
    lines = [
        "| mean ± standard deviation over seeds | gain, % | animals recognised before, % | after, % | seeds | seconds | gain a minute, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for experiment in experiments():
        rows = [found[key] for seed in SEEDS if (key := (experiment.name, reward, seed)) in found]
        if not rows or group not in experiment.groups:
            continue
        gains = spread([percent(row)[-1] for row in rows])
        before, after = (spread([100 * row[f"animals_{when}"] for row in rows]) for when in ("before", "after"))
        took = seconds.get(experiment.name)
        single = sum(row.get("precision") == "float32" for row in rows)
        seeds = f"{len(rows)}, {single} in float32" if single else f"{len(rows)}"
        speed = f"{took:.0f} | {60 * statistics.mean(percent(row)[-1] for row in rows) / took:.1f}" if took else "– | –"
        lines.append(f"| {experiment.title} | {gains} | {before} | {after} | {seeds} | {speed} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def draw(group: str, reward: str, file: Path) -> None:
    """The group's curves over reward queries: the seeds' mean and, as a band, their standard deviation."""
    figure, (axis,) = panels(1)
    found = results()
    for experiment in experiments():
        rows = [found[key] for seed in SEEDS if (key := (experiment.name, reward, seed)) in found]
        if not rows or group not in experiment.groups:
            continue
        curves = [percent(row) for row in rows]
        mean = [statistics.mean(at) for at in zip(*curves, strict=True)]
        std = [statistics.stdev(at) if len(at) > 1 else 0.0 for at in zip(*curves, strict=True)]
        band(axis, rows[0]["queries"], mean, std, experiment.title, ":" if experiment.name.endswith("sham") else "-")
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.set(xlabel="reward queries (images made and scored)", ylabel="held-out gain, %", xlim=(0, QUERIES))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    save_figure(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/evidence"), help="folder for the runs")
    parser.add_argument("--only", nargs="+", help="names of experiments, or groups")
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=REWARDS, help="rewards to run, where an experiment has them")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="seeds to run")
    parser.add_argument("--pace", action="store_true", help="measure seconds instead, of what has no others; nothing else should be running")
    parser.add_argument("--report", action="store_true", help="print the tables and draw the curves of what has been measured")
    options = parser.parse_args()
    if options.report:
        for group in GROUPS:
            for reward in REWARDS if group == "objectives" else REWARDS[:2] if group == "regression" else REWARDS[:1]:
                print(f"\n{group}, {reward}\n\n{table(group, reward)}")
                draw(group, reward, DOCS / f"evidence-{group}-{reward.removeprefix('jpeg_')}.svg")
        print(f"\n{judged_before(list(results().values()))}")
        return
    chosen = [each for each in experiments() if not options.only or {each.name, *each.groups} & set(options.only)]
    for experiment in chosen:
        RunConfig(reward=REWARDS[0], **experiment.options)  # refused before anything is run
        if options.pace and experiment.name not in paces():
            add_line(PACES, pace(experiment, options.out / f"pace-{experiment.name}"))
    if options.pace:
        return
    for seed in options.seeds:
        for experiment in chosen:
            for reward in experiment.rewards:
                if reward not in options.rewards or (experiment.name, reward, seed) in results():
                    continue
                found = measure(experiment, reward, seed, options.out / f"{experiment.name}-{reward}-{seed}")
                add_line(RESULTS, found)


if __name__ == "__main__":
    main()
