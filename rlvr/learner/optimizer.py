"""AdamW, one tensor at a time, with a clip for each model and a count of the weights it moved.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    w <- w - lr (m^ / (sqrt(v^) + eps) + decay w)

with bias-corrected m^ and v^ (Loshchilov and Hutter, arXiv:1711.05101). The same object serves
whole parameters and the flat slices that a store which shards them hands over, in several calls
of :meth:`AdamW.step`; that is why norms are measured by the store and only applied here.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.optim.adamw import adamw

_SLICE = 2**20
"""Weights moved at once on a CPU: the copy of what they were stays small."""


class AdamW(torch.optim.Optimizer):
    """AdamW whose gradients are scaled per model just before they are used.

    Args:
        groups: Parameter groups with ``model``, ``lr``, ``betas``, ``eps`` and ``weight_decay``.
        compute: The dtype that weights are rounded to for computing.
    """

    def __init__(self, groups: list[dict[str, Any]], compute: torch.dtype) -> None:
        super().__init__(groups, {})
        self.compute = compute
        self.factors: dict[str, float] = {}
        self.moving: Collection[str] | None = None  # names of models; None is all
        self._changed: dict[str, list[torch.Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        """Move one parameter, a slice at a time: the weights before are then a small copy."""
        if self.moving is not None and group["model"] not in self.moving:
            return  # neither weights nor moments see this step
        assert parameter.grad is not None
        state, factor = self.moments(parameter), self.factors.get(group["model"], 1.0)
        flat = [parameter.view(-1), parameter.grad.reshape(-1)]
        flat += [state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)]
        size = _SLICE if parameter.device.type == "cpu" else parameter.numel()
        for weights, gradients, mean, square in zip(*(t.split(size) for t in flat), strict=True):
            if factor != 1.0:
                gradients.mul_(factor)
            before = weights.clone()
            adamw(
                [weights],
                [gradients],
                [mean],
                [square],
                [],
                [state["step"].clone()],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            moved = _moved(before, weights, self.compute)
            self._changed.setdefault(group["model"], []).append(moved)
        state["step"] += 1

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Step counter and moments of a parameter, made where there are none yet."""
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            # The fused kernel wants its counter beside the parameter.
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def take_changed(self) -> dict[str, torch.Tensor]:
        """What became of each model's weights since the last call, float64 [3].

        How many moved, as held and as used (a move that is lost in rounding is none; padding of
        flat slices never moves), and how many slices now hold a value that is not finite.
        """
        models = dict.fromkeys(group["model"] for group in self.param_groups)
        found = {model: torch.zeros(3, dtype=torch.float64) for model in models}
        for model, moved in self._changed.items():
            for counts in moved:
                found[model] += counts.cpu()
        self._changed = {}
        return found


def _moved(before: torch.Tensor, after: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """How many weights differ, as they are and rounded; 1 where one is not finite now; [3]."""
    count = torch.count_nonzero(before != after)  # on a CPU 7 times faster than sum() of a mask
    used = count
    if compute != before.dtype:
        used = torch.count_nonzero(before.to(compute) != after.to(compute))
    broken = ~torch.stack(torch.aminmax(after)).isfinite().all()
    return torch.stack([count, used, broken.to(count)])
