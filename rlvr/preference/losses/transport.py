"""AOT: the distribution of rewards, not each pair, is to dominate (Melnyk et al., 2406.05882).

First-order stochastic dominance is imposed through sorted samples, so the loss of a pair depends
on the whole step.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.base import PairLoss
from rlvr.preference.losses.terms import Pairs
from rlvr.preference.numerics import logsigmoid


class TransportLoss(PairLoss):
    """A smoothed logistic loss of differences of order statistics."""

    whole_step: ClassVar[bool] = True
    paper: ClassVar[str] = "Melnyk et al., 2406.05882"

    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """e: how probable it is that the label is wrong."""

    def _smoothed(self, difference_B: torch.Tensor) -> torch.Tensor:
        z_B, e = self.beta * difference_B, self.label_smoothing
        return -(1 - e) * logsigmoid(z_B) - e * logsigmoid(-z_B)


class Aot(TransportLoss):
    """AOT on pairs: the policy's sorted margins against the reference's."""

    name: Literal["aot"] = "aot"
    equation: ClassVar[str] = "-(1-e) log s(beta D) - e log s(-beta D), D = sort(a-b) - sort(a0-b0)"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B], by rank and not by pair."""
        chosen, rejected = pairs.chosen, pairs.rejected
        assert chosen.reference_logps_B is not None
        assert rejected.reference_logps_B is not None
        reference_B = chosen.reference_logps_B - rejected.reference_logps_B
        return self._smoothed(pairs.margin_B.sort().values - reference_B.sort().values)


class AotUnpaired(TransportLoss):
    """AOT on the two sets of completions: sorted log-ratios of one against the other's."""

    name: Literal["aot_unpaired"] = "aot_unpaired"
    equation: ClassVar[str] = "-(1-e) log s(beta D) - e log s(-beta D), D = sort(r_w) - sort(r_l)"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B], by rank and not by pair."""
        won_B, lost_B = pairs.chosen.log_ratio_B, pairs.rejected.log_ratio_B
        return self._smoothed(won_B.sort().values - lost_B.sort().values)
