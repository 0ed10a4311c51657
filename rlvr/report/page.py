"""The report's page: the shared shell with this room's scripts and style sheet."""

from collections.abc import Mapping

import rlvr.page

SCRIPTS = (
    "chart.js",
    "curves.js",
    "reliability.js",
    "timeline.js",
    "tokens.js",
    "detail.js",
    "browser.js",
    "main.js",
)


def render(title: str, summary: str, data: Mapping[str, str]) -> str:
    """The page; see :func:`rlvr.page.render`."""
    return rlvr.page.render("rlvr.report", SCRIPTS, title, summary, data)
