r"""Answers that a policy found which was paid for wrong accepts (`tests.benchmarks.attack`)."""

import random

import pytest

from reward import GradingPolicy, VerifierPool, grade
from reward.pool import verdict_counts
from tests.benchmarks.attack import balanced
from tests.reward.meaning import Unread, meaning, says, without_litter

# (reference, answer)
WRONG = {
    "a member of a chain that is no value": [
        ("5", "x5=5"),
        ("0", "x31=0"),
        ("5", "!x=5"),
        ("5", r"\rfloor =5"),
        ("5", r"\lfloor =5"),
        ("12", r"\frac{7}{\approx 3}=12"),
        ("5", r"\frac{1i0}{2}=5"),
        ("1", r"3+\neg 2i=1"),
        ("5", r"\dots)x=5"),
        ("1", r"\sim 1=1"),
        ("x=4", "x=4'+x=4"),
        ("x=4", "x respectively =4"),
        ("4", "x=4-x=4"),
    ],
    "a label that is none": [
        (r"\sqrt{2}", r"\sqrt{\,2}=\gcd(n,6)"),
        ("0.25", r"\gcd(n,6)\,=0.25"),
        ("3+2i", r"3+2i=\max(x,7)"),
        ("100", "100=n(1n+1)"),
        ("(-1)^{n}", r"n(n+1)\approx (-1)^{n}"),
        (r"\frac{x}{x+1}", r"n(?+1)\approx \frac{x}{x+1}"),
        ("|x-3|", r"\max(4x,7)\approx \max(x-3,3-x)"),
        (r"\ln(x)", r"\ln(x)=|x|"),
        ("3+2i", "i=3+2i"),
        ("x+1", "1+x=i"),
        ("i", r"\sim \approx i"),
        (r"\lfloor x\rfloor", r"\lfloor x\rfloor =\sin(k"),
    ],
    "an approximation of something else": [
        (r"\ln(|x|)", r"\ln(|x|)\approx 50\%"),
        ("3k+1", r"3k+1\approx 50\%"),
        (r"\{1,2,3\}", r"\{1,2,3\}\approx \gcd(n,61"),
        (r"\{1,2,3\}", r"\{1,2,3\}\approx \{1,2,4\}"),
        (r"\{1,2,3\}", r"\{1,2,3\}\approx 1"),
        (r"\frac12", r"1/2\approx (n-1^{)}"),
        (r"50\%", r"50\%\approx\frac{7}{3i}"),
        (r"50\%", r"50\%\approx 12"),
        ("12", r"12\approx 50\%"),
        ("(1,2)", r"(1,2)\approx 12"),
        (r"\sqrt{x^{2}+1}", r"\sqrt{x^{2}+1}\approx 2^{n}"),
        ("0.25", r"0.25\approx 0.26\%"),
    ],
    "a condition that states nothing, or a value": [
        ("12", "12 where n(n+1)"),
        ("n!", r"n! where (n-1)!"),
        (r"\pi ", r"\pi  where \frac{x}{x+1}"),
        (r"\lfloor x\rfloor", r"\lfloor x\rfloor  where x cubed"),
        ("x+1", r"x+1 where x=\sqrt{2}"),
        ("12", r"12 where \sin(2x)=\frac{1}{2}"),
        ("12", "12 where it is six"),
        ("12", "12 where the answer is "),
        ("12", "12 such that n+1"),
        ("12", "12 for all n(n+1)"),
    ],
    "an unfinished list": [
        ("n!", "n! and"),
        ("12", "12 or "),
        (r"2\sqrt{3}", r" or 2\sqrt{3}"),
        ("1,2", "1 and 2 and "),
        ("|x|", ";|x|"),
        ("[0,1)", "[0,,1)"),
        ("(1,2)", "(1,2,)"),
        ("(1,2)", "(,1,2)"),
        ("(1,2)", "(1,=2)"),
        ("1,2", "1,=2"),
        ("1,2", "1,,2"),
        (r"\{1,2,3\}", r"\{1,2,3)"),
        ("(1,2)", "(1 or 2)"),
        ("(1,2)", "y=1, x=2"),
    ],
    "something before the answer": [
        (r"\pi", r"7 the answer is \pi"),
        ("-3", ")the answer is -3"),
        ("4", "x the answer is 4"),
        ("4", "twice the answer is 4"),
        ("4", "; wrongthe answer is 4"),
        ("4", "quarters the answer is 4"),
        ("4", "or million the answer is 4"),
        ("4", "? the answer is 4"),
        ("4", "-the answer is 4"),
        ("100", "2the answer is 10^{2}"),
        (r"\frac12", r"|xthe answer is |=\frac12"),
    ],
    "a power of things": [
        ("5", r"5\text{ ways} squared"),
        ("5", "5 apples cubed"),
    ],
    "marks that a library skips": [
        ("x+1", r"\dots1+x"),
        ("i", r"i\dots"),
        ("3+2i", r"3+\dots2i"),
        ("[0,1)", r"[\dots=0,1)"),
        ("|x|", "|'x|"),
        ("|x|", "|x|1"),
        ("|x-3|", "|3-x1|"),
        (r"\ln(|x|)", r"\ln(|x|1)"),
        ("0", r"0\{"),
        ("(-1)^{n}", r"(-1)^{n+2\{}"),
    ],
    "a zero that is only rounding": [
        ("x+1", r"x+7+\sin(\pi)"),
        (r"\sin(2x)", r"2\sin(\pi)\cos(x)"),
        ("x", r"\frac{x}{\sin(\pi)}"),
        (r"\sin(x)", r"\cos(\frac{\pi}{2})+7"),
        ("e^{x}", r"2e^{x}+\tan(\pi)"),
        ("x+1", r"x+7+\arccos(\sqrt{2}\sqrt{2}/2)"),
        ("x+1", r"x+7+\ln(\sqrt{2}\sqrt{2}-1)"),
        ("x+1", r"x+7+\sqrt{2}\sqrt{2}-2"),
        ("n!", r"(n+1)!+\sin(n\pi)"),
    ],
    "points that say too little": [
        (r"\ln(x)", r"\ln((-1)^{n}x)"),
        (r"\sqrt{x}", r"\sqrt{x(-1)^{n}}"),
        (r"\lfloor x\rfloor", "x1!"),
        (r"\lfloor x\rfloor", r"x\cdot 1!"),
        (r"\lfloor x\rfloor", r"x\binom{2}{2}"),
        (r"\lfloor x\rfloor", r"x+0\cdot n!"),
        ("|x|", r"x\cdot 1!"),
        ("|x|", r"x\frac{x!}{x!}"),
        (r"\lfloor x\rfloor", r"x\gcd(x,1)"),
        (r"\lfloor x\rfloor", r"x+0\cdot \max(0,\sqrt{-\sin(\pi x)^{2}})"),
        (r"\ln(|x|)", r"\ln(x)\cdot 1!!"),
        (r"|x|(-1)^{n}", r"x(-1)^{n}"),
        (r"\sin(\pi x)", r"0\cdot x!"),
        ("2^{n}", "2^{n}!!!!!!!!!!"),
        ("n(n+1)", "n(n+1)!!!!"),
        (r"\sqrt{x^{2}+1}", r"\sqrt{5x^{2}+1}!!!!!!"),
        ("3k+1", "3k1!+1"),
        ("0", r"0\approx .25"),
        ("0.25", r"0.25\approx 0/25"),
    ],
    "a factor that is never real, or a sign that reads otherwise": [
        (r"\lfloor x\rfloor", r"\lfloor x\rfloor i"),
        (r"\lfloor x\rfloor", r"\lfloor x\rfloor \sqrt{-1}"),
        (r"\lfloor x\rfloor", r"\lfloor x\rfloor \sqrt{-1-x^{2}}"),
        (r"\binom{n}{2}", r"i\frac{n(n-1)}{2}"),
        ("i", "i(n-1)!"),
        ("100", "10^{2}!"),
        ("2", "1{2}"),
        (r"\frac12", r"\frac{1}{8}{4}"),
        (r"\frac{1}{2}", r"0\frac{1}{2}"),
        ("3k+1", r"\max(3k)+1"),
    ],
}
RIGHT = [
    ("4", "x=2y=4"),
    ("12", r"\text{Area} = \text{base} \cdot \text{height} = 12"),
    ("1", r"\lim_{x \to 0} \frac{\sin x}{x} = 1"),
    ("5", r"\det A = 5"),
    ("0.3", "P(X=2)=0.3"),
    (r"\frac{5}{36}", r"\mathbb{P} = \frac{5}{36}"),
    ("10", "5C2 = 10"),
    ("3", r"\gcd(a,b)=3"),
    ("2x", r"\frac{dy}{dx}=2x"),
    ("x+1", "f(x)=x+1"),
    ("0.05", "i = 0.05"),
    (r"\frac{1}{8}", r"\frac{1}{8} \approx 12.5\%"),
    (r"\frac{1}{3}", r"\frac{1}{3} \approx 33\%"),
    (r"\frac{1}{3}", r"\frac{1}{3} \approx 0.333\ldots"),
    (r"12.3\%", r"12.3\% \approx 12\%"),
    (r"(\sqrt{2}, \sqrt{3})", r"(\sqrt{2}, \sqrt{3}) \approx (1.41, 1.73)"),
    (r"\sqrt{2}", r"x = \sqrt{2} \approx 1.414"),
    (r"k\pi", r"k\pi \text{ where } k \in \mathbb{Z}"),
    (r"k\pi", r"k\pi \text{ where } k \text{ is an integer}"),
    ("Ce^{x}", r"Ce^{x} \text{ where } C = \text{constant}"),
    ("ax+by", "ax+by where a+b=1"),
    (r"\frac{1}{n}", r"\frac{1}{n} \text{ for all } n \ge 1"),
    ("x+1", "x+1 for all real numbers x"),
    ("1,2,3", "1, 2, and 3"),
    ("(1,2)", "y=2, x=1"),
    ("(1,2)", "m=1, n=2"),
    (r"\{1,2,3\}", r"\{1, 2, \text{ and } 3\}"),
    ("5", "The answer is 5"),
    ("5", "Therefore, the answer is 5"),
    (r"\frac12", r"\text{So the final answer is } \frac12"),
    ("5", "5 cm squared"),
    (r"\sqrt{xy}", r"\sqrt{x}\sqrt{y}"),
    ("2|x|", "|2x|"),
    ("x+1", r"x+1+\sin(\pi)"),
    ("e^{x}", r"e^{x+\sin(\pi)}"),
    (r"\sin(x)", r"\sin(x+2\pi)"),
    ("n!", r"n!+\sin(n\pi)"),
    (r"\tanh(x)", r"\frac{e^{x}-e^{-x}}{e^{x}+e^{-x}}"),
    ("x(x-1)", r"\frac{x!}{(x-2)!}"),
    (r"\lfloor \frac{n}{2} \rfloor", r"\frac{2n-1+(-1)^{n}}{4}"),
    ("n(n-1)(n-2)", r"\frac{n!}{(n-3)!}"),
    (r"\binom{n}{k} p^{k} (1-p)^{n-k}", r"\frac{n!}{k!(n-k)!} (1-p)^{n-k} p^{k}"),
    (r"\frac{x^{n}}{n!}", r"\frac{x \cdot x^{n-1}}{n (n-1)!}"),
    (r"\binom{n}{k}", r"\frac{n!}{k!(n-k)!}"),
    ("x+1", r"\frac{x^{2}-1}{x-1}+0\cdot \tan(x)"),
    ("n2^{n-1}", r"\frac{n \cdot 2^{n}}{2}"),
    ("120", r"\frac{10!}{3!7!}"),
    ("1024", "2^{10}"),
    ("64", "2^3!"),
    # Litter that is accepted, because real answers have it.
    ("12", "12,"),
    ("12", "12."),
    ("5", "=5"),
    (r"\pi", r"\approx \pi"),
    ("5", "x==5"),
    ("-3", "-3 respectively"),
]  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_find_is_refused(kind):
    accepted = [
        (gold, answer)
        for gold, answer in WRONG[kind]
        if grade(f"\\boxed{{{answer}}}", gold).correct
    ]
    assert accepted == []


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_its_harmless_likes_are_accepted(gold, answer):
    assert grade(f"\\boxed{{{answer}}}", gold).correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("0.25", r"0.25\approx 0"),
        (r"50\%", "50"),
        ("(-1)^{n}", "(-1)^{nn+2}"),
        (r"\pi ", r"\pi"),
        ("5", "|x|=5"),
        (r"\{1,2,3\}", "1,2,3"),
        ("(1,2)", "1,2"),
        (r"\gcd(n,6)", r"\gcd(nn,6)"),
    ],
)
def test_a_convention_is_no_find(gold, answer):
    assert says(meaning(answer), meaning(gold), random.Random(0))


@pytest.mark.parametrize(("gold", "answer"), [("5", "5;"), ("(1,2)", "(1,2.)"), ("1,2", ",1,2")])
def test_litter_is_told_from_contradictions(gold, answer):
    with pytest.raises(Unread):
        meaning(answer)
    ways = without_litter(answer)
    assert any(says(meaning(way), meaning(gold), random.Random(0)) for way in ways)


def test_an_answer_that_closes_its_box_is_not_judged():
    assert balanced(r"\frac{1}{2}\}")
    assert not balanced("n!}{")


@pytest.mark.parametrize(
    ("least", "gold", "answer", "correct"),
    [
        ("library", r"\frac{1}{3}", "0.3333333", True),
        ("points", r"\frac{1}{3}", "0.3333333", False),
        ("points", r"\sin(2x)", r"2\sin(x)\cos(x)", True),
        ("digits", r"\sin(2x)", r"2\sin(x)\cos(x)", False),
        ("digits", r"\sqrt{8}", r"2\sqrt{2}", True),
        ("field", r"\sqrt{8}", r"2\sqrt{2}", False),
        ("field", "x^2-1", "(x-1)(x+1)", True),
        ("exact", "x^2-1", "(x-1)(x+1)", False),
        ("exact", "0.5", r"\frac12", True),
        ("exact", "7", "7", True),
    ],
)
def test_a_verdict_needs_the_evidence_that_the_policy_asks_for(least, gold, answer, correct):
    verdict = grade(f"\\boxed{{{answer}}}", gold, GradingPolicy(certainty=least))
    assert verdict.correct == correct
    assert verdict.status == ("ok" if correct else "uncertain")
    assert bool(verdict.certainty) == correct


def test_uncertain_verdicts_are_counted_by_the_pool():
    pairs = [(r"\boxed{0.3333333}", r"\frac{1}{3}"), (r"\boxed{1}", "1")]
    with VerifierPool(workers=1, policy=GradingPolicy(certainty="points")) as pool:
        verdicts = pool.grade_many(pairs)
    assert [verdict.correct for verdict in verdicts] == [False, True]
    assert verdict_counts(verdicts)["uncertain"] == 1


def test_an_unknown_level_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"certainty='sure': choose one of exact, field"):
        GradingPolicy(certainty="sure")  # type: ignore[arg-type]
