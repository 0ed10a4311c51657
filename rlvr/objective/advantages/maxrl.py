"""MaxRL: advantages relative to the success rate, towards maximum likelihood of success.

    A_i = (R_i - mean_G R) / mean_G R            0 where all rewards are equal, R >= 0

"MaxRL" (arXiv:2602.02710). The plain policy gradient climbs the success rate p of a prompt;
dividing by its estimate climbs log p, truncated: the gradient is that of sum_{k<n} pass@k / k, with
n samples (n - 1 terms and not n, as groups without a success give nothing). For right or wrong
answers the mean of |A| is 2 (1 - p): hard prompts weigh most, where a division by the standard
deviation weighs hard and easy ones alike.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from rlvr.lazy import torch
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.parts import Advantage


class MaxRL(Advantage):
    """How much better a completion did than the mean of its prompt, in units of that mean."""

    name: Literal["maxrl"] = "maxrl"
    paper: ClassVar[str] = "MaxRL, 2602.02710"
    prime_baseline: ClassVar[Literal["leave_one_out", "group", "none"]] = "group"
    shift_invariant: ClassVar[bool] = False

    @property
    def needs_siblings(self) -> bool:
        """Always."""
        return True

    def __call__(self, rewards_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """Advantages [B] from rewards [B] and group numbers [B].

        Raises:
            ValueError: A reward is negative, so that a mean says nothing of a success rate.
        """
        if bool((rewards_B < 0).any()):
            raise ValueError(
                f"advantage 'maxrl' divides by a group's mean reward, and a reward is "
                f"{float(rewards_B.min()):g}; keep rewards at 0 or above, or use advantage group"
            )
        centred_B = GroupAdvantage(scale="none")(rewards_B.double(), group_index_B)
        _, member_B, sizes = group_index_B.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(sizes), dtype=torch.float64, device=rewards_B.device)
        means_B = (sums.index_add(0, member_B, rewards_B.double()) / sizes)[member_B]
        # Where nothing was earned, nothing is centred either: 0 / 1.
        return (centred_B / torch.where(means_B > 0, means_B, 1.0)).to(rewards_B.dtype)
