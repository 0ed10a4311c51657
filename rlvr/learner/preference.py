"""The update from preferences: pairs (or labelled completions) in, new weights out.

A step's items are split into micro-batches by a token budget, both sides of a pair together, and
these are dealt to the ranks of the job. The loss of the step is the mean over its items, taken from
counts over the whole step, so the gradient does not depend on the split.

A loss that compares the pairs of a step with each other (AOT) first takes all log-probabilities
without gradient, then the gradient of the step's loss with respect to these few numbers, and hands
each micro-batch its part: the same gradient, for one more forward pass.

Log-probabilities of completions are sums over their tokens, after the prompt, at temperature 1.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch

from rlvr.learner.budget import Budget
from rlvr.learner.deal import Rows
from rlvr.learner.launch import Launch, build_engine
from rlvr.learner.layout import packs
from rlvr.learner.micro_batches import MicroBatches
from rlvr.learner.models import POLICY, Models
from rlvr.learner.preference_batch import PreferenceBatch
from rlvr.learner.preference_passes import PreferencePasses
from rlvr.learner.settings import LearnerSettings
from rlvr.policy import Policy
from rlvr.preference.losses import (
    Labelled,
    PairLoss,
    Pairs,
    PreferenceLoss,
    Side,
    UnpairedLoss,
    WeightedUnpaired,
    baseline_of,
    mixed_loss,
)
from rlvr.prm import StepLoss
from rlvr.ranks import Ranks


@dataclass(frozen=True, slots=True)
class StepConstants:
    """What a micro-batch must know of the step that it is part of."""

    items: int
    tokens_per_item: float
    prompt_tokens_per_item: float
    baseline: float = 0.0
    weights_B: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class _StepGradient:
    """The step's losses, and their gradient with respect to all its log-probabilities."""

    gradient_BKS: torch.Tensor
    loss_B: torch.Tensor


class PreferenceLearner:
    """Turns preferences into updates of a policy; with several ranks every call is collective.

    Args:
        policy: The model to train.
        losses: A mixture, all over pairs or all over labelled completions.
        settings: Optimizer and batching.
        total_updates: Length of the learning-rate schedule.
        reference: Opens the frozen reference as a policy, where log-probabilities under it are
            taken as training goes (the policy itself with its adapters off, or another model).
        ld_alpha: Weight of tokens beyond the shorter side's length (LD-DPO); None is 1.
        weighting: Weigh pairs by how probable the policy finds them (WPO).
        launch: The processes of the job and what holds the parameters; None is this process alone.

    Raises:
        ValueError: Packing is asked for, and does not give this model's numbers.
    """

    def __init__(
        self,
        policy: Policy,
        losses: Sequence[PreferenceLoss],
        settings: LearnerSettings,
        *,
        total_updates: int = 1,
        reference: Callable[[], AbstractContextManager[Policy]] | None = None,
        ld_alpha: float | None = None,
        weighting: bool = False,
        launch: Launch | None = None,
    ) -> None:
        self.policy, self.losses, self.settings = policy, tuple(losses), settings
        self.total_updates, self.reference, self.weighting = total_updates, reference, weighting
        self.updates = self.skipped_updates = 0
        self.needs_reference = any(loss.needs_reference for loss in losses)
        self.needs_prompt = any(loss.needs_prompt for loss in losses)
        packed = packs(policy, settings)  # tried before the engine takes the parameters apart
        launch = launch or Launch(Ranks())
        self.ranks = launch.ranks
        self.engine = build_engine(Models(policy), {POLICY: settings}, launch)
        self.budget = Budget(settings.tokens_per_micro_batch, self.engine, self.ranks)
        self.passes = PreferencePasses(
            policy,
            self.engine,
            settings,
            self.ranks,
            micro_batches=MicroBatches(self.engine, self.ranks, self.budget, packed=packed),
            prompt=self.needs_prompt,
            ld_alpha=ld_alpha,
        )

    def update(self, batch: PreferenceBatch) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        started = time.perf_counter()
        batch, step = self._prepared(batch)
        prepared = time.perf_counter()
        self.policy.train()
        numbers = self._gather_gradient(batch, step)
        metrics = self._metrics(numbers, batch, step) | self._step_weights()
        metrics |= self.passes.figures(batch)
        metrics["learner/out_of_memory"] = self.budget.retries
        metrics["time/statistics"] = prepared - started
        metrics["time/update"] = time.perf_counter() - prepared
        return metrics

    def measure(self, batch: PreferenceBatch) -> dict[str, float]:
        """The step's metrics without a step, as if ``batch`` were one."""
        batch, step = self._prepared(batch)
        loss_B, numbers = self._losses(batch, step, self.passes.sums(batch))
        return self._metrics(numbers | {"loss": loss_B}, batch, step)

    def item_losses(self, batch: PreferenceBatch) -> list[float]:
        """The loss of every item under the policy as it is, without gradient; collective."""
        batch, step = self._prepared(batch)
        loss_B, _ = self._losses(batch, step, self.passes.sums(batch))
        found: list[float] = loss_B.tolist()
        return found

    def reference_sums(
        self,
        batch: PreferenceBatch,
        model: Policy,
        progress: Callable[[int], None] = lambda done: None,
    ) -> torch.Tensor:
        """Log-probabilities [B, K] of completions under a reference, as the losses take them."""
        return self.passes.sums(batch, model, progress)[:, : batch.kinds, 0]

    @property
    def _whole_step(self) -> bool:
        return any(loss.whole_step for loss in self.losses)

    @property
    def _uses_baseline(self) -> bool:
        return any(isinstance(x, WeightedUnpaired) and x.uses_baseline for x in self.losses)

    def _prepared(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, StepConstants]:
        """Add reference log-probabilities where they are taken live, and the step's constants."""
        if self.needs_reference and batch.reference_BK is None:
            with self._opened_reference() as reference:
                batch = replace(batch, reference_BK=self.reference_sums(batch, reference))
        prompt = sum(len(ids) - 1 for ids in batch.prompt_ids) / len(batch)
        return batch, StepConstants(
            len(batch),
            float(batch.lengths_BK[:, 0].double().mean()),
            prompt,
            self._baseline(batch) if self._uses_baseline else 0.0,
            self.passes.weights(batch) if self.weighting else None,
        )

    def _opened_reference(self) -> AbstractContextManager[Policy]:
        assert self.reference is not None, "this loss needs reference log-probabilities"
        return self.reference()

    def _baseline(self, batch: PreferenceBatch) -> float:
        """KTO's z0, from every prompt with the completion of the item before it."""
        rotated = batch.completion_ids[-1:] + batch.completion_ids[:-1]
        mismatched = PreferenceBatch(batch.prompt_ids, rotated)
        own = self.passes.sums(mismatched)[..., 0, 0]
        with self._opened_reference() as reference:
            theirs = self.passes.sums(mismatched, reference)[..., 0, 0]
        return baseline_of(own - theirs)

    def _gather_gradient(
        self, batch: PreferenceBatch, step: StepConstants
    ) -> dict[str, torch.Tensor]:
        """Run the step's micro-batches; numbers [B] of all items to log, in no certain order.

        Raises:
            ValueError: Memory runs out, and again with half the budget.
        """
        whole = self._step_gradient(batch, step) if self._whole_step else None
        own = self.budget.attempt(lambda: self._run_micro_batches(batch, step, whole))
        shares = self.ranks.gather({name: values.tolist() for name, values in own.items()})
        found: dict[str, torch.Tensor] = {}
        for share in filter(None, shares):
            found = _joined(found, {name: torch.tensor(v).double() for name, v in share.items()})
        return found if whole is None else found | {"loss": whole.loss_B}

    def _run_micro_batches(
        self, batch: PreferenceBatch, step: StepConstants, whole: "_StepGradient | None"
    ) -> dict[str, torch.Tensor]:
        """This rank's share of the gradient, added up in the engine, and its items' numbers."""
        own: dict[str, torch.Tensor] = {}
        for items, sums_BKS, last in self.passes.run(batch):
            if not items:
                loss = 0.0 * sums_BKS.sum()
            else:
                loss, numbers = self._micro_loss(batch, step, items, sums_BKS)
                own = _joined(own, numbers)
            if items and whole is not None:
                loss = (whole.gradient_BKS[list(items)].to(sums_BKS) * sums_BKS).sum()
            self.engine.backward(loss, last=last)
        return own

    def _step_gradient(self, batch: PreferenceBatch, step: StepConstants) -> "_StepGradient":
        leaf = self.passes.sums(batch).requires_grad_()
        loss_B, _ = self._losses(batch, step, leaf)
        gradient_BKS = torch.autograd.grad(loss_B.sum() / step.items, leaf)[0]
        return _StepGradient(gradient_BKS, loss_B.detach())

    def _micro_loss(
        self,
        batch: PreferenceBatch,
        step: StepConstants,
        items: Rows,
        sums_BKS: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The micro-batch's share of the step's loss, and per-item numbers to log."""
        weights_B = None if step.weights_B is None else step.weights_B[list(items)]
        own = replace(step, weights_B=weights_B)
        loss_B, measured = self._losses(batch.select(items), own, sums_BKS)
        return loss_B.sum() / step.items, measured | {"loss": loss_B.detach()}

    def _losses(
        self, batch: PreferenceBatch, step: StepConstants, sums_BKS: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if batch.step_labels_BK is not None:
            return self._step_losses(batch, sums_BKS)
        if batch.desirable_B is not None:
            return self._labelled_losses(batch, step, sums_BKS)
        pairs = self._pairs(batch, step, sums_BKS)
        weights_B = None if step.weights_B is None else step.weights_B.to(sums_BKS)
        losses = [loss for loss in self.losses if isinstance(loss, PairLoss)]
        return mixed_loss(losses, pairs, weights_B), _pair_numbers(pairs)

    def _labelled_losses(
        self, batch: PreferenceBatch, step: StepConstants, sums_BKS: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert batch.desirable_B is not None
        assert batch.reference_BK is not None
        reference_B = batch.reference_BK[:, 0].to(sums_BKS)
        desirable_B = batch.desirable_B.to(sums_BKS.device)
        labelled = Labelled(sums_BKS[:, 0, 0], reference_B, desirable_B, step.baseline)
        losses = [loss for loss in self.losses if isinstance(loss, UnpairedLoss)]
        loss_B = torch.stack([loss.weight * loss(labelled) for loss in losses]).sum(0)
        return loss_B, {
            "desirable": desirable_B.to(sums_BKS.dtype),
            "log_ratio": labelled.log_ratio_B.detach(),
            "logps": sums_BKS[:, 0, 0].detach(),
        }

    def _step_losses(
        self, batch: PreferenceBatch, sums_BKS: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert batch.step_labels_BK is not None
        assert batch.reference_BK is not None
        labels_BK = batch.step_labels_BK.to(sums_BKS)
        log_ratio_BK = sums_BKS[..., 0] - batch.reference_BK.to(sums_BKS)
        losses = [loss for loss in self.losses if isinstance(loss, StepLoss)]
        loss_B = torch.stack([x.weight * x(log_ratio_BK, labels_BK) for x in losses]).sum(0)
        judged_BK = ~labels_BK.isnan()
        agrees_BK = ((log_ratio_BK > 0) == (labels_BK > 0.5)) & judged_BK
        return loss_B, {
            "step_accuracy": (agrees_BK.sum(-1) / judged_BK.sum(-1).clamp_min(1)).detach(),
            "log_ratio": log_ratio_BK.sum(-1).detach(),
        }

    def _pairs(self, batch: PreferenceBatch, step: StepConstants, sums_BKS: torch.Tensor) -> Pairs:
        lengths_BK = batch.lengths_BK.to(sums_BKS)

        def side(k: int) -> Side:
            reference, scores = (
                None if column is None else column[:, k].to(sums_BKS)
                for column in (batch.reference_BK, batch.scores_BK)
            )
            return Side(sums_BKS[:, k, 0], lengths_BK[:, k], reference, sums_BKS[:, k, 1], scores)

        return Pairs(
            side(0),
            side(1),
            tokens_per_pair=step.tokens_per_item,
            prompt_logps_B=sums_BKS[:, 2, 1] if self.needs_prompt else None,
            prompt_tokens_per_pair=step.prompt_tokens_per_item,
        )

    def _step_weights(self) -> dict[str, float]:
        fraction = self.settings.schedule.fraction(self.updates, self.total_updates)
        result = self.engine.step(fraction)
        self.updates += 1
        self.skipped_updates += result.skipped
        return {
            "learner/lr": self.settings.lr * fraction,
            "learner/grad_norm": result.grad_norms[POLICY],
            "learner/changed": result.changed[POLICY],
            "learner/changed_compute": result.changed_compute[POLICY],
            "learner/updates": self.updates,
            "learner/skipped_updates": self.skipped_updates,
        }

    def _metrics(
        self, per_item: dict[str, torch.Tensor], batch: PreferenceBatch, step: StepConstants
    ) -> dict[str, float]:
        """Means over the step's items; see docs/metrics.md."""
        found = {name: value.double().cpu() for name, value in per_item.items()}
        metrics = {"preference/loss": float(found.pop("loss").mean())}
        if batch.desirable_B is None:
            return metrics | {f"preference/{name}": float(v.mean()) for name, v in found.items()}
        good = found["desirable"].bool()
        for name, rows in (("desirable", good), ("undesirable", ~good)):
            if bool(rows.any()):
                metrics[f"preference/{name}_log_ratio"] = float(found["log_ratio"][rows].mean())
                metrics[f"preference/{name}_logps"] = float(found["logps"][rows].mean())
        metrics["preference/kl_baseline"] = step.baseline
        return metrics


def _pair_numbers(pairs: Pairs) -> dict[str, torch.Tensor]:
    chosen, rejected = pairs.chosen, pairs.rejected
    with_reference = chosen.reference_logps_B is not None
    margin_B = (pairs.log_ratio_margin_B if with_reference else pairs.margin_B).detach()
    found = {
        "chosen_logps": chosen.whole_logps_B.detach(),
        "rejected_logps": rejected.whole_logps_B.detach(),
        "margin": margin_B,
        "reward_accuracy": (margin_B > 0).to(margin_B.dtype),
    }
    if with_reference:
        found["chosen_log_ratio"] = chosen.log_ratio_B.detach()
        found["rejected_log_ratio"] = rejected.log_ratio_B.detach()
    return found


def _joined(
    total: dict[str, torch.Tensor], share: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    if not total:
        return dict(share)
    return {name: torch.cat([value, share[name]]) for name, value in total.items()}


@contextmanager
def adapters_off(policy: Policy) -> Iterator[Policy]:
    """A policy with adapters as its own frozen reference."""
    with policy.reference():
        yield policy
