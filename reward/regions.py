r"""Intervals, inequalities and unions of them as sets of real numbers.

A `Interval` is an interval with an end of either kind; a point is a closed interval of length zero.
Constant ends are sorted, merged and compared one by one; with symbols in the ends the pieces are
matched as written. Inequalities that are linear in one symbol are solved.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

from reward.exact import NotRational, Undefined, exact
from reward.expression import Tree
from reward.nodes import BareList, Bracket, Builder, Node, Relation, Union, Value
from reward.numeric import symbols
from reward.units import has_reason
from reward.values import infinite, real_value, same_value
from reward.verdict import GradingPolicy

_INFINITY: Tree = ("const", "inf")
_MINUS: Tree = ("neg", _INFINITY)
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


@dataclass(frozen=True)
class Interval:
    """An interval from ``low`` to ``high``; ``has_low`` and ``has_high`` mark closed ends."""

    low: Tree
    has_low: bool
    high: Tree
    has_high: bool

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends as floats, or ``None`` where they contain symbols."""
        low, high = real_value(self.low), real_value(self.high)
        return None if low is None or high is None else (low, high)


def region(node: Node) -> list[Interval] | None:
    """Read a node as a set of reals, or ``None`` if it is not one."""
    if isinstance(node, Builder):
        return region(node.condition)
    if isinstance(node, Union):
        return _union(node)
    if isinstance(node, Bracket):
        return _bracket(node)
    if isinstance(node, Relation):
        return _inequality(node)
    if isinstance(node, BareList):
        return _joined(node)
    return None


def open_at_infinity(pieces: list[Interval]) -> list[Interval]:
    """Read a careless reference ``[0, infinity]`` as half-open."""
    return [
        replace(
            piece,
            has_low=piece.has_low and not infinite(piece.low),
            has_high=piece.has_high and not infinite(piece.high),
        )
        for piece in pieces
    ]


def is_region_like(node: Node) -> bool:
    """Tell whether a node can only mean a set of reals (and not a tuple or a list)."""
    if isinstance(node, Union | Builder):
        return True
    if isinstance(node, Bracket):
        return len(node.items) == 2 and (
            {node.opening, node.closing} == {"(", "]"}
            or {node.opening, node.closing} == {"[", ")"}
            or any(isinstance(item, Value) and infinite(item.tree) for item in node.items)
        )
    if isinstance(node, Relation):
        return any(sign in ("<", ">", "<=", ">=", "!=") for sign in node.signs)
    if isinstance(node, BareList):
        return any(is_region_like(item) for item in node.items) and all(
            is_region_like(item) or isinstance(item, Relation | Bracket) for item in node.items
        )
    return False


def same_region(gold: list[Interval], pred: list[Interval], policy: GradingPolicy) -> bool:
    """Compare two sets of reals end by end."""
    if all(piece.ends is not None for piece in [*gold, *pred]):
        gold, pred = _merged(gold), _merged(pred)
        pairs = zip(gold, pred, strict=False)
        return len(gold) == len(pred) and all(_same_piece(*pair, policy) for pair in pairs)
    if len(gold) != len(pred):
        return False
    rest = list(pred)
    for piece in gold:
        match = next((other for other in rest if _same_piece(piece, other, policy)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_piece(gold: Interval, pred: Interval, policy: GradingPolicy) -> bool:
    return (
        gold.has_low == pred.has_low
        and gold.has_high == pred.has_high
        and same_value(gold.low, pred.low, policy)
        and same_value(gold.high, pred.high, policy)
    )


def _trees(nodes: tuple[Node, ...]) -> list[Tree]:
    """Collect the values; one with a word behind it that is no unit is none."""
    values = [node for node in nodes if isinstance(node, Value)]
    return [value.tree for value in values if not value.unit or has_reason("", value.unit)]


def _bracket(node: Bracket) -> list[Interval] | None:
    trees = _trees(node.items)
    if len(trees) != len(node.items):
        return None
    if node.opening == "\\{":
        return [Interval(tree, True, tree, True) for tree in trees]
    if len(trees) != 2 or node.opening not in "([" or node.closing not in ")]":
        return None
    low, high = trees
    piece = Interval(
        low,
        node.opening == "[",
        high,
        node.closing == "]",
    )
    ends = piece.ends
    if ends is not None and ends[0] > ends[1]:
        return None
    return [piece]


def _union(node: Union) -> list[Interval] | None:
    pieces: list[Interval] = []
    for part in node.pieces:
        found = region(part)
        if found is None:
            return None
        pieces += found
    for part in node.without:
        found = region(part)
        if found is None or any(piece.ends is None for piece in [*found, *pieces]):
            return None
        for hole in found:
            pieces = [rest for piece in pieces for rest in _subtract(piece, hole)]
    return pieces


def _subtract(piece: Interval, hole: Interval) -> list[Interval]:
    ends, gap = piece.ends, hole.ends
    assert ends is not None
    assert gap is not None
    if gap[1] < ends[0] or gap[0] > ends[1]:
        return [piece]
    left = replace(piece, high=hole.low, has_high=not hole.has_low)
    right = replace(piece, low=hole.high, has_low=not hole.has_high)
    return [rest for rest in (left, right) if _is_something(rest)]


def _is_something(piece: Interval) -> bool:
    ends = piece.ends
    assert ends is not None
    return ends[0] < ends[1] or (ends[0] == ends[1] and piece.has_low and piece.has_high)


def _merged(pieces: list[Interval]) -> list[Interval]:
    """Sort pieces with constant ends and join those that touch or overlap."""
    keyed = sorted(
        ((piece.ends or (0.0, 0.0), piece) for piece in pieces),
        key=lambda item: (item[0][0], not item[1].has_low, item[0][1]),
    )
    merged: list[Interval] = []
    for (low, high), piece in keyed:
        if merged:
            last = merged[-1]
            last_high = (last.ends or (0.0, 0.0))[1]
            if low < last_high or (low == last_high and (piece.has_low or last.has_high)):
                if high > last_high or (high == last_high and piece.has_high):
                    merged[-1] = replace(last, high=piece.high, has_high=piece.has_high)
                continue
        merged.append(piece)
    return merged


def _joined(node: BareList) -> list[Interval] | None:
    """Read ``x < 1 or x > 3`` as a union, ``x > 1 and x < 3`` as an intersection."""
    parts = [region(item) for item in node.items]
    found = [part for part in parts if part is not None]
    if len(found) != len(parts) or not found:
        return None
    if node.joint == "or" or any(not isinstance(item, Relation) for item in node.items):
        return [piece for part in found for piece in part]
    pieces = found[0]
    for part in found[1:]:
        if any(piece.ends is None for piece in [*pieces, *part]):
            return None
        pieces = [both for one in pieces for two in part for both in _intersect(one, two)]
    if not pieces and node.joint == ",":
        return [piece for part in found for piece in part]  # "x < 1, x > 2" means either
    return pieces


def _intersect(one: Interval, two: Interval) -> list[Interval]:
    ends, others = one.ends, two.ends
    assert ends is not None
    assert others is not None
    low = max((ends[0], not one.has_low, one), (others[0], not two.has_low, two), key=_first_two)
    high = min((ends[1], one.has_high, one), (others[1], two.has_high, two), key=_first_two)
    both = Interval(low[2].low, low[2].has_low, high[2].high, high[2].has_high)
    return [both] if _is_something(both) else []


def _first_two(item: tuple[float, bool, Interval]) -> tuple[float, bool]:
    return item[0], item[1]


def _inequality(node: Relation) -> list[Interval] | None:
    """Solve an inequality for its variable: ``a < x < b``, ``x > 5``, ``-x > -1``."""
    trees = _trees(node.parts)
    if len(trees) != len(node.parts) or "in" in node.signs or "~" in node.signs:
        return None
    if len(trees) == 3:
        return _between(trees, node.signs)
    if len(trees) != 2:
        return None
    sign = node.signs[0]
    for one, other, reading in ((0, 1, sign), (1, 0, _FLIPPED[sign])):
        if is_variable(trees[one]) and not symbols(trees[one]) & symbols(trees[other]):
            return _half_line(trees[other], reading)
        if trees[one][:2] == ("fn", "abs"):
            return _absolute(trees[one][2], trees[other], reading)
    return _linear(trees[0], trees[1], sign)


def is_variable(tree: Tree) -> bool:
    """Tell whether a tree is a symbol, a function's value or an absolute value of those."""
    if tree[0] == "sym":
        return True
    return tree[0] == "fn" and tree[1].startswith("value of ")


def _between(trees: list[Tree], signs: tuple[str, ...]) -> list[Interval] | None:
    if not is_variable(trees[1]) or symbols(trees[1]) & (symbols(trees[0]) | symbols(trees[2])):
        return None
    if set(signs) <= {">", ">="}:
        trees, signs = trees[::-1], tuple(_FLIPPED[sign] for sign in signs[::-1])
    if not set(signs) <= {"<", "<="}:
        return None
    return [Interval(trees[0], signs[0] == "<=", trees[2], signs[1] == "<=")]


def _absolute(inside: Tree, bound: Tree, sign: str) -> list[Interval] | None:
    """Solve ``|x| < a`` and ``|b x + c| > a`` for a constant a above 0."""
    end = real_value(bound)
    if end is None or end <= 0:
        return None
    closed, minus = sign in ("<=", ">="), ("neg", bound)
    if not is_variable(inside):  # |2x - 1| < 3
        upper = _linear(inside, bound, sign)
        lower = _linear(inside, minus, _FLIPPED[sign])
        if upper is None or lower is None or sign not in ("<", "<=", ">", ">="):
            return None
        if sign in (">", ">="):
            return [*upper, *lower]
        return [both for one in upper for two in lower for both in _intersect(one, two)]
    if sign in ("<", "<="):
        return [Interval(minus, closed, bound, closed)]
    if sign in (">", ">="):
        return [Interval(_MINUS, False, minus, closed), Interval(bound, closed, _INFINITY, False)]
    return None


def _half_line(end: Tree, sign: str) -> list[Interval] | None:
    if sign in (">", ">="):
        return [Interval(end, sign == ">=", _INFINITY, False)]
    if sign in ("<", "<="):
        return [Interval(_MINUS, False, end, sign == "<=")]
    if sign == "!=":
        return [Interval(_MINUS, False, end, False), Interval(end, False, _INFINITY, False)]
    return [Interval(end, True, end, True)]


def _linear(left: Tree, right: Tree, sign: str) -> list[Interval] | None:
    """Solve a x + b < c x + d over fractions."""
    names = symbols(left) | symbols(right)
    if len(names) != 1:
        return None
    (name,) = names
    difference: Tree = ("add", left, ("neg", right))
    try:
        at = [exact(difference, {name: Fraction(t)}) for t in (0, 1, 7, -4)]
    except (NotRational, Undefined):
        return None
    slope = at[1] - at[0]
    if slope == 0 or at[2] != at[0] + 7 * slope or at[3] != at[0] - 4 * slope:
        return None
    root: Tree = ("num", -at[0] / slope, False)
    return _half_line(root, sign if slope > 0 else _FLIPPED[sign])
