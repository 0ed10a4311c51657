"""Self-contained HTML pages about runs: their curves, and their completions token by token."""

from rlvr.report.comparison import write_comparison
from rlvr.report.report import write_report

__all__ = ["write_comparison", "write_report"]
