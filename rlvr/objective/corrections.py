"""Correct for tokens sampled by an engine whose numbers are not quite the learner's.

Engine and learner hold the same weights but round differently (bfloat16 kernels, another order of
sums), or the engine's weights are some updates old. With the learner's old log-probability and the
engine's, both of the sampled token at the sampling temperature,

    rho_t = pi_old(o_t | s_t) / pi_rollout(o_t | s_t)

is the importance ratio that makes a mean over the engine's tokens one over the learner's. The
corrections multiply a token's policy loss by a constant made of rho:

    truncated, token      w_t = min(rho_t, cap)                            Yao et al. (2025)
    truncated, sequence   w_t = min(prod_u rho_u, cap), the same for all tokens of a completion
    masked, token         w_t = rho_t where low <= rho_t <= high, else 0   IcePop, Eq. 2
    masked, sequence      the same of prod_u rho_u, for all tokens of a completion
    mask_only             w_t = 1 where low <= rho_t <= high, else 0

Truncated importance sampling: Ionides (2008); for rollout engines: Yao et al., "Your Efficient RL
Framework Secretly Brings You Off-Policy RL Training" (2025). Masking: IcePop, Ling Team, "Every
Step Evolves" (arXiv:2510.18855). Regularisers are not weighted: they act where the learner stands.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rlvr.lazy import torch
from rlvr.objective.numerics import bounded_exp, kept
from rlvr.settings import Registered


class Correction(Registered):
    """What is done about the difference between the engine's probabilities and the learner's."""

    room: ClassVar[str] = "rlvr.objective"
    written: ClassVar[str] = "correction: {part}"

    @abstractmethod
    def weights(self, log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Constant factors [B, T] on the policy loss, from log rho [B, T]."""


class NoCorrection(Correction):
    """Take the engine's tokens as the learner's own."""

    name: Literal["none"] = "none"

    @property
    def active(self) -> bool:
        """It changes nothing."""
        return False

    def weights(self, log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """All ones, [B, T]."""
        return torch.ones_like(log_rho_BT)


class TruncatedImportance(Correction):
    """Weigh by the importance ratio, cut off at a cap."""

    name: Literal["truncated"] = "truncated"
    paper: ClassVar[str] = (
        "Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (2025)"
    )
    level: Literal["token", "sequence"] = "token"
    """A ratio for each token, or their product for the whole completion (unbiased up to the cap,
    but of a variance that grows with length)."""
    cap: float = Field(2.0, gt=0)
    """Largest weight."""

    def weights(self, log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """[B, T], constant."""
        log_rho_BT = _log_rho(log_rho_BT, mask_BT, self.level)
        # Clamped before exp: a sequence's product may overflow.
        return log_rho_BT.clamp_max(torch.log(log_rho_BT.new_tensor(self.cap))).exp()


class Bounded(Correction):
    """A correction that leaves tokens out whose ratio is out of bounds."""

    low: float = Field(0.5, ge=0)
    """Smallest ratio that still counts."""
    high: float = Field(5.0, gt=0)
    """Largest ratio that still counts."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self

    def inside(self, rho_BT: torch.Tensor) -> torch.Tensor:
        """Where a ratio counts, boolean [B, T]."""
        return (rho_BT >= self.low) & (rho_BT <= self.high)


class MaskOutliers(Bounded):
    """Weigh by the importance ratio within bounds, and leave other tokens out (IcePop)."""

    name: Literal["masked"] = "masked"
    paper: ClassVar[str] = "Ling Team, Every Step Evolves (IcePop), 2510.18855"
    level: Literal["token", "sequence"] = "token"
    """A ratio for each token (the paper), or their product for the whole completion."""

    def weights(self, log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """[B, T], constant: the ratio or 0."""
        rho_BT = bounded_exp(_log_rho(log_rho_BT, mask_BT, self.level))
        return torch.where(self.inside(rho_BT), rho_BT, 0.0)


class MaskOnly(Bounded):
    """Leave tokens out whose importance ratio is out of bounds, and weigh others by 1."""

    name: Literal["mask_only"] = "mask_only"
    paper: ClassVar[str] = "Ling Team, Every Step Evolves (IcePop), 2510.18855, without the ratio"

    def weights(self, log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Zeros and ones, [B, T]."""
        return self.inside(bounded_exp(kept(log_rho_BT, mask_BT))).to(log_rho_BT.dtype)


def _log_rho(
    log_rho_BT: torch.Tensor, mask_BT: torch.Tensor, level: Literal["token", "sequence"]
) -> torch.Tensor:
    """log rho of tokens, 0 on padding, or its sum over the completion for all of them; [B, T]."""
    log_rho_BT = kept(log_rho_BT, mask_BT)
    if level == "token":
        return log_rho_BT
    return log_rho_BT.sum(-1, keepdim=True).expand_as(log_rho_BT)


def mismatch_metrics(log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far engine and learner are apart, per token [B, T], before any clipping.

    ``mismatch/kl`` is the k3 estimate of KL(rollout || learner) from tokens of the rollout.
    """
    log_rho_BT = kept(log_rho_BT, mask_BT).detach()
    rho_BT = bounded_exp(log_rho_BT)
    return {
        "mismatch/difference": log_rho_BT.abs(),
        "mismatch/difference_max": log_rho_BT.abs(),
        "mismatch/kl": rho_BT - 1 - log_rho_BT,
        "mismatch/ratio_max": rho_BT,
    }
