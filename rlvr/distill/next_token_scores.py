"""A model's next-token distribution, in the two forms that engines return.

:class:`LogitScores` cover the whole vocabulary. :class:`TopScores` hold the likeliest tokens and
their log-probabilities at temperature 1, which is what a serving engine returns. That is enough for
the rule if pools are no larger and top-p cuts nothing.
"""

from typing import Protocol

import torch

from rlvr.distill.acceptance_rule import (
    AcceptanceRule,
    Pool,
    PoolSettings,
    in_ids_of,
    make_pool,
    probabilities,
    student_pool,
    teacher_pool,
)


class Scores(Protocol):
    """Next-token distributions of B rows."""

    def teacher_pool(self, settings: PoolSettings, student_ids_V: torch.Tensor | None) -> Pool:
        """See :func:`rlvr.distill.acceptance_rule.teacher_pool`."""
        ...

    def student_pool(self, rule: AcceptanceRule) -> Pool:
        """See :func:`rlvr.distill.acceptance_rule.student_pool`."""
        ...

    def probs(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Probability [B] of one token of each row at temperature 1; NaN if it is unknown."""
        ...


class LogitScores:
    """Scores that cover the whole vocabulary.

    Args:
        logits_BV: Logits.
        banned: Ids that are never drawn; probabilities are still normalised over the whole
            vocabulary.
    """

    def __init__(self, logits_BV: torch.Tensor, banned: torch.Tensor | None = None) -> None:
        self.logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
        self._normaliser_B1 = self.logits_BV.logsumexp(-1, keepdim=True)
        self._share_B1: torch.Tensor | float = 1.0
        if banned is not None:
            self.logits_BV = self.logits_BV.index_fill(-1, banned, float("-inf"))
            left_B1 = self.logits_BV.logsumexp(-1, keepdim=True)
            self._share_B1 = (left_B1 - self._normaliser_B1).exp()

    def teacher_pool(self, settings: PoolSettings, student_ids_V: torch.Tensor | None) -> Pool:
        """See :class:`Scores`."""
        pool = teacher_pool(self.logits_BV, settings, student_ids_V)
        return pool._replace(probs_BK=pool.probs_BK * self._share_B1)

    def student_pool(self, rule: AcceptanceRule) -> Pool:
        """See :class:`Scores`."""
        pool = student_pool(self.logits_BV, rule)
        if rule.threshold_on == "processed":
            return pool
        return pool._replace(probs_BK=pool.probs_BK * self._share_B1)

    def probs(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """See :class:`Scores`."""
        found_B1 = self.logits_BV.gather(-1, tokens_B[:, None].to(self.logits_BV.device))
        return (found_B1 - self._normaliser_B1).exp()[:, 0]


class TopScores:
    """Scores of the K likeliest tokens; K covers at least the pools' top_k plus ``banned``.

    Args:
        ids_BK: Their ids.
        logprobs_BK: Their log-probabilities at temperature 1, normalised over the whole vocabulary.
        banned: Ids that are never drawn.
    """

    def __init__(
        self, ids_BK: torch.Tensor, logprobs_BK: torch.Tensor, banned: torch.Tensor | None = None
    ) -> None:
        if banned is not None:
            logprobs_BK = logprobs_BK.masked_fill(torch.isin(ids_BK, banned), float("-inf"))
        self.logprobs_BK, order_BK = logprobs_BK.sort(dim=-1, descending=True)
        self.ids_BK = ids_BK.gather(-1, order_BK)

    def _pool(self, settings: PoolSettings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids_BK = self.ids_BK[:, : settings.top_k]
        logprobs_BK = self.logprobs_BK[:, : settings.top_k]
        if settings.temperature == 0:
            weights_BK = torch.zeros_like(logprobs_BK)
            weights_BK.scatter_(-1, logprobs_BK.argmax(-1, keepdim=True), 1.0)
        else:
            weights_BK = (logprobs_BK / settings.temperature).softmax(-1).nan_to_num(0.0)
        return ids_BK, weights_BK, logprobs_BK.exp()

    def teacher_pool(self, settings: PoolSettings, student_ids_V: torch.Tensor | None) -> Pool:
        """See :class:`Scores`."""
        return in_ids_of(student_ids_V, *self._pool(settings))

    def student_pool(self, rule: AcceptanceRule) -> Pool:
        """See :class:`Scores`."""
        return make_pool(*self._pool(rule.student))

    def probs(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """See :class:`Scores`."""
        pool = make_pool(self.ids_BK, self.logprobs_BK.exp(), self.logprobs_BK.exp())
        tokens_B1 = tokens_B[:, None].to(self.ids_BK.device)
        there_B = (self.ids_BK == tokens_B1).any(-1)
        return probabilities(pool, tokens_B1)[:, 0].masked_fill(~there_B, float("nan"))
