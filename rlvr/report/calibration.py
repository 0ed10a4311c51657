"""Calibration of a reward model's probabilities in the newest evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr.files import read_lines

_NUMBERS = ("low", "high", "count", "probability", "right")


def read_calibration(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The newest reliability of each set in ``calibration.jsonl``, in order of first occurrence.

    Args:
        path: The file; if it is missing, the report omits this section.
        last: Last step to use, because later steps were abandoned; None uses all.

    Returns:
        Mappings of ``label``, ``brier``, ``ece`` and ``bins``.
    """
    rows = [row for row in read_lines(path).objects if _whole(row)]
    newest: dict[str, dict[str, Any]] = {}
    for row in rows:
        if last is None or row["step"] <= last:
            newest[row["set"]] = row
    return [
        {"label": f"{name}, step {row['step']}"} | {k: row[k] for k in ("brier", "ece", "bins")}
        for name, row in newest.items()
    ]


def _whole(row: Mapping[str, Any]) -> bool:
    bins = row.get("bins")
    return (
        isinstance(row.get("set"), str)
        and all(_number(row.get(name)) for name in ("step", "brier", "ece"))
        and isinstance(bins, list)
        and bool(bins)
        and all(isinstance(b, dict) and all(_number(b.get(n)) for n in _NUMBERS) for b in bins)
    )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
