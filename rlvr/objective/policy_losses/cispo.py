"""CISPO: clip the importance weight, not the token.

    loss_t = -sg(clip(r_t, 1 - low, 1 + high)) A_t log pi(o_t | s_t)

MiniMax, "MiniMax-M1" (arXiv:2506.13585, Eqs. 4 and 5). Every token of non-zero advantage keeps a
gradient, however far its ratio went: beyond the bound its weight stays, where PPO drops the token.
The paper tunes ``high`` alone and publishes no value; ``low`` is 1 there, which bounds nothing.
"""

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.numerics import bounded_exp
from rlvr.objective.parts import PolicyLoss, log_ratio, ratio_metrics


class Cispo(PolicyLoss):
    """The policy gradient with clipped importance weights."""

    name: Literal["cispo"] = "cispo"
    paper: ClassVar[str] = "MiniMax-M1, CISPO, 2506.13585"
    low: float = Field(1.0, ge=0, le=1)
    """Weights are at least 1 - low."""
    high: float = Field(4.0, ge=0)
    """Weights are at most 1 + high."""

    def __call__(self, terms: LossInputs) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens whose weight was clipped."""
        log_ratio_BT = log_ratio(terms)
        ratio_BT = bounded_exp(log_ratio_BT.detach())
        weight_BT = ratio_BT.clamp(1 - self.low, 1 + self.high)
        metrics = ratio_metrics(log_ratio_BT)
        metrics["policy/clip_fraction"] = (weight_BT != ratio_BT).to(ratio_BT.dtype)
        return PerToken(-weight_BT * terms.advantages_BT * terms.logprobs_BT, metrics)
