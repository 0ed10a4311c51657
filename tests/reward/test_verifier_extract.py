"""Extraction: which part of a response is its answer."""

import pytest

from reward.extract import extract, final_segment, unwrap_boxes

BOXES = [
    (r"So \boxed{42}.", "42"),
    (r"first \boxed{wrong}, final \boxed{42}", "42"),
    (r"answer: \fbox{7}", "7"),
    (r"noise \boxed   {  x^2 } end", "x^2"),
    (r"\boxed{outer {inner} ok}", "outer {inner} ok"),
    (r"\boxed{\boxed{8\sqrt{6}}}", r"8\sqrt{6}"),
    (r"\boxed{x = \boxed{3}}", "x = 3"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
    (r"\boxed{4}\n\nWait, that is wrong. \boxed{3}", "3"),
    (r"\boxed3", "3"),
    (r"\boxed 5.", "5"),
    (r"\boxed{}. So \boxed{3}", "3"),
    ("<think>maybe \\boxed{4}</think>\\boxed{3}", "3"),
    ("a</think>b</think>\\boxed{3}", "3"),
    (r"a } stray { brace \boxed{3}", "3"),
    (r"\boxed{1} ... \boxed{\text{a } b}", r"\text{a } b"),
    ("\\boxed{3}<|im_end|>\n<|im_start|>user\nnext \\boxed{4}", "3"),
    ("\\boxed{3}\n\nQuestion: What is 2+2?\n\\boxed{4}", "3"),
    ("\\boxed{3}\n\nHuman: again?\n\\boxed{4}", "3"),
    ("\\boxed{3}\n## Problem 2.\n\\boxed{4}", "3"),
    ("Question: 1+2?\nIt is \\boxed{3}", "3"),
    ("<think>Question: hm\nQuestion: hm</think>\\boxed{3}", "3"),
]


@pytest.mark.parametrize(("response", "answer"), BOXES)
def test_the_last_box_of_the_final_answer_is_read(response, answer):
    assert extract(response).answer == answer


NOTHING = [
    "",
    "   ",
    "just 42",
    "The answer is 42",
    "Step 3",
    r"\boxed{unbalanced",
    r"So \boxed{\frac{1}{2}",
    r"\boxed{1} and then \boxed{2",
    r"\boxed{}",
    r"The answer is 3. \boxed{}",
    r"\boxed{ }",
    r"\boxed  not_brace",
    r"\boxedtext{3}",
    "<think>\\boxed{3}</think> The answer is 4.",
    "<think>\\boxed{3}",
    "a</think>b<think>\\boxed{3}",
    "<think>\\boxed{3}</think>",
    "<answer>3</answer>",
    "Answer: 3",
]


@pytest.mark.parametrize("response", NOTHING)
def test_there_is_no_answer_and_a_reason_is_given(response):
    found = extract(response)
    assert found.answer is None
    assert found.reason


MARKED = [
    ("<answer>3</answer>", "3"),
    ("Long solution. Answer: 42", "42"),
    ("work\nAnswer: $336$", "$336$"),
    ("答案: C", "C"),
    ("**Answer:** 7", "7"),
    ("Answer: 3\nbut \\boxed{4}", "4"),
]


@pytest.mark.parametrize(("response", "answer"), MARKED)
def test_marked_answers_are_read_where_asked_for(response, answer):
    assert extract(response, "marked").answer == answer


def test_the_last_number_is_read_only_by_name():
    assert extract("I tried 1, 2 and 1,003.", "marked").answer is None
    assert extract("I tried 1, 2 and 1,003.", "last_number").answer == "1003"


def test_boxes_of_the_last_line_are_joined_on_request():
    response = "\\boxed{9}\nThe roots are \\boxed{2} and \\boxed{3}."
    assert extract(response).answer == "3"
    assert extract(response, join_boxes=True).answer == "2, 3"


def test_an_unclosed_think_block_has_no_segment():
    assert final_segment("<think>x")[0] is None
    assert final_segment("x")[0] == "x"


def test_unwrapping_keeps_what_stands_around_the_boxes():
    assert unwrap_boxes(r"\(\boxed{1}\) and \(\fbox{-2}\)") == r"\(1\) and \(-2\)"
    assert unwrap_boxes(r"\boxed{1") == r"\boxed{1"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "response",
    [
        "{" * 5_000_000,
        "\\boxed{" * 1_000_000,
        "\\boxed{" * 20_000 + "3" + "}" * 20_000,
        "<think>" * 500_000,
        "\n" * 5_000_000,
        "\nQuestion" * 500_000,
        "Answer:" * 500_000,
        "\\" * 5_000_000,
        "1," * 2_500_000,
    ],
    ids=["braces", "boxes", "nested", "thinks", "lines", "questions", "answers", "slashes", "list"],
)
def test_megabytes_of_anything_take_seconds_at_most(response):
    for mode in ("boxed", "marked", "last_number"):
        extract(response, mode)
