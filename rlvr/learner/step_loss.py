"""The losses of one optimizer step, a micro-batch at a time."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch

from rlvr.learner.methods.hook import Hook
from rlvr.learner.objective_inputs import loss_inputs, statistics, step_of
from rlvr.learner.passes import MicroBatch
from rlvr.learner.settings import POLICY
from rlvr.objective.objective import Objective
from rlvr.objective.reducers import Counts
from rlvr.policy.batching import ModelInputs
from rlvr.types import Batch


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
