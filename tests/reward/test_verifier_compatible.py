"""Compatible graders: the published behaviour, its weaknesses included."""

import json

import pytest

from reward.compatible import (
    exact_match,
    hendrycks_equal,
    one_shot_rlvr,
    prm800k_equal,
    qwen,
    qwen_normal,
)
from reward.graders import GRADERS, grader_by_name, pair_grader_by_name
from reward.verdict import DEFAULT

ONE_SHOT = [
    (r"So \boxed{12.8}", "12.8", True),
    (r"\boxed{12.8 \text{ miles per hour}}", "12.8", True),
    (r"\boxed{12.8 miles per hour}", "12.8", False),
    (r"\boxed{\frac{64}{5}}", "12.8", True),
    (r"\boxed{V=12.8}", "12.8", True),
    ("The answer is 12.8", "12.8", False),
    (r"\boxed 12.8", "12.8", False),
    (r"\boxed{\frac{8}{6}}", r"\frac{4}{3}", False),
    (r"\boxed{1 1/3}", r"\frac{4}{3}", True),
    (r"\boxed{12\cdot 2}", "24", False),
    (r"\boxed{50\%}", "50", True),
    (r"\boxed{\text{yes}}", "Yes", True),
    (r"\boxed{25}", r"\boxed{25}", True),
    (r"\boxed{(2,1)}", "(1,2)", False),
]


@pytest.mark.parametrize(("response", "gold", "correct"), ONE_SHOT)
def test_one_shot_rlvr(response, gold, correct):
    assert one_shot_rlvr(response, gold).correct == correct


QWEN = [
    (r"so \boxed{27}", "27", True),
    ("the answer is 204.", "204", True),
    (r"\boxed{204} and later \boxed{205}", "204", False),
    (r"\boxed{1.3333}", r"\frac{4}{3}", True),
    (r"\boxed{0.5}", "50", True),
    (r"\boxed{[3,5]}", "(3,5)", True),
    (r"\boxed{070}", "70", True),
    (r"\boxed{}", "25", False),
    (r"\boxed{25", "25", True),
    (r"\boxed{twenty five}", "25", True),
    (r"\boxed{(3,1.5708)}", r"(3,\frac{\pi}{2})", False),
    (r"\boxed{12.801}", "12.8", True),
    (r"\boxed{12.81}", "12.8", False),
    (r"\boxed{(C)}", "C", True),
    ("I tried 1 and 2", "2", True),
]


@pytest.mark.parametrize(("response", "gold", "correct"), QWEN)
def test_qwen(response, gold, correct):
    assert qwen(response, gold).correct == correct


def test_exact_compares_characters():
    assert exact_match(r"\boxed{ 3 }", "3").correct
    assert not exact_match(r"\boxed{3.0}", "3").correct
    assert exact_match("3", "3").status == "no_answer"


@pytest.mark.parametrize(
    ("pred", "gold", "hendrycks", "prm800k"),
    [
        (r"\tfrac12", r"\frac{1}{2}", True, True),
        ("0.5", r"\frac{1}{2}", True, True),
        ("x=3", "3", True, True),
        ("10%", "10", True, True),
        ("2x+1", "1+2x", False, True),
        ("1,2", "2,1", False, False),
        (r"\frac{2}{4}", r"\frac{1}{2}", False, False),
        ("3.0", "3", False, True),
        ("[1,2]", "(1,2)", False, False),
    ],
)
def test_the_two_text_graders(pred, gold, hendrycks, prm800k):
    assert hendrycks_equal(pred, gold) == hendrycks
    assert (hendrycks_equal(pred, gold) or prm800k_equal(pred, gold)) == prm800k


def test_graders_are_found_by_name():
    assert set(GRADERS) == {"rlvr", "one_shot_rlvr", "qwen", "exact", "math_verify"}
    for name in GRADERS:
        assert grader_by_name(name)(r"\boxed{3}", "3", DEFAULT).correct
        assert pair_grader_by_name(name)("3", "3", DEFAULT).correct
        assert not pair_grader_by_name(name)("4", "3", DEFAULT).correct
    with pytest.raises(ValueError, match="did you mean 'qwen'"):
        grader_by_name("quen")


@pytest.mark.parametrize("name", ["one_shot_rlvr", "qwen", "exact"])
@pytest.mark.parametrize(
    "answer", ["9^{9^{9^9}}", "1" * 50_000, "{" * 5000, "10000000!", "__import__('os')", "\\" * 999]
)
@pytest.mark.timeout(20)
def test_compatible_graders_do_not_hang_or_run_code(name, answer):
    assert not GRADERS[name](f"\\boxed{{{answer}}}", "3", DEFAULT).correct


def read(shared, name):
    with (shared / "cases" / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_the_published_training_reward_case_by_case(shared):
    for row in read(shared, "oneshot_reward_cases"):
        verdict = one_shot_rlvr(row["response"], row["gold"])
        assert float(verdict.correct) == row["reward"], row
        assert (verdict.extracted or "") == (row["extracted"] or ""), row


def test_the_published_evaluation_case_by_case(shared):
    for row in read(shared, "oneshot_eval_cases"):
        verdict = qwen(row["response"], str(row["gold_raw"]))
        assert verdict.correct == row["correct"], row
        assert (verdict.extracted or "") == row["pred"], row
        assert qwen_normal(str(row["gold_raw"])) == row["gold"], row
