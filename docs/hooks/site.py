"""What the site needs beyond MkDocs: its navigation, notebooks, source files that pages link to.

Pages stay readable in the repository, so that the site adapts to them and not they to it:

- The navigation is the list of ``docs/index.md`` below ``<!-- nav -->``: a heading is a section, a
  list item that begins with ``Label:`` a subsection, each of its first links a page.
- A notebook (``.ipynb``) becomes a page with the outputs that are stored in it; nothing is run.
- A link that leaves ``docs`` leads to a copy of the file in the site, below ``source/``.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FOLDERS = {"methods/preference.md": ("One page per loss", "methods/losses")}
"""Behind these pages the navigation lists all pages of a folder."""
_TITLED = r"\[[^\]]+\]\([^)#:]+\.(?:md|ipynb)\)"
_ITEM = re.compile(rf"- (?:(?P<label>\w[^\[\]]*): )?(?P<links>{_TITLED}(?:(?:,| and) {_TITLED})*)")
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)(?=[)#])")
_NAME_IN_TABLE = re.compile(r"(?<=<td><code>)[^<\s]+(?=</code>)")
_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1[`~]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Set the navigation."""
    config.nav = navigation((DOCS / "index.md").read_text(encoding="utf-8"))


def navigation(index: str) -> list[dict[str, Any]]:
    """The navigation that an index describes, as MkDocs has it in YAML."""
    sections: list[dict[str, Any]] = [{"Home": "index.md"}]
    for line in index.partition("<!-- nav -->")[2].splitlines():
        if line.startswith("## "):
            sections.append({line[3:]: []})
        elif item := _ITEM.match(line):
            pages = list(_pages(item["links"]))
            sections[-1][next(iter(sections[-1]))] += (
                [{item["label"]: pages}] if item["label"] else pages
            )
    return sections


def _pages(links: str) -> Iterator[dict[str, Any]]:
    for title, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", links):
        yield {_capital(title).replace("`", ""): target}
        if target in FOLDERS:
            label, folder = FOLDERS[target]
            names = sorted(path.name for path in (DOCS / folder).glob("*.md"))
            yield {label: [f"{folder}/{name}" for name in names]}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Notebook(File):
    """A notebook, which MkDocs then treats as a page of its own name."""

    def is_documentation_page(self) -> bool:
        """As Markdown."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Turn notebooks into pages, and add the files outside ``docs`` that pages link to."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb") and not file.inclusion.is_excluded():
            files.remove(file)
            files.append(_generated(Notebook, config, file.src_uri, notebook_text(_read(file))))
    for path, text in sorted(_outside(files).items()):
        files.append(_generated(File, config, _source_page(path), text))
    return files


def _read(file: File) -> str:
    return Path(str(file.abs_src_path)).read_text(encoding="utf-8")


def _generated(kind: type[File], config: MkDocsConfig, uri: str, text: str) -> File:
    file = kind(uri, None, config.site_dir, config.use_directory_urls)
    file.generated_by, file.content_string = "docs/hooks/site.py", text
    return file


def notebook_text(notebook: str) -> str:
    """A notebook as Markdown: its text, its code, and the outputs that are stored in it."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.strip():
            parts.append(_fenced("python", source))
            parts += [part for output in cell["outputs"] for part in _output(output)]
        elif cell["cell_type"] == "markdown":
            parts.append(source)
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        yield f"![Output of the cell](data:image/png;base64,{picture})"
    elif "text/markdown" in data:
        yield "".join(data["text/markdown"])
    else:
        lines = output.get("traceback") or data.get("text/plain") or output.get("text") or []
        text = re.sub(r"\x1b\[[\d;]*m", "", "".join(lines))
        if text.strip():
            yield _fenced("text", text)


def _fenced(language: str, text: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _outside(files: Files) -> dict[str, str]:
    """Files outside ``docs`` that pages link to, directly or through another such file."""
    waiting = [
        path
        for file in files
        if file.is_documentation_page() and not file.inclusion.is_excluded()
        for path in _targets(file.content_string, posixpath.dirname(f"docs/{file.src_uri}"))
    ]
    found: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = _source_text(path)
            waiting += _targets(found[path], posixpath.dirname(path))
    return found


def _targets(markdown: str, folder: str) -> list[str]:
    """Paths outside ``docs`` that a page in ``folder`` links to, relative to the repository."""
    paths = (
        posixpath.normpath(posixpath.join(folder, target))
        for target in _LINK.findall(_CODE.sub("", markdown))
    )
    return [path for path in paths if not path.startswith("docs/") and (ROOT / path).exists()]


def _source_text(path: str) -> str:
    head = "---\nsearch:\n  exclude: true\n---\n"
    if (ROOT / path).is_dir():
        names = sorted(item.name for item in (ROOT / path).iterdir() if item.is_file())
        return f"{head}# `{path}`\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return head + text
    language = {".py": "python", ".sh": "bash"}.get(Path(path).suffix, Path(path).suffix[1:])
    return f"{head}# `{path}`\n\n{_fenced(language, text)}\n"


def _source_page(path: str) -> str:
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave ``docs``, or come from a file outside it, to pages of the site."""
    uri = page.file.src_uri
    if uri == "index.md":
        page.meta["hide"] = ["navigation", "toc"]  # its cards take the whole width
    copied = uri.startswith("source/")
    folder = posixpath.dirname(uri.removeprefix("source/") if copied else f"docs/{uri}")

    def lead(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        inside = path.startswith("docs/")
        if not (ROOT / path).exists() or (inside and not copied):
            return match[1]
        target = path.removeprefix("docs/") if inside else _source_page(path)
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    kept = iter(match[0] for match in _CODE.finditer(markdown))
    texts = _CODE.split(markdown)[:: _CODE.groups + 1]
    return "".join(_LINK.sub(lead, text) + next(kept, "") for text in texts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let long names in tables break at their dots, widen pages without sections, and keep TeX out
    of search results."""
    if not any(heading.children for heading in page.toc):
        page.meta.setdefault("hide", ["toc"])
    html = html.replace('<div class="arithmatex">', '<div class="arithmatex" data-search-exclude>')
    return _NAME_IN_TABLE.sub(lambda match: re.sub(r"(?<=[._=\]/])(?=\w)", "<wbr>", match[0]), html)
