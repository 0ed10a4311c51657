"""The update: a batch of rollouts in, new weights out.

One rollout is split by prompts into ``updates_per_rollout`` optimizer steps; each step is split
into micro-batches by a token budget, and these are dealt to the ranks of the job. Every rank holds
the whole batch (token ids and a few columns are small), so counts, plans and skipped rows are the
same everywhere without a word, and the gradient is the same however the step is split.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import nn

from rlvr.learner.budget import Budget
from rlvr.learner.critic import CRITIC, CriticTraining, rollout_metrics
from rlvr.learner.deal import Rows
from rlvr.learner.launch import Launch, build_engine
from rlvr.learner.layout import packs
from rlvr.learner.micro_batches import MicroBatches, RowsOf
from rlvr.learner.models import POLICY, Models, Outputs
from rlvr.learner.old_policy import OldPolicy
from rlvr.learner.reward_model import PRM, PrimeTraining, reward_metrics
from rlvr.learner.routing import READ, READ_EVERYWHERE, RouterTraining
from rlvr.learner.settings import LearnerSettings, OptimizerSettings
from rlvr.learner.terms import ProxyRequests, proxy_requests, step_of, terms_of
from rlvr.objective import Counts, Objective, merge_metrics
from rlvr.objective.router_loss import load_shares
from rlvr.policy import ModelInputs, Policy, RoutingRequest, evaluating
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
        beside: Models trained beside the policy, with their optimizer settings.
        critic: The critic that gives advantages and is trained with the policy.
        prime: The process reward model whose rewards enter the advantages.
        router: Losses and choices of a mixture's routers.

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
        beside: Mapping[str, tuple[nn.Module, OptimizerSettings]] | None = None,
        critic: CriticTraining | None = None,
        prime: PrimeTraining | None = None,
        router: RouterTraining | None = None,
    ) -> None:
        self.policy, self.objective, self.settings = policy, objective, settings
        self.temperature, self.total_updates, self.reference = temperature, total_updates, reference
        self.updates = self.skipped_updates = 0
        # Tried before the engine takes the parameters apart.
        self.packed = packs(policy, settings)
        launch = launch or Launch(Ranks())
        others = dict(beside or {})
        self.critic, self.rollouts = critic, 0
        if critic is not None:
            others[CRITIC] = (critic.model, critic.settings)
        self.prime, self.router = prime, router
        self.process_rewards_BT: torch.Tensor | None = None
        if prime is not None and prime.trained:
            others[PRM] = (prime.model, prime.settings)
        models = Models(policy, {name: module for name, (module, _) in others.items()})
        rates = {POLICY: settings, **{name: own for name, (_, own) in others.items()}}
        self.ranks = launch.ranks
        self.engine = build_engine(models, rates, launch)
        self.budget = Budget(settings.tokens_per_micro_batch, self.engine, self.ranks)
        self.micro_batches = MicroBatches(self.engine, self.ranks, self.budget, packed=self.packed)
        self.policy_step = frozenset(rates) - ({PRM} if prime and not prime.joint else set())
        if prime is not None and prime.trained:
            prime.model.policy.gathered = policy.gathered

    def update(self, batch: Batch) -> dict[str, float]:
        """Train on one rollout; returns the metrics of its (last) optimizer step."""
        started = time.perf_counter()
        batch, found = self._with_process_rewards(batch)
        batch = self._with_statistics(batch)
        statistics_seconds = time.perf_counter() - started
        metrics: dict[str, float] = {}
        for rows in _split_by_group(batch.group_index_B, self.settings.updates_per_rollout):
            metrics = self._optimizer_step(select(batch, rows))
        self.rollouts += 1
        metrics |= found | rollout_metrics(batch)
        metrics["learner/updates"] = self.updates
        metrics["learner/skipped_updates"] = self.skipped_updates
        metrics["learner/out_of_memory"] = self.budget.retries
        metrics["time/statistics"] = statistics_seconds
        metrics["time/update"] = time.perf_counter() - started - statistics_seconds
        return metrics

    def logprobs(
        self,
        batch: Batch,
        policy: Policy | None = None,
        *,
        of: str = POLICY,
        temperature: float | None = None,
    ) -> torch.Tensor:
        """Log-probabilities [B, T] of the batch's completions under a model, without gradient.

        Each rank runs its share of the rows; the others' are filled in.

        Args:
            batch: The completions.
            policy: A model that the engine does not hold; None is the one that ``of`` names.
            of: The policy, or the reward model beside it.
            temperature: Of a policy; None is the sampling temperature.
        """
        model = policy or self.engine.models
        logprobs_BT = torch.zeros(batch.mask_BT.shape, dtype=batch.mask_BT.dtype)
        with torch.no_grad(), evaluating(model):
            for micro in self.micro_batches.share(_rows_of(batch), range(len(batch))):
                inputs, outputs = self._forward(
                    batch, micro, policy, run=(of,), temperature=temperature
                )
                values_N = outputs.stats.logprobs_N if of == POLICY else outputs.beside[of]
                values_BT = inputs.scatter(values_N, batch.mask_BT.shape[1])
                if micro:
                    logprobs_BT[list(micro)] = values_BT.to(logprobs_BT)
        return self.ranks.sum(logprobs_BT)

    def _with_process_rewards(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Have the reward model score the rollout, trained on it first if it is to be."""
        if self.prime is None:
            return batch, {}
        batch = replace(batch, prm_reference_BT=self._prm_reference(batch))
        metrics: dict[str, float] = {}
        if self.prime.settings.update == "before":
            for rows in _split_by_group(batch.group_index_B, self.settings.updates_per_rollout):
                metrics = self._reward_model_step(select(batch, rows))
        batch = self.prime.with_rewards(batch, self._prm_logprobs(batch))
        self.process_rewards_BT = batch.process_rewards_BT
        return batch, metrics | reward_metrics(batch, self.prime.settings.beta)

    def _prm_logprobs(self, batch: Batch) -> torch.Tensor:
        assert self.prime is not None
        if self.prime.trained:
            return self.logprobs(batch, of=PRM)
        return self.logprobs(batch, self.prime.model.policy, temperature=1.0)

    def _prm_reference(self, batch: Batch) -> torch.Tensor:
        assert self.prime is not None
        if self.prime.reference is not None:
            return self.logprobs(batch, self.prime.reference, temperature=1.0)
        with self.prime.adapters_off():
            return self._prm_logprobs(batch)

    def _reward_model_step(self, batch: Batch) -> dict[str, float]:
        """An optimizer step of the reward model alone."""
        rows = batch.mask_BT.any(-1).nonzero()[:, 0].tolist()
        if not rows:
            return {}
        only = frozenset({PRM})
        self.engine.models.train()
        metrics = self._gather_gradient(batch, rows, only)
        fraction = self.settings.schedule.fraction(self.updates, self.total_updates)
        result = self.engine.step(fraction, only)
        self.skipped_updates += result.skipped
        moved = {"prm/grad_norm": result.grad_norms[PRM], "prm/changed": result.changed[PRM]}
        return metrics | moved

    def _with_statistics(self, batch: Batch) -> Batch:
        """Add the old and reference log-probabilities that the update will need."""
        priced = self.critic is not None and self.critic.estimator.kl_in_reward > 0
        needed = self.objective.needs_reference or priced
        if needed and batch.reference_logprobs_BT is None:
            adapters_off = self.policy.reference() if self.reference is None else nullcontext()
            with adapters_off:
                values = self.logprobs(batch, self.reference)
            batch = replace(batch, reference_logprobs_BT=values)
        return self._with_old_policy(batch)

    def _with_old_policy(self, batch: Batch) -> Batch:
        """Add what only the policy that the updates start from can say."""
        old = OldPolicy(
            self.objective,
            batch,
            moves=self.settings.updates_per_rollout > 1,
            against_learner=self.settings.ratio_against == "learner",
            values=self.critic is not None and batch.old_values_BT is None,
            experts=self.router is not None and self.router.gathers_old,
        )
        if not old.needed:
            return batch
        with torch.no_grad(), evaluating(self.policy):
            # Where the engine's choices are replayed the old policy is the one that makes them.
            routing = READ_EVERYWHERE if old.experts else self._routing_of(batch)
            for micro in self.micro_batches.share(_rows_of(batch), range(len(batch))):
                inputs, outputs = self._forward(
                    batch,
                    micro,
                    entropy=old.entropy,
                    proxy=old.request if micro else None,
                    routing=routing if micro else None,
                )
                if micro:
                    old.add(inputs, outputs.stats, outputs.beside.get(CRITIC))
        batch = old.batch(self.ranks)
        if self.critic is None or batch.old_values_BT is None:
            return batch
        return self.critic.with_advantages(batch, batch.old_values_BT)

    def _optimizer_step(self, batch: Batch) -> dict[str, float]:
        rows = self._rows_to_run(batch)
        if self.router is not None and self.router.settings.balance and rows:
            self.router.share_ME = self._expert_shares(self.router, batch, rows)
        self.engine.models.train()
        metrics = self._gather_gradient(batch, rows, self.policy_step) if rows else {}
        metrics = self.objective.finish(metrics)
        if self.router is not None and rows:
            metrics |= self.router.metrics(self.ranks)
        metrics |= self._step_weights(bool(rows))
        metrics["learner/rows_run"] = len(rows) / len(batch)
        return metrics | self.micro_batches.figures(_rows_of(batch), rows)

    def _expert_shares(
        self, router: RouterTraining, batch: Batch, rows: Sequence[int]
    ) -> torch.Tensor:
        """The shares [M, E] of the step's tokens that each expert gets."""
        known_ME = router.known_load(batch, rows)
        if known_ME is not None:
            return load_shares(known_ME)
        counts_ME = torch.zeros_like(router.share_ME)
        with torch.no_grad(), evaluating(self.engine.models):
            for micro in self.micro_batches.share(_rows_of(batch), rows):
                _, outputs = self._forward(batch, micro, run=(POLICY,), routing=READ)
                if micro:
                    counts_ME += router.count(outputs.stats)
        return load_shares(self.ranks.sum(counts_ME))

    def _gather_gradient(
        self, batch: Batch, rows: Sequence[int], models: Collection[str]
    ) -> dict[str, float]:
        """Run the step's micro-batches, once more with half the budget where memory runs out.

        Args:
            batch: The step.
            rows: Its rows that are run.
            models: Those that take the step.

        Raises:
            ValueError: Memory runs out all the same.
        """
        own = self.budget.attempt(lambda: self._run_micro_batches(batch, rows, models))
        return reduce(merge_metrics, self.ranks.gather(own), {})

    def _run_micro_batches(
        self, batch: Batch, rows: Sequence[int], models: Collection[str]
    ) -> dict[str, float]:
        """This rank's share of the gradient, added up in the engine, and of the metrics."""
        prepared, proxy = {}, None
        if POLICY in models:
            prepared = self.objective.prepare(step_of(batch, self.updates))
            proxy = proxy_requests(self.objective, batch, prepared)
            if self.router is not None:
                self.router.begin()
        step = _Step(
            Counts.of(batch.mask_BT),
            Counts.of(batch.mask_BT[rows]),
            prepared,
            sequences=int(batch.mask_BT.any(-1).sum()),
        )
        metrics: dict[str, float] = {}
        share = self.micro_batches.share(_rows_of(batch), rows)
        for index, micro in enumerate(share):
            inputs, outputs = self._forward(
                batch,
                micro,
                entropy=True,
                proxy=proxy if micro else None,
                run=models,
                routing=self._routing_of(batch) if micro and POLICY in models else None,
            )
            if micro:
                columns = select(batch, micro)
                loss, found = self._micro_loss(columns, inputs, outputs, step, models)
                metrics = merge_metrics(metrics, found)
            else:
                idle = [outputs.stats.logprobs_N, *outputs.beside.values()]
                loss = 0.0 * torch.stack([values_N.sum() for values_N in idle]).sum()
            if outputs.idle is not None:
                loss = loss + 0.0 * outputs.idle
            self.engine.backward(loss, last=index == len(share) - 1)
        return metrics

    def _micro_loss(
        self,
        columns: Batch,
        inputs: ModelInputs,
        outputs: Outputs,
        step: "_Step",
        models: Collection[str],
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """A micro-batch's share of the losses of the models that take the step."""
        loss = torch.zeros((), device=inputs.row_N.device)
        metrics: dict[str, float] = {}
        if POLICY in models:
            against = self.settings.ratio_against
            terms = terms_of(columns, inputs, outputs.stats, step.prepared, against)
            loss, metrics = self.objective(terms, step.counts, step.measured)
            if self.router is not None:
                own, found = self.router.loss(
                    outputs.stats, inputs, columns, step.counts, step.measured
                )
                loss, metrics = loss + own, metrics | found
            loss, found = self._with_value_loss(loss, outputs, inputs, columns, step.counts)
            metrics = merge_metrics(metrics, found)
        if PRM in models:
            assert self.prime is not None
            own, found = self.prime.loss(outputs.beside[PRM], inputs, columns, step.sequences)
            loss, metrics = loss + own, merge_metrics(metrics, found)
        return loss, metrics

    def _with_value_loss(
        self,
        loss: torch.Tensor,
        outputs: Outputs,
        inputs: ModelInputs,
        columns: Batch,
        counts: Counts,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The critic's share beside the policy's, which counts for nothing in its warm-up."""
        if self.critic is None:
            return loss, {}
        values_N = outputs.beside[CRITIC]
        value_loss, metrics = self.critic.loss(values_N, inputs, columns, counts)
        warming = self.rollouts < self.critic.settings.warmup_rollouts
        return (0.0 if warming else 1.0) * loss + value_loss, metrics

    def _step_weights(self, any_rows: bool) -> dict[str, float]:
        """Take the optimizer step, unless nothing was run: then there is no gradient at all."""
        fraction = self.settings.schedule.fraction(self.updates, self.total_updates)
        metrics = {"learner/lr": self.settings.lr * fraction}
        if any_rows:
            alone = self.policy_step != set(self.engine.settings)
            result = self.engine.step(fraction, *([self.policy_step] if alone else []))
            metrics["learner/grad_norm"] = result.grad_norms[POLICY]
            metrics["learner/changed"] = result.changed[POLICY]
            metrics["learner/changed_compute"] = result.changed_compute[POLICY]
            for name in (CRITIC, PRM):
                if name in self.policy_step and name in result.grad_norms:
                    metrics[f"{name}/grad_norm"] = result.grad_norms[name]
                    metrics[f"{name}/changed"] = result.changed[name]
            self.skipped_updates += result.skipped
        self.updates += 1
        return metrics

    def _rows_to_run(self, batch: Batch) -> list[int]:
        has_tokens = batch.mask_BT.any(-1)
        needed = self.objective.regularised or len(self.policy_step) > 1
        needed |= self.router is not None and self.router.settings.trains
        if self.settings.skip_zero_advantage and not needed:
            has_tokens &= (batch.advantages_BT != 0).any(-1)
        rows: list[int] = has_tokens.nonzero()[:, 0].tolist()
        return rows

    def _forward(
        self,
        batch: Batch,
        micro: Rows,
        frozen: Policy | None = None,
        *,
        entropy: bool = False,
        proxy: ProxyRequests | None = None,
        run: Collection[str] | None = None,
        temperature: float | None = None,
        routing: Callable[[ModelInputs], RoutingRequest] | RoutingRequest | None = None,
    ) -> tuple[ModelInputs, Outputs]:
        """Run one micro-batch through models of the engine, or through a frozen one beside it.

        ``run`` names the engine's; None is the policy, and the critic where there is one.
        """
        prompts, completions, rows = batch.prompt_ids, batch.completion_ids, micro
        if not micro:  # two tokens, so that this rank's passes are as many as the others'
            prompts, completions, rows = (batch.prompt_ids[0][:1],), ((0,),), (0,)
        inputs = self.micro_batches.inputs(prompts, completions, rows).to(self.policy.device)
        options: dict[str, Any] = {
            "temperature": self.temperature if temperature is None else temperature,
            "entropy": entropy,
            "proxy": None if proxy is None else proxy(inputs),
            "chunk_tokens": self.settings.logits_chunk,
        }
        if frozen is not None:
            return inputs, Outputs(frozen(inputs, **options), {})
        if routing is not None:
            options["routing"] = routing(inputs) if callable(routing) else routing
        models = run or ((POLICY,) if self.critic is None else (POLICY, CRITIC))
        return inputs, self.engine.forward(inputs, run=models, **options)

    def _routing_of(self, batch: Batch) -> Callable[[ModelInputs], RoutingRequest] | None:
        """What the training pass is asked of a mixture's routing, by micro-batch."""
        router = self.router
        return None if router is None else lambda inputs: router.request(inputs, batch)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a micro-batch's losses must know of the step; ``measured`` counts the rows run."""

    counts: Counts
    measured: Counts
    prepared: dict[str, torch.Tensor]
    sequences: int = 0


def _rows_of(batch: Batch) -> RowsOf:
    """A completion is an item of its own."""
    return lambda row: ((batch.prompt_ids[row], batch.completion_ids[row]),)


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """The given rows of a batch, in that order."""
    index = torch.tensor(rows, dtype=torch.long)
    columns = {name: value[index] for name, value in batch.columns.items()}
    return replace(
        batch,
        prompt_ids=tuple(batch.prompt_ids[row] for row in rows),
        completion_ids=tuple(batch.completion_ids[row] for row in rows),
        proxy_rows=None if batch.proxy_rows is None else tuple(batch.proxy_rows[r] for r in rows),
        experts=None if batch.experts is None else tuple(batch.experts[row] for row in rows),
        **columns,
    )


def _split_by_group(group_index_B: torch.Tensor, parts: int) -> Iterator[list[int]]:
    """Rows of each optimizer step: whole groups, in order, spread as evenly as they divide."""
    groups = group_index_B.unique_consecutive().tolist()
    parts = min(parts, len(groups))
    for part in range(parts):
        chosen = set(groups[len(groups) * part // parts : len(groups) * (part + 1) // parts])
        yield [row for row, group in enumerate(group_index_B.tolist()) if group in chosen]
