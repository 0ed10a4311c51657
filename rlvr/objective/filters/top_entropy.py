"""Learn from the tokens of highest entropy alone.

    weight_t = 1[H_t >= h] N / N_selected         h: the ceil(fraction N)-th largest of H

H_t is the entropy over the whole vocabulary at the token's position. Wang et al., "Beyond the 80/20
Rule" (arXiv:2506.01939, Eq. 6, section 5.2): 20 % of the tokens, those at which a response forks,
carry the gain. N / N_selected makes a token mean divide by the selected tokens, as the paper does.

The paper takes N over the tokens of a micro-batch and H under the current policy. ``pool: step``
takes both over the optimizer step, so that the split does not matter; H is then that of the policy
that the rollout's updates start from, which with one update per rollout costs a forward pass of its
own.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, Step
from rlvr.objective.loss_term import Memory
from rlvr.objective.parts import TokenFilter
from rlvr.objective.selection import largest


class TopEntropy(TokenFilter):
    """Keep the share of tokens with the highest entropy (80/20)."""

    name: Literal["top_entropy"] = "top_entropy"
    paper: ClassVar[str] = "Wang et al., 80/20, 2506.01939"
    fraction: float = Field(0.2, gt=0, le=1)
    """Share of tokens that is kept."""
    pool: Literal["step", "micro_batch"] = "step"
    """Tokens that are ranked together. micro_batch depends on how the step is split, and spares a
    forward pass where a rollout has one update."""
    rescale: bool = True
    """Divide a token mean by the kept tokens (the paper), or by all (TRL)."""

    @property
    def needs_step_entropy(self) -> bool:
        """Where the whole step is ranked."""
        return self.pool == "step"

    def prepare(self, step: Step, memory: Memory) -> torch.Tensor | None:
        """The weights [B, T] of the whole step."""
        return self._weigh(step) if self.pool == "step" else None

    def weights(self, terms: LossInputs) -> torch.Tensor:
        """[B, T], constant."""
        prepared_BT = terms.prepared.get(self.name)
        return self._weigh(Step.of(terms)) if prepared_BT is None else prepared_BT

    def _weigh(self, step: Step) -> torch.Tensor:
        assert step.entropy_BT is not None, "the learner provides it when needed"
        tokens = int(step.mask_BT.sum())
        wanted = math.ceil(self.fraction * tokens - 1e-9)
        kept_BT = largest(step.entropy_BT, step.mask_BT, wanted)
        scale = tokens / max(1, int(kept_BT.sum())) if self.rescale else 1.0
        return kept_BT.to(step.mask_BT) * scale
