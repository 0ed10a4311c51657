"""A vocabulary as bytes: which tokens a model may write, and where pieces of text begin."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlvr.distill.token_bytes import Speller
from rlvr.distill.trace_model import LoadedModel
from rlvr.distill.vocabulary_match import VocabularySettings


@dataclass(frozen=True)
class TokenizerView:
    """One model's vocabulary as bytes."""

    speller: Speller
    end_ids: frozenset[int]
    may: torch.Tensor
    """[2, V]: tokens that may be drawn, and those among them that begin a piece."""
    texts: dict[int, bytes]
    """Special tokens that may be drawn, with their text."""

    def data(self, tokens: Sequence[int]) -> bytes:
        """The bytes of tokens; special tokens are spelled as their text."""
        parts = [self.texts.get(token) or self.speller.bytes_of[token] or b"" for token in tokens]
        return b"".join(parts)

    def begins(self, token: int) -> bool:
        """Whether a token begins a piece."""
        return bool(self.may[1, token])

    def alone(self, token: int) -> bool:
        """Whether a token is a whole piece."""
        return token in self.end_ids or token in self.texts


def make_tokenizer_view(
    loaded: LoadedModel, settings: VocabularySettings, *, specials: bool
) -> TokenizerView:
    """Build the view of a model's vocabulary.

    Args:
        loaded: The model.
        settings: What a piece is.
        specials: Whether special tokens other than end tokens may be drawn.

    Raises:
        ValueError: The tokenizer's way of writing tokens is unknown.
    """
    speller = Speller(loaded.tokenizer)
    ends = frozenset(loaded.stop_ids)
    texts = {}
    may = torch.zeros(2, loaded.vocab_size, dtype=torch.bool)
    for token, data in enumerate(speller.bytes_of[: loaded.vocab_size]):
        special = data is None and token < len(loaded.tokenizer) and token not in ends
        if special and specials and (text := loaded.tokenizer.convert_ids_to_tokens(token)):
            texts[token] = text.encode()
        may[0, token] = bool(data) or token in ends or token in texts
        may[1, token] = not data or token in ends or _begins_piece(data, settings)
    may[1] &= may[0]
    return TokenizerView(speller, ends, may, texts)


def _begins_piece(data: bytes, settings: VocabularySettings) -> bool:
    if settings.piece == "word":
        return data[:1].isspace()
    return not 0x80 <= data[0] < 0xC0
