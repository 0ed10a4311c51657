"""The curves of a card as pictures: charts of the run's report, drawn for a text page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.report.charts import LEARNING, POLICY, plan_charts
from rlvr.report.history import History

MOST = 6

_CHOSEN = (
    "Accuracy",
    "Reward",
    "Pairs ranked right",
    "Margin",
    "Chosen and rejected log-probabilities",
    "Log-ratios by label",
    "Response length",
    "Entropy",
    "KL divergence",
    "Preference loss",
)
_SHARES = ("accuracy", "auc", "auc_within")


@dataclass(frozen=True)
class Picture:
    """A drawn chart: its file and its caption."""

    name: str
    title: str
    caption: str


def draw_curves(history: History, folder: Path) -> list[Picture]:
    """Draw up to six charts as PNG files into ``folder``; charts with fewer than two points are
    skipped."""
    charts = [chart for chart in _charts(history) if _points(chart, history)][:MOST]
    pictures = []
    for chart in charts:
        folder.mkdir(parents=True, exist_ok=True)
        name = "".join(c if c.isalnum() else "_" for c in chart["title"].lower()) + ".png"
        _draw(chart, history, folder / name)
        pictures.append(Picture(name, chart["title"], chart["help"]))
    return pictures


def _charts(history: History) -> list[Mapping[str, Any]]:
    """The selected charts in order, then the charts of other held-out figures."""
    planned = plan_charts(history.columns)
    named = {chart["title"]: chart for chart in planned if chart["section"] in (LEARNING, POLICY)}
    others = [
        chart
        for chart in planned
        if chart["section"] == "More"
        and all(
            series["metric"].startswith("eval/") and series["metric"].endswith(_SHARES)
            for series in chart["series"]
        )
    ]
    return [*(named[title] for title in _CHOSEN if title in named), *others]


def _points(chart: Mapping[str, Any], history: History) -> bool:
    return any(len(history.points(series["metric"])) > 1 for series in chart["series"])


def _draw(chart: Mapping[str, Any], history: History, path: Path) -> None:
    # Draw without pyplot, which keeps global state in the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for series in chart["series"]:
        points = history.points(series["metric"])
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        mark = "o" if len(points) < 40 else ""
        style = "--" if series["dashed"] else "-"
        axis.plot(steps, values, style, marker=mark, markersize=3, label=series["label"])
    axis.set_title(chart["title"], fontsize=11)
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    if chart["format"] == "fraction":
        axis.set_ylim(-0.02, 1.02)
    if len(chart["series"]) > 1:
        axis.legend(fontsize=8)
    # Omit the version of matplotlib, so that the same run gives the same file.
    figure.savefig(path, dpi=120, metadata={"Software": None})
