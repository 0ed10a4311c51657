"""PRIME's reward model beside the policy: its settings, and its part in a rollout's updates.

The reward model starts as the policy's model and is trained by cross-entropy on the outcomes of the
policy's own completions. Before the policy's first update of a rollout one pass reads its token
rewards, which with the outcomes give the advantages of all tokens. Equations:
``rlvr/prm/reward.py`` and ``rlvr/prm/prime.py``.

    after    rewards are read first, and both models then move in the same optimizer step
             (the paper's order; it spares the reading pass by scoring in the training pass)
    before   the reward model takes its step, rewards are read from its new weights, then the policy
    reverse  as after, by another loss: a preference for each completion over those of its group
             that came out otherwise, whose scores Q_j as they were read are constants (of the
             verl recipe):  -log sigma( (+-)(Q_i - mean_j Q_j) ), + where i is right
    none     the reward model stays as it is
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from rlvr.learner.settings import OptimizerSettings
from rlvr.objective import Advantage, Gae
from rlvr.objective import token_rewards as rewards_at_the_end
from rlvr.policy import ModelInputs, ModelSettings, Policy
from rlvr.prm import (
    Baseline,
    ProcessReturns,
    batch_normalised,
    centred,
    detached_preference,
    ranking,
    rivals,
    token_rewards,
)
from rlvr.rm import brier, cross_entropy
from rlvr.types import Batch

PRM = "prm"


class PrimeSettings(OptimizerSettings):
    """PRIME: an implicit process reward model, trained with the policy (arXiv:2502.01456)."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    max_grad_norm: float | None = Field(10.0, gt=0)
    """Gradients are scaled down to this norm; null leaves them."""
    model: ModelSettings | None = None
    """Where the reward model starts, such as the model of a run with ``task: prm``; it must share
    the policy's tokenizer. null starts from the policy's own model, and all rewards from 0."""
    reference: ModelSettings | None = None
    """Its frozen reference; null is the policy's own model as it is before training."""
    beta: float = Field(0.05, gt=0)
    """Scale of the reward: beta x log-ratio of the reward model to its reference."""
    update: Literal["after", "before", "reverse", "none"] = "after"
    """When the reward model learns: after its rewards were read, before, or not at all. reverse is
    after, and prefers right to wrong completions of a group instead of judging each."""
    best_of_n_weights: bool = False
    """With reverse: weigh a completion by K P(score <= its own)^(K-1), as the best of K draws of
    its group would be distributed, so that the highest scores count most."""
    returns: ProcessReturns = ProcessReturns()
    """How token rewards become advantages."""
    steps: str = "blank_lines"
    """Where the steps of kept completions end, for the report alone: blank_lines, numbered, lines,
    or a pattern at whose matches steps begin."""


class RewardModel(nn.Module):
    """A language model that gives the log-probabilities of completion tokens, at temperature 1.

    Args:
        policy: The language model; hand over one of its own.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: ModelInputs) -> torch.Tensor:
        """Log-probabilities [N] of ``inputs.targets_N``, in at least float32."""
        logprobs_N: torch.Tensor = self.policy(inputs).logprobs_N
        return logprobs_N


@dataclass(frozen=True)
class PrimeTraining:
    """A reward model, its reference, and what its rewards are for.

    ``reference`` is None where the model has adapters: its base is the reference.
    """

    model: RewardModel
    reference: Policy | None
    settings: PrimeSettings
    advantage: Advantage

    @property
    def trained(self) -> bool:
        """Whether the reward model learns at all."""
        return self.settings.update != "none"

    @property
    def joint(self) -> bool:
        """Whether it takes its steps together with the policy."""
        return self.settings.update in ("after", "reverse")

    @property
    def baseline(self) -> Baseline:
        """What is taken off token rewards."""
        chosen = self.settings.returns.baseline
        if chosen != "auto":
            return chosen
        by_advantage: dict[str, Baseline] = {"rloo": "leave_one_out", "group": "group"}
        return by_advantage.get(self.advantage.name, "none")

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The model as its own reference."""
        with self.model.policy.reference():
            yield

    def with_rewards(self, batch: Batch, logprobs_BT: torch.Tensor) -> Batch:
        """Add token rewards, and what the policy is trained on, from the model's log-probabilities.

        With a critic these are rewards of single tokens, else advantages.
        """
        settings, mask_BT = self.settings.returns, batch.mask_BT
        rewards_BT = token_rewards(
            logprobs_BT, batch.prm_reference_BT, mask_BT, self.settings.beta
        ).to(mask_BT)
        batch = replace(batch, process_rewards_BT=rewards_BT)
        if self.settings.update == "reverse":
            batch = replace(batch, prm_rivals_B2=self._rivals(batch))
        if isinstance(self.advantage, Gae):
            process_BT = (
                batch_normalised(rewards_BT, mask_BT) if settings.batch_norm else rewards_BT
            )
            process_BT = centred(
                process_BT, mask_BT, batch.group_index_B, self.baseline, settings.form
            )
            outcome_BT = rewards_at_the_end(batch.rewards_B.to(mask_BT), mask_BT)
            total_BT = settings.process_coefficient * process_BT
            total_BT = total_BT + settings.outcome_coefficient * outcome_BT
            return replace(batch, token_rewards_BT=total_BT)
        advantages_BT = settings.advantages(
            rewards_BT, batch.advantages_BT, mask_BT, batch.group_index_B, self.baseline
        )
        return replace(batch, advantages_BT=advantages_BT)

    def loss(
        self, logprobs_N: torch.Tensor, inputs: ModelInputs, columns: Batch, sequences: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """A micro-batch's share of the step's cross-entropy, and of its metrics.

        Args:
            logprobs_N: Under the reward model.
            inputs: The micro-batch.
            columns: Its rows of the batch.
            sequences: Completions with tokens in the whole step; the loss is a mean over them.
        """
        logprobs_BT = inputs.scatter(logprobs_N, columns.mask_BT.shape[1])
        assert columns.labels_B is not None
        mask_BT = columns.mask_BT.to(logprobs_BT)
        rewards_BT = token_rewards(
            logprobs_BT, columns.prm_reference_BT, mask_BT, self.settings.beta
        )
        there_B = mask_BT.any(-1)
        rewards_B = rewards_BT.sum(-1)
        labels_B = columns.labels_B.to(rewards_B)
        if columns.prm_rivals_B2 is None:
            loss_B = cross_entropy(rewards_B, labels_B)
        else:
            loss_B = detached_preference(rewards_B, labels_B, *columns.prm_rivals_B2.unbind(-1))
        loss = (loss_B * there_B).sum() / max(1, sequences)
        signs_B = rewards_B.detach().sign() * torch.where(labels_B > 0.5, 1.0, -1.0)
        right = float(((1 + signs_B) / 2 * there_B).sum()) / max(1, sequences)
        return loss, {"prm/loss": float(loss.detach()), "prm/accuracy_before": right}

    def _rivals(self, batch: Batch) -> torch.Tensor:
        """Of each completion, [B, 2]: the mean score of those it is compared with, its weight."""
        assert batch.process_rewards_BT is not None
        assert batch.labels_B is not None
        scores_B = batch.process_rewards_BT.sum(-1)
        there_B = batch.mask_BT.any(-1)
        weigh = self.settings.best_of_n_weights
        return rivals(scores_B, batch.labels_B, batch.group_index_B, there_B, weigh=weigh)


def reward_metrics(batch: Batch, beta: float) -> dict[str, float]:
    """How well the rewards that the policy got agree with outcomes, and how far they have drifted.

    Over completions with tokens. A rank measure is left out where no pair of right and wrong
    completions exists.
    """
    assert batch.process_rewards_BT is not None
    assert batch.labels_B is not None
    there_B = batch.mask_BT.any(-1)
    if not bool(there_B.any()):
        return {}
    rewards_B = batch.process_rewards_BT.sum(-1)[there_B]
    labels_B, groups_B = batch.labels_B[there_B], batch.group_index_B[there_B]
    right_B = labels_B > 0.5
    found = ranking(rewards_B.tolist(), right_B.tolist(), groups_B.tolist())
    tokens = batch.process_rewards_BT[batch.mask_BT > 0].double() / beta
    metrics = {
        "prm/accuracy": found.accuracy,
        "prm/brier": brier(rewards_B.double().sigmoid(), labels_B.double()),
        "prm/reward_mean": float(rewards_B.double().mean()),
        "prm/drift": float(tokens.abs().mean()),
        "prm/log_ratio": float(tokens.mean()),
    }
    ranks = {"auc": found.auc, "auc_within": found.auc_within, "pair_accuracy": found.pairs}
    metrics |= {f"prm/{name}": value for name, value in ranks.items() if value is not None}
    for name, rows in (("right", right_B), ("wrong", ~right_B)):
        if bool(rows.any()):
            metrics[f"prm/reward_{name}"] = float(rewards_B[rows].double().mean())
    return metrics
