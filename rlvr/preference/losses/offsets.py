"""DPO with something added inside the sigmoid: R-DPO, ODPO, DPOP."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.base import PairLoss
from rlvr.preference.losses.terms import Pairs
from rlvr.preference.numerics import logsigmoid


class OffsetLoss(PairLoss):
    """-log sigmoid(beta d + offset)."""

    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference."""

    def _offset(self, pairs: Pairs) -> torch.Tensor:
        raise NotImplementedError

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        return -logsigmoid(self.beta * pairs.log_ratio_margin_B + self._offset(pairs))


class RDpo(OffsetLoss):
    """R-DPO: a longer winner needs less of a margin, so length itself is not learned."""

    name: Literal["r_dpo"] = "r_dpo"
    equation: ClassVar[str] = "-log s(beta d + alpha (|w| - |l|))"
    paper: ClassVar[str] = "Park et al., 2403.19159"
    core: ClassVar[str | None] = "R-DPO"

    alpha: float = Field(0.01, ge=0)
    """Reward that the longer completion is granted beforehand, per token."""

    def _offset(self, pairs: Pairs) -> torch.Tensor:
        return self.alpha * (pairs.chosen.lengths_B - pairs.rejected.lengths_B)


class Odpo(OffsetLoss):
    """ODPO: the margin aimed at grows with how much better the winner was scored."""

    name: Literal["odpo"] = "odpo"
    equation: ClassVar[str] = "-log s(beta d - alpha log(score_w - score_l))"
    paper: ClassVar[str] = "Amini et al., 2402.10571"
    core: ClassVar[str | None] = "ODPO"

    alpha: float = Field(1.0, ge=0)
    """Weight of the offset."""
    of: Literal["log_difference", "difference"] = "log_difference"
    """What of the two scores: log(score_w - score_l), or the difference itself."""

    @property
    def needs_scores(self) -> bool:
        """Whether it looks at scores of the completions."""
        return True

    def _offset(self, pairs: Pairs) -> torch.Tensor:
        assert pairs.chosen.scores_B is not None
        assert pairs.rejected.scores_B is not None
        difference_B = pairs.chosen.scores_B - pairs.rejected.scores_B
        if self.of == "log_difference":
            difference_B = difference_B.clamp_min(1e-6).log()
        return -self.alpha * difference_B


class Dpop(OffsetLoss):
    """DPO-positive: a penalty where the winner became less probable than under the reference."""

    name: Literal["dpop"] = "dpop"
    equation: ClassVar[str] = "-log s(beta (d - penalty max(0, -r_w)))"
    paper: ClassVar[str] = "Pal et al., 2402.13228"
    core: ClassVar[str | None] = "DPOP"

    penalty: float = Field(5.0, ge=0)
    """Weight of the penalty (the paper's lambda)."""

    def _offset(self, pairs: Pairs) -> torch.Tensor:
        return -self.beta * self.penalty * torch.relu(-pairs.chosen.log_ratio_B)
