"""VESPO: weigh a completion by a smooth function of its whole importance ratio.

    W_i = prod_t r_it                                  not the geometric mean: no length in it
    phi(W) = W^k exp(lam (1 - W))                      k, lam: of the sign of A
    loss_it = -sg(phi(W_i)) A_it log pi(o_t | s_t)

"VESPO: Variational Sequence-Level Soft Policy Optimization" (arXiv:2602.10693). phi is 1 at W = 1
and largest at W = k / lam: a good completion weighs most when the policy has just begun to leave it
(2/3), a bad one when the policy has come towards it (3/2), and either nothing far away, where the
product of many ratios is noise. ``learner.old_logprobs_from: rollout`` makes W the
ratio to what the engine sampled from, which covers stale rollouts and the engine's rounding.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.parts import PolicyLoss, log_ratio, ratio_metrics

# log W is held between these, as in the authors' code: beyond them phi is nothing, or not a number.
_LEAST, _MOST = math.log(1e-8), 20.0


class Vespo(PolicyLoss):
    """The policy gradient weighed by a gamma-shaped function of the completion's ratio."""

    name: Literal["vespo"] = "vespo"
    paper: ClassVar[str] = "VESPO, 2602.10693"
    k_positive: float = Field(2.0, ge=0)
    """Power of W where the advantage is not negative."""
    lam_positive: float = Field(3.0, gt=0)
    """Rate of decay in W there."""
    k_negative: float = Field(3.0, ge=0)
    """Power of W where the advantage is negative."""
    lam_negative: float = Field(2.0, gt=0)
    """Rate of decay in W there."""

    def __call__(self, terms: LossInputs) -> PerToken:
        """Per-token loss [B, T]; logs the mean weight phi."""
        log_ratio_BT = log_ratio(terms)
        log_w_B1 = log_ratio_BT.detach().sum(-1, keepdim=True).clamp(_LEAST, _MOST)
        negative_BT = terms.advantages_BT < 0
        new = log_w_B1.new_tensor  # numbers alone would be float32
        k_BT = torch.where(negative_BT, new(self.k_negative), new(self.k_positive))
        lam_BT = torch.where(negative_BT, new(self.lam_negative), new(self.lam_positive))
        phi_BT = (k_BT * log_w_B1 + lam_BT * (1 - log_w_B1.exp())).exp()
        metrics = ratio_metrics(log_ratio_BT)
        metrics["policy/sequence_weight"] = phi_BT
        return PerToken(-phi_BT * terms.advantages_BT * terms.logprobs_BT, metrics)
