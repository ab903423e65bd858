"""The pages as functions of the store: what is shown, and what a press writes."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest
from toys import ODD_PROMPTS, add_images, add_watched, filled_run

from app import words
from app.curves import MAX_POINTS
from app.launch import Launcher
from app.pages import library, new_run, progress, run
from app.pages.run import COUNTS
from app.runs import Runs
from app.views import NAMES, Views
from ddpo import blind
from ddpo.charts import GROUPS, labelled
from ddpo.config import ConfigError, RunConfig
from ddpo.earlier import rated_in
from ddpo.generalisation import HELD_OUT, OTHERS, TRAINED
from ddpo.lock import WorkerLock
from ddpo.presets import presets
from ddpo.records import LIVE_STATES, REQUESTS, RoundRow
from ddpo.result import roll_back
from ddpo.store import RunStore, StoreError
from rewards.base import Score

IDLE = Launcher((sys.executable, "-c", "pass"))


@pytest.fixture
def runs(tmp_path: Path):
    found = Runs(tmp_path)
    yield found
    found.close()


def buttons(value: dict) -> dict[str, bool]:
    return {button["kind"]: button["enabled"] for button in value["controls"]}


# --- the run's panel ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", LIVE_STATES)
def test_every_live_state_has_words_and_its_buttons(runs: Runs, state: str) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    store.set_progress(state, 2, 3, 8)
    lock = WorkerLock(store.folder / "worker.lock")
    try:
        value = run.panel_value(store, IDLE)
    finally:
        lock.release()
    assert value["headline"] == ("Taking in your ratings" if state == "scoring" else words.STATES[state][0])
    usual = {"resume" if state == "paused" else "pause", "reward", "stop_after_round", "stop"}
    assert set(buttons(value)) == ({"retry", "reward", "stop"} if state == "reward_failed" else usual)
    assert all(buttons(value).values())
    assert value["rounds_done"] == 1 and (value["failure"] is None) == (state != "reward_failed")
    json.dumps(value)


@pytest.mark.parametrize(
    ("state", "expected"), [("finished", {}), ("stopped", {"launch": True, "reward": True}), ("failed", {"launch": True, "reward": True})]
)
def test_an_ended_run_can_be_resumed_unless_all_is_done(runs: Runs, state: str, expected: dict[str, bool]) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    store.add_event(state, "The disk is full.")
    store.set_progress(state, 1)
    value = run.panel_value(store, IDLE)
    assert buttons(value) == expected
    assert (value["failure"] or {}).get("text") == ("The disk is full." if state == "failed" else None)


def test_a_killed_worker_shows_as_interrupted_with_its_last_words(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    (store.folder / "worker.log").write_text("one\nlast words\n")
    value = run.panel_value(store, IDLE)
    assert value["headline"] == "Interrupted" and "last words" in value["failure"]["log"]
    assert buttons(value) == {"launch": True, "reward": True}


def test_a_worker_that_never_began_is_no_mystery(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=0)
    assert run.panel_value(store, IDLE)["headline"] == "Not started"
    (store.folder / "worker.log").write_text("ModuleNotFoundError\nThe worker ended with exit code 1.\n")
    value = run.panel_value(store, IDLE)
    assert value["headline"] == "Did not start" and "exit code 1" in value["failure"]["log"]


@pytest.mark.parametrize("kind", ["pause", "stop", "stop_after_round"])
def test_a_press_is_one_request_and_the_button_waits_for_the_answer(runs: Runs, kind: str) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    lock = WorkerLock(store.folder / "worker.lock")
    try:
        assert run.steer(store, IDLE, kind) is None
        run.steer(store, IDLE, kind)  # an impatient second press
        assert [request.kind for request in store.pending_requests()] == [kind]
        assert not buttons(run.panel_value(store, IDLE))[kind]
        store.add_event("answer", "done", store.pending_requests()[0].id)
        assert buttons(run.panel_value(store, IDLE))[kind]
    finally:
        lock.release()


def test_force_quit_appears_only_when_stop_stays_unanswered(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    lock = WorkerLock(store.folder / "worker.lock")
    try:
        run.steer(store, IDLE, "stop")
        assert "kill" not in buttons(run.panel_value(store, IDLE))
        monkeypatch.setattr(run, "PATIENCE_SECONDS", -1.0)
        assert buttons(run.panel_value(store, IDLE))["kill"]
    finally:
        lock.release()


def test_a_request_to_a_dead_worker_is_refused_in_words(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    assert run.steer(store, IDLE, "pause") == "The worker has ended already."
    assert not store.pending_requests()
    with pytest.raises(RuntimeError):
        run.steer(store, IDLE, "format the disk")
    assert set(REQUESTS) >= {"pause", "resume", "stop", "stop_after_round"}


def test_the_time_split_adds_up(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=3)
    rounds = store.rounds()
    whole = sum((row.checkpointed_at or 0) - row.started_at for row in rounds)
    assert sum(part["seconds"] for part in run.time_split(rounds)) == pytest.approx(whole, abs=0.05)


def test_what_was_made_ahead_takes_no_time_of_its_own(runs: Runs) -> None:
    """Two rounds of which the second's images were begun, or all made, while people rated the first: the phases add up to what passed."""
    first = RoundRow(1, 0.0, 2.0, 10.0, 12.0, 13.0, 9.0, "thumbs", "human")
    for sampled in (4.0, 15.0):
        second = RoundRow(2, 3.0, sampled, 20.0, 22.0, 23.0, 19.0, "thumbs", "human")
        split = [part["seconds"] for part in run.time_split([first, second])]
        assert sum(split) == 23.0 and split[0] == (4.0 if sampled > 13 else 2.0)


def test_rated_images_are_the_progress_while_people_rate(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=0, awaiting=True)
    lock = WorkerLock(store.folder / "worker.lock")
    try:
        store.add_rating("c1", store.samples(1)[0].id, "anna", "thumbs", 1)
        value = run.panel_value(store, IDLE)
    finally:
        lock.release()
    assert (value["done"], value["total"], value["unit"]) == (1, 8, "rated")


# --- the form -------------------------------------------------------------------------------------------------------------------


def form_values(**changes: object) -> dict[str, object]:
    config = RunConfig()
    shown = {key: "\n".join(config.prompts) if key == "prompts" else getattr(config, key) for key in new_run.SETTINGS}
    return {key: float(v) if type(v) is int else v for key, v in shown.items()} | changes


def test_the_form_of_every_preset_makes_that_preset(runs: Runs) -> None:
    for name, preset in presets().items():
        suggested, _, *values = new_run.fill_from_preset(runs, name, "")
        assert new_run.config_from(dict(zip(new_run.SETTINGS, values, strict=True))) == preset.config
        assert suggested == f"{name}-1"


def test_earlier_ratings_are_chosen_by_the_names_of_runs(runs: Runs) -> None:
    """A run here by its name, anything else by its path; what is wrong is said in the form's words, and no run is made."""
    for name, changes in (("old", {}), ("compress", dict(reward="jpeg_compressibility"))):
        filled_run(runs.folder / name, rounds=1, **changes).close()
    (runs.folder / "broken").mkdir()
    (runs.folder / "broken" / "config.json").write_text("{")
    assert new_run.earlier_choices(runs)["choices"] == [("old (8 images rated)", "old")]
    store = new_run.create(runs, "new", form_values(preference="lead", ratings_from=["old"]))
    assert store.config.ratings_sources == (str((runs.folder / "old").resolve()),) and len(rated_in(store.folder)) == 8
    assert ["Learns from ratings of", "old"] in run.facts(store.config, "human")
    assert new_run._shown("ratings_from", "a; b") == ["a", "b"]
    with pytest.raises(ConfigError) as error:
        new_run.create(runs, "newer", form_values(preference="lead", ratings_from=["gone"]))
    assert new_run.plain(str(error.value)).startswith("Earlier ratings names 'gone', which does not exist") and "newer" not in runs.names()


def test_a_typed_name_survives_a_change_of_preset(runs: Runs) -> None:
    assert new_run.fill_from_preset(runs, "compress", "my colours")[0] == "my colours"
    assert new_run.fill_from_preset(runs, "compress", "rate-7")[0] == "compress-1"


@pytest.fixture
def pocket(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that passes for a model."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return str(folder)


def test_a_run_is_made_from_the_form(runs: Runs, pocket: str) -> None:
    store = new_run.create(runs, " mine ", form_values(model=pocket, prompts=" a cat \n\n🦊 ${x} <b>\n", rounds=3.0))
    assert store.name == "mine" and store.config.prompts == ("a cat", "🦊 ${x} <b>") and store.config.rounds == 3
    assert store.config.held_out_prompts == () and ["Prompts", "2 prompts"] in run.facts(store.config, "human")
    store = new_run.create(runs, "held", form_values(model=pocket, held_out_prompts="a hen\n\n an owl "))
    assert store.config.held_out_prompts == ("a hen", "an owl") and ["Prompts", "4 prompts, 2 held out"] in run.facts(store.config, "human")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("a", dict(rounds=0.0), "at least 1"),
        ("a", dict(rounds=2.5), "whole number"),
        ("a", dict(rounds=None), "whole number"),
        ("a", dict(learning_rate=None), "a number"),
        ("a", dict(images_per_round=10.0), "not divisible"),
        ("a", dict(prompts=" \n"), "no prompt"),
        ("a", dict(held_out_prompts="a hen\nA dog"), "'A dog' is among held_out_prompts"),
        ("a", dict(model="/no/such/folder"), "does not exist"),
        ("", {}, "no name"),
        ("../a", {}, "cannot name a run"),
        ("a b", {}, "cannot name a run"),
    ],
)
def test_what_cannot_work_is_said_in_words_and_leaves_nothing(runs: Runs, pocket: str, name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, StoreError), match=message):
        new_run.create(runs, name, form_values(**{"model": pocket, **changes}))
    assert list(runs.folder.iterdir()) == []


def test_errors_use_the_labels_of_the_form() -> None:
    assert new_run.plain("images_per_round is 10 and images_per_prompt is 4: x").startswith("Images a round is 10 and Images per prompt is 4")
    assert new_run.plain("rounds is 0; it must be at least 1.").startswith("Rounds is 0")


def test_every_setting_is_on_the_form() -> None:
    assert set(new_run.MAIN) <= set(new_run.SETTINGS)
    assert all(words.label(key) for key in new_run.SETTINGS)


# --- progress -------------------------------------------------------------------------------------------------------------------


def test_charts_show_every_metric_and_cope_with_gaps(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=4)
    store.add_metrics(2, dict(loss=float("nan"), something_new=3.0))
    store.add_metrics(0, dict(held_out_reward=-1.0, held_out_reward_std_error=0.1))
    store.add_metrics(4, dict(held_out_reward=1.0))
    charts = {chart["key"]: chart for chart in progress.charts_value(store)["charts"]}
    assert charts["loss"]["series"][0]["points"][1] == (2, None)
    assert charts["something_new"]["series"][0]["points"] == [(2, 3.0)]
    mean, held = charts["reward"]["series"]
    assert len(mean["points"]) == len(mean["band"]) == 4
    assert held["points"] == [(0, -1.0), (4, 1.0)] and held["error"] == [(0, -1.1, -0.9)]
    assert charts["reward"]["counts"]["points"] == [(n, 8.0) for n in range(1, 5)]
    json.dumps(progress.charts_value(store), allow_nan=False)


def test_what_is_0_so_far_is_marked(runs: Runs) -> None:
    """Until it is more; what has no value is not 0, and the loss is 0 but for rounding."""
    store = filled_run(runs.folder / "a", rounds=2)
    found = dict(advantage_saturation=0.0, updates_behind=0.0, kl_base=math.nan, loss=1e-8)
    for number in (1, 2):
        store.add_metrics(number, found)
    still = [chart["title"] for chart in progress.charts_value(store)["charts"] if "still" in chart]
    assert still == ["Loss", "Advantages cut", "Rounds behind"]
    store.add_metrics(2, dict(advantage_saturation=0.125, updates_behind=0.0, loss=1e-5))
    charts = {chart["key"]: chart.get("still", False) for chart in progress.charts_value(store)["charts"]}
    assert not charts["loss"] and not charts["saturation"] and charts["behind"] and not charts["base"]


def test_long_prompts_have_labels_that_tell_them_apart() -> None:
    """Cut by characters, since not all have spaces."""
    girl, boy = (f"masterpiece,best_quality,ultra-detailed,1{who},solo" for who in ("girl", "boy"))
    assert labelled([girl, "a  cat", boy]) == [(girl, f"{girl[:39]}…"), ("a  cat", "a cat"), (boy, f"{girl[:39]}… (2)")]


def test_what_is_watched_has_charts_with_plain_titles(runs: Runs) -> None:
    """The reward that is optimised comes first among those that are asked; means that only repeat a chart have none of their own."""
    store = filled_run(runs.folder / "a", rounds=3, reward="aesthetic")
    for number in (0, 3):
        found = dict(watched_kl=float(number), watched_diversity=1.0, watched_aesthetic=5.0, watched_noise=0.1, moved_noise=0.0)
        found |= dict(moved_clip_score=0.0, moved_aesthetic=0.0, reward_on_trained=5.0, reward_on_objects=5.0)
        store.add_metrics(number, found)
    charts = {chart["title"]: [series["label"] for series in chart["series"]] for chart in progress.charts_value(store)["charts"]}
    assert charts["Other rewards"] == ["Aesthetic (LAION) (optimised)", "CLIPScore"]
    assert charts["Signs of damage"] == ["noise"] and charts["Aesthetic (LAION), on other prompts"] == ["trained", "objects"]
    assert {"Distance from the base model", "Diversity"} <= set(charts) and not [title for title in charts if "atched" in title]


def test_every_group_of_prompts_has_a_line_of_its_own() -> None:
    assert {metric for metric, _ in GROUPS} == {
        f"reward_on_{name}" for name in {TRAINED, HELD_OUT, *(name for each in OTHERS.values() for name in each)}
    }


def test_people_stand_among_the_rewards_where_their_ratings_are_held_out(runs: Runs) -> None:
    """By hand: board 4's mean over board 1's, in board 1's spread, with the errors of both; at the round that made its model, as the watched
    pictures are, first of the lines. Boards of one model, one of them made ahead, are one point. Of a run that goes on from other weights the
    base model's board is unknown: there people have no line."""
    store = filled_run(runs.folder / "a", rounds=6)
    store._db.execute("UPDATE sample SET updates = max(0, round - 2)")
    for number in (0, 2, 4):
        add_watched(store, number)
    panel = next(chart for chart in progress.charts_value(store)["charts"] if chart["key"] == "panel")
    people, automatic = panel["series"]
    assert people["label"].startswith("your ratings") and automatic["label"] == "CLIPScore" and [at for at, _ in people["points"]] == [0, 1, 2, 3, 4]
    mean, spread = (dict(store.metrics()[name]) for name in ("reward_mean", "reward_std"))
    gain, error = (mean[4] - mean[1]) / spread[1], math.hypot(spread[4], spread[1]) / 8**0.5 / spread[1]
    assert people["points"][2] == (2, pytest.approx(gain)) and people["band"][2] == (2, pytest.approx(gain - error), pytest.approx(gain + error))
    half, error = (mean[2] - mean[1]) / spread[1] / 2, math.hypot(spread[2], spread[1]) / 8**0.5 / spread[1] / 2
    assert people["points"][0] == (0, pytest.approx(half)) and people["band"][0] == (0, pytest.approx(half - error), pytest.approx(half + error))
    (store.folder / "parent").mkdir()
    (store.folder / "parent" / "parent.json").write_text('{"run": "b", "round": 7}')
    add_watched(store, 6)
    panel = next(chart for chart in progress.charts_value(store)["charts"] if chart["key"] == "panel")
    assert [line["label"] for line in panel["series"]] == ["CLIPScore"]


def test_a_blind_test_against_the_base_model_is_a_point_of_a_chart(runs: Runs) -> None:
    """At the distance of its round, with its interval, how many pairs were decided, and chance; it is told to a page to which nothing else is new."""
    store, views = filled_run(runs.folder / "a", rounds=5, reward="aesthetic"), Views(runs, IDLE)
    add_watched(store, 0)
    add_watched(store, 5)
    assert "won" not in {chart["key"] for chart in progress.charts_value(store)["charts"]}
    token, stamp = views.token("a"), progress.answer_curves(runs, dict(run="a"))["stamp"]
    total = blind.Outcome(1, 4, 2, 1)
    blind.keep(store.folder, blind.Result("ab", 0.0, ("base model", "round 5"), (0, 5), 8, 1, total, (3, 5)))
    assert views.token("a") != token and "value" in progress.answer_curves(runs, dict(run="a", stamp=stamp))
    chart = next(chart for chart in progress.charts_value(store)["charts"] if chart["key"] == "won")
    assert chart["places"] == [(5, 50**0.5)] and chart["curves"] == [[(0.0, 0.5), (50**0.5, 0.5)]] and chart["counts"]["points"] == [(5, 5)]
    assert chart["series"][0]["points"] == [(5, 0.8)] and chart["series"][0]["error"] == [(5, *blind.wilson(4, 5))]
    json.dumps(progress.charts_value(store), allow_nan=False)


def test_raters_have_charts_of_what_is_known_of_them(runs: Runs) -> None:
    """Each a line of their own speed, up to eight; more all together. One rater agrees with nobody, and where nothing came again nobody agrees with
    themselves: no chart."""
    store = filled_run(runs.folder / "a", rounds=2)
    assert progress.rater_charts(store) == [], "all at once, of one rater"
    add_images(store, 3)
    for rater in range(8):
        for i, row in enumerate(store.samples(3)):
            store.add_rating(f"{rater} {row.id}", row.id, f"rater {rater}", "thumbs", 1 if i % 2 else -1, 1e6, 1e6 + 3.0 * (i + 1))
    store.close_round(3)
    charts = {chart["key"]: chart for chart in progress.rater_charts(store)}
    assert list(charts) == ["rater-speed", "rater-agreement"]
    assert [line["label"] for line in charts["rater-speed"]["series"]] == ["all raters"] and charts["rater-speed"]["series"][0]["points"][-1] == (
        3,
        3.0,
    )
    assert charts["rater-agreement"]["series"][0]["points"] == [(1, None), (2, None), (3, 1.0)]
    assert charts["rater-agreement"]["counts"]["points"][-1] == (3, 8.0)
    assert set(charts) < {chart["key"] for chart in progress.charts_value(store)["charts"]}


def test_long_runs_are_thinned_and_keep_their_end(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=0)
    for number in range(1, 3001):
        store._db.execute("INSERT INTO metric VALUES (?, 'reward_mean', ?)", (number, number / 3000))
        store._db.execute("INSERT INTO metric VALUES (?, 'reward_std', 0.1)", (number,))
    series = progress.charts_value(store)["charts"][0]["series"][0]
    assert len(series["points"]) + len(series["band"]) <= MAX_POINTS + 2
    assert series["points"][-1][0] == 3000


def test_few_prompts_have_a_line_each_of_their_own_means(runs: Runs) -> None:
    """By hand: the mean of a prompt's scores of a round; images nobody rated count for nothing; many prompts have no lines."""
    store = filled_run(runs.folder / "a", rounds=2, prompts=("a cat", "a dog"))
    chart = next(chart for chart in progress.charts_value(store)["charts"] if chart["key"] == "prompts")
    assert chart["title"] == "Your ratings, by prompt" and [line["label"] for line in chart["series"]] == ["a cat", "a dog"]
    cats = [store.scores(2, "human")[sample.id].value for sample in store.samples(2) if sample.prompt == "a cat"]
    assert chart["series"][0]["points"][1] == (2, pytest.approx(sum(filter(None, cats)) / len(cats)))
    first, *others = (sample.id for sample in store.samples(2) if sample.prompt == "a cat")
    store.add_scores("human", {first: Score(-0.25), **dict.fromkeys(others, Score(None))})
    assert store.prompt_means("human")["a cat"][1] == (2, -0.25)
    many = filled_run(runs.folder / "b", rounds=1, prompts=tuple("abcdefghi"))
    assert "prompts" not in {chart["key"] for chart in progress.charts_value(many)["charts"]}


def test_few_watched_prompts_have_a_line_each_of_their_diversity(runs: Runs) -> None:
    """Of the rounds that were watched, as a share of the base model's; of a run that was not watched, one prompt or many, there is no chart."""

    def shown(name: str, prompts: str) -> dict[str, dict]:
        store = filled_run(runs.folder / name, rounds=3)
        for number, value in ((0, 0.4), (3, 0.1)):
            store.add_metrics(number, dict(watched_diversity=1.0, watched_vendi=1.0))
            each = [prompt for prompt in prompts for _ in range(2)]
            at = range(len(each))
            store.add_probes(number, ["trained"] * len(at), each, list(at), [f"{i}.png" for i in at], [dict(diversity=value + i // 2) for i in at])
        return {chart["key"]: chart for chart in progress.charts_value(store)["charts"]}

    few = shown("few", "ab")
    assert few["diversity-prompts"]["series"] == [
        dict(label="a", points=[(0, 1.0), (3, 0.25)], band=[]),
        dict(label="b", points=[(0, 1.0), (3, pytest.approx(1.1 / 1.4))], band=[]),
    ]
    assert [series["label"] for series in few["diversity"]["series"]] == ["within a prompt", "of all (Vendi score)"]
    for name, prompts in (("one", "a"), ("many", "abcdefghi"), ("none", "")):
        assert "diversity-prompts" not in shown(name, prompts), name


def test_the_ratio_s_quarters_are_drawn_where_it_moves(runs: Runs) -> None:
    """Means beside that of all steps, whose spread alone has a band; the standard deviations in one chart, logarithmic at first. With one update a
    round there is neither, and no chart for each metric."""
    store = filled_run(runs.folder / "a", rounds=3)
    charts = {chart["key"]: chart for chart in progress.charts_value(store)["charts"]}
    assert [series["label"] for series in charts["ratio"]["series"]] == ["all steps"] and "quarters" not in charts
    for number in (1, 2, 3):
        store.add_metrics(number, {f"ratio_{name}_quarter_{i}": 1.0 + i for name in ("mean", "std") for i in (1, 2, 3, 4)})
    found = progress.charts_value(store)["charts"]
    charts = {chart["key"]: chart for chart in found}
    mean, spread = charts["ratio"]["series"], charts["quarters"]["series"]
    assert [bool(series["band"]) for series in mean] == [True, False, False, False, False]
    assert [series["label"] for series in mean[1:]] == [series["label"] for series in spread] and mean[4]["points"][0] == (1, 5.0)
    assert charts["quarters"]["log"] and not charts["ratio"]["log"] and not [key for key in charts if "quarter_" in key]


def test_every_metric_of_a_chart_is_drawn_there_alone(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=3)
    store.add_metrics(2, dict(advantage_saturation=0.25, images_per_second=4.0))
    keys = [chart["key"] for chart in progress.charts_value(store)["charts"]]
    assert "saturation" in keys and "advantage_saturation" not in keys and keys.index("pace") == keys.index("seconds") + 1


def test_a_run_without_metrics_has_no_charts_but_images(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=0)
    assert progress.charts_value(store)["charts"] == []
    assert progress.gallery_value(store)["rounds"] == []
    add_images(store, 1)
    assert progress.gallery_value(store)["rounds"] == [1]


def test_the_gallery_gives_scores_and_prompts_as_they_are(runs: Runs) -> None:
    store = filled_run(runs.folder / "odd", rounds=2, prompts=ODD_PROMPTS)
    answer = progress.answer_round(runs, {"run": "odd", "round": 1})
    assert len(answer["images"]) == 8 and {image["prompt"] for image in answer["images"]} <= set(ODD_PROMPTS)
    assert all(image["score"] in (-1, 1) for image in answer["images"])
    store.add_scores("human", {answer["images"][0]["id"]: Score(None)})
    json.dumps(answer)


def test_the_gallery_tells_no_scores_while_people_rate(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=0, awaiting=True)
    store.add_rating("1", store.samples(1)[0].id, "bob", "thumbs", -1)
    question = {"run": "a", "round": 1}
    open_now = progress.answer_round(runs, question)
    assert {(image["score"], image["seed"], image["note"]) for image in open_now["images"]} == {(None, None, "")}
    assert open_now["summary"] == "8 images, being rated"
    stamp = progress.gallery_value(store)["stamp"]
    store.close_round(1)
    closed = progress.answer_round(runs, question)
    assert closed["images"][0]["score"] == -1 and closed["images"][0]["seed"] is not None
    assert progress.gallery_value(store)["stamp"] != stamp


def test_the_gallery_calls_a_board_that_was_made_ahead_not_rated_yet(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=0, awaiting=True)
    add_images(store, 2)
    assert [progress.answer_round(runs, {"run": "a", "round": number})["summary"] for number in (1, 2)] == [
        "8 images, being rated",
        "8 images, not rated yet",
    ]


@pytest.mark.parametrize("question", [None, 3, [], {}, {"run": "../x", "round": 1}, {"run": "odd"}, {"run": "nope", "round": "x"}])
def test_odd_questions_get_an_empty_round(runs: Runs, question: object) -> None:
    assert progress.answer_round(runs, question)["images"] == []


# --- library and views ----------------------------------------------------------------------------------------------------------


def test_a_damaged_run_shows_as_such_and_breaks_nothing(runs: Runs) -> None:
    filled_run(runs.folder / "good", rounds=1)
    for name, content in (("cut", "{"), ("list", "[]"), ("odd", '{"schema_version": 1, "prompts": 5}'), ("future", '{"schema_version": 99}')):
        (runs.folder / name).mkdir()
        (runs.folder / name / "config.json").write_text(content)
    filled_run(runs.folder / "nodb", rounds=0).close()
    for file in (runs.folder / "nodb").glob("run.db*"):
        file.unlink()
    (runs.folder / "nodb" / "run.db").write_bytes(b"no database" * 1000)
    views = Views(runs, IDLE)
    cards = {card["run"]: card["kind"] for card in views.values("cut")["library"]["cards"]}
    assert cards == dict(good="run", cut="broken", list="broken", odd="broken", future="broken", nodb="broken")
    for name in cards:
        assert views.values(name)["panel"]["kind"] == ("run" if name == "good" else "broken")
    assert views.first() == "good"


def test_a_missing_run_and_an_empty_folder_have_their_own_words(runs: Runs) -> None:
    views = Views(runs, IDLE)
    assert views.values(None)["panel"]["kind"] == "none"
    assert views.values("gone")["panel"]["kind"] == "missing" and views.values("gone")["board"]["run"] is None


def test_only_what_changed_is_sent(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=1, awaiting=True)
    views = Views(runs, IDLE)
    *first, seen = views.changes("a", None)
    assert not any(skipped(value) for value in first)
    assert all(skipped(value) for value in views.changes("a", seen))
    store.add_event("answer", "something")
    sent = dict(zip((*NAMES, "seen"), views.changes("a", seen), strict=True))
    assert [name for name, value in sent.items() if not skipped(value)] == ["bar", "panel", "seen"]
    assert sent["bar"]["token"] == views.token("a") != first[0]["token"]
    assert views.token(None) == views.token("") and views.changes(None, None)[0]["token"] == views.token("")  # a page without a run asks for ""
    assert skipped(Views(runs, IDLE).changes("a", "not json")[0]) is False


def skipped(value: object) -> bool:
    return isinstance(value, dict) and value.get("__type__") == "update" and len(value) == 1


def test_delete_refuses_a_live_run_and_takes_a_dead_one(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    lock = WorkerLock(store.folder / "worker.lock")
    with pytest.raises(StoreError, match="running"):
        runs.delete("a")
    assert runs.open("a").rounds()
    lock.release()
    runs.delete("a")
    assert runs.names() == [] and list(runs.folder.iterdir()) == []
    with pytest.raises(StoreError, match="cannot name a run"):
        runs.delete("..")


def test_a_run_that_cannot_be_read_can_be_deleted(runs: Runs) -> None:
    filled_run(runs.folder / "a", rounds=1).close()
    (runs.folder / "a" / "run.db").write_text("no database")
    with pytest.raises(StoreError, match="cannot be opened"):
        runs.open("a")
    runs.delete("a")
    assert list(runs.folder.iterdir()) == []


def test_widgets_have_static_templates_and_set_text_as_text() -> None:
    for script in Path("app/widgets").glob("**/*.js"):
        source = script.read_text()
        assert not re.search(r"innerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(", source), script


def test_a_store_opened_twice_is_the_same(runs: Runs) -> None:
    filled_run(runs.folder / "a", rounds=0).close()
    assert isinstance(runs.open("a"), RunStore) and runs.open("a") is runs.open("a")


def test_each_reward_of_a_run_has_a_chart_of_its_own_and_a_mark_in_all(runs: Runs) -> None:
    """kB and points never share an axis; the reward in force stands first, and every chart has a line where it took over."""
    store = filled_run(runs.folder / "r", rounds=4, reward="jpeg_compressibility")
    for number in (3, 4):
        store.set_reward(number, "blend: 1 aesthetic, 0.5 clip_score")
    store.add_metrics(3, dict(held_out_base=0.1, held_out_base_std_error=0.05))
    charts = progress.charts_value(store)["charts"]
    first, second = charts[0], charts[1]
    assert first["title"].startswith("Blend: 1 × Aesthetic") and second["title"] == "JPEG compressibility"
    assert [x for x, _ in first["series"][0]["points"]] == [3, 4] and [x for x, _ in second["series"][0]["points"]] == [1, 2]
    assert first["series"][-1]["label"].startswith("base model") and first["series"][-1]["points"] == [(3, 0.1)]
    assert all([mark["round"] for mark in chart["marks"]] == [3] for chart in charts)
    assert len({chart["key"] for chart in charts}) == len(charts)


def test_what_is_watched_of_one_reward_shares_no_line_with_another_s(runs: Runs) -> None:
    """kB and a blend's standard deviations, and those of two blends, each in its own rounds; the base model's are the first one's."""
    store = filled_run(runs.folder / "r", rounds=4, reward="jpeg_compressibility")
    blends = "blend: 1 aesthetic, 0.5 clip_score", "blend: 1 aesthetic, -1 clip_score"
    for number, reward in ((2, blends[0]), (4, blends[1])):
        store.set_reward(number, reward)
    for number in range(5):
        blend = dict(moved_blend=0.1 * number, watched_blend=1.0) if number > 1 else {}
        store.add_metrics(number, dict(reward_on_trained=float(number), moved_clip_score=0.0) | blend)
    charts = {chart["title"]: chart["series"] for chart in progress.charts_value(store)["charts"]}
    names = ["JPEG compressibility", *map(words.reward, blends)]
    found = [[at for at, _ in charts[f"{name}, on other prompts"][0]["points"]] for name in names]
    assert found == [[0, 1], [2, 3], [4]]
    panel = {series["label"]: [at for at, _ in series["points"]] for series in charts["Other rewards"]}
    assert panel == {f"{names[2]} (optimised)": [4], names[1]: [2, 3], "CLIPScore": [0, 1, 2, 3, 4]}


def test_the_library_tells_the_reward_in_force_from_the_base_model_on(runs: Runs) -> None:
    """After a change of reward the base model's value is that by the new one, also where the round of the change alone was measured; a run that is
    rolled back is told as of that round."""
    store = filled_run(runs.folder / "r", rounds=4, reward="jpeg_compressibility")
    store.add_metrics(0, dict(held_out_reward=-9.0))
    store.add_metrics(2, dict(held_out_reward=-7.0))
    store.set_reward(3, "aesthetic")
    store.add_metrics(3, dict(held_out_base=4.0, held_out_reward=5.0))
    assert library.card(store, IDLE)["held"] == ["4", "5"]
    store.add_metrics(4, dict(held_out_reward=6.0))
    card = library.card(store, IDLE)
    assert (card["reward"], card["held"]) == ("Aesthetic (LAION)", ["4", "6"])
    roll_back(store, 2)
    card, means = library.card(store, IDLE), dict(store.metrics()["reward_mean"])
    assert (card["reward"], card["held"]) == ("JPEG compressibility", ["−9", "−7"])
    assert [card["first"], card["last"]] == [words.number(means[1]), words.number(means[2])]


def test_a_blend_is_made_from_the_form_and_a_wrong_one_refused(runs: Runs, pocket: str) -> None:
    values = form_values(model=pocket, reward="blend")
    assert (
        new_run.create(runs, "mixed", values, "1 aesthetic, -2 jpeg_compressibility").config.reward == "blend: 1 aesthetic, -2 jpeg_compressibility"
    )
    for parts, message in (("", "no part of a blend"), ("1 beauty", "no reward 'beauty'")):
        with pytest.raises(ConfigError, match=message):
            new_run.create(runs, "wrong", values, parts)
    assert not (runs.folder / "wrong").exists()


def test_what_scores_has_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words.reward("aesthetic") == "Aesthetic (LAION)" and words.reward("/home/me/mine.py:blue") == "Your own mine.py:blue"
    assert words.reward("blend: 1 aesthetic, -0.5 /home/me/mine.py:blue") == "Blend: 1 × Aesthetic (LAION), −0.5 × Your own mine.py:blue"
    assert words.reward("whatever an old run says") == "whatever an old run says"


def test_a_run_scored_by_what_this_program_does_not_know_breaks_nothing(runs: Runs) -> None:
    """As of a newer version: the run shows as broken, and the other runs as ever."""
    filled_run(runs.folder / "good", rounds=1)
    store = filled_run(runs.folder / "odd", rounds=1)
    store.set_reward(1, "telepathy")
    views = Views(runs, IDLE)
    found = dict(zip(NAMES, views.changes("odd", None), strict=False))
    assert found["panel"]["kind"] == "broken" and "telepathy" in found["panel"]["text"]
    assert dict(zip(NAMES, views.changes("good", None), strict=False))["panel"]["kind"] == "run"


def test_another_reward_is_a_checked_request_that_shows_until_it_scores(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    assert "Resume" in (run.steer(store, IDLE, "reward", "blend: 1 aesthetic, 0.5 clip_score") or "")
    value = run.panel_value(store, IDLE)
    assert value["wanted"].startswith("Blend") and value["weights"] == dict(aesthetic=1.0, clip_score=0.5) and value["blend"]
    with pytest.raises(RuntimeError, match="no reward"):
        run.steer(store, IDLE, "reward", "beauty")
    assert len(store.pending_requests()) == 1
    store.add_request("reward", reward="/elsewhere/mine.py:f")
    assert "/elsewhere/mine.py:f" in [choice["name"] for choice in run.panel_value(store, IDLE)["rewards"]], "what cannot be chosen can be kept"


def test_what_becomes_of_a_rater_is_told_in_the_history() -> None:
    said = {value: words.decision("rater Anna", value) for value in COUNTS.values()}
    assert len(set(said.values())) == len(said) and said["half"] == "Anna counts half beside others."
