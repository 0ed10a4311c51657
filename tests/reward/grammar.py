r"""Pairs whose truth is known by construction: an expression with an equivalent, and a near miss.

    python -m tests.reward.grammar --pairs 100000 [--seed 0]

Each family draws a reference, a rewriting that is equal and one that differs from it in one place.
The command prints a table by family, and the 95 % bound on the share of false accepts (Wilson).
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from fractions import Fraction

from reward import grade

Triple = tuple[str, str, str]  # reference, equal answer, near miss
Draw = random.Random


def _signed(value: int) -> str:
    return f"+{value}" if value >= 0 else str(value)


def _nonzero(draw: Draw, top: int) -> int:
    return draw.choice((-1, 1)) * draw.randint(1, top)


def _fraction(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def numbers(draw: Draw) -> Triple:
    """Fractions and decimals."""
    below = draw.choice((2, 4, 5, 8, 10, 20, 3, 7, 9, 11))
    value = Fraction(_nonzero(draw, 400), below)
    factor = draw.randint(2, 9)
    forms = [
        f"\\frac{{{value.numerator * factor}}}{{{value.denominator * factor}}}",
        f"{value.numerator}/{value.denominator}",
        f"x={_fraction(value)}",
        f"{_fraction(value * 2)}\\cdot\\frac12",
    ]
    other = value + Fraction(_nonzero(draw, 3), value.denominator * draw.choice((1, 1, 10)))
    return _fraction(value), draw.choice(forms), _fraction(other)


def _terms(coefficients: list[int], order: list[int], name: str) -> str:
    return "".join(f"{_signed(coefficients[power])}{name}^{{{power}}}" for power in order).lstrip(
        "+"
    )


def polynomials(draw: Draw) -> Triple:
    """Polynomials in one name: shuffled, by Horner's rule, and with one coefficient changed."""
    coefficients = [_nonzero(draw, 20) for _ in range(draw.randint(2, 6))]
    order = list(range(len(coefficients)))
    gold = _terms(coefficients, order, "x")
    nested = str(coefficients[-1])
    for value in coefficients[-2::-1]:
        nested = f"x({nested}){_signed(value)}"
    draw.shuffle(order)
    equal = draw.choice((nested, _terms(coefficients, order, "x")))
    changed = list(coefficients)
    changed[draw.randrange(len(changed))] += _nonzero(draw, 3)
    return gold, equal, _terms(changed, order, "x")


def products(draw: Draw) -> Triple:
    """Products of binomials, expanded, also as quotients."""
    a, b, c, d = (_nonzero(draw, 9) for _ in range(4))
    gold = f"({a}x{_signed(b)}y)({c}x{_signed(d)}y)"
    middle = a * d + b * c

    def expanded(between: int) -> str:
        return f"{a * c}x^2{_signed(between)}xy{_signed(b * d)}y^2"

    equal = draw.choice((expanded(middle), f"\\frac{{({expanded(middle)})(x-7)}}{{x-7}}"))
    return gold, equal, expanded(middle + _nonzero(draw, 2))


def radicals(draw: Draw) -> Triple:
    """Square roots pulled out, rationalised and in sums."""
    a, b, c = draw.randint(2, 12), draw.choice((2, 3, 5, 6, 7, 10, 11)), _nonzero(draw, 9)
    gold = f"{c}{_signed(a)}\\sqrt{{{b}}}"
    forms = [
        f"\\sqrt{{{a * a * b}}}{_signed(c)}",
        f"\\frac{{{a * b}}}{{\\sqrt{{{b}}}}}{_signed(c)}",
        f"\\frac{{{c * c - a * a * b}}}{{{c}{_signed(-a)}\\sqrt{{{b}}}}}",
    ]
    misses = [f"{c}{_signed(-a)}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b + 1}}}{_signed(c)}"]
    return gold, draw.choice(forms), draw.choice(misses)


def angles(draw: Draw) -> Triple:
    """Trigonometric identities with drawn coefficients."""
    a, b = draw.randint(1, 6), _nonzero(draw, 5)
    s, c = f"\\sin({a}x)", f"\\cos({a}x)"
    triples = [
        (f"\\sin({2 * a}x){_signed(b)}", f"2{s}{c}{_signed(b)}", f"{s}{c}{_signed(b)}"),
        (f"\\cos({2 * a}x)", f"1-2{s}^2", f"1-{s}^2"),
        (f"{s}^2{_signed(b)}", f"{1 + b}-{c}^2", f"{1 + b}-{c}"),
        (f"\\tan({a}x)", f"\\frac{{{s}}}{{{c}}}", f"\\frac{{{c}}}{{{s}}}"),
        (f"e^{{{a}ix}}", f"{c}+i{s}", f"{c}-i{s}"),
    ]
    return draw.choice(triples)


def logarithms(draw: Draw) -> Triple:
    """Rules of logarithms and powers."""
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    triples = [
        (f"\\ln({a}x)", f"\\ln x+\\ln {a}", f"\\ln x+{a}"),
        (f"{a}^{{x+{b}}}", f"{a**b}\\cdot {a}^x", f"{a**b + 1}\\cdot {a}^x"),
        (f"\\log_{{{a}}} x", f"\\frac{{\\ln x}}{{\\ln {a}}}", f"\\frac{{\\ln {a}}}{{\\ln x}}"),
        (f"e^{{{a}x}}-{b}", f"(e^x)^{{{a}}}-{b}", f"e^{{x^{{{a}}}}}-{b}"),
        (f"\\sqrt{{x^{{{2 * a + 1}}}}}", f"x^{{{a}}}\\sqrt x", f"x^{{{a + 1}}}\\sqrt x"),
    ]
    return draw.choice(triples)


def cases(draw: Draw) -> Triple:
    """Absolute values, maxima and steps far from zero."""
    a, n = draw.randint(1, 5), draw.choice((1, 7, 50, 3000, 10**6))
    triples = [
        (f"|{a}x-{n}|", f"|{n}-{a}x|", f"{n}-{a}x"),
        (f"|x-{n}|", f"\\max(x-{n},{n}-x)", f"x-{n}"),
        (f"\\sqrt{{(x+{n})^2}}", f"|x+{n}|", f"x+{n}"),
        (f"\\max(x,{n})", f"\\frac{{x+{n}+|x-{n}|}}{{2}}", draw.choice((str(n), "x"))),
        (f"\\min({a}x,{n})", f"{n}+\\min({a}x-{n},0)", f"{a}x"),
        (
            f"\\lfloor x/{n}\\rfloor",
            f"\\lfloor\\frac{{2x}}{{{2 * n}}}\\rfloor",
            f"\\lfloor x/{n + 1}\\rfloor",
        ),
        (f"\\ln|x|+{a}", f"\\frac12\\ln x^2+{a}", f"\\ln x+{a}"),
    ]
    return draw.choice(triples)


def whole(draw: Draw) -> Triple:
    """Factorials, binomial coefficients, signs and divisors of whole numbers."""
    a, k = draw.randint(1, 9), draw.randint(2, 5)
    falling = "".join(f"(n-{a + place})" for place in range(k))
    triples = [
        (falling, f"\\frac{{(n-{a})!}}{{(n-{a + k})!}}", f"\\frac{{(n-{a})!}}{{(n-{a + k - 1})!}}"),
        (
            f"\\binom{{n-{a}}}{{{k}}}",
            f"\\frac{{{falling}}}{{{math.factorial(k)}}}",
            f"\\binom{{n-{a}}}{{{k + 1}}}",
        ),
        (f"\\binom{{n+{a}}}{{k}}", f"\\binom{{n+{a}}}{{n+{a}-k}}", f"\\binom{{n+{a}}}{{k+1}}"),
        (f"(-1)^{{m+{a}}}", f"(-1)^{{m-{a}}}", f"(-1)^{{n+{a}}}"),
        (f"\\gcd(n,{a + 1})", f"\\gcd({a + 1},n+{a + 1})", "1"),
        (f"n!+{a}", f"n(n-1)!+{a}", f"n!+{a}+(n-2)(n-3)(n-5)"),
    ]
    return draw.choice(triples)


def ranges(draw: Draw) -> Triple:
    """Intervals as inequalities."""
    low, high = sorted(draw.sample(range(-30, 30), 2))
    left, right = draw.choice("[("), draw.choice("])")
    signs = ["\\le" if mark in "[]" else "<" for mark in (left, right)]
    other = draw.choice(
        (f"{'(' if left == '[' else '['}{low},{high}{right}", f"{left}{low},{high + 1}{right}")
    )
    return f"{left}{low},{high}{right}", f"{low} {signs[0]} x {signs[1]} {high}", other


def collections(draw: Draw) -> Triple:
    """Lists, sets and tuples."""
    values = draw.sample(range(-20, 20), draw.randint(2, 5))
    shuffled = draw.sample(values, len(values))
    text, mixed = (",".join(map(str, one)) for one in (values, shuffled))
    longer = ",".join(map(str, [*shuffled, shuffled[0]]))
    swapped = ",".join(map(str, values[::-1]))
    return draw.choice(
        (
            (text, mixed, longer),
            (f"\\{{{text}\\}}", f"\\{{{longer}\\}}", f"\\{{{mixed},77\\}}"),
            (f"({text})", f"\\left({text}\\right)", f"({swapped})"),
        )
    )


def words(draw: Draw) -> Triple:
    """Units, nouns and words that change a value."""
    value = draw.randint(2, 900)
    noun = draw.choice(
        ("apples", "students", "cm", "hours", "ways", "square units", "miles per hour")
    )
    spoil = draw.choice(
        (
            "squared",
            "incorrect",
            "thirds",
            "millions",
            "negated",
            "gobbledygooks",
            "or so",
            "factorial",
        )
    )
    prefix = draw.choice(("not", "wrong:", "half of", "minus", "anything but"))
    miss = draw.choice(
        (f"{value}\\text{{ {spoil}}}", f"{value} {spoil}", f"\\text{{{prefix} }}{value}")
    )
    return str(value), draw.choice((f"{value} {noun}", f"{value}\\text{{ {noun}}}")), miss


def chains(draw: Draw) -> Triple:
    """Calculations written out, true and false."""
    a, b = draw.randint(2, 90), draw.randint(2, 90)
    name = draw.choice(("x=", "", "\\frac{dy}{dx}=", "E[X]=", "\\Delta t="))
    return (
        str(a + b),
        f"{name}{a}+{b}={a + b}",
        draw.choice(
            (
                f"{name}{a}+{b}={a + b + 1}",
                f"{a + b + 1}={a + b}",
                f"{a + b}\\approx{a + b + 3 + a}",
            )
        ),
    )


FAMILIES: dict[str, Callable[[Draw], Triple]] = {
    one.__name__: one
    for one in (numbers, polynomials, products, radicals, angles, logarithms, cases, whole, ranges,
                collections, words, chains)
}  # fmt: skip


def measure(pairs: int, seed: int) -> tuple[dict[str, list[int]], list[tuple[str, str, bool]]]:
    """Judge pairs; per family count equal ones, false rejects, near misses and false accepts."""
    counts = {name: [0, 0, 0, 0] for name in FAMILIES}
    wrong = []
    draw = random.Random(seed)
    for index in range(pairs // 2):
        name = list(FAMILIES)[index % len(FAMILIES)]
        gold, equal, miss = FAMILIES[name](draw)
        for answer, truth, place in ((equal, True, 0), (miss, False, 2)):
            counts[name][place] += 1
            if grade(f"\\boxed{{{answer}}}", gold).correct != truth:
                counts[name][place + 1] += 1
                wrong.append((gold, answer, truth))
    return counts, wrong


def upper_bound(hits: int, trials: int) -> float:
    """Return the upper end of Wilson's one-sided 95 % interval for a share."""
    z = 1.645
    share = hits / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return (centre + spread) / (1 + z * z / trials)


def main() -> None:
    """Print the table, and the first pairs judged wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    counts, wrong = measure(arguments.pairs, arguments.seed)
    print("| family | equal | false rejects | near misses | false accepts |")
    print("|---|---:|---:|---:|---:|")
    for name, row in counts.items():
        print(f"| {name} | " + " | ".join(map(str, row)) + " |")
    total = [sum(row[place] for row in counts.values()) for place in range(4)]
    print("| **all** | " + " | ".join(map(str, total)) + " |")
    bound = upper_bound(total[3], total[2])
    print(f"\nfalse accepts below {bound:.2e} (95 %), {time.perf_counter() - began:.0f} s")
    for gold, answer, truth in wrong[:40]:
        print(f"{'refused ' if truth else 'accepted'} {answer} for {gold}")


if __name__ == "__main__":
    main()
