"""The pages of a dashboard, and the news for them: what is shown of runs that go on.

A page begins with all that was logged by then; afterwards it asks for what was appended since.
Completions are not in it: it fetches those of a step when they are looked at.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rlvr.files import LinePosition, Row, read_new_lines
from rlvr.page import embed
from rlvr.report.charts import plan_charts, plan_overlays
from rlvr.report.comparison import comparison_index, steps_for
from rlvr.report.completions import list_steps
from rlvr.report.history import MAX_STEPS, join_history, read_row, spent
from rlvr.report.page import render, render_comparison, render_overview
from rlvr.report.problems import follow_problems
from rlvr.report.recorded_run import RunFolder, read_run
from rlvr.report.report import report_index
from rlvr.report.run_state import WatchedRun

EVERY_S = 2.0
"""Seconds between two requests of a page."""
SHARE = 0.2
"""How much of a report's room for completions is read to find out what problems there are."""
_WHOLE = 1 << 40


def overview_page(folders: Sequence[Path], runs: Mapping[str, WatchedRun]) -> str:
    """The list of runs."""
    title = ", ".join(folder.resolve().name or str(folder) for folder in folders)
    index = {"title": title, "runs": overview(runs), "live": {"every": EVERY_S}}
    return render_overview(title, f"{len(runs)} runs", {"report": embed(index)})


def overview(runs: Mapping[str, WatchedRun]) -> list[dict[str, Any]]:
    """What the list says of each run."""
    return [{"name": name, **run.describe()} for name, run in runs.items()]


def run_page(name: str, path: Path) -> str:
    """The page of one run."""
    run, position = _read(path, SHARE, MAX_STEPS)
    index = report_index(run) | _live({name: path}, [position])
    data = {"report": embed(index), "problems": embed(follow_problems([run]))}
    return render(index["title"], index["summary"], data, live=True)


def comparison_page(runs: Mapping[str, Path]) -> str:
    """The page of several runs."""
    read = [_read(path, SHARE / len(runs), steps_for(len(runs))) for path in runs.values()]
    folders = [run for run, _ in read]
    index = comparison_index(folders, list(runs)) | _live(runs, [position for _, position in read])
    data = {"report": embed(index), "problems": embed(follow_problems(folders))}
    return render_comparison(index["title"], index["summary"], data, live=True)


def news(run: WatchedRun, name: str, since: str, known_files: int, place: int) -> dict[str, Any]:
    """What a page does not know yet of a run.

    Args:
        run: The run.
        name: Its name.
        since: How far the page has read, as ``position`` of the last news.
        known_files: How many files of completions it knows.
        place: The run's index in the page.

    Returns:
        ``state`` (see :meth:`WatchedRun.describe`), ``position``, ``restarted`` (what the page has
        no longer counts), ``rows``, and ``files`` if there are others now.
    """
    new = read_new_lines(run.path / "metrics.jsonl", parse_position(since))
    files = completion_files(place, name, run.path)
    return {
        "state": run.describe(),
        "position": format_position(new.position),
        "restarted": new.restarted,
        "rows": [_row(row) for row in new.objects if isinstance(row.get("step"), int)],
        "files": files if len(files) != known_files else None,
    }


def plan(runs: Iterable[WatchedRun], *, overlay: bool) -> list[dict[str, Any]]:
    """The charts for the metrics that runs have by now."""
    columns: dict[str, list[float | None]] = {}
    for run in runs:
        run.poll()
        columns |= {name: [value] for name, value in run.latest.items()}
    return plan_overlays(columns) if overlay else plan_charts(columns)


def completion_files(place: int, name: str, path: Path) -> list[dict[str, Any]]:
    """The files of completions of a run, with the address of each relative to the page."""
    return [
        {
            "id": f"run{place}-completions-{kind}-{step}",
            "run": place,
            "kind": kind,
            "step": step,
            "url": f"completions?{urlencode({'run': name, 'kind': kind, 'step': step})}",
        }
        for kind, step in list_steps(path)
    ]


def parse_position(text: str) -> LinePosition:
    """``INODE-OFFSET`` as a position; the start for anything else."""
    inode, _, offset = text.partition("-")
    numbers = inode.isascii() and inode.isdigit() and offset.isascii() and offset.isdigit()
    return LinePosition(int(inode), int(offset)) if numbers and len(text) < 50 else LinePosition()


def format_position(position: LinePosition) -> str:
    """The text of a position, see :func:`parse_position`."""
    return f"{position.inode}-{position.offset}"


def _read(path: Path, share: float, max_steps: int) -> tuple[RunFolder, LinePosition]:
    """A run, its history read to a position at which the page can go on."""
    run = read_run(path, share, max_steps, begun=True)
    lines = read_new_lines(path / "metrics.jsonl", LinePosition(), _WHOLE)
    history = join_history(lines.objects, max_steps=max_steps)
    return replace(run, history=history, unfinished=()), lines.position


def _live(runs: Mapping[str, Path], positions: Sequence[LinePosition]) -> dict[str, Any]:
    files = [
        file
        for place, (name, path) in enumerate(runs.items())
        for file in completion_files(place, name, path)
    ]
    return {
        "completions": files,
        "completionNotes": [],
        "live": {
            "every": EVERY_S,
            "runs": list(runs),
            "positions": [format_position(position) for position in positions],
        },
    }


def _row(row: Row) -> dict[str, Any]:
    values, broken = read_row({name: value for name, value in row.items() if name != "step"})
    tokens, seconds = spent(row)
    return {
        "step": row["step"],
        "values": values,
        "broken": broken,
        "tokens": tokens,
        "seconds": seconds,
    }
