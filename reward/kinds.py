"""The kind of a reference answer, for reports; it does not affect the comparison."""

import re
from fractions import Fraction

from reward.answer_structure import read
from reward.exact import NotRational, Undefined, exact
from reward.expression import Tree
from reward.labels import is_label
from reward.limits import TooHard
from reward.nodes import (
    BareList,
    Bracket,
    Builder,
    Matrix,
    Node,
    Percent,
    Relation,
    Text,
    Union,
    Value,
)
from reward.numeric import symbols
from reward.regions import is_region_like
from reward.word_answers import read_numeral, same_choice, same_time

KINDS = (
    "integer", "decimal", "fraction", "scientific", "constant", "complex", "degree", "percent",
    "unit", "expression", "equation", "assignment", "inequality", "interval", "tuple", "set",
    "list", "matrix", "choice", "base", "time", "text",
)  # fmt: skip


def kind_of(gold: str) -> tuple[str, Node]:
    """Return the kind of a cleaned reference answer and its structure."""
    node = read(gold)
    if same_choice(gold, gold) is not None:
        return "choice", node
    if read_numeral(gold) is not None:
        return "base", node
    if same_time(gold, gold) is not None:
        return "time", node
    return _kind(node, gold), node


def _kind(node: Node, gold: str) -> str:
    if isinstance(node, Value):
        return "unit" if node.unit else _value_kind(node.tree, gold)
    if isinstance(node, Relation):
        if is_region_like(node):
            return "inequality"
        return "assignment" if is_label(node.texts[0]) else "equation"
    if is_region_like(node):
        return "interval"
    if isinstance(node, Bracket):
        return "set" if node.opening == "\\{" else "tuple"
    if isinstance(node, BareList):
        return "list"
    if isinstance(node, Text):
        return "text" if node.is_words else "expression"
    names: dict[type, str] = {
        Percent: "percent", Matrix: "matrix", Union: "interval", Builder: "interval"
    }  # fmt: skip
    return names[type(node)]


def _value_kind(tree: Tree, text: str) -> str:
    if symbols(tree):
        return "expression"
    if "°" in text:
        return "degree"
    if re.search(r"\*\s*10\s*\^|\d[eE][+-]?\d", text):
        return "scientific"
    if re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])", text):
        return "complex"
    try:
        value = exact(tree, {})
    except (NotRational, Undefined, TooHard):
        return "constant"
    if re.fullmatch(r"[-+]?\d*\.\d+", text):
        return "decimal"
    return "integer" if isinstance(value, Fraction) and value.denominator == 1 else "fraction"
