"""An entropy bonus that holds the entropy up to a target.

    loss_t  = -alpha_k H(pi(. | s_t)),        alpha_k = c_k 1[e_{k-1} <= target]
    c_{k+1} = clip(c_k + step, 0, limit)      where e_k <= target
    c_{k+1} = clip(c_k - step, 0, limit)      elsewhere

e_k is the mean entropy over the tokens of optimizer step k, over the whole vocabulary at the
sampling temperature. He et al., "Skywork Open Reasoner 1" (arXiv:2505.22312, Eq. 3.2). The paper
sets alpha_k from e_k itself, its scripts from the step before; so do we, since e_k is known only
once the step has been run. The scripts estimate e by the sampled tokens' log-probabilities, bound c
by 0.005 with steps of 1e-4, and compare strictly.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken, Step
from rlvr.objective.loss_term import Memory
from rlvr.objective.parts import Regulariser


class AdaptiveEntropy(Regulariser):
    """An entropy bonus whose weight follows the entropy (Skywork-OR1)."""

    name: Literal["adaptive_entropy"] = "adaptive_entropy"
    paper: ClassVar[str] = "He et al., Skywork-OR1, 2505.22312"
    target: float = Field(0.2, ge=0)
    """Mean entropy, in nats, above which there is no bonus."""
    step: float = Field(0.005, gt=0)
    """How much the weight grows after a step at or below the target, and shrinks after others."""
    initial: float = Field(0.0, ge=0)
    """Weight at the start."""
    limit: float = Field(1.0, gt=0)
    """Largest weight."""

    @property
    def at_zero_advantage(self) -> bool:
        """Every token has an entropy."""
        return True

    def prepare(self, step: Step, memory: Memory) -> torch.Tensor:
        """alpha for every token, [B, T]."""
        below = memory.get("entropy", self.target) <= self.target
        alpha = memory.get("coefficient", self.initial) if below else 0.0
        return torch.full_like(step.mask_BT, alpha)

    def __call__(self, terms: LossInputs) -> PerToken:
        """-alpha x entropy, [B, T]."""
        assert terms.entropy_BT is not None, "the learner always measures it"
        alpha_BT = terms.prepared[self.name]
        return PerToken(-alpha_BT * terms.entropy_BT, {"policy/entropy_coefficient": alpha_BT})

    def finish(self, metrics: dict[str, float], memory: Memory) -> tuple[dict[str, float], Memory]:
        """Move the weight by the entropy of the step that was run."""
        entropy = metrics.get("policy/entropy")
        if entropy is None:  # nothing was run
            return {}, memory
        change = self.step if entropy <= self.target else -self.step
        weight = memory.get("coefficient", self.initial) + change
        return {}, {"coefficient": min(max(weight, 0.0), self.limit), "entropy": entropy}
