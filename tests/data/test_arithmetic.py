"""Generated arithmetic: right answers, every problem once, two parts that never meet."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from rlvr.data import ArithmeticSource, load_problems
from rlvr.data.arithmetic import permuted

OPERATIONS = ["add", "subtract", "multiply", "multiply_by_digit"]


def available(**choices) -> int:
    """How many problems there are, from the error of asking for too many."""
    with pytest.raises(ValueError, match="lower size") as caught:
        load_problems(ArithmeticSource(size=10**17, **choices))
    return int(re.search(r"has (\d+) problems", str(caught.value)).group(1))


def part(split, **choices):
    size = available(split=split, **choices)
    return load_problems(ArithmeticSource(split=split, size=size, **choices))


@given(st.integers(1, 3000), st.text(max_size=8))
@settings(max_examples=40)
def test_the_order_is_a_permutation(count, key):
    assert sorted(permuted(i, count, key) for i in range(count)) == list(range(count))


def test_the_order_depends_on_the_key_and_looks_shuffled():
    one, two = ([permuted(i, 1000, key) for i in range(1000)] for key in "ab")
    assert one != two
    assert sum(a == b for a, b in zip(one, two, strict=True)) < 20
    # Mean rank displacement of a random permutation of n is n / 3; its deviation here is about 7.
    shift = sum(abs(i - p) for i, p in enumerate(one)) / 1000
    assert 300 < shift < 366


@given(
    operation=st.sampled_from(OPERATIONS),
    least=st.sampled_from([0, 1, 5, 9]),
    seed=st.integers(-5, 5),
    held_out=st.floats(0.01, 0.99),
    negative=st.booleans(),
)
@settings(max_examples=60)
def test_both_parts_are_disjoint_and_together_everything(
    operation, least, seed, held_out, negative
):
    choices = {
        "operations": (operation,),
        "digits": 1,
        "least_operand": least,
        "seed": seed,
        "held_out": held_out,
        "negative_results": negative,
    }
    first, second = range(least, 10), range(least, 10)
    if operation == "multiply_by_digit":
        second = range(2, 10)
    expected = {(a, b) for a in first for b in second}
    if operation == "subtract" and not negative:
        expected = {(a, b) for a, b in expected if a >= b}
    if len(expected) == 1:
        assert available(split="held_out", **choices) == 0
        return
    train, held = part("train", **choices), part("held_out", **choices)
    pairs = [(p.metadata["a"], p.metadata["b"]) for p in train + held]
    assert len(pairs) == len(set(pairs)) == len(expected)
    assert set(pairs) == expected
    texts = [p.messages[0]["content"] for p in train + held]
    assert len(set(texts)) == len(texts)
    assert len({p.id for p in train + held}) == len(texts)
    assert abs(len(held) - held_out * len(expected)) <= 1


@given(
    seed=st.integers(0, 100), small=st.integers(1, 50), split=st.sampled_from(["train", "held_out"])
)
@settings(max_examples=30)
def test_a_smaller_size_is_a_prefix(seed, small, split):
    choices = {"operations": ("add", "subtract"), "digits": 3, "seed": seed, "split": split}
    large = load_problems(ArithmeticSource(size=60, **choices))
    assert load_problems(ArithmeticSource(size=small, **choices)) == large[:small]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("digits", [1, 2, 3, 6, 15])
def test_answers_are_right_and_operands_in_range(operation, digits):
    source = ArithmeticSource(operations=(operation,), digits=digits, size=8, least_operand=2)
    for problem in load_problems(source):
        text = problem.messages[0]["content"]
        a, sign, b = re.fullmatch(r"(\d+)([-+*])(\d+)=", text).groups()
        a, b = int(a), int(b)
        expected = {"+": a + b, "-": a - b, "*": a * b}[sign]
        assert problem.answer == str(expected)
        assert 2 <= a < 10**digits
        assert 2 <= b < (10 if operation == "multiply_by_digit" else 10**digits)
        assert expected >= 0


def test_two_digit_problems_have_two_digits_and_the_parts_their_share():
    choices = {"digits": 2, "least_operand": 10}
    assert available(split="held_out", **choices) == 1620
    assert available(split="train", **choices) == 6480
    held = part("held_out", **choices)
    assert {len(str(p.metadata["a"])) for p in held} == {2}
    # Shuffled: the first hundred are not all from the same corner.
    assert len({p.metadata["a"] // 10 for p in held[:100]}) == 9


def test_operations_share_equally_and_the_scarcest_sets_the_limit():
    choices = {"operations": ("add", "multiply_by_digit"), "least_operand": 10}
    problems = load_problems(ArithmeticSource(size=100, **choices))
    names = [p.metadata["operation"] for p in problems]
    assert names == ["add", "multiply_by_digit"] * 50
    assert available(split="held_out", **choices) == 2 * 144


def test_negative_results_come_only_when_asked_for():
    choices = {"operations": ("subtract",), "size": 200}
    assert all(int(p.answer) >= 0 for p in load_problems(ArithmeticSource(**choices)))
    both = load_problems(ArithmeticSource(negative_results=True, **choices))
    assert any(int(p.answer) < 0 for p in both)


def test_the_question_is_worded_as_set():
    source = ArithmeticSource(question=r"What is {a} {sign} {b}? Use \boxed{}.", size=1)
    (problem,) = load_problems(source)
    a, b = problem.metadata["a"], problem.metadata["b"]
    assert problem.messages[0]["content"] == rf"What is {a} + {b}? Use \boxed{{}}."
    assert problem.id == f"add-{a}-{b}"


def test_too_many_are_refused_with_the_number_there_are():
    with pytest.raises(ValueError, match=r"size=90, but split 'train' has 80 problems of add"):
        load_problems(ArithmeticSource(digits=1, size=90))


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"operations": ()}, "at least one"),
        ({"operations": ("add", "add")}, "no name twice"),
        ({"least_operand": 100}, "must be below 100"),
        ({"question": "{a}+?"}, "must contain {a} and {b} exactly once"),
        ({"question": "{a}+{b}+{a}"}, "must contain {a} and {b} exactly once"),
        ({"question": "{a}{b}"}, "other than a digit"),
        ({"question": "{b}0{a}"}, "other than a digit"),
        ({"operations": ("add", "subtract"), "question": "{a} ? {b}"}, "must contain {sign}"),
        ({"operations": ("multiply", "multiply_by_digit")}, "choose one of the two"),
        ({"operations": ("divide",)}, "multiply_by_digit"),
        ({"held_out": 0.0}, "greater than 0"),
        ({"held_out": 1.0}, "less than 1"),
        ({"digits": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(choices, words):
    with pytest.raises(ValidationError, match=re.escape(words)):
        ArithmeticSource(**choices)


def test_one_sign_for_one_operation_may_be_left_out():
    source = ArithmeticSource(question="the sum of {b} and {a}", size=3)
    assert len({p.messages[0]["content"] for p in load_problems(source)}) == 3
