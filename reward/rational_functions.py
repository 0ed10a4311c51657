"""Rational functions, compared exactly but for chance.

They are evaluated at random points of a field of ``PRIME`` elements (Schwartz and Zippel), where
two different ones of degree d agree with a probability below d / PRIME.
"""

import hashlib
import random
from collections.abc import Mapping

from reward.expression import Tree, nodes
from reward.numeric import symbols

PRIME = 2**127 - 1


def generator_of(gold: Tree, pred: Tree) -> random.Random:
    """Random numbers that depend on a pair alone, so that its verdict is always the same."""
    text = f"{gold!r}\n{pred!r}"
    return random.Random(hashlib.sha256(text.encode("utf-8", "replace")).digest())


def is_rational(tree: Tree) -> bool:
    """Tell whether a tree has only sums, products, quotients and whole powers."""
    for node in nodes(tree):
        if node[0] == "pow" and whole_power(node[2]) is None:
            return False
        if node[0] not in ("num", "sym", "add", "mul", "div", "neg", "pow"):
            return False
    return True


def same_rational(gold: Tree, pred: Tree) -> bool:
    """Compare two rational functions; False if one has no value anywhere."""
    names = sorted(symbols(gold) | symbols(pred))
    draw = generator_of(gold, pred)
    compared = 0
    for _ in range(8):
        values = {name: draw.randrange(PRIME) for name in names}
        try:
            if _modular(gold, values) != _modular(pred, values):
                return False
        except ZeroDivisionError:
            continue
        compared += 1
        if compared == 2:
            return True
    return False


def whole_power(tree: Tree) -> int | None:
    """The exponent that a tree is, if it is a whole number."""
    sign = 1
    while tree[0] == "neg":
        tree, sign = tree[1], -sign
    return sign * int(tree[1]) if tree[0] == "num" and tree[1].denominator == 1 else None


def _modular(tree: Tree, values: Mapping[str, int]) -> int:
    kind = tree[0]
    if kind == "num":
        return _quotient(tree[1].numerator, tree[1].denominator)
    if kind == "sym":
        return values[tree[1]]
    left = _modular(tree[1], values)
    if kind == "neg":
        return -left % PRIME
    if kind == "pow":
        power = whole_power(tree[2]) or 0
        if left == 0 and power <= 0:
            raise ZeroDivisionError
        return pow(left, power, PRIME)
    right = _modular(tree[2], values)
    if kind == "add":
        return (left + right) % PRIME
    return left * right % PRIME if kind == "mul" else _quotient(left, right)


def _quotient(above: int, below: int) -> int:
    if below % PRIME == 0:
        raise ZeroDivisionError
    return above * pow(below, -1, PRIME) % PRIME
