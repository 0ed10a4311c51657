r"""Equality of two expressions: exact where it can be, with a relative tolerance where it must be.

Two constants written without a decimal point must be equal outright. A decimal stands for an
irrational or unending value if it agrees to the policy's relative tolerance; between two finite
decimals nothing is tolerated but a correct rounding of six digits or more. Two expressions with
symbols must agree at every point where both have a value.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

from reward.exact import NotRational, Undefined, exact
from reward.expression import Tree
from reward.limits import TooHard
from reward.numeric import approximate, has_decimal, point, symbols
from reward.tokens import number
from reward.verdict import Policy

SLACK = 32.0  # how many error bounds two equal values may lie apart
ROUNDING_DIGITS = 6
_WHOLE = ("binom", "gcd", "lcm", "double factorial")
_BRANCHING = {"root", "ln", "log", "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc"}
_STEPS = {"floor", "ceil"}
_DECIMAL = re.compile(r"([+-]?)(\d*)\.?(\d*)(?:[eE]([+-]?\d+))?")


def same_value(gold: Tree, pred: Tree, policy: Policy, gold_text: str = "") -> bool:
    """Compare two expression trees.

    Args:
        gold: the reference.
        pred: the answer.
        policy: tolerances, and whether fractions must be reduced.
        gold_text: how the reference was written, for ``round_to_gold``.

    Raises:
        TooHard: when a side asks for numbers out of bounds.
    """
    if gold == pred:
        return not _is_undefined(gold)
    if not policy.unreduced_fractions and _reducible(pred):
        return False
    signs = infinite(gold), infinite(pred)
    if any(signs):
        return signs[0] == signs[1]
    names = symbols(gold) | symbols(pred)
    try:
        if names:
            return _same_function(gold, pred, names, policy)
        return _same_constant(gold, pred, policy, gold_text)
    except Undefined:
        return False


def infinite(tree: Tree) -> int:
    """Return +1 or -1 for plus or minus infinity, 0 for anything else."""
    sign = 1
    while tree[0] == "neg":
        tree, sign = tree[1], -sign
    return sign if tree == ("const", "inf") else 0


def real_value(tree: Tree) -> float | None:
    """Return a constant real expression as a float (also infinite), else ``None``."""
    if infinite(tree):
        return infinite(tree) * float("inf")
    if symbols(tree):
        return None
    try:
        value, error = approximate(tree, {})
    except Undefined:
        return None
    return value.real if abs(value.imag) <= SLACK * error + 1e-300 else None


def same_up_to_factor(gold: Tree, pred: Tree, positive: bool) -> bool:
    """Tell whether gold = c pred at every point, for one constant c (above 0 if ``positive``)."""
    names = symbols(gold) | symbols(pred)
    if not names:
        return False
    ratio: complex | None = None
    compared = 0
    for values in _points(names, (gold, pred)):
        try:
            left, left_error = approximate(gold, values)
            right, right_error = approximate(pred, values)
        except (Undefined, TooHard):
            continue
        if abs(left) <= SLACK * left_error or abs(right) <= SLACK * right_error:
            return False
        current = left / right
        bound = abs(current) * (left_error / abs(left) + right_error / abs(right))
        compared += 1
        if ratio is None:
            ratio = current
        elif abs(current - ratio) > SLACK * bound + 1e-12 * abs(ratio):
            return False
    if ratio is None or compared < 2 or abs(ratio.imag) > 1e-9 * abs(ratio):
        return False
    return ratio.real > 0 or not positive


def _is_undefined(tree: Tree) -> bool:
    """Tell whether a constant has no value, such as 1/0 (infinity has)."""
    if symbols(tree) or infinite(tree):
        return False
    try:
        approximate(tree, {})
    except Undefined:
        return True
    except TooHard:
        return False
    return False


def _reducible(tree: Tree) -> bool:
    while tree[0] == "neg":
        tree = tree[1]
    if tree[0] != "div" or tree[1][0] != "num" or tree[2][0] != "num":
        return False
    above, below = tree[1][1], tree[2][1]
    return bool(below and Fraction(above, below).denominator != below)


def _same_constant(gold: Tree, pred: Tree, policy: Policy, gold_text: str) -> bool:
    wanted, got = _exact_or_none(gold), _exact_or_none(pred)
    decimals = has_decimal(gold), has_decimal(pred)
    if wanted is not None and got is not None:
        if wanted == got:
            return True
        if policy.round_to_gold and _rounds_to(got, wanted, gold_text):
            return True
        return any(decimals) and _same_decimal(wanted, got, decimals, policy)
    left, left_error = approximate(gold, {})
    right, right_error = approximate(pred, {})
    gap = abs(left - right)
    if gap <= SLACK * (left_error + right_error):
        return True
    if policy.round_to_gold and wanted is not None and right.imag == 0:
        return _rounds_to(Fraction(right.real), wanted, gold_text)
    return any(decimals) and gap <= policy.relative_tolerance * abs(left)


def _exact_or_none(tree: Tree) -> Fraction | None:
    try:
        return exact(tree, {})
    except NotRational:
        return None


def _same_decimal(
    wanted: Fraction, got: Fraction, decimals: tuple[bool, bool], policy: Policy
) -> bool:
    """Compare two unequal fractions of which at least one was written with a decimal point."""
    gap = abs(wanted - got)
    if gap > Fraction(policy.relative_tolerance) * Fraction(1.000001) * abs(wanted):
        return False
    finite = _digits_after_point(wanted), _digits_after_point(got)
    if finite[0] is None or finite[1] is None:
        return True  # an unending fraction and a decimal approximation of it
    shorter, longer = sorted((finite[0], finite[1]))
    if shorter == longer:
        return False
    if gap <= Fraction(1, 10**13) * abs(wanted):
        return True  # the rest of a binary floating-point sum
    short, long = (wanted, got) if finite[0] < finite[1] else (got, wanted)
    significant = len(str(abs(short.numerator * 10**shorter // short.denominator)))
    return significant >= ROUNDING_DIGITS and abs(short - long) <= Fraction(1, 2 * 10**shorter)


def _digits_after_point(value: Fraction) -> int | None:
    """Count the decimals of a finite decimal; ``None`` for an unending one."""
    below, twos, fives = value.denominator, 0, 0
    while below % 2 == 0 and twos < 400:
        below, twos = below // 2, twos + 1
    while below % 5 == 0 and fives < 400:
        below, fives = below // 5, fives + 1
    return max(twos, fives) if below == 1 else None


def _rounds_to(value: Fraction, gold: Fraction, gold_text: str) -> bool:
    """Tell whether ``value`` is ``gold`` at the digits that the gold answer gives."""
    compact = re.sub(r"\s|[{}]", "", gold_text)
    compact = re.sub(r"\*10\^([+-]?\d+)\Z", r"e\1", compact)
    match = _DECIMAL.fullmatch(compact)
    if match is None or number(compact) is None or not (match.group(3) or match.group(4)):
        return False
    last = Fraction(10) ** (int(match.group(4) or 0) - len(match.group(3)))
    return abs(value - gold) <= last / 2


def _points(names: frozenset[str], trees: tuple[Tree, Tree]) -> Iterator[dict[str, Fraction]]:
    """Yield the points to compare at: whole numbers where only those make sense."""
    if any(_wants_integers(tree) for tree in trees):
        ordered = sorted(names)
        for offset in (0, 1, 3):
            for order in (ordered, ordered[::-1]):
                yield {
                    name: Fraction(2 + offset + 3 * index)  # neighbours differ in parity
                    for index, name in enumerate(order)
                }
        return
    if any(node[0] == "fn" and node[1] in _STEPS for tree in trees for node in _nodes(tree)):
        # Two step functions may differ at a few whole numbers only: sqrt(n) steps at squares.
        for whole in range(2, 28):
            yield {name: Fraction(whole + 5 * index) for index, name in enumerate(sorted(names))}
    for index, scale in zip((0, 2, 4, 6, 8, 10), _scales(trees), strict=False):
        yield {name: value * scale for name, value in point(names, index).items()}
    if not any(_branches(tree) for tree in trees):
        yield point(names, 1)
        yield point(names, 3)


def _nodes(tree: Tree) -> Iterator[Tree]:
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        if node[0] == "fn":
            stack.extend(node[2:])
        elif node[0] not in ("num", "sym", "const"):
            stack.extend(node[1:])


def _wants_integers(tree: Tree) -> bool:
    """Tell whether a tree has factorials, binomials, or a power of a negative number."""
    for node in _nodes(tree):
        if node[0] == "fact" or (node[0] == "fn" and node[1] in _WHOLE):
            return True
        if node[0] == "pow" and node[1][0] == "neg" and symbols(node[2]):
            return not symbols(node[1])
    return False


def _branches(tree: Tree) -> bool:
    """Tell whether a tree has roots or logarithms, whose sign rules hold above zero only."""
    for node in _nodes(tree):
        if node[0] == "fn" and node[1] in _BRANCHING:
            return True
        if node[0] == "pow" and not _is_whole(node[2]):
            return True
    return False


def _scales(trees: tuple[Tree, Tree]) -> tuple[Fraction, ...]:
    """Choose how far from zero to compare (points lie between 1/4 and 5/2)."""
    names = {node[1] for tree in trees for node in _nodes(tree) if node[0] == "fn"}
    if names & {"arcsin", "arccos"}:  # their arguments lie in the unit interval
        return (Fraction(1, 3),) * 3
    if names & {"floor", "ceil", "min", "max"}:  # steps that small numbers do not reach
        return tuple(Fraction(scale) for scale in (1, 3, 11, 37, 101, 337))
    return (Fraction(1),) * 3


def _is_whole(tree: Tree) -> bool:
    while tree[0] == "neg":
        tree = tree[1]
    return bool(tree[0] == "num" and tree[1].denominator == 1)


def _same_function(gold: Tree, pred: Tree, names: frozenset[str], policy: Policy) -> bool:
    compared = 0
    tolerant = has_decimal(gold) or has_decimal(pred)
    for values in _points(names, (gold, pred)):
        try:
            equal = _same_at(gold, pred, values, policy, tolerant)
        except Undefined:
            continue
        if not equal:
            return False
        compared += 1
    return compared >= 2


def _same_at(
    gold: Tree, pred: Tree, values: dict[str, Fraction], policy: Policy, tolerant: bool
) -> bool:
    try:
        wanted, got = exact(gold, values), exact(pred, values)
    except (NotRational, TooHard):
        left, left_error = approximate(gold, values)
        right, right_error = approximate(pred, values)
        gap = abs(left - right)
        if gap <= SLACK * (left_error + right_error):
            return True
        return tolerant and gap <= policy.relative_tolerance * abs(left)
    if wanted == got:
        return True
    return tolerant and abs(wanted - got) <= Fraction(policy.relative_tolerance) * abs(wanted)
