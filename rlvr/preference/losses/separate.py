"""Losses that look at the two log-ratios r_w and r_l one by one, not only at their difference."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.base import PairLoss
from rlvr.preference.losses.terms import Pairs
from rlvr.preference.numerics import logsigmoid


class SeparateLoss(PairLoss):
    """A sum of functions of the two log-ratios."""

    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference."""


class NcaPair(SeparateLoss):
    """NCA: noise contrastive alignment of pairs."""

    name: Literal["nca_pair"] = "nca_pair"
    equation: ClassVar[str] = "-log s(beta r_w) - 0.5 log s(-beta r_w) - 0.5 log s(-beta r_l)"
    paper: ClassVar[str] = "Chen et al., 2402.05369"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        won_B = self.beta * pairs.chosen.log_ratio_B
        lost_B = self.beta * pairs.rejected.log_ratio_B
        return -logsigmoid(won_B) - 0.5 * logsigmoid(-won_B) - 0.5 * logsigmoid(-lost_B)


class BcoPair(SeparateLoss):
    """BCO: a binary classifier of chosen and rejected, here without the running baseline."""

    name: Literal["bco_pair"] = "bco_pair"
    equation: ClassVar[str] = "-log s(beta r_w) - log s(-beta r_l)"
    paper: ClassVar[str] = "Jung et al., 2404.04656"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        won_B = self.beta * pairs.chosen.log_ratio_B
        lost_B = self.beta * pairs.rejected.log_ratio_B
        return -logsigmoid(won_B) - logsigmoid(-lost_B)


class SppoHard(SeparateLoss):
    """SPPO with hard labels: each log-ratio is drawn to plus or minus 1 / (2 beta)."""

    name: Literal["sppo_hard"] = "sppo_hard"
    equation: ClassVar[str] = "(r_w - 1/(2 beta))^2 + (r_l + 1/(2 beta))^2"
    paper: ClassVar[str] = "Wu et al., 2405.00675"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        target = 1 / (2 * self.beta)
        won_B, lost_B = pairs.chosen.log_ratio_B, pairs.rejected.log_ratio_B
        return (won_B - target) ** 2 + (lost_B + target) ** 2


class ApoZero(SeparateLoss):
    """APO-zero: raise the chosen, lower the rejected; for winners better than the model's own."""

    name: Literal["apo_zero"] = "apo_zero"
    equation: ClassVar[str] = "1 - s(beta r_w) + s(beta r_l)"
    paper: ClassVar[str] = "D'Oosterlinck et al., 2408.06266"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        won_B = self.beta * pairs.chosen.log_ratio_B
        lost_B = self.beta * pairs.rejected.log_ratio_B
        return 1 - won_B.sigmoid() + lost_B.sigmoid()


class ApoDown(SeparateLoss):
    """APO-down: lower both, the rejected more; for winners worse than the model's own."""

    name: Literal["apo_down"] = "apo_down"
    equation: ClassVar[str] = "s(beta r_w) + 1 - s(beta d)"
    paper: ClassVar[str] = "D'Oosterlinck et al., 2408.06266"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        won_B = self.beta * pairs.chosen.log_ratio_B
        return won_B.sigmoid() + 1 - (self.beta * pairs.log_ratio_margin_B).sigmoid()
