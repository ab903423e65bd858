"""What goes to the browser of a run's curves: few points, no jump lost, and honest costs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from toys import filled_run

from app.curves import MAX_POINTS, Metrics, clock, thin
from app.pages import progress
from app.runs import Runs
from ddpo.config import RunConfig


def chart(**series: list[tuple[int, float | None]]) -> dict:
    return dict(key="c", title="c", series=[dict(label=name, points=points) for name, points in series.items()])


def values(count: int, seed: int) -> list[tuple[int, float | None]]:
    draw = random.Random(seed)
    return [(n, draw.random()) for n in range(1, count + 1)]


def test_a_long_run_keeps_its_jumps_its_gaps_and_its_end() -> None:
    """A single round's jump and a single gap among 1,000 rounds of 20 lines survive, the lines of a chart keep the same rounds, and what is sent
    stays below the limit (gaps come on top: one a stretch at most)."""
    charts = [chart(**{f"line {i}": values(1000, 7 * i + j) for i in range(2)}) for j in range(10)]
    points = charts[3]["series"][1]["points"]
    points[356], points[612] = (357, 50.0), (613, None)
    charts[0]["counts"] = dict(label="n", points=[(n, 8.0) for n in range(1, 1001)])
    assert thin(charts)
    first, second = (dict(series["points"]) for series in charts[3]["series"])
    assert second[357] == 50.0 and second[613] is None and 1000 in second
    assert list(first) == list(second)
    kept = [len(series["points"]) for each in charts for series in (*each["series"], *([each["counts"]] if "counts" in each else []))]
    assert MAX_POINTS / 2 < sum(kept) <= MAX_POINTS + 2 * len(charts)


def test_bands_and_counts_stay_beside_their_points_and_rare_measurements_stay_whole() -> None:
    reward = dict(label="reward", points=values(5000, 1), band=[(n, 0.0, 1.0) for n in range(1, 5001)])
    held = dict(label="held out", points=[(n, 0.5) for n in range(0, 5001, 250)], error=[(n, 0.4, 0.6) for n in range(0, 5001, 250)])
    charts = [dict(series=[reward, held], counts=dict(points=[(n, 8.0) for n in range(1, 5001)]))]
    assert thin(charts)
    rounds = [n for n, _ in reward["points"]]
    assert [row[0] for row in reward["band"]] == rounds == [n for n, _ in charts[0]["counts"]["points"]]
    assert len(held["points"]) == len(held["error"]) == 21


def test_a_short_run_is_sent_as_it_is() -> None:
    charts = [chart(line=values(200, 1))]
    assert not thin(charts) and len(charts[0]["series"][0]["points"]) == 200


def test_a_line_that_grows_keeps_what_it_has_shown() -> None:
    """Stretches lie at fixed rounds: one more round changes at most the last stretch, so that a growing chart does not flicker."""
    before, after = [chart(line=values(3500, 1))], [chart(line=values(3501, 1))]
    assert thin(before) and thin(after)
    old, new = (dict(each[0]["series"][0]["points"]) for each in (before, after))
    assert len(set(old) ^ set(new)) <= 3


def test_the_clock_adds_up_images_scored_and_seconds_of_work() -> None:
    metrics: Metrics = dict(
        scored_images=[(1, 8.0), (2, None), (3, 16.0)],
        seconds_sampling=[(1, 2.0), (2, 2.0), (3, 2.0)],
        seconds_scoring=[(1, 0.5), (3, 0.25)],
        reward_mean=[(0, 1.0), (7, 1.0)],
    )
    assert clock(metrics) == [(1, 8.0, 2.5), (2, 8.0, 4.5), (3, 24.0, 6.8)]
    assert clock({}) == []
    before: Metrics = dict(before_images=[(0, 100.0)], before_seconds=[(0, 60.0)])
    assert clock(metrics | before) == [(1, 108.0, 62.5), (2, 108.0, 64.5), (3, 124.0, 66.8)], "it goes on from another run"


def test_a_long_clock_is_thinned_and_exact_where_it_is_told() -> None:
    metrics: Metrics = dict(scored_images=[(n, 8.0) for n in range(1, 12_346)])
    rows = clock(metrics)
    assert len(rows) <= MAX_POINTS // 3 + 1 and rows[-1][:2] == (12_345, 8.0 * 12_345)
    assert all(images == 8.0 * number for number, images, _ in rows)


@pytest.fixture
def runs(tmp_path: Path):
    found = Runs(tmp_path)
    yield found
    found.close()


def test_the_curves_of_another_run_come_once_and_again_when_it_grows(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=2)
    answer = progress.answer_curves(runs, {"run": "a", "stamp": ""})
    assert answer["value"]["run"] == "a" and answer["value"]["charts"] == progress.charts_value(runs.open("a"))["charts"]
    assert progress.answer_curves(runs, {"run": "a", "stamp": answer["stamp"]}) == dict(stamp=answer["stamp"])
    store.add_metrics(3, dict(reward_mean=math.nan))
    again = progress.answer_curves(runs, {"run": "a", "stamp": answer["stamp"]})
    assert again["value"]["charts"][0]["series"][0]["points"][-1] == (3, None)
    json.dumps(again, allow_nan=False)


@pytest.mark.parametrize("question", [None, 3, {}, {"run": "../x"}, {"run": 4}, {"run": "gone", "stamp": ""}])
def test_what_is_no_run_has_no_curves_and_no_images(runs: Runs, question: object) -> None:
    assert progress.answer_curves(runs, question)["value"] == dict(run=None, charts=[])
    assert progress.answer_strip(runs, question) == dict(images=[])


def test_a_damaged_run_has_no_curves(runs: Runs) -> None:
    store = filled_run(runs.folder / "a", rounds=1)
    store.close()
    (runs.folder / "a" / "config.json").write_text("{")
    assert progress.answer_curves(runs, {"run": "a"})["value"]["charts"] == []


def test_a_round_s_strip_is_a_few_images_of_all_its_prompts(runs: Runs) -> None:
    config = RunConfig(rounds=3, images_per_round=32, images_per_update=32, images_per_prompt=4, prompts=tuple("abcdefgh"))
    store = filled_run(runs.folder / "a", rounds=1, config=config)
    images = progress.answer_strip(runs, {"run": "a", "round": 1})["images"]
    shown = [sample for sample in store.samples(1) if progress.image_url(store, sample) in images]
    assert len(images) == len(shown) == progress.STRIP and {sample.prompt for sample in shown} == set("abcdefgh")
    assert progress.answer_strip(runs, {"run": "a", "round": 9}) == dict(images=[])
