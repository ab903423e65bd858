"""A person's own reward, and a blend: what they say, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import rewards
from ddpo.source import located_reward
from rewards.base import RewardError, Sample, Score
from rewards.blend import Standard, blended
from rewards.function import TRUSTED, offered, trust, trusted, version
from tests.toys import picture

SAMPLES = [Sample(i, prompt, picture(i)) for i, prompt in enumerate(("a cat", "a dog"))]


@pytest.fixture(autouse=True)
def nobody_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED, "")


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_function_scores_images_and_prompts(tmp_path: Path) -> None:
    """It sees RGB pictures and their prompts, and may say nothing of an image or add what its number was made from."""
    one = "(helper.width(i), {'prompt': p}) if 'cat' in p else None"
    file = written(tmp_path, f"import helper\ndef r(images, prompts):\n    return [{one} for i, p in zip(images, prompts)]\n")
    written(tmp_path, "def width(image):\n    assert image.mode == 'RGB'\n    return image.width\n", "helper.py")
    trust(file)
    assert rewards.load(f"{file}:r").score(SAMPLES) == [Score(64.0, dict(prompt="a cat")), Score(None)]


def test_a_file_is_compiled_as_python_would(tmp_path: Path) -> None:
    """Defect: what this project asks of its own files (annotations that are not evaluated) was asked of people's."""
    file = written(tmp_path, "def f(x: 1 + 1): pass\ndef r(images, prompts):\n    yield from [f.__annotations__['x']] * len(images)\n")
    trust(file)
    assert [score.value for score in rewards.load(f"{file}:r").score(SAMPLES)] == [2, 2]


def test_a_file_that_nobody_trusted_is_not_run(tmp_path: Path) -> None:
    """Not even where another file is trusted; the message names the way to trust it."""
    file = written(
        tmp_path, f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\ndef r(images, prompts):\n    return [1.0] * len(images)\n"
    )
    trust(written(tmp_path, "", "other.py"))
    with pytest.raises(RewardError, match=rf"nobody has said.*--trust {file}.*--reward {file}:r"):
        rewards.load(f"{file}:r").score(SAMPLES)
    assert not (tmp_path / "ran").exists()
    os.environ[TRUSTED] += f"\n{file}"
    assert rewards.load(f"{file}:r").score(SAMPLES)[0].value == 1.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no file"),
        ("def r(:", "cannot be loaded: SyntaxError"),
        ("raise OSError('no key')", "cannot be loaded: OSError: no key"),
        ("def other(images, prompts): return []", "holds no function r. It holds other"),
        ("import sys\nsys.exit('usage')", r"cannot be loaded: SystemExit: usage \(line 2 of mine.py\)"),
        ("def r(images, prompts):\n    exit(1)", r"failed with SystemExit: 1 \(line 2 of mine.py\)"),
        ("def r(images, prompts):\n    words = {}\n    return [words[p] for p in prompts]", r"failed with KeyError: 'a cat' \(line 3 of mine.py\)"),
        ("import sys\ndef r(images, prompts):\n    yield 1.0\n    sys.exit('usage')", r"failed with SystemExit: usage \(line 4 of mine.py\)"),
        ("def r(images, prompts): return '12'", "a reward returns a list with one number"),
        ("def r(images, prompts): return b'12'", "a reward returns a list with one number"),
        ("r = 3", "holds no function r. It holds none"),
        ("def r(images, prompts): return 3.0", "returned 3.0; a reward returns a list"),
        ("def r(images, prompts): return ['good', 'bad']", "a reward returns a list with one number"),
    ],
)
def test_what_cannot_score_says_why(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        written(tmp_path, text)
    trust(file)
    with pytest.raises(RewardError, match=says):
        rewards.load(f"{file}:r").score(SAMPLES)


def test_numbers_of_any_kind_explain_a_score(tmp_path: Path) -> None:
    file = written(
        tmp_path, "import numpy, torch\ndef r(images, prompts):\n    return [(torch.tensor(2.5), {'a': numpy.float32(1), 'b': [1]})] * 2\n"
    )
    trust(file)
    assert rewards.load(f"{file}:r").score(SAMPLES)[0] == Score(2.5, dict(a=1.0, b=[1]))


def test_a_file_that_was_mended_is_read_anew(tmp_path: Path) -> None:
    """Retry after a mistake of one's own must not meet the old mistake."""
    file = written(tmp_path, "def r(images, prompts): return [1 / 0]")
    trust(file)
    reward = rewards.load(f"{file}:r")
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        reward.score(SAMPLES)
    written(tmp_path, "def r(images, prompts): return [4.0] * len(images)")
    os.utime(file, ns=(1, 1))
    assert reward.score(SAMPLES)[0].value == 4.0


def test_a_file_that_was_saved_twice_in_a_second_is_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect: Python's cache of compiled files knows seconds and sizes, so the earlier version went on scoring; it also lay beside the file."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    for value in (1, 2):
        file = written(tmp_path, f"def r(images, prompts): return [{value}] * len(images)")
        os.utime(file, ns=(10**9 + value, 10**9 + value))
        trust(file)
        assert rewards.load(f"{file}:r").score(SAMPLES)[0].value == value
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_file_in_nobody_s_home_is_said() -> None:
    assert version("~nobody at all/mine.py:r") == 0
    with pytest.raises(RewardError, match="cannot be read: Could not determine home"):
        rewards.load("~nobody at all/mine.py:r").score(SAMPLES)


@pytest.mark.parametrize("broken", ["def r(:", "def other(images, prompts): return []"])
def test_a_file_that_was_broken_is_not_scored_by_what_it_was(tmp_path: Path, broken: str) -> None:
    """However often it is asked, until it is mended."""
    file = written(tmp_path, "def r(images, prompts): return [1.0] * len(images)")
    trust(file)
    reward = rewards.load(f"{file}:r")
    assert reward.score(SAMPLES)[0].value == 1.0
    written(tmp_path, broken)
    os.utime(file, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(RewardError):
            reward.score(SAMPLES)
    written(tmp_path, "def r(images, prompts): return [2.0] * len(images)")
    os.utime(file, ns=(2, 2))
    assert reward.score(SAMPLES)[0].value == 2.0


def test_what_is_trusted_and_what_is_offered(tmp_path: Path) -> None:
    trust(tmp_path / "a.py")
    trust(tmp_path / "b.py", "r")
    trust(tmp_path / "b.py", "r")
    assert trusted() == [f"{tmp_path}/a.py", f"{tmp_path}/b.py"] and offered() == [f"{tmp_path}/b.py:r"]


# --- blends ---------------------------------------------------------------------------------------------------------------------


def test_a_blend_names_its_parts() -> None:
    spelled = "blend: 1 aesthetic, -0.5 jpeg_compressibility, 2 my rewards/mine.py:blue"
    weights = {"aesthetic": 1.0, "jpeg_compressibility": -0.5, "my rewards/mine.py:blue": 2.0}
    assert rewards.parts(spelled) == weights and rewards.spell(weights) == spelled
    assert rewards.parts("aesthetic") == {"aesthetic": 1.0} and rewards.spell({"aesthetic": 1.0}) == "aesthetic"
    exact = {"aesthetic": 0.123456789, "clip_score": 1234567.0 / 10, "blend_tools.py:f": 1.0}
    assert rewards.parts(rewards.spell(exact)) == exact
    assert rewards.parts("mine.py:blue") == {"mine.py:blue": 1.0}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("beauty", "no reward 'beauty'"),
        ("blend", "A blend has parts"),
        ("blend:", "no part of a blend"),
        ("blend: aesthetic", "no part of a blend"),
        ("blend: 0 aesthetic", "weight other than 0"),
        ("blend: nan aesthetic", "no part of a blend"),
        ("blend: 1 beauty", "no reward 'beauty'"),
        ("blend: 1 aesthetic, 2 aesthetic", "another reward"),
        ("blend: 1 blend", "no blend"),
        ("blend: 1e7 aesthetic", "no part of a blend"),
        ("mine.txt:blue", "no reward"),
    ],
)
def test_what_names_no_reward_is_refused(setting: str, says: str) -> None:
    with pytest.raises(RewardError, match=says):
        rewards.parts(setting)


def test_a_function_s_file_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located_reward("mine.py:r") == f"{tmp_path}/mine.py:r"
    assert located_reward("blend: 1 aesthetic, 2 mine.py:r") == f"blend: 1 aesthetic, 2 {tmp_path}/mine.py:r"
    assert located_reward("aesthetic") == "aesthetic"


def test_a_blend_adds_standard_deviations() -> None:
    """2 (r - 10) / 5 - (q - 1) / 0.5, and nothing where a part has no opinion."""
    weights, standards = dict(r=2.0, q=-1.0), dict(r=Standard(10.0, 5.0), q=Standard(1.0, 0.5))
    found = blended(weights, standards, dict(r=[Score(20.0), Score(10.0), Score(None)], q=[Score(2.0), Score(1.0), Score(1.0)]))
    assert found == [Score(2.0, dict(r=20.0, q=2.0)), Score(0.0, dict(r=10.0, q=1.0)), Score(None, dict(r=None, q=1.0))]


def test_a_standard_is_of_what_is_known() -> None:
    assert Standard.of([1.0, None, 3.0]) == Standard(2.0, 1.0)
    assert Standard.of([0.1 + 0.2, 0.3, 0.3]).std == 1.0, "rounding is no spread"
    assert Standard.of([2.0, 2.0]) == Standard(2.0, 1.0) and Standard.of([None]) == Standard()
