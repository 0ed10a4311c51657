"""A lookup whose gradient is added to the weight's own, row by row.

The gradient of a lookup is a matrix of the vocabulary's size, zero but for the rows looked up.
Where the matrix is the output head as well, autograd fills one with zeros and adds it to the
head's: on a CPU a tenth of a small update (docs/benchmarks/learner.md). Here the rows are added to
``weight.grad`` in the backward pass itself, which the head has then been through; in the sum
nothing changes but the order. Hooks on the gradient do not see the rows, so this is for engines
without them.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _Lookup(torch.autograd.Function):
    """Rows of the weight; ``anchor`` is there to be differentiated by."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        anchor: torch.Tensor,
        ids: torch.Tensor,
        embedding: nn.Embedding,
    ) -> torch.Tensor:
        ctx.ids, ctx.embedding = ids, embedding
        return nn.functional.embedding(ids, embedding.weight.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None]:  # noqa: ANN401
        weight, ids_N = ctx.embedding.weight, ctx.ids.reshape(-1)
        rows_ND = grad.reshape(len(ids_N), -1).to(weight.dtype)
        if ctx.embedding.padding_idx is not None:
            rows_ND = rows_ND * (ids_N != ctx.embedding.padding_idx)[:, None]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids_N, rows_ND)
        return None, None, None


class _InPlace(nn.Embedding):
    """A lookup of this kind; a class and not a closure, so that a copy looks up its own weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows of the weight."""
        if not torch.is_grad_enabled():
            return super().forward(input)
        anchor = self.weight.new_zeros((), requires_grad=True)
        looked_up: torch.Tensor = _Lookup.apply(anchor, input, self)
        return looked_up


def add_rows_in_place(embedding: nn.Module) -> None:
    """Have a plain, trained embedding do so; any other is left as it is."""
    if type(embedding) is not nn.Embedding or not embedding.weight.requires_grad:
        return
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return
    embedding.__class__ = _InPlace


def add_rows_by_autograd(model: nn.Module) -> None:
    """Take :func:`add_rows_in_place` back, for a model that goes on to be used elsewhere."""
    for module in model.modules():
        if type(module) is _InPlace:
            module.__class__ = nn.Embedding  # type: ignore[assignment]
