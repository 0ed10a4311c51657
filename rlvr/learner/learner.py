"""The update: a batch of rollouts in, new weights out.

One rollout is split by prompts into ``updates_per_rollout`` optimizer steps; each step is split
into micro-batches by a token budget. Token weights come from counts over the whole step, so the
gradient is the same however it is split.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from rlvr.learner.engine import LocalEngine
from rlvr.learner.old_policy import OldPolicy, proxy_rows_of
from rlvr.learner.settings import LearnerSettings
from rlvr.objective import Counts, Objective, Step, Terms, merge_metrics
from rlvr.policy import (
    ModelInputs,
    Policy,
    ProxyRequest,
    TokenStats,
    evaluating,
    packed_inputs,
    packing_is_exact,
    padded_inputs,
    plan_packed,
    plan_padded,
)
from rlvr.types import Batch


class Learner:
    """Turns batches into updates of a policy.

    Args:
        policy: The model to train.
        objective: The loss.
        settings: Optimizer and batching.
        temperature: The sampling temperature; log-probabilities are taken under it.
        total_updates: Length of the learning-rate schedule.
        reference: Frozen model for a KL term; None where the policy's base (adapters off) serves,
            or no term needs one.

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
    ) -> None:
        self.policy, self.objective, self.settings = policy, objective, settings
        self.temperature, self.total_updates, self.reference = temperature, total_updates, reference
        self.engine = LocalEngine(policy, settings)
        self.updates = 0
        self.skipped_updates = 0
        self.packed = settings.layout != "padded" and packing_is_exact(policy)
        if settings.layout == "packed" and not self.packed:
            raise ValueError(
                "learner.layout = 'packed' gives this model other numbers than one row at a time "
                "(sliding windows, or an attention that takes no block mask); use auto or padded"
            )

    def update(self, batch: Batch) -> dict[str, float]:
        """Train on one rollout; returns the metrics of its (last) optimizer step."""
        started = time.perf_counter()
        batch = self._with_statistics(batch)
        statistics_seconds = time.perf_counter() - started
        metrics: dict[str, float] = {}
        for rows in _split_by_group(batch.group_index_B, self.settings.updates_per_rollout):
            metrics = self._optimizer_step(select(batch, rows))
        metrics["learner/updates"] = self.updates
        metrics["learner/skipped_updates"] = self.skipped_updates
        metrics["time/statistics"] = statistics_seconds
        metrics["time/update"] = time.perf_counter() - started - statistics_seconds
        return metrics

    def logprobs(self, batch: Batch, policy: Policy | None = None) -> torch.Tensor:
        """Log-probabilities [B, T] of the batch's completions under a model, without gradient."""
        model = policy or self.policy
        logprobs_BT = torch.zeros(batch.mask_BT.shape, dtype=batch.mask_BT.dtype)
        with torch.no_grad(), evaluating(model):
            for inputs, stats in self._run(model, batch, range(len(batch)), entropy=False):
                values = inputs.scatter(stats.logprobs_N, batch.mask_BT.shape[1])
                logprobs_BT[list(inputs.rows)] = values.to(logprobs_BT)
        return logprobs_BT

    def _with_statistics(self, batch: Batch) -> Batch:
        """Add the old and reference log-probabilities that the update will need."""
        if self.objective.needs_reference and batch.reference_logprobs_BT is None:
            adapters_off = self.policy.reference() if self.reference is None else nullcontext()
            with adapters_off:
                values = self.logprobs(batch, self.reference)
            batch = replace(batch, reference_logprobs_BT=values)
        moves = self.settings.updates_per_rollout > 1
        against_learner = self.settings.ratio_against == "learner"
        old = OldPolicy(self.objective, batch, moves=moves, against_learner=against_learner)
        if old.needed:
            with torch.no_grad(), evaluating(self.policy):
                for inputs, stats in self._run(
                    self.policy, batch, range(len(batch)), entropy=old.entropy, proxy=old.request
                ):
                    old.add(inputs, stats)
            batch = old.batch()
        return batch

    def _optimizer_step(self, batch: Batch) -> dict[str, float]:
        counts = Counts.of(batch.mask_BT)
        rows = self._rows_to_run(batch)
        measured = Counts.of(batch.mask_BT[rows])
        prepared = self.objective.prepare(self._step(batch))
        proxy = self._proxy_request(batch, prepared)
        self.policy.train()
        metrics: dict[str, float] = {}
        positions = 0
        for inputs, stats in self._run(self.policy, batch, rows, entropy=True, proxy=proxy):
            terms = self._terms(select(batch, inputs.rows), inputs, stats, prepared)
            loss, share = self.objective(terms, counts, measured)
            self.engine.backward(loss)
            metrics = merge_metrics(metrics, share)
            positions += inputs.num_positions
        metrics = self.objective.finish(metrics)
        metrics |= self._step_weights(bool(rows))
        real = sum(len(batch.prompt_ids[row]) + len(batch.completion_ids[row]) for row in rows)
        metrics["learner/positions"] = positions
        # Packed rows share prompts: fewer positions are run than the sequences have tokens.
        metrics["learner/pad_fraction"] = max(0.0, 1 - real / positions) if positions else 0.0
        metrics["learner/rows_run"] = len(rows) / len(batch)
        return metrics

    def _step_weights(self, any_rows: bool) -> dict[str, float]:
        """Take the optimizer step, unless nothing was run: then there is no gradient at all."""
        fraction = self.settings.schedule.fraction(self.updates, self.total_updates)
        lr = self.settings.lr * fraction
        metrics = {"learner/lr": lr}
        if any_rows:
            result = self.engine.step(lr)
            metrics["learner/grad_norm"] = result.grad_norm
            self.skipped_updates += result.skipped
        self.updates += 1
        return metrics

    def _rows_to_run(self, batch: Batch) -> list[int]:
        has_tokens = batch.mask_BT.any(-1)
        if self.settings.skip_zero_advantage and not self.objective.regularised:
            has_tokens &= (batch.advantages_BT != 0).any(-1)
        rows: list[int] = has_tokens.nonzero()[:, 0].tolist()
        return rows

    def _step(self, batch: Batch) -> Step:
        """What the objective may know of the whole step before it is run."""
        old_BT = batch.old_logprobs_BT
        logprobs_BT = batch.rollout_logprobs_BT if old_BT is None else old_BT
        if logprobs_BT is None:
            logprobs_BT = torch.zeros_like(batch.mask_BT)  # nothing looks at it
        return Step(
            logprobs_BT, batch.advantages_BT, batch.mask_BT, batch.old_entropy_BT, self.updates
        )

    def _proxy_request(
        self, batch: Batch, prepared: dict[str, torch.Tensor]
    ) -> Callable[[ModelInputs], ProxyRequest] | None:
        """What the training pass must say of proxy distributions: the current policy's own where it
        is the old one, else the divergence from those that were kept."""
        noise_filter = self.objective.noise_filter
        if noise_filter is None:
            return None
        if batch.log_kept_mass_BT is None:
            request = ProxyRequest(
                noise_filter,
                below=self.objective.noise_below(prepared),
                divergence=self.objective.needs_proxy_kl,
            )
            return lambda inputs: request
        if batch.proxy_rows is None:
            return None
        rows = batch.proxy_rows
        return lambda inputs: ProxyRequest(
            noise_filter, below=-math.inf, rows=proxy_rows_of(inputs, rows)
        )

    def _run(
        self,
        model: Policy,
        batch: Batch,
        rows: Sequence[int],
        *,
        entropy: bool,
        proxy: Callable[[ModelInputs], ProxyRequest | None] | None = None,
    ) -> Iterator[tuple[ModelInputs, TokenStats]]:
        """Forward the given rows in micro-batches."""
        for micro in self._plan(batch, rows):
            lay_out = packed_inputs if self.packed else padded_inputs
            inputs = lay_out(batch.prompt_ids, batch.completion_ids, micro).to(model.device)
            yield (
                inputs,
                model(
                    inputs,
                    temperature=self.temperature,
                    entropy=entropy,
                    proxy=None if proxy is None else proxy(inputs),
                    chunk_tokens=self.settings.logits_chunk,
                ),
            )

    def _plan(self, batch: Batch, rows: Sequence[int]) -> list[tuple[int, ...]]:
        prompts = [batch.prompt_ids[row] for row in rows]
        completions = [batch.completion_ids[row] for row in rows]
        budget = self.settings.tokens_per_micro_batch
        if self.packed:
            plan = plan_packed(prompts, completions, budget)
        else:
            lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
            plan = plan_padded(lengths, budget)
        return [tuple(rows[index] for index in micro) for micro in plan]

    def _terms(
        self,
        columns: Batch,
        inputs: ModelInputs,
        stats: TokenStats,
        prepared: dict[str, torch.Tensor],
    ) -> Terms:
        """The micro-batch's [B, T] columns, on the model's device, beside its fresh statistics."""
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
        if self.settings.ratio_against == "rollout" and rollout_BT is not None:
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


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """The given rows of a batch, in that order."""
    index = torch.tensor(rows, dtype=torch.long)
    columns = {name: value[index] for name, value in batch.columns.items()}
    return replace(
        batch,
        prompt_ids=tuple(batch.prompt_ids[row] for row in rows),
        completion_ids=tuple(batch.completion_ids[row] for row in rows),
        proxy_rows=None if batch.proxy_rows is None else tuple(batch.proxy_rows[r] for r in rows),
        **columns,
    )


def _split_by_group(group_index_B: torch.Tensor, parts: int) -> Iterator[list[int]]:
    """Rows of each optimizer step: whole groups, in order, spread as evenly as they divide."""
    groups = group_index_B.unique_consecutive().tolist()
    parts = min(parts, len(groups))
    for part in range(parts):
        chosen = set(groups[len(groups) * part // parts : len(groups) * (part + 1) // parts])
        yield [row for row, group in enumerate(group_index_B.tolist()) if group in chosen]
