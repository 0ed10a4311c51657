"""TOPR: the policy gradient, with the ratio cut at 1 on bad completions.

    w_i  = 1 if A_i >= 0, else min(1, prod_t r_it)
    l_it = -sg(w_i) A_i log pi(o_it | s_it)

Le Roux et al., "Tapered Off-Policy REINFORCE" (arXiv:2503.14286). ``cap`` is 1 in the paper.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.parts import PolicyLoss, log_ratio


class Topr(PolicyLoss):
    """The policy gradient, tapered where a bad completion has become unlikely."""

    name: Literal["topr"] = "topr"
    paper: ClassVar[str] = "Le Roux et al., TOPR, 2503.14286"
    cap: float = Field(1.0, gt=0)
    """Largest weight of a completion with a negative advantage."""

    def __call__(self, terms: LossInputs) -> PerToken:
        """Loss [B, T] of every token; logs the mean weight."""
        log_ratio_B1 = log_ratio(terms).detach().sum(1, keepdim=True)
        tapered_B1 = log_ratio_B1.exp().clamp(max=self.cap)
        weight_BT = torch.where(terms.advantages_BT < 0, tapered_B1, 1.0)
        loss_BT = -weight_BT * terms.advantages_BT * terms.logprobs_BT
        return PerToken(loss_BT, {"policy/taper": weight_BT})
