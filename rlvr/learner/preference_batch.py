"""The preferences of an optimizer step, as token ids and a few columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """B items of K completions each: chosen and rejected (K = 2), or a labelled one (K = 1).

    ``reference_BK`` are reference log-probabilities, reduced as the learner reduces its own.

    With ``step_ends`` an item is one completion in steps, which end there (in tokens, exclusive);
    K is the largest number of steps, and log-probabilities are those of steps. ``step_labels_BK``
    are between 0 and 1, and not a number where a step was not judged, or is not there.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    completion_ids: tuple[tuple[tuple[int, ...], ...], ...]
    desirable_B: torch.Tensor | None = None
    scores_BK: torch.Tensor | None = None
    reference_BK: torch.Tensor | None = None
    step_ends: tuple[tuple[int, ...], ...] | None = None
    step_labels_BK: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def kinds(self) -> int:
        """K, the completions of an item, or the steps of its completion."""
        if self.step_labels_BK is not None:
            return self.step_labels_BK.shape[1]
        return len(self.completion_ids[0])

    @property
    def lengths_BK(self) -> torch.Tensor:
        """Completion tokens."""
        return torch.tensor([[len(ids) for ids in item] for item in self.completion_ids])

    def select(self, items: Sequence[int]) -> "PreferenceBatch":
        """These items, in that order."""
        index = torch.tensor(items, dtype=torch.long)

        def rows(column: torch.Tensor | None) -> torch.Tensor | None:
            return None if column is None else column[index]

        return PreferenceBatch(
            tuple(self.prompt_ids[item] for item in items),
            tuple(self.completion_ids[item] for item in items),
            rows(self.desirable_B),
            rows(self.scores_BK),
            rows(self.reference_BK),
            None if self.step_ends is None else tuple(self.step_ends[item] for item in items),
            rows(self.step_labels_BK),
        )
