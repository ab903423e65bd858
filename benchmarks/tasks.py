"""The tasks of the paper whose reward is a network: ``python -m benchmarks.tasks`` trains them on three seeds and asks what became of their pictures.

========= ============================================ ============================================ ==========================================
task      trained on                                   proxy: the reward                            gold: what it stands for
========= ============================================ ============================================ ==========================================
aesthetic the 45 animals                               the pocket's aesthetic predictor             closed formulas (``image_statistics``)
align     activities_seen: 45 animals × 2 activities   BERTScore recall of the pocket LLaVA's words the judge sees the animal and the activity
count     two, three, four of the 45 animals           strict questions to the pocket LLaVA         the judge sees the animal and the number
========= ============================================ ============================================ ==========================================

Each run is one line of ``benchmarks/tasks.jsonl`` (``--results``); a run that has its line is not made again, and one that was cut off goes on.
It is started by ``python -m ddpo run``; options that are not known here are handed on to it (``--learning-rate 3e-4``), and name the line, the
run's folder and the drawings. The line holds all settings of its run. Then, at the base model, every ``--every`` rounds and at the end, pictures of
held-out seeds are scored and judged, on the prompts of the training and, first and last, on others, as in the paper's study of generalisation.
``--report`` prints the tables, and draws curves and contact sheets into ``docs/``.

Seen and unseen pairs. Of the paper's 45 × 3 pairs of animal and activity the file ``activities_seen`` holds 90 and ``activities_unseen`` 45: each
animal is trained at two of the activities, in turn, each activity with 30 animals. The pocket's denoiser has a split of its own, by animal: it was
shown 20 animals at all activities and the other 25 at none (``pocket/world.py``). The turn goes round within either group, so trained and left-out
pairs have the same share of those that the denoiser was shown; both splits stand in the lines. The world has no picture of "taking an exam"
(``unseen_activities``), so gold says there that the animal is right and does none of the three activities.

Fooling. Where a model that looks at pictures is the reward, three shares are compared before and after: it says right (every strict answer, or every
fact in its description), the judge says right (gold), and **it says right while the judge says wrong**. The judge shares no weights with it; it errs
on 0.2 % of clean renders, but calls nothing recognisable in soft pictures, so the last share is not 0 at the base: what counts is whether it grows.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import rewards
from benchmarks.common import (
    DOCS,
    add_line,
    asked,
    band,
    effective,
    flags,
    judge_name,
    judged_before,
    kl_to_base,
    lines_of,
    make_run,
    mean_and_error,
    paired,
    panels,
    plus_minus,
    policy_at,
    rounded,
    same_settings,
    save_figure,
    seconds_of,
    share_error,
    short_hash,
    the_judge,
    unrecorded,
)
from ddpo.__main__ import parser as parser_of_runs
from ddpo.checkpoint import load_result
from ddpo.config import RunConfig, prompt_sets
from ddpo.evaluate import held_out_images
from ddpo.monitor import drawn
from ddpo.policy import StableDiffusionPolicy
from ddpo.store import RunStore
from ddpo.worker import reward_source
from pocket import world
from pocket.evaluate import sheet
from pocket.judge import judge_images
from rewards.base import Reward, Sample, Score
from rewards.satisfaction import YES, questions_of, says

RESULTS = Path(__file__).with_suffix(".jsonl")
SEEDS = (0, 1, 2)
PROBES = 16
"""Trajectories on which the distance from the base is measured."""


@dataclass(frozen=True)
class Task:
    """What is trained, and on which groups of prompts it is measured: the curves' at every checkpoint, the others' first and last."""

    name: str
    title: str
    reward: str
    prompts: str
    curves: tuple[str, ...]
    ends: tuple[str, ...]
    facts: tuple[str, ...]
    """What the judge must see for a picture to be right; without any, gold is ``image_statistics``."""

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the command."""
        return dict(preset=self.name, reward=self.reward, prompts=self.prompts, held_out_images=0)


TASKS = (
    Task("aesthetic", "Aesthetic", "aesthetic", "animals", ("animals",), ("unseen_animals", "objects"), ()),
    Task(
        "align", "Alignment", "alignment", "activities_seen", ("activities_seen", "activities_unseen"),
        ("unseen_animals_active", "unseen_activities"), ("subject", "activity"),
    ),
    Task("count", "Counting", "satisfaction", "counting", ("counting",), ("unseen_animals_counted",), ("subject", "count")),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One group of prompts at one checkpoint: means over held-out pictures, and standard errors."""

    round: int
    group: str
    count: int
    proxy: float
    proxy_error: float
    gold: float
    gold_error: float
    animals: float
    """The share in which the judge sees the prompt's subject."""
    shown: float | None
    """The mean gold of the pairs that the denoiser was shown when it was made; None where the prompts have no activity of the world."""
    never_shown: float | None
    vlm_right: float | None
    """The share of which the model that looks says all that the prompt says; None without one, as the next."""
    fooled: float | None
    """The share of which it does while gold, the judge, sees something else."""
    pictures: dict[str, list[Any]]
    """Each picture's proxy, gold, subject, shown (as above) and what the model that looks says; kept of the first and the last checkpoint."""


def fooling(vlm: Sequence[bool], judge: Sequence[bool]) -> dict[str, float]:
    """The shares: P(VLM right) and P(VLM right and judge wrong)."""
    pairs = list(zip(vlm, judge, strict=True))
    shares = dict(vlm_right=[v for v, _ in pairs], fooled=[v and not j for v, j in pairs])
    return {name: sum(found) / len(pairs) for name, found in shares.items()}


def says_all(score: Score, prompt: str) -> bool | None:
    """Whether the model that looks says all that the prompt says, by what its reward explains; None where no such model is asked, or the prompt has
    no form that a description could be held against."""
    if "answers" in score.explanation:
        return score.value == 1
    if "answer" in score.explanation:
        asked = questions_of(prompt, world.GLYPHS)
        told = not any(question.accepted == YES for question in asked)
        return all(says(str(score.explanation["answer"]), question.accepted) for question in asked) if told else None
    return None


def was_shown(prompt: str) -> bool | None:
    """Whether the denoiser was shown the prompt's pair of animal and activity when it was made; None where it names no activity of the world."""
    if not prompt.endswith(world.ACTIVITIES):
        return None
    return any(prompt.startswith(world.article(animal) + " ") for animal in world.ACTIVE_ANIMALS)


def measured(task: Task, group: str, number: int, prompts: list[str], images: list[Image.Image], reward: Reward) -> Measured:
    """What the reward, the gold and the judge say of one group's pictures."""
    samples = [Sample(i, prompt, image) for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))]
    scores, verdicts = reward.score(samples), judge_images(the_judge(), images, prompts)
    proxy = [score.value or 0.0 for score in scores]
    right = [all(verdict[fact] for fact in task.facts) for verdict in verdicts]
    gold = [float(r) for r in right] if task.facts else [s.value or 0.0 for s in rewards.load("image_statistics").score(samples)]
    pairs = [was_shown(prompt) for prompt in prompts]
    said = [says_all(score, prompt) for score, prompt in zip(scores, prompts, strict=True)]
    both = [(s, r) for s, r in zip(said, right, strict=True) if s is not None]
    fooled = {name: round(share, 4) for name, share in fooling([s for s, _ in both], [r for _, r in both]).items()} if both else {}

    def mean(values: list[float]) -> float | None:
        return round(sum(values) / len(values), 4) if values else None

    (proxy_mean, proxy_error), (gold_mean, gold_error) = rounded(mean_and_error(proxy)), rounded(mean_and_error(gold))
    return Measured(
        round=number, group=group, count=len(images), proxy=proxy_mean, proxy_error=proxy_error, gold=gold_mean, gold_error=gold_error,
        animals=round(sum(v["subject"] for v in verdicts) / len(verdicts), 4), shown=mean([g for g, p in zip(gold, pairs, strict=True) if p is True]),
        never_shown=mean([g for g, p in zip(gold, pairs, strict=True) if p is False]), vlm_right=fooled.get("vlm_right"),
        fooled=fooled.get("fooled"),
        pictures=dict(proxy=rounded(proxy), gold=rounded(gold), animals=[int(v["subject"]) for v in verdicts], shown=pairs, vlm=said),
    )  # fmt: skip


def pictures(policy: StableDiffusionPolicy, config: RunConfig, prompts: Sequence[str], about: int, base: bool) -> tuple[list[str], list[Image.Image]]:
    """Held-out pictures of all prompts, each equally often, about so many; of a draw of the prompts where half as many or fewer are wanted."""
    chosen = tuple(drawn(prompts, -(-len(prompts) // max(1, len(prompts) // about))))
    count = len(chosen) * max(1, round(about / len(chosen)))
    return held_out_images(policy, config.with_changes(prompts=chosen), base, count)


def first_of_each(prompts: Sequence[str], columns: int) -> list[int]:
    """So many places, each the first of another prompt, evenly among the prompts in their order; fewer where there are fewer prompts."""
    first = [i for i, prompt in enumerate(prompts) if prompt not in prompts[:i]]
    columns = min(columns, len(first))
    return [first[i * len(first) // columns] for i in range(columns)]


def contact_sheet(prompts: Sequence[str], rows: Sequence[Sequence[Image.Image]], file: Path, columns: int = 8) -> None:
    """Some columns of the rows, no prompt twice."""
    save_sheet([[row[i] for i in first_of_each(prompts, columns)] for row in rows], file)


def save_sheet(rows: list[list[Image.Image]], file: Path) -> None:
    """Pictures in rows, enlarged twice, as a PNG of 256 colours."""
    small = sheet(rows, scale=1, gap=2)
    large = small.quantize(256, dither=Image.Dither.NONE).resize((2 * small.width, 2 * small.height), Image.Resampling.NEAREST)
    large.save(file, optimize=True)


def measure(task: Task, folder: Path, every: int, about: int) -> dict[str, Any]:
    """Everything of one finished run; its contact sheet (base, middle, last) stays in its folder."""
    store = RunStore(folder)
    config, places, metrics = store.config, store.checkpoints(), store.metrics()
    store.close()
    last = max(places)
    numbers = sorted({0, *range(every, last, every), last})
    middle = min(numbers, key=lambda number: abs(number - last / 2))
    policy, exact, reward = policy_at(folder, last), policy_at(folder, 0, precision="fp32"), reward_source(config)(config.reward)
    found, rows, names, distance = list[dict[str, Any]](), dict[int, list[Image.Image]](), list[str](), list[list[float]]()
    started = time.perf_counter()
    for number in numbers:
        if number:
            load_result(places[number], policy.parameters())
            load_result(places[number], exact.parameters())
        for group in (*task.curves, *(task.ends if number in (0, last) else ())):
            prompts, images = pictures(policy, config, prompt_sets()[group], about, base=number == 0)
            found.append(asdict(measured(task, group, number, prompts, images, reward)))
            if number not in (0, last):
                found[-1].pop("pictures")
            if group == task.prompts:
                rows[number], names = images, prompts
        kl = kl_to_base(exact, config.prompts, PROBES, config.microbatch)
        distance.append(rounded([float(kl[:, list(config.trained_steps)].sum(1).mean()), float(kl.sum(1).mean())]))
    contact_sheet(names, [rows[number] for number in (0, middle, last)], folder / "sheet.png")
    idle = [value or 0.0 for _, value in metrics["zero_spread_prompts"]]
    return dict(
        config=effective(config), rounds=numbers, images=config.images_per_round, kl_prompts="spread", kl_trained_steps=[d[0] for d in distance],
        kl_all_steps=[d[1] for d in distance], measured=found, idle_prompts=round(sum(idle) / len(idle) / config.prompts_per_round, 4),
        judge=judge_name(), seconds=seconds_of(metrics), seconds_measuring=round(time.perf_counter() - started, 1),
    )  # fmt: skip


# --- report -----------------------------------------------------------------------------------------------------------------------


def at(line: dict[str, Any], group: str, number: int) -> dict[str, Any]:
    """The line's measurement of a group at a round."""
    found: dict[str, Any] = next(each for each in line["measured"] if each["group"] == group and each["round"] == number)
    return found


COLUMNS = dict(
    proxy="proxy", gold="gold", animals="animal right", shown="gold, pairs the denoiser was shown", never_shown="… never shown",
    vlm_right="VLM right", fooled="VLM right, judge wrong",
)  # fmt: skip


def each_picture(found: dict[str, Any], key: str) -> list[float] | None:
    """One value a picture of a group; None where the line does not hold them, empty where the column means nothing there."""
    if (kept := found.get("pictures")) is None:
        return None
    if key in ("shown", "never_shown"):
        return [gold for gold, shown in zip(kept["gold"], kept["shown"], strict=True) if shown is (key == "shown")]
    if key == "vlm_right":
        return [float(said) for said in kept["vlm"] if said is not None]
    if key == "fooled":
        return [float(said and not gold) for said, gold in zip(kept["vlm"], kept["gold"], strict=True) if said is not None]
    return [float(value) for value in kept[key]]


def of_base(found: dict[str, Any], key: str) -> str:
    """A number of the base and its standard error over the pictures, where the line tells."""
    if (value := found[key]) is None:
        return "–"
    error = found.get(f"{key}_error")
    if error is None and key in ("animals", "vlm_right", "fooled"):
        error = share_error(value, found["count"])
    if values := each_picture(found, key):
        value, error = mean_and_error(values)
    return f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")


def difference(before: dict[str, Any], after: dict[str, Any], key: str) -> str:
    """After less before and its standard error, paired by picture; a dash where the line does not hold the pictures' values."""
    first, last = each_picture(before, key), each_picture(after, key)
    if not first or not last or len(first) != len(last) or len(first) < 2:
        return "–"
    mean, error = paired(first, last)
    return f"{mean:+.2f} ± {error:.2f}"


def table(task: Task, lines: Sequence[dict[str, Any]]) -> str:
    """Each group before and after, in Markdown, with three kinds of errors, which the words below the table name."""
    rows = [f"| prompts | | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for group in (*task.curves, *task.ends):
        first = [at(line, group, 0) for line in lines]
        last = [at(line, group, line["rounds"][-1]) for line in lines]
        after = ["–" if any(found[key] is None for found in last) else plus_minus([found[key] for found in last]) for key in COLUMNS]
        rows += [f"| {group} | base | {' | '.join(of_base(first[0], key) for key in COLUMNS)} |", f"| | after | {' | '.join(after)} |"]
        if (kept := next((i for i, found in enumerate(first) if "pictures" in found), None)) is not None:
            changes = [difference(first[kept], last[kept], key) for key in COLUMNS]
            rows.append(f"| | change, seed {lines[kept]['seed']} | {' | '.join(changes)} |")
    seconds = plus_minus([sum(line["seconds"].values()) for line in lines], 0)
    rows.append(
        "\nBase: ± standard error over its pictures. After: mean ± standard error over the training seeds, on the same pictures. Change: of one "
        f"seed, ± standard error paired by picture.\n\nSeeds {', '.join(str(line['seed']) for line in lines)}; {lines[0]['rounds'][-1]} rounds of "
        f"{lines[0]['images']} images, {seconds} s of rounds; prompts of a round that taught nothing "
        f"{plus_minus([100 * line['idle_prompts'] for line in lines], 0)} %."
    )
    for probes, words in (("spread", "a draw of the prompts"), (None, "the first prompts of the file")):
        if here := [line for line in lines if line.get("kl_prompts") == probes]:
            trained, whole = (plus_minus([line[name][-1] for line in here], 0) for name in ("kl_trained_steps", "kl_all_steps"))
            seeds = ", ".join(str(line["seed"]) for line in here)
            rows.append(f"KL to the base at the end, seeds {seeds}, on {words}: {trained} nats over the trained steps, {whole} over all.")
    return "\n".join(rows)


def draw(task: Task, lines: Sequence[dict[str, Any]], file: Path) -> None:
    """Proxy and gold over rounds, a panel for each of the curves' groups: mean over seeds, and as a band its standard error (with one seed that over
    its pictures)."""
    figure, axes = panels(len(task.curves))
    numbers = sorted(set.intersection(*(set(line["rounds"]) for line in lines)))
    for axis, group in zip(axes, task.curves, strict=True):
        names = dict(proxy=f"proxy: {task.reward}", gold="gold: the judge" if task.facts else "gold: image_statistics")
        for name, label in names.items():
            mean, error = zip(*(mean_and_error([at(line, group, n)[name] for line in lines]) for n in numbers), strict=True)
            if len(lines) == 1:
                error = tuple(at(lines[0], group, n)[f"{name}_error"] for n in numbers)
            band(axis, numbers, mean, error, label)
        axis.set(title=group, xlabel="rounds", xlim=(0, numbers[-1]))
    axes[0].set_ylabel("points" if not task.facts else "mean, 0 to 1")
    axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, file)


def name_of(task: Task, more: Sequence[str]) -> str:
    """The task's name and, where options were handed on, a hash of them."""
    return "-".join((task.name, *([short_hash(" ".join(more))] if more else [])))


def folder_of(out: Path, task: Task, seed: int, more: Sequence[str]) -> Path:
    """The run's folder."""
    name, *rest = name_of(task, more).split("-")
    return out / "-".join((name, str(seed), *rest))


def options_of(task: Task, more: Sequence[str]) -> list[str]:
    """What ``python -m ddpo run`` is given, but for the seed."""
    return [*flags(task.settings), *more]


def handed_on(more: Sequence[str]) -> None:
    """Refuse options that decide what a task is, or that this command has itself.

    Raises:
        SystemExit: there is one.
    """
    found = vars(parser_of_runs().parse_args(["run", "--out", "unused", *more]))
    usual = dict(seed=None, reward=None, prompts=None, preset=None, out=Path("unused"))
    if given := [name for name in usual if found[name] != usual[name]]:
        raise SystemExit(f"--{given[0]} cannot be handed on: a task has its own reward, prompts and preset, and --seeds and --out are of all runs.")


def known(line: dict[str, Any], task: Task, options: dict[str, Any]) -> bool:
    """Whether a line measures the task as it would be run now with these options, whatever its seed."""
    if line["task"] != task.name or line["options"] != options:
        return False
    return same_settings(line, asked(options_of(task, options["more"])))


def report(results: Path, options: dict[str, Any], out: Path, docs: Path) -> None:
    """Tables to the terminal, curves and contact sheets to the folder ``docs``."""
    print(f"About {options['images']} pictures a group. Options handed on: {' '.join(options['more']) or 'none'}.")
    for task in TASKS:
        found = [line for line in lines_of(results) if line["task"] == task.name]
        lines = [line for line in found if known(line, task, options)]
        print(f"\n{task.title}" + (f" {' '.join(options['more'])}" if options["more"] else "") + (": not measured yet." if not lines else ""))
        if len(found) > len(lines):
            print(f"\n{len(found) - len(lines)} lines of other options or settings are left out.")
        if not lines:
            continue
        print(f"\n{table(task, lines)}\n{unrecorded(lines)}\n{judged_before(lines)}")
        name = f"task-{name_of(task, options['more'])}"
        draw(task, lines, docs / f"{name}.svg")
        if (picture := folder_of(out, task, lines[0]["seed"], options["more"]) / "sheet.png").exists():
            shutil.copyfile(picture, docs / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("build/tasks"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of lines")
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in TASKS], default=[task.name for task in TASKS], help="which tasks")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="the seeds of the runs")
    parser.add_argument("--every", type=int, default=10, help="rounds between two measurements")
    parser.add_argument("--images", type=int, default=90, help="held-out pictures of a group, about")
    parser.add_argument("--report", action="store_true", help="print the tables and draw the curves of what has been measured")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the report draws")
    options, more = parser.parse_known_args()
    handed_on(more)
    key = dict(every=options.every, images=options.images, more=more)
    if options.report:
        report(options.results, key, options.out, options.docs)
        return
    for seed in options.seeds:
        for task in TASKS:
            if task.name not in options.tasks or any(line["seed"] == seed and known(line, task, key) for line in lines_of(options.results)):
                continue
            folder = folder_of(options.out, task, seed, more)
            make_run(folder, [*options_of(task, more), *flags(dict(seed=seed))])
            add_line(options.results, dict(task=task.name, seed=seed, options=key, **measure(task, folder, options.every, options.images)))


if __name__ == "__main__":
    main()
