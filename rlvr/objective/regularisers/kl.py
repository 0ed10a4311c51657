"""KL divergence of the policy to a frozen reference, estimated on the sampled tokens.

With d = log pi_ref(o_t) - log pi(o_t), o_t sampled from pi, the three estimators of KL(pi || ref)
of Schulman's note "Approximating KL Divergence" (2020) are

    k1 = -d                unbiased value, high variance, can be negative
    k2 = d^2 / 2           biased value, never negative; its gradient is that of the KL
    k3 = e^d - d - 1       unbiased value, never negative; GRPO's choice (arXiv:2402.03300, Eq. 4)

Beware of their gradients: as a loss, k1 has expected gradient zero (the score function's mean), and
the expected gradient of k3 is that of the opposite direction, KL(ref || pi).
"""

from typing import Literal

from pydantic import Field

from rlvr.objective.terms import Part, PerToken, Terms


class KL(Part):
    """Pull towards the frozen reference model."""

    name: Literal["kl"] = "kl"
    coefficient: float = Field(0.001, ge=0)
    """Weight of the term. At 0 no reference is loaded and none is run."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Which estimator of the divergence is added to the loss."""

    @property
    def active(self) -> bool:
        """Whether the term changes the gradient."""
        return self.coefficient > 0

    @property
    def needs_reference(self) -> bool:
        """Whether reference log-probabilities must be there."""
        return self.active

    @property
    def at_zero_advantage(self) -> bool:
        """Every token is pulled."""
        return True

    def __call__(self, terms: Terms) -> PerToken:
        """coefficient x estimator, [B, T]."""
        assert terms.reference_logprobs_BT is not None, "the learner provides them when needed"
        d_BT = (terms.reference_logprobs_BT - terms.logprobs_BT) * terms.mask_BT
        k3_BT = d_BT.exp() - d_BT - 1
        estimate_BT = {"k1": -d_BT, "k2": d_BT.square() / 2, "k3": k3_BT}[self.estimator]
        return PerToken(self.coefficient * estimate_BT, {"policy/kl_reference": k3_BT.detach()})
