"""PRIME: an implicit process reward model that learns from the policy's own completions.

The reward model starts as the policy's model and is trained by cross-entropy on the outcomes of the
policy's completions. Before the policy's first update of a rollout one pass reads its token
rewards, which with the outcomes give the advantages of all tokens. Equations:
``rlvr/reward_models/implicit.py`` and ``rlvr/reward_models/prime.py``.

    after    rewards are read first, and both models then move in the same optimizer step
             (the paper's order; it spares the reading pass by scoring in the training pass)
    before   the reward model takes its step, rewards are read from its new weights, then the policy
    reverse  as after, by another loss: a preference for each completion over those of its group
             that came out otherwise, whose scores Q_j as they were read are constants (of the
             verl recipe):  -log sigma( (+-)(Q_i - mean_j Q_j) ), + where i is right
    none     the reward model stays as it is

Columns: ``labels`` [B] are outcomes in [0, 1]; ``prm_reference`` [B, T] the reference's
log-probabilities at temperature 1; ``process_rewards`` [B, T] the rewards of tokens;
``token_rewards`` [B, T] what a critic is to make advantages of; ``prm_rivals`` [B, 2], with
reverse, the mean score of those a completion is compared with, and its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.learner.methods.hook import Hook, Train
from rlvr.learner.settings import OptimizerSettings
from rlvr.objective.advantages.gae import token_rewards as rewards_at_the_end
from rlvr.objective.parts import Advantage
from rlvr.objective.reducers import Counts
from rlvr.policy.settings import ModelSettings
from rlvr.reward_models.calibration import brier
from rlvr.reward_models.implicit import token_rewards
from rlvr.reward_models.outcome_losses import cross_entropy
from rlvr.reward_models.prime import (
    Baseline,
    ProcessReturns,
    batch_normalised,
    centred,
    detached_preference,
    rivals,
)
from rlvr.reward_models.quality import ranking
from rlvr.reward_models.steps import steps_of_ids
from rlvr.types import Batch

if TYPE_CHECKING:
    from rlvr.learner.models import LogprobModel
    from rlvr.learner.passes import MicroBatch, Passes
    from rlvr.policy.model import Policy
    from rlvr.ranks import Ranks

PRM = "prm"
"""Of the reward model, and of its folder in a checkpoint and at the end of a run."""


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


class PrimeHook(Hook):
    """A reward model, its reference, and what its rewards are for.

    Args:
        reward_model: Gives log-probabilities.
        reference: None where the reward model has adapters: its base is the reference.
        settings: How it is trained, and when.
        advantage: The recipe's, which says what is taken off token rewards.
    """

    name = PRM

    def __init__(
        self,
        reward_model: LogprobModel,
        reference: Policy | None,
        settings: PrimeSettings,
        advantage: Advantage,
    ) -> None:
        self.reward_model, self.reference = reward_model, reference
        self.settings, self.advantage = settings, advantage
        if settings.update != "none":
            self.trains, self.model, self.optimizer = PRM, reward_model, settings
        self.joint = self.every_row = settings.update in ("after", "reverse")
        self.rewards_BT: torch.Tensor | None = None
        """Token rewards of the last rollout."""
        self._sequences = 0

    @property
    def baseline(self) -> Baseline:
        """What is taken off token rewards."""
        chosen = self.settings.returns.baseline
        if chosen != "auto":
            return chosen
        return self.advantage.prime_baseline

    def start(self, policy: Policy) -> None:
        """Sharded weights of the reward model are gathered as the policy's are."""
        if self.trains:
            self.reward_model.policy.gathered = policy.gathered

    def annotate(
        self, batch: Batch, passes: Passes, train: Train
    ) -> tuple[Batch, dict[str, float]]:
        """Have the reward model score the rollout, trained on it first if it is to be."""
        metrics: dict[str, float] = {}
        batch = batch.with_columns(prm_reference=self._reference_logprobs(batch, passes))
        if self.settings.update == "before":
            metrics = train(PRM, batch)
        batch = self._with_rewards(batch, self._logprobs(batch, passes))
        self.rewards_BT = batch.columns["process_rewards"]
        return batch, metrics | reward_metrics(batch, self.settings.beta)

    def begin_step(self, batch: Batch, rows: Sequence[int], passes: Passes) -> None:
        """The loss is a mean over the completions with tokens of the whole step."""
        self._sequences = max(1, int(batch.mask_BT.any(-1).sum()))

    def add_loss(
        self, loss: torch.Tensor, micro: MicroBatch, counts: Counts, measured: Counts
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The cross-entropy of outcomes, or with reverse the preference."""
        columns = micro.batch.columns
        logprobs_BT = micro.scatter(micro.outputs.auxiliary[PRM])
        mask_BT = micro.batch.mask_BT.to(logprobs_BT)
        rewards_BT = token_rewards(
            logprobs_BT, columns["prm_reference"], mask_BT, self.settings.beta
        )
        there_B, rewards_B = mask_BT.any(-1), rewards_BT.sum(-1)
        labels_B = columns["labels"].to(rewards_B)
        if self.settings.update == "reverse":
            loss_B = detached_preference(rewards_B, labels_B, *columns["prm_rivals"].unbind(-1))
        else:
            loss_B = cross_entropy(rewards_B, labels_B)
        share = (loss_B * there_B).sum() / self._sequences
        signs_B = rewards_B.detach().sign() * torch.where(labels_B > 0.5, 1.0, -1.0)
        right = float(((1 + signs_B) / 2 * there_B).sum()) / self._sequences
        return loss + share, {"prm/loss": float(share.detach()), "prm/accuracy_before": right}

    def writer(self, policy: Policy, *, keep: bool, copy: bool) -> Callable[[Path], None]:
        """A folder like the policy's, where the reward model is trained."""
        from rlvr.policy.saving import policy_writer

        if not self.trains:
            return super().writer(policy, keep=keep, copy=copy)
        write = policy_writer(self.reward_model.policy, keep=keep, copy=copy)
        return lambda folder: write(folder / PRM)

    def export(self, tokenizer: Any, folder: Path, ranks: Ranks) -> None:  # noqa: ANN401
        """Write a trained reward model as ``folder/prm``, whole or not at all."""
        from rlvr.rollout.weight_sync import export_model

        if self.trains:
            export_model(self.reward_model.policy, tokenizer, folder / PRM, ranks)

    def describe(
        self,
        rows: Sequence[dict[str, Any]],
        completion_ids: Sequence[Sequence[int]],
        tokenizer: Any,  # noqa: ANN401
    ) -> None:
        """What each token was given, and where steps end."""
        assert self.rewards_BT is not None
        known = zip(rows, completion_ids, self.rewards_BT.tolist(), strict=False)
        for row, ids, rewards_T in known:
            row["token_rewards"] = [round(reward, 5) for reward in rewards_T[: len(ids)]]
            row["step_ends"] = steps_of_ids(tokenizer, ids, self.settings.steps)

    def _logprobs(self, batch: Batch, passes: Passes) -> torch.Tensor:
        if self.trains:
            return passes.logprobs(batch, of=PRM)
        return passes.logprobs(batch, self.reward_model.policy, temperature=1.0)

    def _reference_logprobs(self, batch: Batch, passes: Passes) -> torch.Tensor:
        if self.reference is not None:
            return passes.logprobs(batch, self.reference, temperature=1.0)
        with self.reward_model.policy.reference():
            return self._logprobs(batch, passes)

    def _with_rewards(self, batch: Batch, logprobs_BT: torch.Tensor) -> Batch:
        """Add token rewards, and what the policy is trained on, from the model's log-probabilities.

        With a critic these are rewards of single tokens, else advantages.
        """
        returns, mask_BT, index_B = self.settings.returns, batch.mask_BT, batch.group_index_B
        reference_BT = batch.columns["prm_reference"]
        rewards_BT = token_rewards(logprobs_BT, reference_BT, mask_BT, self.settings.beta)
        rewards_BT = rewards_BT.to(mask_BT)
        batch = batch.with_columns(process_rewards=rewards_BT)
        if self.settings.update == "reverse":
            batch = batch.with_columns(prm_rivals=self._rivals(batch))
        if self.advantage.needs_critic:
            normalised = returns.batch_norm
            process_BT = batch_normalised(rewards_BT, mask_BT) if normalised else rewards_BT
            process_BT = centred(process_BT, mask_BT, index_B, self.baseline, returns.form)
            outcome_BT = rewards_at_the_end(batch.rewards_B.to(mask_BT), mask_BT)
            total_BT = returns.process_coefficient * process_BT
            total_BT = total_BT + returns.outcome_coefficient * outcome_BT
            return batch.with_columns(token_rewards=total_BT)
        advantages_BT = returns.advantages(
            rewards_BT, batch.advantages_BT, mask_BT, index_B, self.baseline
        )
        return replace(batch, advantages_BT=advantages_BT)

    def _rivals(self, batch: Batch) -> torch.Tensor:
        scores_B = batch.columns["process_rewards"].sum(-1)
        there_B, labels_B = batch.mask_BT.any(-1), batch.columns["labels"]
        weigh = self.settings.best_of_n_weights
        return rivals(scores_B, labels_B, batch.group_index_B, there_B, weigh=weigh)


def build_prime(
    settings: PrimeSettings,
    advantage: Advantage,
    policy: Policy,
    policy_settings: ModelSettings,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
) -> PrimeHook:
    """The reward model as the settings say, from a checkpoint if there is one.

    Raises:
        ValueError: There is no such model, or it has another vocabulary than the policy.
    """
    from rlvr.learner.models import LogprobModel
    from rlvr.policy.loading import load_policy
    from rlvr.policy.vocabulary import check_same_vocabulary

    chosen, trained = settings.model or policy_settings, settings.update != "none"
    saved = checkpoint / PRM if checkpoint is not None and trained else None
    if saved is not None and not saved.is_dir():  # a branch adds what its parent had not
        saved = None
    model = load_policy(chosen, saved=saved, device=device, trained=trained)
    check_same_vocabulary(policy, model, chosen)
    base, reference = settings.reference or policy_settings, None
    if not model.has_adapters or base.path != chosen.path:  # else its own base serves
        whole = base.model_copy(update={"lora": None})
        reference = load_policy(whole, trained=False)
        check_same_vocabulary(policy, reference, base)
    return PrimeHook(LogprobModel(model), reference, settings, advantage)


def reward_metrics(batch: Batch, beta: float) -> dict[str, float]:
    """How well the rewards that the policy got agree with outcomes, and how far they have drifted.

    Over completions with tokens. A rank measure is left out where no pair of right and wrong
    completions exists.
    """
    process_rewards_BT, outcomes_B = batch.columns["process_rewards"], batch.columns["labels"]
    there_B = batch.mask_BT.any(-1)
    if not bool(there_B.any()):
        return {}
    rewards_B = process_rewards_BT.sum(-1)[there_B]
    labels_B, groups_B = outcomes_B[there_B], batch.group_index_B[there_B]
    right_B = labels_B > 0.5
    measured = ranking(rewards_B.tolist(), right_B.tolist(), groups_B.tolist())
    tokens = process_rewards_BT[batch.mask_BT > 0].double() / beta
    metrics = {
        "prm/accuracy": measured.accuracy,
        "prm/brier": brier(rewards_B.double().sigmoid(), labels_B.double()),
        "prm/reward_mean": float(rewards_B.double().mean()),
        "prm/drift": float(tokens.abs().mean()),
        "prm/log_ratio": float(tokens.mean()),
    }
    ranks = {
        "auc": measured.auc,
        "auc_within": measured.auc_within,
        "pair_accuracy": measured.pairs,
    }
    metrics |= {f"prm/{name}": value for name, value in ranks.items() if value is not None}
    for name, rows in (("right", right_B), ("wrong", ~right_B)):
        if bool(rows.any()):
            metrics[f"prm/reward_{name}"] = float(rewards_B[rows].double().mean())
    return metrics
