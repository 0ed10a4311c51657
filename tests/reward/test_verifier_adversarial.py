r"""Answers written to be accepted: words, hedges, characters and identities that change a value."""

import pytest

from reward import grade
from tests.reward.adversarial import NAME, measure
from tests.reward.agreement import load

FLOOR = 0.99  # share of undisputed rows


def test_the_collected_pairs_are_judged_right(shared):
    if not (shared / "cases" / f"{NAME}.jsonl").is_file():
        pytest.skip(f"no {NAME}.jsonl among the cases")
    tallies, _ = measure(load(shared, NAME))
    rows, right = (sum(getattr(t, name) for t in tallies.values()) for name in ("rows", "agree"))
    assert right / rows >= FLOOR


# (reference, answer)
WRONG = {
    "words": [
        ("5", "5 squared"),
        ("5", "5 halves"),
        ("25", "25 millions"),
        ("5", "5 incorrect"),
        ("5", "five wrong"),
        ("7", "7 thousandths"),
        ("5", "5 negative apples"),
        ("5", "5 roots of"),
        ("25", "25 cubes"),
        ("25", "25 sines"),
        ("25", "25 roots"),
        ("25", r"25\text{ choose }2"),
        ("25", r"25\text{ over }2"),
        ("25", r"25\text{ out of }26"),
        ("5", "5 pairs of three"),
        ("12", r"12\text{ dozen eggs}"),
        ("5", r"5\text{k}"),
        ("5", r"5\text{ M}"),
        ("5", "five mod two"),
        ("5 cm", "5x"),
        ("5 cm", "5 apples"),
        ("5x", "5 cm"),
        (r"5\text{ cm}^2", "5x^2"),
        ("5", "5 gobbledygooks"),
        ("-5", "five"),
        ("(1,2]", r"(1\text{ zzz},2]"),
        ("x>5", r"x>5\text{ zzz}"),
    ],
    "hedges": [
        ("4", "4 for some cases, 5 otherwise"),
        ("5", "5 where 6"),
        ("5", "5 respectively 6"),
        ("5", r"5\text{ approximately }6"),
        ("5", r"5\text{ (about 6)}"),
        ("5", r"5\text{ (i.e. 6)}"),
        ("5", r"5\text{ such that it is not}"),
        ("5", r"5\text{ for each and }6"),
        ("5", r"5\text{ where x is 6}"),
        ("x", r"x\text{ where }x=6"),
        ("5", r"5\text{ (in fact 6)}"),
        ("5", r"5\text{ (since 6 is the answer)}"),
        ("5", r"5\text{ (rounded to 6)}"),
        ("5", r"5\text{ for all } 6"),
    ],
    "denials": [
        ("5", r"\text{It is not true that it is }5"),
        ("5", r"\text{wrong: }5"),
        ("B", "B) is incorrect"),
        ("5", "It would be a mistake to say the answer is 5"),
        ("B", "B, maybe"),
        ("true", "true is wrong"),
        ("yes", "yes incorrect"),
        ("12", r"12\text{ is not the answer}"),
        ("25", r"\text{It is false that }x=25"),
        ("25", r"\text{No: }25"),
        ("25", r"\text{everything but: }25"),
        ("Paris", "anything but Paris"),
        ("B", "(B) isn't right"),
    ],
    "chains": [
        (r"\frac13", r"\frac13\approx0.5"),
        ("2", r"x=2\approx7"),
        ("x=2", r"x=2\approx7"),
        ("10", r"10\approx11"),
        (r"\pi", r"\pi\approx4"),
        (r"\frac12", r"0.5\approx1"),
        ("6", r"\begin{aligned}x&=5\\&=6\end{aligned}"),
        (r"\frac12", r"\frac13=\frac12=50\%"),
        (r"\frac12", r"40\%=\frac12"),
        ("119", "5!=119"),
        (r"\frac{dy}{dx}=2x", "y=2x"),
    ],
    "characters": [
        ("x = 5", "x =\u0338 5"),
        ("x =\u0338 5", "x = 5"),
        (r"x \in A", "x \u2208\u0338 A"),
        ("5", "5\u0338"),
        ("5", "5\u0336"),
        ("33", "3\u03353"),
        ("x<5", "x<\u03385"),
        ("0.3", "0.3\u0305"),
    ],
}
RIGHT = {
    "words": [
        ("5/2", "5 halves"),
        ("3/4", "3 quarters"),
        ("0.02", r"\text{two hundredths}"),
        ("5", "five apples"),
        ("-5", r"\text{negative five}"),
        ("-5", "minus five"),
        ("12", "12 students"),
        ("18", "18 mph"),
        ("5", r"5\text{ red apples}"),
        ("7 gumdrops", "7"),
        ("7", "7 years old"),
        ("25 gobbledygooks", "25"),
        ("25 gobbledygooks", "25 gobbledygooks"),
        ("24", "24 square units"),
        ("5 m", "5m"),
        ("60", "60 miles per hour"),
        ("40", r"40\text{ different ways}"),
        ("105", "one hundred and five"),
        ("30", r"30\text{ gallons of oat milk}"),
        ("36", r"36\text{ sq cm}"),
        ("3", r"\text{3 real roots}"),
        ("25", r"25\text{ degrees Celsius}"),
        (r"0.5\text{ A}", r"0.50\text{ A}"),
        (r"\frac{5}{12}", r"\text{five twelfths}"),
        (r"\binom n2", r"{n \choose 2}"),
    ],
    "labels": [
        ("2x", r"\frac{dy}{dx}=2x"),
        ("2x", "dy/dx=2x"),
        (r"\frac{dy}{dx}=2x", "2x"),
        ("6x", r"\frac{\partial^2 f}{\partial x^2}=6x"),
        ("2x", r"\frac{d}{dx}(x^2)=2x"),
        ("-40", r"\Delta H=-40"),
        ("5", r"\mathbb{E}[X]=5"),
        ("120", "5!=120"),
        (r"x\ne5", "x!=5"),
    ],
    "wrappings": [
        ("6", r"\max\{5,6\}"),
        ("5", r"\begin{aligned}x&=2+3\\&=5\end{aligned}"),
        ("5", r"\begin{cases}x=5\end{cases}"),
        ("5", r"\begin{array}{l}5\end{array}"),
        ("0.5", r"\frac12=0.5=50\%"),
        (r"50\%", r"\frac12=0.5=50\%"),
    ],
    "side conditions": [
        (r"2k\pi", r"2k\pi\text{ where }k\text{ is an integer}"),
        ("1,2", r"1,2\text{ respectively}"),
        ("Ce^x", r"Ce^x\text{ for some constant }C"),
        ("3.14", r"3.14\text{ (rounded to two decimals)}"),
        (r"\frac13", r"\frac13 (approximately 0.33)"),
        (r"\frac12", r"\frac12\text{ (i.e. 0.5)}"),
        ("12", r"12\text{ is the answer}"),
        ("B", "B) no real solutions"),
        (r"\pi", r"\pi\approx3.14"),
    ],
    "characters": [
        (r"\frac13", "0.3\u0305"),
        ("5", "x\u0304=5"),
        (r"x\ne5", "x=\u03385"),
        ("caf\u00e9", "cafe\u0301"),
    ],
}


@pytest.mark.parametrize("line", ["Example: n = 2 gives 3.", "System: x = 3 and y = 4."])
def test_a_line_of_reasoning_does_not_hide_the_final_box(line):
    assert grade(f"So \\boxed{{3}}.\n\n{line}\n\nThus \\boxed{{2}}.", "2").correct


def rows(table):
    return [pytest.param(*pair, id=f"{kind}-{pair[1]}") for kind in table for pair in table[kind]]


@pytest.mark.parametrize(("gold", "answer"), rows(WRONG))
def test_a_changed_value_is_refused(gold, answer):
    assert not grade(f"\\boxed{{{answer}}}", gold).correct


@pytest.mark.parametrize(("gold", "answer"), rows(RIGHT))
def test_a_right_answer_in_such_words_is_accepted(gold, answer):
    verdict = grade(f"\\boxed{{{answer}}}", gold)
    assert verdict.correct, verdict
