"""The README tells the truth: every setting, metric, reward, preset and key stands in it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import rewards
from ddpo.config import RunConfig, prompt_sets
from ddpo.presets import presets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_stands_in_the_readme_with_its_sentence() -> None:
    for field in dataclasses.fields(RunConfig):
        row = next((line for line in README.splitlines() if line.startswith(f"| `{field.name}` |")), None)
        assert row, f"README has no row for the setting {field.name}"
        assert field.metadata["help"] in row, f"README says something else of {field.name} than its help text"


def test_no_setting_stands_in_the_readme_that_does_not_exist() -> None:
    table = README.split("## Settings")[1].split("\n## ")[0]
    names = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert set(names) == {field.name for field in dataclasses.fields(RunConfig)}


def test_every_reward_preset_and_prompt_set_stands_in_the_readme() -> None:
    for name in [*rewards.REWARDS, *presets(), *prompt_sets()]:
        assert f"`{name}`" in README, f"README does not mention {name}"


@pytest.mark.parametrize("file", ["README.md", "rewards/README.md"])
def test_every_reward_s_card_stands_in_the_readmes(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    for name, card in rewards.REWARDS.items():
        row = next(line for line in lines if line.startswith(f"| `{name}` |"))
        assert all(words in row for words in (card.asks, card.unit, card.range, card.source, card.licence, card.fooled_by)), name


def test_every_metric_that_the_trainer_writes_stands_in_the_readme() -> None:
    source = "".join((ROOT / "ddpo" / f"{name}.py").read_text() for name in ("trainer", "loss", "taster", "monitor"))
    names = r"reward_\w+|held_out_reward\w*|\w+_fraction_\w+|ratio_\w+|kl_update|grad_norm|scored_images|zero_spread_prompts|updates_behind|memory_gb"
    names += r"|preference_[a-z]+"
    written = set(re.findall(rf"\b({names})=", source))
    assert written, "the pattern finds metrics"
    for name in written | {"watched_kl", "watched_diversity", "watched_…", "moved_…", "reward_on_…"}:
        assert f"`{name}`" in README, f"README does not explain the metric {name}"


def test_the_pictures_and_files_that_the_readme_names_exist() -> None:
    for path in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / path).exists(), f"README names {path}, which does not exist"
