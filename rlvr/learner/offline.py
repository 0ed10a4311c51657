"""The update of every offline task: examples in, new weights out.

A step's examples are split into micro-batches by a token budget and shared out over the ranks of
the job (rlvr/learner/partition.py); every rank holds the whole step. A :class:`Statistic` says
which sequences an example needs and what it reads off the model's outputs; an :class:`OfflineLoss`
turns these numbers into a loss of each example. The loss of the step is their sum over a count of
the whole step, so the gradient does not depend on the split.

A loss that compares the examples of a step with each other takes all numbers without gradient
first, then the gradient of the step's loss with respect to these few numbers, and hands each
micro-batch its part: the same gradient, for one more forward pass.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from rlvr.data.examples import Examples, Ids
from rlvr.learner.bad_updates import BadUpdates
from rlvr.learner.budget import Budget
from rlvr.learner.launch import Launch, build_store
from rlvr.learner.layout import packs
from rlvr.learner.micro_batches import MicroBatches, RowsOf
from rlvr.learner.models import POLICY, Models, Outputs
from rlvr.learner.parameter_store import in_backward_metrics
from rlvr.learner.partition import Rows
from rlvr.learner.settings import OptimizerSettings, UpdateSettings
from rlvr.policy.batching import ModelInputs
from rlvr.policy.model import Policy, evaluating
from rlvr.ranks import Ranks

PromptAndCompletion = tuple[Ids, Ids]
"""A prompt and its completion."""

Numbers = dict[str, list[float]]
"""Of a step's examples, in no certain order: what is logged."""

_IDLE = Examples.of_one(((0,),), ((0,),))
"""Two tokens for a rank without work, so that its passes are as many as the others'."""


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """The examples ``micro`` of a step, as sequences that a model is about to run on.

    ``inputs`` are in the order of :meth:`Statistic.sequences`; ``forward`` takes the options of
    :meth:`rlvr.learner.models.Models.forward`.
    """

    examples: Examples
    micro: Rows
    inputs: ModelInputs
    forward: Callable[..., Outputs]


class Statistic(ABC):
    """What a loss needs of a forward pass, as numbers of each example."""

    @abstractmethod
    def size(self, examples: Examples) -> tuple[int, ...]:
        """The shape of an example's numbers."""

    @abstractmethod
    def values(self, run: ForwardPass) -> torch.Tensor:
        """The numbers [b, *size] of the examples that are run, with gradients."""

    def rows(self, examples: Examples, example: int) -> list[PromptAndCompletion]:
        """Prompt and completion of every sequence that an example needs."""
        own = examples.rows[example]
        return [(examples.prompt_ids[row], examples.completion_ids[row]) for row in own]

    def sequences(self, examples: Examples, micro: Rows) -> list[PromptAndCompletion]:
        """Those that are run for several examples together."""
        return [row for example in micro for row in self.rows(examples, example)]


@dataclass(frozen=True, slots=True)
class OfflineStep:
    """A step, or a micro-batch of one: its examples and what has to be known of the whole.

    The loss is divided by ``denominator``; ``constants`` are the loss's own.
    """

    examples: Examples
    denominator: float
    constants: Mapping[str, float] = field(default_factory=dict)


class OfflineLoss(Protocol):
    """A task's loss."""

    grad_norms: Mapping[str, str]
    """Metrics of the gradient norms of auxiliary models: their names by the model's."""

    @property
    def statistic(self) -> Statistic:
        """What it is a loss of."""
        ...

    @property
    def whole_step(self) -> bool:
        """Whether the loss of an example depends on the others of its step."""
        ...

    def begin(self, learner: "OfflineLearner", examples: Examples) -> OfflineStep:
        """The step, with whatever takes passes without gradient; collective."""
        ...

    def losses(self, micro: OfflineStep, values: torch.Tensor) -> tuple[torch.Tensor, Numbers]:
        """Loss [b] of examples, and numbers of them to log, from their statistic."""
        ...

    def metrics(self, numbers: Numbers, step: OfflineStep) -> dict[str, float]:
        """What is logged of a step, from the numbers of all its examples; ``loss`` is theirs."""
        ...


class OfflineLearner:
    """Turns examples into updates of a policy; with several ranks every call is collective.

    Args:
        policy: The model to train.
        loss: What it is trained with.
        settings: Optimizer and batching.
        total_updates: Length of the learning-rate schedule.
        launch: The processes of the job and what holds the parameters; None is this process alone.
        auxiliary: Models that are trained with the policy, and their optimizers.
        packing: Whether packing is of use, where the settings leave it open.
        seed: Of the run, for what is rounded at random.

    Raises:
        ValueError: Packing is asked for, and does not give this model's numbers.
    """

    def __init__(
        self,
        policy: Policy,
        loss: OfflineLoss,
        settings: UpdateSettings,
        *,
        total_updates: int = 1,
        launch: Launch | None = None,
        auxiliary: Mapping[str, tuple[nn.Module, OptimizerSettings]] | None = None,
        packing: bool = True,
        seed: int = 0,
    ) -> None:
        self.policy, self.loss, self.settings = policy, loss, settings
        self.total_updates = total_updates
        self.updates, self.bad_updates = 0, BadUpdates(settings.max_bad_updates)
        others, launch = auxiliary or {}, launch or Launch(Ranks())
        launch = launch.whole() if settings.exact else launch
        # Tried before the store takes the parameters apart.
        packed = (settings.layout == "packed" or packing) and packs(policy, settings)
        self.ranks = launch.ranks
        models = Models(policy, {name: module for name, (module, _) in others.items()})
        rates = {POLICY: settings, **{name: own for name, (_, own) in others.items()}}
        self.store = build_store(
            models,
            rates,
            launch,
            seed=seed,
            in_backward=settings.in_backward,
            exact=settings.exact,
        )
        self.budget = Budget(settings.tokens_per_micro_batch, self.store, self.ranks)
        self.micro_batches = MicroBatches(
            self.store, self.ranks, self.budget, packed=packed, exact=settings.exact
        )

    def update(self, examples: Examples) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        started = time.perf_counter()
        step = self.loss.begin(self, examples)
        prepared = time.perf_counter()
        self.store.models.train()
        self.store.begin(self._fraction)
        numbers = self._gather_gradient(step)
        metrics = self.loss.metrics(numbers, step) | self._step_weights()
        rows_of = self._rows_of(step.examples, self.loss.statistic)
        metrics |= self.micro_batches.figures(rows_of, range(len(step.examples)))
        metrics["learner/out_of_memory"] = self.budget.retries
        metrics["time/statistics"] = prepared - started
        metrics["time/update"] = time.perf_counter() - prepared
        return metrics

    def measure(self, examples: Examples) -> dict[str, float]:
        """The step's metrics without a step, as if ``examples`` were one."""
        step = self.loss.begin(self, examples)
        loss_N, numbers = self.loss.losses(step, self.values(step.examples))
        return self.loss.metrics(numbers | {"loss": loss_N.tolist()}, step)

    def example_losses(self, examples: Examples) -> list[float]:
        """The loss of every example under the policy as it is, without gradient."""
        step = self.loss.begin(self, examples)
        losses: list[float] = self.loss.losses(step, self.values(step.examples))[0].tolist()
        return losses

    def values(
        self,
        examples: Examples,
        model: Policy | None = None,
        progress: Callable[[int], None] = lambda done: None,
        *,
        statistic: Statistic | None = None,
    ) -> torch.Tensor:
        """A statistic [N, ...] of all examples, without gradient and without dropout.

        Every rank has all of it, in the order of the examples, in the dtype of a loss (float32 at
        least).

        Args:
            examples: Of which it is taken.
            model: A frozen model; None is the one that is trained.
            progress: Hears how many of this rank's examples are done.
            statistic: None is the loss's.
        """
        statistic = statistic or self.loss.statistic
        # Zeros of other ranks' examples are added to the numbers, which must not round them.
        values = torch.zeros(len(examples), *statistic.size(examples), dtype=torch.float64)
        shown, done = model or self.store.models, 0
        with torch.no_grad(), evaluating(shown):
            for micro in self._share(examples, statistic):
                own, _ = self._values(examples, micro, statistic, model)
                if micro:
                    values[list(micro)] = own.to(values)
                done += len(micro)
                progress(done)
        dtype = torch.promote_types(next(shown.parameters()).dtype, torch.float32)
        return self.ranks.sum(values).to(dtype)

    def _gather_gradient(self, step: OfflineStep) -> Numbers:
        """Run the step's micro-batches; numbers of all examples.

        Raises:
            ValueError: Memory runs out, and again with half the budget.
        """
        known = self._losses_and_gradient(step) if self.loss.whole_step else None
        gradient = None if known is None else known[1]
        own = self.budget.retry_on_oom(lambda: self._run_micro_batches(step, gradient))
        shares = [share for by_rank in self.ranks.gather(own) for share in by_rank]
        if self.settings.exact:  # sums of numbers are taken in their order
            shares.sort(key=lambda share: share[0])
        numbers: Numbers = {}
        for _, share in shares:
            _extend(numbers, share)
        return numbers if known is None else numbers | {"loss": known[0].tolist()}

    def _losses_and_gradient(self, step: OfflineStep) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses [N] of a step, and the gradient of their mean by the statistic, [N, ...]."""
        leaf = self.values(step.examples).requires_grad_()
        loss_N, _ = self.loss.losses(step, leaf)
        gradient = torch.autograd.grad(loss_N.sum() / step.denominator, leaf)[0]
        return loss_N.detach(), gradient

    def _run_micro_batches(
        self, step: OfflineStep, gradient: torch.Tensor | None
    ) -> list[tuple[int, Numbers]]:
        """Add this rank's share of the gradient to the store's.

        Returns:
            Of each micro-batch its first example and the numbers of all.
        """
        numbers: list[tuple[int, Numbers]] = []
        share = self._share(step.examples, self.loss.statistic)
        rows_of = self._rows_of(step.examples, self.loss.statistic)
        ends = self.micro_batches.unit_ends(rows_of, range(len(step.examples)))
        for index, micro in enumerate(share):
            values, idle = self._values(step.examples, micro, self.loss.statistic)
            loss = 0.0 * values.sum()
            if micro:
                own = replace(step, examples=step.examples.select(micro))
                loss_B, logged = self.loss.losses(own, values)
                loss = loss_B.sum() / step.denominator
                numbers.append((micro[0], logged | {"loss": loss_B.detach().tolist()}))
            if micro and gradient is not None:
                loss = (gradient[list(micro)].to(values) * values).sum()
            for unused in idle:
                loss = loss + 0.0 * unused
            self.store.backward(loss, last=index == len(share) - 1)
            if not ends.isdisjoint(micro):
                self.store.end_unit()
        return numbers

    def _values(
        self, examples: Examples, micro: Rows, statistic: Statistic, model: Policy | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The statistic of a micro-batch, and outputs that a loss takes times 0."""
        if not micro:
            examples, micro = _IDLE, (0,)
        prompts, completions = zip(*statistic.sequences(examples, micro), strict=True)
        inputs = self.micro_batches.inputs(prompts, completions, tuple(range(len(prompts))))
        inputs = inputs.to(self.policy.device)
        idle: list[torch.Tensor] = []

        def forward(**options: Any) -> Outputs:  # noqa: ANN401
            options = {"chunk_tokens": self.settings.logits_chunk, **options}
            if model is not None and model is not self.policy:
                options.pop("run", None)
                return Outputs(model(inputs, **options), {})
            outputs = self.store.forward(inputs, **options)
            idle.extend([] if outputs.idle is None else [outputs.idle])
            return outputs

        return statistic.values(ForwardPass(examples, micro, inputs, forward)), idle

    def _share(self, examples: Examples, statistic: Statistic) -> list[Rows]:
        """This rank's micro-batches."""
        return self.micro_batches.share(self._rows_of(examples, statistic), range(len(examples)))

    def _rows_of(self, examples: Examples, statistic: Statistic) -> RowsOf:
        return lambda example: statistic.rows(examples, example)

    @property
    def _fraction(self) -> float:
        """Of the peak rates, for the coming update."""
        return self.settings.schedule.fraction(self.updates, self.total_updates)

    def _step_weights(self) -> dict[str, float]:
        fraction = self._fraction
        result = self.store.step(fraction)
        self.updates += 1
        self.bad_updates.count(result, self.store.settings)
        return {
            "learner/lr": self.settings.lr * fraction,
            "learner/grad_norm": result.grad_norms[POLICY],
            **{name: result.grad_norms[model] for model, name in self.loss.grad_norms.items()},
            "learner/changed": result.changed[POLICY],
            "learner/changed_compute": result.changed_compute[POLICY],
            **in_backward_metrics(self.settings, result),
            "learner/updates": self.updates,
            "learner/skipped_updates": self.bad_updates.skipped,
        }


def _extend(numbers: Numbers, more: Numbers) -> None:
    for name, values in more.items():
        numbers.setdefault(name, []).extend(values)
