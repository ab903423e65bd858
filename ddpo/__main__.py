"""``python -m ddpo``: train without a page.

``run`` makes a run folder and trains in it; ``resume`` goes on with one; ``fork`` makes a new one that goes on from a round of another; ``export``
takes a run's model or its ratings away, and ``push`` sends them to the Hugging Face Hub. The page can open such a run, while it goes on and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpo import earlier
from ddpo.config import GROUPS, ConfigError, RunConfig, is_a, prompt_sets, read_prompts, sources_of, sources_text
from ddpo.export import EXPORTS, MEASURED, PICTURES, PRECISIONS, ExportError, export
from ddpo.fork import fork
from ddpo.hub import HubError
from ddpo.presets import preset_of, presets
from ddpo.source import fitted, located, located_reward, model_source
from ddpo.store import RunStore, StoreError
from ddpo.tracker import require
from ddpo.worker import follow, follows, leave
from rewards import BLEND, RewardError, parts
from rewards.function import trust


def parser() -> argparse.ArgumentParser:
    """The command line, with one option for each setting of :class:`RunConfig`."""
    top = argparse.ArgumentParser(prog="python -m ddpo", description="Finetune a text-to-image model by reinforcement learning, without a page.")
    commands = top.add_subparsers(dest="command", required=True, metavar="{run,resume,fork,export,push}")
    run = commands.add_parser("run", help="start a new run", description="Start a new run; the last line of output is its summary as JSON.")
    run.add_argument("--out", type=Path, required=True, help="the run folder to make, for instance runs/first")
    run.add_argument("--preset", choices=presets(), help="start from these settings; the options below change single ones")
    add_settings(run)
    resume = commands.add_parser("resume", help="go on with a run that was stopped, interrupted or has failed")
    resume.add_argument("folder", type=Path, help="the run folder")
    resume.add_argument("--reward", help="what scores from here on, instead of what did")
    branch = commands.add_parser(
        "fork", help="make a new run that goes on from a round of another one", description="The options below change single settings."
    )
    branch.add_argument("folder", type=Path, help="the run folder to go on from")
    branch.add_argument("--round", type=int, required=True, help="the round after which the new run begins")
    branch.add_argument("--out", type=Path, required=True, help="the run folder to make")
    add_settings(branch)
    taken = commands.add_parser(
        "export", help="take a run's model, its ratings or a report away", description="Make a folder of files for other programs."
    )
    add_export(taken)
    for command in (run, resume, branch, taken):
        command.add_argument(
            "--trust", type=Path, action="append", default=[], metavar="FILE", help="a Python file that may run, for a reward FILE:function in it"
        )
    sent = commands.add_parser("push", help="send what was exported to the Hugging Face Hub", description="Asks for a token, which is kept nowhere.")
    sent.add_argument("folder", type=Path, help="the folder that export made: a LoRA, a whole model, or data")
    sent.add_argument("repo", metavar="OWNER/NAME", help="the repository, which is made where there is none")
    sent.add_argument("--public", action="store_true", help="everybody may see it (default: its owner only)")
    return top


def add_settings(command: argparse.ArgumentParser) -> None:
    """The options of all settings, in sections."""
    settings = {field.name: field for field in dataclasses.fields(RunConfig)}
    for title, names in GROUPS.items():
        section = command.add_argument_group(title)
        for name in names:
            add_setting(section, settings[name])


def add_export(command: argparse.ArgumentParser) -> None:
    """The options of ``export``."""
    kinds = "; ".join(f"{name}: {what}" for name, what in EXPORTS.items())
    command.add_argument("folder", type=Path, help="the run folder")
    command.add_argument("--as", dest="kind", choices=EXPORTS, default="diffusers", help=f"{kinds} (default: diffusers)")
    command.add_argument(
        "--round",
        type=int,
        help="which round (default: the last one that is saved, or is rolled back to; for ratings, pairs, images and a report all of them)",
    )
    command.add_argument("--strength", type=float, default=1.0, help="how much of what was trained is in a model (default: 1)")
    command.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of a model's weights in the file (default: fp32)")
    few, each, some = (PICTURES[kind][0] for kind in ("report", "generalisation", "strengths"))
    command.add_argument(
        "--pictures",
        type=int,
        help=f"how many pictures before and after a report has; 0 spares loading the model (default: {few}); or each group of prompts for "
        f"generalisation (default: {each}); or each of the strengths (default: {some})",
    )
    command.add_argument(
        "--unseen",
        action="append",
        default=[],
        metavar="SET|FILE|TEXT",
        help="prompts that were not trained on, for generalisation, as --prompts of run takes them; can be given several times "
        "(default: the run's held_out_prompts, or the sets that belong to its own)",
    )
    command.add_argument("--names", action="store_true", help="call raters by their names instead of a hash of them")
    command.add_argument("--out", type=Path, required=True, help="the folder to make")


def add_setting(section: argparse._ArgumentGroup, field: dataclasses.Field[Any]) -> None:
    """The option of one setting, with its sentence."""
    flag, help = "--" + field.name.replace("_", "-"), field.metadata["help"]
    if field.type == "tuple[str, ...]":
        section.add_argument(
            flag, metavar="SET|FILE|TEXT", help=f"{help} A set ({', '.join(prompt_sets())}), a text file, or prompts separated by ;."
        )
    elif field.name == "ratings_from":
        section.add_argument(flag, nargs="+", metavar="RUN|FILE", help=help)
    elif field.type == "bool":
        section.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=f"{help} (default: {field.default})")
    else:
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        section.add_argument(flag, type=kind, choices=field.metadata.get("choices"), help=f"{help} (default: {field.default})")


def prompts_from(text: str) -> tuple[str, ...]:
    """The prompts that ``--prompts`` or ``--held-out-prompts`` names: a set that comes with the project, a file, or the prompts themselves."""
    if text in prompt_sets():
        return prompt_sets()[text]
    if text.endswith(".txt") or is_a(Path(text).is_file):
        return read_prompts(Path(text))
    return tuple(part.strip() for part in text.split(";") if part.strip())


def unseen_from(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The prompts that each ``--unseen`` names, by a name for them."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name = text if text in prompt_sets() else Path(text).stem if text.endswith(".txt") or is_a(Path(text).is_file) else "unseen"
        found[name] = (*found.get(name, ()), *prompts_from(text))
    return found


def changes_from(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options name."""
    changes: dict[str, Any] = {f.name: v for f in dataclasses.fields(RunConfig) if (v := getattr(options, f.name)) is not None}
    if "ratings_from" in changes:
        changes["ratings_from"] = sources_text(
            each for name in changes["ratings_from"] for each in ((name,) if is_a(Path(name).exists) else sources_of(name))
        )
    return changes | {name: prompts_from(changes[name]) for name in ("prompts", "held_out_prompts") if name in changes}


def config_from(options: argparse.Namespace) -> RunConfig:
    """The configuration that the options ask for.

    Raises:
        ConfigError: a setting cannot work.
    """
    changes = changes_from(options)
    name = options.preset or preset_of(changes.get("reward", "human"))
    return located(fitted(presets()[name].config.with_changes(**changes), changes))


class Bars:
    """Progress on the terminal: one bar a phase."""

    def __init__(self, rounds: int) -> None:
        self.rounds, self.key, self.bar = rounds, ("", -1), None

    def __call__(self, state: str, number: int, done: int, total: int) -> None:
        from tqdm import tqdm

        if (state, number) != self.key:
            self.close()
            self.key = (state, number)
        if self.bar is None and total > 1:
            self.bar = tqdm(total=total, desc=f"round {number}/{self.rounds} {state}", leave=False, dynamic_ncols=True, file=sys.stderr)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def ask_for_reward(folder: Path, reward: str) -> None:
    """Ask the run's next worker to score by another reward.

    Raises:
        ConfigError: it names no reward, or none that can score this run.
        StoreError: the folder is no run.
    """
    try:
        wanted = located_reward(reward)
    except RewardError as error:
        raise ConfigError(f"reward is {reward!r}. {error}") from error
    store = RunStore(folder)
    try:
        if refusal := store.refusal(wanted):
            raise ConfigError(refusal)
        store.add_request("reward", reward=wanted)
    finally:
        store.close()


def work(folder: Path) -> int:
    """Train in a run folder, with progress bars, and print the summary."""
    from ddpo import worker
    from ddpo.result import rolled_back
    from ddpo.trainer import summary

    store = RunStore(folder)
    config = store.config
    if "human" in parts(store.reward_wanted or store.reward_at(config.rounds)):
        print(f"This run waits for ratings. Rate it in the studio: python -m app --runs {folder.parent}", file=sys.stderr)
    bars = Bars(config.rounds)
    code = worker.run(folder, bars)
    bars.close()
    result = dict(run=str(folder), state=store.status().state, **summary(store.metrics(), rolled_back(store)))
    if store.reward_at(config.rounds).startswith(BLEND):
        result["gain_percent"] = None  # of a base near 0
    store.close()
    print(json.dumps(result))
    return code


def take_away(options: argparse.Namespace) -> int:
    """Export, and print what was made as JSON."""
    from tqdm import tqdm

    store = RunStore(options.folder)
    bar = tqdm(unit="picture", leave=False, dynamic_ncols=True, file=sys.stderr, disable=options.kind not in MEASURED)

    def made(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        number = export(
            store, options.kind, options.out, options.round, options.strength, options.precision, options.names, options.pictures,
            unseen_from(options.unseen), made,
        )  # fmt: skip
    finally:
        bar.close()
        store.close()
    files = sum(file.is_file() for file in options.out.rglob("*"))
    print(json.dumps({"run": str(options.folder), "round": number, "as": options.kind, "out": str(options.out), "files": files}))
    return 0


def push(options: argparse.Namespace) -> int:
    """Send an export's folder to the Hub, and print where it is as JSON. The token is HF_TOKEN's, or what is typed; from a pipe, its first line."""
    from ddpo.hub import is_model, prepare, send

    if not options.folder.is_dir():
        raise ExportError(f"{options.folder} is no folder. Make one with python -m ddpo export, and name it.")
    token = os.environ.get("HF_TOKEN") or (getpass.getpass("Token of the Hugging Face Hub: ") if sys.stdin.isatty() else sys.stdin.readline())
    model = is_model(options.folder)
    repo = prepare(options.repo, token.strip(), model, private=not options.public)
    print(json.dumps({"url": send(options.folder, repo, token.strip(), model)}))
    return 0


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for file in getattr(options, "trust", ()):
        trust(file)
    if options.command in ("export", "push"):
        try:
            return push(options) if options.command == "push" else take_away(options)
        except (ConfigError, StoreError, ExportError, HubError) as error:
            print(error, file=sys.stderr)
            return 2
    if follows():  # one of several processes: the first one makes the folder, and leads
        return follow(options.folder if options.command == "resume" else options.out)
    try:
        if options.command == "resume":
            if options.reward is not None:
                ask_for_reward(options.folder, options.reward)
            return work(options.folder)
        if options.command == "fork":
            parent = RunStore(options.folder)
            fork(parent, options.round, options.out, changes_from(options)).close()
            parent.close()
            return work(options.out)
        config = config_from(options)
        model_source(config)  # refuses a missing folder before the run's is made
        require(config)
        earlier.create(options.out, config).close()
        return work(options.out)
    except (ConfigError, StoreError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    leave(main())
