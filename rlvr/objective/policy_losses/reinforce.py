"""The plain policy gradient: loss_t = -A_t log pi(o_t | s_t).

Williams, "Simple statistical gradient-following algorithms" (1992). On freshly sampled tokens its
gradient is that of every ratio-based loss at ratio 1; with all advantages 1 on given tokens it is
maximum likelihood, which is how a warm-up on demonstrations uses it.
"""

from typing import ClassVar, Literal

from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.parts import PolicyLoss


class Reinforce(PolicyLoss):
    """The plain policy gradient, without ratio or clip."""

    name: Literal["reinforce"] = "reinforce"
    paper: ClassVar[str] = "Williams, REINFORCE (1992)"
    uses_ratio: ClassVar[bool] = False

    def __call__(self, terms: LossInputs) -> PerToken:
        """Per-token loss [B, T]."""
        return PerToken(-terms.advantages_BT * terms.logprobs_BT)
