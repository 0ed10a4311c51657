"""One HTML page of one or several evaluations."""

from eval.report.page import write_page

__all__ = ["write_page"]
