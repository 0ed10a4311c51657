"""When each phase of the last steps ran, by lane: what overlapped, and what waited."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.files import read_lines

MAX_STEPS = 200
# In reading order; the number is a colour from 1 to 8.
_PHASES = {
    "generate": 1,
    "verify": 3,
    "load": 6,
    "wait": 8,
    "update": 2,
    "sync": 4,
    "evaluate": 5,
    "checkpoint": 7,
}
_LANES = ("engine", "learner")


def read_timeline(path: Path, last: int | None = None) -> dict[str, Any]:
    """The spans of ``timeline.jsonl``, for the newest steps.

    Args:
        path: The file; if it is missing, the report omits this section.
        last: Last step to use, because later steps were abandoned; None uses all.

    Returns:
        The names of ``lanes`` and ``phases``, and ``spans`` as [lane, phase, step, begin, end] with
        indices into both and times in seconds since the first span.
    """
    rows = [row for row in read_lines(path).objects if _whole(row)]
    rows = [row for row in rows if last is None or row["step"] <= last]
    newest = sorted({row["step"] for row in rows})[-MAX_STEPS:]
    rows = sorted((row for row in rows if row["step"] in set(newest)), key=lambda row: row["begin"])
    lanes = _ordered(_LANES, [row["lane"] for row in rows])
    phases = _ordered(list(_PHASES), [row["phase"] for row in rows])
    origin = rows[0]["begin"] if rows else 0.0
    return {
        "lanes": lanes,
        "phases": [{"name": name, "color": _PHASES.get(name, 8)} for name in phases],
        "spans": [
            [
                lanes.index(row["lane"]),
                phases.index(row["phase"]),
                row["step"],
                round(row["begin"] - origin, 3),
                round(row["end"] - origin, 3),
            ]
            for row in rows
        ],
    }


def _whole(row: Mapping[str, Any]) -> bool:
    words = all(isinstance(row.get(name), str) for name in ("lane", "phase"))
    numbers = all(
        isinstance(value := row.get(name), int | float) and not isinstance(value, bool)
        for name in ("step", "begin", "end")
    )
    return words and numbers


def _ordered(known: Sequence[str], found: Sequence[str]) -> list[str]:
    there = set(found)
    return [name for name in known if name in there] + sorted(there - set(known))
