"""Corrections for the engine: importance sampling by enumeration, caps, masks, metrics."""

import math

import pytest
import torch

from rlvr.objective.corrections import MaskOnly, MaskOutliers, NoCorrection, TruncatedImportance
from rlvr.objective.loss_inputs import LossInputs
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.reinforce import Reinforce
from rlvr.objective.reducers import Counts, TokenMean
from rlvr.settings import load_settings

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
LOG_RHO = torch.tensor([[0.5, -0.5, 2.0], [-3.0, 0.1, 9.0]], dtype=torch.float64)


def test_token_weights_are_the_ratio_up_to_the_cap():
    weights = TruncatedImportance(cap=2.0).weights(LOG_RHO, MASK)
    assert weights[0].tolist() == pytest.approx([math.exp(0.5), math.exp(-0.5), 2.0])
    assert weights[1, :2].tolist() == pytest.approx([math.exp(-3.0), math.exp(0.1)])


def test_sequence_weights_are_the_product_over_real_tokens():
    weights = TruncatedImportance(level="sequence", cap=5.0).weights(LOG_RHO, MASK)
    assert weights[0].tolist() == [pytest.approx(5.0)] * 3
    assert weights[1].tolist() == [pytest.approx(math.exp(-2.9))] * 3
    long = torch.full((1, 2000), 1.0, dtype=torch.float64)
    huge = TruncatedImportance(level="sequence").weights(long, torch.ones_like(long))
    assert huge[0, 0].item() == pytest.approx(2.0), "exp(2000) must not overflow"


def test_masks_keep_what_is_within_the_bounds():
    weights = MaskOnly(low=0.5, high=2.0).weights(LOG_RHO, MASK)
    assert weights.tolist() == [[1, 1, 0], [0, 1, 1]]
    for correction in (MaskOnly, MaskOutliers):
        with pytest.raises(ValueError, match="must be below"):
            load_settings(correction, {"low": 6.0})


def test_icepop_weighs_by_the_ratio_within_its_bounds_and_by_0_outside():
    """arXiv:2510.18855, Eq. 2: M(k) = k where alpha <= k <= beta, else 0."""
    log_rho = torch.tensor([[0.6, -0.6, 0.1]], dtype=torch.float64)
    weights = MaskOutliers().weights(log_rho, torch.ones_like(log_rho))
    assert weights[0].tolist() == pytest.approx([math.exp(0.6), math.exp(-0.6), math.exp(0.1)])
    assert (MaskOutliers().low, MaskOutliers().high) == (0.5, 5.0)
    weights = MaskOutliers().weights(LOG_RHO, MASK)
    assert weights[0].tolist() == pytest.approx([math.exp(0.5), math.exp(-0.5), 0.0])
    assert weights[1, :2].tolist() == pytest.approx([0.0, math.exp(0.1)])
    weights = MaskOutliers(level="sequence", high=8.0).weights(LOG_RHO, MASK)
    assert weights[0].tolist() == pytest.approx([math.exp(2.0)] * 3)
    assert weights[1].tolist() == [0.0] * 3


def enumerated_gradient(correction):
    """Expected gradient over a vocabulary of 5, tokens sampled by another distribution."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    logp = torch.log_softmax(logits, -1)
    engine = torch.log_softmax(logits.detach() + 0.5 * torch.randn(5).double(), -1)
    rewards = torch.randn(5, dtype=torch.float64)
    terms = LossInputs(
        logprobs_BT=logp[:, None],
        old_logprobs_BT=logp.detach()[:, None],
        advantages_BT=rewards[:, None],
        mask_BT=torch.ones(5, 1, dtype=torch.float64),
        rollout_logprobs_BT=engine[:, None],
    )
    weights = correction.weights(terms.old_logprobs_BT - terms.rollout_logprobs_BT, terms.mask_BT)
    loss = (engine.exp()[:, None] * weights * Reinforce()(terms).loss_BT).sum()
    true = -(logp.exp() * rewards).sum()
    return (
        torch.autograd.grad(loss, logits, retain_graph=True)[0],
        torch.autograd.grad(true, logits)[0],
    )


def test_importance_weights_make_the_expected_gradient_the_learners_own():
    corrected, true = enumerated_gradient(TruncatedImportance(cap=1e6))
    assert torch.allclose(corrected, true, atol=1e-12)
    plain, true = enumerated_gradient(NoCorrection())
    assert not torch.allclose(plain, true, atol=1e-2)


def terms_of(log_rho):
    logprobs = torch.full_like(log_rho, -1.0).requires_grad_()
    return LossInputs(
        logprobs_BT=logprobs,
        old_logprobs_BT=logprobs.detach(),
        advantages_BT=torch.ones_like(log_rho),
        mask_BT=MASK,
        rollout_logprobs_BT=logprobs.detach() - log_rho,
    )


def test_the_objective_weighs_the_policy_loss_and_logs_the_mismatch():
    objective = Objective(Reinforce(), (), TokenMean(), MaskOutliers(high=2.0))
    case = terms_of(LOG_RHO)
    loss, metrics = objective(case, Counts.of(MASK))
    (gradient,) = torch.autograd.grad(loss, case.logprobs_BT)
    assert (gradient != 0).tolist() == [[True, True, False], [False, True, False]]
    assert metrics["mismatch/difference"] == pytest.approx((0.5 + 0.5 + 2 + 3 + 0.1) / 5)
    assert metrics["mismatch/difference_max"] == pytest.approx(3.0)
    assert metrics["mismatch/ratio_max"] == pytest.approx(math.exp(2.0))
    inside = math.exp(0.5) + math.exp(-0.5) + math.exp(0.1)
    assert metrics["mismatch/weight"] == pytest.approx(inside / 5)
    plain, metrics = Objective(Reinforce(), (), TokenMean())(case, Counts.of(MASK))
    assert "mismatch/weight" not in metrics
    assert plain.item() == pytest.approx(1.0)
