"""Advantages, losses, regularisers and reducers against closed forms and enumeration."""

import math

import pytest
import torch

from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.loss_inputs import LossInputs
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import ConstantLength, Counts, SequenceMean, TokenMean
from rlvr.objective.regularisers.entropy import Entropy
from rlvr.objective.regularisers.kl import KL


def advantages(rewards, groups=None, **settings):
    index = torch.zeros(len(rewards)).long() if groups is None else torch.tensor(groups)
    return GroupAdvantage(**settings)(torch.tensor(rewards, dtype=torch.float64), index)


@pytest.mark.parametrize("right", range(1, 8))
def test_binary_rewards_have_the_closed_form(right):
    values = advantages([1.0] * right + [0.0] * (8 - right))
    assert values[-1].item() == pytest.approx(-math.sqrt(7 * right / (8 * (8 - right))), rel=1e-4)
    assert values[0].item() == pytest.approx(math.sqrt(7 * (8 - right) / (8 * right)), rel=1e-4)


def test_groups_do_not_see_each_other():
    mixed = advantages([1, 5, 0, 9], groups=[0, 1, 0, 1])
    assert mixed[[0, 2]].tolist() == advantages([1, 0]).tolist()
    assert advantages([3, 1], scale="none").tolist() == [1.0, -1.0]


def terms(ratio, advantage, entropy=None, reference=None):
    ratio = torch.tensor([ratio], dtype=torch.float64)
    old = torch.full_like(ratio, -2.0)
    logprobs = (old + ratio.log()).requires_grad_()
    return LossInputs(
        logprobs_BT=logprobs,
        old_logprobs_BT=old,
        advantages_BT=torch.tensor([advantage], dtype=torch.float64),
        mask_BT=torch.ones_like(ratio),
        entropy_BT=entropy,
        reference_logprobs_BT=reference,
    )


def test_clip_cuts_the_gradient_exactly_where_the_paper_does():
    ratios = [0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 1.25]
    signs = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]
    case = terms(ratios, signs)
    result = Clip(low=0.2, high=0.28)(case)
    expected = [-0.5, 0.8, -1.0, 1.0, -1.28, 1.5, -1.25]
    assert result.loss_BT[0].tolist() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(result.loss_BT.sum(), case.logprobs_BT)
    alive = [True, False, True, True, False, True, True]
    assert [value != 0 for value in gradient[0].tolist()] == alive
    assert result.metrics["policy/clip_fraction"][0].tolist() == [not item for item in alive]
    slope = [-r * a for r, a in zip(ratios, signs, strict=True)]
    kept = [g for g, keep in zip(gradient[0].tolist(), alive, strict=True) if keep]
    assert kept == pytest.approx([s for s, keep in zip(slope, alive, strict=True) if keep])


def enumerate_kl(estimator, moved=0.0, **settings):
    """Expected value and gradient of an estimator over a vocabulary, beside the true ones."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(6, dtype=torch.float64), -1)
    logp = torch.log_softmax(logits, -1)
    old = torch.log_softmax(logits.detach() + moved * torch.randn(6, dtype=torch.float64), -1)
    case = LossInputs(
        logprobs_BT=logp[None],
        old_logprobs_BT=old[None],
        advantages_BT=torch.zeros(1, 6, dtype=torch.float64),
        mask_BT=torch.ones(1, 6, dtype=torch.float64),
        reference_logprobs_BT=reference[None],
    )
    values = KL(coefficient=1.0, estimator=estimator, **settings)(case).loss_BT[0]
    weights = old.exp()  # sampling is not differentiated
    (gradient,) = torch.autograd.grad((weights * values).sum(), logits, retain_graph=True)
    expected = float((weights * values).sum().detach())
    forward = (logp.exp() * (logp - reference)).sum()
    backward = (reference.exp() * (reference - logp)).sum()
    (gradient_forward,) = torch.autograd.grad(forward, logits, retain_graph=True)
    (gradient_backward,) = torch.autograd.grad(backward, logits)
    return expected, gradient, float(forward), gradient_forward, gradient_backward


def test_kl_estimators_have_the_values_and_gradients_the_docstring_states():
    value, gradient, true, *_ = enumerate_kl("k1")
    assert value == pytest.approx(true)
    assert gradient.abs().max() < 1e-12
    value, gradient, true, gradient_forward, _ = enumerate_kl("k2")
    assert value != pytest.approx(true, rel=1e-3)
    assert torch.allclose(gradient, gradient_forward)
    value, gradient, true, _, gradient_backward = enumerate_kl("k3")
    assert value == pytest.approx(true)
    assert torch.allclose(gradient, gradient_backward)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("moved", [0.0, 0.7])
def test_weighted_by_the_ratio_value_and_gradient_are_those_of_the_divergence(estimator, moved):
    """Also where the tokens were sampled from a policy that has moved since."""
    value, gradient, true, gradient_forward, _ = enumerate_kl(estimator, moved, weighted=True)
    assert value == pytest.approx(true)
    assert torch.allclose(gradient, gradient_forward)


def test_entropy_bonus_is_minus_coefficient_times_entropy():
    entropy = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    loss = Entropy(coefficient=0.01)(terms([1.0, 1.0], [0.0, 0.0], entropy=entropy)).loss_BT
    assert loss[0].tolist() == pytest.approx([-0.01, -0.02])
    assert not Entropy(coefficient=0.0).active


MASK = torch.tensor([[1.0, 1, 1], [1, 0, 0]])


def test_reducers_weigh_tokens_as_their_papers_do():
    counts = Counts.of(MASK)
    assert (counts.tokens, counts.sequences) == (4, 2)
    assert TokenMean().weights(MASK, counts)[0].tolist() == [0.25] * 3
    assert SequenceMean().weights(MASK, counts)[:, 0].tolist() == pytest.approx([1 / 6, 1 / 2])
    assert ConstantLength(denominator=10).weights(MASK, counts)[1].tolist() == pytest.approx(
        [0.05, 0, 0]
    )
