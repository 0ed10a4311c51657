"""What a sweep found: final metrics of every combination, mean and deviation over seeds."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, stdev
from typing import Any

from rlvr.files import write_atomically
from rlvr.sweep.grid import SEED, Sweep, SweepRun

JSON_FILE, CSV_FILE, PAGE = "sweep.json", "sweep.csv", "comparison.html"
# Figures of the machine, which say nothing about the combination.
_LEFT_OUT = ("time/", "throughput/", "memory/", "sync/", "engine/")
# What is printed, in this order.
_SHOWN = (
    r"eval/.+/(accuracy|reward_accuracy|auc|auc_within|nll)",
    r"reward/(mean|correct)",
    r"(preference|sft|rm|prm)/(loss|reward_accuracy|token_accuracy|accuracy)",
)
_COLUMNS = 5


@dataclass(frozen=True)
class Combination:
    """Runs that differ in their seed alone.

    Attributes:
        values: Of the axes but the seed.
        runs: Names of the runs that have figures.
        missing: Names of those that have none yet.
        metrics: Mean, standard deviation (of a sample; None of one run) and number by name.
    """

    values: dict[str, Any]
    runs: list[str]
    missing: list[str]
    metrics: dict[str, tuple[float, float | None, int]]


def final_metrics(run: SweepRun) -> dict[str, float]:
    """The last value of every metric that a run logged, but for those of the machine."""
    from rlvr.runs.log import read_metrics

    path = run.folder / "metrics.jsonl"
    found: dict[str, float] = {}
    for row in read_metrics(path) if path.is_file() else []:
        found |= {name: value for name, value in row.items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if not name.startswith(_LEFT_OUT)}


def figures_of(run: SweepRun) -> str:
    """The metrics of a run that are shown, in one line."""
    final = final_metrics(run)
    return "  ".join(f"{name} {final[name]:.4g}" for name in _chosen(final))


def combine(sweep: Sweep) -> list[Combination]:
    """The sweep's combinations, in the order of its runs."""
    groups: dict[str, list[SweepRun]] = {}
    for run in sweep.runs:
        values = {key: value for key, value in run.values.items() if key != SEED}
        groups.setdefault(json.dumps(values, default=str), []).append(run)
    return [_combination(runs) for runs in groups.values()]


def _combination(runs: Sequence[SweepRun]) -> Combination:
    finals = {run.name: final_metrics(run) for run in runs}
    names = dict.fromkeys(name for final in finals.values() for name in final if name != "step")
    metrics = {}
    for name in names:
        values = [float(f[name]) for f in finals.values() if name in f and isfinite(f[name])]
        if values:
            spread = stdev(values) if len(values) > 1 else None
            metrics[name] = (fmean(values), spread, len(values))
    return Combination(
        {key: value for key, value in runs[0].values.items() if key != SEED},
        [name for name, final in finals.items() if final],
        [name for name, final in finals.items() if not final],
        metrics,
    )


def write_summary(sweep: Sweep) -> str:
    """Write the figures as JSON and CSV into the sweep's folder; a table of the main ones."""
    combinations = combine(sweep)
    rows = [
        {
            "settings": item.values,
            "runs": item.runs,
            "missing": item.missing,
            "metrics": {
                name: {"mean": mean, "std": spread, "runs": count}
                for name, (mean, spread, count) in item.metrics.items()
            },
        }
        for item in combinations
    ]
    content = {"recipe": str(sweep.recipe), "combinations": rows}
    write_atomically(sweep.out / JSON_FILE, json.dumps(content, indent=1, default=str))
    write_atomically(sweep.out / CSV_FILE, _csv(sweep, combinations))
    return _table(sweep, combinations)


def _keys(sweep: Sweep) -> list[str]:
    return [axis.key for axis in sweep.axes if axis.key != SEED]


def _csv(sweep: Sweep, combinations: Sequence[Combination]) -> str:
    """A line for each combination and metric."""
    text, keys = io.StringIO(), _keys(sweep)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, "metric", "mean", "std", "runs"])
    for item in combinations:
        values = [_text(item.values[key]) for key in keys]
        for name, (mean, spread, count) in item.metrics.items():
            writer.writerow([*values, name, mean, "" if spread is None else spread, count])
    return text.getvalue()


def _table(sweep: Sweep, combinations: Sequence[Combination]) -> str:
    keys = _keys(sweep)
    every = dict.fromkeys(name for item in combinations for name in item.metrics)
    shown = _chosen(every)
    lines = [[*keys, *shown, "runs"]]
    for item in combinations:
        figures = [_figure(item.metrics.get(name)) for name in shown]
        count = f"{len(item.runs)} of {len(item.runs) + len(item.missing)}"
        lines.append([*(_text(item.values[key]) for key in keys), *figures, count])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _figure(found: tuple[float, float | None, int] | None) -> str:
    if found is None:
        return "-"
    mean, spread, _ = found
    return f"{mean:.4g}" if spread is None else f"{mean:.4g} ± {spread:.2g}"


def _chosen(names: Mapping[str, Any]) -> list[str]:
    found = [name for form in _SHOWN for name in names if re.fullmatch(form, name)]
    return found[:_COLUMNS]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
