"""Entropy bonus: loss_t = -coefficient * H(pi(. | s_t)), the gradient flowing through H.

H is the entropy, in nats, over the whole vocabulary of the distribution at the sampling
temperature. Williams and Peng (1991); Mnih et al., arXiv:1602.01783. Coefficients of 1e-2 are known
to make the entropy of language models explode (Cui et al., arXiv:2505.22617, section 4.1).
"""

from typing import ClassVar, Literal

from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.parts import Regulariser


class Entropy(Regulariser):
    """Reward the policy for staying undecided."""

    name: Literal["entropy"] = "entropy"
    paper: ClassVar[str] = "Mnih et al., A3C, 1602.01783"
    coefficient: float = 0.001
    """Weight of the bonus; negative values sharpen the policy instead."""

    @property
    def active(self) -> bool:
        """Whether the term changes the gradient."""
        return self.coefficient != 0

    @property
    def at_zero_advantage(self) -> bool:
        """Every token has an entropy."""
        return True

    def __call__(self, terms: LossInputs) -> PerToken:
        """-coefficient x entropy, [B, T]."""
        assert terms.entropy_BT is not None, "the learner always measures it"
        return PerToken(-self.coefficient * terms.entropy_BT)
