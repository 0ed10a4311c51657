"""What every preference loss has: a weight in a mixture, and what it is known for."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from rlvr.preference.losses.terms import Labelled, Pairs
from rlvr.settings import Settings

LogProbs = Literal["sum", "mean"]


class PreferenceLoss(Settings):
    """A loss over completions of known preference; its mean over the step is minimised."""

    takes_reference: ClassVar[bool] = True
    """Whether it looks at reference log-probabilities."""
    whole_step: ClassVar[bool] = False
    """Whether a pair's loss depends on the other pairs of the step."""
    log_probs: ClassVar[LogProbs] = "sum"
    """Whether log-probabilities of completions enter as sums or as means over tokens."""
    equation: ClassVar[str]
    """The loss of a pair, in the notation of docs/methods/preference.md."""
    paper: ClassVar[str]
    """arXiv number, or a title."""
    core: ClassVar[str | None] = None
    """The name of its preference structure, where the loss is f of one log-ratio."""

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

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B] of every pair, without the mixture weight."""
        raise NotImplementedError


class UnpairedLoss(PreferenceLoss):
    """A loss over single completions labelled desirable or undesirable."""

    def __call__(self, labelled: Labelled) -> torch.Tensor:
        """Loss [B] of every completion, without the mixture weight."""
        raise NotImplementedError
