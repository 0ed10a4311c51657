"""Batch-normalised advantages of REINFORCE++.

    b_i = 0                         baseline: none
    b_i = mean_G R                  baseline: group
    A_i = (R_i - b_i - mean_B) / (std_B + 1e-6)

with mean and standard deviation (n - 1) of R - b over all B completions of the rollout, so that
one spread serves easy and hard problems alike. Hu et al., "REINFORCE++" (arXiv:2501.03262): the
first is the paper's REINFORCE++, the second its variant with baseline.

The paper subtracts a KL penalty from the reward before it normalises; here the penalty is a
regulariser of the loss (``kl``). Implementations that hold one advantage per token take mean and
spread over tokens, so that long completions weigh more; here every completion weighs the same.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from rlvr.lazy import torch
from rlvr.objective.advantages.group import EPSILON, GroupAdvantage
from rlvr.objective.parts import Advantage


class ReinforcePlusPlus(Advantage):
    """How much better a completion did than the whole rollout."""

    name: Literal["reinforce_pp"] = "reinforce_pp"
    paper: ClassVar[str] = "Hu et al., REINFORCE++, 2501.03262"
    baseline: Literal["none", "group"] = "none"
    """What is subtracted before the batch is normalised: nothing, or the group's mean."""

    @property
    def needs_siblings(self) -> bool:
        """Where the baseline is the group's."""
        return self.baseline == "group"

    def __call__(self, rewards_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """Advantages [B] from rewards [B] and group numbers [B]; 0 where all would be equal."""
        values_B = rewards_B.double()
        if self.baseline == "group":
            values_B = GroupAdvantage(scale="none")(values_B, group_index_B)
        if len(values_B) < 2 or values_B.max() == values_B.min():
            return torch.zeros_like(rewards_B)
        centred_B = values_B - values_B.mean()
        return (centred_B / (values_B.std(correction=1) + EPSILON)).to(rewards_B.dtype)
