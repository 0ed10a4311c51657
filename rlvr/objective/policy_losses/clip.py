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

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.numerics import bounded_exp
from rlvr.objective.parts import PolicyLoss, log_ratio, ratio_metrics


class Clip(PolicyLoss):
    """PPO's clipped surrogate; high > low is DAPO's clip-higher."""

    name: Literal["clip"] = "clip"
    also_called: ClassVar[tuple[str, ...]] = ("ppo", "grpo", "dapo", "ppo_clip", "vanilla")
    paper: ClassVar[str] = (
        "Schulman et al., PPO, 1707.06347; "
        "Shao et al., DeepSeekMath, 2402.03300; "
        "Yu et al., DAPO, 2503.14476; "
        "Ye et al., dual clip, 1912.09729"
    )
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

    def __call__(self, terms: LossInputs) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens whose gradient the clip cut off."""
        log_ratio_BT = log_ratio(terms)
        ratio_BT = bounded_exp(log_ratio_BT)
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
