"""The comp-sum family: one number from losses that insist on every example to some that let go.

With p the probability of the right one of n classes and u = 1/p - 1,

    l_tau = Phi_tau(u) = [ (1 + u)^(1 - tau) - 1 ] / (1 - tau) = [ 1 - p^(tau - 1) ] / (tau - 1)

    tau = 0   1/p - 1          sum-exponential; of a pair exp(-margin)
    tau = 1   -log p           cross-entropy; logistic, Bradley-Terry, DPO
    tau = q+1                  generalised cross-entropy, q = 0.7 being the usual robust choice
    tau = 2   1 - p            mean absolute error; of a pair 1 - sigmoid(margin), bounded

    gradient = -p^(tau - 1) grad log p

so tau > 1 gives improbable tokens, or pairs ranked wrong, less weight, and a flipped label less
harm; tau < 1 gives them more. At tau = 2 it is minus the exact policy gradient of E[1(token = y)].
Mao et al., "Cross-Entropy Loss Functions: Theoretical Analysis and Applications"
(arXiv:2304.07288), which bounds the zero-one regret by these; with a vocabulary's n the bounds of
tau > 1 say nothing, so stay below 1.7 for tokens.

For SFT tokens, classes and preferences, not beside Lp-Reg in reinforcement learning: that protects
the very tokens of low probability which tau > 1 gives up, and tau < 1 would push twice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.difference import DifferenceLoss
from rlvr.preference.losses.terms import Pairs
from rlvr.preference.numerics import bounded_expm1, logsigmoid

_SAME = 1e-4
"""Nearer to 1 than this, tau is 1: the difference is below what float32 resolves."""


def comp_sum(log_p: torch.Tensor, tau: float) -> torch.Tensor:
    """l_tau of each log-probability (nats, at most 0), in at least float32; differentiable.

    Args:
        log_p: Log-probabilities of the right token, class or side, of any shape.
        tau: At least 0.

    Raises:
        ValueError: ``tau`` is negative.
    """
    if tau < 0:
        raise ValueError(f"tau = {tau} of the comp-sum losses is negative; use 0 or more")
    log_p = log_p.to(torch.promote_types(log_p.dtype, torch.float32))
    if abs(tau - 1) < _SAME:
        return -log_p
    return -bounded_expm1((tau - 1) * log_p) / (tau - 1)


def comp_sum_mean(logprobs_BT: torch.Tensor, mask_BT: torch.Tensor, tau: float) -> torch.Tensor:
    """Mean of l_tau over the tokens whose ``mask_BT`` is 1; a scalar, 0 where there are none."""
    kept_BT = mask_BT > 0
    # Filled before, as the gradient of an infinite loss times 0 would not be a number.
    loss_BT = comp_sum(logprobs_BT.masked_fill(~kept_BT, 0.0), tau)
    return loss_BT.sum() / kept_BT.sum().clamp_min(1)


class CompSum(DifferenceLoss):
    """One number from exponential (0) over DPO (1) to the bounded loss 1 - sigmoid (2)."""

    name: Literal["comp_sum"] = "comp_sum"
    equation: ClassVar[str] = "(1 - s(beta d)^(tau-1)) / (tau-1)"
    paper: ClassVar[str] = "Mao et al., Cross-Entropy Loss Functions, 2304.07288"

    not_from_rewards: ClassVar[str] = (
        "with tau above 1 it gives up tokens of low probability, which Lp-Reg is there to protect, "
        "and below 1 it pushes them a second time; use it in tasks preference, sft and reward_model"
    )

    tau: float = Field(1.4, ge=0, le=4)
    """0 exponential, 1 logistic (the loss ``sigmoid``), 2 bounded: above 1 a pair ranked wrong, as
    one with flipped sides is, has less weight."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        return comp_sum(logsigmoid(self.beta * self._difference(pairs)), self.tau)
