"""Losses over single completions with a label: KTO and APO-zero without pairs."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.base import UnpairedLoss
from rlvr.preference.losses.terms import Labelled


class WeightedUnpaired(UnpairedLoss):
    """A loss of desirable and one of undesirable completions, each with its weight."""

    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference."""
    desirable_weight: float = Field(1.0, ge=0)
    """Weight of desirable completions. KTO's paper wants (their number x their weight) / (the
    same of undesirable ones) between 1 and 4/3."""
    undesirable_weight: float = Field(1.0, ge=0)
    """Weight of undesirable completions."""

    def __call__(self, labelled: Labelled) -> torch.Tensor:
        """Loss [B]."""
        baseline = labelled.baseline if self.uses_baseline else 0.0
        z_B = self.beta * (labelled.log_ratio_B - baseline)
        desirable_B = self.desirable_weight * (1 - z_B.sigmoid())
        undesirable_B = self.undesirable_weight * (1 - (-z_B).sigmoid())
        return torch.where(labelled.desirable_B.bool(), desirable_B, undesirable_B)


class Kto(WeightedUnpaired):
    """KTO: a prospect-theoretic value of the reward against the baseline z0."""

    name: Literal["kto"] = "kto"
    uses_baseline: ClassVar[bool] = True
    equation: ClassVar[str] = "1 - s(beta (r - z0)) if desirable, 1 - s(beta (z0 - r)) if not"
    paper: ClassVar[str] = "Ethayarajh et al., 2402.01306"


class ApoZeroUnpaired(WeightedUnpaired):
    """APO-zero for single completions: KTO without its baseline."""

    name: Literal["apo_zero_unpaired"] = "apo_zero_unpaired"
    equation: ClassVar[str] = "1 - s(beta r) if desirable, s(beta r) if not"
    paper: ClassVar[str] = "D'Oosterlinck et al., 2408.06266"


def baseline_of(mismatched_log_ratio_B: torch.Tensor) -> float:
    """KTO's z0: the mean log-ratio of mismatched completions, at least 0, without gradient."""
    return max(0.0, float(mismatched_log_ratio_B.detach().double().mean()))
