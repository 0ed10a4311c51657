"""AdamW, one tensor at a time, with a clip for each model and a count of the weights it moved.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    w <- w - lr (m^ / (sqrt(v^) + eps) + decay w)

with bias-corrected m^ and v^ (Loshchilov and Hutter, arXiv:1711.05101). The same object serves
whole parameters and the flat slices that a store which shards them hands over, in several calls
of :meth:`AdamW.step`; that is why norms are measured by the store and only applied here.

Weights in bfloat16 and moments in fewer bits are float32 for a slice at a time while they move, and
rounded at random when they are written (``rounding.py``).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch.optim.adamw import adamw

from rlvr.learner.moments import MOMENTS, Moments, empty_moments
from rlvr.learner.rounding import BLOCK, noise_for, to_bfloat16

_SLICE = 2**20
"""Weights moved at once on a CPU: the copy of what they were stays small."""
_LANES = 64
"""A multiple of the numbers that a CPU's vector instructions take at once."""


class AdamW(torch.optim.Optimizer):
    """AdamW whose gradients are scaled per model just before they are used.

    Args:
        groups: Parameter groups with ``model``, ``lr``, ``betas``, ``eps`` and ``weight_decay``,
            and ``states``, how moments are held, where that is not float32.
        compute: The dtype that weights are rounded to for computing.
        names: Parameters by name: with the seed and the count of steps it gives the random bits
            that weights and moments are rounded with.
        seed: Of the run.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        compute: torch.dtype,
        *,
        names: Mapping[str, torch.Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(groups, {})
        self.compute, self.seed = compute, seed
        self.names = {id(parameter): name for name, parameter in (names or {}).items()}
        self.factors: dict[str, float] = {}
        self.moving: Collection[str] | None = None  # names of models; None is all
        self.evenly = False
        """Whether a weight moves by the same bits wherever it stands in a tensor or a slice."""
        self._changed: dict[str, list[torch.Tensor]] = {}
        self._groups = {id(p): group for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group, self.factors.get(group["model"], 1.0))

    @torch.no_grad()
    def move(self, parameter: torch.Tensor, group: dict[str, Any], factor: float) -> None:
        """Move one parameter, a slice at a time: what is float32 meanwhile is small then.

        Args:
            parameter: Has a gradient.
            group: Its own.
            factor: Of the gradient.
        """
        if self.moving is not None and group["model"] not in self.moving:
            return  # neither weights nor moments see this step
        assert parameter.grad is not None
        state, gradient = self.moments(parameter), parameter.grad.reshape(-1)
        plain = held_plainly(parameter, group)
        noise = None if plain else self._noise(parameter, int(state["step"]))
        adamw_ = _adamw_evenly if self.evenly else _adamw
        for start, end in _slices(parameter, plain):
            weights, gradients = parameter.view(-1)[start:end], gradient[start:end]
            if not plain:
                gradients = gradients.float()
            if factor != 1.0:
                gradients.mul_(factor)
            before = weights.clone()
            if noise is None:
                mean, square = (state[key].view(-1)[start:end] for key in MOMENTS)
                adamw_(weights, gradients, mean, square, state["step"], group)
            else:
                moments = Moments(state, start, end)
                whole, mean, square = weights.float(), *moments.read()
                adamw_(whole, gradients, mean, square, state["step"], group)
                rounded = weights.dtype == torch.bfloat16
                weights.copy_(to_bfloat16(whole, noise) if rounded else whole)
                moments.write(mean, square, noise)
            moved = _moved(before, weights, self.compute)
            self._changed.setdefault(group["model"], []).append(moved)
        state["step"] += 1

    def _noise(self, parameter: torch.Tensor, step: int) -> torch.Generator:
        name = self.names.get(id(parameter), "")
        return noise_for(self.seed, step, name, parameter.device)

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Step counter and moments of a parameter, made where there are none yet."""
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            # The fused kernel wants its counter beside the parameter.
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            # A store that shards hands over flat slices that are in no group yet.
            group = self._groups.get(id(parameter), {})
            state |= empty_moments(parameter, group.get("states", "float32"))
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


def held_plainly(parameter: torch.Tensor, group: Mapping[str, Any]) -> bool:
    """Whether nothing of a parameter or its moments is rounded when it is written."""
    return parameter.dtype != torch.bfloat16 and group.get("states", "float32") == "float32"


def _slices(parameter: torch.Tensor, plain: bool) -> Iterator[tuple[int, int]]:
    """Start and end of the elements that are moved at once."""
    count = parameter.numel()
    size = _SLICE if parameter.device.type == "cpu" else count if plain else 16 * _SLICE
    if not plain:
        size += -size % BLOCK
    return ((start, min(start + size, count)) for start in range(0, count, max(size, 1)))


def _adamw(
    weights: torch.Tensor,
    gradients: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: torch.Tensor,
    group: Mapping[str, Any],
) -> None:
    """One step of AdamW, in place."""
    adamw(
        [weights],
        [gradients],
        [mean],
        [square],
        [],
        [step.clone()],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _adamw_evenly(
    weights: torch.Tensor,
    gradients: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: torch.Tensor,
    group: Mapping[str, Any],
) -> None:
    """As :func:`_adamw`, with what vector instructions would leave over filled up for them.

    The kernel moves the last few numbers one by one, and fuses other multiplications and additions
    then: an eighth of the moments differs in the last bit (docs/exactness.md).
    """
    tensors = (weights, gradients, mean, square)
    whole = len(weights) - len(weights) % _LANES
    if whole:
        w, g, m, v = (tensor[:whole] for tensor in tensors)
        _adamw(w, g, m, v, step, group)
    if rest := len(weights) - whole:
        filled = [torch.nn.functional.pad(t[whole:], (0, _LANES - rest)) for t in tensors]
        w, g, m, v = filled
        _adamw(w, g, m, v, step, group)
        for tensor, moved in zip(tensors, filled, strict=True):
            tensor[whole:].copy_(moved[:rest])


def _moved(before: torch.Tensor, after: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """How many weights differ, as they are and rounded; 1 where one is not finite now; [3]."""
    count = torch.count_nonzero(before != after)  # on a CPU 7 times faster than sum() of a mask
    used = count
    if compute != before.dtype:
        used = torch.count_nonzero(before.to(compute) != after.to(compute))
    broken = ~torch.stack(torch.aminmax(after)).isfinite().all()
    return torch.stack([count, used, broken.to(count)])
