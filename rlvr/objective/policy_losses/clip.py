"""The clipped surrogate of PPO, as GRPO uses it.

    r_t = pi(o_t | s_t) / pi_old(o_t | s_t)
    loss_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)
    loss_t = min(loss_t, -dual A_t) where A_t < 0                     with dual set

Schulman et al., "Proximal Policy Optimization Algorithms" (arXiv:1707.06347, Eq. 7); with
group-relative advantages it is GRPO (Shao et al., arXiv:2402.03300, Eq. 3), and with high > low the
"clip-higher" of DAPO (Yu et al., arXiv:2503.14476, Eq. 10). The dual clip is that of Ye et al.,
"Mastering Complex Control in MOBA Games" (arXiv:1912.09729, Eq. 5). With one update per rollout
r = 1 and the loss reduces to the plain policy gradient.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from rlvr.objective.terms import PerToken, Terms
from rlvr.settings import Settings


class Clip(Settings):
    """PPO's clipped surrogate; high > low is DAPO's clip-higher."""

    name: Literal["clip"] = "clip"
    low: float = Field(0.2, ge=0, le=1)
    """How far the ratio may fall below 1 before a negative advantage stops pushing."""
    high: float = Field(0.2, ge=0)
    """How far the ratio may rise above 1 before a positive advantage stops pushing."""
    dual: float | None = Field(None, gt=1)
    """Ratio beyond which a negative advantage stops pushing, too; null never stops it there."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.dual is not None and self.dual <= 1 + self.high:
            raise ValueError(f"dual = {self.dual} must be above 1 + high = {1 + self.high}")
        return self

    def __call__(self, terms: Terms) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens whose gradient the clip cut off."""
        log_ratio_BT = log_ratio(terms)
        ratio_BT = log_ratio_BT.exp()
        advantages_BT = terms.advantages_BT
        plain_BT = ratio_BT * advantages_BT
        clipped_BT = ratio_BT.clamp(1 - self.low, 1 + self.high) * advantages_BT
        cut_BT = clipped_BT < plain_BT
        surrogate_BT = torch.minimum(plain_BT, clipped_BT)
        if self.dual is not None:
            beyond_BT = (advantages_BT < 0) & (ratio_BT > self.dual)
            surrogate_BT = torch.where(beyond_BT, self.dual * advantages_BT, surrogate_BT)
            cut_BT = cut_BT | beyond_BT
        metrics = ratio_metrics(log_ratio_BT)
        metrics["policy/clip_fraction"] = cut_BT.to(ratio_BT.dtype)
        return PerToken(-surrogate_BT, metrics)


def log_ratio(terms: Terms) -> torch.Tensor:
    """log r_t, [B, T], zero on padding."""
    return (terms.logprobs_BT - terms.old_logprobs_BT) * terms.mask_BT


def ratio_metrics(log_ratio_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far the policy has moved from the old one."""
    log_ratio_BT = log_ratio_BT.detach()
    ratio_BT = log_ratio_BT.exp()
    return {
        "policy/ratio_max": ratio_BT,
        # k3 of Schulman's note on approximating KL: unbiased for KL(old || new), never negative
        "policy/kl_old": ratio_BT - 1 - log_ratio_BT,
    }
