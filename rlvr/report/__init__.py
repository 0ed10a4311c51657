"""One self-contained HTML page about a run: curves, and its completions token by token."""

from rlvr.report.report import write_report

__all__ = ["write_report"]
