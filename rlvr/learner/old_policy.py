"""What an update must know of the policy that it starts from.

One pass without gradient gives it all: log-probabilities where a rollout has several updates, the
entropies that a ranking of the whole step needs, and what terms of the loss and hooks read for
themselves. With one update per rollout the old policy is the current one, so that the training pass
itself gives what depends on the token alone, and this pass is spared unless entropies are ranked.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rlvr.learner.methods.hook import Hook
from rlvr.learner.objective_inputs import has_old, sparse_by_row
from rlvr.learner.passes import MicroBatch, Passes
from rlvr.learner.settings import POLICY
from rlvr.objective.objective import Objective
from rlvr.objective.token_statistic import SparseRows
from rlvr.policy.batching import ModelInputs
from rlvr.ranks import Ranks
from rlvr.types import Batch


class OldPolicy:
    """Gathers a rollout's columns under the policy that its updates start from.

    Columns that are there already are not gathered again.

    Args:
        batch: The rollout.
        objective: Says what is needed.
        hooks: Those of the learner.
        moves: Whether the policy moves within the rollout: several updates.
        against_learner: Whether ratios are taken against the learner's own probabilities.
    """

    def __init__(
        self,
        batch: Batch,
        objective: Objective,
        hooks: Sequence[Hook],
        *,
        moves: bool,
        against_learner: bool = True,
    ) -> None:
        self.batch, self.hooks = batch, hooks
        self.readers = [hook for hook in hooks if hook.reads_old(batch)]
        self.parts = [p for p in objective.parts if moves and not has_old(p.statistics, batch)]
        sampled = batch.rollout_logprobs_BT is not None  # stand for those of an unmoved policy
        wanted = (moves and against_learner) or bool(self.parts)
        wanted |= objective.needs_step_logprobs and not sampled
        self.logprobs = wanted and batch.old_logprobs_BT is None
        self.entropy = objective.needs_step_entropy and "old_entropy" not in batch.columns
        self.tokens: dict[str, torch.Tensor] = {}
        self.by_row: dict[str, dict[int, Any]] = {}

    @property
    def needed(self) -> bool:
        """Whether there is anything to gather."""
        return self.logprobs or self.entropy or bool(self.parts) or bool(self.readers)

    def gather(self, passes: Passes) -> Batch:
        """The rollout with what all ranks gathered; collective."""
        run = {POLICY, *(hook.trains for hook in self.readers if hook.trains)}
        passes.read(self.batch, self._take, run=run, options=self._options)
        names = self._share(passes.ranks)
        empty_BT = torch.zeros_like(self.batch.mask_BT)
        tokens = {name: passes.ranks.sum(self.tokens.get(name, empty_BT)) for name in names}
        by_row = {
            name: tuple(values[row] for row in range(len(self.batch)))
            for name, values in self.by_row.items()
        }
        old_BT = tokens.pop("old_logprobs", self.batch.old_logprobs_BT)
        return replace(self.batch, old_logprobs_BT=old_BT).with_columns(**tokens, **by_row)

    def _options(self, inputs: ModelInputs) -> dict[str, Any]:
        advantages_BT = self.batch.advantages_BT[list(inputs.rows)].to(inputs.row_N.device)
        advantages_N = advantages_BT[inputs.row_N, inputs.column_N]
        statistics = [part.old_statistic(advantages_N) for part in self.parts]
        asked: dict[str, Any] = {"entropy": self.entropy, "statistics": statistics}
        for hook in self.hooks:
            asked |= hook.options(self.batch, inputs)
        return asked

    def _take(self, micro: MicroBatch) -> None:
        """Take in a micro-batch's columns [N], and its lists by completion."""
        stats, rows = micro.outputs.stats, micro.inputs.rows
        read: dict[str, Any] = dict(stats.columns)
        if self.logprobs:
            read["old_logprobs"] = stats.logprobs_N
        if self.entropy:
            read["old_entropy"] = stats.entropy_N
        read |= {name: sparse_by_row(micro.inputs, kept) for name, kept in stats.sparse.items()}
        for hook in self.readers:
            read |= hook.read_old(micro)
        for name, values in read.items():
            if isinstance(values, list):
                by_row = zip(rows, values, strict=True)
                self.by_row.setdefault(name, {}).update(by_row)
            else:
                column_BT = self.tokens.setdefault(name, torch.zeros_like(self.batch.mask_BT))
                column_BT[list(rows)] = micro.scatter(values.to(stats.logprobs_N)).to(column_BT)

    def _share(self, ranks: Ranks) -> list[str]:
        """Have every rank hold all lists; the names of all columns [B, T], in one order."""
        if ranks.count == 1:
            return list(self.tokens)
        mine = {
            name: {str(row): _packed(value) for row, value in values.items()}
            for name, values in self.by_row.items()
        }
        everyones = ranks.gather([sorted(self.tokens), mine])
        for _, lists in everyones:
            for name, values in lists.items():
                unpacked = {int(row): _unpacked(value) for row, value in values.items()}
                self.by_row.setdefault(name, {}).update(unpacked)
        return sorted({name for names, _ in everyones for name in names})


def _packed(value: torch.Tensor | SparseRows) -> list[Any]:
    """As JSON values."""
    if isinstance(value, SparseRows):
        return [_packed(part) for part in (value.position_S, value.token_S, value.value_S)]
    return [str(value.dtype).removeprefix("torch."), value.tolist()]


def _unpacked(packed: list[Any]) -> torch.Tensor | SparseRows:
    if isinstance(packed[0], list):
        return SparseRows(*(torch.tensor(v, dtype=getattr(torch, d)) for d, v in packed))
    return torch.tensor(packed[1], dtype=getattr(torch, packed[0]))
