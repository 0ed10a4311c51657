"""Step boundaries: they part the response exactly, whatever the tokens."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.policy.tiny import character_tokenizer
from rlvr.reward_models.implicit import step_rewards
from rlvr.reward_models.steps import step_ends, step_starts, steps_of_ids, token_starts
from tests.data.byte_tokenizers import build

TEXT = "Add them.\n\nStep 1: 2+2=4\n\nStep 2: so \\boxed{4}"


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


def ids_of(tokenizer, text):
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("blank_lines", ["Add them.\n\n", "Step 1: 2+2=4\n\n", "Step 2: so \\boxed{4}"]),
        ("numbered", ["Add them.\n\n", "Step 1: 2+2=4\n\n", "Step 2: so \\boxed{4}"]),
        ("lines", ["Add them.\n\n", "Step 1: 2+2=4\n\n", "Step 2: so \\boxed{4}"]),
        (r"so ", ["Add them.\n\nStep 1: 2+2=4\n\nStep 2: ", "so \\boxed{4}"]),
    ],
)
def test_steps_are_found_where_they_are_marked(tokenizer, steps, expected):
    ids = ids_of(tokenizer, TEXT)
    bounds = [0, *steps_of_ids(tokenizer, ids, steps)]
    pieces = [
        tokenizer.decode(ids[a:b], skip_special_tokens=True) for a, b in itertools.pairwise(bounds)
    ]
    assert pieces == expected
    assert bounds[-1] == len(ids)  # the end token is the last step's


@given(st.lists(st.integers(1, 4), min_size=1, max_size=40), st.sets(st.integers(1, 90)))
def test_step_spans_part_the_response_without_gap_or_overlap(sizes, cuts):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    ends = step_ends(starts, [0, *sorted(cuts)])
    assert ends[-1] == len(sizes)
    assert ends == sorted(set(ends))
    rewards = torch.arange(len(sizes), dtype=torch.float64)
    assert float(step_rewards(rewards, ends).sum()) == float(rewards.sum())


def test_a_response_without_a_marker_is_one_step_of_the_whole_reward(tokenizer):
    ids = ids_of(tokenizer, "12+34=\\boxed{46}")
    for steps in ("blank_lines", "numbered", "lines", "nowhere"):
        ends = steps_of_ids(tokenizer, ids, steps)
        assert ends == [len(ids)]
        rewards = torch.randn(len(ids))
        assert step_rewards(rewards, ends)[0] == rewards.sum()


def test_blank_lines_at_the_edges_make_no_step():
    assert step_starts("\n\nfirst\n\nsecond\n\n") == [0, 9]


@pytest.mark.parametrize(
    "text", ["Größe: 3 \N{RIGHTWARDS ARROW} 4\n\n\N{PILE OF POO} ok", "a\n\nb"]
)
def test_characters_of_several_tokens_are_counted_once(text):
    tokenizer = build()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = token_starts(tokenizer, ids)
    characters = [
        len(tokenizer.decode(ids[:i]).rstrip("\N{REPLACEMENT CHARACTER}")) for i in range(len(ids))
    ]
    assert starts == characters
    end = steps_of_ids(tokenizer, ids)[0]
    assert tokenizer.decode(ids[:end]).endswith("\n\n")


def test_a_bad_pattern_is_named():
    with pytest.raises(ValueError, match=r"steps '\(' is neither"):
        step_starts("text", "(")
