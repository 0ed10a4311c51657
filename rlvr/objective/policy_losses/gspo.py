"""GSPO: the clipped surrogate of a ratio that belongs to the whole completion.

    s_i = exp(1/|o_i| sum_t log r_it)                     the geometric mean of the token ratios
    s_it = sg(s_i) pi(o_t | s_t) / sg(pi(o_t | s_t))      value s_i, gradient through its own token
    loss_it = -min(s_it A_it, clip(s_it, 1 - low, 1 + high) A_it)

Zheng et al., "Group Sequence Policy Optimization" (arXiv:2507.18071, Eqs. 7 and 14): the second
form is the paper's GSPO-token, whose gradient equals that of the first where all tokens of a
completion have one advantage. Its mean is over completions: ``reducer: {name: sequence_mean}``.
The ratio of a completion moves far less than that of a token, hence the small clips.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.numerics import bounded_exp
from rlvr.objective.parts import PolicyLoss, log_ratio, ratio_metrics


class Gspo(PolicyLoss):
    """PPO's clip on the completion's ratio instead of each token's."""

    name: Literal["gspo"] = "gspo"
    paper: ClassVar[str] = "Zheng et al., GSPO, 2507.18071; Liu et al., LUSPO, 2602.05261"
    reducer_of_paper: ClassVar[str | None] = "sequence_mean"
    low: float = Field(3e-4, ge=0, le=1)
    """How far the completion's ratio may fall below 1."""
    high: float = Field(4e-4, ge=0)
    """How far it may rise above 1."""

    def __call__(self, terms: LossInputs) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens whose gradient the clip cut off."""
        log_ratio_BT = log_ratio(terms)
        lengths_B1 = terms.mask_BT.sum(-1, keepdim=True).clamp_min(1)
        mean_B1 = (log_ratio_BT * terms.mask_BT).detach().sum(-1, keepdim=True) / lengths_B1
        own_BT = (log_ratio_BT - log_ratio_BT.detach()).exp()
        sequence_BT = bounded_exp(mean_B1) * own_BT
        plain_BT = sequence_BT * terms.advantages_BT
        clipped_BT = sequence_BT.clamp(1 - self.low, 1 + self.high) * terms.advantages_BT
        metrics = ratio_metrics(log_ratio_BT)
        metrics["policy/clip_fraction"] = (clipped_BT < plain_BT).to(plain_BT.dtype)
        metrics["policy/sequence_ratio_max"] = bounded_exp(mean_B1).expand_as(terms.mask_BT)
        return PerToken(-torch.minimum(plain_BT, clipped_BT), metrics)
