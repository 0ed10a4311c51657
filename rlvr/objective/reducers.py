"""The one place where a loss over tokens becomes a number.

A reducer gives every token of an optimizer step its weight, from counts taken over the whole step
(all micro-batches, all ranks). Loss and metrics are then plain weighted sums, so the gradient does
not depend on how the batch was split, and nobody else divides by a count.

    token_mean      w_it = 1 / sum_j |o_j|             DAPO (arXiv:2503.14476, Eq. 8)
    sequence_mean   w_it = 1 / (B |o_i|)               GRPO (arXiv:2402.03300, Eq. 3)
    constant        w_it = 1 / (B * denominator)       Dr.GRPO (arXiv:2503.20783)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.settings import Registered


@dataclass(frozen=True, slots=True)
class Counts:
    """Completion tokens and completions of one optimizer step, over everything that shares it."""

    tokens: int
    sequences: int

    @staticmethod
    def of(mask_BT: torch.Tensor) -> Counts:
        """Counts of a whole step that one process holds."""
        return Counts(int(mask_BT.sum()), mask_BT.shape[0])


class Reducer(Registered):
    """The weights by which the loss over tokens becomes a number."""

    room: ClassVar[str] = "rlvr.objective"
    written: ClassVar[str] = "reducer: {part}"

    @abstractmethod
    def weights(self, mask_BT: torch.Tensor, counts: Counts) -> torch.Tensor:
        """[B, T], from counts of the whole step; 0 on padding."""


class TokenMean(Reducer):
    """Every token of the step weighs the same."""

    name: Literal["token_mean"] = "token_mean"
    paper: ClassVar[str] = "Yu et al., DAPO, 2503.14476"

    def weights(self, mask_BT: torch.Tensor, counts: Counts) -> torch.Tensor:
        """[B, T], summing to one over the step."""
        return mask_BT / max(counts.tokens, 1)


class SequenceMean(Reducer):
    """Every completion weighs the same, whatever its length."""

    name: Literal["sequence_mean"] = "sequence_mean"
    paper: ClassVar[str] = "Shao et al., DeepSeekMath, 2402.03300"

    def weights(self, mask_BT: torch.Tensor, counts: Counts) -> torch.Tensor:
        """[B, T], summing to one over the step (less for completions without tokens)."""
        lengths_B1 = mask_BT.sum(-1, keepdim=True).clamp_min(1)
        return mask_BT / lengths_B1 / max(counts.sequences, 1)


class ConstantLength(Reducer):
    """Every token weighs the same in every step: no length enters the normaliser."""

    name: Literal["constant"] = "constant"
    paper: ClassVar[str] = "Liu et al., Dr.GRPO, 2503.20783"
    example: ClassVar[Mapping[str, Any]] = {"denominator": 1024}
    denominator: int = Field(ge=1)
    """Tokens that a completion is divided by, usually the generation limit."""

    def weights(self, mask_BT: torch.Tensor, counts: Counts) -> torch.Tensor:
        """[B, T]."""
        return mask_BT / (self.denominator * max(counts.sequences, 1))
