"""One model's vocabulary in terms of bytes: what it may write, and where pieces of text begin."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlvr.distill.models import Loaded
from rlvr.distill.token_bytes import Speller
from rlvr.distill.vocabulary import VocabularySettings


@dataclass(frozen=True)
class Side:
    """One model's vocabulary in terms of bytes."""

    speller: Speller
    end_ids: frozenset[int]
    may: torch.Tensor
    """[2, V]: tokens that may be drawn, and those of them that begin a piece."""
    texts: dict[int, bytes]
    """Special tokens that may be drawn, as text."""

    def data(self, tokens: Sequence[int]) -> bytes:
        """The bytes of tokens, special ones as their text."""
        parts = [self.texts.get(token) or self.speller.bytes_of[token] or b"" for token in tokens]
        return b"".join(parts)

    def begins(self, token: int) -> bool:
        """Whether a token begins a piece."""
        return bool(self.may[1, token])

    def alone(self, token: int) -> bool:
        """Whether a token is a piece of its own."""
        return token in self.end_ids or token in self.texts


def make_side(loaded: Loaded, settings: VocabularySettings, *, specials: bool) -> Side:
    """Read a vocabulary.

    Args:
        loaded: The model.
        settings: What a piece is.
        specials: Whether its special tokens may be drawn, besides its end tokens.

    Raises:
        ValueError: Its way of writing tokens is unknown.
    """
    speller = Speller(loaded.tokenizer)
    ends = frozenset(loaded.stop_ids)
    texts = {}
    may = torch.zeros(2, loaded.vocabulary, dtype=torch.bool)
    for token, data in enumerate(speller.bytes_of[: loaded.vocabulary]):
        special = data is None and token < len(loaded.tokenizer) and token not in ends
        if special and specials and (text := loaded.tokenizer.convert_ids_to_tokens(token)):
            texts[token] = text.encode()
        may[0, token] = bool(data) or token in ends or token in texts
        may[1, token] = not data or token in ends or _begins_piece(data, settings)
    may[1] &= may[0]
    return Side(speller, ends, may, texts)


def _begins_piece(data: bytes, settings: VocabularySettings) -> bool:
    if settings.piece == "word":
        return data[:1].isspace()
    return not 0x80 <= data[0] < 0xC0
