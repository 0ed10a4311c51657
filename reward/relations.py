"""Equations and inequalities as trees: subtract their sides and turn all signs one way."""

from typing import Literal, TypeGuard

from reward.expression import Tree
from reward.nodes import Node, Relation, Value
from reward.numeric import symbols
from reward.units import has_reason

Kind = Literal["<", "<=", "!="]


def difference(relation: Relation) -> Tree | None:
    """Return left side minus right side of a relation with two readable sides."""
    left, right = relation.parts
    if not _is_plain(left) or not _is_plain(right):
        return None
    return ("add", left.tree, ("neg", right.tree))


def directed(relation: Relation) -> list[tuple[Kind, Tree]] | None:
    """Write each sign of a chain as (kind, tree above zero), in increasing order."""
    pairs: list[tuple[Kind, Tree]] = []
    parts, signs = list(relation.parts), list(relation.signs)
    if set(signs) <= {">", ">="}:
        parts, signs = parts[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    if not set(signs) <= {"<", "<=", "!="}:
        return None
    for left, right, sign in zip(parts, parts[1:], signs, strict=False):
        if not _is_plain(left) or not _is_plain(right):
            return None
        kind: Kind = "<" if sign == "<" else "<=" if sign == "<=" else "!="
        pairs.append((kind, ("add", right.tree, ("neg", left.tree))))
    return pairs


def _is_plain(node: Node) -> TypeGuard[Value]:
    """Tell whether a side is a value, with no word behind it that is no unit."""
    return isinstance(node, Value) and (not node.unit or has_reason("", node.unit))


def variables(relation: Relation) -> frozenset[str]:
    """Collect the symbols of all sides."""
    return frozenset().union(
        *(symbols(part.tree) for part in relation.parts if isinstance(part, Value))
    )
