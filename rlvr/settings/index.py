"""The rows of docs/papers.md for what a registry holds: paper, meaning, file, setting, tests.

Where recipes, tests and pages speak of a choice is searched for, not written down.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from inspect import getfile
from pathlib import Path

from rlvr.settings.base import tag_of
from rlvr.settings.registered import Registered

_PAGE = Path("docs/papers.md")
_MOST = 2
"""Recipes that are listed for a choice."""


def index_table(kinds: Sequence[type[Registered]], root: Path) -> str:
    """A Markdown table of all choices of these kinds; ``root`` is the repository."""
    head = ("setting", "what it does", "paper", "file", "tests", "pages", "recipes")
    rows = [_row(head), _row(["---"] * len(head))]
    for kind in kinds:
        rows += [_row(_cells(choice, root)) for choice in kind.registry().values()]
    return "\n".join(rows)


def write_index(key: str, kinds: Sequence[type[Registered]], root: Path) -> None:
    """Bring the table between the marks of ``key`` in docs/papers.md up to date."""
    path = root / _PAGE
    before, mark, rest = path.read_text(encoding="utf-8").partition(f"<!-- table: {key} -->\n")
    after = rest.partition("\n<!-- end -->")[2]
    table = index_table(kinds, root)
    path.write_text(f"{before}{mark}{table}\n<!-- end -->{after}", encoding="utf-8")


def shown_in(choice: type[Registered], root: Path) -> list[Path]:
    """The pages of docs/methods and docs/experiments that show the setting."""
    pages = [*_files(root, "docs/methods", "*.md"), *_files(root, "docs/experiments", "*.md")]
    return [path for path in pages if _setting(choice).search(_text(path))]


def covered_by(choice: type[Registered], root: Path) -> list[Path]:
    """The tests of its room that name its class or, where none does, its name in quotes."""
    files = _files(root, f"tests/{choice.room.split('.')[1]}", "test_*.py")
    for word in (rf"\b{choice.__name__}\b", f'"{tag_of(choice)}"'):
        if found := [path for path in files if re.search(word, _text(path))]:
            return found
    return []


def _cells(choice: type[Registered], root: Path) -> Iterator[str]:
    yield f"`{choice.written_example()}`"
    yield " ".join((choice.__doc__ or "").strip().split("\n\n")[0].split())
    yield choice.linked_paper()
    yield f"`{_file_of(choice)}`"
    yield ", ".join(f"`{path.relative_to(root)}`" for path in covered_by(choice, root))
    links = [path.relative_to(root / _PAGE.parent) for path in shown_in(choice, root)]
    yield ", ".join(f"[{path.stem}]({path})" for path in links)
    recipes = [p for p in _files(root, "recipes", "*.yaml") if _setting(choice).search(_text(p))]
    yield ", ".join(f"`{path.relative_to(root)}`" for path in recipes[:_MOST])


def _file_of(choice: type[Registered]) -> str:
    parts = choice.__module__.split(".")
    return f"{'/'.join(parts[:-1])}/{Path(getfile(choice)).name}"


def _setting(choice: type[Registered]) -> re.Pattern[str]:
    """The setting in any spelling: inline, as a block, on the command line."""
    key, _, form = choice.written.partition(": ")
    name = rf"{tag_of(choice)}\b(?![\w/.-])"
    if form.startswith("["):
        return re.compile(rf"\bname: {name}")
    return re.compile(rf"\b{key}(: \{{name: |\.name[=:] ?|:\n +name: ){name}")


@cache
def _files(root: Path, folder: str, pattern: str) -> list[Path]:
    return sorted((root / folder).rglob(pattern))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
