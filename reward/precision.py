r"""Values of expressions in multiple precision, and whether two are equal at a point.

They are computed with as many digits as the largest and the smallest number of the calculation
need, so that an exact form is never equal by rounding.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import mpmath

from reward.exact import NotRational, Undefined, exact
from reward.expression import Tree
from reward.limits import TooHard
from reward.numeric import symbols
from reward.points import INTEGER_FUNCTIONS, Point

DIGITS = 60  # beyond the sizes of the numbers of a calculation
MAX_DIGITS = 4000
_DIGITS_OF_A_BIT = math.log10(2)

Number = Any  # mpmath.mpf or mpmath.mpc: the package has no types


@dataclass
class _Work:
    """One evaluation: the sizes it met (powers of ten), and whether it stayed real.

    It leaves the real numbers where a function of real numbers does: a written i does not count.
    """

    values: Mapping[str, Fraction]
    size: float = 1.0
    real: bool = True
    seeds: dict[str, int] = field(default_factory=dict)

    def seen(self, value: Number) -> Number:
        if not mpmath.isfinite(value):
            raise Undefined("no finite value")
        if isinstance(value, mpmath.mpc):
            rounding = mpmath.mpf(10) ** (20 - mpmath.mp.dps)
            value = value.real if abs(value.imag) <= abs(value.real) * rounding else value
        if value != 0:
            self.size = max(self.size, _size(value))
        if self.size > MAX_DIGITS:
            raise TooHard("a number out of range")
        return value

    def result(self, value: Number, *arguments: Number) -> Number:
        """See the value of a function, which may leave the real numbers."""
        value = self.seen(value)
        if isinstance(value, mpmath.mpc) and not any(
            isinstance(argument, mpmath.mpc) for argument in arguments
        ):
            self.real = False
        return value


def _rounded_off(value: Number, *arguments: Number) -> Number:
    """A value, or zero where it is below the last digits of what it was computed from: sin(pi)."""
    largest = max(abs(argument) for argument in arguments)
    return (
        mpmath.mpf(0) if abs(value) <= largest * mpmath.mpf(10) ** (10 - mpmath.mp.dps) else value
    )


def _size(value: Number) -> float:
    """The power of ten of a number other than 0, at most a third of a digit too large."""
    return float(abs(int(mpmath.mag(value))) + 1) * _DIGITS_OF_A_BIT


def same_at(gold: Tree, pred: Tree, values: Point, tolerance: float = 0.0) -> tuple[bool, bool]:
    """Tell whether two expressions agree at a point, and whether both stay real there.

    Raises:
        Undefined: if one has no value there.
        TooHard: if it needs too many digits.
    """
    try:
        wanted, got = exact(gold, values), exact(pred, values)
    except (NotRational, TooHard):
        pass
    else:
        return wanted == got or abs(wanted - got) <= Fraction(tolerance) * abs(wanted), True
    left, right, size, real = both_at(gold, pred, values, 30)
    if tolerance and abs(left - right) <= tolerance * abs(left):
        return True, real
    digits = int(DIGITS + 4 * _digits(size))
    left, right, size, real = both_at(gold, pred, values, digits)
    if 2 * size + 30 > digits:
        raise TooHard("a number too small for the digits that it was computed with")
    return _near(left, right, size, digits, tolerance), real


def _digits(size: float) -> float:
    if size > MAX_DIGITS / 4:
        raise TooHard("a number with too many digits")
    return size


def both_at(
    gold: Tree, pred: Tree, values: Point, digits: int
) -> tuple[Number, Number, float, bool]:
    """Both values with so many digits, the largest size met, and whether both stayed real.

    Raises:
        Undefined: if one has no value there.
        TooHard: if it needs too many digits.
    """
    works = _Work(values), _Work(values)
    with mpmath.workdps(digits):
        try:
            left, right = (
                work.seen(_value(tree, work, False))
                for tree, work in zip((gold, pred), works, strict=True)
            )
        except (ZeroDivisionError, ValueError, OverflowError, NotRational) as error:
            if isinstance(error, TooHard):
                raise
            raise Undefined(str(error)) from error
    return left, right, max(work.size for work in works), all(work.real for work in works)


def _near(left: Number, right: Number, size: float, digits: int, tolerance: float) -> bool:
    """Tell whether a gap is only rounding: far below every number of the calculation."""
    with mpmath.workdps(digits):
        gap = abs(left - right)
        if tolerance and gap <= tolerance * abs(left):
            return True
        return bool(gap <= mpmath.mpf(10) ** (int(2 * size) + 15 - digits))


def _value(tree: Tree, work: _Work, degrees: bool) -> Number:
    kind = tree[0]
    if kind == "num":
        return work.seen(_fraction(tree[1]))
    if kind == "sym":
        return work.seen(_fraction(work.values[tree[1]]))
    if kind == "const":
        if tree[1] == "inf":
            raise Undefined("infinity")
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[tree[1]]
    if kind == "fn":
        return _function(tree, work, degrees)
    if kind == "fact":
        return work.seen(_fraction(_exactly(tree, work)))
    left = _value(tree[1], work, degrees)
    if kind == "neg":
        return -left
    if kind == "deg":
        return work.seen(left * mpmath.pi / 180) if degrees else left
    right = _value(tree[2], work, degrees)
    if kind == "add":
        return work.seen(_rounded_off(left + right, left, right))
    if kind == "mul":
        return work.seen(left * right)
    if kind == "div":
        return work.seen(left / right)
    return work.result(_power(left, right, tree[2], work), left, right)


def _fraction(value: Fraction) -> Number:
    return mpmath.mpf(value.numerator) / value.denominator


def _exactly(tree: Tree, work: _Work) -> Fraction:
    try:
        return exact(tree, work.values)
    except NotRational as error:
        raise Undefined("not a whole number") from error


def _power(base: Number, power: Number, tree: Tree, work: _Work) -> Number:
    if base == 0:
        if mpmath.re(power) > 0:
            return mpmath.mpf(0)
        raise Undefined("a power of zero")
    if abs(power) * _exponent(base) > MAX_DIGITS:
        raise TooHard("a power with too many digits")
    if isinstance(base, mpmath.mpf) and base < 0 and not symbols(tree):
        try:
            ratio = exact(tree, {})
        except (NotRational, Undefined, TooHard):
            ratio = Fraction(1, 2)
        if ratio.denominator % 2 == 1:  # the real root, as an odd root sign has
            return (-1) ** (ratio.numerator % 2) * (-base) ** power
    return base**power


def _exponent(base: Number) -> float:
    """The size of the logarithm to base 10, for what a power of the number needs."""
    near = float(abs(base))
    return abs(math.log10(near)) if 0 < near < math.inf else _size(base)


def _function(tree: Tree, work: _Work, degrees: bool) -> Number:
    name = tree[1]
    if name in INTEGER_FUNCTIONS:
        whole = tuple(("num", _exactly(item, work), False) for item in tree[2:])
        return work.seen(_fraction(exact(("fn", name, *whole), {})))
    angles = name in ("sin", "cos", "tan", "cot", "sec", "csc")
    arguments = [_value(item, work, degrees or angles) for item in tree[2:]]
    first = arguments[0]
    if name.startswith("value of "):
        key = f"{name}:{mpmath.nstr(first, 12)}".encode()
        return work.seen(work.values[name].numerator * (1 + mpmath.mpf(zlib.crc32(key)) / 2**32))
    if name == "root":
        return work.result(_root(first, arguments[1]), *arguments)
    if name in ("min", "max", "floor", "ceil", "sgn"):
        if not all(isinstance(value, mpmath.mpf) for value in arguments):
            raise Undefined("not a real number")
        return work.seen(_step(name, arguments))
    if name in ("exp", "sinh", "cosh", "tanh"):
        work.size = max(work.size, abs(float(first.real)))
        if work.size > MAX_DIGITS:
            raise TooHard("an exponential out of range")
    value = _FUNCTIONS[name](first)
    return work.result(_rounded_off(value, first) if name in _WITH_ZEROS else value, first)


def _root(radicand: Number, degree: Number) -> Number:
    order = int(mpmath.nint(mpmath.re(degree)))
    if order == 0 or order != degree:
        if degree == 0:
            raise Undefined("a root of order zero")
        return radicand ** (1 / degree)
    if isinstance(radicand, mpmath.mpf) and radicand < 0 and order % 2:
        return -(mpmath.root(-radicand, abs(order)) ** (1 if order > 0 else -1))
    return mpmath.root(radicand, abs(order)) ** (1 if order > 0 else -1)


def _step(name: str, arguments: list[Number]) -> Number:
    if name in ("min", "max"):
        return min(arguments) if name == "min" else max(arguments)
    value = arguments[0]
    near = mpmath.nint(value)
    if abs(value - near) <= mpmath.mpf(10) ** (-mpmath.mp.dps // 2) * max(1, abs(value)):
        value = near
    if name == "sgn":
        return mpmath.sign(value)
    return mpmath.floor(value) if name == "floor" else mpmath.ceil(value)


_WITH_ZEROS = ("sin", "cos", "tan", "cot", "ln", "log", "Re", "Im")
_FUNCTIONS = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec,
    "csc": mpmath.csc, "arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan,
    "arccot": lambda z: mpmath.pi / 2 - mpmath.atan(z), "arcsec": lambda z: mpmath.acos(1 / z),
    "arccsc": lambda z: mpmath.asin(1 / z), "sinh": mpmath.sinh, "cosh": mpmath.cosh,
    "tanh": mpmath.tanh, "ln": mpmath.log, "log": mpmath.log, "exp": mpmath.exp, "abs": abs,
    "Re": mpmath.re, "Im": mpmath.im,
}  # fmt: skip
