"""GMPO: the geometric mean of token ratios, each clipped by itself.

    x_it  = log r_it
    z_it  = min(x_it, clip(x_it, -bound, bound))  where A_i > 0,  max of the two  where A_i <= 0
    R_i   = exp(1/|o_i| sum_t z_it)
    loss_i = -R_i A_i                             a mean over completions

Zhao et al., "Geometric-Mean Policy Optimization" (arXiv:2507.20673). Where PPO averages r A, one
token of an extreme ratio decides the mean; the geometric mean is hardly moved by it, so the bound
can be wide. Clipped is what would go further in the direction of A: the gradient of a completion is
-A_i R_i / |o_i| times the sum of grad log pi over the tokens that are not clipped.

The mean over completions is taken by ``reducer: {name: sequence_mean}``, which is needed: here
every token bears R_i A_i, and the gradient through its own log-probability.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.numerics import bounded_exp
from rlvr.objective.parts import PolicyLoss, log_ratio, ratio_metrics


class Gmpo(PolicyLoss):
    """The geometric mean of a completion's token ratios, each clipped in log space."""

    name: Literal["gmpo"] = "gmpo"
    paper: ClassVar[str] = "Zhao et al., GMPO, 2507.20673"
    reducer_of_paper: ClassVar[str | None] = "sequence_mean"
    needs_reducer: ClassVar[bool] = True
    bound: float = Field(0.4, gt=0)
    """How far log r may go in the direction of the advantage before a token stops pushing."""

    def __call__(self, terms: LossInputs) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens whose gradient the clip cut off."""
        x_BT, advantages_BT = log_ratio(terms), terms.advantages_BT
        z_BT = torch.where(
            advantages_BT > 0, x_BT.clamp_max(self.bound), x_BT.clamp_min(-self.bound)
        )
        lengths_B1 = terms.mask_BT.sum(-1, keepdim=True).clamp_min(1)
        mean_B1 = z_BT.detach().sum(-1, keepdim=True) / lengths_B1
        # The value is R for every token; the gradient flows through the token's own z.
        ratio_BT = bounded_exp(mean_B1) * (z_BT - z_BT.detach()).exp()
        metrics = ratio_metrics(x_BT)
        metrics["policy/clip_fraction"] = (z_BT != x_BT).to(x_BT.dtype)
        metrics["policy/sequence_ratio_max"] = bounded_exp(mean_B1).expand_as(terms.mask_BT)
        return PerToken(-ratio_BT * advantages_BT, metrics)
