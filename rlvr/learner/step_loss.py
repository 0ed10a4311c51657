"""The losses of one optimizer step, a micro-batch at a time."""

from collections.abc import Collection, Sequence
from functools import reduce
from itertools import chain
from typing import Any, Literal

import torch

from rlvr.learner.methods.hook import Hook
from rlvr.learner.objective_inputs import loss_inputs, statistics, step_of
from rlvr.learner.partition import Rows
from rlvr.learner.passes import MicroBatch
from rlvr.learner.settings import POLICY
from rlvr.objective.objective import Objective, merge_metrics
from rlvr.objective.reducers import Counts
from rlvr.policy.batching import ModelInputs
from rlvr.types import Batch

Share = tuple[int, dict[str, float]]
"""The place of a completion in its step, and its share of the metrics; place 0 is that of sums over
a rank's micro-batches, where the order is of no concern."""


def with_share(
    shares: Sequence[Share], rows: Rows, metrics: dict[str, float], *, in_place: bool
) -> list[Share]:
    """A rank's shares with that of one more micro-batch.

    Args:
        shares: Those so far.
        rows: Of the micro-batch.
        metrics: Its share.
        in_place: Whether shares are to be added in the order of their places, whoever ran them.
    """
    if in_place:
        return [*shares, (rows[0], metrics)]
    total: dict[str, float] = shares[0][1] if shares else {}
    return [(0, merge_metrics(total, metrics))]


def merged_shares(by_rank: Sequence[Sequence[Share]]) -> dict[str, float]:
    """The metrics of a step, from the shares of all ranks."""
    shares = sorted(chain.from_iterable(by_rank), key=lambda share: share[0])
    total: dict[str, float] = {}
    return reduce(merge_metrics, (metrics for _, metrics in shares), total)


class StepLoss:
    """What the models of an optimizer step are trained with.

    Args:
        objective: The policy's loss.
        hooks: Those whose loss trains one of the models.
        models: Names of those that are run.
        held: Names of those among them that do not take the step; their losses are only measured.
        batch: The step, whole.
        rows: Those of its rows that are run.
        number: Of updates before it.
        old_logprobs_from: Whose log-probabilities are the old ones.
        stale: Whether rollouts may come from older weights than the updates start from.
    """

    def __init__(
        self,
        objective: Objective,
        hooks: Sequence[Hook],
        models: Collection[str],
        held: Collection[str],
        batch: Batch,
        rows: Sequence[int],
        number: int,
        old_logprobs_from: Literal["learner", "rollout"],
        *,
        stale: bool = False,
    ) -> None:
        self.objective, self.hooks, self.batch, self.held = objective, hooks, batch, held
        self.trains_policy, self.old_logprobs_from = POLICY in models, old_logprobs_from
        self.counts, self.measured = Counts.of(batch.mask_BT), Counts.of(batch.mask_BT[rows])
        self.prepared: dict[str, torch.Tensor] = {}
        if self.trains_policy:
            self.prepared = objective.prepare(step_of(batch, number, stale=stale))

    def options(self, inputs: ModelInputs) -> dict[str, Any]:
        """What more the policy's forward pass is asked of a micro-batch."""
        if not self.trains_policy:
            return {}
        read = statistics(self.objective, self.batch, self.prepared, inputs)
        asked: dict[str, Any] = {"statistics": read}
        for hook in self.hooks:
            asked |= hook.options(self.batch, inputs)
        return asked

    def __call__(self, micro: MicroBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """A micro-batch's share of the losses, and of their metrics."""
        loss = torch.zeros((), device=micro.inputs.row_N.device)
        metrics: dict[str, float] = {}
        if self.trains_policy:
            terms = loss_inputs(self.objective, micro, self.prepared, self.old_logprobs_from)
            loss, metrics = self.objective(terms, self.counts, self.measured)
        if POLICY in self.held:  # which a store may all the same wait for
            loss = 0.0 * micro.outputs.stats.logprobs_N.sum()
        for hook in self.hooks:
            added, own = hook.add_loss(loss, micro, self.counts, self.measured)
            loss = loss if hook.trains in self.held else added
            metrics = metrics | own
        return loss, metrics
