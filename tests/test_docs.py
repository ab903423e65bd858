"""What people read tells the truth: every setting, metric, reward, preset and prompt set stands in it, and what it names exists."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import rewards
from ddpo.config import RunConfig, prompt_sets
from ddpo.presets import presets

ROOT = Path(__file__).parent.parent
PAGES = sorted(file for pattern in ("*.md", "docs/*.md", "*/README.md", "benchmarks/NOTEBOOK.md") for file in ROOT.glob(pattern))
RUNNING, WATCHING, REWARDS = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/running.md", "docs/watching.md", "rewards/README.md"))


def test_every_setting_is_told_with_its_sentence() -> None:
    for field in dataclasses.fields(RunConfig):
        row = next((line for line in RUNNING.splitlines() if line.startswith(f"| `{field.name}` |")), None)
        assert row, f"docs/running.md has no row for the setting {field.name}"
        assert field.metadata["help"] in row, f"docs/running.md says something else of {field.name} than its help text"


def test_no_setting_is_told_that_does_not_exist() -> None:
    table = RUNNING.split("## Settings")[1].split("\n## ")[0]
    names = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert set(names) == {field.name for field in dataclasses.fields(RunConfig)}


def test_every_preset_and_prompt_set_is_told() -> None:
    for name in [*presets(), *prompt_sets()]:
        assert f"`{name}`" in RUNNING, f"docs/running.md does not mention {name}"


def test_every_reward_s_card_is_told() -> None:
    for name, card in rewards.REWARDS.items():
        row = next(line for line in REWARDS.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(words in row for words in (card.asks, card.unit, card.range, card.source, card.licence, card.fooled_by)), name


def test_every_metric_that_the_trainer_writes_is_told() -> None:
    source = "".join((ROOT / "ddpo" / f"{name}.py").read_text() for name in ("trainer", "loss", "taster", "monitor"))
    names = r"reward_\w+|held_out_reward\w*|\w+_fraction_\w+|ratio_\w+|kl_update|grad_norm|scored_images|zero_spread_prompts|updates_behind|memory_gb"
    names += r"|preference_[a-z]+|advantage_saturation|images_per_second|watched_vendi"
    written = set(re.findall(rf"\b({names})=", source))
    assert written, "the pattern finds metrics"
    for name in written | {"ratio_mean_quarter_1", "ratio_std_quarter_1", "watched_kl", "watched_diversity", "watched_…", "moved_…", "reward_on_…"}:
        assert f"`{name}`" in WATCHING + RUNNING, f"no page explains the metric {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_to_exists(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} names {link}, which does not exist"
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, f"{page.name}: {link}"


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert f"(docs/{page.name})" in readme, f"README does not lead to docs/{page.name}"
