"""What a model card shows: pictures before and after, and curves, from what the run has on disk."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from ddpo.export import MODELS, export
from ddpo.figure import XMLNS, Line, Panel, standalone
from ddpo.files import write_images
from ddpo.illustrations import GAP, HEAD, MARGIN, SIDE, sheet
from ddpo.markup import image
from ddpo.store import RunStore
from rewards.base import Score
from tests.toys import comparable_run

AUTO = dict(reward="jpeg_compressibility")
PROMPTS = ("a cat", "a dog")
WATCHED = ("a cat", "a [dog] <b>", "a cat", "a [dog] <b>")
"""Two of a prompt that is trained, and two of one that is not."""


def colour(number: int, position: int) -> tuple[int, int, int]:
    return (250 - 60 * number, 60 * position, 60 * number)


@pytest.fixture
def store(tmp_path: Path):
    found = comparable_run(tmp_path / "runs" / "squeeze", rounds=4, prompts=PROMPTS, **AUTO)
    yield found
    found.close()


def watch(store: RunStore, *rounds: int, kl: Sequence[float | None] = (1.0, 3.0, None, None)) -> None:
    """Pictures of one colour each, which says its round and position; the distance is known of some."""
    for number in rounds:
        paths = write_images(store.folder, number, [Image.new("RGB", (32, 32), colour(number, i)) for i in range(4)])
        known = [None if nats is None else number * nats for nats in kl]
        store.add_probes(number, ["trained", "objects"] * 2, WATCHED, range(4), paths, [dict(kl=nats) for nats in known])
        store.add_metrics(number, dict(watched_kl=2.0 * number if any(known) or not number else None))


def card(store: RunStore, out: Path, number: int, kind: str = "kohya", strength: float = 1.0) -> str:
    export(store, kind, out, number, strength)
    return (out / "README.md").read_text(encoding="utf-8")


def seen(out: Path, row: int, column: int) -> tuple[int, ...]:
    """The colour in the middle of a picture of the sheet."""
    with Image.open(out) as drawn:
        at = (MARGIN + column * (SIDE + GAP) + SIDE // 2, HEAD + row * (HEAD + SIDE + MARGIN) + SIDE // 2)
        return tuple(drawn.convert("RGB").getpixel(at))


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "pipeline"])
def test_a_card_s_pictures_lie_beside_it_and_open(store: RunStore, tmp_path: Path, kind: str) -> None:
    """By relative names, with words for who cannot see them; each file is one that opens, and nothing else is there."""
    watch(store, 0, 2, 4)
    text = card(store, tmp_path / "out", 4, kind)
    images = {file: alt for alt, file in re.findall(r"^!\[(.+)\]\(([^)]+)\)$", text, re.MULTILINE)}
    weights = next((tmp_path / "out").glob("*.safetensors")).name
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"README.md", weights, *images}
    assert set(images) == {"before-after.png", "curves.svg"} and str(tmp_path) not in text
    assert images["before-after.png"] == "2 pictures by the base model above, and 2 pictures of the same prompts and seeds after round 4 below"
    assert images["curves.svg"] == "Reward by jpeg_compressibility over the rounds. Distance from the base model over the rounds, up to round 4"
    with Image.open(tmp_path / "out" / "before-after.png") as drawn:
        drawn.load()
    ET.parse(tmp_path / "out" / "curves.svg")
    assert text.index("## Pictures") < text.index("before-after.png") < text.index("## What was trained")
    assert text.index("## The reward, round by round") < text.index("curves.svg") < text.index("| round | reward |")


def test_the_sheet_has_twins_the_base_model_s_above(store: RunStore, tmp_path: Path) -> None:
    """One of each prompt, each above its own twin, after the last watched round up to the card's; which it is, and what was trained, is said."""
    watch(store, 0, 2, 4)
    text, file = card(store, tmp_path / "out", 3), tmp_path / "out" / "before-after.png"
    for column in (0, 1):
        assert seen(file, 0, column) == colour(0, column) and seen(file, 1, column) == colour(2, column)
    with Image.open(file) as drawn:
        assert drawn.size == (2 * (MARGIN + SIDE) + GAP, 2 * (HEAD + SIDE + MARGIN))
        assert all(drawn.crop((MARGIN, top, MARGIN + SIDE, top + HEAD)).convert("L").getextrema()[0] < 100 for top in (0, HEAD + SIDE + MARGIN))
    assert "after round 2, at full strength. Round 2 is the last one before round 3 that was watched. The seeds were never trained on" in text
    assert '1. "a cat"\n2. "a \\[dog\\] \\<b\\>" (never trained on)\n' in text and "What lies beside" not in text
    same = card(store, tmp_path / "same", 4)
    assert "after round 4, at full strength. The seeds" in same and seen(tmp_path / "same" / "before-after.png", 1, 1) == colour(4, 1)


def test_pictures_are_at_full_strength_and_it_is_said(store: RunStore, tmp_path: Path) -> None:
    words = "at full strength. What lies beside this card is at 50 % of that strength."
    assert words in card(store, tmp_path / "training", 2, strength=0.5)
    watch(store, 0, 2)
    assert words in card(store, tmp_path / "watched", 2, strength=0.5)


def test_many_prompts_are_six_and_pictures_of_any_shape_fit() -> None:
    wide = [Image.new("RGB", (512, 256), colour(1, i)) for i in range(3)]
    drawn = sheet([("round 1", wide)])
    assert drawn.size == (2 * MARGIN + 3 * SIDE + 2 * GAP, HEAD + SIDE // 2 + MARGIN)


def test_six_of_many_prompts_are_shown(tmp_path: Path) -> None:
    store = comparable_run(tmp_path / "run", rounds=1, prompts=tuple(f"a {i}" for i in range(9)), **AUTO)
    for number in (0, 1):
        paths = write_images(store.folder, number, [Image.new("RGB", (32, 32), (10 * i, 100 * number, 0)) for i in range(9)])
        store.add_probes(number, ["trained"] * 9, store.config.prompts, range(9), paths, [{}] * 9)
    text = card(store, tmp_path / "out", 1)
    assert '1. "a 0"\n2. "a 1"\n3. "a 3"\n4. "a 4"\n5. "a 6"\n6. "a 7"\n\n' in text
    assert seen(tmp_path / "out" / "before-after.png", 1, 5) == (70, 100, 0)
    store.close()


def test_a_round_s_own_pictures_stand_in_where_nothing_was_watched(store: RunStore, tmp_path: Path) -> None:
    """Of each prompt the one that scored best, and nobody is told that they are a comparison."""
    samples = store.samples(3)
    best = {prompt: [row for row in samples if row.prompt == prompt][2] for prompt in dict.fromkeys(row.prompt for row in samples)}
    store.add_scores(AUTO["reward"], {row.id: Score(-0.5 if row in best.values() else -9.0) for row in samples})
    text, file = card(store, tmp_path / "out", 3), tmp_path / "out" / "pictures.png"
    assert not (tmp_path / "out" / "before-after.png").exists() and "base model above" not in text
    assert "Pictures of round 3, of each prompt the one that scored best, by the model as it was before it learned from them" in text
    assert "They are no comparison with the base model." in text and len(best) == 2
    for column, row in enumerate(best.values()):
        assert f'{column + 1}. "{row.prompt}"\n' in text
        with Image.open(store.folder / row.image) as stored:
            assert seen(file, 0, column) == pytest.approx(stored.convert("RGB").getpixel((32, 32)), abs=2)


def test_where_there_is_nothing_to_show_the_card_shows_nothing(tmp_path: Path) -> None:
    """A run of one round, whose pictures are gone: no section, no chart of one dot, and no file."""
    store = comparable_run(tmp_path / "run", rounds=1, **AUTO)
    watch(store, 0, 1)
    for file in (store.folder / "samples").rglob("*.png"):
        file.unlink()
    store.add_metrics(1, dict(watched_kl=None))
    text = card(store, tmp_path / "out", 1)
    assert "## Pictures" not in text and "![" not in text and "nats" not in text.partition("## All settings")[0]
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".md", ".safetensors"}
    store.close()


def test_the_distance_is_that_of_the_last_watched_round_up_to_the_card_s(store: RunStore, tmp_path: Path) -> None:
    """With its round, and over how many pictures; nothing where it was not measured, or only later."""
    watch(store, 0, 3, 4)
    row = "| distance from the base model | {} nats (KL divergence over a picture's whole denoising, mean of 2 pictures, after round {} at full "
    assert row.format(6, 3) in card(store, tmp_path / "third", 3) and row.format(8, 4) in card(store, tmp_path / "fourth", 4)
    early = card(store, tmp_path / "early", 2)
    assert "| distance from" not in early and "curves.svg" in early and "Distance" not in early + (tmp_path / "early" / "curves.svg").read_text()


def test_the_curves_are_an_svg_that_shows_by_itself(store: RunStore, tmp_path: Path, browser: Browser) -> None:
    """Well-formed, of the SVG's own names, with nothing from elsewhere; the store's own values up to the card's round, and none later. A browser
    shows it as an image in its own colours, on a dark page as on a light one."""
    watch(store, 0, 2, 4)
    for number in (0, 1, 2, 3):
        store.add_metrics(number, dict(held_out_reward=-3.0 + number / 8, held_out_reward_std_error=0.125))
    text, file = card(store, tmp_path / "out", 3), tmp_path / "out" / "curves.svg"
    source, tree = file.read_text(encoding="utf-8"), ET.parse(file).getroot()
    assert {node.tag.partition("}")[0] for node in tree.iter()} == {f"{{{XMLNS}"} and tree.tag == f"{{{XMLNS}}}svg"
    assert not re.search(r"href|src=|url\(|@import|<script|<foreignObject", source) and "https:" not in source and source.count("http:") == 1
    told = [node.text for node in tree.iter(f"{{{XMLNS}}}title")]
    mean = dict(store.metrics()["reward_mean"])
    assert [f"Round {n}: mean of the round {mean[n]:.4g}" for n in (1, 2, 3)] == [each for each in told if "mean of the round" in each]
    assert "Round 3: held-out seeds -2.625" in told and "Round 2: KL 4" in told and not [each for each in told if each.startswith("Round 4")]
    words = " ".join("".join(tree.itertext()).split())
    assert "Reward: jpeg_compressibility, in kB" in words and "━ mean of the round● held-out seeds" in words and "Dots are means" in text
    shown = []
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 960, "height": 800}, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
        page = context.new_page()
        (tmp_path / "page.html").write_text('<body style="margin:0;background:#123"><img src="out/curves.svg"></body>')
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("[document.images[0].naturalWidth, document.images[0].complete]") == [920, True]
        page.screenshot(path=tmp_path / f"{scheme}.png", clip=dict(x=0, y=0, width=920, height=300))
        context.close()
        with Image.open(tmp_path / f"{scheme}.png") as drawn:
            shown.append(drawn.convert("RGB").tobytes())
            colours = {each: count for count, each in drawn.convert("RGB").getcolors(2**20)}
        assert colours[(255, 255, 255)] > 100_000 and colours[(0x46, 0x56, 0xD6)] > 50 and colours[(0xC2, 0x57, 0x1A)] > 20
    assert shown[0] == shown[1]


def test_titles_and_words_are_text() -> None:
    """Whatever a reward or a prompt is called, the files stay well-formed and Markdown stays one picture."""
    odd = 'a <b> & "c" ]\x01'
    tree = ET.fromstring(standalone([Panel(odd, [Line(odd, [(1, 1.0), (2, 2.0)]), Line("d", [(1, 0.5)], dots=True)], odd)]))
    assert next(tree.iter(f"{{{XMLNS}}}text")).text == 'a <b> & "c" ]\ufffd'
    assert image("a [b](c)\n<d> \\e", "f.png") == r"![a \[b\](c) \<d\> \\e](f.png)"
