"""``write_report``: a run folder in, one HTML page out.

The page is written beside its place and moved there, so a reader never meets half of it and an
older report survives a full disk.
"""

from pathlib import Path

from rlvr.page import embed, write_page
from rlvr.report.charts import plan_charts
from rlvr.report.headline import headline
from rlvr.report.page import render
from rlvr.report.run_folder import RunFolder, read_run


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run as one HTML page that needs neither network nor other files.

    Works on a run that is still going, was killed or was resumed; what that left incomplete is
    said in the page.

    Args:
        run: Run folder, with at least ``recipe.yaml`` and ``metrics.jsonl``.
        out: File to write; None is ``report.html`` in the run folder.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``run`` is no run folder, or ``out`` is a folder.
    """
    out = run / "report.html" if out is None else out
    if out.is_dir():
        raise ValueError(
            f"{out} is a folder; name the HTML file to write, such as {out}/report.html"
        )
    page = _page(read_run(run))
    write_page(out, page)
    return out


def _page(run: RunFolder) -> str:
    head = headline(run)
    files = run.completions.files
    index = {
        **head,
        "notes": run.notes,
        "recipe": run.recipe_text,
        "steps": run.history.steps,
        "columns": run.history.columns,
        "notFinite": run.history.not_finite,
        "charts": plan_charts(run.history.columns),
        "calibration": run.calibration,
        "timeline": run.timeline,
        "completions": [
            {"id": f.id, "kind": f.kind, "step": f.step, "rows": f.rows, "total": f.total}
            for f in files
        ],
        "completionNotes": run.completions.notes,
    }
    data = {"report": embed(index), **{file.id: file.text for file in files}}
    return render(head["title"], head["summary"], data)
