"""Rewards that are scored more than once, and count by how much the scores agree.

    U_i = standard deviation of a completion's scores            0 for a reward that is exact
    w_i = exp(-U_i / tau), brought to mean 1 in its group        detached: numbers, not functions
    A_i <- w_i A_i                                               apply: advantages
    R_i <- mean_G R + w_i (R_i - mean_G R)                       apply: rewards, before A is taken

After Ctrl-U (arXiv:2410.11236), whose reward is differentiated: exp(-U) l + U is
minimised there, and gradients flow through U. Here the reward is a number, so only the weights are
kept. With mean 1 a group moves as far as it did: beside uncertain completions certain ones count
more than without weights (w > 1), and their rewards are pushed away from the mean. Where all of a
group are equally uncertain, or all certain, nothing changes, to the last bit.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.settings import Settings


class Uncertainty(Settings):
    """Completions whose scores disagree count less."""

    temperature: float = Field(1.0, gt=0)
    """tau, in units of the reward: to be uncertain by tau more is to count 1/e as much."""
    apply: Literal["advantages", "rewards"] = "rewards"
    """Weigh advantages; or, before these are taken, draw uncertain rewards towards their group's
    mean and push certain ones away from it."""

    def weights(self, uncertainty_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """Weights [B] of mean 1 in each group, without gradient."""
        found_B = torch.ones(len(uncertainty_B), dtype=torch.float64)
        for group in group_index_B.unique().tolist():
            own = group_index_B == group
            # Relative to the least uncertain one, so that exp cannot vanish for all.
            values = uncertainty_B[own].detach().double()
            weights = torch.exp(-(values - values.min()) / self.temperature)
            found_B[own] = weights / weights.mean()
        return found_B

    def shrunk(
        self, rewards_B: torch.Tensor, uncertainty_B: torch.Tensor, group_index_B: torch.Tensor
    ) -> torch.Tensor:
        """Rewards [B], the less certain of a group nearer to its mean, the others further away."""
        weights_B = self.weights(uncertainty_B, group_index_B)
        found_B = rewards_B.double().clone()
        for group in group_index_B.unique().tolist():
            own = (group_index_B == group) & (weights_B != 1)
            mean = rewards_B[group_index_B == group].double().mean()
            found_B[own] = mean + weights_B[own] * (found_B[own] - mean)
        return found_B.to(rewards_B.dtype)


def correlation(a_B: torch.Tensor, b_B: torch.Tensor) -> float | None:
    """Pearson's; None where one of the two does not vary."""
    centred = [v.double() - v.double().mean() for v in (a_B, b_B)]
    size = float(centred[0].norm() * centred[1].norm())
    return float((centred[0] * centred[1]).sum()) / size if size > 1e-12 else None
