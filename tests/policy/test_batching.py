"""Layouts: padded, packed and one row at a time give the same numbers; budgets are kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.policy.batching import packed_inputs, padded_inputs, plan_packed, plan_padded
from rlvr.policy.model import packing_is_exact

TOKENS = st.lists(st.integers(3, 60), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def policy(exact_policy):
    return exact_policy


def statistics(policy, inputs, width):
    stats = policy(inputs, entropy=True, temperature=0.7)
    return (
        inputs.scatter(stats.logprobs_N, width),
        inputs.scatter(stats.entropy_N, width),
    )


@settings(max_examples=25)
@given(prompts=st.lists(TOKENS, min_size=1, max_size=3), data=st.data())
def test_packed_equals_padded_equals_one_row_at_a_time(policy, prompts, data):
    rows = data.draw(st.lists(st.tuples(st.sampled_from(prompts), TOKENS), min_size=1, max_size=7))
    asked, given_ = [list(p) for p, _ in rows], [c for _, c in rows]
    width, everything = max(map(len, given_)), tuple(range(len(rows)))
    padded = statistics(policy, padded_inputs(asked, given_, everything), width)
    packed = statistics(policy, packed_inputs(asked, given_, everything), width)
    single = [
        torch.cat(columns)
        for columns in zip(
            *(
                statistics(policy, padded_inputs(asked, given_, (row,)), width)
                for row in everything
            ),
            strict=True,
        )
    ]
    for one, two, three in zip(padded, packed, single, strict=True):
        assert torch.allclose(one, two, atol=1e-11)
        assert torch.allclose(one, three, atol=1e-11)


def test_gradients_of_packed_and_padded_are_equal(policy):
    prompts = [[5, 6, 7], [5, 6, 7], [9, 8], [9, 8]]
    completions = [[4, 5, 2], [6, 2], [7, 7, 7, 2], [3]]
    gradients = []
    for lay_out in (padded_inputs, packed_inputs):
        policy.zero_grad()
        stats = policy(lay_out(prompts, completions, (0, 1, 2, 3)), entropy=True)
        (stats.logprobs_N.square().sum() + stats.entropy_N.sum()).backward()
        gradients.append([p.grad.clone() for p in policy.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, atol=1e-10)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_padded_plans_hold_every_row_once_within_the_budget(lengths, budget):
    plan = plan_padded(lengths, budget)
    assert sorted(row for rows in plan for row in rows) == list(range(len(lengths)))
    for rows in plan:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=30),
    st.integers(1, 100),
)
def test_packed_plans_hold_every_row_once_within_the_budget(rows, budget):
    prompts = [[prompt] * (prompt + 1) for prompt, _ in rows]
    completions = [[1] * length for _, length in rows]
    plan = plan_packed(prompts, completions, budget)
    assert sorted(row for members in plan for row in members) == list(range(len(rows)))
    for members in plan:
        size = packed_inputs(prompts, completions, members).num_positions
        assert len(members) == 1 or size <= budget


def test_an_equal_prompt_is_run_once():
    inputs = packed_inputs([[5] * 100] * 8, [[6] * 10] * 8, tuple(range(8)))
    assert inputs.num_positions == 100 + 80


def test_padding_is_masked_even_where_its_id_is_a_real_token(policy):
    inputs = padded_inputs([[5, 6], [5]], [[0, 0, 2], [2]], (0, 1))
    assert inputs.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert inputs.targets_N.tolist() == [0, 0, 2, 2]
    assert packing_is_exact(policy)
