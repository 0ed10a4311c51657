"""How well a reward model's probabilities were calibrated, as the newest evaluation found them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr.report.lines import read_lines

_NUMBERS = ("low", "high", "count", "probability", "right")


def read_calibration(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The newest reliability of each set in ``calibration.jsonl``, in the order of first mention.

    Args:
        path: The file; the report does without it where it is missing.
        last: Steps after this one were abandoned and do not count; None takes all.

    Returns:
        Mappings of ``label``, ``brier``, ``ece`` and ``bins``.
    """
    rows = [row for row in read_lines(path).objects if _whole(row)] if path.is_file() else []
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
