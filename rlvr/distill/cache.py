"""Keys and values of rows that have different lengths.

Every row writes after its own end. So a finished row is replaced by writing from slot 0, and a row
is rolled back by setting its length: slots beyond a row's length hold leftovers that every mask
hides. A row of new keys may be padded on the right; the padding goes to those slots too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


@dataclass(slots=True)
class Place:
    """Where the next forward pass writes and what it reads; shared by all layers.

    ``rows_b`` are the rows of this pass; None means all of them, in order. ``slots_bQ`` says where
    each new key goes. ``width`` is how many slots are read; None reads only the new keys (prefill).
    """

    rows: int
    capacity: int = 0
    rows_b: torch.Tensor | None = None
    slots_bQ: torch.Tensor | None = None
    width: int | None = None


class RaggedLayer(DynamicLayer):
    """Keys and values of one layer, [rows, slots, heads, head size]."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [b, heads, Q, head size] where ``place`` says; return what the pass reads."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = self.values = None
        self.keys = self._write(self.keys, key_states)
        self.values = self._write(self.values, value_states)
        width = self.place.width
        if width is None:
            return key_states, value_states
        return self.keys[:, :width].transpose(1, 2), self.values[:, :width].transpose(1, 2)

    def _write(self, buffer: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
        place = self.place
        if buffer is None or buffer.shape[1] < place.capacity:
            _, heads, _, size = states.shape
            # Zeros, because NaN in an unused slot would survive the mask: 0 * NaN is NaN.
            grown = states.new_zeros(place.rows, place.capacity, heads, size)
            if buffer is not None:
                grown[:, : buffer.shape[1]] = buffer
            buffer = grown
        assert place.slots_bQ is not None, "the decode batch says where to write"
        rows_b = place.rows_b
        if rows_b is None:
            rows_b = torch.arange(place.rows, device=states.device)
        buffer[rows_b[:, None], place.slots_bQ] = states.transpose(1, 2)
        return buffer

    def get_seq_length(self) -> int:
        """Slots in the buffer; each row fills only its own length."""
        return 0 if self.keys is None else self.keys.shape[1]

    def copy_rows(self, source: int, targets: list[int], length: int) -> None:
        """Copy the first ``length`` slots of row ``source`` to the rows ``targets``."""
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            if buffer is not None:
                buffer[targets, :length] = buffer[source, :length]

    def keep_rows(self, rows_b: torch.Tensor, width: int) -> None:
        """Keep only these rows, in this order, and only their first ``width`` slots."""
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            if buffer is not None:
                kept = buffer.new_zeros(len(rows_b), *buffer.shape[1:])
                kept[:, :width] = buffer[rows_b, :width]
                setattr(self, name, kept)
