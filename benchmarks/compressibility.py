"""Does it learn, and honestly? ``python -m benchmarks.compressibility``: JPEG compressibility on the pocket model, three seeds, and a sham each.

Each run is started as a person would start it, ``python -m ddpo run --preset compress``, and gets five minutes of wall clock from that
moment on. What counts is the last round whose checkpoint was on disk after so many minutes (``--at``); or, whatever the speed of the machine, certain
rounds (``--rounds``). Held-out seeds are then drawn with and without
the adapter, sized, and judged. The sham is the same run with its scores shuffled among the images. A run that is in its folder already is measured
only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import animal_accuracy, before_and_after, paired
from ddpo.store import RunStore
from rewards.jpeg import size_kb


def run(folder: Path, seed: int, sham: bool, minutes: float | None, rounds: int, options: list[str]) -> None:
    """Train for some minutes, or so many rounds; when the command was given stands in the folder."""
    started = time.time()
    command = [sys.executable, "-m", "ddpo", "run", "--preset", "compress", "--seed", str(seed), "--out", str(folder), "--rounds", str(rounds)]
    command += ["--held-out-images", "0", *options, *(["--shuffle-scores"] if sham else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=None if minutes is None else 60 * minutes + 1)
    except subprocess.TimeoutExpired:
        store = RunStore(folder)
        store.add_request("stop")
        process.wait()
        store.close()
    (folder / STARTED).write_text(str(started))


def last_round(folder: Path, minutes: float) -> int:
    """The last round that was on disk so many minutes after the command."""
    started = float((folder / STARTED).read_text())
    store = RunStore(folder)
    done = [row.number for row in store.rounds() if row.checkpointed_at and row.checkpointed_at - started <= 60 * minutes]
    store.close()
    return max(done)


STARTED = "started.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/compressibility"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the seeds of the runs")
    parser.add_argument("--at", type=float, nargs="+", default=[5.0], help="minutes of wall clock from a run's start at which it is measured")
    parser.add_argument("--rounds", type=int, nargs="+", default=[], help="rounds after which it is measured, instead of minutes")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], help="how much of what was trained is measured")
    parser.add_argument("--images", type=int, default=96, help="held-out pictures")
    parser.add_argument("--no-sham", action="store_true", help="leave the shuffled runs out")
    options, more = parser.parse_known_args()
    for seed in options.seeds:
        for sham in (False,) if options.no_sham else (False, True):
            folder = options.out / f"{'sham' if sham else 'real'}-{seed}"
            if not (folder / STARTED).exists():
                run(folder, seed, sham, None if options.rounds else max(options.at), max(options.rounds, default=1000), more)
            times = {} if options.rounds else {last_round(folder, minutes): minutes for minutes in options.at}
            for number, strength in itertools.product(options.rounds or times, options.strengths):
                prompts, base, tuned = before_and_after(folder, number, options.images, strength)
                before, after = [size_kb(i) for i in base], [size_kb(i) for i in tuned]
                change, error = paired(before, after)
                mean = sum(before) / len(before)
                report = dict(
                    seed=seed,
                    sham=sham,
                    minutes=times.get(number),
                    rounds=number,
                    strength=strength,
                    kb_before=round(mean, 4),
                    kb_after=round(mean + change, 4),
                    gain_percent=round(-100 * change / mean, 2),
                    std_error_percent=round(100 * error / mean, 2),
                    animals_before=round(animal_accuracy(base, prompts), 3),
                    animals_after=round(animal_accuracy(tuned, prompts), 3),
                )
                print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
