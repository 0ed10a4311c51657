"""The metrics of a run as columns over steps.

``metrics.jsonl`` only grows. A run that was killed after its last checkpoint and resumed writes
some steps a second time. So a line whose step is not larger than that of the line before rewinds
the history: lines of the abandoned attempt from that step on no longer count. A second line of the
same step that shares no metric with the first (such as a late evaluation) is joined to it instead.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from rlvr.files import NOT_FINITE, enumerate_, read_lines

MAX_STEPS = 20_000


@dataclass(frozen=True)
class History:
    """Logged metrics: ``columns[name][i]`` is the value of a metric at ``steps[i]``, or None.

    ``not_finite`` names the steps at which a metric was NaN or infinite (None in its column).
    ``tokens[i]`` and ``seconds[i]`` are what the run had spent by ``steps[i]``, see :func:`spent`.
    ``rewound`` is true if a resumed run wrote steps again.
    """

    steps: tuple[int, ...] = ()
    columns: dict[str, list[float | None]] = field(default_factory=dict)
    not_finite: dict[str, list[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rewound: bool = False
    tokens: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()

    def points(self, name: str) -> list[tuple[int, float]]:
        """The (step, value) pairs at which a metric was measured."""
        column = self.columns.get(name, [])
        return [(s, v) for s, v in zip(self.steps, column, strict=False) if v is not None]


def read_history(path: Path, max_steps: int = MAX_STEPS) -> History:
    """Read ``metrics.jsonl``; ``notes`` describes anything unusual.

    Args:
        path: The file.
        max_steps: Runs with more steps are thinned evenly to about this many; steps with an
            evaluation are kept.
    """
    lines = read_lines(path)
    return join_history(lines.objects, lines.notes(path.name), max_steps)


def join_history(
    rows: Iterable[Mapping[str, Any]], notes: Sequence[str] = (), max_steps: int = MAX_STEPS
) -> History:
    """The history that the rows of a ``metrics.jsonl`` tell, after notes on how they were read."""
    notes = list(notes)
    by_step, rewritten = _join_steps(rows)
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
    tokens, seconds = _spent(steps, by_step)
    return History(
        tuple(steps), columns, not_finite, tuple(notes), bool(rewritten), tokens, seconds
    )


def spent(row: Mapping[str, Any]) -> tuple[float, float]:
    """The tokens and the seconds of one step: what the run moves along its other two axes.

    Tokens are those of the completions that were sampled, or, without sampling, those that were
    trained on. Seconds are of work (step, evaluation, checkpoint): time in which the run was
    stopped before it was resumed is not among them.
    """
    number = {name: value for name, value in row.items() if _finite(value)}

    def tokens(phase: str, kind: str) -> float:
        rate = number.get(f"throughput/{kind}_tokens_per_second", 0.0)
        return float(rate * number.get(f"time/{phase}", 0.0))

    made = tokens("generate", "generated") or tokens("update", "trained")
    seconds = sum(number.get(f"time/{name}", 0.0) for name in ("step", "evaluate", "checkpoint"))
    return round(made or number.get("sft/target_tokens", 0)), float(seconds)


def read_row(row: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """The finite numbers of a row with six significant digits, and the names of those that are
    not finite; what is no number is ignored."""
    values, broken = {}, []
    for name, value in row.items():
        if value in NOT_FINITE:
            broken.append(name)
        elif _finite(value):
            values[name] = float(f"{value:.6g}")
        elif isinstance(value, float):
            broken.append(name)
    return values, broken


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _spent(
    steps: list[int], by_step: Mapping[int, Mapping[str, Any]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sums over all steps up to each of ``steps``."""
    tokens = dict(zip(by_step, accumulate(spent(row)[0] for row in by_step.values()), strict=True))
    seconds = dict(zip(by_step, accumulate(spent(row)[1] for row in by_step.values()), strict=True))
    return (
        tuple(tokens[step] for step in steps),
        tuple(round(seconds[step], 2) for step in steps),
    )


def _join_steps(
    objects: Iterable[Mapping[str, Any]],
) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Rows by step in increasing order, and the steps at which a resumed run restarted."""
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
    """Every k-th step, so that about ``most`` remain; steps with evaluations and the last are
    kept."""
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
    columns: dict[str, list[float | None]] = {}
    not_finite: dict[str, list[int]] = {}
    for index, step in enumerate(steps):
        values, broken = read_row(by_step[step])
        for name in (*values, *broken):
            columns.setdefault(name, [None] * len(steps))[index] = values.get(name)
        for name in broken:
            not_finite.setdefault(name, []).append(step)
    return columns, not_finite


def _not_finite_notes(not_finite: Mapping[str, list[int]]) -> list[str]:
    return [
        f"{name} is not a finite number at step {enumerate_(steps)}; its curve has a gap there."
        for name, steps in not_finite.items()
    ]
