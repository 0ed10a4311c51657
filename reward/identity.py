r"""Identity of two expressions with symbols.

Rational functions are compared in a finite field (`reward.rational_functions`), everything else at
points drawn for the pair (`reward.points`), in multiple precision (`reward.precision`).

At a point where a root or a logarithm leaves the real numbers the two values may be equal or not:
``\sqrt{x}\sqrt{y}`` is ``\sqrt{xy}`` where both are real. But an absolute value says that its
argument has both signs: ``\ln x`` is not ``\ln|x|``. Nor does it excuse a name that the reference
does not have. Where values differ because a side leaves the real numbers, only points at which both
stay real speak for the pair: a factor that is never real agrees with any other at every zero.
Points at which numbers are out of bounds must be no more than those that agree (factorials of
factorials may agree at 0, 1 and 2), and real points at which the answer alone has no value a third.
"""

from dataclasses import dataclass, field
from fractions import Fraction

import mpmath

from reward.certainty import note
from reward.exact import Undefined
from reward.expression import Tree, nodes
from reward.limits import TooHard
from reward.numeric import symbols
from reward.points import SIGNED, Point, points, whole_names
from reward.precision import Number, both_at, same_at
from reward.rational_functions import is_rational, same_rational

ENOUGH = 6  # different points at which both sides must have a value
Key = tuple[tuple[str, Fraction], ...]


def same_function(gold: Tree, pred: Tree, tolerance: float = 0.0) -> bool:
    """Tell whether two expressions with symbols are equal wherever both have a value.

    Args:
        gold: the reference.
        pred: the answer.
        tolerance: largest relative difference (for expressions with decimals).
    """
    if is_rational(gold) and is_rational(pred):
        if same_rational(gold, pred):
            return note("field")
        if not tolerance:
            return False
    names_of = {node[1] for one in (gold, pred) for node in nodes(one) if node[0] == "fn"}
    if names_of & {"abs", "Re", "Im"}:
        gold, pred = _complex(gold), _complex(pred)
    signed = bool(names_of & {*SIGNED, "Re", "Im"}) or not symbols(pred) <= symbols(gold)
    seen = _Seen()
    for values in points(gold, pred):
        if not seen.at(gold, pred, values, tolerance) and (seen.real or signed):
            return False
    whole = bool(whole_names(gold) | whole_names(pred))
    return seen.enough(whole) and note("rounding" if tolerance else "points")


@dataclass
class _Seen:
    """The different points at which two expressions were compared, by what came out."""

    agreed: set[Key] = field(default_factory=set)
    agreed_real: set[Key] = field(default_factory=set)
    excused: set[Key] = field(default_factory=set)
    too_hard: set[Key] = field(default_factory=set)
    lacking: set[Key] = field(default_factory=set)  # the answer has no value, the reference has
    real: bool = True  # whether both stayed real at the last point

    def at(self, gold: Tree, pred: Tree, values: Point, tolerance: float) -> bool:
        """Compare at a point; False if the values differ."""
        key = tuple(sorted(values.items()))
        try:
            equal, self.real = same_at(gold, pred, values, tolerance)
        except TooHard:
            self.too_hard.add(key)
            return True
        except Undefined:
            if _has_value(gold, values):
                self.lacking.add(key)
            return True
        (self.agreed if equal else self.excused).add(key)
        if equal and self.real:
            self.agreed_real.add(key)
        return equal

    def enough(self, whole: bool) -> bool:
        """Tell whether the points at which both agreed are enough, given the others."""
        agreed = len(self.agreed_real if self.excused else self.agreed)
        lacking = 0 if whole else 3 * len(self.lacking)
        return agreed >= max(ENOUGH, len(self.too_hard), lacking)


def _has_value(tree: Tree, values: Point) -> bool:
    try:
        both_at(tree, tree, values, 30)
    except (Undefined, TooHard):
        return False
    return True


def _complex(tree: Tree) -> Tree:
    """Write the name z, where its absolute value or a part of it is taken, as x + iy."""
    if tree[0] == "sym":
        if tree[1] != "z" and not tree[1].startswith("z_"):
            return tree
        imaginary: Tree = ("mul", ("const", "i"), ("sym", tree[1] + " imaginary"))
        return ("add", tree, imaginary)
    if tree[0] in ("num", "const"):
        return tree
    return tuple(_complex(part) if isinstance(part, tuple) else part for part in tree)


def same_up_to_factor(gold: Tree, pred: Tree, positive: bool) -> bool:
    """Tell whether gold = c pred at every point, for one constant c (above 0 if ``positive``)."""
    factor: Number = None
    compared = 0
    for values in points(gold, pred):
        try:
            left, right, size, _ = both_at(gold, pred, values, 50)
        except (Undefined, TooHard):
            continue
        if size > 15 or (left == 0 and right == 0):
            continue
        if left == 0 or right == 0:
            return False
        ratio = left / right
        if factor is None:
            factor = ratio
        elif abs(ratio - factor) > abs(factor) * mpmath.mpf(10) ** (2 * int(size) - 45):
            return False
        compared += 1
    if compared < ENOUGH or abs(mpmath.im(factor)) > 1e-12 * abs(factor):
        return False
    return (bool(mpmath.re(factor) > 0) or not positive) and note("points")
