"""Four prompts, each trained alone, with and without a KL penalty: ``python -m benchmarks.four_prompts`` (Black et al. 2023, App. C).

DPOK (Fan et al. 2023, arXiv 2305.16381) finetunes on single prompts that ask for a colour, a count, a composition and a place. Those nearest to
them that the pocket world has pictures of, what is asked of the pictures beside the right animal, and which reward can see it:

=========== =========================== ============================== ============================================== ============
about       DPOK's                      here                           right, beside the animal                       reward
=========== =========================== ============================== ============================================== ============
colour      a green colored rabbit      a rabbit on a green background the border is green                            clip_score
count       four wolves                 four wolves                    the judge counts four                          satisfaction
composition a cat and a dog             a llama riding a bike          the judge sees the bike                        alignment
place       a dog on the moon           a dog at night                 the border is dark                             clip_score
=========== =========================== ============================== ============================================== ============

The pocket LLaVA was taught to leave backgrounds out of its descriptions, so it cannot reward them; the pocket CLIP was taught them. (There it was
ImageReward for all.) ``--reward`` takes one reward for all four. The world has no two animals in one picture.

The composition's reward is weak. On 32 base pictures of "a llama riding a bike" the pocket LLaVA's strict answers (``satisfaction``) were right on
all 32, which teaches nothing: it was only taught questions whose premise is true, and when asked what the animal does it says "riding a bike" of 65 %
of renders of a plain animal. Its descriptions, which ``alignment`` scores, were the prompt itself on 30 of the 32 and "a llama" on 2: two scores in
all, and little left to learn.

DPOK's objective and ours. DPOK descends -α A log p + β KL(p_θ ‖ p_base) at each step (its eq. 8). Here ``kl_weight`` k descends -A log p + k KL,
both divided by the latent's dimensions, with A in standard deviations of the round's scores. So k = β / (α σ_r), where σ_r is that deviation; each
step's two terms have the same weight (``step_weights``). The authors' code (google-research/dpok) takes α 100, β 0.01 and
‖ε - ε_base‖² in the place of the KL; that is KL · 2σ²/c², with c how far the mean moves per unit of noise. At c ≈ σ it comes to a k of 2e-4 / σ_r,
weaker than any here: ``--kl-weights`` sweeps larger ones. DPOK's replay buffer, value function and clip are not reproduced. All else is the same for
both: DDPO with one update a round of 32 images in one group, η 1, every image its own start. (A group of equal answers teaches nothing, and with a
shared start many groups are.)

At the base, every ``--every`` rounds and at the end, on held-out seeds: the reward, success (right animal and the fact above), ``aesthetic`` and
``image_statistics`` (does the rest suffer?), and the KL to the base along fixed probe trajectories in float32
(:func:`benchmarks.common.kl_to_base`), over the trained steps and over all; the last steps, which are not trained but use the trained weights, hold
most of the latter. Each run is one line of ``benchmarks/four_prompts.jsonl`` (``--results``) and is not made again; one that was cut off goes on.
``--report`` prints the table and draws success over the distance into ``docs/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
from ddpo.checkpoint import load_result
from ddpo.evaluate import held_out_images
from ddpo.store import RunStore
from ddpo.worker import reward_source
from pocket.judge import judge_images
from rewards.base import Sample
from rewards.statistics import luminance

RESULTS = Path(__file__).with_suffix(".jsonl")
SEEDS = (0, 1, 2)
KL_WEIGHTS = (0.0, 0.01, 0.1)
PROBES = 16
SETTINGS: dict[str, Any] = dict(
    preset="aesthetic", images_per_round=32, images_per_prompt=32, images_per_update=32, objective="ddpo-is", eta=1.0, shared_start=False,
    skip_last_steps=2, learning_rate=1e-3, held_out_images=0,
)  # fmt: skip


def settings_of(single: Single, reward: str, kl_weight: float, rounds: int, seed: int) -> dict[str, Any]:
    """The options of a run."""
    return SETTINGS | dict(reward=reward, prompts=single.prompt, kl_weight=kl_weight, rounds=rounds, seed=seed)


@dataclass(frozen=True)
class Single:
    """One prompt, the reward that sees what it asks for, and the fact that its pictures must show beside the animal."""

    about: str
    prompt: str
    reward: str
    fact: str


SINGLES = (
    Single("colour", "a rabbit on a green background", "clip_score", "green"),
    Single("count", "four wolves", "satisfaction", "count"),
    Single("composition", "a llama riding a bike", "alignment", "activity"),
    Single("place", "a dog at night", "clip_score", "night"),
)
BORDER = 4
"""Width of the border that the background is judged by, in pixels: above, left and right, where no ground is and seldom an animal."""
GREEN, DARK = 60.0, 60.0
"""How much greener than red and blue the border is at least, and how luminous at most, of 255. All of 100 renders on green passed (81 or more) and
all of 300 at night (50.2 or less, four above 45). Of other backgrounds, none of 300 renders on grass passed for green; all of 30 on black did for
night, so a black background counts as one."""


def border(image: Image.Image) -> np.ndarray:
    """The mean colour of the border, (3,), 0 to 255."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    parts = (pixels[:BORDER], pixels[:, :BORDER], pixels[:, -BORDER:])
    found: np.ndarray = np.concatenate([part.reshape(-1, 3) for part in parts]).mean(0)
    return found


def is_green(image: Image.Image) -> bool:
    red, green, blue = border(image)
    return bool(green - max(red, blue) > GREEN)


def is_night(image: Image.Image) -> bool:
    return bool(luminance(border(image)[None]) < DARK)


def successes(single: Single, images: list[Image.Image]) -> tuple[list[bool], list[bool]]:
    """Of each picture: does it show the right animal, and does it show that and the prompt's fact?"""
    verdicts = judge_images(the_judge(), images, [single.prompt] * len(images))
    closed = dict(green=is_green, night=is_night)
    facts = [closed[single.fact](image) if single.fact in closed else v[single.fact] for image, v in zip(images, verdicts, strict=True)]
    animals = [v["subject"] for v in verdicts]
    return animals, [animal and fact for animal, fact in zip(animals, facts, strict=True)]


COLUMNS = dict(reward="reward", success="success", animals="animal right", aesthetic="aesthetic", image_statistics="image statistics")


def measure(single: Single, folder: Path, every: int, count: int) -> dict[str, Any]:
    """Everything of one finished run, at the base, every so many rounds and at the end."""
    store = RunStore(folder)
    config, places, metrics = store.config, store.checkpoints(), store.metrics()
    store.close()
    last = max(places)
    numbers = sorted({0, *range(every, last, every), last})
    policy, exact = policy_at(folder, 0), policy_at(folder, 0, precision="fp32")
    trained = reward_source(config)(config.reward)
    scorers = dict(reward=trained, aesthetic=rewards.load("aesthetic", "pocket"), image_statistics=rewards.load("image_statistics"))
    found: dict[str, Any] = dict(config=effective(config), rounds=numbers, success=[], animals=[], kl_trained_steps=[], kl_all_steps=[])
    found |= {key: [] for name in scorers for key in (name, f"{name}_error")}
    pictures: dict[str, list[list[float]]] = {name: [] for name in COLUMNS}
    for number in numbers:
        if number:
            load_result(places[number], policy.parameters())
            load_result(places[number], exact.parameters())
        prompts, images = held_out_images(policy, config, base=number == 0, count=count)
        samples = [Sample(i, prompt, image) for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))]
        for name, scorer in scorers.items():
            values = [score.value or 0.0 for score in scorer.score(samples)]
            pictures[name].append(rounded(values))
            mean, error = rounded(mean_and_error(values))
            found[name].append(mean)
            found[f"{name}_error"].append(error)
        for name, right in zip(("animals", "success"), successes(single, images), strict=True):
            pictures[name].append([int(each) for each in right])
            found[name].append(round(sum(right) / len(right), 4))
        kl = kl_to_base(exact, config.prompts, PROBES, config.microbatch)
        found["kl_trained_steps"].append(round(float(kl[:, list(config.trained_steps)].sum(1).mean()), 3))
        found["kl_all_steps"].append(round(float(kl.sum(1).mean()), 3))
    found["judge"] = judge_name()
    found["idle_rounds"] = round(mean_and_error([value or 0.0 for _, value in metrics["zero_spread_prompts"]])[0], 4)
    found["seconds"] = round(sum(seconds_of(metrics).values()), 1)
    return found | dict(pictures={name: [values[0], values[-1]] for name, values in pictures.items()})


# --- report -----------------------------------------------------------------------------------------------------------------------


def title_of(weight: float) -> str:
    return f"DPOK, KL weight {weight:g}" if weight else "DDPO, no KL"


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The base and each setting at the last round, in Markdown, with three kinds of errors, which the words below the table name."""
    rows = [f"| prompt | | {' | '.join(COLUMNS.values())} | KL, trained steps | all steps | seeds |", "|---" * 10 + "|"]
    for single in SINGLES:
        mine = [line for line in lines if line["prompt"] == single.prompt]
        if mine:
            base = " | ".join(of_base(mine[0], name) for name in COLUMNS)
            rows.append(f"| {single.prompt} ({mine[0]['reward_name']}) | base | {base} | 0 | 0 | – |")
        for weight in sorted({line["kl_weight"] for line in mine}):
            here = [line for line in mine if line["kl_weight"] == weight]
            ends = " | ".join(plus_minus([line[name][-1] for line in here]) for name in COLUMNS)
            kl = " | ".join(plus_minus([line[name][-1] for line in here], 1) for name in ("kl_trained_steps", "kl_all_steps"))
            rows.append(f"| | {title_of(weight)} | {ends} | {kl} | {', '.join(str(line['seed']) for line in here)} |")
            if kept := next((line for line in here if "pictures" in line), None):
                changes = " | ".join("{:+.2f} ± {:.2f}".format(*paired(*kept["pictures"][name])) for name in COLUMNS)
                rows.append(f"| | change of one seed | {changes} | – | – | {kept['seed']} |")
    rows.append(
        "\nBase: ± standard error over its pictures. The settings: mean ± standard error over the training seeds, on the same pictures. Change: "
        "since the base, ± standard error paired by picture."
    )
    return "\n".join(rows)


def of_base(line: dict[str, Any], name: str) -> str:
    """A number of the base and its standard error over the pictures."""
    value = line[name][0]
    error = line[f"{name}_error"][0] if f"{name}_error" in line else share_error(value, line["options"]["images"])
    return f"{value:.2f} ± {error:.2f}"


def draw(lines: Sequence[dict[str, Any]], file: Path) -> None:
    """Success over the KL of the trained steps, a panel a prompt: one line a setting, the mean over its seeds at each round measured."""
    singles = [single for single in SINGLES if any(line["prompt"] == single.prompt for line in lines)]
    figure, axes = panels(len(singles))
    for axis, single in zip(axes, singles, strict=True):
        mine = [line for line in lines if line["prompt"] == single.prompt]
        for weight in sorted({line["kl_weight"] for line in mine}):
            here = [line for line in mine if line["kl_weight"] == weight]
            steps = range(min(len(line["rounds"]) for line in here))
            distance = [mean_and_error([line["kl_trained_steps"][i] for line in here])[0] ** 0.5 for i in steps]
            mean, error = zip(*(mean_and_error([line["success"][i] for line in here]) for i in steps), strict=True)
            band(axis, distance, mean, error, title_of(weight))
        axis.set(title=single.prompt, xlabel="√KL to the base, trained steps", ylim=(0, 1.02))
    axes[0].set_ylabel("success")
    axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, file)


def report(lines: Sequence[dict[str, Any]], reward: str, key: dict[str, Any], docs: Path) -> None:
    """The table to the terminal and the curves to the folder ``docs``, of the lines with these options; the rest is counted."""

    def known(line: dict[str, Any]) -> bool:
        single = next((single for single in SINGLES if single.prompt == line["prompt"]), None)
        if single is None or line["options"] != key or line["reward_name"] != (reward or single.reward):
            return False
        return same_settings(line, asked(flags(settings_of(single, line["reward_name"], line["kl_weight"], key["rounds_made"], line["seed"]))))

    found = [line for line in lines if known(line)]
    said = f"reward of all prompts: {reward}" if reward else "each prompt's own reward"
    print(f"{key['rounds_made']} rounds of {SETTINGS['images_per_round']} images; {key['images']} held-out pictures; {said}.")
    if len(lines) > len(found):
        print(f"{len(lines) - len(found)} lines of other options, rewards (--reward) or settings are left out.")
    print(f"\n{table(found)}\n{unrecorded(found)}\n{judged_before(found)}" if found else "Not measured yet.")
    if found:
        draw(found, docs / f"four-prompts{'-' + short_hash(reward) if reward else ''}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/four-prompts"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of lines")
    parser.add_argument("--only", nargs="+", choices=[s.about for s in SINGLES], default=[s.about for s in SINGLES], help="which prompts")
    parser.add_argument("--reward", default="", help="this reward for all prompts")
    parser.add_argument("--kl-weights", type=float, nargs="+", default=list(KL_WEIGHTS), help="0 is DDPO")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="the seeds of the runs")
    parser.add_argument("--rounds", type=int, default=16, help="rounds of 32 images")
    parser.add_argument("--every", type=int, default=4, help="rounds between two measurements")
    parser.add_argument("--images", type=int, default=48, help="held-out pictures")
    parser.add_argument("--report", action="store_true", help="print the table and draw the curves of what has been measured")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the report draws")
    options = parser.parse_args()
    key = dict(rounds_made=options.rounds, every=options.every, images=options.images)
    if options.report:
        report(lines_of(options.results), options.reward, key, options.docs)
        return
    for seed in options.seeds:
        for single in (single for single in SINGLES if single.about in options.only):
            for weight in options.kl_weights:
                name = options.reward or single.reward
                run = dict(prompt=single.prompt, reward_name=name, kl_weight=weight, seed=seed, options=key)
                wanted = flags(settings_of(single, name, weight, options.rounds, seed))
                if any({k: line[k] for k in run} == run and same_settings(line, asked(wanted)) for line in lines_of(options.results)):
                    continue
                folder = options.out / f"{single.about}-{name}-{weight:g}-{options.rounds}-{seed}"
                make_run(folder, wanted)
                add_line(options.results, run | measure(single, folder, options.every, options.images))


if __name__ == "__main__":
    main()
