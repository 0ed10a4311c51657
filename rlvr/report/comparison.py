"""``write_comparison`` turns several run folders into one HTML page with their curves laid over
each other."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.page import embed, write_page
from rlvr.report.charts import plan_overlays
from rlvr.report.completions import StepFile
from rlvr.report.found_runs import find_runs, run_names
from rlvr.report.history import MAX_STEPS
from rlvr.report.page import render_comparison
from rlvr.report.problems import follow_problems
from rlvr.report.recorded_run import RunFolder, read_run
from rlvr.report.report import curves_of
from rlvr.report.run_groups import differing, group_runs

ALL_STEPS = 50_000
LEAST_STEPS = 500
"""Runs share this many steps of curves, but each has at least so many."""


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a comparison of runs as one HTML page that needs neither a network nor other files.

    Runs may be going on, stopped or finished, of any task; the page says what is incomplete.

    Args:
        folders: Run folders, or folders that contain runs.
        out: File to write.

    Returns:
        ``out``.

    Raises:
        ValueError: A folder contains no run, or ``out`` is a folder.
    """
    if out.is_dir():
        raise ValueError(
            f"{out} is a folder; name the HTML file to write, such as {out}/comparison.html"
        )
    paths = find_runs(folders)
    most = steps_for(len(paths))
    runs = [read_run(path, share=1 / len(paths), max_steps=most) for path in paths]
    index = comparison_index(runs, run_names(paths))
    data = {"report": embed(index), "problems": embed(follow_problems(runs))}
    files = {
        _id(i, file): file.text for i, run in enumerate(runs) for file in run.completions.files
    }
    write_page(out, render_comparison(index["title"], index["summary"], {**data, **files}))
    return out


def steps_for(runs: int) -> int:
    """How many steps the curves of each of so many runs may have on one page."""
    return max(LEAST_STEPS, min(MAX_STEPS, ALL_STEPS // runs))


def comparison_index(runs: Sequence[RunFolder], names: Sequence[str]) -> dict[str, Any]:
    """What the page of several runs begins with: all but completions and problems."""
    groups = group_runs(runs, names)
    named = list(zip(names, runs, strict=True))
    return {
        "title": f"{len(runs)} runs compared" if len(runs) != 1 else names[0],
        "summary": _summary(names, len(groups)),
        "notes": [
            f"{name}: {note}" for name, run in named for note in (*run.unfinished, *run.notes)
        ],
        "runs": [{"name": name, **curves_of(run)} for name, run in named],
        "groups": [{"label": group.label, "runs": group.runs} for group in groups],
        "charts": plan_overlays(union(run.history.columns for run in runs)),
        "differences": differing(runs),
        "completions": [
            {
                "id": _id(i, file),
                "run": i,
                "kind": file.kind,
                "step": file.step,
                "rows": file.rows,
                "total": file.total,
            }
            for i, run in enumerate(runs)
            for file in run.completions.files
        ],
        "completionNotes": [
            _embedded(runs),
            *(f"{name}: {note}" for name, run in named for note in run.completions.notes),
        ],
    }


def _embedded(runs: Sequence[RunFolder]) -> str:
    rows = sum(file.rows for run in runs for file in run.completions.files)
    return f"The page contains {rows:,} completions of {len(runs)} runs."


def _id(run: int, file: StepFile) -> str:
    return f"run{run}-{file.id}"


def union(
    all_columns: Iterable[Mapping[str, Sequence[float | None]]],
) -> dict[str, list[float | None]]:
    """All metrics of several runs: those that any run has measured, with one value."""
    merged: dict[str, list[float | None]] = {}
    for columns in all_columns:
        for name, column in columns.items():
            values = merged.setdefault(name, [])
            values += [value for value in column if value is not None][:1]
    return merged


def _summary(names: Sequence[str], groups: int) -> str:
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    if groups == len(names):
        return f"{shown}."
    what = "One experiment" if groups == 1 else f"{groups} experiments"
    return f"{what} with repetitions that differ only in the seed: {shown}."
