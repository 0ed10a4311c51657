"""The update: a batch of rollouts in, new weights out.

One rollout is split by prompts into ``updates_per_rollout`` optimizer steps; each step is split
into micro-batches by a token budget, and these are shared out to the ranks of the job. Every rank
holds the whole batch (token ids and a few columns are small), so counts, plans and skipped rows are
the same everywhere without a word, and the gradient is the same however the step is split.

What is here is GRPO's update. Methods that add models, losses or columns are hooks
(``rlvr/learner/methods/hook.py``).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from rlvr.learner.bad_updates import BadUpdates
from rlvr.learner.budget import Budget
from rlvr.learner.launch import Launch, build_store, place_frozen
from rlvr.learner.layout import packs
from rlvr.learner.methods.hook import Hook
from rlvr.learner.micro_batches import MicroBatches
from rlvr.learner.models import Models
from rlvr.learner.old_policy import OldPolicy
from rlvr.learner.parameter_store import StepResult, in_backward_metrics
from rlvr.learner.passes import MicroBatch, Passes, rows_of
from rlvr.learner.settings import POLICY, LearnerSettings, OptimizerSettings
from rlvr.learner.step_loss import Share, StepLoss, merged_shares, with_share
from rlvr.objective.objective import Objective
from rlvr.policy.model import Policy
from rlvr.ranks import Ranks
from rlvr.types import Batch


class Learner:
    """Turns batches into updates of a policy; with several ranks every call is collective.

    Args:
        policy: The model to train.
        objective: The loss.
        settings: Optimizer and batching.
        temperature: The sampling temperature; log-probabilities are taken under it.
        total_updates: Length of the learning-rate schedule.
        reference: Frozen model for a KL term; None where the policy's base (adapters off) serves,
            or no term needs one.
        launch: The processes of the job and what holds the parameters; None is this process alone.
        hooks: What rides along.
        stale: Whether rollouts may come from older weights than the updates start from.
        seed: Of the run, for what is rounded at random.

    Raises:
        ValueError: Packing is asked for, and does not give this model's numbers.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        settings: LearnerSettings,
        *,
        temperature: float = 1.0,
        total_updates: int = 1,
        reference: Policy | None = None,
        launch: Launch | None = None,
        hooks: Sequence[Hook] = (),
        stale: bool = False,
        seed: int = 0,
    ) -> None:
        self.policy, self.objective, self.settings = policy, objective, settings
        self.total_updates, self.reference, self.hooks = total_updates, reference, hooks
        self.stale = stale
        self.updates, self.bad_updates = 0, BadUpdates(settings.max_bad_updates)
        self.held_updates = 0  # of those, in which the policy took no step
        self.advantages_BT: torch.Tensor | None = None
        """Of the last rollout, as its updates used them."""
        # Tried before the store takes the parameters apart.
        packed = packs(policy, settings)
        launch = launch or Launch(Ranks())
        launch = launch.whole() if settings.exact else launch
        self.ranks = launch.ranks
        models = {h.trains: h.model for h in hooks if h.trains is not None and h.model is not None}
        rates: dict[str, OptimizerSettings] = {POLICY: settings}
        rates |= {h.trains: h.optimizer for h in hooks if h.trains in models and h.optimizer}
        self.store = build_store(
            Models(policy, models),
            rates,
            launch,
            seed=seed,
            in_backward=settings.in_backward,
            exact=settings.exact,
        )
        if reference is not None:
            place_frozen(reference, launch)
        self.budget = Budget(settings.tokens_per_micro_batch, self.store, self.ranks)
        self.micro_batches = MicroBatches(
            self.store, self.ranks, self.budget, packed=packed, exact=settings.exact
        )
        self.passes = Passes(self.store, self.micro_batches, temperature, settings.logits_chunk)
        self.logprobs = self.passes.logprobs
        self.stepping = frozenset({POLICY, *(h.trains for h in hooks if h.trains and h.joint)})
        """Names of the models that take the policy's optimizer steps."""
        for hook in hooks:
            hook.start(policy)

    def update(self, batch: Batch) -> dict[str, float]:
        """Train on one rollout; returns the metrics of its (last) optimizer step."""
        started = time.perf_counter()
        batch, annotated = self.annotate(batch)
        batch = self.with_statistics(batch)
        self.advantages_BT = batch.advantages_BT
        statistics_seconds = time.perf_counter() - started
        metrics: dict[str, float] = {}
        for step in self._steps(batch):
            metrics = self._policy_step(step)
        metrics |= annotated
        for hook in self.hooks:
            metrics |= hook.end_rollout(batch)
        metrics["learner/updates"] = self.updates
        metrics["learner/skipped_updates"] = self.bad_updates.skipped
        metrics["learner/out_of_memory"] = self.budget.retries
        metrics["time/statistics"] = statistics_seconds
        metrics["time/update"] = time.perf_counter() - started - statistics_seconds
        return metrics

    def annotate(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Let every hook add what it adds to a rollout before anything else, and metrics."""
        metrics: dict[str, float] = {}
        for hook in self.hooks:
            batch, added = hook.annotate(batch, self.passes, self._train_alone)
            metrics |= added
        return batch, metrics

    def with_statistics(self, batch: Batch) -> Batch:
        """Add the old and reference log-probabilities, and what else the updates will need."""
        needed = self.objective.needs_reference or any(h.needs_reference for h in self.hooks)
        if needed and batch.reference_logprobs_BT is None:
            adapters_off = self.policy.reference() if self.reference is None else nullcontext()
            with adapters_off:
                values_BT = self.logprobs(batch, self.reference)
            batch = replace(batch, reference_logprobs_BT=values_BT)
        old = OldPolicy(
            batch,
            self.objective,
            self.hooks,
            moves=self.settings.updates_per_rollout > 1,
            against_learner=self.settings.old_logprobs_from == "learner",
        )
        if old.needed:
            batch = old.gather(self.passes)
        for hook in self.hooks:
            batch = hook.with_old(batch)
        return batch

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on, besides weights and moments; JSON values."""
        hooks = {hook.name: hook.state() for hook in self.hooks}
        held = {"held_updates": self.held_updates}
        return {"objective": self.objective.state(), "hooks": hooks, **held}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.objective.load_state(state["objective"])
        self.held_updates = state.get("held_updates", 0)
        for hook in self.hooks:
            hook.load_state(state["hooks"][hook.name])

    def branch_from(self, state: dict[str, Any], updates_per_rollout: int) -> None:
        """Begin where another run stood; its methods and number of updates may be others.

        Args:
            state: What :meth:`state` gave there.
            updates_per_rollout: Optimizer steps that a rollout was split into there.
        """
        hooks = {hook.name: state["hooks"].get(hook.name, hook.state()) for hook in self.hooks}
        self.load_state({**state, "hooks": hooks})
        # The schedule goes by the share of the run's updates that were taken.
        ratio = self.settings.updates_per_rollout / updates_per_rollout
        self.updates = round(self.updates * ratio)
        self.held_updates = round(self.held_updates * ratio)

    def _steps(self, batch: Batch) -> Iterator[Batch]:
        """A rollout's optimizer steps: whole groups, in order, spread as evenly as they divide."""
        groups = batch.group_index_B.unique_consecutive().tolist()
        parts = min(self.settings.updates_per_rollout, len(groups))
        for part in range(parts):
            chosen = set(groups[len(groups) * part // parts : len(groups) * (part + 1) // parts])
            rows = [row for row, g in enumerate(batch.group_index_B.tolist()) if g in chosen]
            yield batch.select(rows)

    def _policy_step(self, batch: Batch) -> dict[str, float]:
        """An optimizer step of the policy, and of the models that step with it."""
        rows = self.rows_to_run(batch)
        fractions = self._fractions()
        self.store.begin(fractions, self._all_or(self.stepping - self.held))
        metrics = self._gather_gradient(batch, rows, self.stepping) if rows else {}
        held = POLICY in self.held
        if not held:
            metrics = self.objective.finish(metrics)
        metrics["learner/lr"] = 0.0 if held else self.settings.lr * fractions[POLICY]
        if rows:  # else there is no gradient at all
            for hook in self._acting(self.stepping):
                metrics |= hook.end_step(self.ranks)
            result = self._step(fractions, self.stepping - self.held)
            metrics["learner/grad_norm"] = result.grad_norms[POLICY]
            metrics |= in_backward_metrics(self.settings, result)
            metrics["learner/changed"] = result.changed[POLICY]
            metrics["learner/changed_compute"] = result.changed_compute[POLICY]
            metrics |= result.metrics(self.stepping - {POLICY})
        self.updates += 1
        self.held_updates += held
        metrics["learner/rows_run"] = len(rows) / len(batch)
        return metrics | self.micro_batches.figures(rows_of(batch), rows)

    def _train_alone(self, model: str, batch: Batch) -> dict[str, float]:
        """Take a rollout's optimizer steps with one auxiliary model; the last one's metrics."""
        metrics: dict[str, float] = {}
        for step in self._steps(batch):
            metrics = self.auxiliary_step(model, step)
        return metrics

    def auxiliary_step(self, model: str, batch: Batch) -> dict[str, float]:
        """An optimizer step of one auxiliary model alone."""
        rows, only = batch.rows_with_tokens, frozenset({model})
        if not rows:
            return {}
        self.store.begin(self._fractions(), self._all_or(only))
        metrics = self._gather_gradient(batch, rows, only)
        return metrics | self._step(self._fractions(), only).metrics(only)

    @property
    def held(self) -> frozenset[str]:
        """Names of the models that take no step of the present rollout."""
        return frozenset().union(*(hook.holds for hook in self.hooks))

    def _fractions(self) -> dict[str, float]:
        """Where each model stands in the schedule; the policy's begins when its steps do."""
        fraction = self.settings.schedule.fraction
        models = dict.fromkeys(self.store.settings, fraction(self.updates, self.total_updates))
        taken, all_taken = (n - self.held_updates for n in (self.updates, self.total_updates))
        return models | {POLICY: fraction(taken, all_taken)}

    def _step(self, fractions: Mapping[str, float], models: frozenset[str]) -> StepResult:
        result = self.store.step(fractions, self._all_or(models))
        self.bad_updates.count(result, models)
        return result

    def _all_or(self, models: frozenset[str]) -> frozenset[str] | None:
        """The names as the store takes them."""
        return None if models == set(self.store.settings) else models

    def rows_to_run(self, batch: Batch) -> list[int]:
        """The completions of a batch with their advantages that an update runs the model on."""
        every_row = self.objective.regularised or any(hook.every_row for hook in self.hooks)
        if every_row or not self.settings.skip_zero_advantage:
            return batch.rows_with_tokens
        return [row for row in batch.rows_with_tokens if bool(batch.advantages_BT[row].any())]

    def _gather_gradient(
        self, batch: Batch, rows: Sequence[int], models: frozenset[str]
    ) -> dict[str, float]:
        """Have the store gather the models' gradient of a step; the step's metrics.

        Micro-batches are run once more with half the budget where memory runs out.

        Raises:
            ValueError: Memory runs out all the same.
        """
        for hook in self._acting(models):
            hook.begin_step(batch, rows, self.passes)
        self.store.models.train()
        shares = self.budget.retry_on_oom(lambda: self._run_micro_batches(batch, rows, models))
        return merged_shares(self.ranks.gather(shares))

    def _run_micro_batches(
        self, batch: Batch, rows: Sequence[int], models: frozenset[str]
    ) -> list[Share]:
        """Add this rank's share of the gradient to the store's; its shares of the metrics."""
        hooks, old_from = self._acting(models), self.settings.old_logprobs_from
        for hook in hooks:
            hook.begin_attempt()
        held = self.held & models
        loss_of = StepLoss(
            self.objective,
            hooks,
            models,
            held,
            batch,
            rows,
            self.updates,
            old_from,
            stale=self.stale,
        )
        shares: list[Share] = []
        share, ends = self.passes.share(batch, rows), self.passes.unit_ends(batch, rows)
        for index, chosen in enumerate(share):
            inputs, outputs = self.passes.forward(
                batch, chosen, run=models, options=loss_of.options, entropy=True
            )
            if chosen:
                loss, metrics = loss_of(MicroBatch(batch.select(chosen), inputs, outputs))
                shares = with_share(shares, chosen, metrics, in_place=self.settings.exact)
            else:
                loss = outputs.nothing()
            if outputs.idle is not None:
                loss = loss + 0.0 * outputs.idle
            self.store.backward(loss, last=index == len(share) - 1)
            if not ends.isdisjoint(chosen):
                self.store.end_unit()
        return shares

    def _acting(self, models: frozenset[str]) -> list[Hook]:
        """The hooks whose loss trains one of these models."""
        return [hook for hook in self.hooks if hook.trains in models]
