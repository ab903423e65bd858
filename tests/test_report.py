"""The report: one well-formed file that asks for nothing, whose figures are the store's."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser

import rewards
from ddpo.__main__ import changes_from, config_from, main, parser
from ddpo.blind import Outcome, Result, keep
from ddpo.card import model_card, rated_images
from ddpo.config import RunConfig, prompt_sets
from ddpo.document import picture
from ddpo.export import ExportError, export
from ddpo.figure import Line, chart, fitted, thinned, ticks
from ddpo.fork import fork
from ddpo.markup import shown
from ddpo.milestones import Milestone
from ddpo.presets import presets
from ddpo.report import Pair, again, command
from ddpo.result import roll_back
from ddpo.store import RunStore
from tests.toys import ODD_PROMPTS, add_images, add_lora, add_watched, comparable_run, filled_run
from tests.toys import picture as drawn

AUTO: dict[str, Any] = dict(reward="jpeg_compressibility")


def made(store: RunStore, out: Path, **options: Any) -> ET.Element:
    """The report as a tree; that it parses as XML says that it is well-formed."""
    export(store, "report", out, **(dict(pictures=0) | options))
    (file,) = out.iterdir()
    assert file.name == f"{store.name}-report.html"
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n") and str(store.folder.parent) not in text
    return ET.fromstring(text.partition("\n")[2])


def said(tree: ET.Element) -> str:
    return " ".join("".join(tree.itertext()).split())


def section(tree: ET.Element, title: str) -> ET.Element:
    return next(each for each in tree.iter("section") if each.findtext("h2") == title)


def rows(part: ET.Element) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row.iter("td")] for row in part.iter("tr")][1:]


@pytest.fixture
def store(tmp_path: Path):
    found = filled_run(tmp_path / "runs" / "squeeze", rounds=5, **AUTO)
    yield found
    found.close()


def test_the_figures_are_the_store_s(store: RunStore, tmp_path: Path) -> None:
    """Every mean, spread and count of every round, to four digits, in the table and in the dots' words; the held-out change with its errors."""
    store.add_metrics(0, dict(held_out_reward=-2.9123456, held_out_reward_std_error=0.0512))
    store.add_metrics(5, dict(held_out_reward=-1.98765, held_out_reward_std_error=0.0421))
    tree = made(store, tmp_path / "out")
    metrics, curves = {name: dict(points) for name, points in store.metrics().items()}, section(tree, "The reward, round by round")
    table = rows(curves)
    assert [row[0] for row in table] == ["1", "2", "3", "4", "5"] and {row[1] for row in table} == {"jpeg_compressibility"}
    for n, row in enumerate(table, start=1):
        assert row[2:] == [f"{metrics[name][n]:.4g}" for name in ("reward_mean", "reward_std", "scored_images")]
    titles = [title.text for title in curves.iter("title")]
    assert f"Round 3: mean of the round {metrics['reward_mean'][3]:.4g}" in titles and "Round 0: held-out seeds -2.912" in titles
    words = said(tree)
    assert "went from -2.912 ± 0.0512 (base model) to -1.988 ± 0.0421 (round 5), in kB." in words
    tiles = {div.findtext("dt"): div.findtext("dd") for div in tree.iter("div") if div.find("dt") is not None}
    assert tiles["rounds"] == "5 of 5" and tiles["images made"] == "40" and tiles["mean reward on held-out seeds, in kB"] == "-2.912 → -1.988"
    assert "blank and blurred images" in said(section(tree, "What was rewarded, and what fools it"))
    peak = max(value for value in metrics["kl_update"].values() if value)
    assert f"at most {peak:.4g}" in said(section(tree, "Was training healthy?"))


@pytest.mark.parametrize(("objective", "method"), [("ddpo-is", "DDPO"), ("ddpo-sf", "DDPO"), ("rwr-sparse", "RWR"), ("nft", "DiffusionNFT")])
def test_its_first_sentences_are_true_of_the_run(tmp_path: Path, objective: str, method: str) -> None:
    """By which method, and what scored from when on; that some images had no score is none of a lie."""
    store = filled_run(tmp_path / "run", rounds=3, objective=objective, **AUTO)
    store.set_reward(2, "human")
    words = said(made(store, tmp_path / "out"))
    asks = [rewards.card(name).asks for name in (AUTO["reward"], "human")]
    assert f"Reinforcement learning ({method}) trained" in words and "each image was scored" not in words
    assert f"What scored: {asks[0]} From round 2 on: {asks[1]}" in words
    assert f"made with DDPO Studio by reinforcement learning ([{method}](" in model_card(store, 3, "kohya", "sd1", "x", 1.0)
    store.close()


def test_it_opens_offline(store: RunStore, tmp_path: Path) -> None:
    """Nothing is loaded from anywhere: no script, no link to a style, every picture within, and no address in a style."""
    tree = made(store, tmp_path / "out")
    assert not [node.tag for node in tree.iter() if node.tag in ("script", "link", "iframe", "object", "embed", "base")]
    sources = [value for node in tree.iter() for name, value in node.attrib.items() if name in ("src", "href", "srcset", "data", "poster")]
    assert len(sources) == 16 and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import|https?:", "".join(node.text or "" for node in tree.iter("style")))


def test_the_pictures_are_the_run_s(store: RunStore, tmp_path: Path) -> None:
    """The strips hold the first and the last round's own pixels and scores."""
    strips = section(made(store, tmp_path / "out"), "As training saw it")
    assert [head.text for head in strips.iter("h3")] == ["Round 1", "Round 5"]
    figures = list(strips.iter("figure"))
    for figure, sample in zip(figures, [*store.samples(1), *store.samples(5)], strict=True):
        with Image.open(store.folder / sample.image) as stored:
            assert pixels(next(figure.iter("img"))) == stored.tobytes()
        score = store.scores(sample.round, AUTO["reward"])[sample.id].value
        assert next(figure.iter("b")).text == f"{score:.4g}" and next(figure.iter("bdi")).text == sample.prompt


def test_before_and_after_are_named_and_none_are_invented(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without weights there are no pairs and the report says why; with pairs each stands with its prompt, its seed and both pictures."""
    tree = made(store, tmp_path / "none", pictures=4)
    assert "The weights of round 5 are not kept" in said(section(tree, "Before and after")) and not list(
        section(tree, "Before and after").iter("img")
    )
    add_lora(store, 5)
    pairs = [Pair(f"a cat {i}", 70 + i, 5, drawn(i), drawn(10 + i)) for i in range(4)]
    monkeypatch.setattr("ddpo.export.held_out_pairs", lambda store, number, place, count: pairs[:count])
    part = section(made(store, tmp_path / "some", pictures=3), "Before and after")
    assert [image.attrib["alt"] for image in part.iter("img")][:2] == ["a cat 0, seed 70, before", "a cat 0, seed 70, after"]
    assert len(list(part.iter("img"))) == 6

    def broken(*_: Any) -> list[Pair]:
        raise RuntimeError(f"no model in {tmp_path}")

    monkeypatch.setattr("ddpo.export.held_out_pairs", broken)
    part = section(made(store, tmp_path / "broken", pictures=3), "Before and after")
    assert "could not be made" in said(part) and str(tmp_path) not in said(part)


def test_pictures_that_were_watched_stand_before_and_after(store: RunStore, tmp_path: Path) -> None:
    """Those of the base model and of the last watched round up to the report's, by position, with their own pixels; and the alarm, in words."""
    for number, fallen in ((0, 0.0), (2, 0.1), (4, 1.5)):
        add_watched(store, number, fallen)
    tree = made(store, tmp_path / "out", pictures=2)
    part = section(tree, "Before and after")
    assert "on the right round 4" in said(part)
    shown = [pixels(node) for node in part.iter("img")]
    assert shown == [Image.open(store.folder / row.image).tobytes() for i in (0, 2) for row in (store.probes(0)[i], store.probes(4)[i])]
    assert "After round 4 the alarm was on: " in said(tree) and "Best round so far: 2." in said(tree)
    drawing = next(node for node in section(tree, "The reward, round by round").iter("svg"))
    assert drawing.attrib["aria-label"].endswith("Best so far: round 2. Alarm: round 4")
    marks = {node.attrib["class"]: node.findtext("title") for node in drawing.iter("g") if node.attrib.get("class", "").startswith("mark ")}
    assert marks["mark best"] == "Round 2: Best round so far" and marks["mark alarm"].startswith("Round 4: Alarm: Diversity") and len(marks) == 2
    early = made(store, tmp_path / "early", number=3, pictures=4)
    assert "on the right round 2" in said(early) and "After round 2 no alarm was on." in said(early)


def test_proxy_and_gold_stand_over_the_distance_with_their_curves(store: RunStore, tmp_path: Path) -> None:
    """Points at √KL (0, √20, … as the pictures were watched), a dotted curve once there are four, and in words why no peak is told."""
    for number in range(4):
        add_watched(store, number, -0.1 * number)
    few = section(made(store, tmp_path / "few"), "Proxy against gold")
    assert "Too few points to say where gold peaks: 3, and it takes 4." in said(few) and not [g for g in few.iter("g") if "fitted" in str(g.attrib)]
    add_watched(store, 4, -0.4)
    part = section(made(store, tmp_path / "out"), "Proxy against gold")
    assert "No peak of gold can be told yet from these 4 points; the run is at √KL 6.32." in said(part) and "here clip_score" in said(part)
    assert "√KL 6.325: gold: clip_score 0.4" in " ".join(title.text or "" for title in part.iter("title"))
    assert len([g for g in part.iter("g") if g.attrib.get("class") == "c0 fitted"]) == 1 and [t.text for t in part.iter("text")][-1] == "√KL"
    store.set_reward(3, "aesthetic")
    assert "Proxy against gold" not in said(made(store, tmp_path / "changed"))


def test_human_win_rates_stand_over_the_distance(store: RunStore, tmp_path: Path) -> None:
    """At √KL of their round with Wilson's interval, beside the line of chance; after a change of reward as well, and not where no distance
    is known."""
    for at in (2, 4):
        keep(store.folder, Result(f"{at}", 0.0, ("base model", f"round {at}"), (0, at), 8, 1, Outcome(1, 4, 3, 0), (3, 5)))
    title = "Human win rate over the distance"
    assert title not in said(made(store, tmp_path / "unknown"))
    for number in range(4):
        add_watched(store, number, -0.1 * number)
    store.set_reward(3, "aesthetic")
    part = section(made(store, tmp_path / "out"), title)
    assert [node.text for node in part.iter("title")] == ["√KL 4.472: won by the round 0.8"] and rows(part) == [["2", "4.472", "5", "0.8"]]
    assert len([line for line in part.iter("line") if line.attrib.get("class") == "error"]) == 1
    assert len([g for g in part.iter("g") if g.attrib.get("class") == "c0 fitted"]) == 1


def test_the_result_of_a_run_that_is_rolled_back_is_an_earlier_round(store: RunStore, tmp_path: Path) -> None:
    """Curves to the end, pictures and the held-out reward of the round that is taken away; up to an earlier round nothing of it."""
    for number, fallen in ((0, 0.0), (2, 0.1), (4, 1.5)):
        add_watched(store, number, fallen)
    store.add_metrics(0, dict(held_out_reward=-3.0, held_out_reward_std_error=0.1))
    store.add_metrics(2, dict(held_out_reward=-2.0, held_out_reward_std_error=0.1))
    store.add_metrics(5, dict(held_out_reward=-1.0, held_out_reward_std_error=0.1))
    roll_back(store, 2)
    tree = made(store, tmp_path / "out", pictures=2)
    part = said(section(tree, "Before and after"))
    assert "on the right round 2" in part and "to -2 ± 0.1 (round 2)" in part and "rolled back to, and taken away" in said(tree)
    assert len(rows(section(tree, "The reward, round by round"))) == 5
    assert "rolled back" not in said(made(store, tmp_path / "early", number=1))


def pixels(node: ET.Element) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(node.attrib["src"].partition(",")[2]))) as image:
        return image.tobytes()


def test_raters_are_coded_unless_they_are_named_and_their_agreement_is_told(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "runs" / "taste", rounds=2)
    coded = section(made(store, tmp_path / "coded"), "Ratings")
    assert rows(coded)[0][1:] == ["16", "counts"] and "anna" not in said(coded) and "α" not in said(coded)
    add_images(store, 3)
    for row in store.samples(3):
        for name in ("anna", "ben"):
            store.add_rating(f"{name}{row.id}", row.id, name, "thumbs", 1.0 if row.position % 2 else -1.0)
    store.close_round(3)
    store.mark(3, "scored")
    store.choose("rater ben", "in")
    named = section(made(store, tmp_path / "named", names=True), "Ratings")
    assert rows(named) == [["anna", "24", "counts"], ["ben", "8", "counts"]]
    assert "32 images were rated" in said(named) and "Krippendorff's α is 1, from 8 images" in said(named)
    store.choose("rater ben", "out")
    left = section(made(store, tmp_path / "left", names=True), "Ratings")
    assert rows(left)[1] == ["ben", "8", "left out"] and "α" not in said(left)
    store.close()


def test_both_images_of_a_pair_are_rated_each_once(tmp_path: Path) -> None:
    """Two pairs that share their first image are three images, two bad ones are rated as well, a verdict that is given once more the other way round
    counts once, one that is taken back and a skip not at all."""
    store = RunStore.create(tmp_path / "run", RunConfig(rating="pairs"))
    add_images(store, 1)
    a, b, c, d, e, f, g = (row.id for row in store.samples(1)[:7])
    verdicts = [(a, b, "pairs", 1), (a, c, "pairs", -1), (b, a, "pairs", -1), (d, e, "bad", None), (f, g, "pairs", 0), (g, f, "clear", None)]
    for at, (one, other, kind, value) in enumerate(verdicts):
        store.add_rating(f"{at}", one, "anna", kind, value, other=other)
    store.add_rating("mark", a, "anna", "thumbs", 1)
    store.add_rating("skip", f, "anna", "skip", None)
    assert rated_images(store, 1) == {"anna": 5} and rated_images(store, 0) == {}
    store.close()


def test_a_report_up_to_a_round_knows_nothing_of_later_ones(store: RunStore, tmp_path: Path) -> None:
    store.set_reward(4, "aesthetic")
    tree = made(store, tmp_path / "out", number=3)
    assert "aesthetic" not in said(tree).replace("blend: 1 aesthetic", "") and "3 of 5" in said(tree)
    assert [row[0] for row in rows(section(tree, "The reward, round by round"))] == ["1", "2", "3"]
    later = made(store, tmp_path / "later")
    assert "from round 4 on aesthetic" in said(later)
    assert [head.text for head in section(later, "The reward, round by round").iter("h3")] == ["jpeg_compressibility, in kB", "aesthetic, in points"]
    assert len(list(section(later, "Was training healthy?").iter("title"))) > 5 and "From round 4: aesthetic" in {t.text for t in later.iter("title")}


def test_odd_prompts_gaps_and_files_that_are_gone_break_nothing(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "runs" / "odd", rounds=4, prompts=(*ODD_PROMPTS, "bell \x07 and null \x00"), **AUTO)
    store.add_metrics(2, dict(reward_mean=float("nan"), kl_update=float("nan"), something_new=3.0))
    (store.folder / store.samples(1)[0].image).unlink()
    tree = made(store, tmp_path / "out")
    assert "<script>document.title = 'broken'</script>" in said(tree) and "Something new" in said(tree)
    assert "The picture's file is gone." in said(tree)
    store.close()


def test_what_cannot_be_reported_is_refused(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Round 9 of squeeze is not scored"):
        export(store, "report", tmp_path / "out", 9)
    with pytest.raises(ExportError, match="between 0 and 64"):
        export(store, "report", tmp_path / "out", pictures=65)
    fresh = filled_run(tmp_path / "runs" / "fresh", rounds=0)
    with pytest.raises(ExportError, match="nothing to report"):
        export(fresh, "report", tmp_path / "out")
    fresh.close()
    assert not (tmp_path / "out").exists()


def test_what_is_always_0_is_said_and_not_drawn(store: RunStore, tmp_path: Path) -> None:
    """One update a round: the ratio is 1, and clip and KL are 0, by definition, and the loss but for rounding. The report says so, and what is the
    same in every round; a metric that moves is drawn."""
    for number in range(1, 6):
        found = dict(kl_update=0.0, clip_fraction_up=0.0, clip_fraction_down=0.0, loss=1e-8 * number, ratio_mean=1.0, ratio_std=0.0)
        store.add_metrics(number, found | dict(learned_images=32.0 if number < 5 else 31.0, learning_rate=0.001))
    part = section(made(store, tmp_path / "out"), "Was training healthy?")
    assert "All 0: distance moved per update; clipped steps; loss." in said(part) and "measured before it moves" in said(part)
    drawn = {head.text for head in part.iter("h3")}
    assert {"Ratio, largest deviation", "Gradient norm", "Learned images"} <= drawn
    assert not {"Distance moved per update", "Clipped steps", "Loss", "Ratio, mean", "Learning rate"} & drawn
    told = re.findall(r"The same in every round: (.*?)\. [A-Z]", said(part))
    assert told and {"ratio, mean 1", "learning rate 0.001"} <= set(told[0].split("; "))


def test_the_ratio_s_quarters_and_the_advantages_that_are_cut_are_health(store: RunStore, tmp_path: Path) -> None:
    """A line a quarter of the means, beside that of all steps with its spread, and of the spreads; of these no chart where nothing moved."""
    title, spread = "Ratio, mean", "Ratio, spread along the denoising"
    assert spread not in {head.text for head in section(made(store, tmp_path / "still"), "Was training healthy?").iter("h3")}
    for number in range(1, 6):
        store.add_metrics(number, {f"ratio_{name}_quarter_{i}": 1.0 + i for name in ("mean", "std") for i in (1, 4)})
        store.add_metrics(number, dict(advantage_saturation=0.25 * (number % 2), images_per_second=3.0))
    part = section(made(store, tmp_path / "out"), "Was training healthy?")
    figures = {figure.findtext("h3"): figure for figure in part.iter("figure")}
    assert {"Advantages cut", title, spread} <= set(figures) and not [head for head in figures if head and "quarter 1" in head]
    lines = [{re.sub(r"Round \d: | \S+$", "", each.text or "") for each in figures[head].iter("title")} for head in (title, spread)]
    assert lines == [{"all steps", "first quarter, noisiest", "last"}, {"first quarter, noisiest", "last"}]
    assert len([path for path in figures[title].iter() if "band" in (path.get("class") or "")]) == 1


def test_large_numbers_are_written_out() -> None:
    assert [shown(value) for value in (None, 0.00012345, 9999.0, 9999.7, 58_266.4, -58_266.4)] == [
        "–",
        "0.0001234",
        "9999",
        "10,000",
        "58,266",
        "-58,266",
    ]


def test_what_was_watched_has_its_charts(store: RunStore, tmp_path: Path) -> None:
    """Every measure is drawn once, as on Progress: what rewards say in one chart, each line under its name; the distance is also said."""
    for number in (0, 5):
        found = dict(moved_noise=0.1, moved_aesthetic=0.5 * number, moved_clip_score=-0.1 * number, watched_kl=2.0 * number, watched_noise=0.3)
        store.add_metrics(number, found | dict(reward_on_trained=-2.0, reward_on_unseen_animals=-3.0, watched_diversity=1.0))
    part = section(made(store, tmp_path / "out"), "Was training healthy?")
    lines = {
        figure.findtext("h3"): sorted({re.sub(r"Round \d: | \S+$", "", title.text or "") for title in figure.iter("title")})
        for figure in part.iter("figure")
    }
    assert lines["Other rewards"] == ["aesthetic", "clip_score"] and lines["jpeg_compressibility, on other prompts"] == ["trained", "unseen animals"]
    assert lines["Signs of damage"] == ["noise"] and {"Diversity", "Distance from the base model, in nats"} <= set(lines)
    assert not [title for title in lines if title and "atched" in title] and "Diversity, by prompt" not in lines
    for number in (0, 5):
        add_watched(store, number)
    heads = {head.text for head in section(made(store, tmp_path / "again"), "Was training healthy?").iter("h3")}
    assert "Diversity, by prompt" in heads
    assert "After round 5, a picture's whole denoising is 10 nats of KL divergence from the base model's, at most 10 (round 5)." in said(part)


def test_a_reward_of_one_s_own_is_the_first_of_those_that_are_asked(tmp_path: Path) -> None:
    """As it is optimised; of its file only the name is told."""
    store = filled_run(tmp_path / "runs" / "own", rounds=2, reward="/my/secret/own.py:warm")
    for number in (0, 2):
        store.add_metrics(number, {"moved_aesthetic": 0.5, "moved_/my/secret/own.py:warm": 0.25 * number, "reward_on_trained": 1.0})
    part = section(made(store, tmp_path / "out"), "Was training healthy?")
    figures = {figure.findtext("h3"): figure for figure in part.iter("figure")}
    assert "own.py:warm, on other prompts" in figures and "secret" not in said(part)
    names = [said(item) for item in figures["Other rewards"].iter("li")]
    assert names == ["own.py:warm (optimised)", "aesthetic"]
    store.close()


def test_what_is_watched_of_each_reward_has_a_chart_of_its_own(store: RunStore, tmp_path: Path) -> None:
    """Units are not mixed, nor are two blends; the folder of a file is not told."""
    for number, reward in ((3, "blend: 1 human, 1 /my/own.py:warm"), (5, "blend: 1 human, 2 /my/own.py:warm")):
        store.set_reward(number, reward)
    for number in (0, 2, 3, 4, 5):
        store.add_metrics(number, dict(reward_on_trained=1.0 + number) | (dict(moved_blend=1.0 + number) if number > 2 else {}))
    part = section(made(store, tmp_path / "out"), "Was training healthy?")
    dots = {figure.findtext("h3"): sorted(str(title.text).rpartition(" ")[0] for title in figure.iter("title")) for figure in part.iter("figure")}
    first, second = (f"blend: 1 human, {weight} own.py:warm" for weight in (1, 2))
    assert [len([dot for dot in dots[f"{name}, on other prompts"] if ": trained" in dot]) for name in (first, second)] == [2, 1]
    assert [dot for dot in dots["jpeg_compressibility, on other prompts"] if ": trained" in dot] == ["Round 0: trained", "Round 2: trained"]
    moved = [dot for dot in dots["Other rewards"] if dot.startswith("Round") and ": blend" in dot]
    assert moved == [f"Round 3: {first}", f"Round 4: {first}", f"Round 5: {second} (optimised)"]


# --- doing it again -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        *(preset.config for preset in presets().values()),
        RunConfig(prompts=("it's", "a | b", 'say "x"'), seed=7, guidance_in_training=False, learning_rate=0.00037),
        RunConfig(reward="blend: 1 human, -0.5 clip_score", rounds=3, objective="nft", kl_weight=1e-9),
        RunConfig(reward="jpeg_compressibility", prompts=prompt_sets()["objects"], shared_start=False, lora_alpha=0.5),
        RunConfig(held_out_prompts=prompt_sets()["objects"]),
        RunConfig(held_out_prompts=("it's", "two hens")),
    ],
)
def test_the_command_makes_the_same_run(config: RunConfig) -> None:
    """What it says, read by the real command line, is the run's own configuration."""
    words = shlex.split(command(config, "runs/again"))
    assert words[:4] == ["python", "-m", "ddpo", "run"]
    options = parser().parse_args(words[3:])
    assert config_from(options) == config and options.out == Path("runs/again")


def test_the_command_of_a_run_that_goes_on_from_another_makes_it_from_that_one(tmp_path: Path) -> None:
    """Where the parent lies beside it, what was changed alone; else all settings. Both make the run's own configuration from the parent's."""
    parent = comparable_run(tmp_path / "runs" / "first", rounds=6, reward="jpeg_compressibility", prompts=("a cat", "a dog"), learning_rate=0.00037)
    parent.config.with_changes(held_out_prompts=("a hen",)).save(parent.folder / "config.json")
    parent.close()
    parent = RunStore(parent.folder)
    changes: dict[str, Any] = dict(kl_weight=0.01, guidance_in_training=False, rounds=2, held_out_prompts=())
    store = fork(parent, 3, tmp_path / "runs" / "second", changes)
    for place in (parent.folder, tmp_path / "elsewhere"):
        if not place.exists():
            parent.folder.rename(place)
        part = ET.fromstring(f"<div>{again(store, 0)}</div>")
        words = shlex.split(str(part.findtext(".//pre")).splitlines()[0])
        told = parser().parse_args(words[3:])
        assert words[:5] == ["python", "-m", "ddpo", "fork", "runs/first"] and (told.round, told.out) == (3, Path("runs/second"))
        assert "which is needed: runs/first." in said(part)
        assert (changes_from(told) == changes) == (place == parent.folder)
        assert fork(RunStore(place), 3, tmp_path / f"like-{place.name}", changes_from(told)).config == store.config


def test_the_command_names_a_file_where_prompts_are_no_words_of_a_line(tmp_path: Path) -> None:
    store = filled_run(tmp_path / "runs" / "odd", rounds=1, prompts=("a; b",))
    assert "--prompts prompts.txt" in said(made(store, tmp_path / "out")) and "prompts.txt holds the prompts above" in said(
        made(store, tmp_path / "two")
    )
    store.close()
    store = filled_run(tmp_path / "runs" / "held", rounds=1, held_out_prompts=("a hen; an egg", "an owl"))
    told = said(made(store, tmp_path / "three"))
    assert "--held-out-prompts held-out.txt" in told and "held-out.txt holds the held-out prompts above" in told and "prompts.txt" not in told
    assert "2 held-out prompts" in told and "an owl" in told
    store.close()


def test_the_command_line_makes_one(store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(store.folder), "--as", "report", "--pictures", "0", "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out) == dict(run=str(store.folder), round=5, **{"as": "report"}, out=str(tmp_path / "out"), files=1)


# --- in a browser ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 390)])
def test_it_opens_without_a_server_in_both_themes_and_fits(browser: Browser, tmp_path: Path, scheme: str, width: int) -> None:
    """From the disk, in a browser without a network: no request, no error, every picture decoded, nothing sticks out, dark is dark."""
    store = filled_run(tmp_path / "runs" / ("a-long-name-" * 6), rounds=3, prompts=ODD_PROMPTS)
    made(store, tmp_path / "out")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
    page, problems = context.new_page(), []
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(next((tmp_path / "out").iterdir()).as_uri())
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth === 64)")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    light = sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))))
    assert (light < 384) == (scheme == "dark") and page.title().startswith("a-long-name") and not problems
    context.close()
    store.close()


# --- pieces ---------------------------------------------------------------------------------------------------------------------


def test_a_chart_draws_where_the_values_lie() -> None:
    """On paper: the least value of (1, 2, 3) lies lowest, equal steps are equally far apart, a gap parts the line, a long line keeps its jump."""
    marks = [Milestone(3, "change", "changed", "changed")]
    tree = ET.fromstring(f"<div>{chart([Line('x', [(1, 1.0), (2, 2.0), (3, 3.0), (4, None), (5, 2.0)])], 'words', marks)}</div>")
    heights = [float(dot.attrib["cy"]) for dot in tree.iter("circle")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11) and heights[0] > heights[1] > heights[2]
    assert len([path for path in tree.iter("path") if path.attrib["class"] == "line"]) == 1
    assert next(tree.iter("svg")).attrib["aria-label"] == "words" and "changed" in {title.text for title in tree.iter("title")}
    jump = [(n, 9.0 if n == 4321 else 0.5) for n in range(1, 10_001)]
    long = ET.fromstring(f"<div>{chart([Line('x', jump)], '')}</div>")
    scale = fitted([Line("x", jump)], 440.0, 190.0)
    path = next(path for path in long.iter("path") if path.attrib["class"] == "line").attrib["d"]
    assert f",{scale.y(9.0):.1f}" in path and len(path.split("L")) <= 501


def test_a_long_line_is_thinned_by_its_points_whatever_its_axis_counts() -> None:
    """1,000 distances from 0 to 20, and 1,000 rounds of which one in twenty was measured: as many are drawn."""
    for step in (0.02, 1, 20):
        kept = thinned(Line("x", [(step * n, float(n % 7)) for n in range(1000)])).points
        assert 400 <= len(kept) <= 501 and kept[-1][0] == step * 999


def test_ticks_are_round_numbers() -> None:
    assert ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-3.2, -0.4, 5) == [-3.0, -2.0, -1.0] and ticks(0.0, 2.6, 5) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(("side", "kind", "width"), [(64, "png", 64), (512, "jpeg", 320)])
def test_pictures_have_a_sensible_size(side: int, kind: str, width: int) -> None:
    node = ET.fromstring(picture(drawn(1, side), "a cat"))
    head, _, data = node.attrib["src"].partition(",")
    assert head == f"data:image/{kind};base64" and node.attrib["width"] == str(width)
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (width, width)
