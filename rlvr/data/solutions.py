"""Solutions whose steps somebody judged, from JSON lines.

A row is

    {"prompt": text or messages, "steps": [text, ...], "label": 2}            the first wrong step
    {"prompt": ..., "steps": [...], "step_labels": [true, true, false, null]}
    {"prompt": ..., "response": text, "label": 2}                             steps are found in it

``problem`` may stand for ``prompt``, as in ProcessBench (arXiv:2412.06559), whose ``label`` counts
from 0 and is -1 where every step is right. Labels are true, false, a number between 0 and 1, or
null where nobody judged; without them a first wrong step stands for right steps before it, and says
nothing about those after it. Steps are joined by blank lines and tokenised once, all together; a
step ends where the next one begins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rlvr.data.consistency import short
from rlvr.data.files import read_rows
from rlvr.data.responses import Response, messages_of
from rlvr.data.rows import Row

JOINT = "\n\n"


@dataclass(frozen=True, slots=True)
class Solution:
    """A solution in steps; ``starts`` are the characters of its text at which they begin.

    ``first_error`` counts from 0 and is -1 where there is none, None where nobody said.
    ``place`` is where it was read.
    """

    response: Response
    starts: tuple[int, ...]
    first_error: int | None
    labels: tuple[float | None, ...] | None
    place: str


def load_solutions(sources: Sequence[Path], find: Callable[[str], Sequence[int]]) -> list[Solution]:
    """Read solutions.

    Args:
        sources: JSONL (or .json, .csv, .parquet) files.
        find: Where the steps of a text begin, for solutions that are not given in steps.

    Raises:
        ValueError: No such file, or a row that is no judged solution; it is named.
    """
    found = [_solution(row, str(file), find) for file in sources for row in read_rows(file)]
    if not found:
        raise ValueError(f"{', '.join(map(str, sources))}: there are no solutions")
    return found


def _solution(row: Row, where: str, find: Callable[[str], Sequence[int]]) -> Solution:
    values, place = row.values, f"{where}, {row.label}"
    text, starts = _steps(values, place, find)
    labels = _labels(values.get("step_labels"), len(starts), place)
    first_error = _first_error(values.get("label"), labels, len(starts), place)
    messages = messages_of(values.get("prompt", values.get("problem")), place)
    problem = str(values.get("problem_id", values.get("id", place)))
    response = Response(problem, messages, text, None, None, True, values)
    return Solution(response, starts, first_error, labels, place)


def _steps(
    values: Mapping[str, Any], place: str, find: Callable[[str], Sequence[int]]
) -> tuple[str, tuple[int, ...]]:
    """The text, and the characters at which steps begin."""
    steps, text = values.get("steps"), values.get("response", values.get("completion"))
    if steps is None and isinstance(text, str) and text:
        return text, tuple(find(text))
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s for s in steps):
        raise ValueError(
            f"{place}: steps = {short(steps)} is no list of texts, and there is no response to "
            "find them in; name the column steps"
        )
    return JOINT.join(steps), (0, *accumulate(len(step) + len(JOINT) for step in steps[:-1]))


def _labels(given: object, steps: int, place: str) -> tuple[float | None, ...] | None:
    if given is None:
        return None
    whole = isinstance(given, list) and len(given) == steps
    if not whole or not all(x is None or _in_unit(x) for x in given):  # type: ignore[attr-defined]
        raise ValueError(
            f"{place}: step_labels = {short(given)} must be a list of {steps}, one for each step: "
            "true, false, a number between 0 and 1, or null"
        )
    return tuple(None if label is None else float(label) for label in given)  # type: ignore[attr-defined]


def _in_unit(label: object) -> bool:
    return isinstance(label, bool | int | float) and 0 <= label <= 1


def _first_error(
    given: object, labels: tuple[float | None, ...] | None, steps: int, place: str
) -> int | None:
    if given is None and labels is not None:
        wrong = [k for k, label in enumerate(labels) if label is not None and label < 0.5]
        return wrong[0] if wrong else None if None in labels else -1
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not -1 <= given < steps:
        raise ValueError(
            f"{place}: label = {short(given)} is no step: -1 where none is wrong, else 0 to "
            f"{steps - 1}, the first that is"
        )
    return given


def step_labels(solution: Solution) -> tuple[float | None, ...] | None:
    """Labels of the steps, from the first wrong one where there are no others; or None."""
    if solution.labels is not None or solution.first_error is None:
        return solution.labels
    steps, first = len(solution.starts), solution.first_error
    if first < 0:
        return (1.0,) * steps
    return (1.0,) * first + (0.0,) + (None,) * (steps - first - 1)
