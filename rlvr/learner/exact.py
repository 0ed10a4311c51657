"""Sums of gradients that do not depend on the order, nor on who adds what.

Ordinary sums of floating-point numbers depend on their order by rounding, and so a gradient depends
on how a step is split. Here every number is cut at places that are fixed beforehand, and what is
added are whole multiples of these places, which is exact (Demmel and Nguyen, "Fast Reproducible
Floating-Point Summation", ARITH 2013; Ahrens, Demmel and Nguyen, "Algorithms for Efficient
Reproducible Floating Point Summation", ACM TOMS 46(3), 2020).

A tensor has a *level* J, the smallest with |x| < 2^39 q for all its elements, where q = 2^(40 J +
10) is the level's quantum. Each element is cut in two,

    high = x rounded to a multiple of q           |high| <= 2^39 q
    low  = x - high rounded to one of q 2^-40     |low|  <= 2^39 q 2^-40

and what is smaller, at most 2^-41 q, is dropped. Where the largest element is between 2^-31 and
512, as gradients have it, that is 4e-22; at the edge of a level it is 2^-40 of the largest element,
and never more. Highs and lows are added up in float64, which holds multiples up to 2^53, so that
2^14 sums of them are exact in every order.

A later tensor may have a higher level K. At K the numbers before it, which are below q(K)/2, have
no high, and their lows are what they are rounded to a multiple of q(K-1): where K = J + 1 these are
the highs that were added up at J, and where K is more they are zero. So the sums are moved down and
stay what they would have been, had K been known from the start; they are a function of the set of
numbers. The same holds for sums of other processes.
"""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from rlvr.ranks import Ranks

MOST_ADDED = 2**14
"""Tensors that may be added up: beyond, float64 could round."""

_BITS, _FIRST = 40, 10
_SLICE = 2**14
"""Elements cut at once on a CPU, so that what is made meanwhile stays in its cache."""

NOTHING, ZERO, NOT_FINITE = -100, -99, 100
"""Levels of tensors to which nothing was added, nothing but zeros, and what is not finite."""


def level_of(largest: float) -> int:
    """The level of a float32 tensor, by the largest absolute value of its elements."""
    if not math.isfinite(largest):
        return NOT_FINITE
    if largest == 0:
        return ZERO
    _, exponent = math.frexp(largest)  # largest < 2^exponent
    return -((_FIRST + _BITS - 1 - exponent) // _BITS)


class ExactSum:
    """Sums of float32 tensors of one shape, the same bits in every order.

    Args:
        like: Says shape and device.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self.level = NOTHING
        self.shape = like.shape
        size = like.numel()
        self.high_N = torch.zeros(size, dtype=torch.float64, device=like.device)
        self.low_N = torch.zeros_like(self.high_N)

    def add(self, tensor: torch.Tensor) -> None:
        """Add one tensor."""
        values_N = tensor.reshape(-1)
        low, high = torch.aminmax(values_N) if len(values_N) else (values_N.new_zeros(()),) * 2
        level = level_of(float(torch.maximum(-low, high)))
        self.raise_to(level)
        if ZERO < self.level < NOT_FINITE:
            self._cut(values_N)

    def raise_to(self, level: int) -> None:
        """Have the sums be those of a level, if theirs is lower."""
        if level <= self.level:
            return
        if self.level > ZERO and level < NOT_FINITE:
            if level == self.level + 1:
                self.high_N, self.low_N = self.low_N, self.high_N
            else:
                self.low_N.zero_()
            self.high_N.zero_()
        self.level = level

    def _cut(self, values_N: torch.Tensor) -> None:
        # Added to and taken from again, a number of this size rounds to a multiple of the quantum.
        first = 1.5 * 2.0 ** (52 + _BITS * self.level + _FIRST)
        second = first * 2.0**-_BITS
        size = len(values_N)
        step = min(size, _SLICE if values_N.device.type == "cpu" else 2**24)
        rest_S = torch.empty(step, dtype=torch.float64, device=values_N.device)
        part_S = torch.empty_like(rest_S)
        for start in range(0, size, step):
            own = slice(start, min(start + step, size))
            rest, part = (buffer_S[: own.stop - start] for buffer_S in (rest_S, part_S))
            rest.copy_(values_N[own])
            torch.add(rest, first, out=part)
            part.sub_(first)
            self.high_N[own].add_(part)
            rest.sub_(part).add_(second).sub_(second)
            self.low_N[own].add_(rest)

    def total(self) -> torch.Tensor | None:
        """The sum in float64, NaN where something was not finite; None where nothing was added."""
        if self.level == NOTHING:
            return None
        if self.level == NOT_FINITE:
            return torch.full_like(self.high_N, math.nan).view(self.shape)
        return (self.high_N + self.low_N).view(self.shape)


class GradientSum:
    """The gradient of a step: of each unit natively in float32, of units exactly.

    Args:
        named: What is trained, by name.
        ranks: The processes that share the units.
    """

    def __init__(self, named: Mapping[str, torch.nn.Parameter], ranks: Ranks) -> None:
        self.named, self.ranks = named, ranks
        self._sums: dict[str, ExactSum] = {}
        self._unit: dict[str, torch.Tensor] = {}
        self._units = 0

    def add(self, loss: torch.Tensor) -> None:
        """Add the gradient of ``loss`` to that of the unit.

        It is taken without touching ``grad``, so that nothing that waits for it there (DeepSpeed)
        adds it up in an order of its own.
        """
        parameters = list(self.named.values())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        held: set[int] = set()
        for name, gradient in zip(self.named, gradients, strict=True):
            if gradient is None:
                continue
            if name in self._unit:
                self._unit[name] += gradient
                continue
            own = gradient.float().contiguous()
            # Tensors that are added to each other have one gradient in one memory.
            self._unit[name] = own.clone() if own.data_ptr() in held else own
            held.add(own.data_ptr())

    @torch.no_grad()
    def end_unit(self) -> None:
        """Add the unit's gradient to the step's."""
        for name in list(self._unit):
            gradient = self._unit.pop(name)
            if name not in self._sums:
                self._sums[name] = ExactSum(gradient)
            self._sums[name].add(gradient)
        self._units += 1

    @torch.no_grad()
    def take(self) -> dict[str, torch.Tensor]:
        """The whole gradient in float32 by name, of all ranks, which is forgotten here; collective.

        Parameters that no unit reached have none.

        Raises:
            ValueError: More units were added than can be exactly.
        """
        count = int(self.ranks.sum(torch.tensor(self._units)))
        if count > MOST_ADDED:
            raise ValueError(
                f"learner.exact adds at most {MOST_ADDED} units of completions exactly, and a step "
                f"has {count}; lower the completions of an update, or set learner.exact=false"
            )
        self._unit = {}
        found: dict[str, torch.Tensor] = {}
        for name, level in self._levels().items():
            own = self._sums.pop(name, None)
            if level == NOTHING:
                continue
            if own is None:
                own = ExactSum(self.named[name])
            own.raise_to(level)
            if self.ranks.count > 1 and ZERO < level < NOT_FINITE:
                dist.all_reduce(own.high_N)
                dist.all_reduce(own.low_N)
            total = own.total()
            assert total is not None, "its level says that something was added"
            found[name] = total.float()
        self.clear()
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._sums, self._unit, self._units = {}, {}, 0

    def _levels(self) -> dict[str, int]:
        """Levels of the sums over all ranks, by name."""
        own = [s.level if (s := self._sums.get(n)) else NOTHING for n in self.named]
        highest = self.ranks.maximum(torch.tensor(own))
        return dict(zip(self.named, highest.tolist(), strict=True))


def exact_norm(tensors: Iterator[torch.Tensor]) -> float:
    """The norm of float32 tensors together, in float64 and the same for any number of threads.

    It is infinite where its square is more than float32 holds, as in other stores.
    """
    parts: list[float] = []
    for tensor in tensors:
        # No more than one thread adds up at once; what each gave is summed exactly.
        for piece in tensor.reshape(-1).split(2**22):
            rows = [part.double().square_().sum() for part in piece.split(2**14)]
            parts += torch.stack(rows).tolist() if rows else []
    if not all(map(math.isfinite, parts)):
        return math.nan
    square = math.fsum(parts)
    return math.sqrt(square) if square <= torch.finfo(torch.float32).max else math.inf
