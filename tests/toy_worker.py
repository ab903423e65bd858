"""A worker without a model: ``python -m tests.toy_worker RUN_DIR``. It takes the lock, makes rounds of toy images and answers requests.

An environment variable makes it odd: TOY_WORKER=deaf answers nothing, TOY_WORKER=broken ends at once with an error.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ddpo.control import Control, StopRun
from ddpo.lock import WorkerLock
from ddpo.store import RunStore
from rewards.base import Score
from tests.toys import add_images, round_metrics


def main(folder: Path) -> int:
    manner = os.environ.get("TOY_WORKER", "")
    if manner == "broken":
        print("ModuleNotFoundError: No module named 'torch'")
        return 3
    store, lock = RunStore(folder), WorkerLock(folder / "worker.lock")
    store.add_event("started", "Toy worker.")
    print("toy worker at work", flush=True)
    while manner == "deaf":
        store.set_progress("sampling", 1, 1, 8)
        time.sleep(0.2)
    try:
        finished = work(store, Control(store))
    except StopRun:
        finished = False
    store.add_event("finished" if finished else "stopped", "All rounds are done." if finished else "Stopped.")
    store.set_progress("finished" if finished else "stopped", len(store.rounds()))
    lock.release()
    return 0


def work(store: RunStore, control: Control) -> bool:
    """Rounds with a wait for ratings in each, until all are done or somebody asks to stop."""
    config = store.config
    for number in range(1, config.rounds + 1):
        n = config.images_per_round
        control.report("sampling", number, 0, n)
        if not store.samples(number):
            add_images(store, number)
        control.report("sampling", number, n, n)
        if config.rated_by_people and store.board(number):
            make_ahead(store, control, number)
            control.wait_until_applied(number, len(store.board(number)))
        scores = {row.id: Score(0.1 * (row.position % 5)) for row in store.samples(number)}
        store.add_scores(config.reward, scores)
        store.mark(number, "scored")
        for done in range(4):
            control.report("updating", number, done, 4)
            time.sleep(0.05)
        store.add_metrics(number, round_metrics(number, [score.value or 0.0 for score in scores.values()]))
        store.mark(number, "updated")
        store.mark(number, "checkpointed")
        if control.stop_after_round and number < config.rounds:
            return False
    return True


def make_ahead(store: RunStore, control: Control, number: int) -> None:
    """The next board, while people rate this one."""
    following = number + store.config.board_every
    if store.config.ahead and following <= store.config.rounds:
        control.report("awaiting", number, 0, len(store.board(number)))
        if not store.samples(following):
            add_images(store, following)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
