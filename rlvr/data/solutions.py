"""Load solutions with judged steps from JSON lines.

A row is

    {"prompt": text or messages, "steps": [text, ...], "label": 2}            the first wrong step
    {"prompt": ..., "steps": [...], "step_labels": [true, true, false, null]}
    {"prompt": ..., "response": text, "label": 2}                             steps are found in it

``completions`` and ``labels`` may replace ``steps`` and ``step_labels``, as in TRL (whose older
data sets call a list of labels ``label``), and ``problem`` may replace ``prompt``, as in
ProcessBench (arXiv:2412.06559), whose ``label`` counts from 0 and is -1 if every step is right.
Labels are true, false, a number between 0 and 1, or null if the step was not judged. Without step
labels, all steps before the first wrong one count as right, and later ones are not judged. Steps
are joined by blank lines and encoded together once; a step ends where the next one begins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rlvr.data.cells import as_json, as_structure, given
from rlvr.data.consistency import short
from rlvr.data.labelled_responses import Response, messages_of
from rlvr.data.local_file import read_rows
from rlvr.data.rows import Row

JOINT = "\n\n"


@dataclass(frozen=True, slots=True)
class Solution:
    """A solution in steps; ``starts`` are the positions in characters at which they begin.

    ``first_error`` counts from 0; it is -1 if there is no error and None if unknown. ``place`` is
    the file and row from which it was read.
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
        find: Finds where the steps of a text begin, for solutions that are not split into steps.

    Raises:
        ValueError: A file is missing, or a row is not a judged solution; the message names it.
    """
    found = [_solution(row, str(file), find) for file in sources for row in read_rows(file)]
    if not found:
        raise ValueError(f"{', '.join(map(str, sources))}: no solutions found; check the files")
    return found


def _solution(row: Row, where: str, find: Callable[[str], Sequence[int]]) -> Solution:
    values, place = row.values, f"{where}, {row.label}"
    text, starts = _steps(values, place, find)
    judged = as_structure(given(values, "step_labels", "labels"))
    label = as_json(given(values, "label"))
    if judged is None and isinstance(label, list):
        judged, label = label, None
    labels = _labels(judged, len(starts), place)
    first_error = _first_error(label, labels, len(starts), place)
    messages = messages_of(given(values, "prompt", "problem"), place)
    named = given(values, "problem_id", "id")
    problem = place if named is None else str(named)
    response = Response(problem, messages, text, None, None, True, values)
    return Solution(response, starts, first_error, labels, place)


def _steps(
    values: Mapping[str, Any], place: str, find: Callable[[str], Sequence[int]]
) -> tuple[str, tuple[int, ...]]:
    """The text, and the positions in characters at which steps begin."""
    steps = as_structure(given(values, "steps", "completions"))
    text = given(values, "response", "completion")
    if steps is None and isinstance(text, str) and text:
        return text, tuple(find(text))
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s for s in steps):
        raise ValueError(
            f"{place}: steps = {short(steps)} is not a list of texts, and there is no response in "
            "which to find them; name the column steps"
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
            f"{place}: label = {short(given)} is not a step: use -1 if no step is wrong, otherwise "
            f"the first wrong step, 0 to {steps - 1}"
        )
    return given


def step_labels(solution: Solution) -> tuple[float | None, ...] | None:
    """Labels of the steps, derived from the first wrong step if there are no others; or None."""
    if solution.labels is not None or solution.first_error is None:
        return solution.labels
    steps, first = len(solution.starts), solution.first_error
    if first < 0:
        return (1.0,) * steps
    return (1.0,) * first + (0.0,) + (None,) * (steps - first - 1)
