"""The second judge: what it says, what it says nothing of, and that other code says it."""

import ast
import inspect

import pytest

import reward.second_opinion
from reward import VerifierPool, grade
from reward.graders import GRADERS, SECOND_OPINION, grader_by_name
from reward.second_opinion import second_opinion
from tests.reward.second_judge import says


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("0.5", r"\frac12", True),
        ("0.3333333", "1/3", True),
        ("0.33", "1/3", False),
        ("2,1", "1,2", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x+1)^2", "x^2+2x+2", False),
        (r"\sqrt{x^2}", "x", False),
        ("56x^2+39xy+4y^2", "(7x+4y)(8x+y)", True),
        ("56x^2+38xy+4y^2", "(7x+4y)(8x+y)", False),
        (r"\sqrt2+\sqrt3", r"\sqrt{5+2\sqrt6}", True),
        (r"\sqrt{10^{30}+1}", "10^{15}", False),
        ("x=5", "5", True),
        ("y=2x+1", "y=1+2x", True),
        ("5x", "5", False),
        ("[1,2]", "[1,2)", False),
        ("[4,-1]", "(4,-1)", False),
        (r"(-\infty,\frac62)", r"\left(-\infty, 3\right)", True),
        (r"(-\infty,3)", "(2,3)", False),
        ("(2,1)", "(1,2)", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", False),
        (r"\pm2", "2,-2", True),
        ("$7$", "7", True),
        ("7", r"the answer is \boxed{7}", True),
    ],
)
def test_it_compares_values(answer, gold, expected):
    assert says(answer, gold) is expected


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("seat", "east"),  # one product of letters to math-verify
        ("52_9", "52_8"),
        ("12/5", "12:05"),
        (r"24\text{ cm}^2", r"24\text{ cm}"),
        ("5 m", "5"),
        ("5 m", "5 s"),
        ("5m", "5"),
        ("50", r"50\%"),
        ("60", r"60^\circ"),
        (r"2\approx7", "2"),
        ("x=2=5", "5"),
        ("12=11", "11"),
        ("1,2,2", "1,2"),
        ("(1,2)", r"\{1,2\}"),
        ("1.7e-19", "1.6e-19"),
        (r"1.7\times10^{-19}", r"1.6\times10^{-19}"),  # equal to six digits behind the point
        ("3 1/4", r"3\frac14"),
        ("9^{9^9}", "3"),
        ("1000000!", "3"),
        (r"\frac{1}{0}", "1"),
        ("B", "A"),
        ("{" * 50 + "1" + "}" * 50, "1+0"),
    ],
)
def test_it_says_nothing_of_what_its_parser_misreads(answer, gold):
    assert says(answer, gold) is None


def test_it_reads_the_answer_where_the_verifier_does():
    assert second_opinion("the answer is 5", "5").status == "no_answer"
    response = r"<think>\boxed{5}</think> so \boxed{6}"
    assert grade(response, "5").extracted == second_opinion(response, "5").extracted == "6"


def test_a_contradiction_within_gives_no_verdict_and_says_who_says_what():
    verdict = second_opinion(r"\boxed{1.7\times10^{-19}}", r"1.6\times10^{-19}")
    assert (verdict.status, verdict.correct) == ("uncertain", False)
    assert verdict.reason == "sympy: different; math-verify: equal"


def test_the_comparison_shares_no_code_with_the_verifiers():
    tree = ast.parse(inspect.getsource(reward.second_opinion))
    ours = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("reward")
    }
    assert ours == {
        *("reward.extract", "reward.limits", "reward.symbolic", "reward.verdict"),
        "reward.library",  # which imports math-verify
    }
    shared = next(
        node.names for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "reward.symbolic"
    )  # fmt: skip
    assert [name.name for name in shared] == ["screen"]


def test_the_pool_knows_it_by_name_and_recipes_do_not():
    assert SECOND_OPINION not in GRADERS
    assert grader_by_name(SECOND_OPINION) is second_opinion
    with VerifierPool(timeout=20.0, grader=SECOND_OPINION) as pool:
        assert pool.submit(r"\boxed{x+1}", "1+x").result().path == "sympy and math-verify"
        assert pool.submit_pair("1/2", "0.25").result().correct is False
