r"""Exact value of an expression tree over fractions, with bounds on the size of numbers.

Powers, factorials and binomials that would need more than `MAX_BITS` bits raise `TooHard` before
anything is computed.
"""

import math
from collections.abc import Mapping
from fractions import Fraction

from reward.expression import Tree
from reward.limits import TooHard

MAX_BITS = 40_000


class NotRational(ArithmeticError):
    """The value is not a fraction."""


class Undefined(ArithmeticError):
    """The expression has no value here (division by zero, infinity, a pole)."""


def exact(tree: Tree, values: Mapping[str, Fraction]) -> Fraction:
    """Evaluate over fractions.

    Raises:
        NotRational: if a root, constant or function makes (or may make) the value irrational.
        Undefined: on division by zero.
        TooHard: when a power or factorial is out of bounds.
    """
    kind = tree[0]
    if kind == "num":
        value: Fraction = tree[1]
        return value
    if kind == "sym":
        return values[tree[1]]
    if kind == "add":
        return exact(tree[1], values) + exact(tree[2], values)
    if kind == "mul":
        return _bounded(exact(tree[1], values) * exact(tree[2], values))
    if kind == "neg":
        return -exact(tree[1], values)
    if kind == "div":
        below = exact(tree[2], values)
        if below == 0:
            raise Undefined("division by zero")
        return _bounded(exact(tree[1], values) / below)
    if kind == "pow":
        return _exact_power(exact(tree[1], values), exact(tree[2], values))
    if kind == "fact":
        return Fraction(factorial(exact(tree[1], values)))
    if kind == "deg":
        return exact(tree[1], values)
    if kind == "fn":
        return _exact_function(tree, values)
    if tree == ("const", "inf"):
        raise Undefined("infinity")
    raise NotRational(kind)


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise TooHard("a number with too many digits")
    return value


def _exact_power(base: Fraction, power: Fraction) -> Fraction:
    if power.denominator != 1:
        root = _exact_root(base, power.denominator)
        return _exact_power(root, Fraction(power.numerator))
    if base == 0 and power < 0:
        raise Undefined("division by zero")
    if base == 0 and power == 0:
        raise Undefined("0^0")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base != 0 and bits * abs(power) > MAX_BITS:
        raise TooHard("a power with too many digits")
    return base ** (int(power) % 2 if base == -1 else 1 if base in (0, 1) else int(power))


def _exact_root(value: Fraction, degree: int) -> Fraction:
    if degree > 64 or (value < 0 and degree % 2 == 0):
        raise NotRational("root")
    sign = -1 if value < 0 else 1
    if sign < 0:
        raise NotRational("the principal root of a negative number is complex")
    parts = [_integer_root(abs(part), degree) for part in (value.numerator, value.denominator)]
    if parts[0] ** degree != abs(value.numerator) or parts[1] ** degree != value.denominator:
        raise NotRational("root")
    return Fraction(sign * parts[0], parts[1])


def _integer_root(value: int, degree: int) -> int:
    """Return the largest integer whose power does not exceed ``value`` (Newton's method)."""
    if value < 2 or degree == 1:
        return value
    if degree == 2:
        return math.isqrt(value)
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def factorial(value: Fraction) -> int:
    """Return n! of a whole number within bounds."""
    if value.denominator != 1 or value < 0:
        raise Undefined("factorial of something other than a whole number")
    if value > 3300:
        raise TooHard("a factorial with too many digits")
    return math.factorial(int(value))


def _double_factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0:
        raise Undefined("double factorial of something else than a whole number")
    if value > 3300:
        raise TooHard("a factorial with too many digits")
    return Fraction(math.prod(range(int(value), 0, -2)))


def _binomial(above: Fraction, below: Fraction) -> Fraction:
    if above.denominator != 1 or below.denominator != 1:
        raise NotRational("binomial")
    if above < 0:
        raise Undefined("a binomial of a negative number")
    if above > 20_000:
        raise TooHard("a binomial out of bounds")
    if not 0 <= below <= above:
        return Fraction(0)
    if min(below, above - below) * above.numerator.bit_length() > MAX_BITS:
        raise TooHard("a binomial with too many digits")
    return Fraction(math.comb(int(above), int(below)))


def _exact_function(tree: Tree, values: Mapping[str, Fraction]) -> Fraction:
    name = tree[1]
    if name == "root":
        radicand, degree = exact(tree[2], values), exact(tree[3], values)
        if degree.denominator != 1 or degree < 1:
            raise NotRational("root")
        if radicand < 0 and degree % 2 == 1:
            return -_exact_root(-radicand, int(degree))
        return _exact_root(radicand, int(degree))
    if name == "double factorial":
        return _double_factorial(exact(tree[2], values))
    if name == "binom":
        return _binomial(exact(tree[2], values), exact(tree[3], values))
    if name in ("floor", "ceil", "abs", "sgn", "gcd", "lcm", "min", "max"):
        numbers = [exact(argument, values) for argument in tree[2:]]
        return _whole_function(name, numbers)
    raise NotRational(name)


def _whole_function(name: str, numbers: list[Fraction]) -> Fraction:
    first = numbers[0]
    if name == "floor":
        return Fraction(math.floor(first))
    if name == "ceil":
        return Fraction(math.ceil(first))
    if name == "abs":
        return abs(first)
    if name == "sgn":
        return Fraction((first > 0) - (first < 0))
    if name in ("min", "max"):
        return min(numbers) if name == "min" else max(numbers)
    if any(value.denominator != 1 for value in numbers):
        raise NotRational(name)
    whole = [int(value) for value in numbers]
    return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))
