"""AdamW inside the backward pass: each tensor moves when its gradient is complete.

A gradient is dropped as soon as it was used, so that the largest tensor's is held instead of all
(Lv et al., LOMO, arXiv:2306.09782, section 3.1; there with plain descent). What is lost is the norm
of the whole gradient, which is known only when the last tensor's is:

    per_tensor   each tensor is clipped by its own norm. A tensor whose gradient is not finite does
                 not move; the others of this step do, and the step counts as skipped, so that
                 several in a row end the run (bad_updates.py).
    two_passes   the backward pass runs twice: once for the norm, and if it is finite once more to
                 move. The numbers are those of a step with whole gradients.

A gradient is complete in the first backward pass of a step only if it is also the last one. With
several micro-batches it is added up as without this: two_passes then is an ordinary step, and
per_tensor moves tensors in the last backward pass.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import isfinite
from typing import Any, Literal

import torch

from rlvr.learner.models import Models
from rlvr.learner.parameter_store import Fraction, LocalStore, StepResult, prepare_step
from rlvr.learner.settings import OptimizerSettings

InBackward = Literal["per_tensor", "two_passes"]


class BackwardStore(LocalStore):
    """Models in this process whose parameters move in the backward pass.

    Args:
        models: Their parameters with ``requires_grad`` are trained.
        settings: Rates and clipping by model.
        how: How gradients are clipped.
        seed: Of the run, for what is rounded at random.
    """

    retries = False  # part of a step may have been taken
    rows_in_place = False  # hooks have to see the whole gradient

    def __init__(
        self,
        models: Models,
        settings: Mapping[str, OptimizerSettings],
        how: InBackward,
        seed: int = 0,
    ) -> None:
        super().__init__(models, settings, seed)
        self.how = how
        self._planned: tuple[Fraction, Collection[str] | None] = (0.0, None)
        self._visit: Callable[[str, torch.Tensor, dict[str, Any]], None] | None = None
        self._begun = self._moved = False
        self._bad: str | None = None
        self._largest = ("nothing", -1.0)
        self._squares = dict.fromkeys(self.sizes, 0.0)
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        for name, parameter in self.named.items():
            hook = partial(self._complete, name, groups[id(parameter)])
            parameter.register_post_accumulate_grad_hook(hook)

    def begin(self, fraction: Fraction, moving: Collection[str] | None = None) -> None:
        """What the coming step will be, as its tensors move before :meth:`step` is called."""
        self._planned = (fraction, moving)

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Add the gradient of ``loss``; with the last one of a step, move what is complete."""
        alone, self._begun = not self._begun, True
        if not last or (self.how == "two_passes" and not alone):
            loss.backward()
            return
        self._moved = True
        if self.how == "two_passes":
            self._run(loss, self._measure, retain=True)
            if not self._prepare():
                self._bad = self._largest[0]
                return
            self._run(loss, self._move)
        else:
            self._prepare()
            self._run(loss, self._clip_and_move)

    def clear(self) -> None:
        """Forget what the step has gathered."""
        super().clear()
        self._forget()

    def step(self, fraction: Fraction, moving: Collection[str] | None = None) -> StepResult:
        """What the backward pass did; where gradients were added up, the step itself."""
        if not self._moved:
            result = super().step(fraction, moving)
            self._forget()
            return result
        norms, bad = self._measured_norms(), self._bad
        self.clear()
        moved = self.optimizer.take_changed()
        return StepResult.of(
            norms, bad, moved, self.sizes, self._first_bad_weight, in_backward=True
        )

    def _forget(self) -> None:
        self._begun = self._moved = False
        self._bad = None
        self._largest = ("nothing", -1.0)
        self._squares = dict.fromkeys(self.sizes, 0.0)

    def _measured_norms(self) -> dict[str, float]:
        return {model: square**0.5 for model, square in self._squares.items()}

    def _prepare(self) -> bool:
        return prepare_step(self.optimizer, self.settings, self._measured_norms(), *self._planned)

    def _run(self, loss: torch.Tensor, visit: Any, *, retain: bool = False) -> None:  # noqa: ANN401
        """A backward pass that hands each complete gradient to ``visit``, and drops it."""
        self._visit = visit
        try:
            loss.backward(retain_graph=retain)
        finally:
            self._visit = None

    def _complete(self, name: str, group: dict[str, Any], parameter: torch.Tensor) -> None:
        if self._visit is not None:
            self._visit(name, parameter, group)
            parameter.grad = None

    def _measure(self, name: str, parameter: torch.Tensor, group: dict[str, Any]) -> float:
        """Take a gradient into the norms; its own."""
        assert parameter.grad is not None
        whole = torch.promote_types(parameter.dtype, torch.float32)
        norm = float(torch.linalg.vector_norm(parameter.grad, dtype=whole))
        self._squares[group["model"]] += norm**2
        size = norm if isfinite(norm) else float("inf")
        if size > self._largest[1]:
            self._largest = (name, size)
        return norm

    def _move(self, name: str, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        self.optimizer.move(parameter, group, self.optimizer.factors[group["model"]])

    def _clip_and_move(self, name: str, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        norm = self._measure(name, parameter, group)
        if not isfinite(norm):
            self._bad = self._bad or name
            return
        limit = self.settings[group["model"]].max_grad_norm
        factor = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
        self.optimizer.move(parameter, group, factor)
