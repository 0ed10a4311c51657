"""A reward model's ranking as one HTML page: best of N compared with other methods, reliability."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr.page import asset, embed, simple_page, write_page

_PACKAGE, _SHARED = "rlvr.report", "rlvr.page"


def write_ranking_page(found: Mapping[str, Any], labels: Mapping[str, str], out: Path) -> Path:
    """Write the page; it needs neither a network nor other files.

    Args:
        found: The result of :func:`rlvr.tasks.tools.rank.rank`.
        labels: Labels of its methods.
        out: The file.

    Raises:
        ValueError: ``out`` is a folder.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name the HTML file to write")
    style = asset(_SHARED, "base.css") + asset(_PACKAGE, "style.css")
    shared = [asset(_SHARED, name) for name in ("dom.js", "scale.js")]
    script = "\n".join([*shared, *(asset(_PACKAGE, f"{n}.js") for n in ("reliability", "ranking"))])
    body = (
        f"{asset(_PACKAGE, 'ranking.html')}"
        f'<script type="application/json" id="ranking">{embed(_data(found, labels))}</script>'
    )
    write_page(out, simple_page("Best of N", body, script, style))
    return out


def _data(found: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    quality, settings = found["quality"], found["settings"]
    measures = {
        "AUC within prompts": quality["auc_within"],
        "Pairs ranked right": quality["pairs"],
        "AUC": quality["auc"],
    }
    facts = [["Problems", str(found["problems"])], ["Responses", str(found["responses"])]]
    facts += [[name, f"{value:.3f}"] for name, value in measures.items() if value is not None]
    facts += [[name.replace("_", " ").capitalize(), str(v)] for name, v in settings.items()]
    return {
        "title": "Best of N by a reward model",
        "facts": facts,
        "curves": [
            {
                "method": method,
                "label": labels[method],
                "points": [{"n": int(n), **point} for n, point in points.items()],
            }
            for method, points in found["curves"].items()
        ],
        "reliability": {"label": "all responses", **quality["calibration"]},
    }
