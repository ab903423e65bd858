"""How the cost of a round grows: ``python -m benchmarks.cost``, on the pocket model, one thing changed at a time.

Every line is a run as a person would start it, ``python -m ddpo run``, of two rounds with JPEG compressibility and all else as by default; told are
the second round's seconds of each phase and the peak of resident memory. Several processes share the machine's cores.

``--watching`` measures instead what it costs to watch for overoptimisation: each automatic preset is run for as long as two watchings take, and told
are the second one's seconds, the seconds of all phases of the rounds since the first, and the one as a share of the other (``share``). ``whole`` is
the share over all rounds of the preset, where the first watching makes the base model's pictures as well, and the last round is watched, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ddpo.presets import presets
from ddpo.store import RunStore

PHASES = ("sampling", "scoring", "updating", "checkpointing")
AUTOMATIC = tuple(name for name, preset in presets().items() if not preset.config.rated_by_people)

BASE = dict(images_per_round=16, steps=10, resolution=64)
GRID: dict[str, tuple[int, ...]] = dict(images_per_round=(8, 16, 32, 64), steps=(5, 10, 20, 50), resolution=(64, 96, 128), processes=(1, 2))


def measure(folder: Path, settings: dict[str, int], processes: int) -> dict[str, object]:
    """Seconds of the second round by phase, and the largest process's memory in MB."""
    shutil.rmtree(folder, ignore_errors=True)
    start = [sys.executable, "-m"]
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [*start, "ddpo", "run", "--reward", "jpeg_compressibility", "--preset", "rate", "--rounds", "2", "--held-out-images", "0"]
    command += ["--guidance-in-training", "--images-per-update", str(settings.get("images_per_round", 16))]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    process = subprocess.Popen(
        [*command, "--out", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | dict(OMP_NUM_THREADS=threads)
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed.")
    store = RunStore(folder)
    metrics = store.metrics()
    store.close()
    seconds = {phase: round(dict(metrics[f"seconds_{phase}"])[2] or 0.0, 2) for phase in PHASES}
    return dict(seconds=seconds, peak_mb=round(usage.ru_maxrss / 1024))


def watching(folder: Path, preset: str) -> dict[str, object]:
    """What the second watching of a preset takes, beside the rounds that it is for."""
    shutil.rmtree(folder, ignore_errors=True)
    config = presets()[preset].config
    every, last = config.watch_every, config.rounds
    command = [sys.executable, "-m", "ddpo", "run", "--preset", preset, "--rounds", str(2 * every), "--held-out-images", "0", "--out", str(folder)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    store = RunStore(folder)
    metrics = store.metrics()
    store.close()
    first, spent = (dict(metrics["seconds_watching"])[number] or 0.0 for number in (every, 2 * every))
    phases = [dict(metrics[f"seconds_{phase}"]) for phase in PHASES]
    rounds = sum(seconds.get(number) or 0.0 for seconds in phases for number in range(every + 1, 2 * every + 1))
    whole = (first + spent * (-(-last // every) - 1)) / (rounds / every * last)
    return dict(
        preset=preset, watching_s=round(spent, 2), rounds=every, rounds_s=round(rounds, 2), share=round(spent / rounds, 3), whole=round(whole, 3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/cost"), help="folder for the runs")
    parser.add_argument("--watching", action="store_true", help="what watching costs")
    options = parser.parse_args()
    if options.watching:
        for preset in AUTOMATIC:
            print(json.dumps(watching(options.out / f"watching-{preset}", preset)), flush=True)
        return
    for name, values in GRID.items():
        for value in values:
            processes = value if name == "processes" else 1
            settings = BASE | ({} if name == "processes" else {name: value})
            settings["images_per_update"] = settings["images_per_round"]
            report = measure(options.out / f"{name}-{value}", settings, processes)
            print(json.dumps({name: value} | report), flush=True)


if __name__ == "__main__":
    main()
