"""What a term of the loss asks of a forward pass beyond log-probabilities and entropies.

``rlvr/policy/token_stats.py`` forms log p over the vocabulary for a few tokens at a time and shows
every such chunk to the statistics it was given, forward and, where they carry gradients, backward.
A term of the loss brings statistics of its own (:class:`rlvr.objective.loss_term.LossTerm`); the
pass and the learner move their columns and know nothing of what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlvr.lazy import torch


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Some entries of a matrix [positions, vocabulary], S in all; constants.

    ``position_S`` ascends. In a forward pass it counts the pass's N tokens; in a batch, whose
    columns hold one of these for every completion, the completion's tokens.
    """

    position_S: torch.Tensor
    token_S: torch.Tensor
    value_S: torch.Tensor

    def within(self, start: int, stop: int) -> SparseRows:
        """The entries of positions start to stop - 1, counted from start."""
        bounds = torch.tensor([start, stop], device=self.position_S.device)
        first, last = torch.searchsorted(self.position_S, bounds).tolist()
        return SparseRows(
            self.position_S[first:last] - start,
            self.token_S[first:last],
            self.value_S[first:last],
        )

    @staticmethod
    def joined(parts: list[SparseRows]) -> SparseRows:
        """Parts whose positions follow one another."""
        columns = [(part.position_S, part.token_S, part.value_S) for part in parts]
        return SparseRows(*(torch.cat(column) for column in zip(*columns, strict=True)))


class TokenStatistic:
    """Columns that are read off log p, chunk by chunk; an object serves one forward pass.

    ``differentiable`` names the columns that carry gradients.
    """

    differentiable: tuple[str, ...] = ()

    def read(
        self, logp_CV: torch.Tensor, logprobs_C: torch.Tensor, start: int
    ) -> dict[str, torch.Tensor]:
        """The columns [C] of a chunk by name, equal names for every chunk.

        Args:
            logp_CV: Log-probabilities of the vocabulary; they must not be changed.
            logprobs_C: Those of the tokens themselves.
            start: Position of the chunk's first token among the pass's N.
        """
        raise NotImplementedError

    def gradient(
        self, name: str, upstream_C: torch.Tensor, logp_CV: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of a differentiable column by the logits, where it is not zero.

        Args:
            name: Of the column.
            upstream_C: Gradient of the loss by the column.
            logp_CV: As in :meth:`read`.
            start: As in :meth:`read`.

        Returns:
            The chunk's tokens that have a gradient, [R], and their gradients [R, V].
        """
        raise NotImplementedError

    def sparse(self) -> dict[str, SparseRows]:
        """What it kept over the vocabulary, once all chunks were read."""
        return {}
