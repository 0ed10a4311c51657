"""The comp-sum family: its named members, continuity, bounds, and consistency by enumeration."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, softplus

from rlvr.preference.losses.base import PreferenceLoss
from rlvr.preference.losses.comp_sum import comp_sum, comp_sum_mean
from rlvr.preference.losses.terms import Pairs, Side
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings

LOSSES = PreferenceLoss.registry()
P = torch.linspace(0.001, 1, 200, dtype=torch.float64)


def pairs_of(margins):
    """Pairs whose log-ratio margin is as given."""
    zeros = torch.zeros_like(margins)
    ones = torch.ones_like(margins)
    return Pairs(Side(margins, ones, zeros), Side(zeros, ones, zeros), tokens_per_pair=1.0)


@pytest.mark.parametrize(
    ("tau", "formula"),
    [
        (0.0, lambda p: 1 / p - 1),
        (1.0, lambda p: -p.log()),
        (1.7, lambda p: (1 - p**0.7) / 0.7),
        (2.0, lambda p: 1 - p),
        (3.0, lambda p: (1 - p**2) / 2),
    ],
)
def test_named_members(tau, formula):
    assert torch.allclose(comp_sum(P.log(), tau), formula(P), rtol=1e-10)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.4, 2.0])
def test_it_is_the_definition_over_score_differences(tau):
    scores = torch.randn(50, 7, generator=torch.manual_seed(0), dtype=torch.float64)
    u = (scores[:, 1:] - scores[:, :1]).exp().sum(-1)
    expected = u.log1p() if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
    assert torch.allclose(comp_sum(scores.log_softmax(-1)[:, 0], tau), expected)


def test_it_is_continuous_at_one():
    for near in (1 - 2e-4, 1 - 5e-5, 1 + 5e-5, 1 + 2e-4):
        assert torch.allclose(comp_sum(P.log(), near), -P.log(), rtol=2e-3, atol=1e-6)
    exactly = comp_sum(P.log(), 1 + 1.001e-4), comp_sum(P.log(), 1 + 0.999e-4)
    assert torch.allclose(*exactly, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 1.4, 2.0, 3.0])
def test_it_falls_with_p_to_zero_and_weighs_gradients_by_p(tau):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        single = P.log().to(dtype).requires_grad_()
        comp_sum(single, tau).sum().backward()
        assert torch.allclose(
            single.grad.double(), -(P ** (tau - 1)), rtol=tolerance, atol=tolerance / 100
        )
    loss = comp_sum(P.log(), tau)
    assert float(loss[-1]) == pytest.approx(0, abs=1e-12)
    assert bool((loss.diff() < 0).all())


def test_at_two_it_lies_in_the_unit_interval_and_is_the_policy_gradient():
    assert bool((comp_sum(P.log(), 2) <= 1).all())
    logits = torch.randn(6, generator=torch.manual_seed(1), dtype=torch.float64).requires_grad_()
    right = 2
    loss = torch.autograd.grad(comp_sum(logits.log_softmax(-1)[right], 2), logits)[0]
    reward = torch.autograd.grad(logits.softmax(-1)[right], logits)[0]
    assert torch.allclose(loss, -reward)


@pytest.mark.parametrize(
    ("tau", "formula"),
    [
        (0.0, lambda m: (-m).exp()),
        (1.0, lambda m: softplus(-m)),
        (2.0, lambda m: 1 - m.sigmoid()),
    ],
)
def test_of_a_margin_it_is_exponential_logistic_or_sigmoid(tau, formula):
    margins = torch.linspace(-9, 9, 41, dtype=torch.float64)
    loss = LOSSES["comp_sum"](tau=tau, beta=0.5)
    assert torch.allclose(loss(pairs_of(margins)), formula(0.5 * margins))


def test_at_one_it_is_dpo():
    margins = torch.linspace(-9, 9, 41, dtype=torch.float64)
    dpo = LOSSES["sigmoid"](beta=0.1)(pairs_of(margins))
    assert torch.equal(LOSSES["comp_sum"](tau=1, beta=0.1)(pairs_of(margins)), dpo)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.5, 1.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vanishing_probabilities_overflow_nothing(tau, dtype):
    log_p = torch.tensor([-1e4, -200.0, -90.0, 0.0], dtype=dtype, requires_grad=True)
    loss = comp_sum(log_p, tau)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert bool(log_p.grad.isfinite().all())
    assert bool((loss.diff() <= 0).all())


def test_the_mean_is_over_the_tokens_that_count():
    logprobs = torch.log(torch.tensor([[0.5, 0.1, 1e-30], [0.2, 0.9, 0.3]], dtype=torch.float64))
    logprobs[0, 2] = -math.inf
    logprobs.requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = comp_sum_mean(logprobs, mask, 1.4)
    by_hand = [(1 - p**0.4) / 0.4 for p in (0.5, 0.1, 0.2)]
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / 3)
    loss.backward()
    assert bool((logprobs.grad[mask == 0] == 0).all())
    assert float(comp_sum_mean(logprobs.detach(), mask * 0, 1.4)) == 0


def test_at_one_the_mean_is_cross_entropy():
    logits = torch.randn(2, 3, 5, generator=torch.manual_seed(0))
    targets = torch.tensor([[1, 2, 0], [4, 3, 1]])
    logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    mine = comp_sum_mean(logprobs, torch.ones(2, 3), 1.0)
    assert torch.allclose(mine, cross_entropy(logits.view(-1, 5), targets.view(-1)))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_zero_one_regret_is_within_the_bound(tau, classes):
    """Over random conditional distributions and scores; the minimal loss by its closed form."""
    generator = torch.Generator().manual_seed(classes)
    label = torch.rand(3000, classes, generator=generator, dtype=torch.float64).pow(3) + 1e-9
    label /= label.sum(-1, keepdim=True)
    scores = 3 * torch.randn(3000, classes, generator=generator, dtype=torch.float64)
    loss = (label * comp_sum(scores.log_softmax(-1), tau)).sum(-1)
    if tau < 2 - 1e-9:  # stationary: q^(tau-2) p constant, q ~ p^(1/(2-tau))
        best = label.log().div(2 - tau).log_softmax(-1)
        least = (label * comp_sum(best, tau)).sum(-1)
    else:  # concave in q: a vertex
        least = (1 - label.max(-1).values) / (tau - 1)
    excess = (loss - least).clamp_min(0)
    chosen = label.gather(-1, scores.argmax(-1, keepdim=True))[:, 0]
    regret = label.max(-1).values - chosen
    if tau < 1:
        bound = (2**tau * (2 - tau) * excess).sqrt()
    elif tau < 2:
        bound = (2 * classes ** (tau - 1) * excess).sqrt()
    else:
        bound = (tau - 1) * classes ** (tau - 1) * excess
    assert bool((regret <= bound + 1e-9).all())
    assert float((regret / bound.clamp_min(1e-12)).max()) > 0.1, "the bound is not idle"


def test_flipped_pairs_pull_less_the_larger_tau_is():
    """The share of the gradient that comes from pairs ranked far wrong."""
    margins = torch.tensor([2.0, 2.0, 2.0, -6.0], dtype=torch.float64, requires_grad=True)
    shares = []
    for tau in (0.0, 1.0, 1.5, 2.0):
        loss = LOSSES["comp_sum"](tau=tau, beta=1.0)(pairs_of(margins)).sum()
        pull = torch.autograd.grad(loss, margins)[0].abs()
        shares.append(float(pull[3] / pull.sum()))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.01 < 0.9 < shares[0]


def test_a_negative_tau_is_refused():
    with pytest.raises(ValueError, match="tau = -1 of the comp-sum losses"):
        comp_sum(torch.zeros(1), -1)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        LOSSES["comp_sum"](tau=-0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"policy_loss": {"name": "comp_sum", "tau": 1.4}, "regularisers": [{"name": "lp_reg"}]},
        {"regularisers": [{"name": "comp_sum"}]},
    ],
)
def test_in_reinforcement_learning_it_is_refused_with_the_reason(change):
    source = {"name": "arithmetic", "digits": 1, "size": 4}
    values = {"output": "x", "steps": 1, "model": {"path": "x"}, "data": {"source": source}}
    with pytest.raises(ValueError, match="which Lp-Reg is there to protect"):
        load_settings(RLRecipe, {**values, **change})
