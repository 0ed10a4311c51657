"""One model's decode batch: rows with a cache, each fed as many tokens as it has ready.

A batch holds the tokens committed to each row's cache. The caller feeds the next tokens and gets
the logits after each of them. All rows go through the model together. Attention masks, positions
and slots come from each row's own length, so the code has no special case for rows of different
lengths, rows that are fed different numbers of tokens, rows that were rolled back, or rows that
were just replaced.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from rlvr.distill.cache import Place, RaggedLayer
from rlvr.distill.next_token_scores import LogitScores, Scores

# Slots are added in steps of this size, so that the buffers rarely grow.
_STEP = 64


class DecodeBatch(Protocol):
    """What the lock-step engine needs from one model's rows."""

    lengths: list[int]
    limit: int | None

    def admit(self, rows: Sequence[int], prefixes: Sequence[tuple[int, ...]]) -> None:
        """Put new traces into rows; a prefix is all that precedes the first token to be fed."""
        ...

    def last(self, tokens: Sequence[Sequence[int]]) -> Scores:
        """Feed every row's next tokens; return the scores [B] after the last token of each row."""
        ...

    def every(self, tokens: Sequence[Sequence[int]], count: int) -> Scores:
        """Likewise after each of the ``count`` tokens of every row, [B * count]. A row may have no
        tokens; its scores then mean nothing."""
        ...

    def roll_back(self, row: int, length: int) -> None:
        """Drop all but the first ``length`` tokens of a row."""
        ...

    def rest(self, row: int) -> None:
        """Mark a row as free: its trace has ended."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        ...


class DecodeModel(Protocol):
    """A model that can be given decode batches."""

    device: torch.device

    def decode_batch(self, rows: int, banned: torch.Tensor | None) -> DecodeBatch:
        """Make a batch of rows; ``banned`` are ids that the model must never write."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class TransformersDecodeModel:
    """A transformers model in this process.

    Args:
        model: A causal LM with full attention in every layer.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self.model = model
        self.device: torch.device = next(model.parameters()).device

    def decode_batch(self, rows: int, banned: torch.Tensor | None) -> "TransformersDecodeBatch":
        """See :class:`DecodeModel`."""
        return TransformersDecodeBatch(self.model, rows, banned)

    def close(self) -> None:
        """Free nothing: the model belongs to the caller who loaded it."""


class TransformersDecodeBatch:
    """Rows of one model.

    Args:
        model: A transformers causal LM with full attention in every layer.
        rows: Number of rows in the batch.
        banned: Ids that the model must never write.
    """

    def __init__(self, model: Any, rows: int, banned: torch.Tensor | None = None) -> None:  # noqa: ANN401
        self.model, self.banned = model, banned
        self.device = next(model.parameters()).device
        self.limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.place = Place(rows)
        self.cache = Cache(layer_class_to_replicate=partial(RaggedLayer, self.place))
        self.lengths = [0] * rows
        self._prefixes: list[tuple[int, ...]] = [()] * rows
        self.positions_fed = 0

    def admit(self, rows: Sequence[int], prefixes: Sequence[tuple[int, ...]]) -> None:
        """Put new traces into rows: run each prefix, and run a prefix that rows share only once.

        Args:
            rows: Rows to replace.
            prefixes: For each row, all tokens that precede the first token to be fed.
        """
        wanted = dict(zip(rows, prefixes, strict=True))
        held = {
            prefix: row
            for row, prefix in enumerate(self._prefixes)
            if prefix and wanted.get(row, prefix) == prefix
        }
        fresh: dict[tuple[int, ...], int] = {}
        for row, prefix in zip(rows, prefixes, strict=True):
            if prefix and prefix not in held and prefix not in fresh:
                fresh[prefix] = row
        if fresh:
            self._prefill(fresh)
        sources: dict[int, list[int]] = {}
        for row, prefix in zip(rows, prefixes, strict=True):
            source = {**held, **fresh}.get(prefix, row)
            if source != row:
                sources.setdefault(source, []).append(row)
            self._prefixes[row], self.lengths[row] = prefix, len(prefix)
        for source, targets in sources.items():
            for layer in self.cache.layers:
                layer.copy_rows(source, targets, len(self._prefixes[source]))

    @torch.no_grad()
    def _prefill(self, fresh: dict[tuple[int, ...], int]) -> None:
        width = max(map(len, fresh))
        ids_bQ = torch.tensor([[*prefix, *[0] * (width - len(prefix))] for prefix in fresh])
        self._reserve(width)
        positions_1Q = torch.arange(width, device=self.device)[None]
        self.place.rows_b = torch.tensor(list(fresh.values()), device=self.device)
        self.place.slots_bQ, self.place.width = positions_1Q.expand(len(fresh), -1), None
        causal_11QQ = positions_1Q[:, None, :, None] >= positions_1Q[:, None, None, :]
        self.model.base_model(
            input_ids=ids_bQ.to(self.device),
            position_ids=positions_1Q.expand(len(fresh), -1),
            attention_mask=self._as_mask(causal_11QQ.expand(len(fresh), -1, -1, -1)),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions_fed += sum(map(len, fresh))

    @torch.no_grad()
    def feed(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run the next tokens of every row; a row may have no tokens.

        Returns:
            Logits [B, Q, V], where Q is the largest number of tokens in a row. Entries beyond a
            row's own tokens mean nothing.
        """
        counts = [len(row) for row in tokens]
        width = max(1, *counts)
        ids_BQ = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens])
        lengths_B1 = torch.tensor(self.lengths, device=self.device)[:, None]
        slots_BQ = lengths_B1 + torch.arange(width, device=self.device)
        read = max(self.lengths) + width
        self._reserve(read)
        self.place.rows_b, self.place.slots_bQ, self.place.width = None, slots_BQ, read
        mask_B1QS = slots_BQ[:, None, :, None] >= torch.arange(read, device=self.device)
        positions_BQ = slots_BQ if self.limit is None else slots_BQ.clamp_max(self.limit - 1)
        logits_BQV: torch.Tensor = self.model(
            input_ids=ids_BQ.to(self.device),
            position_ids=positions_BQ,
            attention_mask=self._as_mask(mask_B1QS),
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.positions_fed += sum(counts)
        return logits_BQV

    def last(self, tokens: Sequence[Sequence[int]]) -> LogitScores:
        """See :class:`DecodeBatch`."""
        logits_BQV = self.feed(tokens)
        last_B = torch.tensor([max(0, len(row) - 1) for row in tokens], device=self.device)
        rows_B = torch.arange(len(tokens), device=self.device)
        return LogitScores(logits_BQV[rows_B, last_B], self.banned)

    def every(self, tokens: Sequence[Sequence[int]], count: int) -> LogitScores:
        """See :class:`DecodeBatch`."""
        logits_BQV = self.feed(tokens)
        assert logits_BQV.shape[1] == count, "every row has the same number of tokens, or none"
        return LogitScores(logits_BQV.flatten(0, 1), self.banned)

    def roll_back(self, row: int, length: int) -> None:
        """Drop all but the first ``length`` tokens of a row."""
        assert length <= self.lengths[row], "a row can only be rolled back"
        self.lengths[row] = length

    def rest(self, row: int) -> None:
        """Mark a row as free; its prefix stays, so that other rows can share it."""
        self.lengths[row] = len(self._prefixes[row])

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self.lengths = [self.lengths[row] for row in rows]
        self._prefixes = [self._prefixes[row] for row in rows]
        self.place.rows = len(rows)
        index_b = torch.tensor(list(rows), device=self.device)
        for layer in self.cache.layers:
            layer.keep_rows(index_b, max(self.lengths, default=0))

    def _reserve(self, slots: int) -> None:
        if slots > self.place.capacity:
            self.place.capacity = max(2 * self.place.capacity, -(-slots // _STEP) * _STEP)

    def _as_mask(self, allowed: torch.Tensor) -> torch.Tensor:
        """The mask in the attention's format: bool for sdpa, 0 or the most negative number for
        eager."""
        if self.model.config._attn_implementation == "sdpa":
            return allowed
        dtype = next(self.model.parameters()).dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill(~allowed, torch.finfo(dtype).min)
