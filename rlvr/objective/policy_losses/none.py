"""No policy loss: what the regularisers do by themselves.

The ablations of Wang et al., arXiv:2504.20571 (Table 5, rows 1 and 8 to 10) train with the entropy
bonus, the KL term or weight decay alone.
"""

from typing import Literal

import torch

from rlvr.objective.terms import PerToken, Terms
from rlvr.settings import Settings


class NoPolicyLoss(Settings):
    """Leave the rewards out of the gradient."""

    name: Literal["none"] = "none"

    def __call__(self, terms: Terms) -> PerToken:
        """Zeros [B, T]."""
        return PerToken(torch.zeros_like(terms.logprobs_BT))
