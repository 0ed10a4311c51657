"""The update from preferences: pairs (or labelled completions) in, new weights out.

A step's items are split into micro-batches by a token budget, both sides of a pair together, so
that a pair's loss needs one forward pass. The loss of the step is the mean over its items, taken
from counts over the whole step, so the gradient does not depend on the split.

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

from rlvr.learner.launch import Launch, build_engine
from rlvr.learner.models import POLICY, Models
from rlvr.learner.settings import LearnerSettings
from rlvr.policy import (
    ModelInputs,
    Policy,
    evaluating,
    packed_inputs,
    packing_is_exact,
    padded_inputs,
    plan_packed,
    plan_padded,
)
from rlvr.preference.losses import (
    Labelled,
    PairLoss,
    Pairs,
    PreferenceLoss,
    Side,
    UnpairedLoss,
    WeightedUnpaired,
    baseline_of,
    desensitised_logps,
    mixed_loss,
    sampling_weights,
)
from rlvr.ranks import Ranks


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """B items of K completions each: chosen and rejected (K = 2), or a labelled one (K = 1).

    ``reference_BK`` are reference log-probabilities, reduced as the learner reduces its own.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    completion_ids: tuple[tuple[tuple[int, ...], ...], ...]
    desirable_B: torch.Tensor | None = None
    scores_BK: torch.Tensor | None = None
    reference_BK: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def lengths_BK(self) -> torch.Tensor:
        """Completion tokens."""
        return torch.tensor([[len(ids) for ids in item] for item in self.completion_ids])

    def select(self, items: Sequence[int]) -> "PreferenceBatch":
        """These items, in that order."""
        index = torch.tensor(items, dtype=torch.long)

        def rows(column: torch.Tensor | None) -> torch.Tensor | None:
            return None if column is None else column[index]

        return PreferenceBatch(
            tuple(self.prompt_ids[item] for item in items),
            tuple(self.completion_ids[item] for item in items),
            rows(self.desirable_B),
            rows(self.scores_BK),
            rows(self.reference_BK),
        )


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
    """Turns preferences into updates of a policy.

    Args:
        policy: The model to train.
        losses: A mixture, all over pairs or all over labelled completions.
        settings: Optimizer and batching.
        total_updates: Length of the learning-rate schedule.
        reference: Opens the frozen reference as a policy, where log-probabilities under it are
            taken as training goes (the policy itself with its adapters off, or another model).
        ld_alpha: Weight of tokens beyond the shorter side's length (LD-DPO); None is 1.
        weighting: Weigh pairs by how probable the policy finds them (WPO).
        launch: What holds the parameters; None is this process alone, the only one that may be.

    Raises:
        ValueError: Packing is asked for, and does not give this model's numbers; or the launch is
            of several processes.
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
        launch = launch or Launch(Ranks())
        check_one_process(launch)
        self.policy, self.losses, self.settings = policy, tuple(losses), settings
        self.total_updates, self.reference = total_updates, reference
        self.ld_alpha, self.weighting = ld_alpha, weighting
        self.updates = self.skipped_updates = 0
        self.needs_reference = any(loss.needs_reference for loss in losses)
        self.needs_prompt = any(loss.needs_prompt for loss in losses)
        self.packed = settings.layout != "padded" and packing_is_exact(policy)
        if settings.layout == "packed" and not self.packed:
            raise ValueError(
                "learner.layout = 'packed' gives this model other numbers than one row at a time "
                "(sliding windows, or an attention that takes no block mask); use auto or padded"
            )
        self.engine = build_engine(Models(policy), {POLICY: settings}, launch)

    def update(self, batch: PreferenceBatch) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        started = time.perf_counter()
        batch, step = self._prepared(batch)
        prepared = time.perf_counter()
        self.policy.train()
        per_item: dict[str, torch.Tensor] = {}
        whole = self._step_gradient(batch, step) if self._whole_step else None
        done = positions = 0
        for items, inputs, sums_BKS in self._run(self.policy, batch):
            loss, measured = self._micro_loss(batch, step, items, sums_BKS)
            if whole is not None:
                loss = (whole.gradient_BKS[list(items)].to(sums_BKS) * sums_BKS).sum()
            done += len(items)
            self.engine.backward(loss, last=done == len(batch))
            per_item = _gathered(per_item, measured)
            positions += inputs.num_positions
        if whole is not None:
            per_item["loss"] = whole.loss_B
        metrics = self._metrics(per_item, batch, step) | self._step_weights()
        real = _tokens(batch)
        metrics["learner/positions"] = positions
        metrics["learner/pad_fraction"] = max(0.0, 1 - real / positions)
        metrics["time/statistics"] = prepared - started
        metrics["time/update"] = time.perf_counter() - prepared
        return metrics

    def measure(self, batch: PreferenceBatch) -> dict[str, float]:
        """The step's metrics without a step, as if ``batch`` were one."""
        batch, step = self._prepared(batch)
        sums_BKS = self.sums(batch)
        if self._whole_step:
            loss_B, per_item = self._losses(batch, step, sums_BKS)
            return self._metrics(per_item | {"loss": loss_B}, batch, step)
        _, per_item = self._micro_loss(batch, step, range(len(batch)), sums_BKS)
        return self._metrics(per_item, batch, step)

    def sums(
        self,
        batch: PreferenceBatch,
        policy: Policy | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> torch.Tensor:
        """Log-probabilities [B, K', 2] under a model, without gradient: reduced by LD, and whole.

        K' is K, and one more where a loss wants the prompt's. ``progress`` hears how many items are
        done.
        """
        model = policy or self.policy
        extra = 1 if self.needs_prompt else 0
        found = torch.zeros(
            len(batch), len(batch.completion_ids[0]) + extra, 2, dtype=torch.float64
        )
        done = 0
        with torch.no_grad(), evaluating(model):
            for items, _, sums_BKS in self._run(model, batch):
                found[list(items)] = sums_BKS.to(found)
                done += len(items)
                progress(done)
        return found.to(torch.promote_types(next(model.parameters()).dtype, torch.float32))

    def reference_sums(
        self, batch: PreferenceBatch, policy: Policy, progress: Callable[[int], None]
    ) -> torch.Tensor:
        """Reference log-probabilities [B, K] of a whole data set under ``policy``."""
        return self.sums(batch, policy, progress)[:, : len(batch.completion_ids[0]), 0]

    @property
    def _whole_step(self) -> bool:
        return any(loss.whole_step for loss in self.losses)

    @property
    def _uses_baseline(self) -> bool:
        return any(isinstance(x, WeightedUnpaired) and x.uses_baseline for x in self.losses)

    def _prepared(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, StepConstants]:
        """Add reference log-probabilities where they are taken live, and the step's constants."""
        baseline, weights_B = 0.0, None
        if self.needs_reference and batch.reference_BK is None:
            with self._opened_reference() as reference:
                values = self.reference_sums(batch, reference, lambda done: None)
            batch = replace(batch, reference_BK=values)
        if self._uses_baseline:
            baseline = self._baseline(batch)
        if self.weighting:
            weights_B = self._weights(batch)
        first = batch.lengths_BK[:, 0].double()
        prompt = sum(len(ids) - 1 for ids in batch.prompt_ids) / len(batch)
        return batch, StepConstants(len(batch), float(first.mean()), prompt, baseline, weights_B)

    def _opened_reference(self) -> AbstractContextManager[Policy]:
        assert self.reference is not None, "this loss needs reference log-probabilities"
        return self.reference()

    def _baseline(self, batch: PreferenceBatch) -> float:
        """KTO's z0, from every prompt with the completion of the item before it."""
        rotated = batch.completion_ids[-1:] + batch.completion_ids[:-1]
        mismatched = PreferenceBatch(batch.prompt_ids, rotated)
        own = self.sums(mismatched)[..., 0, 0]
        with self._opened_reference() as reference:
            theirs = self.sums(mismatched, reference)[..., 0, 0]
        return baseline_of(own - theirs)

    def _weights(self, batch: PreferenceBatch) -> torch.Tensor:
        """WPO's weights [B] of pairs.

        With z the logits, log sum_v p_v^2 = LSE(2 z) - 2 LSE(z), and the log-probability at
        temperature 1/2 is 2 z_y - LSE(2 z); so the sum's logarithm is 2 log p - log p_half, both of
        which the policy gives.
        """
        weights_BK = torch.ones(len(batch), 2, dtype=torch.float64)
        with torch.no_grad(), evaluating(self.policy):
            for items, inputs in self._inputs(self.policy, batch, prompt=False):
                width = max(len(ids) for item in items for ids in batch.completion_ids[item])
                plain, half = (
                    inputs.scatter(self._forward(self.policy, inputs, t), width) for t in (1.0, 0.5)
                )
                mask = inputs.scatter(torch.ones_like(inputs.targets_N, dtype=plain.dtype), width)
                found = sampling_weights(plain, 2 * plain - half, mask)
                weights_BK[list(items)] = found.view(len(items), 2).to(weights_BK)
        return weights_BK.prod(-1)

    def _inputs(
        self, model: Policy, batch: PreferenceBatch, *, prompt: bool
    ) -> Iterator[tuple[tuple[int, ...], ModelInputs]]:
        """Micro-batches: their items, and the model's inputs with an item's K' rows together."""
        lay_out = packed_inputs if self.packed else padded_inputs
        for items in self._plan(batch):
            prompts, completions = [], []
            for item in items:
                for ids in batch.completion_ids[item]:
                    prompts.append(batch.prompt_ids[item])
                    completions.append(ids)
                if prompt:  # its own tokens, predicted from the first
                    prompts.append(batch.prompt_ids[item][:1])
                    completions.append(batch.prompt_ids[item][1:])
            inputs = lay_out(prompts, completions, range(len(prompts)))
            yield items, inputs.to(model.device)

    def _plan(self, batch: PreferenceBatch) -> list[tuple[int, ...]]:
        budget = self.settings.tokens_per_micro_batch
        own = [len(ids) if self.needs_prompt else 0 for ids in batch.prompt_ids]
        if self.packed:
            joined = [
                [token for ids in item for token in ids] + [0] * extra
                for item, extra in zip(batch.completion_ids, own, strict=True)
            ]
            return plan_packed(batch.prompt_ids, joined, budget)
        rows = len(batch.completion_ids[0]) + self.needs_prompt
        lengths = [
            rows * (len(prompt) + max(map(len, item)))
            for prompt, item in zip(batch.prompt_ids, batch.completion_ids, strict=True)
        ]
        return plan_padded(lengths, budget)

    def _forward(self, model: Policy, inputs: ModelInputs, temperature: float) -> torch.Tensor:
        options = {"temperature": temperature, "chunk_tokens": self.settings.logits_chunk}
        if model is self.policy:
            return self.engine.forward(inputs, **options).stats.logprobs_N
        logprobs_N: torch.Tensor = model(inputs, **options).logprobs_N
        return logprobs_N

    def _run(
        self, model: Policy, batch: PreferenceBatch
    ) -> Iterator[tuple[tuple[int, ...], ModelInputs, torch.Tensor]]:
        """Forward all items in micro-batches; log-probabilities [b, K', 2] of each."""
        kinds = len(batch.completion_ids[0])
        for items, inputs in self._inputs(model, batch, prompt=self.needs_prompt):
            logprobs_N = self._forward(model, inputs, 1.0)
            lengths_R = torch.bincount(inputs.row_N, minlength=len(inputs.rows))
            width = int(lengths_R.max())
            logprobs_RT = inputs.scatter(logprobs_N, width)
            mask_RT = torch.arange(width, device=lengths_R.device) < lengths_R[:, None]
            by_item = lengths_R.view(len(items), -1)
            shared_R = by_item[:, :kinds].min(-1, keepdim=True).values.expand_as(by_item).flatten()
            mask_RT = mask_RT.to(logprobs_RT.dtype)
            reduced = desensitised_logps(logprobs_RT, mask_RT, shared_R, self.ld_alpha)
            sums_RS = torch.stack([reduced, logprobs_RT.sum(-1)], -1)
            yield items, inputs, sums_RS.view(len(items), -1, 2)

    def _step_gradient(self, batch: PreferenceBatch, step: StepConstants) -> "_StepGradient":
        leaf = self.sums(batch).requires_grad_()
        loss_B, _ = self._losses(batch, step, leaf)
        gradient_BKS = torch.autograd.grad(loss_B.sum() / step.items, leaf)[0]
        return _StepGradient(gradient_BKS, loss_B.detach())

    def _micro_loss(
        self,
        batch: PreferenceBatch,
        step: StepConstants,
        items: Sequence[int],
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
            "learner/changed": result.changed,
            "learner/changed_compute": result.changed_compute,
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


def _gathered(
    total: dict[str, torch.Tensor], share: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    if not total:
        return dict(share)
    return {name: torch.cat([value, share[name]]) for name, value in total.items()}


def _tokens(batch: PreferenceBatch) -> int:
    """Tokens of all sequences, each with its prompt."""
    return sum(
        len(prompt) + len(ids)
        for prompt, item in zip(batch.prompt_ids, batch.completion_ids, strict=True)
        for ids in item
    )


@contextmanager
def adapters_off(policy: Policy) -> Iterator[Policy]:
    """A policy with adapters as its own frozen reference."""
    with policy.reference():
        yield policy


def check_one_process(launch: Launch) -> None:
    """See that nobody shares the work: a step is not dealt to ranks here.

    Raises:
        ValueError: The launch is of several processes, or shards parameters.
    """
    if launch.ranks.count > 1 or launch.zero is not None:
        raise ValueError(
            f"started as {launch.description}, but training from preferences runs in one process; "
            "use accelerate launch --num_processes 1, without DeepSpeed"
        )
