"""Leave bad completions that the policy has moved away from out of the policy loss.

    weight_t = 0  iff  A_t < 0  and  1/|o| sum_u log(pi_rollout(o_u | s_u) / pi(o_u | s_u)) > limit

DeepSeek-AI, "DeepSeek-V3.2" (arXiv:2512.02556, Eq. 9). pi_rollout is what the engine sampled from,
so that both causes of being off the policy count: updates since, and rounding in the engine. Good
completions are learnt from however far away they are; bad ones that the policy would hardly produce
any more teach nothing and make training unstable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs
from rlvr.objective.parts import TokenFilter


class OffPolicy(TokenFilter):
    """Leave out completions of negative advantage that have become unlikely."""

    name: Literal["off_policy"] = "off_policy"
    paper: ClassVar[str] = "DeepSeek-AI, DeepSeek-V3.2, 2512.02556"
    example: ClassVar[Mapping[str, Any]] = {"limit": 0.5}
    limit: float = Field(gt=0)
    """Largest mean fall of a token's log-probability since it was sampled, in nats."""

    def weights(self, terms: LossInputs) -> torch.Tensor:
        """Zeros and ones, [B, T]."""
        sampled_BT = terms.rollout_logprobs_BT
        sampled_BT = terms.old_logprobs_BT if sampled_BT is None else sampled_BT
        fall_BT = (sampled_BT - terms.logprobs_BT.detach()) * terms.mask_BT
        lengths_B1 = terms.mask_BT.sum(-1, keepdim=True).clamp_min(1)
        far_B1 = fall_BT.sum(-1, keepdim=True) / lengths_B1 > self.limit
        return 1 - ((terms.advantages_BT < 0) & far_B1).to(terms.mask_BT)
