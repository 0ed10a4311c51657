"""Parameters and optimizer: backward, clip, step.

Weights, gradients and AdamW's moments are float32 whatever the compute precision. A loss share
already carries weights from counts over the whole optimizer step, so gradients are summed over
ranks, never averaged. A step whose gradient is not finite is skipped on every rank and counted;
neither weights nor moments see it. Weights that a step made infinite are told (bad_updates.py).

    LocalStore          one process
    DataParallelStore   every rank holds everything; gradients are summed once, in the step
    ZeroStore           DeepSpeed shards moments, gradients, weights (rlvr/learner/zero.py)
    ExactStore          the same bits however a step is split (rlvr/learner/exact_store.py);
                        with DeepSpeed, ExactZeroStore

torch's DistributedDataParallel is not used: it sums bucket by bucket during the last backward pass,
which would save a little time per step here, where a step has many micro-batches, and would demand
an equal number of them and of used parameters on every rank.
"""

import ctypes
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

import torch
import torch.distributed as dist

from rlvr.learner.models import Models, Outputs, parameter_groups
from rlvr.learner.moments import load_moments
from rlvr.learner.optimizer import AdamW
from rlvr.learner.settings import OptimizerSettings, UpdateSettings
from rlvr.policy.batching import ModelInputs
from rlvr.policy.finite import largest
from rlvr.ranks import Ranks

Fraction = float | Mapping[str, float]
"""Of the peak learning rates: of all, or by model."""

_BUCKET = 2**24
"""Elements of gradient summed over ranks at once (64 MiB)."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step did.

    By model: ``grad_norms`` over all ranks before clipping; ``changed``, the share of its trained
    weights that moved, and ``changed_compute``, after rounding to the compute precision.

    ``bad_gradient`` names the first tensor whose gradient was not finite, so that the step was
    skipped, and ``bad_weight`` the first that the step made infinite. ``in_backward`` is whether
    tensors moved in the backward pass.
    """

    grad_norms: dict[str, float]
    skipped: bool
    changed: dict[str, float]
    changed_compute: dict[str, float]
    bad_gradient: str | None = None
    bad_weight: str | None = None
    in_backward: bool = False

    @classmethod
    def of(
        cls,
        grad_norms: dict[str, float],
        bad_gradient: str | None,
        moved: Mapping[str, torch.Tensor],
        sizes: Mapping[str, int],
        first_bad_weight: Callable[[], str],
        *,
        in_backward: bool = False,
    ) -> "StepResult":
        """From what the optimizer counted.

        Args:
            grad_norms: By model.
            bad_gradient: Why the step was skipped; None if it was taken.
            moved: Counts [3] of :meth:`AdamW.take_changed`, over all ranks.
            sizes: How many weights are trained, by model.
            first_bad_weight: Finds the first weight that is not finite; collective.
            in_backward: Whether tensors moved in the backward pass.
        """
        shares = {model: (counts / sizes[model]).tolist() for model, counts in moved.items()}
        held, used = ({m: share[place] for m, share in shares.items()} for place in (0, 1))
        broken = any(counts[2] > 0 for counts in moved.values())
        bad_weight = first_bad_weight() if broken else None
        skipped = bad_gradient is not None
        return cls(grad_norms, skipped, held, used, bad_gradient, bad_weight, in_backward)

    def metrics(self, models: Collection[str]) -> dict[str, float]:
        """Norm and share of changed weights of these models, each under its name."""
        norms = {f"{name}/grad_norm": self.grad_norms[name] for name in sorted(models)}
        return norms | {f"{name}/changed": self.changed[name] for name in sorted(models)}


def in_backward_metrics(settings: UpdateSettings, result: StepResult) -> dict[str, float]:
    """Whether a step moved tensors in the backward pass, where the settings ask for that."""
    if settings.in_backward is None:
        return {}
    return {"learner/in_backward": float(result.in_backward)}


class ParameterStore(Protocol):
    """What the learner needs of whatever holds the parameters; every call is collective."""

    models: Models
    settings: Mapping[str, OptimizerSettings]
    optimizer: AdamW
    named: dict[str, torch.nn.Parameter]
    """What is trained, by the name that its moments have in a checkpoint."""
    equal_micro_batches: bool
    """Whether every rank must run the same number of forward and backward passes."""
    retries: bool
    """Whether a step can be begun again after one rank failed in the midst of it."""

    def begin(self, fraction: Fraction, moving: Collection[str] | None = None) -> None:
        """Say what the coming :meth:`step` will be told, before its first forward pass."""
        ...

    def forward(self, inputs: ModelInputs, **options: Any) -> Outputs:  # noqa: ANN401
        """Run the models on a micro-batch; options as :meth:`Models.forward`."""
        ...

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Add the gradient of ``loss``; ``last`` is the step's last micro-batch."""
        ...

    def end_unit(self) -> None:
        """What was added since the last call is a unit of an exact sum (rlvr/learner/exact.py)."""
        ...

    def clear(self) -> None:
        """Forget what the step has gathered."""
        ...

    def step(self, fraction: Fraction, moving: Collection[str] | None = None) -> StepResult:
        """Clip, update at ``fraction`` of every model's peak rate, and clear the gradients.

        Args:
            fraction: Of the peak rates, of all or by model.
            moving: Names of the models that take the step; None is all.
        """
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """This rank's part of the optimizer state, as ``load_state`` of any store takes it."""
        ...

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back the optimizer state: ``exp_avg``, ``exp_avg_sq``, ``step`` by ``key/name``."""
        ...


class LocalStore:
    """Models and their AdamW in this process.

    Args:
        models: Their parameters with ``requires_grad`` are trained.
        settings: Rates and clipping by model.
        seed: Of the run, for what is rounded at random.
    """

    equal_micro_batches = False
    retries = True
    rows_in_place = True
    """Whether an embedding may add its gradient to the output head's (rlvr/policy/embedding.py)."""

    def __init__(
        self, models: Models, settings: Mapping[str, OptimizerSettings], seed: int = 0
    ) -> None:
        self.models, self.settings = models, settings
        if models.policy.device.type == "cpu":
            give_back_freed_memory()
            if self.rows_in_place:
                models.policy.add_embedding_rows()
        self.named = {name: parameter for _, name, parameter in models.trained()}
        self.sizes = models.trained_sizes()
        groups, compute = parameter_groups(models, settings), models.policy.compute_dtype
        self.optimizer = AdamW(groups, compute, names=self.named, seed=seed)

    def begin(self, fraction: Fraction, moving: Collection[str] | None = None) -> None:
        """Nothing to know beforehand."""

    def forward(self, inputs: ModelInputs, **options: Any) -> Outputs:  # noqa: ANN401
        """Run the models on a micro-batch."""
        outputs: Outputs = self.models(inputs, **options)
        return outputs

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Add the gradient of ``loss``."""
        loss.backward()

    def end_unit(self) -> None:
        """Nothing: gradients are added one after the other."""

    def clear(self) -> None:
        """Forget what the step has gathered."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, fraction: Fraction, moving: Collection[str] | None = None) -> StepResult:
        """Clip, update at ``fraction`` of every model's peak rate, and clear the gradients."""
        self._sum_gradients()
        norms = self._norms()
        finite = prepare_step(self.optimizer, self.settings, norms, fraction, moving)
        bad_gradient = None if finite else self._first_bad_gradient()
        if finite:
            self.optimizer.step()
        self.clear()
        moved = self.optimizer.take_changed()
        return StepResult.of(norms, bad_gradient, moved, self.sizes, self._first_bad_weight)

    def _first_bad_gradient(self) -> str:
        gradients = ((n, p.grad) for n, p in self.named.items() if p.grad is not None)
        return largest(gradients)[0]  # their norm may be infinite where each of them is finite

    def _first_bad_weight(self) -> str:
        return largest(self.named.items())[0]

    def _sum_gradients(self) -> None:
        """Nothing to add in one process."""

    def _norms(self) -> dict[str, float]:
        """Norm of each model's gradient."""
        return {model: _norm(gradients) for model, gradients in self._gradients().items()}

    def _gradients(self) -> dict[str, list[torch.Tensor]]:
        by_model: dict[str, list[torch.Tensor]] = {}
        for group in self.optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            by_model.setdefault(group["model"], []).extend(gradients)
        return by_model

    def state(self) -> dict[str, torch.Tensor]:
        """AdamW's moments and step counters, by parameter name."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.detach()
        return tensors

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what :meth:`state` gave, or what another store did.

        Raises:
            ValueError: The state belongs to other parameters.
        """
        check_names(tensors, self.named)
        for name, parameter in self.named.items():
            if f"step/{name}" not in tensors:
                continue
            state = self.optimizer.moments(parameter)
            state["step"].copy_(tensors[f"step/{name}"])
            load_moments(state, tensors, name)


class DataParallelStore(LocalStore):
    """Every rank holds everything; gradients are summed over ranks before the step.

    Args:
        models: As :class:`LocalStore`, with equal weights on every rank.
        settings: Rates and clipping by model.
        ranks: The processes.
        seed: Of the run.
    """

    def __init__(
        self,
        models: Models,
        settings: Mapping[str, OptimizerSettings],
        ranks: Ranks,
        seed: int = 0,
    ) -> None:
        super().__init__(models, settings, seed)
        self.ranks = ranks

    def _sum_gradients(self) -> None:
        parameters = list(self.named.values())
        here = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        for parameter, somewhere in zip(parameters, self.ranks.maximum(here), strict=True):
            if somewhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            flat = flat.float() if flat.dtype == torch.bfloat16 else flat
            dist.all_reduce(flat)
            for gradient, total in zip(
                bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True
            ):
                gradient.copy_(total.view_as(gradient))

    def state(self) -> dict[str, torch.Tensor]:
        """The moments, on the first rank: they are the same on all."""
        return super().state() if self.ranks.first else {}


def prepare_step(
    optimizer: AdamW,
    settings: Mapping[str, OptimizerSettings],
    norms: Mapping[str, float],
    fraction: Fraction,
    moving: Collection[str] | None = None,
) -> bool:
    """Set rates and clip factors for a step; False where a norm says that it must be skipped."""
    optimizer.moving = moving
    for group in optimizer.param_groups:
        own = fraction[group["model"]] if isinstance(fraction, Mapping) else fraction
        group["lr"] = group["peak_lr"] * own
    for model, norm in norms.items():
        limit = settings[model].max_grad_norm
        optimizer.factors[model] = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
    return all(isfinite(norm) for norm in norms.values())


def check_names(tensors: Mapping[str, torch.Tensor], names: Mapping[str, Any]) -> None:
    """See that an optimizer state is for these parameters.

    Raises:
        ValueError: It names one that is not there.
    """
    unknown = {key.partition("/")[2] for key in tensors} - set(names)
    if unknown:
        raise ValueError(
            f"the checkpoint's optimizer state is for parameters this model does not have "
            f"({min(unknown)!r} and {len(unknown) - 1} more); resume with the recipe it was "
            "made with"
        )


def give_back_freed_memory() -> bool:
    """Have glibc return large freed blocks to the system at once; whether it could be told to.

    By default it starts to keep blocks of up to 32 MiB in its heap once one has been freed.
    Gradients and moments then land between the holes that activations leave, and the holes stay: a
    third of an update's peak (docs/benchmarks/update_memory.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, such as musl
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # and what was freed until now, such as weights before they were rounded
    m_mmap_threshold = -3
    return bool(mallopt(m_mmap_threshold, 4 * 2**20))


def _norm(gradients: list[torch.Tensor]) -> float:
    if any(gradient.dtype == torch.bfloat16 for gradient in gradients):  # whose norm would be, too
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
        return float(torch.linalg.vector_norm(torch.stack(norms)))
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def _buckets(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Consecutive tensors, together at most a bucket's elements unless one alone is more."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
