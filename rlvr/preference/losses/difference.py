"""Losses of DPO's log-ratio margin d = r_w - r_l, with r = log π(y | x) - log ref(y | x).

Direct preference optimisation (Rafailov et al., arXiv:2305.18290) and those that put another
function around the same difference, or take it per token. ``divergence`` replaces r by the score
of another f-divergence.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.base import LogProbs, PairLoss
from rlvr.preference.losses.divergences import Divergence, score
from rlvr.preference.losses.terms import Pairs
from rlvr.preference.numerics import bounded_expm1, logsigmoid


class DifferenceLoss(PairLoss):
    """A function of the difference of two scores."""

    core: ClassVar[str | None] = "DPO"

    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference."""
    divergence: Divergence = "reverse_kl"
    """Which f-divergence from the reference the scores belong to."""
    divergence_alpha: float = 0.5
    """Coefficient of divergence alpha."""

    def _difference(self, pairs: Pairs) -> torch.Tensor:
        scores = [self._score(side.log_ratio_B) for side in (pairs.chosen, pairs.rejected)]
        if self.log_probs == "mean":
            # The scores are divided, not the log-ratios: with another divergence that differs.
            sides = (pairs.chosen, pairs.rejected)
            scores = [s / x.lengths_B.clamp_min(1) for s, x in zip(scores, sides, strict=True)]
        return scores[0] - scores[1]

    def _score(self, log_ratio_B: torch.Tensor) -> torch.Tensor:
        return score(log_ratio_B, self.divergence, self.divergence_alpha)


class Sigmoid(DifferenceLoss):
    """DPO: -log sigmoid(beta d)."""

    name: Literal["sigmoid"] = "sigmoid"
    also_called: ClassVar[tuple[str, ...]] = ("dpo",)
    equation: ClassVar[str] = "-log s(beta d)"
    paper: ClassVar[str] = "Rafailov et al., 2305.18290"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        return -logsigmoid(self.beta * self._difference(pairs))


class SigmoidNorm(DifferenceLoss):
    """DPO with log-ratios per token. It keeps the reference and has no margin: it is not SimPO."""

    name: Literal["sigmoid_norm"] = "sigmoid_norm"
    log_probs: ClassVar[LogProbs] = "mean"
    equation: ClassVar[str] = "-log s(beta (r_w/|w| - r_l/|l|))"
    paper: ClassVar[str] = "Rafailov et al., 2305.18290, per token"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        return -logsigmoid(self.beta * self._difference(pairs))


class Hinge(DifferenceLoss):
    """Hinge on beta d with margin 1 (RSO's SLiC form; the loss ``slic`` has its own scale)."""

    name: Literal["hinge"] = "hinge"
    equation: ClassVar[str] = "max(0, 1 - beta d)"
    paper: ClassVar[str] = "Liu et al., 2309.06657"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        return torch.relu(1 - self.beta * self._difference(pairs))


class Ipo(DifferenceLoss):
    """IPO: squared distance of the log-ratio margin per token to 1 / (2 beta)."""

    name: Literal["ipo"] = "ipo"
    log_probs: ClassVar[LogProbs] = "mean"
    equation: ClassVar[str] = "(r_w/|w| - r_l/|l| - 1/(2 beta))^2"
    paper: ClassVar[str] = "Azar et al., 2310.12036"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        return (self._difference(pairs) - 1 / (2 * self.beta)) ** 2


class ExoPair(DifferenceLoss):
    """EXO for pairs: reverse KL of the policy's preference from the smoothed label."""

    name: Literal["exo_pair"] = "exo_pair"
    equation: ClassVar[str] = (
        "s(beta d) [log s(beta d) - log(1-e)] + s(-beta d) [log s(-beta d) - log e]"
    )
    paper: ClassVar[str] = "Ji et al., 2402.00856"

    label_smoothing: float = Field(1e-3, gt=0, lt=1)
    """e: how probable it is that the label is wrong; its logarithm is taken."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        z_B = self.beta * self._difference(pairs)
        e = z_B.new_tensor(self.label_smoothing)
        won_B = z_B.sigmoid() * (logsigmoid(z_B) - torch.log1p(-e))
        lost_B = (-z_B).sigmoid() * (logsigmoid(-z_B) - e.log())
        return won_B + lost_B


class Robust(DifferenceLoss):
    """Robust DPO: unbiased where a share of the labels is flipped."""

    name: Literal["robust"] = "robust"
    equation: ClassVar[str] = "(-(1-e) log s(beta d) + e log s(-beta d)) / (1-2e)"
    paper: ClassVar[str] = "Chowdhury et al., 2403.00409"

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """e: the share of flipped labels."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        z_B, e = self.beta * self._difference(pairs), self.label_smoothing
        return (e * logsigmoid(-z_B) - (1 - e) * logsigmoid(z_B)) / (1 - 2 * e)


class Discopop(DifferenceLoss):
    """DiscoPOP: logistic and exponential loss, mixed by the size of the margin itself."""

    name: Literal["discopop"] = "discopop"
    equation: ClassVar[str] = "-(1-m) log s(beta d) + m exp(-beta d), m = s(beta d / tau)"
    paper: ClassVar[str] = "Lu et al., 2406.08414"

    tau: float = Field(0.05, gt=0)
    """Temperature of the mixing."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        z_B = self.beta * self._difference(pairs)
        logistic_B = -(-z_B / self.tau).sigmoid() * logsigmoid(z_B)
        # One exponential: m is 0 where exp(-z) overflows.
        return logistic_B + 1 + bounded_expm1(logsigmoid(z_B / self.tau) - z_B)
