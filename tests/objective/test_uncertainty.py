"""Weights of uncertain rewards: what they do, and that certain ones are left alone to the bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.objective.uncertainty import Uncertainty, correlation

GROUPS = torch.tensor([0, 0, 0, 1, 1])
UNCERTAIN = st.lists(st.floats(0, 50), min_size=5, max_size=5)


@given(UNCERTAIN, st.floats(0.1, 10))
def test_weights_have_mean_one_in_their_group_and_fall_with_uncertainty(values, temperature):
    u = torch.tensor(values, dtype=torch.float64)
    w = Uncertainty(temperature=temperature).weights(u, GROUPS)
    for group in (0, 1):
        own = group == GROUPS
        assert float(w[own].mean()) == pytest.approx(1.0)
        assert bool((w[own] >= 0).all())
        order = u[own].argsort(stable=True)
        assert bool((w[own][order].diff() <= 1e-12).all())
        raw = torch.exp(-(u[own] - u[own].min()) / temperature)
        assert bool(((raw > 0) | (u[own] > 700 * temperature)).all())
        assert torch.allclose(w[own] / w[own].max(), raw)


@given(st.floats(0, 50), st.sampled_from(["advantages", "rewards"]))
def test_equal_uncertainties_change_nothing_to_the_bit(value, apply):
    rule = Uncertainty(apply=apply, temperature=0.3)
    u = torch.full((5,), value, dtype=torch.float64)
    assert torch.equal(rule.weights(u, GROUPS), torch.ones(5, dtype=torch.float64))
    rewards = torch.tensor([0.1, 0.7, 0.3, 1.0, 0.2])
    assert torch.equal(rule.shrunk(rewards, u, GROUPS), rewards)


def test_the_endlessly_uncertain_one_is_taken_out():
    u = torch.tensor([0.0, 0.0, 1e9, 0.0, 0.0])
    w = Uncertainty().weights(u, GROUPS)
    assert w.tolist() == pytest.approx([1.5, 1.5, 0.0, 1.0, 1.0])
    rewards = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    shrunk = Uncertainty().shrunk(rewards, u, GROUPS)
    assert float(shrunk[2]) == pytest.approx(1.0)  # the group's mean


def test_weights_carry_no_gradient():
    u = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.1], requires_grad=True)
    assert not Uncertainty().weights(u, GROUPS).requires_grad


def test_correlation_is_pearsons():
    a = torch.tensor([1.0, 2.0, 4.0, 3.0])
    b = torch.tensor([0.0, 1.0, 1.0, 3.0])
    expected = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    assert correlation(a, b) == pytest.approx(expected, abs=1e-6)
    assert correlation(a, torch.ones(4)) is None
