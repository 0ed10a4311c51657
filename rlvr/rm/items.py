"""What an optimizer step of an explicit reward model is made of.

Responses stand in columns; an item names the places of those that its loss looks at together: a
pair, a single response, or all responses of a prompt. A response may be part of many items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rlvr.rm.losses import RewardLoss
from rlvr.rm.pairs import PairSettings, build_pairs, members

Rows = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Responses:
    """M responses as token ids, with their outcomes [M] (0 or 1) and the problems they answer."""

    prompt_ids: tuple[tuple[int, ...], ...]
    completion_ids: tuple[tuple[int, ...], ...]
    outcomes_M: torch.Tensor
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def labels(self) -> list[bool]:
        """Whether each is right."""
        found: list[bool] = (self.outcomes_M > 0.5).tolist()
        return found

    def select(self, rows: Sequence[int]) -> "Responses":
        """These responses, in that order."""
        return Responses(
            tuple(self.prompt_ids[row] for row in rows),
            tuple(self.completion_ids[row] for row in rows),
            self.outcomes_M[list(rows)],
            tuple(self.groups[row] for row in rows),
        )


@dataclass(frozen=True, slots=True)
class Items:
    """Items over responses; ``targets_M`` is what the loss takes for labels: outcomes, or soft."""

    responses: Responses
    rows: tuple[Rows, ...]
    targets_M: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, items: Sequence[int]) -> "Items":
        """These items; the responses stay as they are."""
        return replace(self, rows=tuple(self.rows[item] for item in items))

    def tokens(self) -> int:
        """Completion tokens of the items' responses, each counted once."""
        used = {row for item in self.rows for row in item}
        return sum(len(self.responses.completion_ids[row]) for row in used)


def make_items(responses: Responses, loss: RewardLoss, pairs: PairSettings, seed: int) -> Items:
    """What a loss learns from.

    Args:
        responses: The training data.
        loss: Says what an item is.
        pairs: Which pairs, where it is a pair.
        seed: Which are drawn.

    Raises:
        ValueError: There is nothing to learn from.
    """
    rows: list[Rows]
    if loss.unit == "pairs":
        rows = [*build_pairs(responses.labels, responses.groups, pairs, seed)]
    elif loss.unit == "lists":
        labels = responses.labels
        rows = [
            tuple(own)
            for own in members(responses.groups).values()
            if 0 < sum(labels[row] for row in own) < len(own)
        ]
        if not rows:
            raise ValueError(
                f"none of {len(set(responses.groups))} problems has both right and wrong "
                "responses, so there are no lists to learn from; sample more of each, or use ce"
            )
    else:
        rows = [(row,) for row in range(len(responses))]
    return Items(responses, tuple(rows), responses.outcomes_M)
