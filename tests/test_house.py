"""The house: who may import whom, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import mutations

ROOT = Path(__file__).parent.parent
OURS = ("app", "ddpo", "rewards", "pocket", "tests", "benchmarks")
LIGHT = (
    "ddpo.config",
    "ddpo.source",
    "ddpo.store",
    "ddpo.records",
    "ddpo.files",
    "ddpo.lock",
    "ddpo.presets",
    "ddpo.export",
    "ddpo.card",
    "ddpo.figure",
    "ddpo.states",
    "ddpo.blind",
    "ddpo.alarms",
    "ddpo.charts",
    "ddpo.gold",
    "ddpo.milestones",
    "ddpo.result",
    "ddpo.fork",
    "ddpo.tracker",
    "ddpo.hub",
    "ddpo.earlier",
    "ddpo.beliefs",
)
HEAVY = ("torch", "diffusers", "transformers", "peft", "safetensors", "accelerate")
MAY_IMPORT = {
    "app": ("app", "rewards", "rewards.base", "rewards.human", "rewards.agreement", "rewards.function", *LIGHT),
    "ddpo": ("ddpo", "rewards"),
    "rewards": ("rewards",),
}
"""What each room may import of ours: a package with all that is in it, or the modules that are named."""


def imports(file: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function; for `from a import b` both a and a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if (ROOT / (name.replace(".", "/") + ".py")).exists()}
            found |= modules | ({str(node.module)} if modules != names else set())
    return found


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_flow_one_way(room: str) -> None:
    """app -> ddpo's light modules -> rewards.base; ddpo -> rewards; rewards imports nothing of ours; nothing imports app."""
    allowed = MAY_IMPORT[room]
    packages = [room, "rewards"] if room == "ddpo" else [room]
    for file in files(room):
        for module in imports(file):
            if module.split(".")[0] in OURS:
                assert module in allowed or module.split(".")[0] in packages, f"{file.relative_to(ROOT)} imports {module}"


def test_nothing_but_the_app_and_the_tests_imports_the_app() -> None:
    for room in ("ddpo", "rewards", "pocket"):
        for file in files(room):
            assert not [m for m in imports(file) if m.split(".")[0] == "app"], file


def test_the_app_never_mentions_a_heavy_library() -> None:
    """Not even inside a function: the page answers within moments, and its memory stays small."""
    for file in files("app"):
        assert not [m for m in imports(file) if m.split(".")[0] in HEAVY], file


@pytest.mark.parametrize("modules", [LIGHT, ("rewards", "rewards.base", "rewards.human", "ddpo.__main__"), ("app.studio", "app.__main__")])
def test_light_modules_load_no_torch(modules: tuple[str, ...]) -> None:
    """Asked of a fresh interpreter: after importing them, no heavy library is among its modules."""
    code = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert said.stdout.strip() == "[]", said.stdout + said.stderr


def test_the_only_sql_is_in_the_store() -> None:
    for room in ("app", "ddpo", "rewards"):
        for file in files(room):
            if file != ROOT / "ddpo" / "store.py":
                assert ".execute" not in file.read_text(encoding="utf-8"), file


def test_every_mutation_still_fits_the_source_and_names_tests_that_exist() -> None:
    """`python tests/mutations.py` breaks these lines one at a time; a line that moved on must be named anew."""
    for mutation in mutations.MUTATIONS:
        assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1, mutation
        for test in mutation.tests:
            file, _, name = test.partition("::")
            assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"), test
