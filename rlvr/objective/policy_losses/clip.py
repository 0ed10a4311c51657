"""The clipped surrogate of PPO, as GRPO uses it.

    r_t = pi(o_t | s_t) / pi_old(o_t | s_t)
    loss_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)

Schulman et al., "Proximal Policy Optimization Algorithms" (arXiv:1707.06347, Eq. 7); with
group-relative advantages it is GRPO (Shao et al., arXiv:2402.03300, Eq. 3), and with high > low the
"clip-higher" of DAPO (Yu et al., arXiv:2503.14476, Eq. 10). With one update per rollout r = 1 and
the loss reduces to the plain policy gradient.
"""

from typing import Literal

import torch
from pydantic import Field

from rlvr.objective.terms import PerToken, Terms
from rlvr.settings import Settings


class Clip(Settings):
    """PPO's clipped surrogate; high > low is DAPO's clip-higher."""

    name: Literal["clip"] = "clip"
    low: float = Field(0.2, ge=0, le=1)
    """How far the ratio may fall below 1 before a negative advantage stops pushing."""
    high: float = Field(0.2, ge=0)
    """How far the ratio may rise above 1 before a positive advantage stops pushing."""

    def __call__(self, terms: Terms) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens whose gradient the clip cut off."""
        log_ratio_BT = (terms.logprobs_BT - terms.old_logprobs_BT) * terms.mask_BT
        ratio_BT = log_ratio_BT.exp()
        advantages_BT = terms.advantages_BT
        plain_BT = ratio_BT * advantages_BT
        clipped_BT = ratio_BT.clamp(1 - self.low, 1 + self.high) * advantages_BT
        cut_BT = (clipped_BT < plain_BT).to(ratio_BT.dtype)
        metrics = {
            "policy/clip_fraction": cut_BT,
            "policy/ratio_max": ratio_BT.detach(),
            # k3 of Schulman's note on approximating KL: unbiased for KL(old || new), never negative
            "policy/kl_old": (ratio_BT - 1 - log_ratio_BT).detach(),
        }
        return PerToken(-torch.minimum(plain_BT, clipped_BT), metrics)
