"""W-REINFORCE, an advantage in a file of one's own: learn from failures, a little from successes.

    A_i = positive  where R_i > 0,  -1 elsewhere

Zhu et al., "The Surprising Effectiveness of Negative Reinforcement" (arXiv:2506.01347): with
``positive`` 0 only wrong answers teach. There is no baseline, so siblings are not needed. A recipe
in this folder names it by

    advantage: {name: "w_reinforce.py:WeightedReinforce", positive: 0.1}
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from rlvr.objective.parts import Advantage


class WeightedReinforce(Advantage):
    """-1 for a wrong answer, a small positive number for a right one."""

    name: Literal["w_reinforce"] = "w_reinforce"
    paper: ClassVar[str] = "Zhu et al., W-REINFORCE, 2506.01347"
    compares: ClassVar[bool] = False
    shift_invariant: ClassVar[bool] = False
    positive: float = Field(0.1, ge=0)
    """The advantage of a right answer."""

    def __call__(self, rewards_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """Advantages [B] from rewards [B]; groups are not looked at."""
        return torch.where(rewards_B > 0, self.positive, -1.0).to(rewards_B.dtype)
