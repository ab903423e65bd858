"""How the cost of a round grows: ``python -m benchmarks.cost``, on the pocket model, one thing changed at a time.

Every line is a run as a person would start it, ``python -m ddpo run``, of two rounds with JPEG compressibility and all else as by default; told are
the second round's seconds of each phase and the peak of resident memory. Several processes share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ddpo.store import RunStore

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
    seconds = {phase: round(dict(metrics[f"seconds_{phase}"])[2] or 0.0, 2) for phase in ("sampling", "scoring", "updating", "checkpointing")}
    return dict(seconds=seconds, peak_mb=round(usage.ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/cost"), help="folder for the runs")
    options = parser.parse_args()
    for name, values in GRID.items():
        for value in values:
            processes = value if name == "processes" else 1
            settings = BASE | ({} if name == "processes" else {name: value})
            settings["images_per_update"] = settings["images_per_round"]
            report = measure(options.out / f"{name}-{value}", settings, processes)
            print(json.dumps({name: value} | report), flush=True)


if __name__ == "__main__":
    main()
