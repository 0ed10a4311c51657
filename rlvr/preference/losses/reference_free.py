"""Losses without a reference model: CPO, SimPO, AlphaPO, ORPO, SLiC, RRHF, and imitation.

a = log π(y_w | x), b = log π(y_l | x), as sums or as means per token (``log_probs`` says which).
``nll_weight`` adds the negative log-likelihood of y_w, a mean over the step's tokens unless the
class says otherwise.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.base import LogProbs, PairLoss
from rlvr.preference.losses.terms import Pairs, Side
from rlvr.preference.numerics import bounded_expm1, log1mexp, logsigmoid


class ReferenceFree(PairLoss):
    """A loss of the policy's own log-probabilities."""

    takes_reference: ClassVar[bool] = False

    def _logps(self, side: Side) -> torch.Tensor:
        return side.mean_logps_B if self.log_probs == "mean" else side.logps_B

    def _margin(self, pairs: Pairs) -> torch.Tensor:
        return self._logps(pairs.chosen) - self._logps(pairs.rejected)


class Sft(ReferenceFree):
    """Imitation of the chosen completion: its negative log-likelihood, a mean over tokens."""

    name: Literal["sft"] = "sft"
    equation: ClassVar[str] = "-a, mean over the step's tokens"
    paper: ClassVar[str] = "Ouyang et al., 2203.02155"
    core: ClassVar[str | None] = "CE"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        return pairs.nll_B()


def power_reward(logps_B: torch.Tensor, alpha: float) -> torch.Tensor:
    """AlphaPO's (1 - p^-alpha) / alpha of p = exp(``logps_B``); alpha 0 is log p."""
    return logps_B if alpha == 0 else -bounded_expm1(-alpha * logps_B) / alpha


class ContrastiveLoss(ReferenceFree):
    """A smoothed logistic loss of a margin of rewards, plus likelihood."""

    beta: float = Field(0.1, gt=0)
    """Scale of the margin."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """How probable it is that the label is wrong (the logistic form alone)."""

    def _logistic(self, z_B: torch.Tensor) -> torch.Tensor:
        e = self.label_smoothing
        return -(1 - e) * logsigmoid(z_B) - e * logsigmoid(-z_B)


class Cpo(ContrastiveLoss):
    """CPO: DPO without its reference, and the likelihood of the winner."""

    name: Literal["cpo"] = "cpo"
    equation: ClassVar[str] = "-log s(beta (a - b)) + nll_weight NLL(y_w)"
    paper: ClassVar[str] = "Xu et al., 2401.08417"
    core: ClassVar[str | None] = "CPO"

    form: Literal["logistic", "hinge"] = "logistic"
    """The function around the margin: -log s(z), or max(0, 1 - z)."""
    alpha: float = 0.0
    """AlphaPO's power of the probability in the reward; 0 is the logarithm."""
    nll_weight: float = Field(1.0, ge=0)
    """Weight of the winner's negative log-likelihood."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        won_B = power_reward(self._logps(pairs.chosen), self.alpha)
        z_B = self.beta * (won_B - power_reward(self._logps(pairs.rejected), self.alpha))
        loss_B = self._logistic(z_B) if self.form == "logistic" else torch.relu(1 - z_B)
        return loss_B + self.nll_weight * pairs.nll_B() if self.nll_weight else loss_B


class CpoIpo(ReferenceFree):
    """CPO with IPO's square around the margin per token."""

    name: Literal["cpo_ipo"] = "cpo_ipo"
    log_probs: ClassVar[LogProbs] = "mean"
    equation: ClassVar[str] = "(a/|w| - b/|l| - 1/(2 beta))^2 + nll_weight NLL(y_w)"
    paper: ClassVar[str] = "Xu et al., 2401.08417 with Azar et al., 2310.12036"
    core: ClassVar[str | None] = "CPO"

    beta: float = Field(0.1, gt=0)
    """The margin aimed at is 1 / (2 beta)."""
    alpha: float = 0.0
    """AlphaPO's power of the probability in the reward; 0 is the logarithm."""
    nll_weight: float = Field(1.0, ge=0)
    """Weight of the winner's negative log-likelihood."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        won_B = power_reward(self._logps(pairs.chosen), self.alpha)
        difference_B = won_B - power_reward(self._logps(pairs.rejected), self.alpha)
        loss_B = (difference_B - 1 / (2 * self.beta)) ** 2
        return loss_B + self.nll_weight * pairs.nll_B() if self.nll_weight else loss_B


class SimPo(ContrastiveLoss):
    """SimPO: log-probabilities per token as rewards, with a target margin."""

    name: Literal["simpo"] = "simpo"
    log_probs: ClassVar[LogProbs] = "mean"
    equation: ClassVar[str] = "-log s(beta (a/|w| - b/|l|) - gamma) + nll_weight NLL(y_w)"
    paper: ClassVar[str] = "Meng et al., 2405.14734"
    core: ClassVar[str | None] = "SimPO"

    beta: float = Field(2.0, gt=0)
    """Scale of the margin."""
    gamma: float = Field(0.5, ge=0)
    """Target margin."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the winner's negative log-likelihood; above 0 it is CPO-SimPO."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        loss_B = self._logistic(self.beta * self._margin(pairs) - self.gamma)
        return loss_B + self.nll_weight * pairs.nll_B() if self.nll_weight else loss_B


class AlphaPo(ContrastiveLoss):
    """AlphaPO: SimPO with a power of the probability as reward."""

    name: Literal["alphapo"] = "alphapo"
    log_probs: ClassVar[LogProbs] = "mean"
    equation: ClassVar[str] = (
        "-log s(beta (R(a/|w|) - R(b/|l|)) - gamma), R(x) = (1 - exp(-alpha x)) / alpha"
    )
    paper: ClassVar[str] = "Gupta et al., 2501.03884"

    beta: float = Field(2.0, gt=0)
    """Scale of the margin."""
    gamma: float = Field(0.5, ge=0)
    """Target margin."""
    alpha: float = 0.25
    """Power of the probability; 0 is SimPO."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        won_B = power_reward(self._logps(pairs.chosen), self.alpha)
        lost_B = power_reward(self._logps(pairs.rejected), self.alpha)
        return self._logistic(self.beta * (won_B - lost_B) - self.gamma)


class Orpo(ReferenceFree):
    """ORPO: imitation of the winner and a logistic loss of the log odds ratio."""

    name: Literal["orpo"] = "orpo"
    log_probs: ClassVar[LogProbs] = "mean"
    equation: ClassVar[str] = (
        "NLL(y_w) - beta log s(o), o = (a/|w| - b/|l|) - (log(1-e^(a/|w|)) - log(1-e^(b/|l|)))"
    )
    paper: ClassVar[str] = "Hong et al., 2403.07691"
    core: ClassVar[str | None] = "ORPO"

    beta: float = Field(0.1, ge=0)
    """Weight of the odds ratio term (the paper's lambda)."""
    nll_weight: float = Field(1.0, ge=0)
    """Weight of the winner's negative log-likelihood."""
    nll_over: Literal["completion", "prompt_and_completion"] = "completion"
    """Over which tokens the likelihood is taken; TRL takes prompt and completion."""

    @property
    def needs_prompt(self) -> bool:
        """Whether it looks at the log-probability of the prompt itself."""
        return self.nll_weight > 0 and self.nll_over == "prompt_and_completion"

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        won_B, lost_B = self._logps(pairs.chosen), self._logps(pairs.rejected)
        log_odds_B = (won_B - log1mexp(won_B)) - (lost_B - log1mexp(lost_B))
        loss_B = -self.beta * logsigmoid(log_odds_B)
        if not self.nll_weight:
            return loss_B
        return loss_B + self.nll_weight * pairs.nll_B(prompt=self.needs_prompt)


class Slic(ReferenceFree):
    """SLiC-HF: a hinge on the margin, and the likelihood of the winner as regulariser."""

    name: Literal["slic"] = "slic"
    equation: ClassVar[str] = "max(0, margin - (a - b)) - nll_weight a"
    paper: ClassVar[str] = "Zhao et al., 2305.10425"
    core: ClassVar[str | None] = "CPO"

    margin: float = Field(1.0, ge=0)
    """The paper's delta."""
    nll_weight: float = Field(0.1, ge=0)
    """Weight of -log π(y_w | x), summed over its tokens."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        hinge_B = torch.relu(self.margin - self._margin(pairs))
        return hinge_B - self.nll_weight * pairs.chosen.whole_logps_B


class Rrhf(ReferenceFree):
    """RRHF on pairs: the winner's log-probability per token is to be the larger one."""

    name: Literal["rrhf"] = "rrhf"
    log_probs: ClassVar[LogProbs] = "mean"
    equation: ClassVar[str] = "max(0, b/|l| - a/|w|) - nll_weight a"
    paper: ClassVar[str] = "Yuan et al., 2304.05302"
    core: ClassVar[str | None] = "CPO"

    nll_weight: float = Field(1.0, ge=0)
    """Weight of -log π(y_w | x), summed over its tokens."""

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        return torch.relu(-self._margin(pairs)) - self.nll_weight * pairs.chosen.whole_logps_B
