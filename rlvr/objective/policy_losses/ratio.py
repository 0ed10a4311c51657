"""The importance-weighted policy gradient without PPO's clip, at most with a cap.

    r_t = pi(o_t | s_t) / pi_old(o_t | s_t)
    loss_t = -r_t A_t                               cap: null
    loss_t = -clip(r_t, 0, cap) A_t                 Lp-Reg (arXiv:2510.03222, Eq. 6) with cap = 10

No lower bound cuts the gradient of rare tokens that a negative advantage pushes down, and beyond
the cap neither sign pushes. Lp-Reg's released code takes the pessimistic maximum instead, which
keeps pushing down beyond the cap: that is ``{name: clip, low: 1, high: 9}``. KL-Cov
(arXiv:2505.22617) is used without a cap.
"""

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.numerics import bounded_exp
from rlvr.objective.parts import PolicyLoss, log_ratio, ratio_metrics


class Ratio(PolicyLoss):
    """The ratio without PPO's clip; with cap 10, Lp-Reg's surrogate."""

    name: Literal["ratio"] = "ratio"
    paper: ClassVar[str] = (
        "Huang et al., Lp-Reg, 2510.03222; Cui et al., The Entropy Mechanism, 2505.22617"
    )
    cap: float | None = Field(None, gt=1)
    """Ratio beyond which a token has no gradient; null has none."""

    def __call__(self, terms: LossInputs) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens beyond the cap."""
        log_ratio_BT = log_ratio(terms)
        ratio_BT = bounded_exp(log_ratio_BT)
        metrics = ratio_metrics(log_ratio_BT)
        if self.cap is not None:
            metrics["policy/clip_fraction"] = (ratio_BT > self.cap).to(ratio_BT.dtype)
            ratio_BT = ratio_BT.clamp_max(self.cap)
        return PerToken(-ratio_BT * terms.advantages_BT, metrics)
