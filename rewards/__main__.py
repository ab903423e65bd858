"""``python -m rewards``: score pictures, list the rewards, or serve another program."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import TextIO

import rewards
from rewards.base import RewardError
from rewards.desk import PRECISIONS, Desk, Order, serve
from rewards.function import trust

AT_ONCE = 64
"""Pictures that are in memory together."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rewards", description="What is good? Score any pictures with any reward.")
    commands = top.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="score pictures, and print the values as CSV")
    score.add_argument("images", nargs="+", metavar="IMAGE", help="files of pictures")
    names = ", ".join(rewards.automatic())
    score.add_argument("--reward", action="append", required=True, metavar="REWARD", help=f"{names}, or FILE:FUNCTION; several may be given")
    score.add_argument("--trust", action="append", default=[], metavar="FILE", help="a Python file that may run, for a reward FILE:FUNCTION in it")
    score.add_argument("--prompt", default="", help="what the pictures should show")
    score.add_argument("--models", choices=("published", "pocket"), default="published", help="which networks score (default: published)")
    score.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    score.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the networks (default: auto)")
    score.add_argument("--vlm", default="", help="what looks at pictures: a LLaVA's folder or name on the Hub, or http://host/v1#model")
    commands.add_parser("list", help="print the table of rewards")
    commands.add_parser("serve", help="answer requests, one a line in JSON, until the input or the program that started this one ends")
    return top


def score_files(options: argparse.Namespace, out: TextIO) -> int:
    """Print a row for each reward and picture; a reward that cannot score, or a file that is no picture, says why, and the others go on."""
    desk, failed = Desk(), 0
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["image", "prompt", "reward", "value", "explanation"])
    for reward in options.reward:
        try:
            _check(reward, options.prompt)
            order = Order(reward, options.models, options.device, options.precision, options.vlm)
            for start in range(0, len(options.images), AT_ONCE):
                paths = options.images[start : start + AT_ONCE]
                for path, score in zip(paths, desk.score(order, [(path, options.prompt) for path in paths]), strict=True):
                    if isinstance(score, RewardError):
                        print(f"{path}: {score}", file=sys.stderr)
                        failed = 1
                        continue
                    explanation = json.dumps(score.explanation, ensure_ascii=False)
                    value = "" if score.value is None else score.value
                    rows.writerow([_text(path), _text(options.prompt), _text(reward), value, explanation])
                out.flush()
        except RewardError as error:
            print(f"{reward}: {error}", file=sys.stderr)
            failed = 1
    return failed


def _check(reward: str, prompt: str) -> None:
    """Raise RewardError unless it scores by itself, and has what it compares pictures with."""
    if rewards.card(reward) and reward in rewards.REWARDS and reward not in rewards.automatic():
        raise RewardError(f"It cannot score files by itself. Choose one of {', '.join(rewards.automatic())}.")
    if rewards.card(reward).prompted and not prompt.strip():
        raise RewardError("It compares pictures with their prompt, and there is none. Give one: --prompt TEXT.")


def _text(cell: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def list_rewards(out: TextIO) -> int:
    """Print what there is to choose from."""
    for name, card in rewards.REWARDS.items():
        networks = f" Networks: {', '.join(filter(None, [card.download, 'pocket' if card.pocket else '']))}." if card.published else ""
        print(f"{name} ({card.unit}, {card.range}): {card.asks} Fooled by {card.fooled_by}.{networks}", file=out)
    return 0


def quiet_stdout() -> TextIO:
    """The real standard output, for us alone: whatever else is printed from now on, by libraries too, goes to standard error."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape", newline="\n")  # a file's name is as it was given
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return ours


def print_answers(answers: Iterable[str], out: TextIO) -> None:
    """Print answers, a line each, for the program that started this one, and no longer than it lives; a training run goes first, and so does the
    page."""
    threading.Thread(target=end_with, args=(os.getppid(),), name="end with the parent", daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)
    for answer in answers:
        print(answer, file=out, flush=True)


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone, even in the middle of an answer."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for file in getattr(options, "trust", ()):
        trust(file)
    with quiet_stdout() as out:
        if options.command == "list":
            return list_rewards(out)
        if options.command == "score":
            return score_files(options, out)
        with os.fdopen(os.dup(0), encoding="utf-8", errors="replace") as lines:  # our own: exit() in a person's function closes sys.stdin
            print_answers(serve(lines), out)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
