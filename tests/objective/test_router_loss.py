"""Router losses against closed forms, another library's, and numeric gradients."""

import math

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from rlvr.objective.router_loss import (
    balance_terms,
    choices_differ,
    entropy_terms,
    expert_counts,
    load_shares,
    z_terms,
)


def routed(tokens=40, layers=1, experts=5, chosen=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, layers, experts, generator=generator, dtype=torch.float64)
    return logits, logits.topk(chosen, dim=-1).indices


def test_counts_are_of_layer_and_expert_and_shares_sum_to_one():
    experts = torch.tensor([[[0, 1], [2, 2]], [[0, 2], [1, 2]]])
    counts = expert_counts(experts, 3)
    assert counts.tolist() == [[2, 1, 1], [0, 1, 3]]
    assert load_shares(counts).tolist() == [[0.5, 0.25, 0.25], [0, 0.25, 0.75]]
    assert load_shares(torch.zeros(1, 4)).tolist() == [[0.25] * 4]


@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_with_one_layer_it_is_the_other_librarys_loss_over_k(chosen):
    logits, experts = routed(chosen=chosen)
    mine = balance_terms(logits, load_shares(expert_counts(experts, 5))).mean()
    theirs = load_balancing_loss_func((logits[:, 0],), 5, chosen)
    assert float(theirs) == pytest.approx(chosen * float(mine), rel=1e-6)


def test_layers_count_apart_where_the_other_pools_them():
    """Two layers that each use their own half of the experts are even only together."""
    logits = torch.full((8, 2, 4), -20.0)
    logits[:, 0, :2] = logits[:, 1, 2:] = 0.0
    experts = torch.tensor([[0, 1], [2, 3]]).expand(8, 2, 2)
    mine = balance_terms(logits, load_shares(expert_counts(experts, 4))).mean()
    assert float(mine) == pytest.approx(2.0)
    pooled = load_balancing_loss_func((logits[:, 0], logits[:, 1]), 4, 2)
    assert float(pooled) == pytest.approx(2 * 1.0)


def test_an_even_mixture_costs_one_and_a_collapsed_one_as_many_as_there_are_experts():
    even = torch.zeros(6, 3, 4)
    share = torch.full((3, 4), 0.25)
    assert balance_terms(even, share).tolist() == pytest.approx([1.0] * 6)
    collapsed = torch.full((6, 3, 4), -60.0)
    collapsed[..., 0] = 60.0
    share = torch.tensor([[1.0, 0, 0, 0]] * 3)
    assert balance_terms(collapsed, share).tolist() == pytest.approx([4.0] * 6)


def test_z_is_the_squared_log_partition_and_shifts_with_the_logits():
    logits = torch.full((2, 3, 4), 0.7, dtype=torch.float64)
    assert z_terms(logits).tolist() == pytest.approx([(0.7 + math.log(4)) ** 2] * 2)
    assert torch.allclose(balance_terms(logits, torch.full((3, 4), 0.25)), torch.ones(2).double())
    shifted, _ = routed()
    share = load_shares(expert_counts(shifted.topk(2, -1).indices, 5))
    assert torch.allclose(balance_terms(shifted + 3, share), balance_terms(shifted, share))
    assert not torch.allclose(z_terms(shifted + 3), z_terms(shifted))


def test_gradients_are_those_of_the_formulas():
    logits, experts = routed(tokens=3, layers=2)
    share = load_shares(expert_counts(experts, 5))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: balance_terms(x, share), logits)
    assert torch.autograd.gradcheck(z_terms, logits)
    grad = torch.autograd.grad(z_terms(logits).sum(), logits)[0]
    expected = 2 * logits.logsumexp(-1, keepdim=True) * logits.softmax(-1) / 2
    assert torch.allclose(grad, expected)


def test_the_gradient_moves_probability_from_busy_to_idle_experts():
    logits = torch.zeros(5, 1, 3, requires_grad=True)
    balance_terms(logits, torch.tensor([[0.8, 0.2, 0.0]])).sum().backward()
    busy, _, idle = logits.grad.sum((0, 1)).tolist()
    assert busy > 0 > idle


def test_entropy_is_logarithmic_where_even():
    assert entropy_terms(torch.zeros(2, 3, 8)).tolist() == pytest.approx([math.log(8)] * 2)


def test_choices_differ_as_sets_and_only_where_something_is_known():
    mine = torch.tensor([[[0, 1], [2, 3]]] * 3)
    other = torch.tensor([[[1, 0], [3, 2]], [[1, 2], [2, 3]], [[-1, -1], [0, 1]]])
    assert choices_differ(mine, other).tolist() == [0.0, 0.5, 0.5]
