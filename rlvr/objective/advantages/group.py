"""Group-relative advantages.

    A_i = (R_i - mean_G R) / (std_G R + 1e-6)       scale: std
    A_i =  R_i - mean_G R                           scale: none

over the G completions of one prompt, with the unbiased standard deviation (n - 1). The first is
GRPO's (Shao et al., arXiv:2402.03300, section 4.1.2), the second Dr.GRPO's (Liu et al.,
arXiv:2503.20783), who show that dividing by the spread favours very easy and very hard problems.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from rlvr.lazy import torch
from rlvr.objective.parts import Advantage

EPSILON = 1e-6


class GroupAdvantage(Advantage):
    """How much better a completion did than the other completions of its prompt."""

    name: Literal["group"] = "group"
    also_called: ClassVar[tuple[str, ...]] = ("grpo", "dr_grpo", "drgrpo")
    paper: ClassVar[str] = "Shao et al., DeepSeekMath, 2402.03300; Liu et al., Dr.GRPO, 2503.20783"
    prime_baseline: ClassVar[Literal["leave_one_out", "group", "none"]] = "group"
    scale: Literal["std", "none"] = "std"
    """Divide by the group's standard deviation (GRPO), or do not (Dr.GRPO)."""

    @property
    def needs_siblings(self) -> bool:
        """Always."""
        return True

    def __call__(self, rewards_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """Advantages [B] from rewards [B] and group numbers [B].

        A group whose rewards are all equal, or of a single completion, gets exactly 0: the mean of
        equal floats need not round to their value, and the leftover would be divided by 1e-6.
        """
        rewards = rewards_B.double()
        advantages = torch.zeros_like(rewards)
        for group in group_index_B.unique().tolist():
            members = group_index_B == group
            values = rewards[members]
            if len(values) < 2 or values.max() == values.min():
                continue
            centred = values - values.mean()
            if self.scale == "std":
                centred = centred / (values.std(correction=1) + EPSILON)
            advantages[members] = centred
        return advantages.to(rewards_B.dtype)
