"""What a method may add to the update of a policy.

A hook is a method's part in a rollout's updates, in one file with the method's settings. It may
bring a model that is trained with the policy, columns of the batch, a loss of its own, metrics, and
files of a checkpoint; the learner calls every hook at every place below, in the order in which it
was given them, and knows none of them by name:

    update(rollout)
        annotate                        rewards, say; the hook may train its own model first
        reads_old, read_old, with_old   columns under the policy that the updates start from
        for every optimizer step
            begin_step
            begin_attempt               once more where memory ran out
            for every micro-batch
                options                 what more the policy's forward pass is asked
                add_loss
            end_step
        end_rollout

To add a method, subclass :class:`Hook` in a file of this folder and have ``rlvr/rl/methods.py``
build it from the recipe. A recipe's schema reaches these files, so they load torch, and whatever
needs it, only where they use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvr.lazy import torch
from rlvr.learner.settings import OptimizerSettings
from rlvr.objective.reducers import Counts
from rlvr.types import Batch

if TYPE_CHECKING:
    from torch import nn

    from rlvr.learner.passes import MicroBatch, Passes
    from rlvr.policy.batching import ModelInputs
    from rlvr.policy.model import Policy
    from rlvr.ranks import Ranks

Train = Callable[[str, Batch], dict[str, float]]
"""Has an auxiliary model of this name take its optimizer steps on a rollout; the last one's
metrics."""


class Hook:
    """A method that does nothing; subclasses say what they do otherwise.

    Attributes:
        name: Of the method, in checkpoints.
        trains: Name of the model that its loss trains: the policy, or its own; None has no loss.
        model: Its own model, called with the policy's inputs and giving N values.
        optimizer: How its own model is trained.
        joint: Whether ``trains`` takes the policy's optimizer steps.
        every_row: Whether completions whose advantage is zero have a gradient through it.
        needs_reference: Whether the batch must have the reference's log-probabilities.
        needs_experts: Whether the engine must say to which experts it sent tokens.
    """

    name: str
    trains: str | None = None
    model: nn.Module | None = None
    optimizer: OptimizerSettings | None = None
    joint: bool = True
    every_row: bool = False
    needs_reference: bool = False
    needs_experts: bool = False

    def start(self, policy: Policy) -> None:
        """The parameter store has taken the models."""

    @property
    def holds(self) -> frozenset[str]:
        """Names of models that take no step of the present rollout, whatever their loss."""
        return frozenset()

    def annotate(
        self, batch: Batch, passes: Passes, train: Train
    ) -> tuple[Batch, dict[str, float]]:
        """A rollout with what the method adds before anything else, and metrics; collective."""
        return batch, {}

    def reads_old(self, batch: Batch) -> bool:
        """Whether it needs a pass of the old policy, and of the model that it trains."""
        return False

    def read_old(self, micro: MicroBatch) -> dict[str, Any]:
        """Columns by name from a micro-batch of that pass: tensors [N], or a list by completion."""
        return {}

    def with_old(self, batch: Batch) -> Batch:
        """The rollout, its columns of the old policy complete, with what follows from them."""
        return batch

    def options(self, batch: Batch, inputs: ModelInputs) -> dict[str, Any]:
        """What more the policy is asked of a micro-batch of the batch."""
        return {}

    def begin_step(self, batch: Batch, rows: Sequence[int], passes: Passes) -> None:
        """An optimizer step of ``trains`` over these rows begins; collective."""

    def begin_attempt(self) -> None:
        """The step's micro-batches begin, possibly once more."""

    def add_loss(
        self, loss: torch.Tensor, micro: MicroBatch, counts: Counts, measured: Counts
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """A micro-batch's share of the step's loss, this method's included, and of its metrics.

        Args:
            loss: The share as it is so far.
            micro: The micro-batch.
            counts: Of the whole optimizer step.
            measured: Of the rows that are run; metrics of the policy are means over them.
        """
        return loss, {}

    def end_step(self, ranks: Ranks) -> dict[str, float]:
        """Metrics of the step that was run; collective."""
        return {}

    def end_rollout(self, batch: Batch) -> dict[str, float]:
        """Metrics of the rollout; all its updates are done."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on, besides models; JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""

    def writer(self, policy: Policy, *, keep: bool, copy: bool) -> Callable[[Path], None]:
        """What writes its model into a checkpoint; weights are gathered now, by all ranks.

        Args:
            policy: Says how sharded weights are gathered.
            keep: Hold on to them; only the process that is to write needs to.
            copy: Hold copies, which training does not change.
        """
        return lambda folder: None

    def export(self, tokenizer: Any, folder: Path, ranks: Ranks) -> None:  # noqa: ANN401
        """Write what the finished run leaves besides the policy; collective."""

    def describe(
        self,
        rows: Sequence[dict[str, Any]],
        completion_ids: Sequence[Sequence[int]],
        tokenizer: Any,  # noqa: ANN401
    ) -> None:
        """Add to kept completions what it knows of them.

        Args:
            rows: Records of the first completions of the last rollout.
            completion_ids: Their tokens.
            tokenizer: Turns them into text.
        """
