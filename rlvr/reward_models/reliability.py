"""Reliability diagrams as SVG: what share is right of what was given a probability.

One square for all series, so that a model before and after calibration can be laid over each other;
the area of a mark grows with how many its bin holds. A calibrated model lies on the diagonal.
"""

import html
import math
from collections.abc import Mapping, Sequence

from rlvr.reward_models.calibration import Bin

_SIZE, _LEFT, _TOP, _LINE = 320, 56, 34, 18
_COLOURS = ("#0b6e99", "#c2571a", "#5b8a3a", "#8a4a9e", "#7a6a2f", "#a13d55")


def reliability_svg(series: Mapping[str, Sequence[Bin]], title: str = "") -> str:
    """The diagram as a document of its own, which asks nobody for anything.

    Args:
        series: Bins by name, in the order of the legend.
        title: Above it; any text.

    Raises:
        ValueError: There is no series, or more than there are colours.
    """
    if not 0 < len(series) <= len(_COLOURS):
        raise ValueError(
            f"{len(series)} series in a reliability diagram; give 1 to {len(_COLOURS)}"
        )
    most = max(b.count for bins in series.values() for b in bins)
    drawn = "".join(
        _series(bins, colour, most) for bins, colour in zip(series.values(), _COLOURS, strict=False)
    )
    legend = "".join(
        f'<circle cx="{_LEFT + 8}" cy="{_legend(row) - 4}" r="5" fill="{colour}"/>'
        f'<text x="{_LEFT + 20}" y="{_legend(row)}">{html.escape(name)}</text>'
        for row, (name, colour) in enumerate(zip(series, _COLOURS, strict=False))
    )
    width, height = _LEFT + _SIZE + 24, _legend(len(series))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{_LEFT}" y="20" font-size="14">{html.escape(title)}</text>'
        f"{_axes()}{drawn}{legend}</svg>\n"
    )


def _legend(row: int) -> int:
    return _TOP + _SIZE + 56 + row * _LINE


def _x(value: float) -> float:
    return round(_LEFT + _SIZE * value, 1)


def _y(value: float) -> float:
    return round(_TOP + _SIZE * (1 - value), 1)


def _axes() -> str:
    lines = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIZE}" height="{_SIZE}" fill="none" '
        'stroke="#999"/>',
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#999" '
        'stroke-dasharray="4 4"/>',
        f'<text x="{_x(0.5)}" y="{_y(0) + 34}" text-anchor="middle">mean probability</text>',
        f'<text transform="translate(16 {_y(0.5)}) rotate(-90)" text-anchor="middle">'
        "share right</text>",
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        lines.append(f'<text x="{_x(tick)}" y="{_y(0) + 16}" text-anchor="middle">{tick:g}</text>')
        lines.append(f'<text x="{_x(0) - 6}" y="{_y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    return "".join(lines)


def _series(bins: Sequence[Bin], colour: str, most: int) -> str:
    places = [(_x(b.probability), _y(b.right)) for b in bins]
    path = " ".join(f"{x},{y}" for x, y in places)
    marks = "".join(
        f'<circle cx="{x}" cy="{y}" r="{2 + 7 * math.sqrt(b.count / most):.1f}" fill="{colour}" '
        f'fill-opacity="0.6"><title>{b.count}: {b.probability:.3f}, {b.right:.3f}</title></circle>'
        for (x, y), b in zip(places, bins, strict=True)
    )
    return f'<polyline points="{path}" fill="none" stroke="{colour}"/>{marks}'
