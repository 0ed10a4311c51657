"""One HTML page of one or several evaluations: tables, plots and a browser of samples."""

from eval.report.page import write_report

__all__ = ["write_report"]
