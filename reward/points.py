"""The points at which a pair of expressions is compared: drawn for the pair, and always the same.

Whole numbers where a factorial, a binomial coefficient or a power of a negative number asks for
them, else real numbers of both signs, of many sizes, and around every constant of the pair.
"""

import random
from collections.abc import Iterator
from fractions import Fraction

from reward.expression import Tree, nodes
from reward.numeric import symbols
from reward.rational_functions import generator_of, is_rational, whole_power

REAL_POINTS, WHOLE_POINTS = 40, 60
INTEGER_FUNCTIONS = ("binom", "gcd", "lcm", "double factorial")
SIGNED = ("abs", "sgn")
_STEPS = {"floor", "ceil"}
_PIECEWISE = {*_STEPS, *SIGNED, "min", "max", "root"}
_COUNTERS = set("nmkNMK")
_REALS = set("xyztuvw")

Point = dict[str, Fraction]


def whole_names(tree: Tree) -> frozenset[str]:
    """The names of which a tree takes factorials, binomials, powers of a negative number, or a step
    if all its names count (n, m, k)."""
    found: frozenset[str] = frozenset()
    for node in nodes(tree):
        steps = node[0] == "fn" and node[1] in _STEPS and symbols(tree) <= _COUNTERS
        if node[0] == "fact" or (node[0] == "fn" and node[1] in INTEGER_FUNCTIONS) or steps:
            found |= symbols(node)
        elif node[0] == "pow" and node[1][0] == "neg" and not symbols(node[1]):
            found |= symbols(node[2])
    return found


def _whole_in(gold: Tree, pred: Tree) -> frozenset[str] | None:
    """The names that stand for whole numbers in a pair, or ``None`` if they cannot be equal.

    An answer alone may ask for it only of a name that counts, or where the reference is a rational
    function, which its values at whole numbers determine: ``x x!/x!`` is not ``|x|``.
    """
    own, theirs = whole_names(gold), whole_names(pred)
    return None if (theirs - own) & _REALS and not is_rational(gold) else own | theirs


def points(gold: Tree, pred: Tree) -> Iterator[Point]:
    """Yield the points at which a pair is compared, the same for the same pair.

    There are none if the answer has values at whole numbers only and the reference at all.
    """
    names = sorted(symbols(gold) | symbols(pred))
    draw = generator_of(gold, pred)
    constants = sorted(
        {abs(node[1]) for tree in (gold, pred) for node in nodes(tree) if node[0] == "num"}
        | {Fraction(10) ** k for k in _powers_of_ten(gold, pred)}
    )[-12:]
    wanted = _whole_in(gold, pred)
    if wanted is None:
        return
    whole = sorted(wanted)
    if whole == names:
        yield from _whole_points(names, constants, draw)
    elif whole:
        drawn = list(_whole_points(whole, constants, draw))
        for index, values in enumerate(_real_points(names, constants, draw)):
            yield values | drawn[index % len(drawn)]
    else:
        names_of = {node[1] for one in (gold, pred) for node in nodes(one) if node[0] == "fn"}
        if names_of & _STEPS:
            # Two step functions may differ at few whole numbers: floor(sqrt(n)) steps at squares.
            for value in range(50):
                yield {name: Fraction(value + 5 * place) for place, name in enumerate(names)}
        if names_of & _PIECEWISE:
            yield from _around_breaks(names, constants, draw)
        yield from _real_points(names, constants, draw)


def _powers_of_ten(*trees: Tree) -> Iterator[int]:
    for tree in trees:
        for node in nodes(tree):
            power = whole_power(node[2]) if node[0] == "pow" else None
            if power is not None and 0 < power <= 30 and node[1] == ("num", Fraction(10), False):
                yield power


def _whole_points(
    names: list[str], constants: list[Fraction], draw: random.Random
) -> Iterator[Point]:
    whole = [int(value) for value in constants if value.denominator == 1 and 1 < value < 10**12]
    for index in range(WHOLE_POINTS):
        top = (12, 12, 40, 80)[index % 4]
        yield {name: Fraction(draw.randint(0, top)) for name in names}
    for value in whole:
        for factor in (1, 2, 6):
            chosen = draw.choice(names)
            point = {name: Fraction(draw.randint(0, 12)) for name in names}
            yield point | {chosen: Fraction(value * factor + draw.choice((0, 0, 1, -1)))}
    if len(names) == 1:
        for value in range(25):
            yield {names[0]: Fraction(value)}


def _around_breaks(
    names: list[str], constants: list[Fraction], draw: random.Random
) -> Iterator[Point]:
    """Yield points on either side of where ``|a x - b|`` and its like may change their form."""
    some = [value for value in constants if value][-5:]
    breaks = sorted({*some, *(one / other for one in some for other in some)})
    largest = max(breaks, default=Fraction(1))
    beyond = [10 * largest, min(largest, Fraction(10) ** 15) ** 2]
    for value in [*breaks, *beyond]:
        for sign in (-1, 1):
            for at in (value, value * (1 + Fraction(draw.randint(-300, 300), 1000))):
                others = {name: Fraction(draw.randint(-3000, 3000), 1009) for name in names}
                yield others | {draw.choice(names): sign * at}


def _real_points(
    names: list[str], constants: list[Fraction], draw: random.Random
) -> Iterator[Point]:
    largest = max([*constants, Fraction(1)])
    span = 4 + min(len(str(int(largest))), 40)
    around = [value for value in constants if value]

    def real(low: float, high: float) -> Fraction:
        return Fraction(draw.uniform(low, high)).limit_denominator(10**6)

    def sized() -> Fraction:
        return Fraction(10) ** draw.randint(-3, span - 1) * real(1, 10)

    def one(kind: int) -> Fraction:
        sign = draw.choice((-1, 1))
        if kind == 0:
            return real(0.3, 2.5)
        if kind == 1:
            return real(-3, 3)
        if kind == 2:
            return real(-1, 1)
        if kind == 3:
            return sized()
        if kind == 4:
            return sign * sized()
        if kind == 5:
            return Fraction(draw.randint(-12, 12))
        near = draw.choice(around) if around else Fraction(1)
        return sign * near + draw.choice((-1, 0, 1)) * real(0.01, 2)

    for index in range(REAL_POINTS):
        kind = index % 8
        yield {name: one(draw.randrange(7) if kind == 7 else kind) for name in names}
