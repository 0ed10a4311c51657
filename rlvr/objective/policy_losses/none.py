"""No policy loss: what the regularisers do by themselves.

The ablations of Wang et al., arXiv:2504.20571 (Table 5, rows 1 and 8 to 10) train with the entropy
bonus, the KL term or weight decay alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.parts import PolicyLoss


class NoPolicyLoss(PolicyLoss):
    """Leave the rewards out of the gradient."""

    name: Literal["none"] = "none"
    paper: ClassVar[str] = "Wang et al., 1-shot RLVR, 2504.20571"
    uses_ratio: ClassVar[bool] = False
    plain_on_policy: ClassVar[bool] = False

    def __call__(self, terms: LossInputs) -> PerToken:
        """Zeros [B, T]."""
        return PerToken(torch.zeros_like(terms.logprobs_BT))
