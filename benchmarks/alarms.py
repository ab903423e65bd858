"""Does the alarm come in time, and does the best round keep what was good? ``python -m benchmarks.alarms`` runs the automatic presets on three seeds.

Each run is one line of ``benchmarks/alarms.jsonl`` (``--results``); one that has its line is not made again, and one that was cut off goes on. After
the run, pictures of held-out seeds are made at the base model, at every watched round and at every twentieth of the run, and judged: the share in
which the judge sees the prompt's animal, and gold. The line holds these, all that was watched, and what the reward paid for; what the alarm makes of
it is worked out when it is read (:func:`verdict`):

* ``alarm``: the first watched round at which the alarm was on, or null; ``lost``: the first judged one at which the animals had fallen by ten points,
  or null. An alarm comes before that, with it, late or never (``when``);
* ``false``: whether gold still rose when the alarm came: from as many rounds before it as lie between two watchings to as many after it (or to the
  last), by more than the difference's standard error, as if the pictures were not the same;
* ``best``: the round that the run would go back to at its first alarm, or its best one where there is none; ``kept``: the share of the best gain in
  gold over the base that is left there; ``kept_value``: that gold as a share of the best.

``--presets``, ``--seeds``, ``--every``, ``--images`` and any option of ``python -m ddpo run`` change it (``--rounds 100``: until it breaks);
``--chance`` draws runs in which nothing changes, and says how many have an alarm; ``--report`` prints the tables, and draws the pictures of the base
model, the best round, the first alarm and the last round into ``docs/``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import (
    DOCS,
    add_line,
    animal_accuracy,
    asked,
    effective,
    judge_name,
    judged_before,
    lines_of,
    make_run,
    mean_and_error,
    policy_at,
    rounded,
    same_settings,
    short_hash,
    the_judge,
)
from benchmarks.tasks import TASKS, first_of_each, pictures, save_sheet
from ddpo.alarms import DAMAGE, Alarm, Paid, Series, alarm_at, best_round, is_on, paid_for, series_of, signs_of
from ddpo.checkpoint import load_result
from ddpo.config import RunConfig
from ddpo.presets import presets
from ddpo.store import RunStore
from pocket.evaluate import sheet
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
PARTS = 20
"""Of a run so many rounds are judged, and those that were watched."""
COLUMNS = 8
STRIP = "strip.png"
"""Pictures of the judged rounds, a row each, in a run's folder."""


def gold_of(preset: str, images: Sequence[Any], prompts: Sequence[str]) -> list[float]:
    """What the preset's reward stands for, of each picture."""
    if facts := FACTS[preset]:
        verdicts = judge_images(the_judge(), list(images), list(prompts))
        return [float(all(verdict[fact] for fact in facts)) for verdict in verdicts]
    scores = load("image_statistics").score([Sample(i, prompt, image) for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))])
    return [score.value or 0.0 for score in scores]


def verdict(
    rounds: Sequence[int], animals: Sequence[float], gold: Sequence[float], gold_error: Sequence[float], alarm: int | None, best: int, every: int
) -> dict[str, Any]:
    """What one run says, from its judged rounds (the base model's first) and what was seen there, the round of its first alarm, the round that it
    goes back to, and how many rounds lie between two watchings."""
    lost = next((at for at, share in zip(rounds, animals, strict=True) if share < animals[0] - POINTS), None)
    when = "" if lost is None else "never" if alarm is None else "before" if alarm < lost else "with it" if alarm == lost else "late"
    top, there = max(range(len(gold)), key=lambda i: gold[i]), gold[rounds.index(best)] if best in rounds else None
    rises = False
    if alarm is not None:
        before = max(i for i, at in enumerate(rounds) if at <= max(0, alarm - every))
        after = next((i for i, at in enumerate(rounds) if at >= alarm + every), len(rounds) - 1)
        rises = gold[after] - gold[before] > math.hypot(gold_error[before], gold_error[after])
    return dict(
        alarm=alarm, lost=lost, when=when, false=rises, best=best, gold_best=rounds[top],
        kept=round((there - gold[0]) / (gold[top] - gold[0]), 4) if there is not None and gold[top] > gold[0] else None,
        kept_value=round(there / gold[top], 4) if there is not None and gold[top] > 0 else None,
    )  # fmt: skip


def of_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line with its verdict, and with what the first alarm said."""
    series = {int(at): found for at, found in line["watched"].items()}
    paid = {int(at): frozenset(names) for at, names in line["paid"].items()}
    first, best = first_alarm(series, line["config"]["reward"], paid)
    judged = {name: line[name] for name in ("rounds", "animals", "gold", "gold_error")}
    found = verdict(**judged, alarm=first.round if first else None, best=best, every=line["every"])
    return {**line, **found, "words": first.text if first else ""}


def first_alarm(series: Series, reward: str, paid: Paid) -> tuple[Alarm | None, int]:
    """The first alarm of a run, if there is one, and the round to go back to."""
    rewards_at = dict.fromkeys(series, reward)
    first = next((alarm for at in sorted(series) if (alarm := alarm_at(series, at, rewards_at, paid))), None)
    return first, first.back if first else best_round(series, rewards_at, paid=paid)


def measure(preset: str, folder: Path, about: int) -> dict[str, Any]:
    """Everything of one finished run; a few pictures of each watched round stay in its folder."""
    store = RunStore(folder)
    config, places, series = store.config, store.checkpoints(), series_of(store.probes())
    paid = paid_for(store, sorted(series))
    best = first_alarm(series, config.reward, paid)[1]
    store.close()
    watched = {at: {name: [None if v is None else round(v, 5) for v in values] for name, values in series[at].items()} for at in sorted(series)}
    rounds, policy = sorted({*series, *range(0, config.rounds, max(1, config.rounds // PARTS)), best}), policy_at(folder, max(series))
    animals, gold, rows, names = list[float](), list[tuple[float, float]](), list[list[Image.Image]](), list[str]()
    for number in rounds:
        if number:
            load_result(places[number], policy.parameters())
        names, images = pictures(policy, config, config.prompts, about, base=number == 0)
        animals.append(animal_accuracy(images, names))
        gold.append(mean_and_error(gold_of(preset, images, names)))
        rows.append(images)
    sheet([[row[i] for i in first_of_each(names, COLUMNS)] for row in rows], scale=1, gap=0).save(folder / STRIP)
    means, errors = (rounded(part) for part in zip(*gold, strict=True))
    judged = dict(rounds=rounds, animals=rounded(animals), gold=means, gold_error=errors)
    return dict(config=effective(config), judge=judge_name(), **judged, paid={at: sorted(names) for at, names in paid.items()}, watched=watched)


def draw(strip: Path, line: Mapping[str, Any], file: Path) -> None:
    """The base model, the best round, the first alarm and the last round of a run, one below the other."""
    wanted = sorted({0, line["best"], line["alarm"] or 0, line["rounds"][-1]}.intersection(line["rounds"]))
    with Image.open(strip) as image:
        kept = image.convert("RGB")
    side, rows = kept.width // COLUMNS, [line["rounds"].index(number) for number in wanted]
    cut = [[kept.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)) for x in range(COLUMNS)] for y in rows]
    save_sheet(cut, file)


def chance(runs: int = 400, watched: int = 17, pictures: int = RunConfig().watch_images) -> list[dict[str, float]]:
    """The share of runs with an alarm in which nothing changes, by how alike a picture and its twin after another round are (a correlation), and by
    whether the reward pays for texture."""
    spreads = dict(clip_score=(0, 1), image_statistics=(0, 1), aesthetic=(0, 1), diversity=(0.27, 0.08))
    spreads |= dict(noise=(0.08, 0.02), flatness=(0.65, 0.08), clipping=(0.016, 0.02))
    rng, found = np.random.default_rng(0), []
    for paid, alike in product((False, True), (0.0, 0.5, 0.8)):
        first = []
        for _ in range(runs):
            rows: dict[int, dict[str, list[float]]] = {}
            base = {name: rng.normal(size=pictures) for name in spreads}
            for at in range(watched + 1):
                drawn = {name: base[name] if not at else alike * base[name] + math.sqrt(1 - alike**2) * rng.normal(size=pictures) for name in spreads}
                drawn["diversity"] = np.repeat(drawn["diversity"][::2], 2)  # two pictures of a prompt are as far from one another
                rows[at] = {name: (mean + spread * drawn[name]).tolist() for name, (mean, spread) in spreads.items()}
                rows[at] |= {name: [min(max(value, 0.0), 1.0) for value in rows[at][name]] for name in DAMAGE if name in spreads}
                rows[at]["texture"] = [1 - value for value in rows[at]["flatness"]]
            signs = signs_of(rows, dict.fromkeys(rows, "jpeg_compressibility"), dict.fromkeys(rows, frozenset({"texture"} if paid else ())))
            first.append(next((at for at in rows if is_on(signs[at])), math.inf))
        found.append({"paid": paid, "alike": alike} | {f"within_{k}": sum(at <= k for at in first) / runs for k in (4, 8, watched)})
    return found


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """Runs with their verdicts in Markdown, and what the bars say."""
    rows = [
        "| preset | rounds | seed | alarm | animals lost | the alarm came | animals first, last (%) | back to | gold there, of the best (of the best"
        " gain) | gold still rose |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        shown = [line[name] if line[name] is not None else "–" for name in ("alarm", "lost", "best")]
        kept = "–" if line["kept_value"] is None else f"{100 * line['kept_value']:.0f} %"
        kept += "" if line["kept"] is None else f" ({100 * line['kept']:.0f} %)"
        animals = f"{100 * line['animals'][0]:.0f}, {100 * line['animals'][-1]:.0f}"
        precision = line["config"]["precision"]
        cells = (
            line["preset"] + (f", {precision}" if precision != "auto" else ""),
            line["rounds"][-1],
            line["seed"],
            *shown[:2],
            line["when"] or "–",
            animals,
            shown[2],
            kept,
            "yes" if line["false"] else "no",
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    came, rose = Counter(line["when"] for line in lines if line["when"]), sum(line["false"] for line in lines)
    keep = sum((line["kept_value"] or 0) >= 0.9 for line in lines)
    rows.append(
        f"\nOf {came.total()} runs that lose their animals, the alarm came before that in {came['before']}, with it in {came['with it']}, late or "
        f"never in {came['late'] + came['never']}. It came while gold still rose in {rose} of {len(lines)}. Rounds to go back to that keep 90 % of "
        f"the best gold: {keep} of {len(lines)}."
    )
    rows += [
        f"* {line['preset']}, {line['rounds'][-1]} rounds, seed {line['seed']}, round {line['alarm']}: {line['words']}"
        for line in lines
        if line["words"]
    ]
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
    parser.add_argument("--chance", action="store_true", help="how often chance alone makes an alarm")
    options, more = parser.parse_known_args()
    if options.chance:
        print("\n".join(map(json.dumps, chance())))
        return
    if options.report:
        lines = [of_line(line) for line in lines_of(options.results)]
        print(report(lines))
        for line in reversed(lines):  # of each preset and length the first run's pictures stay
            if line["alarm"] and (strip := options.out / line["run"] / STRIP).exists():
                draw(strip, line, DOCS / f"alarm-{line['preset']}-{line['rounds'][-1]}.png")
        return
    for seed in options.seeds:
        for preset in options.presets:
            settings = ["--preset", preset, "--seed", str(seed), "--held-out-images", "0", "--watch-every", str(options.every), *more]
            key = dict(preset=preset, seed=seed, every=options.every, images=options.images)
            wanted = asked(settings)
            if any(all(line[name] == value for name, value in key.items()) and same_settings(line, wanted) for line in lines_of(options.results)):
                continue
            run = "-".join([preset, str(seed), *([short_hash(" ".join(settings))] if more or options.every != EVERY else [])])
            make_run(options.out / run, settings)
            add_line(options.results, key | dict(run=run) | measure(preset, options.out / run, options.images))


if __name__ == "__main__":
    main()
