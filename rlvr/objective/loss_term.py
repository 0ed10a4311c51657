"""What a term of the loss says of itself."""

from __future__ import annotations

from collections.abc import Callable

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import Step
from rlvr.objective.token_statistic import SparseRows, TokenStatistic
from rlvr.settings import Registered

Memory = dict[str, float]
"""What a part of the loss remembers from one optimizer step to the next; checkpointed."""


class LossTerm(Registered):
    """A part of the loss; what it says of itself unless it says otherwise."""

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities must be there."""
        return False

    @property
    def at_zero_advantage(self) -> bool:
        """Whether tokens of advantage zero can have a gradient through it."""
        return False

    @property
    def needs_step_logprobs(self) -> bool:
        """Whether ``prepare`` looks at log-probabilities."""
        return False

    @property
    def needs_step_entropy(self) -> bool:
        """Whether ``prepare`` looks at entropies, which no engine reports."""
        return False

    @property
    def statistics(self) -> tuple[str, ...]:
        """Columns [B, T] of the old policy that it reads besides log-probability and entropy.

        Where the policy moves away from the old one, :meth:`old_statistic` gives them; where it
        does not, :meth:`statistic` does.
        """
        return ()

    def old_statistic(self, advantages_N: torch.Tensor) -> TokenStatistic:
        """What a pass under the old policy has to read for it.

        Args:
            advantages_N: Of the pass's tokens.
        """
        raise NotImplementedError

    def statistic(
        self, prepared_BT: torch.Tensor | None, old: Callable[[str], SparseRows] | None
    ) -> TokenStatistic | None:
        """What the training pass has to read for it.

        Args:
            prepared_BT: What :meth:`prepare` gave.
            old: What :meth:`old_statistic` kept for the pass's tokens, by name; None where the
                current policy is the old one.
        """
        return None

    def prepare(self, step: Step, memory: Memory) -> torch.Tensor | None:
        """What depends on the whole step, as a column [B, T] that micro-batches are cut from."""
        return None

    def finish(self, metrics: dict[str, float], memory: Memory) -> tuple[dict[str, float], Memory]:
        """The metrics that it adds or corrects, from those of the whole step, and its memory."""
        return {}, memory
