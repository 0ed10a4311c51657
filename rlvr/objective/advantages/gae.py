"""Generalised advantage estimation: PPO's advantages, from a critic's values.

    delta_t = r_t + gamma V_{t+1} - V_t                     V after the last token is 0
    A_t     = sum_{l >= 0} (gamma lambda)^l delta_{t+l}
    return_t = A_t + V_t                                    what the critic is trained towards

Schulman et al., arXiv:1506.02438 (Eq. 16). r_t is 0 but on the last token, which earns the
completion's reward; with ``kl_in_reward`` every token also pays for leaving the reference,

    r_t <- r_t - kl_in_reward (log pi_old(o_t) - log pi_ref(o_t)),

as in Ouyang et al., arXiv:2203.02155, section 3.5. ``whiten`` then shifts and scales the advantages
to mean 0 and variance 1 over all tokens of the rollout (returns keep their scale).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.parts import CriticAdvantage


class Gae(CriticAdvantage):
    """PPO's advantages from a critic that is trained beside the policy."""

    name: Literal["gae"] = "gae"
    paper: ClassVar[str] = (
        "Schulman et al., GAE, 1506.02438; Ouyang et al., InstructGPT, 2203.02155"
    )
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per token."""
    lam: float = Field(1.0, ge=0, le=1)
    """GAE's lambda: 1 is the return minus the value, 0 the one-step error of the critic."""
    whiten: bool = True
    """Normalise the advantages over the rollout's tokens."""

    def estimate(
        self, rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns, [B, T] each, from token rewards and old values.

        What is masked between tokens is passed over: a token's successor is the next one that
        counts.
        """
        order_BT = torch.argsort(mask_BT <= 0, dim=1, stable=True)
        rewards_BT, values_BT, mask_BT = (
            column_BT.gather(1, order_BT) for column_BT in (rewards_BT, values_BT, mask_BT)
        )
        after_BT = torch.nn.functional.pad(values_BT[:, 1:] * mask_BT[:, 1:], (0, 1))
        delta_BT = (rewards_BT + self.gamma * after_BT - values_BT) * mask_BT
        advantages_BT = discounted(delta_BT, self.gamma * self.lam)
        returns_BT = (advantages_BT + values_BT) * mask_BT
        if self.whiten:
            advantages_BT = whiten(advantages_BT, mask_BT)
        advantages_BT = advantages_BT * mask_BT
        empty_BT = torch.zeros_like(returns_BT)
        return (
            empty_BT.scatter(1, order_BT, advantages_BT),
            empty_BT.scatter(1, order_BT, returns_BT),
        )


def discounted(values_BT: torch.Tensor, factor: float) -> torch.Tensor:
    """sum_{l >= 0} factor^l x_{t+l} for every t, [B, T]."""
    total_B = torch.zeros_like(values_BT[:, 0])
    columns = []
    for column_B in reversed(values_BT.unbind(1)):
        total_B = column_B + factor * total_B
        columns.append(total_B)
    return torch.stack(columns[::-1], 1)


def token_rewards(rewards_B: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """[B, T]: each completion's reward on its last token, 0 elsewhere."""
    position_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B1 = (position_T * (mask_BT > 0)).amax(-1, keepdim=True)
    return (position_T == last_B1) * mask_BT * rewards_B[:, None]


def whiten(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 (n - 1) over the tokens, [B, T]; all zeros where they do not vary."""
    values_N = values_BT[mask_BT > 0]
    if values_N.numel() < 2 or values_N.max() == values_N.min():
        return torch.zeros_like(values_BT)
    spread = values_N.std(correction=1)
    return (values_BT - values_N.mean()) / (spread + 1e-8) * mask_BT
