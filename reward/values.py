r"""Equality of two expressions: exact if possible, with a relative tolerance if necessary.

Two constants written without a decimal point must be exactly equal. A decimal equals an irrational
or unending value if they agree within the policy's relative tolerance; between two finite decimals
only a correct rounding to six or more digits is accepted. `reward.identity` compares expressions
with symbols.
"""

import re
from fractions import Fraction

from reward.certainty import note
from reward.exact import NotRational, Undefined, exact
from reward.expression import Tree
from reward.identity import same_function
from reward.limits import TooHard
from reward.numeric import approximate, has_decimal, point, symbols
from reward.precision import same_at
from reward.tokens import number
from reward.verdict import GradingPolicy

SLACK = 32.0  # how many error bounds two equal values may differ
ROUNDING_DIGITS = 6
_DECIMAL = re.compile(r"([+-]?)(\d*+)\.?(\d*+)(?:[eE]([+-]?\d++))?")


def same_value(gold: Tree, pred: Tree, policy: GradingPolicy, gold_text: str = "") -> bool:
    """Compare two expression trees.

    Args:
        gold: the reference.
        pred: the answer.
        policy: tolerances, and whether fractions must be reduced.
        gold_text: how the reference was written, for ``round_to_gold``.

    Raises:
        TooHard: if a side needs numbers out of bounds.
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
            tolerant = has_decimal(gold) or has_decimal(pred)
            return same_function(gold, pred, policy.relative_tolerance if tolerant else 0.0)
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


def is_near(exact_tree: Tree, tree: Tree, text: str) -> bool:
    """Tell whether one expression can be given as an approximation of another.

    It is rounded to its last written digit, or cut off there, or off by at most one percent.
    """
    names = symbols(exact_tree) | symbols(tree)
    if names:
        return all(_is_close(exact_tree, tree, point(names, index), 0.0) for index in range(8))
    written = re.fullmatch(r"[-+]?(?=\.?\d)\d*+(?:\.(\d*+))?", text.strip())
    return _is_close(exact_tree, tree, {}, 10.0 ** -len(written[1] or "") if written else 0.0)


def _is_close(exact_tree: Tree, tree: Tree, values: dict[str, Fraction], last: float) -> bool:
    try:
        (wanted, _), (got, _) = (approximate(one, values) for one in (exact_tree, tree))
    except (Undefined, TooHard):
        return False
    gap = abs(wanted - got)
    cut_off = last < 1 and abs(got) < abs(wanted) and gap < 0.999 * last
    return cut_off or gap < 0.4999 * last or gap <= 0.01 * abs(wanted)


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


def _same_constant(gold: Tree, pred: Tree, policy: GradingPolicy, gold_text: str) -> bool:
    wanted, got = _exact_or_none(gold), _exact_or_none(pred)
    decimals = has_decimal(gold), has_decimal(pred)
    if wanted is not None and got is not None:
        if wanted == got:
            return note("exact")
        rounded = policy.round_to_gold and _rounds_to(got, wanted, gold_text)
        near = rounded or (any(decimals) and _same_decimal(wanted, got, decimals, policy))
        return near and note("rounding")
    left, left_error = approximate(gold, {})
    right, right_error = approximate(pred, {})
    gap = abs(left - right)
    if gap <= SLACK * (left_error + right_error):
        if any(decimals):
            return note("rounding")
        return same_at(gold, pred, {})[0] and note("digits")
    if policy.round_to_gold and wanted is not None and right.imag == 0:
        return _rounds_to(Fraction(right.real), wanted, gold_text) and note("rounding")
    near = any(decimals) and gap <= policy.relative_tolerance * abs(left)
    return near and note("rounding")


def _exact_or_none(tree: Tree) -> Fraction | None:
    try:
        return exact(tree, {})
    except NotRational:
        return None


def _same_decimal(
    wanted: Fraction, got: Fraction, decimals: tuple[bool, bool], policy: GradingPolicy
) -> bool:
    """Compare two unequal fractions, at least one of which was written with a decimal point."""
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
        return True  # the rounding error of a binary floating-point sum
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
    """Tell whether ``value`` rounds to ``gold`` at the digits of the gold answer."""
    compact = re.sub(r"\s|[{}]", "", gold_text)
    compact = re.sub(r"\*10\^([+-]?\d+)\Z", r"e\1", compact)
    match = _DECIMAL.fullmatch(compact)
    if match is None or number(compact) is None or not (match.group(3) or match.group(4)):
        return False
    last = Fraction(10) ** (int(match.group(4) or 0) - len(match.group(3)))
    return abs(value - gold) <= last / 2
