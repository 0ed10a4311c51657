"""The importance-weighted policy gradient without PPO's clip, at most with a cap.

    r_t = pi(o_t | s_t) / pi_old(o_t | s_t)
    loss_t = -r_t A_t                               cap: null
    loss_t = -clip(r_t, 0, cap) A_t                 Lp-Reg (arXiv:2510.03222, Eq. 6) with cap = 10

No lower bound cuts the gradient of rare tokens that a negative advantage pushes down, and beyond
the cap neither sign pushes. Lp-Reg's released code takes the pessimistic maximum instead, which
keeps pushing down beyond the cap: that is ``{name: clip, low: 1, high: 9}``. KL-Cov
(arXiv:2505.22617) is used without a cap.
"""

from typing import Literal

from pydantic import Field

from rlvr.objective.policy_losses.clip import log_ratio, ratio_metrics
from rlvr.objective.terms import PerToken, Terms
from rlvr.settings import Settings


class Ratio(Settings):
    """The ratio without PPO's clip; with cap 10, Lp-Reg's surrogate."""

    name: Literal["ratio"] = "ratio"
    cap: float | None = Field(None, gt=1)
    """Ratio beyond which a token has no gradient; null has none."""

    def __call__(self, terms: Terms) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens beyond the cap."""
        log_ratio_BT = log_ratio(terms)
        ratio_BT = log_ratio_BT.exp()
        metrics = ratio_metrics(log_ratio_BT)
        if self.cap is not None:
            metrics["policy/clip_fraction"] = (ratio_BT > self.cap).to(ratio_BT.dtype)
            ratio_BT = ratio_BT.clamp_max(self.cap)
        return PerToken(-ratio_BT * terms.advantages_BT, metrics)
