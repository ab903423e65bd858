"""``python -m ddpo``: train without a page.

``run`` makes a run folder and trains in it; ``resume`` goes on with one; ``fork`` makes a new one that goes on from a round of another; ``export``
takes a run's model or its ratings away. The page can open such a run, while it goes on and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from ddpo import earlier
from ddpo.config import GROUPS, ConfigError, RunConfig, is_a, prompt_sets, read_prompts
from ddpo.export import EXPORTS, PICTURES, PRECISIONS, ExportError, export
from ddpo.fork import fork
from ddpo.presets import preset_of, presets
from ddpo.source import located, located_reward, model_source
from ddpo.store import RunStore, StoreError
from ddpo.worker import follow, follows, leave
from rewards import BLEND, RewardError, parts
from rewards.function import trust


def parser() -> argparse.ArgumentParser:
    """The command line, with one option for each setting of :class:`RunConfig`."""
    top = argparse.ArgumentParser(prog="python -m ddpo", description="Finetune a text-to-image model by reinforcement learning, without a page.")
    commands = top.add_subparsers(dest="command", required=True, metavar="{run,resume,fork,export}")
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
    for command in (run, resume, branch):
        command.add_argument(
            "--trust", type=Path, action="append", default=[], metavar="FILE", help="a Python file that may run, for a reward FILE:function in it"
        )
    add_export(
        commands.add_parser(
            "export", help="take a run's model, its ratings or a report away", description="Make a folder of files for other programs."
        )
    )
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
        "--round", type=int, help="which round (default: the last one that is saved; for ratings, pairs, images and a report all of them)"
    )
    command.add_argument("--strength", type=float, default=1.0, help="how much of what was trained is in a model (default: 1)")
    command.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of a model's weights in the file (default: fp32)")
    command.add_argument(
        "--pictures",
        type=int,
        default=PICTURES,
        help=f"how many pictures before and after a report has; 0 spares loading the model (default: {PICTURES})",
    )
    command.add_argument("--names", action="store_true", help="call raters by their names instead of a hash of them")
    command.add_argument("--out", type=Path, required=True, help="the folder to make")


def add_setting(section: argparse._ArgumentGroup, field: dataclasses.Field[Any]) -> None:
    """The option of one setting, with its sentence."""
    flag, help = "--" + field.name.replace("_", "-"), field.metadata["help"]
    if field.name == "prompts":
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
    """The prompts that ``--prompts`` names: a set that comes with the project, a file, or the prompts themselves."""
    if text in prompt_sets():
        return prompt_sets()[text]
    if text.endswith(".txt") or is_a(Path(text).is_file):
        return read_prompts(Path(text))
    return tuple(part.strip() for part in text.split(";") if part.strip())


def changes_from(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options name."""
    changes: dict[str, Any] = {f.name: v for f in dataclasses.fields(RunConfig) if (v := getattr(options, f.name)) is not None}
    if "ratings_from" in changes:
        changes["ratings_from"] = "; ".join(changes["ratings_from"])
    return changes | (dict(prompts=prompts_from(changes["prompts"])) if "prompts" in changes else {})


def config_from(options: argparse.Namespace) -> RunConfig:
    """The configuration that the options ask for.

    Raises:
        ConfigError: a setting cannot work.
    """
    changes = changes_from(options)
    name = options.preset or preset_of(changes.get("reward", "human"))
    return located(presets()[name].config.with_changes(**changes))


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
    from ddpo.trainer import summary

    store = RunStore(folder)
    config = store.config
    if "human" in parts(store.reward_wanted or store.reward_at(config.rounds)):
        print(f"This run waits for ratings. Rate it in the studio: python -m app --runs {folder.parent}", file=sys.stderr)
    bars = Bars(config.rounds)
    code = worker.run(folder, bars)
    bars.close()
    result = dict(run=str(folder), state=store.status().state, **summary(store.metrics()))
    if store.reward_at(config.rounds).startswith(BLEND):
        result["gain_percent"] = None  # of a base near 0
    store.close()
    print(json.dumps(result))
    return code


def take_away(options: argparse.Namespace) -> int:
    """Export, and print what was made as JSON."""
    store = RunStore(options.folder)
    try:
        number = export(store, options.kind, options.out, options.round, options.strength, options.precision, options.names, options.pictures)
    finally:
        store.close()
    files = sum(file.is_file() for file in options.out.rglob("*"))
    print(json.dumps({"run": str(options.folder), "round": number, "as": options.kind, "out": str(options.out), "files": files}))
    return 0


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.command == "export":
        try:
            return take_away(options)
        except (ConfigError, StoreError, ExportError) as error:
            print(error, file=sys.stderr)
            return 2
    for file in options.trust:
        trust(file)
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
        earlier.create(options.out, config).close()
        return work(options.out)
    except (ConfigError, StoreError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    leave(main())
