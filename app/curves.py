"""What goes to the browser of a run's curves: few enough points, and what each round has cost. Pure functions of metrics."""

from __future__ import annotations

from itertools import accumulate, islice
from typing import Any

from ddpo.figure import extremes
from ddpo.fork import BEFORE
from ddpo.milestones import Metrics

MAX_POINTS = 3000
"""How many points of a run go to the browser at most, over all charts; and how many rounds, each with its cost."""


def clock(metrics: Metrics, limit: int = MAX_POINTS // 3) -> list[tuple[int, float, float]]:
    """(round, images scored, seconds of work), both up to and including that round: the other two horizontal axes.

    Images scored are reward queries. Seconds are those of the phases, waiting for people included; what lies between two workers is not. A run that
    goes on from another one begins with what that one had cost by then (:func:`ddpo.fork.spent`). Of more rounds than ``limit`` every so many, and
    the last.
    """
    images_before, seconds_before = (dict(metrics.get(name, [])).get(0) or 0.0 for name in BEFORE)
    images = dict(metrics.get("scored_images", []))
    phases = [dict(points) for name, points in metrics.items() if name.startswith("seconds_")]
    rounds = sorted({number for points in (images, *phases) for number in points})
    scored = accumulate((images.get(number) or 0.0 for number in rounds), initial=images_before)
    worked = accumulate((sum(points.get(number) or 0.0 for points in phases) for number in rounds), initial=seconds_before)
    rows = [(number, n, round(seconds, 1)) for number, n, seconds in zip(rounds, islice(scored, 1, None), islice(worked, 1, None), strict=True)]
    every = max(1, -(-len(rows) // limit))
    return [row for i, row in enumerate(rows) if i % every == 0 or row is rows[-1]]


def thin(charts: list[dict[str, Any]], limit: int = MAX_POINTS) -> bool:
    """Leave rounds out where there are more points than a browser should draw; whether that was so.

    A chart's rounds are cut into stretches. Of each stretch those stay where one of its lines is lowest or highest, so that no jump is lost, and the
    first without a value, so that a gap stays a gap; and so does the last round. The lines of a chart keep the same rounds.
    """
    columns = [part for chart in charts for part in _columns(chart)]
    if sum(map(len, columns)) <= limit:
        return False
    most = max(2, limit // len(columns))
    for chart in charts:
        long = [series for series in chart["series"] if len(series["points"]) > most]
        if not long:
            continue
        rounds = sorted({number for series in long for number, _ in series["points"]})
        width = -(-len(rounds) // max(1, most // (2 * len(long))))
        kept = {rounds[-1]}.union(*(extremes(series["points"], width) for series in long))
        for series in (*long, *([chart["counts"]] if "counts" in chart else [])):
            for part in ("points", "band", "error"):
                if series.get(part):
                    series[part] = [row for row in series[part] if row[0] in kept]
    return True


def _columns(chart: dict[str, Any]) -> list[list[Any]]:
    found = [series.get(part) for series in chart["series"] for part in ("points", "band", "error")]
    return [column for column in (*found, chart.get("counts", {}).get("points")) if column]
