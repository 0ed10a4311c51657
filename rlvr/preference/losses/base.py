"""What every preference loss has: a weight in a mixture, and what it is known for.

A recipe names one loss or a mixture; the loss of a step is the sum over the mixture of weight x
mean over the step's pairs. A loss is any class of this folder that extends :class:`PairLoss` or
:class:`UnpairedLoss` and has a literal ``name``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlvr.lazy import torch
from rlvr.preference.losses.terms import Labelled, Pairs
from rlvr.settings import Registered

LogProbs = Literal["sum", "mean"]


class PreferenceLoss(Registered):
    """A loss over completions of known preference; its mean over the step is minimised."""

    room: ClassVar[str] = "rlvr.preference.losses"
    written: ClassVar[str] = "losses: [{part}]"
    takes_reference: ClassVar[bool] = True
    """Whether it looks at reference log-probabilities."""
    whole_step: ClassVar[bool] = False
    """Whether a pair's loss depends on the other pairs of the step."""
    uses_baseline: ClassVar[bool] = False
    """Whether it compares with z0, which takes mismatched completions in every step."""
    log_probs: ClassVar[LogProbs] = "sum"
    """Whether log-probabilities of completions enter as sums or as means over tokens."""
    equation: ClassVar[str]
    """The loss of a pair, in the notation of docs/methods/preference.md."""
    core: ClassVar[str | None] = None
    """The name of its preference structure, where the loss is f of one log-ratio."""
    not_from_rewards: ClassVar[str] = (
        "it compares completions of known preference; use it in task preference"
    )
    """Why a recipe that learns from rewards cannot have it, and what can."""

    weight: float = Field(1.0, gt=0)
    """Factor on the loss in a mixture."""

    @model_validator(mode="before")
    @classmethod
    def _smoothing_does_something(cls, given: Any) -> Any:  # noqa: ANN401
        smoothed = isinstance(given, Mapping) and "label_smoothing" in given
        if smoothed and "label_smoothing" not in cls.model_fields:
            raise ValueError(
                f"label_smoothing = {given['label_smoothing']} does nothing to the loss "
                f"{cls.model_fields['name'].default!r}; leave it out, or choose robust or exo_pair"
            )
        return given

    @property
    def needs_reference(self) -> bool:
        """Whether it looks at reference log-probabilities, with its settings."""
        return self.takes_reference

    @property
    def needs_prompt(self) -> bool:
        """Whether it looks at the log-probability of the prompt itself."""
        return False

    @property
    def needs_scores(self) -> bool:
        """Whether it looks at scores of the completions."""
        return False


class PairLoss(PreferenceLoss):
    """A loss over pairs of a chosen and a rejected completion."""

    @abstractmethod
    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B] of every pair, without the mixture weight."""


class UnpairedLoss(PreferenceLoss):
    """A loss over single completions labelled desirable or undesirable."""

    @abstractmethod
    def __call__(self, labelled: Labelled) -> torch.Tensor:
        """Loss [B] of every completion, without the mixture weight."""


def mixed_loss(
    losses: Sequence[PairLoss], pairs: Pairs, weights_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss [B] of every pair: the weighted sum of the losses, times WPO's weights if given."""
    total_B = torch.stack([loss.weight * loss(pairs) for loss in losses]).sum(0)
    return total_B if weights_B is None else weights_B * total_B
