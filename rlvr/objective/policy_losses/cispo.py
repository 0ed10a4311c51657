"""CISPO: clip the importance weight, not the token.

    loss_t = -sg(clip(r_t, 1 - low, 1 + high)) A_t log pi(o_t | s_t)

MiniMax, "MiniMax-M1" (arXiv:2506.13585, Eqs. 4 and 5). Every token of non-zero advantage keeps a
gradient, however far its ratio went: beyond the bound its weight stays, where PPO drops the token.
The paper tunes ``high`` alone and publishes no value; ``low`` is 1 there, which bounds nothing.
"""

from typing import Literal

from pydantic import Field

from rlvr.objective.policy_losses.clip import log_ratio, ratio_metrics
from rlvr.objective.terms import PerToken, Terms
from rlvr.settings import Settings


class Cispo(Settings):
    """The policy gradient with clipped importance weights."""

    name: Literal["cispo"] = "cispo"
    low: float = Field(1.0, ge=0, le=1)
    """Weights are at least 1 - low."""
    high: float = Field(4.0, ge=0)
    """Weights are at most 1 + high."""

    def __call__(self, terms: Terms) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens whose weight was clipped."""
        log_ratio_BT = log_ratio(terms)
        ratio_BT = log_ratio_BT.detach().exp()
        weight_BT = ratio_BT.clamp(1 - self.low, 1 + self.high)
        metrics = ratio_metrics(log_ratio_BT)
        metrics["policy/clip_fraction"] = (weight_BT != ratio_BT).to(ratio_BT.dtype)
        return PerToken(-weight_BT * terms.advantages_BT * terms.logprobs_BT, metrics)
