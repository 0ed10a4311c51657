"""Leave-one-out advantages: each completion against the mean of its siblings.

    A_i = R_i - 1/(G-1) sum_{j != i} R_j  =  G/(G-1) (R_i - mean_G R)

The baseline does not depend on R_i, so the policy gradient is unbiased, and its variance is lower
than with no baseline. Kool et al., "Buy 4 REINFORCE samples, get a baseline for free" (2019);
Ahmadian et al., "Back to Basics" (arXiv:2402.14740).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from rlvr.lazy import torch
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.parts import Advantage


class LeaveOneOut(Advantage):
    """How much better a completion did than the mean of its siblings (RLOO)."""

    name: Literal["rloo"] = "rloo"
    paper: ClassVar[str] = "Ahmadian et al., RLOO, 2402.14740"
    prime_baseline: ClassVar[Literal["leave_one_out", "group", "none"]] = "leave_one_out"

    @property
    def needs_siblings(self) -> bool:
        """Always."""
        return True

    def __call__(self, rewards_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """Advantages [B] from rewards [B] and group numbers [B]; 0 for a completion alone."""
        centred_B = GroupAdvantage(scale="none")(rewards_B, group_index_B)
        _, member_B, sizes = group_index_B.unique(return_inverse=True, return_counts=True)
        sizes_B = sizes[member_B].to(centred_B)
        return centred_B * sizes_B / (sizes_B - 1).clamp_min(1)
