"""Put styles, scripts and data into one self-contained HTML page that makes no requests.

All text from a model or a data set is stored in the page as JSON inside inert script elements, and
the scripts show it as text, never as markup. A content security policy enforces this: only the
scripts and the style sheet whose hashes it lists are used, and nothing may be fetched.

The report of a run and the page of evaluations share this package; each has its own assets.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from rlvr.files import replacing

_OWN = "rlvr.page"
_BASE_SCRIPTS, _BASE_STYLE = ("dom.js", "scale.js"), "base.css"
_DOCUMENT = "document.html"


def render(
    package: str,
    scripts: Sequence[str],
    title: str,
    summary: str,
    data: Mapping[str, str],
    *,
    shell: str = "page.html",
    styles: Sequence[str] = ("style.css",),
    live: bool = False,
) -> str:
    """Build the page from a package's ``assets/page.html``, ``style.css`` and scripts.

    Args:
        package: Importable name of the package with the assets.
        scripts: Names of its scripts in the order in which they run, after the shared ones.
        title: Title of the document; any text.
        summary: Text that is shown if scripts do not run.
        data: JSON without any ``<``, by the id of its element.
        shell: Name of the HTML file in the package's assets, the body of the page.
        styles: Names of its style sheets.
        live: Whether the page may ask the server that it comes from for more.
    """
    style = "".join([asset(_OWN, _BASE_STYLE), *(asset(package, name) for name in styles)])
    script = "\n".join(
        [
            *(asset(_OWN, name) for name in _BASE_SCRIPTS),
            *(asset(package, name) for name in scripts),
        ]
    )
    if "</script" in script or "</style" in style:
        raise AssertionError("an asset would close its own element")
    elements = "\n".join(
        f'<script type="application/json" id="{html.escape(name)}">{text}</script>'
        for name, text in data.items()
    )
    values = {
        "policy": content_policy([script], [style], live=live),
        "title": html.escape(title),
        "summary": html.escape(summary),
        "style": style,
        "data": elements,
        "script": script,
    }
    return _filled(asset(_OWN, _DOCUMENT).replace("{{body}}", asset(package, shell)), values)


def _filled(page: str, values: Mapping[str, str]) -> str:
    """A page with its placeholders replaced, in one pass, so that no value is searched for them."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], page)


def simple_page(title: str, body: str, script: str, style: str) -> str:
    """A page with one script and one style sheet; ``body`` is HTML."""
    policy = content_policy([script], [style])
    values = {"policy": policy, "title": html.escape(title), "style": style, "script": script}
    return _filled(asset(_OWN, _DOCUMENT), {**values, "body": body, "data": ""})


def embed(value: object) -> str:
    """JSON that is safe inside a script element: it contains no ``<`` and no lone surrogate.

    Source: HTML Living Standard, "Restrictions for contents of script elements".
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("<", "\\u003c")


def write_page(path: Path, text: str) -> None:
    """Write a page atomically; others may read it whatever this user's umask is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="replace"))
        temporary.chmod(0o644)


def content_policy(scripts: Sequence[str], styles: Sequence[str], *, live: bool = False) -> str:
    """The content security policy of a page: only these scripts and style sheets, and no requests,
    or, if ``live``, only requests to the page's own server.

    Source: W3C Content Security Policy Level 3, hash sources.
    """
    script_hashes = " ".join(f"'sha256-{_hash(text)}'" for text in scripts)
    style_hashes = " ".join(f"'sha256-{_hash(text)}'" for text in styles)
    connect = " connect-src 'self';" if live else ""
    return (
        f"default-src 'none';{connect} script-src {script_hashes}; style-src {style_hashes}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def asset(package: str, name: str) -> str:
    """A file in a package's ``assets``, as text."""
    return resources.files(package).joinpath("assets", name).read_text(encoding="utf-8")
