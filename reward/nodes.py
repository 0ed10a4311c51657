r"""The structures of answers: `reward.answer_structure` reads them, `reward.comparer` compares
them."""

import re
from dataclasses import dataclass

from reward.expression import Tree


@dataclass(frozen=True)
class Value:
    """An expression; ``unit`` is the text after it, ``text`` how it was written."""

    tree: Tree
    text: str
    unit: str = ""


@dataclass(frozen=True)
class Percent:
    """A value followed by a percent sign."""

    value: Value


@dataclass(frozen=True)
class Text:
    """Anything else: words, or notation that the expression parser does not read."""

    text: str

    @property
    def is_words(self) -> bool:
        """Tell whether this is plain language rather than unread notation."""
        bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", self.text)
        if "\\" in bare or re.search(r"[=<>^_|]", bare):
            return False
        return bool(re.search(r"[^\W\d_]{2}", bare)) or not bare.strip()


@dataclass(frozen=True)
class BareList:
    """A list without brackets; ``joint`` is ``or`` if the parts are alternatives."""

    items: tuple["Node", ...]
    joint: str = ","


@dataclass(frozen=True)
class Bracket:
    """Two or more items, or a set of any number, in brackets of the given kinds."""

    opening: str
    closing: str
    items: tuple["Node", ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; ``environment`` is pmatrix, vmatrix, ..."""

    rows: tuple[tuple["Node", ...], ...]
    environment: str


@dataclass(frozen=True)
class Relation:
    """A chain of parts with the signs between them (=, <, >, <=, >=, !=, ~, in)."""

    parts: tuple["Node", ...]
    signs: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Union:
    """A union of sets, minus the sets in ``without``."""

    pieces: tuple["Node", ...]
    without: tuple["Node", ...] = ()


@dataclass(frozen=True)
class Builder:
    r"""A set given by a condition, ``\{x | condition\}``."""

    condition: "Node"


Node = Value | Percent | Text | BareList | Bracket | Matrix | Relation | Union | Builder
