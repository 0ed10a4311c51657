"""The alarms of a run: when each began and ended, with its evidence; and where charts mark them."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.files import read_lines
from rlvr.runs.alarm_readings import ALARMS

MARKS = "alarm/*"
"""Metrics that are marks in charts and have none of their own."""
MOST = 200
_TEXTS = ("alarm", "action", "evidence", "advice")


def read_alarms(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The alarms of ``alarms.jsonl`` in the order in which they began, the newest `MOST`.

    Args:
        path: The file; it is missing as long as there was none.
        last: Last step to use, because later steps were abandoned; None uses all.

    Returns:
        For each ``alarm``, ``begin``, ``end`` (None while it holds), ``action``, ``evidence`` and
        ``advice``.
    """
    found: list[dict[str, Any]] = []
    for row in read_lines(path).objects:
        if not _whole(row) or (last is not None and row["step"] > last):
            continue
        if row["event"] == "begins":
            texts = {name: str(row.get(name, ""))[:500] for name in _TEXTS}
            found.append({**texts, "begin": row["step"], "end": None})
            continue
        for alarm in found:
            if alarm["alarm"] == row["alarm"] and alarm["end"] is None:
                alarm["end"] = row["step"]
    return found[-MOST:]


def _whole(row: Mapping[str, Any]) -> bool:
    known = row.get("event") in ("begins", "ends") and isinstance(row.get("alarm"), str)
    return known and type(row.get("step")) is int


def marks_of(names: Sequence[str], there: Iterable[str]) -> list[str]:
    """The metrics ``alarm/NAME`` that are to be marked in a chart.

    Args:
        names: Of the metrics that the chart shows.
        there: Of all metrics of the run.
    """
    return [
        mark
        for mark in fnmatch.filter(sorted(there), MARKS)
        if (alarm := ALARMS.get(mark.partition("/")[2])) is not None
        and any(fnmatch.filter(names, pattern) for pattern in alarm.shown)
    ]
