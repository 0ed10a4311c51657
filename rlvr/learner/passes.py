"""Forward passes over a batch, a micro-batch at a time, by the rank that it falls to."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlvr.learner.micro_batches import MicroBatches, RowsOf
from rlvr.learner.models import Outputs
from rlvr.learner.parameter_store import ParameterStore
from rlvr.learner.partition import Rows
from rlvr.learner.settings import POLICY
from rlvr.policy.batching import ModelInputs
from rlvr.policy.model import Policy, evaluating
from rlvr.ranks import Ranks
from rlvr.types import Batch

Options = Callable[[ModelInputs], dict[str, Any]]
"""What more the policy is asked of a micro-batch (:meth:`rlvr.policy.model.Policy.forward`)."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a batch, as the models saw them, and what these gave."""

    batch: Batch
    inputs: ModelInputs
    outputs: Outputs

    def scatter(self, values_N: torch.Tensor) -> torch.Tensor:
        """Values of N tokens as a column [B, T]; differentiable."""
        return self.inputs.scatter(values_N, self.batch.mask_BT.shape[1])


@dataclass(frozen=True, slots=True)
class Passes:
    """Runs the store's models, or a frozen one, over rows of a batch.

    Args:
        store: Holds the models.
        micro_batches: Splits rows and shares them out.
        temperature: The policy's log-probabilities are taken under it.
        chunk_tokens: Tokens whose logits are formed at once; None chooses by vocabulary size.
    """

    store: ParameterStore
    micro_batches: MicroBatches
    temperature: float = 1.0
    chunk_tokens: int | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that share the rows."""
        return self.micro_batches.ranks

    def share(self, batch: Batch, rows: Sequence[int] | None = None) -> list[Rows]:
        """This rank's micro-batches of the rows; None is all."""
        chosen = range(len(batch)) if rows is None else rows
        return self.micro_batches.share(rows_of(batch), chosen)

    def unit_ends(self, batch: Batch, rows: Sequence[int]) -> frozenset[int]:
        """The rows after which a unit of an exact sum ends; none where sums are ordinary."""
        return self.micro_batches.unit_ends(rows_of(batch), rows)

    def forward(
        self,
        batch: Batch,
        micro: Rows,
        *,
        run: Collection[str] = (POLICY,),
        frozen: Policy | None = None,
        options: Options | None = None,
        **more: Any,  # noqa: ANN401
    ) -> tuple[ModelInputs, Outputs]:
        """Run one micro-batch.

        Args:
            batch: What it is of.
            micro: Its rows; the empty one is two tokens, so that this rank's passes are as many as
                the others'.
            run: Names of the store's models to run.
            frozen: Run this model instead, which the store does not hold.
            options: Asked of the policy, unless the micro-batch is empty.
            more: Asked of the policy in any case.
        """
        prompts, completions, rows = batch.prompt_ids, batch.completion_ids, micro
        spans = batch.columns.get("spans")
        if not micro:
            prompts, completions, rows, spans = (batch.prompt_ids[0][:1],), ((0,),), (0,), None
        device = self.store.models.policy.device
        inputs = self.micro_batches.inputs(prompts, completions, rows, spans).to(device)
        asked = {"temperature": self.temperature, "chunk_tokens": self.chunk_tokens, **more}
        if micro and options is not None:
            asked |= options(inputs)
        if frozen is not None:
            return inputs, Outputs(frozen(inputs, **asked), {})
        return inputs, self.store.forward(inputs, run=run, **asked)

    def read(
        self,
        batch: Batch,
        visit: Callable[[MicroBatch], None],
        *,
        rows: Sequence[int] | None = None,
        frozen: Policy | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Run rows without gradient and show ``visit`` each of this rank's micro-batches.

        ``rows`` None is all; ``options`` are those of :meth:`forward`.
        """
        with torch.no_grad(), evaluating(frozen or self.store.models):
            for micro in self.share(batch, rows):
                inputs, outputs = self.forward(batch, micro, frozen=frozen, **options)
                if micro:
                    visit(MicroBatch(batch.select(micro), inputs, outputs))

    def logprobs(
        self,
        batch: Batch,
        frozen: Policy | None = None,
        *,
        of: str = POLICY,
        **more: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Log-probabilities [B, T] of the batch's completions under a model, without gradient.

        Each rank runs its share of the rows; the others' are filled in.

        Args:
            batch: The completions.
            frozen: A model that the store does not hold; None is the one that ``of`` names.
            of: The policy, or an auxiliary model that gives log-probabilities.
            more: As of :meth:`forward`, such as a ``temperature`` other than that of sampling.
        """
        logprobs_BT = torch.zeros(batch.mask_BT.shape, dtype=batch.mask_BT.dtype)

        def visit(micro: MicroBatch) -> None:
            stats, auxiliary = micro.outputs.stats, micro.outputs.auxiliary
            values_N = stats.logprobs_N if of == POLICY else auxiliary[of]
            logprobs_BT[list(micro.inputs.rows)] = micro.scatter(values_N).to(logprobs_BT)

        self.read(batch, visit, run=(of,), frozen=frozen, **more)
        return self.ranks.sum(logprobs_BT)


def rows_of(batch: Batch) -> RowsOf:
    """A completion is an item of its own."""
    return lambda row: ((batch.prompt_ids[row], batch.completion_ids[row]),)
