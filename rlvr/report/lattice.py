"""The lattice of preference losses as one HTML page: the sixteen losses of a model and their
order."""

import html
from pathlib import Path
from typing import Any

from rlvr.page import asset, embed, simple_page, write_page
from rlvr.preference.explain import describe, named_neighbours
from rlvr.preference.lattice import covers, order, single_model_losses

_PACKAGE = "rlvr.report"
_WIDTH, _STEP, _TOP = 960, 110, 50


def write_lattice(out: Path) -> Path:
    """Write the page; it needs neither a network nor other files.

    Raises:
        ValueError: ``out`` is a folder.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name the HTML file to write")
    script, style = asset(_PACKAGE, "lattice.js"), asset(_PACKAGE, "lattice.css")
    data = embed({"plain": _facts(False), "reference": _facts(True)})
    body = (
        f"{asset(_PACKAGE, 'lattice.html')}"
        f'<main><svg viewBox="0 0 {_WIDTH} {2 * _TOP + 4 * _STEP}" role="group" '
        f'aria-label="Lattice of losses">{_drawing()}</svg>'
        '<section id="detail" aria-live="polite"></section></main>'
        f'<script type="application/json" id="losses">{data}</script>'
    )
    write_page(out, simple_page("Preference losses as logic", body, script, style))
    return out


def _facts(reference: bool) -> dict[str, dict[str, Any]]:
    """Facts about every loss on the page, by the name of its node."""
    facts = {}
    edges = covers(single_model_losses())
    for name, structure in single_model_losses().items():
        shown = structure.referenced() if reference else structure
        more, less = (named_neighbours(shown, direction) for direction in ("down", "up"))
        facts[name] = describe(shown) | {
            "asksMore": sorted(a for a, b in edges if b == name),
            "asksLess": sorted(b for a, b in edges if a == name),
            "moreSteps": more[1],
            "lessSteps": less[1],
        }
    return facts


def _places() -> dict[str, tuple[float, float]]:
    """Positions of the nodes, with the most demanding ranks at the top.

    Within a rank, nodes are sorted by the mean position of their neighbours above, so that fewer
    edges cross.
    """
    losses = single_model_losses()
    edges = covers(losses)
    places: dict[str, tuple[float, float]] = {}
    for row, names in enumerate(order(losses)):
        above = {n: [places[a][0] for a, b in edges if b == n and a in places] for n in names}
        ordered = sorted(names, key=lambda n: (sum(above[n]) / max(1, len(above[n])), n))
        for column, name in enumerate(ordered):
            x = _WIDTH * (column + 0.5) / len(ordered)
            places[name] = (x, _TOP + row * _STEP)
    return places


def _drawing() -> str:
    places = _places()
    lines = "".join(
        f'<line x1="{places[a][0]:.0f}" y1="{places[a][1]:.0f}" '
        f'x2="{places[b][0]:.0f}" y2="{places[b][1]:.0f}" data-edge="{a} {b}"/>'
        for a, b in sorted(covers(single_model_losses()))
    )
    nodes = "".join(
        f'<g class="node" data-loss="{html.escape(name)}" tabindex="0" role="button" '
        f'transform="translate({x:.0f},{y:.0f})"><rect x="-52" y="-17" width="104" height="34" '
        f'rx="6"/><text>{html.escape(name)}</text></g>'
        for name, (x, y) in places.items()
    )
    return lines + nodes
