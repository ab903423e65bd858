"""Does a KL penalty hold what a reward would ruin? ``python -m benchmarks.penalty`` goes on from the runs of :mod:`benchmarks.alarms`, which must be
in its ``--out``.

From the round that a run's first alarm leads back to, a new run goes on to the same length, as the banner's *Go on with a KL penalty* does, once for
each weight; 0 is the same without a penalty. Pictures of held-out seeds, made after every second round, are judged: the share in which the judge sees
the prompt's animal, and the reward itself. Each run is one line of ``benchmarks/penalty.jsonl`` (``--results``); one that has its line is not made
again, and one that was cut off goes on. ``--report`` prints the table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import alarms
from benchmarks.common import add_line, animal_accuracy, effective, finish_run, judge_name, lines_of, mean_and_error, policy_at, rounded
from benchmarks.tasks import pictures
from ddpo.checkpoint import load_result
from ddpo.store import RunStore
from rewards import load
from rewards.base import Sample

RESULTS = Path(__file__).with_suffix(".jsonl")
WEIGHTS = (0.0, 0.01, 0.1, 0.3)
EVERY = 2


def go_on(parent: Path, number: int, rounds: int, weight: float, folder: Path) -> None:
    """The run that goes on from a round of another one with a penalty, until both together have so many rounds."""
    if not (folder / "config.json").exists():
        options = ["--round", number, "--out", folder, "--rounds", rounds - number, "--kl-weight", weight]
        done = subprocess.run([sys.executable, "-m", "ddpo", "fork", str(parent), *map(str, options)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
    finish_run(folder)


def measure(folder: Path, about: int) -> dict[str, Any]:
    """The animals and the reward after the rounds of a finished run, its first one's parent as round 0."""
    store = RunStore(folder)
    config, places = store.config, store.checkpoints()
    store.close()
    last = max(places)
    rounds, policy = sorted({*range(0, last, EVERY), last}), policy_at(folder, last)
    reward = load(config.reward, config.networks_of(config.reward))
    animals, scores, errors = list[float](), list[float](), list[float]()
    for number in rounds:
        load_result(places[number] if number else folder / "parent", policy.parameters())
        names, images = pictures(policy, config, config.prompts, about, base=False)
        said = reward.score([Sample(i, prompt, image) for i, (prompt, image) in enumerate(zip(names, images, strict=True))])
        animals.append(animal_accuracy(images, names))
        mean, error = mean_and_error([score.value or 0.0 for score in said])
        scores.append(mean)
        errors.append(error)
    judged = dict(rounds=rounds, animals=rounded(animals), reward=rounded(scores), reward_error=rounded(errors))
    return dict(config=effective(config), judge=judge_name(), **judged)


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run, a column for each weight: the reward and the animals at the end."""
    weights = sorted({line["weight"] for line in lines})
    runs = dict.fromkeys(line["run"] for line in lines)
    rows = [f"| run | goes on from | there | {' | '.join(f'{weight:g}' for weight in weights)} |", "|---|---|---|" + "---|" * len(weights)]
    for run in runs:
        own = {line["weight"]: line for line in lines if line["run"] == run}
        cells = [_cell(own[weight], -1) if weight in own else "–" for weight in weights]
        first = next(iter(own.values()))
        rows.append(f"| {run} | round {first['back']} | {_cell(first, 0)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(line: Mapping[str, Any], at: int) -> str:
    return f"{line['reward'][at]:.2f}, {100 * line['animals'][at]:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.penalty", description="What a KL penalty holds, from where an alarm leads back to.")
    parser.add_argument("--runs", nargs="+", default=["incompress-0", "incompress-1", "compress-0", "compress-1"])
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    parser.add_argument("--images", type=int, default=90, help="held-out pictures, about")
    parser.add_argument("--out", type=Path, default=Path("build/alarms"), help="where the runs are, and are made")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the table only")
    options = parser.parse_args()
    if options.report:
        print(report(lines_of(options.results)))
        return
    known = {line["run"]: alarms.of_line(line) for line in lines_of(alarms.RESULTS)}
    for run in options.runs:
        if run not in known or not known[run]["alarm"] or not (options.out / run).exists():
            raise SystemExit(f"{options.out / run} is no run with an alarm: python -m benchmarks.alarms makes them.")
        back, rounds = known[run]["best"], known[run]["rounds"][-1]
        for weight in options.weights:
            key = dict(run=run, back=back, weight=weight)
            if not any(all(line[name] == value for name, value in key.items()) for line in lines_of(options.results)):
                folder = options.out / f"{run}-kl-{weight:g}"
                go_on(options.out / run, back, rounds, weight, folder)
                add_line(options.results, key | measure(folder, options.images))


if __name__ == "__main__":
    main()
