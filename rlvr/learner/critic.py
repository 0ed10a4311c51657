"""The critic beside the policy: its settings, and its part in a rollout's updates.

Before the first update one pass reads the values of all states; rewards and values give advantages
and returns once, for all updates of the rollout. Each optimizer step then moves both models, by
losses that share nothing. Equations: ``rlvr/objective/advantages/gae.py`` and ``value_loss.py``.
"""

from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import nn

from rlvr.learner.settings import OptimizerSettings
from rlvr.objective import (
    Counts,
    Gae,
    TokenMean,
    ValueLoss,
    explained_variance,
    token_rewards,
)
from rlvr.policy import ModelInputs
from rlvr.types import Batch

CRITIC = "critic"


class CriticSettings(OptimizerSettings):
    """How the critic of ``advantage: gae`` is trained."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate of AdamW."""
    loss: ValueLoss = ValueLoss()
    """What it is trained with."""
    warmup_rollouts: int = Field(0, ge=0)
    """Rollouts at the start in which the critic alone learns."""


@dataclass(frozen=True)
class CriticTraining:
    """A critic, how it is trained, and the estimator that its values serve."""

    model: nn.Module
    settings: CriticSettings
    estimator: Gae

    def with_advantages(self, batch: Batch, values_BT: torch.Tensor) -> Batch:
        """Add old values, advantages and returns, from the values [B, T] of all states."""
        mask_BT = batch.mask_BT
        rewards_BT = batch.token_rewards_BT
        if rewards_BT is None:
            rewards_BT = token_rewards(batch.rewards_B.to(mask_BT), mask_BT)
        if self.estimator.kl_in_reward:
            old_BT = batch.old_logprobs_BT
            old_BT = batch.rollout_logprobs_BT if old_BT is None else old_BT
            assert old_BT is not None
            assert batch.reference_logprobs_BT is not None
            distance_BT = (old_BT - batch.reference_logprobs_BT) * mask_BT
            rewards_BT = rewards_BT - self.estimator.kl_in_reward * distance_BT
        advantages_BT, returns_BT = self.estimator.estimate(rewards_BT, values_BT, mask_BT)
        return replace(
            batch, old_values_BT=values_BT, advantages_BT=advantages_BT, returns_BT=returns_BT
        )

    def loss(
        self, values_N: torch.Tensor, inputs: ModelInputs, columns: Batch, counts: Counts
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """A micro-batch's share of the step's value loss, and of its metrics."""
        values_BT = inputs.scatter(values_N, columns.mask_BT.shape[1])
        assert columns.old_values_BT is not None
        assert columns.returns_BT is not None
        result = self.settings.loss(
            values_BT, columns.old_values_BT.to(values_BT), columns.returns_BT.to(values_BT)
        )
        weights_BT = TokenMean().weights(columns.mask_BT.to(values_BT), counts)
        loss = (weights_BT * result.loss_BT).sum()
        metrics = {
            name: float((weights_BT * value_BT).sum()) for name, value_BT in result.metrics.items()
        }
        return loss, {"critic/loss": float(loss.detach()), **metrics}


def rollout_metrics(batch: Batch) -> dict[str, float]:
    """How well the critic foresaw a rollout, before it was trained on it."""
    if batch.old_values_BT is None or batch.returns_BT is None:
        return {}
    explained = explained_variance(batch.old_values_BT, batch.returns_BT, batch.mask_BT)
    return {"critic/explained_variance": explained}
