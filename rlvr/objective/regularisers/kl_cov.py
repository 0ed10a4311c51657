"""KL-Cov: hold back the few tokens through which the entropy falls.

    c_t = (log pi_t - mean log pi) (A_t - mean A)
    loss_t = coefficient |log pi(o_t) - log pi_old(o_t)|
                                              for the max(1, floor(fraction N)) largest c

over the N tokens of the optimizer step; tokens that tie with the last are held back too. Cui et
al., "The Entropy Mechanism of Reinforcement Learning" (arXiv:2505.22617, Eqs. 13 and 14; the
absolute value is the released code's estimate of the divergence), paired there with a policy loss
without clip: ``policy_loss: {name: ratio}``. The paper's fractions are 2e-3 (7B) and 2e-4 (32B);
its scripts give them in percent.

With one update per rollout the ratio is 1 and the gradient of the absolute value there 0: the term
does nothing.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken, Step
from rlvr.objective.loss_term import Memory
from rlvr.objective.parts import Regulariser, log_ratio
from rlvr.objective.selection import count_of, covariance, largest


class KlCov(Regulariser):
    """Hold tokens of high covariance near the old policy (KL-Cov)."""

    name: Literal["kl_cov"] = "kl_cov"
    paper: ClassVar[str] = "Cui et al., The Entropy Mechanism, 2505.22617"
    coefficient: float = Field(1.0, ge=0)
    """Weight of the term."""
    fraction: float = Field(2e-4, ge=0, le=1)
    """Share of tokens that it touches, at least one token. A fraction, not a percentage."""

    @property
    def active(self) -> bool:
        """Whether the term changes the gradient."""
        return self.coefficient > 0

    @property
    def at_zero_advantage(self) -> bool:
        """Centred over the step, an advantage of zero is not zero."""
        return True

    @property
    def needs_step_logprobs(self) -> bool:
        """Always."""
        return True

    def prepare(self, step: Step, memory: Memory) -> torch.Tensor:
        """1 at the tokens of largest covariance, [B, T]."""
        c_BT = covariance(step.logprobs_BT, step.advantages_BT, step.mask_BT)
        wanted = max(1, count_of(self.fraction, int(step.mask_BT.sum())))
        return largest(c_BT, step.mask_BT, wanted).to(step.mask_BT)

    def __call__(self, terms: LossInputs) -> PerToken:
        """coefficient x |log ratio| at the tokens chosen, [B, T]."""
        distance_BT = terms.prepared[self.name] * log_ratio(terms).abs()
        return PerToken(self.coefficient * distance_BT, {"policy/kl_cov": distance_BT.detach()})
