"""Prompts over the limit are dropped whole and counted."""

import warnings

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from rlvr.data import encode_prompts, load_template
from rlvr.types import Message, Problem

RAW, PLAIN = load_template("raw"), load_template("plain")


def problem(text, identity=None):
    messages = (Message(role="user", content=text),)
    return Problem(identity or f"id-{text}", messages, "answer", "test")


def test_prompts_within_the_limit_are_kept_whole_and_in_order(chatml):
    problems = [problem("a" * n, f"p{n}") for n in (3, 9, 5, 12, 8, 1)]
    encoded = encode_prompts(problems, RAW, chatml, 8)
    assert [p.problem.id for p in encoded.prompts] == ["p3", "p5", "p8", "p1"]
    assert [len(p.ids) for p in encoded.prompts] == [3, 5, 8, 1]
    assert encoded.dropped == 2
    assert (encoded.longest_dropped_id, encoded.longest_dropped_tokens) == ("p12", 12)
    assert encoded.notice == (
        "dropped 2 of 6 prompts longer than 8 tokens; the longest is 'p12' with 12 tokens"
    )


def test_nothing_is_said_when_nothing_is_dropped(chatml):
    encoded = encode_prompts([problem("abc")], RAW, chatml, 3)
    assert encoded.notice is None
    assert (encoded.dropped, encoded.longest_dropped_id, encoded.longest_dropped_tokens) == (
        0,
        None,
        0,
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kept_and_dropped_add_up_and_the_limit_holds(base, lengths, limit):
    problems = [problem("x" * length, f"{n}") for n, length in enumerate(lengths)]
    fits = [n for n, length in enumerate(lengths) if length + 1 <= limit]
    if not fits:
        with pytest.raises(ValueError, match=f"none of {len(lengths)} prompts"):
            encode_prompts(problems, RAW, base, limit)
        return
    encoded = encode_prompts(problems, RAW, base, limit)
    assert [p.problem.id for p in encoded.prompts] == [str(n) for n in fits]
    assert encoded.dropped == len(lengths) - len(fits)
    assert encoded.longest_dropped_tokens == (max(lengths) + 1 if encoded.dropped else 0)


def test_when_none_fits_the_longest_is_named(chatml):
    with pytest.raises(ValueError, match=r"none of 2 .*=4 tokens; the longest is 'q' with 6"):
        encode_prompts([problem("abcde"), problem("abcdef", "q")], RAW, chatml, 4)


def test_no_problems_and_no_limit_are_refused(chatml):
    with pytest.raises(ValueError, match="none of 0 prompts"):
        encode_prompts([], RAW, chatml, 4)
    with pytest.raises(ValueError, match="max_prompt_tokens=0 must be at least 1"):
        encode_prompts([problem("a")], RAW, chatml, 0)


def test_a_problem_that_the_template_cannot_show_is_named(base):
    turns = tuple(Message(role=role, content="x") for role in ("user", "assistant", "user"))
    with pytest.raises(ValueError, match="problem 'talk': template 'raw' is plain text"):
        encode_prompts([Problem("talk", turns, "a", "test")], RAW, base, 99)


def test_a_tokenizer_without_chat_template_is_refused_without_blaming_a_problem(base):
    with pytest.raises(ValueError, match=r"^the tokenizer .* has no chat template"):
        encode_prompts([problem("a")], PLAIN, base, 99)


def test_special_tokens_inside_a_problem_are_warned_about(chatml):
    problems = [problem("fine"), problem("stop <|im_end|> here", "odd")]
    with pytest.warns(
        UserWarning, match=r"1 problems contain a special token.*'odd'.*<\|im_end\|>"
    ):
        encode_prompts(problems, PLAIN, chatml, 99)
    with warnings.catch_warnings():
        # A prompt rendered before is meant to hold them.
        warnings.simplefilter("error")
        encode_prompts(problems, RAW, chatml, 99)
        encode_prompts(problems[:1], PLAIN, chatml, 99)
