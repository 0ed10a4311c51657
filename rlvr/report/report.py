"""``write_report`` turns a run folder into one HTML page.

The page is written to a temporary file and moved into place, so a reader never sees half of it and
an older report survives a full disk.
"""

from pathlib import Path
from typing import Any

from rlvr.page import embed, write_page
from rlvr.report.charts import plan_charts
from rlvr.report.headline import headline
from rlvr.report.page import render
from rlvr.report.problems import follow_problems
from rlvr.report.recorded_run import RunFolder, read_run


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run as one HTML page that needs neither a network nor other files.

    It works for a run that is still running, was killed, or was resumed; the page says what is
    incomplete.

    Args:
        run: Run folder, with at least ``recipe.yaml`` and ``metrics.jsonl``.
        out: File to write; None is ``report.html`` in the run folder.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``run`` is not a run folder, or ``out`` is a folder.
    """
    out = run / "report.html" if out is None else out
    if out.is_dir():
        raise ValueError(
            f"{out} is a folder; name the HTML file to write, such as {out}/report.html"
        )
    page = _page(read_run(run))
    write_page(out, page)
    return out


def report_index(run: RunFolder) -> dict[str, Any]:
    """What the page of a run begins with: all but completions and problems."""
    return {
        **headline(run),
        **curves_of(run),
        "notes": (*run.unfinished, *run.notes),
        "recipe": run.recipe_text,
        "charts": plan_charts(run.history.columns),
        "calibration": run.calibration,
        "disputes": run.disputes,
        "alarms": run.alarms,
        "books": run.books,
        "timeline": run.timeline,
        "completions": [
            {"id": f.id, "kind": f.kind, "step": f.step, "rows": f.rows, "total": f.total}
            for f in run.completions.files
        ],
        "completionNotes": run.completions.notes,
    }


def curves_of(run: RunFolder) -> dict[str, Any]:
    """One run's curves, as the page's scripts read them."""
    return {
        "steps": run.history.steps,
        "columns": run.history.columns,
        "notFinite": run.history.not_finite,
        "tokens": run.history.tokens,
        "seconds": run.history.seconds,
    }


def _page(run: RunFolder) -> str:
    index = report_index(run)
    data = {"report": embed(index), "problems": embed(follow_problems([run]))}
    files = {file.id: file.text for file in run.completions.files}
    return render(index["title"], index["summary"], {**data, **files})
