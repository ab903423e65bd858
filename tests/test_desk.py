"""``python -m rewards``: the protocol, the command line, and what is remembered. Real rewards, with the pocket's networks."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from toys import picture

import rewards
from rewards import __main__ as command
from rewards.__main__ import parser
from rewards.base import RewardError, Sample, Score, as_seen
from rewards.desk import Desk, Order, serve
from rewards.function import TRUSTED, trust
from rewards.jpeg import size_kb

ROOT = Path(__file__).parent.parent


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    return [str(path) for path in paths]


def asked(files: list[str], reward: str = "jpeg_compressibility", **more: object) -> str:
    return json.dumps(dict(id=7, reward=reward, models="pocket", items=[dict(image=file, prompt="a cat") for file in files]) | more)


def answers(*lines: str) -> list[dict]:
    return [json.loads(line) for line in serve(lines)]


def run(*arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rewards", *arguments]
    return subprocess.run(command, cwd=ROOT, input=lines, capture_output=True, text=True, timeout=240)


def test_each_picture_gets_its_value_and_what_it_was_made_from(files: list[str]) -> None:
    [answer] = answers(asked(files))
    sizes = [size_kb(picture(i)) for i in range(3)]
    assert answer == dict(id=7, scores=[dict(value=-size, explanation=dict(size_kb=size)) for size in sizes])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("garbage", "no JSON"),
        ('{"id": NaN, "reward": "beauty", "items": []}', "no such reward"),
        ('{"id": [1e999], "reward": "beauty", "items": []}', "no such reward"),
        ("[" * 5000, "no JSON"),
        ("[]", "A request is an object"),
        ('{"id": 7}', "A request is an object"),
        ('{"id": 7, "reward": "beauty", "items": []}', "no such reward"),
        ('{"id": 7, "reward": "human", "items": []}', "no such reward"),
        ('{"id": 7, "reward": "aesthetic", "models": "best", "items": []}', "published or pocket"),
        ('{"id": 7, "reward": "aesthetic", "precision": "fp8", "items": []}', "precision is auto, fp32, bf16, fp16 or 4bit."),
        ('{"id": 7, "reward": "aesthetic", "items": [{"image": 5}]}', "the path of an image"),
        ('{"id": 7, "reward": "aesthetic", "colour": "red", "items": []}', "no colour"),
        ('{"id": 7, "reward": "pickscore", "models": "pocket", "items": [{"image": "FILE", "prompt": "a cat"}]}', "no pocket networks"),
        ('{"id": 7, "reward": "clip_score", "models": "pocket", "arguments": {"x": 1}, "items": [{"image": "FILE", "prompt": "a"}]}', "TypeError"),
        ('{"id": 7, "reward": "aesthetic", "models": "pocket", "arguments": {"clip": "/nowhere/at all"}, "items": [{"image": "FILE"}]}', "CLIP: "),
    ],
)
def test_what_cannot_be_answered_is_said_in_words_and_the_next_line_is_answered(files: list[str], line: str, words: str) -> None:
    bad, good = answers(line.replace("FILE", files[0]), asked(files))
    assert words in bad["error"] and "scores" not in bad and len(good["scores"]) == 3
    assert bad["id"] == (7 if '"id": 7' in line else None)


def test_a_missing_or_broken_file_is_its_own_failure(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    [answer] = answers(asked([files[0], "/nowhere.png", str(tmp_path / "text.png"), str(tmp_path), files[1]]))
    first, missing, broken, folder, last = answer["scores"]
    assert first["value"] == -size_kb(picture(0)) and last["value"] == -size_kb(picture(1)), "the others get their values"
    assert missing == dict(error="It cannot be read: No such file or directory.")
    assert "It is no picture" in broken["error"] and "cannot be read" in folder["error"]


def test_who_compares_with_a_prompt_says_that_there_is_none(files: list[str]) -> None:
    """CLIP gives an empty text a number as well, and a model that looks would be asked about nothing."""
    items = [dict(image=files[0], prompt=" "), dict(image=files[1], prompt="a cat"), dict(image=files[2])]
    [answer] = answers(asked(files, "clip_score", items=items))
    assert ["error" in score for score in answer["scores"]] == [True, False, True] and "Give one." in answer["scores"][0]["error"]
    assert all("value" in score for score in answers(asked(files, "aesthetic", items=items))[0]["scores"])
    assert {name for name, card in rewards.REWARDS.items() if card.prompted} == {"clip_score", "pickscore", "alignment", "satisfaction"}


def test_values_are_kept_by_content_and_prompt(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same content under another name is known; another prompt, or another argument, is not."""
    seen: list[str] = []

    class Counting:
        name = "clip_score"

        def __init__(self, **arguments: object) -> None:
            seen.append("loaded")

        def score(self, samples: list[Sample]) -> list[Score]:
            seen.extend(sample.prompt for sample in samples)
            return [Score(float(len(sample.prompt))) for sample in samples]

    monkeypatch.setattr("rewards.desk.rewards.load", lambda name, *_, **arguments: Counting(**arguments))
    copy = str(Path(files[0]).with_name("copy.png"))
    Path(copy).write_bytes(Path(files[0]).read_bytes())
    desk, order = Desk(), Order("clip_score", "pocket")
    assert desk.score(order, [(files[0], "a"), (files[1], "bb")]) == [Score(1.0), Score(2.0)]
    assert desk.score(order, [(copy, "a"), (files[1], "ccc"), (files[1], "bb")]) == [Score(1.0), Score(3.0), Score(2.0)]
    assert seen == ["loaded", "a", "bb", "ccc"]
    desk.score(Order("clip_score", "pocket", device="cpu"), [(files[0], "a")])
    assert seen[4:] == ["loaded", "a"]


def test_a_reward_that_failed_is_loaded_anew(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Failing:
        name = "clip_score"

        def __init__(self) -> None:
            made.append(1)

        def score(self, samples: list[Sample]) -> list[Score]:
            if len(made) == 1:
                raise MemoryError("too large")
            return [Score(None, dict(cosine=float("inf"))) for _ in samples]

    monkeypatch.setattr("rewards.desk.rewards.load", lambda *_, **__: Failing())
    first, second = answers(asked(files[:1], "clip_score"), asked(files[:1], "clip_score"))
    assert first["error"] == "The reward clip_score failed with MemoryError: too large"
    assert second["scores"] == [dict(value=None, explanation=dict(cosine=None))], "JSON knows no such numbers"


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    Image.new("1", (8000, 5001)).save(tmp_path / "huge.png")
    [found] = Desk().score(Order("jpeg_compressibility"), [(str(tmp_path / "huge.png"), "")])
    assert isinstance(found, RewardError) and "8000 × 5001" in str(found)


def test_a_picture_that_no_reward_could_take_is_its_own_failure(tmp_path: Path, files: list[str]) -> None:
    """Defect: JPEG has no side of more than 65,500 pixels, and CLIP makes gigabytes of a thin one, so that one such file failed all the others."""
    Image.new("1", (70_000, 10)).save(tmp_path / "thin.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "vast.png")
    thin, vast, good = Desk().score(
        Order("jpeg_compressibility"), [(str(tmp_path / "thin.png"), ""), (str(tmp_path / "vast.png"), ""), (files[0], "")]
    )
    assert str(thin) == "It has 70000 × 10 pixels. Cut it: at most 100 times as long as wide."
    assert str(vast) == "It has far too many pixels. Make it smaller: at most 40 million."
    assert good == Score(-size_kb(picture(0)), dict(size_kb=size_kb(picture(0))))


def test_a_photograph_is_scored_upright(tmp_path: Path) -> None:
    """Defect: the command line scored what a camera had turned lying down, and the page upright."""
    exif = Image.Exif()
    exif[274] = 6
    picture(3).crop((0, 0, 64, 32)).save(tmp_path / "turned.png", exif=exif)
    picture(3).crop((0, 0, 64, 32)).transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, upright = Desk().score(Order("image_statistics"), [(str(tmp_path / name), "") for name in ("turned.png", "upright.png")])
    assert turned == upright


def test_damaged_notes_on_a_picture_leave_it_a_picture(tmp_path: Path) -> None:
    """Defect: a PNG or WebP that opens everywhere was refused for what a camera or a program had written beside it."""
    notes = PngInfo()
    notes.add_text("Raw profile type exif", "\nexif\n    8\nno hex\n", zip=True)
    picture(3).save(tmp_path / "notes.png", pnginfo=notes)
    picture(3).save(tmp_path / "notes.webp", lossless=True, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    found = Desk().score(Order("jpeg_compressibility"), [(str(tmp_path / name), "") for name in ("notes.png", "notes.webp")])
    assert found == 2 * [Score(-size_kb(picture(3)), dict(size_kb=size_kb(picture(3))))]
    (tmp_path / "cut.png").write_bytes((tmp_path / "notes.png").read_bytes()[:150])
    assert isinstance(Desk().score(Order("jpeg_compressibility"), [(str(tmp_path / "cut.png"), "")])[0], RewardError)


def test_a_picture_in_a_format_that_nobody_has_is_no_picture(tmp_path: Path) -> None:
    """Pillow reads dozens more, some by programs of their own."""
    for name in ("a.ppm", "a.eps", "a.bmp", "a.gif"):
        picture(1).save(tmp_path / name)
    found = Desk().score(Order("jpeg_compressibility"), [(str(tmp_path / name), "") for name in ("a.ppm", "a.eps", "a.bmp", "a.gif")])
    assert [isinstance(each, RewardError) for each in found] == [True, True, False, False] and "It is no picture" in str(found[0])


def test_one_set_of_large_networks_is_in_memory_and_values_stay(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Large:
        def __init__(self, name: str) -> None:
            self.name = name

        def score(self, samples: list[Sample]) -> list[Score]:
            done.append(f"{self.name} scores")
            return [Score(1.0) for _ in samples]

        def free(self) -> None:
            done.append(f"{self.name} is freed")

    monkeypatch.setattr("rewards.desk.rewards.load", lambda name, *_, **__: Large(name))
    desk, items = Desk(), [(files[0], "a")]
    for order in (Order("clip_score"), Order("jpeg_compressibility"), Order("aesthetic", "pocket"), Order("pickscore"), Order("clip_score")):
        assert desk.score(order, items) == [Score(1.0)]
    assert done[:3] == ["clip_score scores", "jpeg_compressibility scores", "aesthetic scores"], "small ones stay beside a large one"
    assert set(done[3:6]) == {f"{name} is freed" for name in ("clip_score", "jpeg_compressibility", "aesthetic")}
    assert done[6:] == ["pickscore scores", "pickscore is freed"], "what was scored once is known"


def test_an_edited_function_is_asked_anew(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.py"
    monkeypatch.setenv("DDPO_TRUSTED_REWARDS", str(file))
    desk, found = Desk(), []
    for value in (1, 2):
        file.write_text(f"def own(images, prompts): return [{value} for _ in images]")
        os.utime(file, ns=(value * 10**9, value * 10**9))
        found += desk.score(Order(f"{file}:own"), [(files[0], "")])
    assert found == [Score(1.0), Score(2.0)]


def test_grey_of_16_bits_and_transparency_are_scored_as_they_are_seen() -> None:
    grey = Image.frombytes("I;16", (256, 1), b"".join((257 * i).to_bytes(2, "little") for i in range(256)))
    assert [as_seen(grey).getpixel((i, 0)) for i in (0, 100, 255)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]
    assert as_seen(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert as_seen(Image.new("LA", (1, 1), (0, 128))).getpixel((0, 0)) == (127, 127, 127)
    for odd in (Image.new("F", (1, 1), 0.5), Image.new("I", (1, 1), 70_000), Image.new("I", (1, 1), -1)):
        with pytest.raises(RewardError, match="Save it as"):
            as_seen(odd)


def test_the_process_answers_in_order_whatever_libraries_print_and_ends_with_its_input(files: list[str], tmp_path: Path) -> None:
    """Noise on standard output, from Python and from below it, does not get into the answers; an empty line is none; a network is real."""
    noise = "import os, sys, rewards.jpeg as j; old = j.size_kb\n"
    noise += "def loud(image): print('from Python'); os.system('echo from below'); os.write(1, b'raw\\n'); return old(image)\n"
    noise += "j.size_kb = loud; from rewards.__main__ import main; sys.exit(main(['serve']))"
    lines = "\n".join([asked(files[:1]), "", "garbage", asked(files, "aesthetic"), asked(["/nowhere"])])
    said = subprocess.run([sys.executable, "-c", noise], cwd=ROOT, input=lines, capture_output=True, text=True, timeout=240)
    found = [json.loads(line) for line in said.stdout.splitlines()]
    assert said.returncode == 0 and [len(each.get("scores", [])) for each in found] == [1, 0, 3, 1]
    assert all(1 < each["value"] < 10 for each in found[2]["scores"])
    assert all(words in said.stderr for words in ("from Python", "from below", "raw"))


def test_a_function_that_ends_the_program_ends_no_process(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``exit()`` closes standard input, where the questions come from."""
    (tmp_path / "mine.py").write_text("def r(images, prompts):\n    exit(1)\n")
    monkeypatch.setenv(TRUSTED, "")
    trust(tmp_path / "mine.py", "r")
    lines = run("serve", lines=f"{asked(files, f'{tmp_path}/mine.py:r')}\n{asked(files)}\n").stdout.splitlines()
    assert "SystemExit: 1 (line 2 of mine.py)" in json.loads(lines[0])["error"] and len(json.loads(lines[1])["scores"]) == 3


def test_missing_networks_are_told_from_other_failures(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    said = run("serve", lines=asked(files[:1], "aesthetic", models="published"))
    answer = json.loads(said.stdout)
    assert answer["missing"] is True and "hf download" in answer["error"]


def test_the_command_line_prints_csv_and_goes_on_after_a_reward_that_cannot(files: list[str]) -> None:
    wanted = [f"--reward={name}" for name in ("jpeg_compressibility", "pickscore", "clip_score")]
    said = run("score", *wanted, "--models", "pocket", "--prompt", 'a "cat", sleeping', *files)
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    assert said.returncode == 1 and "pickscore has no pocket networks" in said.stderr
    assert [row["reward"] for row in rows] == ["jpeg_compressibility"] * 3 + ["clip_score"] * 3
    assert {row["prompt"] for row in rows} == {'a "cat", sleeping'} and [row["image"] for row in rows[:3]] == files
    for row in rows[3:]:
        assert float(row["value"]) == max(100 * json.loads(row["explanation"])["cosine"], 0)


def test_half_an_emoji_fails_no_reward(files: list[str]) -> None:
    """A text that was cut to a length may end in one; tokenizers refuse it."""
    half, cut = answers(*(asked(files[:1], "clip_score", items=[dict(image=files[0], prompt=p)]) for p in ("a cat \ud83d", "a cat ?")))
    assert half["scores"] == cut["scores"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_file_whose_name_is_no_text_has_its_row(files: list[str], tmp_path: Path) -> None:
    """Defect: the command ended in the middle of the table, with a traceback."""
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    file.write_bytes(Path(files[0]).read_bytes())
    odd = os.fsencode(file)
    asks = [sys.executable, "-m", "rewards", "score", "--reward=jpeg_compressibility", odd, files[1]]
    said = subprocess.run(asks, cwd=ROOT, capture_output=True, timeout=240)
    assert said.returncode == 0 and [row.split(b",")[0] for row in said.stdout.splitlines()] == [b"image", odd, os.fsencode(files[1])]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reward=human"], "human: It cannot score files by itself."),
        (["--reward=blend"], "blend: It cannot score files by itself."),
        (["--reward=beauty"], "There is no reward 'beauty'"),
        (["--reward=clip_score", "--models=pocket"], "clip_score: It compares pictures with their prompt, and there is none. Give one: --prompt"),
        (["--reward=aesthetic", "--models=pocket", "--device=xyz"], "aesthetic: The reward aesthetic failed: RuntimeError"),
    ],
)
def test_what_cannot_score_is_one_line(
    files: list[str], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w") as out:
        assert command.score_files(parser().parse_args(["score", *arguments, *files]), out) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_files_go_in_portions_a_bad_one_is_named_and_no_cell_is_a_formula(
    files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "AT_ONCE", 2)
    out, options = io.StringIO(), parser().parse_args(["score", "--reward=jpeg_compressibility", "--prompt==1+1", *files, "/nowhere.png", files[0]])
    assert command.score_files(options, out) == 1
    assert capsys.readouterr().err == "/nowhere.png: It cannot be read: No such file or directory.\n"
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["image"] for row in rows] == [*files, files[0]] and {row["prompt"] for row in rows} == {"'=1+1"}
    assert all(float(row["value"]) < 0 for row in rows), "a number is a number"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL, and no other parent")
def test_it_ends_with_who_started_it_even_in_the_middle_of_an_answer(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import time\ndef own(images, prompts):\n    open(__file__ + '.began', 'w')\n    time.sleep(120)")
    line = asked(files, f"{tmp_path / 'own.py'}:own")
    starter = "import subprocess, sys, time\n"
    starter += "child = subprocess.Popen([sys.executable, '-m', 'rewards', 'serve'], stdin=subprocess.PIPE, text=True)\n"
    starter += f"print(child.pid, flush=True); child.stdin.write({line!r} + '\\n'); child.stdin.flush(); time.sleep(120)"
    surroundings = os.environ | {"DDPO_TRUSTED_REWARDS": f"{tmp_path / 'own.py'}\n{tmp_path / 'own.py'}:own"}
    with subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = psutil.Process(int(process.stdout.readline()))
        deadline = time.monotonic() + 60
        while not (tmp_path / "own.py.began").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    child.wait(20)


def test_the_list_names_every_reward_and_its_download() -> None:
    said = run("list").stdout
    for name, card in rewards.REWARDS.items():
        assert f"{name} (" in said and card.download in said
        assert bool(card.download) == bool(card.published), f"{name}: people must know how large its networks are"


def test_every_option_is_explained() -> None:
    score = parser()._subparsers._group_actions[0].choices["score"]  # type: ignore[union-attr]
    assert all(action.help for action in score._actions)
