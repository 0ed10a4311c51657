"""What the default policy promises for every answer, on random ones."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward import GradingPolicy, equivalent, grade

FEW = settings(max_examples=150)
WHOLE = st.integers(-10_000, 10_000)
FRACTIONS = st.fractions(min_value=-50, max_value=50, max_denominator=60)


def latex(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def spellings(value: Fraction) -> list[str]:
    whole, rest = divmod(abs(value.numerator), value.denominator)
    sign = "-" if value < 0 else ""
    forms = [
        latex(value),
        latex(value).replace("frac", "dfrac"),
        f"{value.numerator}/{value.denominator}",
        f"\\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}",
        f"x = {latex(value)}",
        f"\\left({latex(value)}\\right)",
        f"{latex(value)} \\text{{ meters}}",
        f"${latex(value)}$.",
        f"{latex(2 * value)} \\cdot \\frac12",
    ]
    if rest and whole:
        forms.append(f"{sign}{whole}\\frac{{{rest}}}{{{value.denominator}}}")
    return forms


@FEW
@given(FRACTIONS)
def test_every_spelling_of_a_fraction_equals_every_other(value):
    forms = spellings(value)
    for one in forms:
        assert equivalent(one, forms[0]).correct, one
        assert equivalent(forms[0], one).correct, one


@FEW
@given(FRACTIONS, FRACTIONS)
def test_two_fractions_are_equal_only_if_they_are(one, other):
    for form in spellings(other):
        assert equivalent(form, latex(one)).correct == (one == other), form


@FEW
@given(st.lists(FRACTIONS, min_size=2, max_size=6), st.randoms())
def test_bare_lists_are_multisets_and_tuples_are_not(values, generator):
    shuffled = list(values)
    generator.shuffle(shuffled)
    listed, other = (", ".join(map(latex, items)) for items in (values, shuffled))
    assert equivalent(other, listed).correct
    assert equivalent(other, listed, GradingPolicy(ordered_lists=True)).correct == (
        values == shuffled
    )
    assert equivalent(f"({other})", f"({listed})").correct == (values == shuffled)
    assert equivalent(f"\\{{{other}\\}}", f"\\{{{listed}\\}}").correct
    assert not equivalent(f"{listed}, 77", listed).correct
    assert not equivalent(", ".join(map(latex, values[1:])), listed).correct


@FEW
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5), st.integers(0, 4), st.integers(1, 5))
def test_polynomials_are_equal_in_any_order_and_unequal_with_any_coefficient_changed(
    coefficients, place, change
):
    def polynomial(numbers, order):
        terms = [f"({numbers[power]})x^{{{power}}}" for power in order]
        return " + ".join(terms)

    rising = range(len(coefficients))
    gold = polynomial(coefficients, rising)
    assert equivalent(polynomial(coefficients, reversed(rising)), gold).correct
    changed = list(coefficients)
    changed[place % len(changed)] += change
    assert not equivalent(polynomial(changed, rising), gold).correct


@FEW
@given(FRACTIONS, FRACTIONS, st.sampled_from(["()", "[]", "(]", "[)"]))
def test_intervals_equal_their_inequalities(one, other, kinds):
    if one == other:
        return
    low, high = sorted((one, other))
    interval = f"{kinds[0]}{latex(low)}, {latex(high)}{kinds[1]}"
    signs = ["\\le" if kind in "[]" else "<" for kind in kinds]
    inequality = f"{latex(low)} {signs[0]} x {signs[1]} {latex(high)}"
    backwards = inequality.replace("\\le", "\\ge").replace("<", ">")
    parts = backwards.split(" ")
    assert equivalent(inequality, interval).correct
    assert equivalent(interval, inequality).correct
    assert equivalent(" ".join(parts[::-1]), interval).correct
    for wrong in ("()", "[]", "(]", "[)"):
        dressed = f"{wrong[0]}{latex(low)}, {latex(high)}{wrong[1]}"
        assert equivalent(dressed, interval).correct == (wrong == kinds)


@FEW
@given(WHOLE, st.integers(1, 9), st.data())
def test_a_changed_digit_is_a_different_answer(value, step, data):
    text = str(abs(value))
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + str((int(text[place]) + step) % 10) + text[place + 1 :]
    for frame in ("{}", "{}\\pi", "\\sqrt{{{}+1}}", "x+{}", "{}\\%", "0.0{}", "{}e-20", "({},1)"):
        gold, pred = frame.format(text), frame.format(changed)
        assert equivalent(gold, gold).correct
        assert not equivalent(pred, gold).correct, (pred, gold)
        assert not grade(f"\\boxed{{{pred}}}", gold).correct


@pytest.mark.parametrize("tolerance", [1e-9, 1e-6, 1e-3])
def test_the_tolerance_is_relative(tolerance):
    policy = GradingPolicy(relative_tolerance=tolerance)
    for scale in ("", "e-30", "e30"):
        near = f"{1.4142135623730951 * (1 + tolerance / 2):.15f}{scale}"
        far = f"{1.4142135623730951 * (1 + tolerance * 2):.15f}{scale}"
        gold = f"\\sqrt{{2}} \\cdot 10^{{{scale[1:] or 0}}}"
        assert equivalent(near, gold, policy).correct
        assert not equivalent(far, gold, policy).correct
