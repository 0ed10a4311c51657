"""Put styles, scripts and data into one HTML page that asks no host for anything.

Everything a model or a data set said reaches the page as JSON inside inert script elements and is
shown by the scripts as text, never as markup. A content security policy stands behind that: only
the scripts and the style sheet whose hashes it lists run, and nothing may be fetched.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources

SCRIPTS = (
    "dom.js",
    "scale.js",
    "chart.js",
    "curves.js",
    "timeline.js",
    "tokens.js",
    "detail.js",
    "browser.js",
)
MAIN = "main.js"


def render(title: str, summary: str, data: Mapping[str, str]) -> str:
    """The page.

    Args:
        title: Of the document; any text.
        summary: Shown where scripts do not run; any text.
        data: JSON that holds no ``<`` by the id of the element that carries it.
    """
    style = asset("style.css")
    script = "\n".join(asset(name) for name in (*SCRIPTS, MAIN))
    if "</script" in script or "</style" in style:
        raise AssertionError("an asset would end its own element")
    elements = "\n".join(
        f'<script type="application/json" id="{html.escape(name)}">{text}</script>'
        for name, text in data.items()
    )
    values = {
        "policy": content_policy([script], [style]),
        "title": html.escape(title),
        "summary": html.escape(summary),
        "style": style,
        "data": elements,
        "script": script,
    }
    # One pass, so that a value which looks like a placeholder is left as it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], asset("page.html"))


def content_policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """What a page may load and run: these scripts and style sheets, and nothing from elsewhere.

    Source: W3C Content Security Policy Level 3, hash sources.
    """
    script_hashes = " ".join(f"'sha256-{_hash(text)}'" for text in scripts)
    style_hashes = " ".join(f"'sha256-{_hash(text)}'" for text in styles)
    return (
        f"default-src 'none'; script-src {script_hashes}; style-src {style_hashes}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def asset(name: str) -> str:
    """A file that the package's pages are made of."""
    return resources.files("rlvr.report").joinpath("assets", name).read_text(encoding="utf-8")
