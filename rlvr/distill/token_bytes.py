"""The bytes that each token of a tokenizer stands for, so that no character is damaged.

Decoding one token at a time loses characters that byte-level vocabularies split over tokens.
This module knows byte-level vocabularies (GPT-2, Llama 3, Qwen), sentencepiece-like ones with byte
tokens (Llama 2, Gemma, Mistral), and vocabularies whose tokens are plain text.
"""

import json
import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


def token_bytes(tokenizer: Any) -> list[bytes | None]:  # noqa: ANN401
    """The bytes of each token, indexed by id; None for special tokens and for ids without a token.

    Raises:
        ValueError: The tokenizer's way of writing tokens is unknown.
    """
    read = _reader(tokenizer)
    added = tokenizer.added_tokens_decoder
    special = frozenset(tokenizer.all_special_ids)  # transformers computes it at every access
    found: list[bytes | None] = [None] * (max(tokenizer.get_vocab().values()) + 1)
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        found[index] = added[index].content.encode() if index in added else read(token)
    return found


class Speller:
    """Turns bytes into a tokenizer's ids, so that the ids stand for exactly these bytes."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.bytes_of = token_bytes(tokenizer)
        self._ids = {data: index for index, data in enumerate(self.bytes_of) if data}
        self._longest = max(map(len, self._ids), default=0)
        self._known: dict[bytes, tuple[int, ...] | None] = {}

    def spell(self, data: bytes) -> tuple[int, ...] | None:
        """Ids of the bytes, split as the tokenizer splits the text if possible; None if
        impossible."""
        if data not in self._known:
            self._known[data] = self._tokenized(data) or self._longest_matches(data)
        return self._known[data]

    def _tokenized(self, data: bytes) -> tuple[int, ...] | None:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return None
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return ids if self.joined(ids) == data else None

    def _longest_matches(self, data: bytes) -> tuple[int, ...] | None:
        ids, start = [], 0
        while start < len(data):
            for length in range(min(self._longest, len(data) - start), 0, -1):
                index = self._ids.get(data[start : start + length])
                if index is not None:
                    ids.append(index)
                    start += length
                    break
            else:
                return None
        return tuple(ids)

    def joined(self, ids: tuple[int, ...]) -> bytes | None:
        """The bytes of ids; None if an id is special or unknown."""
        parts = [self.bytes_of[index] if index < len(self.bytes_of) else None for index in ids]
        return None if any(part is None for part in parts) else b"".join(p for p in parts if p)


def _reader(tokenizer: Any) -> Any:  # noqa: ANN401
    """A function that maps a token, as the vocabulary writes it, to its bytes."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = described.get("decoder") or {}
    kinds = [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", []))]
    if "ByteLevel" in kinds:
        table = {character: byte for byte, character in _byte_characters().items()}
        return lambda token: bytes(table[character] for character in token)
    if "Metaspace" in kinds or "ByteFallback" in kinds:
        return _sentencepiece
    if set(kinds) <= {None, "Fuse"}:
        return lambda token: token.encode("utf-8")
    raise ValueError(
        f"the tokenizer {tokenizer.name_or_path!r} joins its tokens by {kinds}, which is not "
        "supported; choose a model with a byte-level or sentencepiece-like tokenizer"
    )


def _sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(_SPACE, " ").encode("utf-8")


def _byte_characters() -> dict[int, str]:
    """The character that byte-level vocabularies write for each byte: the byte's own character if
    it is visible, else the next free one from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    shifted = {byte: 256 + number for number, byte in enumerate(hidden)}
    return {byte: chr(shifted.get(byte, byte)) for byte in range(256)}
