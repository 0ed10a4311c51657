"""The implicit reward: telescoping, the log-expectation identity, bounds and normalisation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.reward_models.implicit import (
    prefix_values,
    response_rewards,
    step_rewards,
    token_rewards,
)
from tests.reward_models.toy import COMPLETE, LENGTH, Toy, continuations, prefixes

BETAS = (0.05, 1.0)


@pytest.fixture(scope="module", params=BETAS)
def world(request):
    """beta, both models' log-probabilities and token rewards of every complete response."""
    phi, ref = Toy(1).all_logprobs(), Toy(2).all_logprobs()
    rewards = token_rewards(phi, ref, torch.ones_like(phi), request.param)
    assert rewards.dtype == torch.float64
    return request.param, phi, ref, rewards


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=30), st.data())
def test_telescoping_for_any_partition(values, data):
    rewards = torch.tensor(values, dtype=torch.float64)
    cuts = data.draw(st.sets(st.integers(1, len(values) - 1))) if len(values) > 1 else set()
    ends = [*sorted(cuts), len(values)]
    steps, q = step_rewards(rewards, ends), prefix_values(rewards)
    total = float(response_rewards(rewards))
    assert float(steps.sum()) == pytest.approx(total, abs=1e-9)
    assert float(q[-1]) == pytest.approx(total, abs=1e-9)
    assert torch.allclose(steps.cumsum(-1), q[[end - 1 for end in ends]], atol=1e-9)


@pytest.mark.parametrize("ends", [[], [2], [2, 2, 3], [0, 3], [3, 4]])
def test_steps_that_do_not_part_the_response_are_refused(ends):
    with pytest.raises(ValueError, match="do not part a response of 3 tokens"):
        step_rewards(torch.zeros(3), ends)


def test_rewards_are_zero_where_the_models_agree():
    phi = Toy(1).all_logprobs()
    assert not token_rewards(phi, phi, torch.ones_like(phi), 0.05).any()


def test_a_prefix_value_is_the_log_expectation_under_the_reference(world):
    """Proposition 3.1 at every prefix, the empty one (q = 0) included."""
    beta, _, ref, rewards = world
    r, worst = rewards.sum(-1), 0.0
    for prefix in prefixes():
        rows, t = continuations(prefix), len(prefix)
        expected = beta * torch.logsumexp(ref[rows, t:].sum(-1) + r[rows] / beta, 0)
        worst = max(worst, abs(float(expected - rewards[rows[0], :t].sum())))
    assert worst < 1e-13


def test_a_prefix_value_lies_between_mean_and_maximum_of_its_continuations(world):
    _, _, ref, rewards = world
    r = rewards.sum(-1)
    for prefix in prefixes():
        rows, t = continuations(prefix), len(prefix)
        mean = float((ref[rows, t:].sum(-1).exp() * r[rows]).sum())
        q = float(rewards[rows[0], :t].sum())
        assert mean - 1e-12 <= q <= float(r[rows].max()) + 1e-12


def test_of_fixed_rewards_a_large_beta_gives_the_mean_and_a_small_one_the_maximum():
    ref, r = Toy(2).all_logprobs(), Toy(3).all_logprobs().sum(-1)
    logp = ref.sum(-1)

    def value(beta):
        return float(beta * torch.logsumexp(logp + r / beta, 0))

    assert value(1e6) == pytest.approx(float((logp.exp() * r).sum()), abs=1e-4)
    assert value(1e-3) == pytest.approx(float(r.max()), abs=1e-1)
    values = [value(beta) for beta in (0.01, 0.1, 1.0, 10.0)]
    assert values == sorted(values, reverse=True)


def test_rewards_are_normalised_and_their_means_are_divergences(world):
    beta, phi, ref, rewards = world
    r, phi_logp, ref_logp = rewards.sum(-1), phi.sum(-1), ref.sum(-1)
    assert float((ref_logp.exp() * (r / beta).exp()).sum()) == pytest.approx(1, abs=1e-12)
    from_ref = float((ref_logp.exp() * (ref_logp - phi_logp)).sum())
    from_phi = float((phi_logp.exp() * (phi_logp - ref_logp)).sum())
    assert float((ref_logp.exp() * r).sum()) == pytest.approx(-beta * from_ref, abs=1e-12)
    assert float((phi_logp.exp() * r).sum()) == pytest.approx(beta * from_phi, abs=1e-12)
    assert from_ref > 0.1
    assert from_phi > 0.1


def test_without_a_reference_it_differs_from_a_uniform_one_by_a_constant_per_token():
    phi = Toy(1).all_logprobs()
    uniform, mask = torch.full_like(phi, -math.log(3)), torch.ones_like(phi)
    mask[:40, 2:] = 0
    with_uniform = token_rewards(phi, uniform, mask, 0.05).sum(-1)
    without = token_rewards(phi, None, mask, 0.05).sum(-1)
    assert torch.allclose(with_uniform - without, 0.05 * math.log(3) * mask.sum(-1))


def test_sums_are_taken_in_float32_at_least_and_padding_counts_for_nothing():
    half = torch.full((1, 3), -1.0, dtype=torch.bfloat16)
    rewards = token_rewards(half, torch.full((1, 3), -1.0078125), torch.tensor([[1.0, 1, 0]]))
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [[0.0078125, 0.0078125, 0.0]]


def test_the_toy_models_are_distributions():
    for seed in (1, 2):
        assert float(Toy(seed).all_logprobs().sum(-1).exp().sum()) == pytest.approx(1)
    assert len(COMPLETE) == 3**LENGTH
