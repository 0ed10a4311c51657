r"""Value of an expression tree: exact if possible, else in complex floats with an error bound.

Each value has a bound of its rounding error: two values differ if their gap exceeds their bounds.
Whether two exact forms are equal is for `reward.precision` to say, in more digits. No tolerance is
absolute: ``1.6e-19`` is not ``1.7e-19``.

Exact values are in `reward.exact`, which also bounds the size of numbers.
"""

import cmath
import math
import zlib
from collections.abc import Mapping
from fractions import Fraction

from reward.exact import NotRational, Undefined, exact, factorial
from reward.expression import Tree, nodes
from reward.limits import TooHard

UNIT = 2.0**-52


def symbols(tree: Tree) -> frozenset[str]:
    """Collect the names of the symbols and unknown functions of a tree."""
    return frozenset(
        node[1]
        for node in nodes(tree)
        if node[0] == "sym" or (node[0] == "fn" and node[1].startswith("value of "))
    )


def has_decimal(tree: Tree) -> bool:
    """Tell whether a tree contains a number written with a decimal point."""
    return any(node[0] == "num" and node[2] for node in nodes(tree))


def point(names: frozenset[str], index: int) -> dict[str, Fraction]:
    """Return the index-th point: a fraction for each name, determined by the name.

    Points with even indices are positive (for roots and logarithms); odd ones have mixed signs.
    """
    values = {}
    for name in names:
        seed = zlib.crc32(f"{index}:{name}".encode())
        value = Fraction(seed % 8999 + 1009, 4001 + (seed >> 16) % 97)
        values[name] = -value if index % 2 and seed & 1024 else value
    return values


Approximate = tuple[complex, float]  # a value and a bound on its absolute error


def approximate(tree: Tree, values: Mapping[str, Fraction], degrees: bool = False) -> Approximate:
    """Evaluate in complex double precision with an error bound.

    Args:
        tree: the expression.
        values: a number for each symbol.
        degrees: whether ``°`` means pi/180 (inside a trigonometric function).

    Raises:
        Undefined: if there is no finite value.
        TooHard: if a number is out of range.
    """
    try:
        value, error = _approximate(tree, values, degrees)
    except OverflowError as overflow:
        raise TooHard("a number out of range") from overflow
    except (ZeroDivisionError, ValueError, NotRational) as undefined:
        if isinstance(undefined, TooHard):
            raise
        raise Undefined(str(undefined)) from undefined
    if not (math.isfinite(value.real) and math.isfinite(value.imag) and math.isfinite(error)):
        raise Undefined("no finite value")
    return value, error


def _approximate(tree: Tree, values: Mapping[str, Fraction], degrees: bool) -> Approximate:
    kind = tree[0]
    if kind == "num":
        return _rounded(complex(float(tree[1])))
    if kind == "sym":
        return _rounded(complex(float(values[tree[1]])))
    if kind == "const":
        if tree[1] == "inf":
            raise Undefined("infinity")
        return _rounded({"pi": math.pi + 0j, "e": math.e + 0j, "i": 1j}[tree[1]])
    if kind == "deg":
        value, error = _approximate(tree[1], values, degrees)
        scale = math.pi / 180 if degrees else 1.0
        return value * scale, error * scale + UNIT * abs(value * scale)
    if kind == "fn":
        return _function(tree, values, degrees)
    if kind == "fact":
        return _rounded(complex(float(factorial(_whole(tree[1], values)))))
    left = _approximate(tree[1], values, degrees)
    if kind == "neg":
        return -left[0], left[1]
    right = _approximate(tree[2], values, degrees)
    if kind == "add":
        value = left[0] + right[0]
        return value, left[1] + right[1] + UNIT * abs(value)
    if kind == "mul":
        return _product(left, right)
    if kind == "div":
        return _quotient(left, right)
    return _power(left, right)


def _rounded(value: complex) -> Approximate:
    return value, UNIT * abs(value)


def _whole(tree: Tree, values: Mapping[str, Fraction]) -> Fraction:
    try:
        return exact(tree, values)
    except NotRational as error:
        raise Undefined("not a whole number") from error


def _product(left: Approximate, right: Approximate) -> Approximate:
    value = left[0] * right[0]
    return value, abs(left[0]) * right[1] + abs(right[0]) * left[1] + 2 * UNIT * abs(value)


def _quotient(left: Approximate, right: Approximate) -> Approximate:
    if abs(right[0]) <= 4 * right[1]:
        raise Undefined("division by zero")
    value = left[0] / right[0]
    relative = right[1] / abs(right[0])
    return value, left[1] / abs(right[0]) + abs(value) * (relative + 4 * UNIT)


def _on_axis(number: Approximate) -> Approximate:
    """Drop an imaginary part that is only rounding, whose sign would pick the branch below zero."""
    value, error = number
    return (complex(value.real), error) if abs(value.imag) <= error else number


def _power(base: Approximate, power: Approximate) -> Approximate:
    base = _on_axis(base)
    if abs(base[0]) <= 2 * base[1]:
        if power[0].real > 0:
            return 0j, base[1] ** min(power[0].real, 1.0)
        raise Undefined("a power of zero")
    value = base[0] ** power[0]
    error = abs(power[0]) * base[1] / abs(base[0]) + abs(cmath.log(base[0])) * power[1]
    return value, abs(value) * (error + 8 * UNIT)


def _function(tree: Tree, values: Mapping[str, Fraction], degrees: bool) -> Approximate:
    name = tree[1]
    if name.startswith("value of "):
        return _unknown_function(name, _approximate(tree[2], values, False), values)
    if name in ("binom", "gcd", "lcm", "double factorial"):
        whole = ("fn", name, *(("num", _whole(item, values), False) for item in tree[2:]))
        return _rounded(complex(float(exact(whole, values))))
    trigonometric = name in ("sin", "cos", "tan", "cot", "sec", "csc")
    arguments = [_approximate(item, values, degrees or trigonometric) for item in tree[2:]]
    if name == "root":
        return _root(arguments[0], arguments[1])
    if name in ("min", "max", "floor", "ceil", "sgn"):
        return _real_function(name, arguments)
    value, error = _on_axis(arguments[0])
    result = _FUNCTIONS[name](value)
    # The derivative, with a step far larger than rounding and far smaller than the function's
    # scale.
    step = 1e-6 * max(abs(value), 1e-6)
    try:
        slope = abs(_FUNCTIONS[name](value + step) - result) / step
    except (ValueError, ZeroDivisionError, OverflowError):
        slope = abs(result) / step
    return result, 2 * slope * error + 8 * UNIT * abs(result)


def _root(radicand: Approximate, degree: Approximate) -> Approximate:
    order = degree[0].real
    if order == 0:
        raise Undefined("a root of order zero")
    value, error = _on_axis(radicand)
    if abs(value) <= 2 * error:
        return 0j, error ** (1 / order)
    odd = order % 2 == 1 and value.imag == 0 and value.real < 0
    root = -((-value) ** (1 / order)) if odd else value ** (1 / order)
    return root, abs(root) * (error / abs(value) / abs(order) + 8 * UNIT)


def _real_function(name: str, arguments: list[Approximate]) -> Approximate:
    if any(abs(value.imag) > error for value, error in arguments):
        raise Undefined("not a real number")
    reals = [(value.real, error) for value, error in arguments]
    if name in ("min", "max"):
        value, error = min(reals) if name == "min" else max(reals)
        return complex(value), error
    value, error = reals[0]
    near = round(value)
    if abs(value - near) <= 8 * error:
        value = float(near)
    rounded = {"floor": math.floor, "ceil": math.ceil, "sgn": lambda v: (v > 0) - (v < 0)}[name]
    return complex(rounded(value)), 0.0


def _unknown_function(
    name: str, argument: Approximate, values: Mapping[str, Fraction]
) -> Approximate:
    """Give f(x) a fixed value that depends only on the first nine digits of x."""
    seed = float(values[name])
    value = argument[0]
    key = f"{value.real:.9g}:{value.imag:.9g}"
    return _rounded(complex(seed * (1 + zlib.crc32(key.encode()) / 2**32)))


_FUNCTIONS = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda z: 1 / cmath.tan(z),
    "sec": lambda z: 1 / cmath.cos(z),
    "csc": lambda z: 1 / cmath.sin(z),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "arccot": lambda z: math.pi / 2 - cmath.atan(z),
    "arcsec": lambda z: cmath.acos(1 / z),
    "arccsc": lambda z: cmath.asin(1 / z),
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "ln": cmath.log,
    "log": cmath.log,
    "exp": cmath.exp,
    "abs": lambda z: complex(abs(z)),
    "Re": lambda z: complex(z.real),
    "Im": lambda z: complex(z.imag),
}
