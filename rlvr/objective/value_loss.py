"""The critic's loss: squared error to the returns, clipped as PPO's policy is.

    V_clip = clip(V, V_old - clip, V_old + clip)
    loss_t = 1/2 max((V - return_t)^2, (V_clip - return_t)^2)

Schulman et al.'s PPO code (Baselines) and Engstrom et al., "Implementation Matters in Deep Policy
Gradients" (arXiv:2005.12729). Moving a value past the clip away from the return is punished in
full, moving it past the clip towards the return is not rewarded.
"""

from __future__ import annotations

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import PerToken
from rlvr.settings import Settings


class ValueLoss(Settings):
    """What the critic is trained with."""

    clip: float | None = Field(0.5, gt=0)
    """How far a value may move from where the update started; null does not clip."""

    def __call__(
        self, values_BT: torch.Tensor, old_values_BT: torch.Tensor, returns_BT: torch.Tensor
    ) -> PerToken:
        """Per-token loss [B, T]; logs the share of tokens that the clip decided."""
        error_BT = (values_BT - returns_BT).square()
        metrics = {"critic/value": values_BT.detach(), "critic/return": returns_BT}
        if self.clip is None:
            return PerToken(error_BT / 2, metrics)
        # A value within the bounds is itself, to the last bit: rounding is no clip.
        held_BT = values_BT.clamp(old_values_BT - self.clip, old_values_BT + self.clip)
        clipped_BT = (held_BT - returns_BT).square()
        metrics["critic/clip_fraction"] = (clipped_BT > error_BT).to(error_BT.dtype)
        return PerToken(torch.maximum(error_BT, clipped_BT) / 2, metrics)


def explained_variance(
    values_BT: torch.Tensor, returns_BT: torch.Tensor, mask_BT: torch.Tensor
) -> float:
    """1 - Var(return - V) / Var(return) over tokens; 0 where the returns do not vary."""
    inside_BT = mask_BT > 0
    returns_N, values_N = returns_BT[inside_BT].double(), values_BT[inside_BT].double()
    if returns_N.numel() < 2 or returns_N.max() == returns_N.min():
        return 0.0
    return float(1 - (returns_N - values_N).var() / returns_N.var())
