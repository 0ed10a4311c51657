"""Who imports whom, read from the sources: nothing is imported to find out."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlvr", "reward", "eval", "launch")


@cache
def files() -> dict[str, Path]:
    """Every module of ours by name."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str, inner: bool = False) -> frozenset[str]:
    """What a module of ours imports: modules of ours in full, of others the top package.

    Args:
        module: Its name.
        inner: Also what its functions import, which happens when they are called.
    """
    names = set()
    for node in _statements(ast.parse(files()[module].read_text()).body, inner):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in files() else str(node.module) for name in full}
    ours = {name for name in names if name in files()}
    return frozenset(ours | {name.partition(".")[0] for name in names - ours})


def _statements(body: list[ast.stmt], inner: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _statements(node.orelse, inner)
        elif inner or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "handlers", "finalbody"):
                yield from _statements(getattr(node, name, []), inner)


def loaded_with(module: str) -> dict[str, str]:
    """All modules that importing one imports, each with the one that does; packages come along."""
    by = {module: ""}
    queue = [module]
    while queue:
        now = queue.pop(0)
        for name in _with_packages(imports(now)) if now in files() else ():
            if name not in by:
                by[name] = now
                queue.append(name)
    return by


def _with_packages(names: frozenset[str]) -> Iterator[str]:
    for name in sorted(names):
        parts = name.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def chain(by: dict[str, str], module: str) -> str:
    """``a -> b -> c``: how a module came to be imported."""
    names = [module]
    while by[names[0]]:
        names.insert(0, by[names[0]])
    return " -> ".join(names)


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other (Tarjan), of two and more."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)
