"""Does the alarm come in time, and does the best round keep what was good? ``python -m benchmarks.alarms`` runs the automatic presets on three seeds.

Each run is one line of ``benchmarks/alarms.jsonl`` (``--results``); one that has its line is not made again, and one that was cut off goes on. After
the run, pictures of held-out seeds are made at the base model and at every watched round, and judged: the share in which the judge sees the prompt's
animal, and gold. Then the line says

* ``alarm``: the first round at which the alarm was on, or null; ``lost``: the first at which the animals had fallen by ten points, or null.
  In time is an alarm no later than that; a false alarm is one after which gold still rises (its best round is later);
* ``best``: the best round that the run would say at its end; ``kept``: the share of the best gain in gold over the base that is left there.

``--presets``, ``--seeds``, ``--every``, ``--images`` and any option of ``python -m ddpo run`` make it smaller; ``--report`` prints the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import (
    add_line,
    animal_accuracy,
    asked,
    effective,
    judge_name,
    judged_before,
    lines_of,
    make_run,
    policy_at,
    rounded,
    same_settings,
    short_hash,
    the_judge,
)
from benchmarks.tasks import TASKS, pictures
from ddpo.alarms import best_round, is_on, series_of, signs_of
from ddpo.checkpoint import load_result
from ddpo.config import RunConfig
from ddpo.presets import presets
from ddpo.store import RunStore
from pocket.judge import judge_images
from rewards import load
from rewards.base import Sample

RESULTS = Path(__file__).with_suffix(".jsonl")
PRESETS = tuple(name for name, preset in presets().items() if not preset.config.rated_by_people)
FACTS = {task.name: task.facts for task in TASKS} | dict(compress=("subject",), incompress=("subject",))
"""What the judge must see for gold; without any, gold is ``image_statistics``."""
EVERY = RunConfig().watch_every
POINTS = 0.1
"""Animals may fall by so much."""


def gold_of(preset: str, images: Sequence[Any], prompts: Sequence[str]) -> float:
    """What the preset's reward stands for, the mean over pictures."""
    if facts := FACTS[preset]:
        verdicts = judge_images(the_judge(), list(images), list(prompts))
        return sum(all(verdict[fact] for fact in facts) for verdict in verdicts) / len(verdicts)
    scores = load("image_statistics").score([Sample(i, prompt, image) for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))])
    return sum(score.value or 0.0 for score in scores) / len(scores)


def verdict(rounds: Sequence[int], on: Sequence[bool], animals: Sequence[float], gold: Sequence[float], best: int) -> dict[str, Any]:
    """What one run says, from its watched rounds (the base model's first), at which the alarm was on, and what was judged."""
    alarm = next((at for at, is_so in zip(rounds, on, strict=True) if is_so), None)
    lost = next((at for at, share in zip(rounds, animals, strict=True) if share < animals[0] - POINTS), None)
    top = rounds[max(range(len(gold)), key=lambda i: gold[i])]
    there, most = gold[list(rounds).index(best)], max(gold)
    return dict(
        alarm=alarm, lost=lost, in_time=None if lost is None else alarm is not None and alarm <= lost, false=alarm is not None and top > alarm,
        best=best, gold_best=top, kept=round((there - gold[0]) / (most - gold[0]), 4) if most > gold[0] else None,
        kept_value=round(there / most, 4) if most > 0 else None,
    )  # fmt: skip


def measure(preset: str, folder: Path, about: int) -> dict[str, Any]:
    """Everything of one finished run."""
    store = RunStore(folder)
    config, places, series = store.config, store.checkpoints(), series_of(store.probes())
    rewards_at = {at: store.reward_at(at) for at in series}
    store.close()
    signs, rounds = signs_of(series, rewards_at), sorted(series)
    policy = policy_at(folder, rounds[-1])
    animals, gold = list[float](), list[float]()
    for number in rounds:
        if number:
            load_result(places[number], policy.parameters())
        prompts, images = pictures(policy, config, config.prompts, about, base=number == 0)
        animals.append(animal_accuracy(images, prompts))
        gold.append(gold_of(preset, images, prompts))
    found = verdict(rounds, [is_on(signs[at]) for at in rounds], animals, gold, best_round(series, rewards_at))
    told = {str(at): {sign.name: round(sign.strength, 2) for sign in signs[at]} for at in rounds if signs[at]}
    return dict(config=effective(config), judge=judge_name(), rounds=rounds, animals=rounded(animals), gold=rounded(gold), signs=told, **found)


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line a run in Markdown, and what the bars say."""
    rows = ["| preset | seed | alarm | animals lost | best round | gold there, of the best | false |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        shown = [line[name] if line[name] is not None else "–" for name in ("alarm", "lost", "best")]
        kept = "–" if line["kept_value"] is None else f"{100 * line['kept_value']:.0f} %"
        rows.append(f"| {line['preset']} | {line['seed']} | {shown[0]} | {shown[1]} | {shown[2]} | {kept} | {'yes' if line['false'] else 'no'} |")
    lost = [line for line in lines if line["lost"] is not None]
    rows.append(
        f"\nIn time: {sum(line['in_time'] for line in lost)} of {len(lost)} runs that lose their animals. False alarms: "
        f"{sum(line['false'] for line in lines)} of {len(lines)}. Best rounds that keep 90 % of the best gold: "
        f"{sum((line['kept_value'] or 0) >= 0.9 for line in lines)} of {len(lines)}."
    )
    return "\n".join([*rows, judged_before(lines)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alarms", description="The alarm against the judge. Other options go to the runs.")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=EVERY, help="watch every so many rounds")
    parser.add_argument("--images", type=int, default=90, help="held-out pictures, about")
    parser.add_argument("--out", type=Path, default=Path("build/alarms"), help="where the runs are made")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the tables only")
    options, more = parser.parse_known_args()
    if options.report:
        print(report(lines_of(options.results)))
        return
    for seed in options.seeds:
        for preset in options.presets:
            settings = ["--preset", preset, "--seed", str(seed), "--held-out-images", "0", "--watch-every", str(options.every), *more]
            key = dict(preset=preset, seed=seed, every=options.every, images=options.images)
            wanted = asked(settings)
            if any(all(line[name] == value for name, value in key.items()) and same_settings(line, wanted) for line in lines_of(options.results)):
                continue
            folder = options.out / "-".join([preset, str(seed), *([short_hash(" ".join(settings))] if more or options.every != EVERY else [])])
            make_run(folder, settings)
            add_line(options.results, key | measure(preset, folder, options.images))


if __name__ == "__main__":
    main()
