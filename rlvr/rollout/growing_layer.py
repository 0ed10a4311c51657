"""Keys and values of a layer in buffers that double when full.

Appending a token writes one column instead of copying the whole cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in buffers that double when full."""

    def __init__(self, **_: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.length = 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, heads, new, head size] and return views of all keys and values so far."""
        start, self.length = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = self.values = None
        self.keys = self._append(self.keys, key_states, start)
        self.values = self._append(self.values, value_states, start)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def _append(
        self, buffer: torch.Tensor | None, states: torch.Tensor, start: int
    ) -> torch.Tensor:
        if buffer is None or buffer.shape[2] < self.length:
            batch, heads, _, size = states.shape
            grown = states.new_empty(batch, heads, max(2 * start, self.length + 32), size)
            if buffer is not None:
                grown[:, :, :start] = buffer[:, :, :start]
            buffer = grown
        buffer[:, :, start : self.length] = states
        return buffer

    def get_seq_length(self) -> int:
        """Number of positions held."""
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep (or repeat) rows; only the filled part is copied."""
        self._map(lambda filled: filled.index_select(0, beam_idx))

    def join(self, others: Sequence["GrowingLayer"]) -> None:
        """Put the rows of others, which hold as many positions, behind its own."""
        for name in ("keys", "values"):
            setattr(self, name, torch.cat([getattr(layer, name) for layer in (self, *others)]))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            filled = function(buffer[:, :, : self.length])
            grown = filled.new_empty(*filled.shape[:2], buffer.shape[2], filled.shape[3])
            grown[:, :, : self.length] = filled
            setattr(self, name, grown)
