"""Attention over a packed row piece by piece, without the pairs that the block mask throws away.

On a packed row (``rlvr/policy/batching.py``) a completion sees its prompt and itself. Attention
with the row's mask computes all L x L pairs; with eight groups on a row at least seven of eight are
thrown away. Here a row is parted into pieces that are computed one by one: whole groups behind
their part of the mask or, where completions are long, each completion against its prompt's keys and
its own. The numbers are the same up to rounding.

The pieces are known while the model runs forward. A model that recomputes its layers in the
backward pass, perhaps in another thread, is told them again by :func:`recompute_contexts`.

On a GPU, where many small kernels cost more than they save, flex attention does the same inside one
kernel (Dong et al., arXiv:2412.05496): it skips tiles of 128 x 128 pairs that the row's
:func:`block_mask` leaves out.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "rlvr_pieces"
Block = tuple[int, int, int, int]
"""A completion's or prompt's start and stop on the row, and those of the prompt it sees."""

# What a call costs beside its pairs, in pairs: of nine heads on two cores.
_CALL = 2**14


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries from ``start`` to ``stop``, which see themselves and the piece ``behind``.

    ``mask`` is over those keys; None is plain causal attention.
    """

    start: int
    stop: int
    behind: int | None
    mask: torch.Tensor | None


def pieces_of(blocks: Sequence[Block], mask_LL: torch.Tensor) -> list[Piece]:
    """The cheapest way to part a row; a single piece is the row as it is.

    Args:
        blocks: What stands on the row, in its order.
        mask_LL: Which positions see which.
    """
    groups: list[list[Block]] = []
    for block in blocks:
        start, stop, prompt_start, _ = block
        if stop == start:
            continue
        if groups and groups[-1][0][0] == prompt_start:
            groups[-1].append(block)
        else:
            groups.append([block])
    chosen: list[Piece] = []
    cost = 0
    for group in groups:
        parts = _parts(group, len(chosen), mask_LL)
        apart = sum(_pairs(block) + _CALL for block in group)
        together = (group[-1][1] - group[0][0]) ** 2 + _CALL
        if together <= apart:
            parts = [_whole(group[0][0], group[-1][1], mask_LL)]
        chosen += parts
        cost += min(together, apart)
    length = len(mask_LL)
    return chosen if cost < length**2 + _CALL else [_whole(0, length, mask_LL)]


def _pairs(block: Block) -> int:
    start, stop, prompt_start, prompt_stop = block
    return (stop - start) * (stop - start + prompt_stop - prompt_start)


def _parts(group: Sequence[Block], first: int, mask_LL: torch.Tensor) -> list[Piece]:
    """A group's blocks as pieces; its prompt is number ``first`` of the row's."""
    parts = []
    for start, stop, prompt_start, prompt_stop in group:
        if prompt_stop == prompt_start:
            parts.append(Piece(start, stop, None, None))
            continue
        own, prompt = mask_LL[start:stop, start:stop], mask_LL[start:stop, prompt_start:prompt_stop]
        parts.append(Piece(start, stop, first, torch.cat((prompt, own), dim=1)))
    return parts


def _whole(start: int, stop: int, mask_LL: torch.Tensor) -> Piece:
    return Piece(start, stop, None, mask_LL[start:stop, start:stop].contiguous())


@dataclass(frozen=True, slots=True)
class _Row:
    """A packed row that a model runs, and the configuration that says how the model attends."""

    pieces: list[Piece]
    config: Any


_ROW: ContextVar[_Row | None] = ContextVar("row", default=None)


@contextmanager
def piecewise(
    transformer: torch.nn.Module, blocks: Sequence[Block], mask: torch.Tensor | None
) -> Iterator[Any]:
    """Have a transformers model attend to what the packed row that it runs shows, and no more.

    Piece by piece on a CPU where the model uses torch's attention, and by tiles where it uses flex
    attention. Does nothing without blocks, nor where layers are recomputed without
    :func:`recompute_contexts`.

    Args:
        transformer: The model, or its backbone; its choice of attention is another meanwhile.
        blocks: Of the row.
        mask: Boolean [1, 1, L, L].

    Yields:
        The attention mask to give to the model in place of ``mask``.
    """
    config: Any = transformer.config
    config = config.get_text_config()
    if not blocks or mask is None:
        yield mask
        return
    if config._attn_implementation == "flex_attention":
        yield block_mask(blocks, mask.device)
        return
    by_torch = config._attn_implementation == "sdpa" and mask.device.type == "cpu"
    pieces = pieces_of(blocks, mask[0, 0]) if by_torch and not _forgets(transformer) else []
    if len(pieces) < 2:
        yield mask
        return
    _register()
    with _Attending(_Row(pieces, config)):
        yield mask


class _Attending:
    """A context in which a model attends piece by piece; it may be entered again and again."""

    def __init__(self, row: _Row) -> None:
        self._row = row
        self._before: list[tuple[Token[_Row | None], str]] = []

    def __enter__(self) -> None:
        self._before.append((_ROW.set(self._row), self._row.config._attn_implementation))
        self._row.config._attn_implementation = NAME

    def __exit__(self, *_: object) -> None:
        token, implementation = self._before.pop()
        self._row.config._attn_implementation = implementation
        _ROW.reset(token)


def recompute_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """``context_fn`` of torch's checkpointing: a recomputed layer attends as it did forward."""
    row = _ROW.get()
    return nullcontext(), nullcontext() if row is None else _Attending(row)


def _forgets(transformer: torch.nn.Module) -> bool:
    """Whether layers are recomputed without being told the pieces."""
    ways = [
        getattr(module, "_gradient_checkpointing_func", None)
        for module in transformer.modules()
        if getattr(module, "gradient_checkpointing", False)
    ]
    told = [getattr(way, "keywords", {}).get("context_fn") for way in ways]
    return any(context_fn is not recompute_contexts for context_fn in told)


def block_mask(blocks: Sequence[Block], device: torch.device) -> Any:  # noqa: ANN401
    """Flex attention's mask of a packed row [1, 1, L, L].

    Args:
        blocks: What stands on the row, in its order: a prompt, then its completions.
        device: Of the model.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    length = blocks[-1][1]
    owner_L = torch.zeros(length, dtype=torch.int32)
    seen_L = torch.zeros(length, dtype=torch.int32)
    for number, (start, stop, prompt_start, prompt_stop) in enumerate(blocks):
        owner_L[start:stop] = number
        seen_L[start:stop] = owner_L[prompt_start] if prompt_stop > prompt_start else number
    owner_L, seen_L = owner_L.to(device), seen_L.to(device)

    def shows(
        _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        its_own, prompts = owner_L[key] == owner_L[query], owner_L[key] == seen_L[query]
        return (key <= query) & (its_own | prompts)

    return create_block_mask(shows, None, None, length, length, device=str(device))


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """Attention [1, L, H, D] as transformers' layers ask for it, of [1, H, L, D].

    By the mask where this is not the row of the pieces (another thread generates with the same
    model, say) and where a layer adds a bias of its own.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    row = _ROW.get()
    pieces = row.pieces if row is not None else []
    its_row = pieces and query.shape[2] == key.shape[2] == pieces[-1].stop
    if not its_row or more.get("position_bias") is not None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return found
    sizes = [piece.stop - piece.start for piece in pieces]
    # Split, since its gradient is one concatenation; a slice's is a row of zeros for each.
    queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
    parts = []
    for piece, q, k, v in zip(pieces, queries, keys, values, strict=True):
        if piece.behind is not None:
            k = torch.cat((keys[piece.behind], k), dim=2)
            v = torch.cat((values[piece.behind], v), dim=2)
        parts.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=piece.mask,
                dropout_p=dropout if module.training else 0.0,
                is_causal=piece.mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
