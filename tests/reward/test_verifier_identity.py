r"""Expressions with symbols are equal only if they are: no few points, no rounding."""

import time

import pytest

from reward import grade
from reward.command import explain
from reward.expression import parse
from reward.identity import same_function
from reward.normalize import clean
from reward.points import points
from reward.rational_functions import same_rational

# (reference, answer)
WRONG = [
    ("(-1)^{n+1}", "(-1)^m"),
    ("(-1)^{b+1}", "(-1)^a"),
    ("0", "(-1)^n+(-1)^m"),
    (r"\gcd(n,7)", "1"),
    ("1", r"\gcd(n,1000003)"),
    ("97n", r"\operatorname{lcm}(n,97)"),
    (r"\binom n6", r"\binom n9"),
    (r"5\binom{n}{5}", r"\binom{n}{4}"),
    ("n!", "n!+(n-2)(n-3)(n-5)"),
    ("m+n-1", r"m+n-\gcd(m,n)"),
    ("3-x", "|x-3|"),
    ("10^6", r"\max(x,10^6)"),
    ("n", r"\min(n,2000)"),
    ("1", r"\operatorname{sgn}(100-x)"),
    ("|5x-1000000|", "1000000-5x"),
    (r"\lfloor x/1000000\rfloor", r"\lfloor x/1000001\rfloor"),
    (r"\lfloor n/2000\rfloor", r"\lfloor n/1000\rfloor"),
    (r"\lfloor\sqrt{n-1}\rfloor", r"\lfloor\sqrt{n-3}\rfloor"),
    (r"\lfloor x\rfloor+1", r"\lceil x\rceil"),
    (r"\ln|x|", r"\ln x"),
    (r"\sqrt{x^2}", "x"),
    ("x", r"1.0\sqrt{x^2}"),
    ("a+b", r"\sqrt{a^2+2ab+b^2}"),
    ("ab", "a|b|"),
    ("x+y=1", "x+|y|=1"),
    ("x", "x+10^{-20}"),
    ("x", r"x+10^{-30}\sqrt{x}"),
    ("10^{15}", r"\sqrt{10^{30}+1}"),
    (r"10^{20}", r"\sqrt{10^{40}+1}"),
    ("1", r"\tanh 20"),
    ("1", r"\tanh 300"),
    (r"\frac{\pi}{2}", r"\arctan(10^{17})"),
    (r"\pi", r"\pi+10^{-300}"),
    ("0", r"\sin(10^{-400})"),
    ("262537412640768744", r"e^{\pi\sqrt{163}}"),
    ("x^{100}", "x^{101}"),
    ("f(x)", "f(2x)"),
    ("z", r"\Re z"),
    ("z^2", "|z|^2"),
    (r"\lceil n\rceil+1", r"\lfloor n\rfloor"),
]
RIGHT = [
    (r"\frac{(n-3)(n-4)}2", r"\binom{n-3}2"),
    ("n(n-1)(n-2)(n-3)(n-4)(n-5)", r"\frac{n!}{(n-6)!}"),
    (r"\binom{n}{n-k}", r"\frac{n!}{k!(n-k)!}"),
    (r"\binom{n}{k}", r"\binom{n-1}{k}+\binom{n-1}{k-1}"),
    ("(-1)^{n-m}", "(-1)^{n+m}"),
    ("(-1)^n", r"\cos(\pi n)"),
    (r"\sqrt{xy}", r"\sqrt{x}\sqrt{y}"),
    (r"x\sqrt x", r"\sqrt{x^3}"),
    ("x^{1/3}", r"\sqrt[3]{x}"),
    (r"2\ln|x|", r"\ln x^2"),
    ("x", r"e^{\ln x}"),
    ("|x|", r"\max(x,-x)"),
    (r"\arcsin x", r"\arctan\frac{x}{\sqrt{1-x^2}}"),
    (r"\cos\theta+i\sin\theta", r"e^{i\theta}"),
    (r"a^{\log_a x}", "x"),
    ("(1+x)^{1000}", "(x+1)^{1000}"),
    ("4^{500}", "2^{1000}"),
    (r"\sqrt{5+2\sqrt{6}}", r"\sqrt2+\sqrt3"),
    ("1", r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}"),
    (r"\frac13x", "0.333333333x"),
    ("x^2+y^2=1", "2x^2+2y^2=2"),
    (r"\sqrt{x}+\sqrt{y}=1", r"\sqrt y=1-\sqrt x"),
    (r"\lceil n/2\rceil", r"\lfloor\frac{n+1}{2}\rfloor"),
    (r"|z|^2", r"\Re(z)^2+\Im(z)^2"),
]


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_different_expressions_are_refused(gold, answer):
    for wanted, given in ((gold, answer), (answer, gold)):
        assert not grade(f"\\boxed{{{given}}}", wanted).correct


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_equal_expressions_are_accepted(gold, answer):
    verdict = grade(f"\\boxed{{{answer}}}", gold)
    assert verdict.correct, verdict


def trees(*texts):
    return [parse(clean(text)) for text in texts]


def test_the_points_of_a_pair_are_its_own_and_always_the_same():
    pair, other = trees("x^2", r"|x|\sqrt{x^2}"), trees("x^2", r"|x|\sqrt{1x^2}")
    assert list(points(*pair)) == list(points(*pair)) != list(points(*other))


def test_real_points_have_both_signs_all_sizes_and_the_constants_of_the_pair():
    values = [point["x"] for point in points(*trees("|x-5000|", "5000-x"))]
    assert min(values) < -1000 < 1000 < max(values)
    assert any(value.denominator > 1 for value in values)
    assert any(abs(value - 5000) <= 2 for value in values)
    assert any(0 < abs(value) < 1 for value in values)


def test_whole_points_have_all_parities():
    pairs = {(p["m"] % 2, p["n"] % 2) for p in points(*trees("(-1)^m", "(-1)^n"))}
    assert len(pairs) == 4


@pytest.mark.timed
def test_rational_functions_are_compared_without_expanding_them():
    gold, pred = trees("(x+1)^{1000}(y-1)^{999}", "(1+x)^{1000}(y-1)^{998}(y-1)")
    began = time.process_time()
    assert same_rational(gold, pred)
    assert not same_rational(gold, trees("(x+1)^{1000}(y-1)^{998}")[0])
    assert time.process_time() - began < 0.5


def test_a_value_nowhere_is_equal_to_nothing():
    gold, pred = trees(r"\frac{x}{x-x}", r"\frac{1}{x-x}")
    assert not same_function(gold, pred)
    assert not same_rational(gold, gold)


@pytest.mark.parametrize(
    ("gold", "answer", "certainty"),
    [
        ("5", "5", "exact"),
        ("0.5", r"\frac12", "exact"),
        ("x+1", "1+x", "field"),
        (r"\sqrt2", r"\frac{2}{\sqrt2}", "digits"),
        (r"\sin 2x", r"2\sin x\cos x", "points"),
        (r"\sqrt2", "1.41421356", "rounding"),
        (r"(x+1,\sin 2x)", r"(1+x,2\sin x\cos x)", "points"),
        (r"\oint_C f", r"\oint_Cf", "exact"),
        ("5", "6", ""),
    ],
)
def test_a_verdict_says_what_it_rests_on(gold, answer, certainty):
    assert grade(f"\\boxed{{{answer}}}", gold).certainty == certainty
    shown = explain(f"\\boxed{{{answer}}}", gold)
    assert f"rests on    {certainty}:" in shown if certainty else "rests on" not in shown
