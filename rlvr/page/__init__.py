"""Put styles, scripts and data into one HTML page that asks no host for anything.

Everything a model or a data set said reaches the page as JSON inside inert script elements and is
shown by the scripts as text, never as markup. A content security policy stands behind that: only
the scripts and the style sheet whose hashes it lists run, and nothing may be fetched.

Shared by the report of a run and the page of evaluations, each of which brings assets of its own.
"""

import base64
import hashlib
import html
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

_OWN = "rlvr.page"
_BASE_SCRIPTS, _BASE_STYLE = ("dom.js", "scale.js"), "base.css"


def render(
    package: str,
    scripts: Sequence[str],
    title: str,
    summary: str,
    data: Mapping[str, str],
    *,
    shell: str = "page.html",
    styles: Sequence[str] = ("style.css",),
) -> str:
    """The page that a package's ``assets/page.html``, ``style.css`` and scripts make.

    Args:
        package: Importable name of the package with the assets.
        scripts: Names of its scripts in the order in which they run, after the shared ones.
        title: Of the document; any text.
        summary: Shown where scripts do not run; any text.
        data: JSON that holds no ``<`` by the id of the element that carries it.
        shell: Another of the package's pages.
        styles: Names of its style sheets.
    """
    style = "".join([asset(_OWN, _BASE_STYLE), *(asset(package, name) for name in styles)])
    script = "\n".join(
        [
            *(asset(_OWN, name) for name in _BASE_SCRIPTS),
            *(asset(package, name) for name in scripts),
        ]
    )
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
    page = asset(package, shell)
    # One pass, so that a value which looks like a placeholder is left as it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], page)


def embed(value: object) -> str:
    """JSON that may stand inside a script element: it holds no ``<`` and no lone surrogate.

    Source: HTML Living Standard, "Restrictions for contents of script elements".
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("<", "\\u003c")


def write_page(path: Path, text: str) -> None:
    """Write a page beside its place and move it there, so that no reader meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def asset(package: str, name: str) -> str:
    """A file of a package's ``assets``, as text."""
    return resources.files(package).joinpath("assets", name).read_text(encoding="utf-8")
