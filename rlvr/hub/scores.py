"""Scores of the exported weights in the run's evaluations and in those of ``rlvr eval``.

Errors are standard errors over problems, from the same bootstrap as everywhere. Those of the run
are computed from its graded completions; a metric that was only logged has no known error.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.results import interval, percent, read_results
from eval.statistics import Bootstrap, paired_bootstrap
from rlvr.data.kept import was_cut
from rlvr.files import read_lines
from rlvr.hub.source import Source

_STEP = re.compile(r"step_(\d+)\.jsonl")


@dataclass(frozen=True)
class Score:
    """A line of the card's table; ``value`` is None if there is only text."""

    weights: str
    name: str
    problems: str
    metric: str
    text: str
    interval: str
    how: str
    value: float | None = None
    ours: bool = False


def scores_of(source: Source, evaluations: Sequence[Path]) -> list[Score]:
    """All lines: first from ``rlvr eval`` folders, then from the run itself.

    Raises:
        ValueError: A folder is not a scored evaluation.
    """
    lines = [line for folder in evaluations for line in _evaluated(source, folder)]
    return [*lines, *_answered(source), *_measured(source)]


def _evaluated(source: Source, folder: Path) -> Iterator[Score]:
    results = read_results(folder)
    manifest = results["manifest"]
    ours = _is_ours(source, manifest["model"])
    weights = "this model" if ours else str(manifest["model"]["label"])
    how = f"rlvr eval, protocol {manifest['protocol']}, grader {manifest['grader']}"
    if manifest.get("limit") or manifest.get("only"):
        how += ", a trial on part of the problems"
    for name, item in results["benchmarks"].items():
        found = item["avg"] if "avg" in item else item["greedy"]
        yield Score(
            weights,
            str(item.get("title") or name),
            str(item["problems"]),
            str(item["headline"]),
            f"{percent(found)} %",
            f"{interval(found)} %",
            how,
            float(found["value"]),
            ours,
        )


def _is_ours(source: Source, model: dict[str, Any]) -> bool:
    """Whether an evaluation used these weights: their checkpoint or the final model."""
    where = Path(str(model["path"]))
    last = source.recipe.steps in (None, source.step)
    if model.get("step") is not None:
        run = where.parent.parent
        return bool(model["step"] == source.step) and run.name == source.run.resolve().name
    final = where.name == "model" and where.parent.name == source.run.resolve().name
    return final and last


def _answered(source: Source) -> Iterator[Score]:
    """Evaluation sets that the policy answered before training and with these weights."""
    files = {
        int(match[1]): path
        for path in (source.run / "evaluations").glob("step_*.jsonl")
        if (match := _STEP.fullmatch(path.name)) and int(match[1]) <= source.step
    }
    if not files:
        return
    first, last = min(files), max(files)
    before, after = (_by_set(files[step]) for step in (first, last))
    for name, rates in after.items():
        earlier = before.get(name, {})
        if first < last and earlier.keys() == rates.keys():
            yield _score(_when(first), name, earlier, "accuracy", "evaluation of the run")
        yield _score(_when(last), name, rates, "accuracy", "evaluation of the run", ours=True)
        if first < last and earlier.keys() == rates.keys() and len(rates) > 1:
            yield _change(name, earlier, rates, first, last)


def _when(step: int) -> str:
    return "before training" if step == 0 else f"step {step}"


def _by_set(path: Path) -> dict[str, dict[str, float]]:
    """Share of right completions by set and problem; a completion cut at the limit counts as
    wrong."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in read_lines(path).objects:
        if row.get("correct") is None:
            continue  # its problem has no reference answer
        right = bool(row.get("correct")) and not was_cut(row)
        found[str(row.get("set"))][str(row.get("problem_id"))].append(right)
    return {
        name: {problem: fmean(rights) for problem, rights in problems.items()}
        for name, problems in found.items()
    }


def _score(
    weights: str, name: str, rates: dict[str, float], metric: str, how: str, ours: bool = False
) -> Score:
    estimate = Bootstrap(len(rates), name).estimate(list(rates.values()))
    found = {
        key: value
        for key, value in (("value", estimate.value), ("se", estimate.se))
        if value is not None
    }
    bounds = {"low": estimate.low, "high": estimate.high, "interval": estimate.interval}
    return Score(
        weights,
        name,
        str(len(rates)),
        metric,
        f"{percent(found)} %",
        f"{interval(bounds)} %",
        how,
        estimate.value,
        ours,
    )


def _change(
    name: str, before: dict[str, float], after: dict[str, float], first: int, last: int
) -> Score:
    pair = paired_bootstrap([before[key] for key in after], list(after.values()), name)
    value, se, low, high = (100 * x for x in (pair.difference, pair.se, pair.low, pair.high))
    return Score(
        f"change from {_when(first)} to {_when(last)}",
        name,
        str(len(after)),
        "accuracy",
        f"{value:+.1f} ± {se:.1f} points (p = {pair.p:.2g})",
        f"{low:+.1f} to {high:+.1f} points",
        "paired bootstrap over problems",
    )


_SHARES = ("reward_accuracy", "sign_accuracy", "pair_accuracy")
_SHOWN = (*_SHARES, "auc", "auc_within", "margin", "loss", "brier", "ece")


def _measured(source: Source) -> Iterator[Score]:
    """Logged figures of held-out preferences or responses."""
    history = source.history
    for column in sorted(history.columns):
        match = re.fullmatch(r"eval/([^/]+)/(\w+)", column)
        points = history.points(column)
        if match is None or match[2] not in _SHOWN or not points:
            continue
        counts = dict(history.points(f"eval/{match[1]}/items"))
        chosen = [points[0], points[-1]] if len(points) > 1 else points
        for index, (step, value) in enumerate(chosen):
            count = counts.get(step)
            yield Score(
                _when(step),
                match[1],
                "" if count is None else f"{count:.0f}",
                match[2].replace("_", " "),
                _with_error(match[2], value, count),
                "",
                "evaluation of the run",
                value,
                index == len(chosen) - 1,
            )


def _with_error(metric: str, value: float, count: float | None) -> str:
    """A value with a standard error if it is a share of items, which are taken as independent."""
    if metric not in _SHARES:
        return f"{value:.4g}"
    if metric == "pair_accuracy" or count is None or count < 2:
        return f"{100 * value:.1f} %"
    return f"{100 * value:.1f} ± {100 * math.sqrt(value * (1 - value) / count):.1f} %"
