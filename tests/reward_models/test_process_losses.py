"""Training objectives: their values at the start, gradients, limits, pairs and balance."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rlvr.preference.losses.terms import Labelled, Pairs, Side
from rlvr.preference.losses.unpaired import baseline_of
from rlvr.reward_models.implicit import token_rewards
from rlvr.reward_models.outcome_losses import cross_entropy
from rlvr.reward_models.pairs import all_pairs
from rlvr.reward_models.process_losses import PrmObjective, balanced, takes_pairs

BETA = 0.05
LN2 = math.log(2)


def loss_of(name, **settings):
    return TypeAdapter(PrmObjective).validate_python({"name": name, **settings})


def side(log_ratios):
    """Completions with these log-ratios, against a reference of log-probability -20."""
    values = torch.as_tensor(log_ratios, dtype=torch.float64)
    reference = torch.full_like(values, -20.0)
    return Side(values - 20.0, torch.ones_like(values), reference)


def pair_loss(name, right, wrong, **settings):
    return loss_of(name, **settings)(Pairs(side(right), side(wrong), tokens_per_pair=1.0))


def label_loss(name, log_ratios, labels, baseline=0.0, **settings):
    own = side(log_ratios)
    labels = torch.as_tensor(labels, dtype=torch.float64)
    return loss_of(name, **settings)(Labelled(own.logps_B, own.reference_logps_B, labels, baseline))


def test_every_objective_has_its_known_value_where_the_models_agree():
    zeros = [0.0, 0.0]
    assert label_loss("ce", zeros, [1, 0]).tolist() == pytest.approx([LN2] * 2)
    assert pair_loss("dpo", zeros, zeros).tolist() == pytest.approx([LN2] * 2)
    assert pair_loss("nca", zeros, zeros).tolist() == pytest.approx([2 * LN2] * 2)
    assert label_loss("kto", zeros, [1, 0]).tolist() == pytest.approx([0.5] * 2)


def test_the_gradient_of_cross_entropy_is_beta_times_the_error_on_every_response_token():
    torch.manual_seed(0)
    phi = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.float64)
    labels = torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64)
    rewards = token_rewards(phi, ref.detach(), mask, BETA).sum(-1)
    cross_entropy(rewards, labels).sum().backward()
    expected = BETA * (rewards.detach().sigmoid() - labels)[:, None] * mask
    assert torch.allclose(phi.grad, expected, atol=1e-12)
    assert phi.grad[0, 0] < 0
    assert phi.grad[1, 0] > 0
    assert ref.grad is None
    # Against finite differences, by one token.
    nudge = torch.zeros_like(phi)
    nudge[1, 1] = 1e-6
    up, down = (
        cross_entropy(token_rewards(phi + s * nudge, ref, mask, BETA).sum(-1), labels).sum()
        for s in (1, -1)
    )
    assert float((up - down).detach() / 2e-6) == pytest.approx(float(phi.grad[1, 1]), abs=1e-8)


def test_cross_entropy_at_the_start_pulls_with_half_of_beta():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    cross_entropy(BETA * x, torch.tensor([1.0, 0.0], dtype=torch.float64)).sum().backward()
    assert x.grad.tolist() == pytest.approx([-BETA / 2, BETA / 2])


def test_a_soft_label_is_met_where_the_probability_equals_it():
    label = 0.3
    r = torch.tensor([math.log(label / (1 - label))], dtype=torch.float64, requires_grad=True)
    cross_entropy(r, torch.tensor([label], dtype=torch.float64)).sum().backward()
    assert float(r.grad) == pytest.approx(0, abs=1e-12)


def test_dpo_is_cross_entropy_of_the_difference_and_ignores_what_a_prompt_adds():
    right = torch.tensor([3.0, -8.0], dtype=torch.float64, requires_grad=True)
    wrong = torch.tensor([-2.0, 40.0], dtype=torch.float64, requires_grad=True)
    loss = pair_loss("dpo", right, wrong)
    expected = cross_entropy(BETA * (right - wrong), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(loss, expected)
    loss.sum().backward()
    assert torch.allclose(right.grad, -wrong.grad)
    assert torch.allclose(pair_loss("dpo", right + 7, wrong + 7), loss)
    plain, moved = (label_loss("ce", right.detach() + c, [1, 1]) for c in (0, 7))
    assert not torch.allclose(plain, moved)


@given(st.floats(-500, 500), st.floats(-500, 500))
def test_cross_entropy_of_a_pair_is_never_below_dpo(right, wrong):
    both = label_loss("ce", [right, wrong], [1, 0]).sum()
    assert float(both) >= float(pair_loss("dpo", [right], [wrong])) - 1e-9


def test_nca_is_three_cross_entropies_and_rests_at_ln_two():
    right = torch.tensor([LN2 / BETA, 0.0], dtype=torch.float64, requires_grad=True)
    wrong = torch.tensor([5.0, 0.0], dtype=torch.float64, requires_grad=True)
    ones, zeros = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    parts = cross_entropy(BETA * right, ones) + 0.5 * cross_entropy(BETA * right, zeros)
    parts = parts + 0.5 * cross_entropy(BETA * wrong, zeros)
    loss = pair_loss("nca", right, wrong)
    assert torch.allclose(loss, parts)
    loss.sum().backward()
    assert (right.grad / BETA).tolist() == pytest.approx([0.0, -0.25], abs=1e-9)
    assert float(wrong.grad[1] / BETA) == pytest.approx(0.25)


@given(st.floats(-2000, 2000), st.booleans(), st.floats(0, 100))
def test_kto_lies_between_zero_and_one(log_ratio, label, baseline):
    loss = float(label_loss("kto", [log_ratio], [label], baseline))
    assert 0 <= loss <= 1


def test_the_baseline_of_kto_is_not_negative_and_carries_no_gradient():
    mismatched = torch.tensor([-3.0, 1.0], requires_grad=True)
    assert baseline_of(mismatched) == 0.0
    found = baseline_of(-mismatched)
    assert found == 1.0
    assert isinstance(found, float)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=24))
def test_pairs_are_all_right_times_wrong_of_a_prompt(rows):
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]
    pairs = all_pairs(labels, groups)
    right, wrong = (Counter(g for x, g in rows if x == kind) for kind in (True, False))
    assert Counter(groups[w] for w, _ in pairs) == Counter(
        {g: right[g] * wrong[g] for g in right if wrong[g]}
    )
    assert all(labels[w] and not labels[z] and groups[w] == groups[z] for w, z in pairs)
    assert len(set(pairs)) == len(pairs)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=24), st.integers(0, 3))
def test_balance_keeps_as_many_right_as_wrong_ones(rows, seed):
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]
    assert balanced(labels, groups, "none", seed) == list(range(len(rows)))
    whole = balanced(labels, groups, "dataset", seed)
    assert sum(labels[i] for i in whole) * 2 == len(whole)
    assert len(whole) == 2 * min(sum(labels), len(labels) - sum(labels))
    within = balanced(labels, groups, "instruction", seed)
    for group in set(groups):
        own = [labels[i] for i in within if groups[i] == group]
        assert sum(own) * 2 == len(own)
    assert within == balanced(labels, groups, "instruction", seed)


def test_only_dpo_and_nca_learn_from_pairs():
    kinds = {
        n: takes_pairs(TypeAdapter(PrmObjective).validate_python({"name": n}))
        for n in ("ce", "dpo", "nca", "kto")
    }
    assert kinds == {"ce": False, "dpo": True, "nca": True, "kto": False}


NAN = float("nan")


def step_loss(rewards, labels, **settings):
    log_ratios = torch.tensor(rewards, dtype=torch.float64) / BETA
    return loss_of("steps", **settings)(log_ratios, torch.tensor(labels, dtype=torch.float64))


def test_step_labels_have_their_known_value_where_the_models_agree():
    labels = [[1.0, 0.0, NAN], [1.0, NAN, NAN], [NAN, NAN, NAN]]
    assert step_loss([[0.0] * 3] * 3, labels).tolist() == pytest.approx([0.25, 0.25, 0.0])
    printed = step_loss([[0.0] * 3] * 3, labels, form="paper")
    assert printed.tolist() == pytest.approx([LN2, LN2, 0.0])


def test_step_labels_are_fitted_step_by_step_and_unjudged_steps_left_alone():
    labels = torch.tensor([[1.0, 0.0, NAN, 0.25]], dtype=torch.float64)
    log_ratios = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(loss_of("steps")(log_ratios, labels).sum(), log_ratios)[0][0]
    assert gradient[0] < 0 < gradient[1]
    assert gradient[2] == 0
    fitted = math.log(0.25 / 0.75)
    at = torch.tensor([[40.0, -40.0, 7.0, fitted]], dtype=torch.float64) / BETA
    assert float(loss_of("steps")(at, labels)) == pytest.approx(0, abs=1e-12)


@given(reward=st.floats(-20, 20), right=st.booleans())
def test_the_printed_step_loss_looks_at_the_size_of_a_reward_alone(reward, right):
    """Why the released code's is the default: a right step may be as far below zero as above."""
    loss = float(step_loss([[reward]], [[float(right)]], form="paper"))
    assert loss == pytest.approx(float(step_loss([[-reward]], [[float(right)]], form="paper")))
    expected = math.log1p(math.exp(-abs(reward) if right else abs(reward)))
    assert loss == pytest.approx(expected)
