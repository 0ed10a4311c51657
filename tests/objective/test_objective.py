"""Advantages, losses, regularisers and reducers against closed forms and enumeration."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.objective import (
    KL,
    Clip,
    ConstantLength,
    Counts,
    Entropy,
    GroupAdvantage,
    Objective,
    Reinforce,
    SequenceMean,
    Terms,
    TokenMean,
    merge_metrics,
)


def advantages(rewards, groups=None, **settings):
    index = torch.zeros(len(rewards)).long() if groups is None else torch.tensor(groups)
    return GroupAdvantage(**settings)(torch.tensor(rewards, dtype=torch.float64), index)


@pytest.mark.parametrize("right", range(1, 8))
def test_binary_rewards_have_the_closed_form(right):
    values = advantages([1.0] * right + [0.0] * (8 - right))
    assert values[-1].item() == pytest.approx(-math.sqrt(7 * right / (8 * (8 - right))), rel=1e-4)
    assert values[0].item() == pytest.approx(math.sqrt(7 * (8 - right) / (8 * right)), rel=1e-4)


@given(value=st.floats(-1e3, 1e3), count=st.integers(1, 16), scale=st.sampled_from(["std", "none"]))
def test_equal_rewards_are_worth_exactly_nothing(value, count, scale):
    assert advantages([value] * count, scale=scale).tolist() == [0.0] * count


def test_groups_do_not_see_each_other():
    mixed = advantages([1, 5, 0, 9], groups=[0, 1, 0, 1])
    assert mixed[[0, 2]].tolist() == advantages([1, 0]).tolist()
    assert advantages([3, 1], scale="none").tolist() == [1.0, -1.0]


def terms(ratio, advantage, entropy=None, reference=None):
    ratio = torch.tensor([ratio], dtype=torch.float64)
    old = torch.full_like(ratio, -2.0)
    logprobs = (old + ratio.log()).requires_grad_()
    return Terms(
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


def test_at_ratio_one_the_clipped_loss_has_the_plain_gradient():
    for loss in (Clip(), Clip(low=0.0, high=0.0), Reinforce()):
        case = terms([1.0, 1.0], [0.7, -1.3])
        (gradient,) = torch.autograd.grad(loss(case).loss_BT.sum(), case.logprobs_BT)
        assert gradient[0].tolist() == pytest.approx([-0.7, 1.3])


def enumerate_kl(estimator, moved=0.0, **settings):
    """Expected value and gradient of an estimator over a vocabulary, beside the true ones."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(6, dtype=torch.float64), -1)
    logp = torch.log_softmax(logits, -1)
    old = torch.log_softmax(logits.detach() + moved * torch.randn(6, dtype=torch.float64), -1)
    case = Terms(
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


@pytest.mark.parametrize("reducer", [TokenMean(), SequenceMean(), ConstantLength(denominator=5)])
def test_loss_and_metrics_do_not_depend_on_the_split(reducer):
    torch.manual_seed(0)
    mask = (torch.rand(6, 5) > 0.3).double()
    mask[:, 0] = 1
    columns = {
        "logprobs_BT": -torch.rand(6, 5).double(),
        "old_logprobs_BT": -torch.rand(6, 5).double(),
        "advantages_BT": torch.randn(6, 5).double(),
        "mask_BT": mask,
        "entropy_BT": torch.rand(6, 5).double(),
        "reference_logprobs_BT": -torch.rand(6, 5).double(),
    }
    objective = Objective(Clip(), (KL(coefficient=0.1), Entropy(coefficient=0.01)), reducer)
    counts = Counts.of(mask)
    whole, expected = objective(Terms(**columns), counts)
    loss, metrics = torch.zeros(()), {}
    for rows in ([4, 1], [0], [3, 5, 2]):
        share, shares = objective(Terms(**{k: v[rows] for k, v in columns.items()}), counts)
        loss, metrics = loss + share, merge_metrics(metrics, shares)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    assert metrics == pytest.approx(expected, rel=1e-9)


def test_masked_entries_count_for_nothing():
    torch.manual_seed(0)
    case = terms([1.3, 0.4], [1.0, -1.0])
    mask = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    masked = Terms(case.logprobs_BT, case.old_logprobs_BT, case.advantages_BT, mask)
    loss, _ = Objective(Clip(), (), TokenMean())(masked, Counts.of(mask))
    (gradient,) = torch.autograd.grad(loss, case.logprobs_BT)
    assert gradient[0, 1] == 0
    assert gradient[0, 0] == 0, "1.3 is above 1.2, so the clip cuts it"
