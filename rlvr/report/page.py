"""The report's pages: the shared page frame with this room's scripts and style sheet."""

from collections.abc import Mapping

import rlvr.page

_CURVES = ("view.js", "chart.js", "curves.js")
_COMPLETIONS = ("tokens.js", "detail.js", "browser.js", "problems.js", "live.js")
SCRIPTS = (
    *_CURVES,
    "alarms.js",
    "reliability.js",
    "disputes.js",
    "books.js",
    "timeline.js",
    *_COMPLETIONS,
    "main.js",
)
COMPARISON = (*_CURVES, *_COMPLETIONS, "comparison.js")
OVERVIEW = ("live.js", "overview.js")


def render(title: str, summary: str, data: Mapping[str, str], *, live: bool = False) -> str:
    """The page of one run; see :func:`rlvr.page.render`."""
    return rlvr.page.render("rlvr.report", SCRIPTS, title, summary, data, live=live)


def render_comparison(
    title: str, summary: str, data: Mapping[str, str], *, live: bool = False
) -> str:
    """The page of several runs; see :func:`rlvr.page.render`."""
    return rlvr.page.render(
        "rlvr.report", COMPARISON, title, summary, data, shell="comparison.html", live=live
    )


def render_overview(title: str, summary: str, data: Mapping[str, str]) -> str:
    """The list of runs that a dashboard begins with; see :func:`rlvr.page.render`."""
    return rlvr.page.render(
        "rlvr.report", OVERVIEW, title, summary, data, shell="overview.html", live=True
    )
