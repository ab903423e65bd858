"""Files that people take away from a run."""

from __future__ import annotations

import csv
import io

from fastapi import APIRouter, HTTPException, Response

from app.runs import Runs
from ddpo.store import StoreError


def build_downloads(runs: Runs) -> APIRouter:
    """Routes under ``/studio/runs/{run}`` that answer with a file."""
    router = APIRouter()

    @router.get("/studio/runs/{run}/metrics.csv")
    def metrics_csv(run: str) -> Response:
        try:
            text = metrics_table(runs.open(run).metrics())
        except StoreError as error:
            raise HTTPException(404, str(error)) from error
        headers = {"Content-Disposition": f'attachment; filename="{run}-metrics.csv"', "Cache-Control": "no-store"}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    return router


def metrics_table(metrics: dict[str, list[tuple[int, float | None]]]) -> str:
    """Every metric as a column, every round as a row; what is unknown is an empty cell."""
    names = sorted(metrics)
    columns = [dict(metrics[name]) for name in names]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["round", *names])
    for number in sorted({number for column in columns for number in column}):
        writer.writerow([number, *("" if (value := column.get(number)) is None else value for column in columns)])
    return out.getvalue()
