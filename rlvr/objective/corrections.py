"""Correct for tokens sampled by an engine whose numbers are not quite the learner's.

Engine and learner hold the same weights but round differently (bfloat16 kernels, another order of
sums), or the engine's weights are some updates old. With the learner's old log-probability and the
engine's, both of the sampled token at the sampling temperature,

    rho_t = pi_old(o_t | s_t) / pi_rollout(o_t | s_t)

is the importance ratio that makes a mean over the engine's tokens one over the learner's. The
corrections multiply a token's policy loss by a constant made of rho:

    truncated, token      w_t = min(rho_t, cap)                            Yao et al. (2025)
    truncated, sequence   w_t = min(prod_u rho_u, cap), the same for all tokens of a completion
    masked                w_t = 1 where low <= rho_t <= high, else 0

Truncated importance sampling: Ionides (2008); for rollout engines: Yao et al., "Your Efficient RL
Framework Secretly Brings You Off-Policy RL Training" (2025). Masking: IcePop, Ling Team, "Every
Step Evolves" (arXiv:2510.18855). Regularisers are not weighted: they act where the learner stands.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from rlvr.settings import Settings


class NoCorrection(Settings):
    """Take the engine's tokens as the learner's own."""

    name: Literal["none"] = "none"

    def weights(self, log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """All ones, [B, T]."""
        return torch.ones_like(log_rho_BT)


class TruncatedImportance(Settings):
    """Weigh by the importance ratio, cut off at a cap."""

    name: Literal["truncated"] = "truncated"
    level: Literal["token", "sequence"] = "token"
    """A ratio for each token, or their product for the whole completion (unbiased up to the cap,
    but of a variance that grows with length)."""
    cap: float = Field(2.0, gt=0)
    """Largest weight."""

    def weights(self, log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """[B, T], constant."""
        log_rho_BT = log_rho_BT * mask_BT
        if self.level == "sequence":
            log_rho_BT = log_rho_BT.sum(-1, keepdim=True).expand_as(log_rho_BT)
        # Clamped before exp: a sequence's product may overflow.
        return log_rho_BT.clamp_max(torch.log(log_rho_BT.new_tensor(self.cap))).exp()


class MaskOutliers(Settings):
    """Leave tokens out of the policy loss whose ratio is out of bounds (arXiv:2510.18855)."""

    name: Literal["masked"] = "masked"
    low: float = Field(0.5, ge=0)
    """Smallest ratio that still counts."""
    high: float = Field(2.0, gt=0)
    """Largest ratio that still counts."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self

    def weights(self, log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Zeros and ones, [B, T]."""
        rho_BT = (log_rho_BT * mask_BT).exp()
        return ((rho_BT >= self.low) & (rho_BT <= self.high)).to(log_rho_BT.dtype)


Correction = Annotated[
    NoCorrection | TruncatedImportance | MaskOutliers, Field(discriminator="name")
]


def mismatch_metrics(log_rho_BT: torch.Tensor, mask_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far engine and learner are apart, per token [B, T], before any clipping.

    ``mismatch/kl`` is the k3 estimate of KL(rollout || learner) from tokens of the rollout.
    """
    log_rho_BT = (log_rho_BT * mask_BT).detach()
    rho_BT = log_rho_BT.exp()
    return {
        "mismatch/difference": log_rho_BT.abs(),
        "mismatch/difference_max": log_rho_BT.abs(),
        "mismatch/kl": rho_BT - 1 - log_rho_BT,
        "mismatch/ratio_max": rho_BT,
    }
