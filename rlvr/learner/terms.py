"""What the objective looks at, from a batch's columns and a micro-batch's fresh statistics."""

import math
from collections.abc import Callable
from typing import Literal

import torch

from rlvr.learner.old_policy import proxy_rows_of
from rlvr.objective import Objective, Step, Terms
from rlvr.policy import ModelInputs, ProxyRequest, TokenStats
from rlvr.types import Batch

ProxyRequests = Callable[[ModelInputs], ProxyRequest | None]


def step_of(batch: Batch, number: int) -> Step:
    """What the objective may know of a whole step before it is run."""
    old_BT = batch.old_logprobs_BT
    logprobs_BT = batch.rollout_logprobs_BT if old_BT is None else old_BT
    if logprobs_BT is None:
        logprobs_BT = torch.zeros_like(batch.mask_BT)  # nothing looks at it
    return Step(logprobs_BT, batch.advantages_BT, batch.mask_BT, batch.old_entropy_BT, number)


def proxy_requests(
    objective: Objective, batch: Batch, prepared: dict[str, torch.Tensor]
) -> ProxyRequests | None:
    """What the training pass must say of proxy distributions, by micro-batch.

    The current policy's own where it is the old one, else the divergence from those that were kept.
    """
    noise_filter = objective.noise_filter
    if noise_filter is None:
        return None
    if batch.log_kept_mass_BT is None:
        request = ProxyRequest(
            noise_filter,
            below=objective.noise_below(prepared),
            divergence=objective.needs_proxy_kl,
        )
        return lambda inputs: request
    rows = batch.proxy_rows
    if rows is None:
        return None
    return lambda inputs: ProxyRequest(
        noise_filter, below=-math.inf, rows=proxy_rows_of(inputs, rows)
    )


def terms_of(
    columns: Batch,
    inputs: ModelInputs,
    stats: TokenStats,
    prepared: dict[str, torch.Tensor],
    ratio_against: Literal["learner", "rollout"],
) -> Terms:
    """A micro-batch's [B, T] columns, on the model's device, beside its fresh statistics."""
    width = columns.mask_BT.shape[1]
    logprobs_BT = inputs.scatter(stats.logprobs_N, width)
    assert stats.entropy_N is not None

    def moved(column_BT: torch.Tensor | None) -> torch.Tensor | None:
        return None if column_BT is None else column_BT.to(logprobs_BT)

    def laid_out(values_N: torch.Tensor | None) -> torch.Tensor | None:
        return None if values_N is None else inputs.scatter(values_N.to(logprobs_BT), width)

    own_BT, rollout_BT = moved(columns.old_logprobs_BT), moved(columns.rollout_logprobs_BT)
    # One update per rollout: the old policy is the current one, no second forward needed.
    own_BT = logprobs_BT.detach() if own_BT is None else own_BT
    old_BT = own_BT
    if ratio_against == "rollout" and rollout_BT is not None:
        old_BT = rollout_BT
    gathered = columns.log_kept_mass_BT is not None
    mass_BT = laid_out(stats.log_kept_mass_N)
    mass_BT = moved(columns.log_kept_mass_BT) if gathered else mass_BT
    return Terms(
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=old_BT,
        advantages_BT=columns.advantages_BT.to(logprobs_BT),
        mask_BT=columns.mask_BT.to(logprobs_BT),
        entropy_BT=inputs.scatter(stats.entropy_N, width),
        reference_logprobs_BT=moved(columns.reference_logprobs_BT),
        rollout_logprobs_BT=rollout_BT,
        log_kept_mass_BT=mass_BT,
        kept_BT=moved(columns.kept_BT) if gathered else laid_out(stats.kept_N),
        proxy_logprobs_BT=None if mass_BT is None else own_BT - mass_BT,
        proxy_kl_BT=laid_out(stats.proxy_kl_N),
        prepared={
            name: column_BT[list(inputs.rows)].to(logprobs_BT)
            for name, column_BT in prepared.items()
        },
    )
