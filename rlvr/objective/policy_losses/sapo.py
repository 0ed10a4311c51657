"""SAPO: a smooth gate on the ratio instead of a clip.

    loss_t = -(4 / tau) sigmoid(tau (r_t - 1)) A_t        tau: positive where A_t > 0, else negative

Qwen team, "Soft Adaptive Policy Optimization" (arXiv:2511.20347). By log pi the slope is
-r_t 4 g (1 - g) A_t with g the sigmoid: the plain one at r = 1, and fading on both sides the faster
the larger tau. PPO's clip never cuts a negative advantage above 1 nor a positive one below; this
gate does both. The paper lets negative advantages fade faster, since they lift every token that was
not sampled, and takes a mean over completions: ``reducer: {name: sequence_mean}``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.numerics import bounded_exp
from rlvr.objective.parts import PolicyLoss, log_ratio, ratio_metrics


class Sapo(PolicyLoss):
    """The policy gradient with a soft gate around ratio 1."""

    name: Literal["sapo"] = "sapo"
    paper: ClassVar[str] = "Qwen team, SAPO, 2511.20347"
    reducer_of_paper: ClassVar[str | None] = "sequence_mean"
    positive: float = Field(1.0, gt=0)
    """How fast the gate closes away from ratio 1 where the advantage is positive."""
    negative: float = Field(1.05, gt=0)
    """How fast it closes where the advantage is negative."""

    def __call__(self, terms: LossInputs) -> PerToken:
        """Per-token loss [B, T]; logs the mean weight 4 g (1 - g) of the gate."""
        log_ratio_BT = log_ratio(terms)
        ratio_BT = bounded_exp(log_ratio_BT)
        positive, negative = (ratio_BT.new_tensor(tau) for tau in (self.positive, self.negative))
        tau_BT = torch.where(terms.advantages_BT > 0, positive, negative)
        gate_BT = (tau_BT * (ratio_BT - 1)).sigmoid()
        metrics = ratio_metrics(log_ratio_BT)
        metrics["policy/gate"] = (4 * gate_BT * (1 - gate_BT)).detach()
        return PerToken(-4 / tau_BT * gate_BT * terms.advantages_BT, metrics)
