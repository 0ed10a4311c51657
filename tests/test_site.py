"""The site: it builds without a warning, offline, and a browser finds what pages promise."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.report.conftest import Page, chromium  # noqa: F401

pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EQUATION = re.compile(r"^ *```math\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("site_hook", DOCS / "hooks" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def names(navigation):
    """Pages of a navigation, in order."""
    if isinstance(navigation, str):
        return [navigation]
    if isinstance(navigation, dict):
        navigation = navigation.values()
    return [name for item in navigation for name in names(item)]


def test_every_page_is_built_and_in_the_navigation(site, hook):
    listed = names(hook.navigation((DOCS / "index.md").read_text()))
    written = [*PAGES, *DOCS.rglob("*.ipynb")]
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in written), (
        "every page has one line in docs/index.md, below <!-- nav -->"
    )
    assert [name for name in listed if not (site / name).with_suffix(".html").is_file()] == []


def test_a_page_asks_nobody_for_anything(site):
    """Scripts, styles, fonts and pictures come from the site; only links may leave it."""
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(https?:|//)")
    assert [page for page in site.rglob("*.html") if loads.search(page.read_text())] == []


def test_links_to_source_files_lead_to_copies_in_the_site(site):
    page = (site / "methods" / "losses" / "ipo.html").read_text()
    assert "../../source/rlvr/preference/losses/difference.py.html" in page
    copied = (site / "source" / "rlvr" / "preference" / "losses" / "difference.py.html").read_text()
    assert "2310.12036" in copied
    assert "docs/index.html" not in (site / "source" / "CHANGELOG.html").read_text()


def test_the_navigation_is_the_index(hook):
    index = (
        "[Before](x.md)\n<!-- nav -->\n## One\n- [A](a.md): a [remark](y.md)\n"
        "- B: [c](c.md), [d](d.ipynb)\n## Two\n- [`e`](e.md) and [f](f.md)\n"
    )
    assert hook.navigation(index) == [
        {"Home": "index.md"},
        {"One": [{"A": "a.md"}, {"B": [{"C": "c.md"}, {"D": "d.ipynb"}]}]},
        {"Two": [{"e": "e.md"}, {"F": "f.md"}]},
    ]


def test_a_notebook_becomes_a_page(hook):
    def code(source, *outputs):
        return {"cell_type": "code", "source": source, "outputs": list(outputs)}

    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        code("print(1)", {"output_type": "stream", "text": ["1\n"]}),
        code("'```'", {"data": {"text/plain": ["'```'"]}}),
        code("plot()", {"data": {"image/png": "AAAA\n", "text/plain": "<Figure>"}}),
        code("1/0", {"output_type": "error", "traceback": ["\x1b[31mZeroDivisionError\x1b[0m"]}),
        code(""),
    ]
    assert hook.notebook_text(json.dumps({"cells": cells})) == (
        "# Title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        "````python\n'```'\n````\n\n````text\n'```'\n````\n\n"
        "```python\nplot()\n```\n\n![Output of the cell](data:image/png;base64,AAAA)\n\n"
        "```python\n1/0\n```\n\n```text\nZeroDivisionError\n```\n"
    )


def test_a_notebook_and_links_to_it_are_built(hook, tmp_path):
    """In a site of its own, with this site's hook."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    docs = tmp_path / "docs"
    docs.mkdir()
    cells = [{"cell_type": "markdown", "source": "# A notebook\n\nTo the [page](index.md)."}]
    (docs / "first.ipynb").write_text(json.dumps({"cells": cells}))
    (docs / "index.md").write_text("# Home\n\n[The notebook](first.ipynb)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\nuse_directory_urls: false\n")
    config = load_config(str(tmp_path / "mkdocs.yml"), strict=True)
    config.nav = [{"Home": "index.md"}, {"First": "first.ipynb"}]
    config.plugins._register_event("files", hook.on_files)
    config.plugins._register_event("page_markdown", hook.on_page_markdown)
    build(config)
    assert 'href="first.html"' in (tmp_path / "site" / "index.html").read_text()
    assert 'href="index.html"' in (tmp_path / "site" / "first.html").read_text()


def test_methods_have_equations():
    pages = sorted((DOCS / "methods").rglob("*.md"))
    assert len(pages) > 40
    assert [page.name for page in pages if not EQUATION.search(page.read_text())] == []


@pytest.fixture
def opened(site, chromium):  # noqa: F811
    """Opens pages of the site from the disk; no page may log anything or ask another place."""
    pages = []

    def open_page(name):
        pages.append(Page(chromium, site / name))
        return pages[-1]

    yield open_page
    console, asked = pages[-1].logs()
    assert console == []
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))] == []
    assert any(url.startswith(site.as_uri()) for url in asked), "the log of requests works at all"


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return found


@pytest.mark.browser
def test_equations_are_set(opened):
    page = opened("methods/lp_reg.html")
    assert len(page.all(".arithmatex .katex-display")) == 2
    assert page.all(".katex-error") == []
    assert "KaTeX_Main" in page.js(
        "return getComputedStyle(document.querySelector('.katex')).fontFamily"
    )


@pytest.mark.browser
def test_every_equation_is_set_and_fits(opened, site):
    boxes = "[...document.querySelectorAll('div.arithmatex')]"
    cut = f"return {boxes}.filter(box => box.scrollWidth > box.clientWidth + 1).length"
    seen = 0
    for path in PAGES:
        equations = EQUATION.findall(path.read_text())
        if equations:
            name = path.relative_to(DOCS).with_suffix(".html")
            page = opened(name)
            assert len(page.all(".arithmatex .katex-display")) == len(equations), name
            assert page.all(".katex-error") == [], name
            assert page.js(cut) == 0, name
            seen += len(equations)
    assert seen > 60


@pytest.mark.browser
def test_search_finds_a_method_without_a_server(opened):
    page = opened("index.html")
    page.one("[data-md-component=search-query]").click()
    wait_for(lambda: page.all("[data-md-component=search-query]:focus"))
    page.press("lp_reg")
    links = wait_for(lambda: page.all(".md-search-result__link"))
    assert any("lp_reg" in link.get_attribute("href") for link in links)


@pytest.mark.browser
@pytest.mark.parametrize("name", ["index", "settings", "methods/grpo", "reference/parts"])
def test_pages_fit_into_a_phone(opened, name):
    page = opened(f"{name}.html")
    page.resize(400, 800)
    wait_for(lambda: page.js("return document.readyState === 'complete'"))
    assert page.js("return document.documentElement.scrollWidth") <= 400
