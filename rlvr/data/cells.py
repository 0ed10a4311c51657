"""Values of rows as the type that a field wants.

A CSV file has no types: its cells are :class:`Cell`, and a cell may stand for a number, true or
false, nothing, or a list or object in JSON. Where a field wants text, a cell is that text.
"""

import json
from collections.abc import Mapping
from typing import Any

_TRUE, _FALSE = frozenset({"true", "1", "1.0"}), frozenset({"false", "0", "0.0"})


class Cell(str):
    """A cell of a CSV file."""

    __slots__ = ()


def given(row: Mapping[str, Any], *names: str) -> Any:  # noqa: ANN401  (data holds anything)
    """The first of the columns that has a value, or None; an empty cell has none."""
    for name in names:
        value = row.get(name)
        if value is not None and not (isinstance(value, Cell) and not value.strip()):
            return value
    return None


def as_truth(value: object) -> bool | None:
    """True or false, or None if the value is neither: 0 and 1 are, and the words."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if not isinstance(value, str):
        return None
    text = value.strip().lower()
    if not isinstance(value, Cell) and text not in ("true", "false"):
        return None
    return True if text in _TRUE else False if text in _FALSE else None


def as_number(value: object) -> float | None:
    """A number, or None if the value is none (true and false are none)."""
    if isinstance(value, bool) or not isinstance(value, int | float | Cell):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def as_json(value: object) -> object:
    """A cell that holds a JSON value as that value; anything else unchanged."""
    if isinstance(value, Cell):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def as_structure(value: object) -> object:
    """A cell that holds a list or an object in JSON as such; anything else unchanged."""
    found = as_json(value)
    return found if isinstance(found, list | dict) else value
