"""PPO's critic: a second model whose values give advantages, trained with the policy.

Before the first update one pass reads the values of all states; rewards and values give advantages
and returns once, for all updates of the rollout. Each optimizer step then moves both models, by
losses that share nothing. Equations: ``rlvr/objective/advantages/gae.py`` and ``value_loss.py``.

Columns: ``old_values`` [B, T] belong to the states before the tokens, ``returns`` [B, T] are what
the critic is trained towards. ``token_rewards`` [B, T], where another method adds them, stand for
``rewards_B``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rlvr.lazy import torch
from rlvr.learner.methods.hook import Hook
from rlvr.learner.settings import POLICY, OptimizerSettings
from rlvr.objective.advantages.gae import token_rewards
from rlvr.objective.parts import CriticAdvantage
from rlvr.objective.reducers import Counts, TokenMean
from rlvr.objective.value_loss import ValueLoss, explained_variance
from rlvr.types import Batch

if TYPE_CHECKING:
    from torch import nn

    from rlvr.learner.passes import MicroBatch
    from rlvr.policy.model import Policy

CRITIC = "critic"


class CriticSettings(OptimizerSettings):
    """How the critic of ``advantage: gae`` is trained."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate of AdamW."""
    loss: ValueLoss = ValueLoss()
    """What it is trained with."""
    warmup_rollouts: int = Field(0, ge=0)
    """Rollouts at the start in which the critic alone learns."""


class CriticHook(Hook):
    """A critic, how it is trained, and the estimator that its values serve."""

    name = trains = CRITIC
    every_row = True

    def __init__(
        self, model: nn.Module, settings: CriticSettings, estimator: CriticAdvantage
    ) -> None:
        self.model, self.optimizer = model, settings
        self.settings, self.estimator = settings, estimator
        self.needs_reference = estimator.kl_in_reward > 0
        self.rollouts = 0

    @property
    def holds(self) -> frozenset[str]:
        """In the warm-up, the policy."""
        warming = self.rollouts < self.settings.warmup_rollouts
        return frozenset({POLICY} if warming else ())

    def reads_old(self, batch: Batch) -> bool:
        """The values of all states."""
        return "old_values" not in batch.columns

    def read_old(self, micro: MicroBatch) -> dict[str, Any]:
        """As the critic is before the updates."""
        return {"old_values": micro.outputs.auxiliary[CRITIC]}

    def with_old(self, batch: Batch) -> Batch:
        """Add advantages and returns."""
        mask_BT = batch.mask_BT
        rewards_BT = batch.columns.get("token_rewards")
        if rewards_BT is None:
            rewards_BT = token_rewards(batch.rewards_B.to(mask_BT), mask_BT)
        if self.estimator.kl_in_reward:
            old_BT = batch.old_logprobs_BT
            old_BT = batch.rollout_logprobs_BT if old_BT is None else old_BT
            assert old_BT is not None
            assert batch.reference_logprobs_BT is not None
            distance_BT = (old_BT - batch.reference_logprobs_BT) * mask_BT
            rewards_BT = rewards_BT - self.estimator.kl_in_reward * distance_BT
        values_BT = batch.columns["old_values"]
        advantages_BT, returns_BT = self.estimator.estimate(rewards_BT, values_BT, mask_BT)
        return replace(batch, advantages_BT=advantages_BT).with_columns(returns=returns_BT)

    def add_loss(
        self, loss: torch.Tensor, micro: MicroBatch, counts: Counts, measured: Counts
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The value loss is added."""
        batch, values_BT = micro.batch, micro.scatter(micro.outputs.auxiliary[CRITIC])
        old_BT, returns_BT = (batch.columns[n].to(values_BT) for n in ("old_values", "returns"))
        result = self.settings.loss(values_BT, old_BT, returns_BT)
        weights_BT = TokenMean().weights(batch.mask_BT.to(values_BT), counts)
        value_loss = (weights_BT * result.loss_BT).sum()
        metrics = {
            name: float((weights_BT * value_BT).sum()) for name, value_BT in result.metrics.items()
        }
        return loss + value_loss, {"critic/loss": float(value_loss.detach()), **metrics}

    def end_rollout(self, batch: Batch) -> dict[str, float]:
        """How well the critic foresaw the rollout, before it was trained on it."""
        self.rollouts += 1
        values_BT, returns_BT = batch.columns["old_values"], batch.columns["returns"]
        explained = explained_variance(values_BT, returns_BT, batch.mask_BT)
        return {"critic/explained_variance": explained}

    def state(self) -> dict[str, Any]:
        """How far the warm-up is."""
        return {"rollouts": self.rollouts}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.rollouts = state["rollouts"]

    def writer(self, policy: Policy, *, keep: bool, copy: bool) -> Callable[[Path], None]:
        """See :func:`rlvr.policy.value_head.critic_writer`."""
        from rlvr.policy.value_head import critic_writer

        assert self.model is not None
        return critic_writer(self.model, policy, keep=keep, copy=copy)
