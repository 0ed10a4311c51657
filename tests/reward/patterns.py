"""Every pattern of the verifier, how it is used, and the strings that could make it slow."""

import ast
import importlib
import pkgutil
import random
import re
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]

import reward

SCANS = {"search", "sub", "subn", "findall", "finditer", "split"}
Found = tuple[str, re.Pattern[str], bool]  # where it is, the pattern, whether it scans the text


def patterns() -> list[Found]:
    """List the patterns of all modules: named, in tables, and written where they are used."""
    sources = {}
    for info in pkgutil.walk_packages(reward.__path__, "reward."):
        module = importlib.import_module(info.name)
        with open(module.__file__, encoding="utf-8") as file:
            sources[module] = ast.parse(file.read())
    everywhere = _uses(sources.values())
    found: dict[tuple[str, bool], Found] = {}
    for module, tree in sources.items():
        here = _uses([tree])  # two modules may have a private pattern of one name
        items = [
            (name, pattern, bool((here if name[0] == "_" else everywhere).get(name, SCANS) & SCANS))
            for name, value in vars(module).items()
            for pattern in _inside(value)
        ]
        for name, pattern, scans in [*items, *_written_in_place(tree)]:
            key = (pattern.pattern, scans)
            found.setdefault(key, (f"{module.__name__}.{name}", pattern, scans))
    return list(found.values())


def _uses(trees) -> dict[str, set[str]]:
    """Collect by which methods each named pattern is used."""
    uses: dict[str, set[str]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                uses.setdefault(node.value.id, set()).add(node.attr)
    return uses


def _inside(value) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _inside(item)


def _written_in_place(tree: ast.AST) -> Iterator[Found]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        called, owner = node.func.attr, node.func.value
        if not (isinstance(owner, ast.Name) and owner.id == "re" and node.args):
            continue
        text = node.args[0]
        written = isinstance(text, ast.Constant) and isinstance(text.value, str)
        if called != "compile" and written:
            yield f"line {node.lineno}", re.compile(text.value), called in SCANS


def attacks(pattern: re.Pattern[str], count: int = 3) -> set[tuple[str, str]]:
    """Sample (prefix, piece): strings ``prefix + n * piece`` that pump each repeat of a pattern."""
    draw = random.Random(pattern.pattern)
    tree = _parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    found: set[tuple[str, str]] = set()
    for _ in range(count):
        _pumps(tree, "", draw, found)
    return found


def _pumps(tree, before: str, draw: random.Random, found: set[tuple[str, str]]) -> None:
    for kind, value in tree:
        if kind in _REPEATS:
            _, high, body = value
            if high > 100:
                pieces = [_sample(body, draw) for _ in range(3)]
                found.update((before, piece) for piece in pieces if piece)
                found.update(("", piece) for piece in pieces if piece)
                found.add((before, "".join(pieces) or "a"))
            _pumps(body, before, draw, found)
        elif kind is _constants.SUBPATTERN:
            _pumps(value[3], before, draw, found)
        elif kind is _constants.ATOMIC_GROUP:
            _pumps(value, before, draw, found)
        elif kind is _constants.BRANCH:
            for branch in value[1]:
                _pumps(branch, before, draw, found)
        elif kind in (_constants.ASSERT, _constants.ASSERT_NOT):
            _pumps(value[1], before, draw, found)
        before += _sample([(kind, value)], draw)


_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)
_CATEGORIES = {
    _constants.CATEGORY_SPACE: " ", _constants.CATEGORY_DIGIT: "1", _constants.CATEGORY_WORD: "a",
    _constants.CATEGORY_NOT_SPACE: "a", _constants.CATEGORY_NOT_DIGIT: "a",
    _constants.CATEGORY_NOT_WORD: ",",
}  # fmt: skip


def _sample(tree, draw: random.Random) -> str:
    """Write a string that a part of a pattern matches (lookarounds and references aside)."""
    return "".join(_one(kind, value, draw) for kind, value in tree)


def _one(kind, value, draw: random.Random) -> str:
    if kind is _constants.LITERAL:
        return chr(value)
    if kind is _constants.NOT_LITERAL:
        return "b" if chr(value) == "a" else "a"
    if kind is _constants.ANY:
        return draw.choice("a1 ")
    if kind is _constants.IN:
        return _member(value, draw)
    if kind in _REPEATS:
        low, high, body = value
        return "".join(_sample(body, draw) for _ in range(draw.randint(low, min(high, low + 2))))
    if kind is _constants.SUBPATTERN:
        return _sample(value[3], draw)
    if kind is _constants.ATOMIC_GROUP:
        return _sample(value, draw)
    if kind is _constants.BRANCH:
        return _sample(draw.choice(value[1]), draw)
    return ""


def _member(items, draw: random.Random) -> str:
    if items[0][0] is _constants.NEGATE:
        allowed = [c for c in "a1 ,{(\\=b-" if not any(_matches(c, item) for item in items[1:])]
        return draw.choice(allowed or ["\u00e9"])
    kind, value = draw.choice(items)
    if kind is _constants.LITERAL:
        return chr(value)
    if kind is _constants.RANGE:
        return chr(draw.randint(value[0], min(value[1], value[0] + 40)))
    return _CATEGORIES.get(value, "a")


def _matches(character: str, item) -> bool:
    kind, value = item
    if kind is _constants.LITERAL:
        return ord(character) == value
    if kind is _constants.RANGE:
        return value[0] <= ord(character) <= value[1]
    tests = {
        _constants.CATEGORY_SPACE: str.isspace, _constants.CATEGORY_DIGIT: str.isdigit,
        _constants.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
        _constants.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
    }  # fmt: skip
    return bool(tests[value](character)) if value in tests else False
