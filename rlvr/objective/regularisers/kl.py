"""KL divergence of the policy to a frozen reference, estimated on the sampled tokens.

With d = log pi_ref(o_t) - log pi(o_t), o_t sampled from pi, the three estimators of KL(pi || ref)
of Schulman's note "Approximating KL Divergence" (2020) are

    k1 = -d                unbiased value, high variance, can be negative
    k2 = d^2 / 2           biased value, never negative; its gradient is that of the KL
    k3 = e^d - d - 1       unbiased value, never negative; GRPO's choice (arXiv:2402.03300, Eq. 4)

Beware of their gradients: as a loss, k1 has expected gradient zero (the score function's mean), and
the expected gradient of k3 is that of the opposite direction, KL(ref || pi). Multiplied by the
ratio r_t = pi / pi_old, through which a gradient flows too, k1 and k3 both have the gradient of
KL(pi || ref), also where pi has left pi_old (DeepSeek-V3.2, arXiv:2512.02556).

Above d = 20, where a token is 5e8 times less probable than under the reference, e^d goes on along
its tangent: in float32 it would be infinite from 89 on, and its gradient with it.
"""

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.numerics import bounded_exp, k3, kept
from rlvr.objective.parts import Regulariser, log_ratio


class KL(Regulariser):
    """Pull towards the frozen reference model."""

    name: Literal["kl"] = "kl"
    paper: ClassVar[str] = (
        "Schulman, Approximating KL Divergence (2020); DeepSeek-AI, DeepSeek-V3.2, 2512.02556"
    )
    coefficient: float = Field(0.001, ge=0)
    """Weight of the term. At 0 no reference is loaded and none is run."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Which estimator of the divergence is added to the loss."""
    weighted: bool = False
    """Multiply it by the importance ratio: the gradient is then that of KL(policy, reference)."""

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

    def __call__(self, terms: LossInputs) -> PerToken:
        """coefficient x estimator, [B, T]."""
        assert terms.reference_logprobs_BT is not None, "the learner provides them when needed"
        d_BT = kept(terms.reference_logprobs_BT - terms.logprobs_BT, terms.mask_BT)
        k3_BT = k3(d_BT)
        estimate_BT = {"k1": -d_BT, "k2": d_BT.square() / 2, "k3": k3_BT}[self.estimator]
        if self.weighted:
            estimate_BT = bounded_exp(log_ratio(terms)) * estimate_BT
        return PerToken(self.coefficient * estimate_BT, {"policy/kl_reference": k3_BT.detach()})
