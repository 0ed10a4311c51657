"""What the objective looks at: a batch's columns with a micro-batch's fresh statistics."""

from __future__ import annotations

from typing import Literal

import torch

from rlvr.learner.passes import MicroBatch
from rlvr.objective.loss_inputs import LossInputs, Step
from rlvr.objective.objective import Objective
from rlvr.objective.token_statistic import SparseRows, TokenStatistic
from rlvr.policy.batching import ModelInputs
from rlvr.types import Batch


def step_of(batch: Batch, number: int, *, stale: bool = False) -> Step:
    """What the objective may know of a whole step before it is run.

    Where rollouts are stale, their own log-probabilities are those of the policy that sampled.
    """
    old_BT, sampled_BT = batch.old_logprobs_BT, batch.rollout_logprobs_BT
    use_sampled = old_BT is None or (stale and sampled_BT is not None)
    logprobs_BT = sampled_BT if use_sampled else old_BT
    if logprobs_BT is None:
        logprobs_BT = torch.zeros_like(batch.mask_BT)  # nothing looks at it
    entropy_BT = batch.columns.get("old_entropy")
    return Step(logprobs_BT, batch.advantages_BT, batch.mask_BT, entropy_BT, number)


def statistics(
    objective: Objective, batch: Batch, prepared: dict[str, torch.Tensor], inputs: ModelInputs
) -> list[TokenStatistic]:
    """What the training pass of a micro-batch has to read for the parts of the objective."""

    def kept(name: str) -> SparseRows:
        return sparse_at(inputs, batch.columns[name])

    asked = [
        part.statistic(prepared.get(part.name), kept if has_old(part.statistics, batch) else None)
        for part in objective.parts
    ]
    return [statistic for statistic in asked if statistic is not None]


def has_old(names: tuple[str, ...], batch: Batch) -> bool:
    """Whether the columns of these statistics under the old policy are there."""
    return set(names) <= set(batch.columns)


def loss_inputs(
    objective: Objective,
    micro: MicroBatch,
    prepared: dict[str, torch.Tensor],
    old_logprobs_from: Literal["learner", "rollout"],
) -> LossInputs:
    """A micro-batch's [B, T] columns, on the model's device, with its fresh statistics."""
    batch, stats = micro.batch, micro.outputs.stats
    logprobs_BT = micro.scatter(stats.logprobs_N)
    assert stats.entropy_N is not None

    def moved(column_BT: torch.Tensor | None) -> torch.Tensor | None:
        return None if column_BT is None else column_BT.to(logprobs_BT)

    old_BT, rollout_BT = moved(batch.old_logprobs_BT), moved(batch.rollout_logprobs_BT)
    if old_logprobs_from == "rollout" and rollout_BT is not None:
        old_BT = rollout_BT
    columns = {n: micro.scatter(v_N.to(logprobs_BT)) for n, v_N in stats.columns.items()}
    names = {name for part in objective.parts for name in part.statistics if name in batch.columns}
    return LossInputs(
        logprobs_BT=logprobs_BT,
        # One update per rollout: the old policy is the current one, no second forward needed.
        old_logprobs_BT=logprobs_BT.detach() if old_BT is None else old_BT,
        advantages_BT=batch.advantages_BT.to(logprobs_BT),
        mask_BT=batch.mask_BT.to(logprobs_BT),
        entropy_BT=micro.scatter(stats.entropy_N),
        reference_logprobs_BT=moved(batch.reference_logprobs_BT),
        rollout_logprobs_BT=rollout_BT,
        columns=columns | {name: batch.columns[name].to(logprobs_BT) for name in names},
        prepared={
            name: column_BT[list(micro.inputs.rows)].to(logprobs_BT)
            for name, column_BT in prepared.items()
        },
    )


def sparse_by_row(inputs: ModelInputs, rows: SparseRows) -> list[SparseRows]:
    """A micro-batch's entries by completion, positions as columns."""
    slot_S = inputs.row_N[rows.position_S]
    order = slot_S.argsort(stable=True)
    sizes = torch.bincount(slot_S, minlength=len(inputs.rows)).tolist()
    columns = (inputs.column_N[rows.position_S], rows.token_S, rows.value_S)
    parts = [column_S[order].cpu().split(sizes) for column_S in columns]
    return [SparseRows(*part) for part in zip(*parts, strict=True)]


def sparse_at(inputs: ModelInputs, by_row: tuple[SparseRows, ...]) -> SparseRows:
    """Entries by completion of the whole batch as those of a micro-batch's N positions."""
    width = int(inputs.column_N.max()) + 1
    position_BT = torch.zeros(len(inputs.rows), width, dtype=torch.long)
    position_BT[inputs.row_N.cpu(), inputs.column_N.cpu()] = torch.arange(len(inputs.row_N))
    mine = [by_row[row] for row in inputs.rows]
    position_S = torch.cat([position_BT[slot, e.position_S] for slot, e in enumerate(mine)])
    order = position_S.argsort(stable=True)
    columns = (
        position_S,
        torch.cat([e.token_S for e in mine]),
        torch.cat([e.value_S for e in mine]),
    )
    return SparseRows(*(column_S[order].to(inputs.row_N.device) for column_S in columns))
