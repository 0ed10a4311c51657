"""The metrics of a run as columns over steps.

``metrics.jsonl`` only grows. A run that was killed after its last checkpoint and resumed writes
some steps a second time; a line whose step is not beyond the line before it therefore rewinds:
what the abandoned attempt wrote from that step on no longer counts. A second line of the same step
that shares no metric with the first (a late evaluation, say) is joined to it instead.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvr.report.lines import enumerate_, read_lines

MAX_STEPS = 20_000


@dataclass(frozen=True)
class History:
    """What was logged: ``columns[name][i]`` is the value of a metric at ``steps[i]``, or None.

    ``not_finite`` names the steps at which a metric was NaN or infinite (None in its column).
    ``rewound`` is true where a resumed run wrote steps again.
    """

    steps: tuple[int, ...] = ()
    columns: dict[str, list[float | None]] = field(default_factory=dict)
    not_finite: dict[str, list[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rewound: bool = False

    def points(self, name: str) -> list[tuple[int, float]]:
        """The (step, value) pairs of a metric, where it was measured."""
        column = self.columns.get(name, [])
        return [(s, v) for s, v in zip(self.steps, column, strict=False) if v is not None]


def read_history(path: Path, max_steps: int = MAX_STEPS) -> History:
    """Read ``metrics.jsonl``; what is odd about it is told in ``notes``.

    Args:
        path: The file.
        max_steps: Runs with more steps are thinned evenly to about this many; steps that hold an
            evaluation stay.
    """
    lines = read_lines(path)
    notes = lines.notes(path.name)
    by_step, rewritten = _join_steps(lines.objects)
    if rewritten:
        notes.append(
            "The run was resumed and wrote some steps again (first at step "
            f"{enumerate_(rewritten)}); the newest values are shown."
        )
    steps = _thin(by_step, max_steps)
    if len(steps) < len(by_step):
        notes.append(f"{len(by_step):,} steps were logged; the curves show {len(steps):,} of them.")
    columns, not_finite = _columns(steps, by_step)
    notes += _not_finite_notes(not_finite)
    if not steps:
        notes.append("No step has been logged yet.")
    return History(tuple(steps), columns, not_finite, tuple(notes), bool(rewritten))


def _join_steps(
    objects: Iterable[Mapping[str, Any]],
) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Rows by step in rising order, and the steps at which a resumed run started again."""
    by_step: dict[int, dict[str, Any]] = {}
    rewritten: list[int] = []
    last = -1
    for line in objects:
        step = line.get("step")
        if not isinstance(step, int | float) or isinstance(step, bool) or step != step // 1:
            continue
        step = int(step)
        row = {key: value for key, value in line.items() if key != "step"}
        if step == last and not row.keys() & by_step[step].keys():
            by_step[step] |= row
            continue
        if step <= last:
            rewritten.append(step)
            by_step = {kept: value for kept, value in by_step.items() if kept < step}
        by_step[step] = row
        last = step
    return by_step, rewritten


def _thin(by_step: Mapping[int, Mapping[str, Any]], most: int) -> list[int]:
    """Every k-th step, so that about ``most`` remain; evaluations and the last step always."""
    steps = list(by_step)
    stride = -(-len(steps) // most)
    return [
        step
        for index, step in enumerate(steps)
        if stride <= 1
        or index % stride == 0
        or index == len(steps) - 1
        or any(key.startswith("eval/") for key in by_step[step])
    ]


def _columns(
    steps: list[int], by_step: Mapping[int, Mapping[str, Any]]
) -> tuple[dict[str, list[float | None]], dict[str, list[int]]]:
    """Numbers to six significant digits; anything that is not a number is not a metric."""
    columns: dict[str, list[float | None]] = {}
    not_finite: dict[str, list[int]] = {}
    for index, step in enumerate(steps):
        for name, value in by_step[step].items():
            if not isinstance(value, int | float):
                continue
            column = columns.setdefault(name, [None] * len(steps))
            if math.isfinite(value):
                column[index] = float(f"{value:.6g}")
            else:
                not_finite.setdefault(name, []).append(step)
    return columns, not_finite


def _not_finite_notes(not_finite: Mapping[str, list[int]]) -> list[str]:
    return [
        f"{name} is not a finite number at step {enumerate_(steps)}; its curve has a gap there."
        for name, steps in not_finite.items()
    ]
