"""Responses to imitate, from JSON lines of three kinds.

    {"prompt_ids": [...], "token_ids": [...]}          a trace: used as stored, never encoded again
    {"prompt": text or messages, "response": text}     ``completion`` may stand for ``response``
    {"messages": [..., {"role": "assistant", ...}]}    the last turn is the response

Text is encoded once: the prompt by a template, the response as it stands with the end token behind
it. A trace has its end token already, or was cut and gets none. A run folder stands for the
completions that the run kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.data.consistency import short
from rlvr.data.files import read_rows
from rlvr.data.responses import messages_of, response_files
from rlvr.data.rows import Row
from rlvr.data.templates import Template


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the tokens that are to follow it; ``row`` is what it was read from."""

    name: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    row: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


def load_demonstrations(
    sources: Sequence[Path],
    template: Template,
    tokenizer: Any,  # noqa: ANN401
    *,
    reencode: bool = False,
) -> list[Demonstration]:
    """Read and encode the demonstrations of files and run folders.

    Args:
        sources: JSONL (or .json, .csv, .parquet) files, or run folders.
        template: How the prompt of a row of text becomes tokens.
        tokenizer: A Hugging Face tokenizer.
        reencode: Encode a trace's ``prompt`` and ``text`` by this tokenizer instead of taking its
            ids, which belong to another.

    Raises:
        ValueError: No such file, or a row that is no demonstration; it is named.
    """
    encoder = _Encoder(template, tokenizer, reencode)
    found = [
        encoder(row, f"{file}, {row.label}")
        for source in sources
        for file in response_files(source)
        for row in read_rows(file)
    ]
    if not found:
        raise ValueError(f"{', '.join(map(str, sources))}: there are no demonstrations")
    return found


def keep_short(
    found: Sequence[Demonstration], limit: int | None
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Those of at most ``limit`` tokens, prompt and response together, and the others."""
    kept = [item for item in found if limit is None or len(item) <= limit]
    return kept, [item for item in found if limit is not None and len(item) > limit]


@dataclass
class _Encoder:
    """A row in, its demonstration out."""

    template: Template
    tokenizer: Any
    reencode: bool

    def __call__(self, row: Row, place: str) -> Demonstration:
        values = row.values
        name = str(values.get("id", place))
        if "token_ids" in values or "prompt_ids" in values:
            if not self.reencode:
                ids = [_ids(values.get(key), key, place) for key in ("prompt_ids", "token_ids")]
                return Demonstration(name, ids[0], ids[1], values)
            prompt = self._plain(values.get("prompt"), "prompt", place)
            response = self._plain(values.get("text"), "text", place)
            end = [self.tokenizer.eos_token_id] * (values.get("finish_reason") != "length")
            return Demonstration(name, prompt, (*response, *end), values)
        messages, text = _turns(values, place)
        self.template.check(self.tokenizer)
        try:
            prompt = tuple(self.template.encode(messages, self.tokenizer))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        cut = values.get("finish_reason") == "length"
        response = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return Demonstration(
            name,
            _non_empty(prompt, "prompt", place),
            _non_empty(response + (() if cut else (self.tokenizer.eos_token_id,)), "text", place),
            values,
        )

    def _plain(self, text: object, key: str, place: str) -> tuple[int, ...]:
        if not isinstance(text, str):
            raise ValueError(f"{place}: {key} = {short(text)} is no text to encode again")
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return _non_empty(tuple(ids), key, place)


def _turns(values: Mapping[str, Any], place: str) -> tuple[Any, str]:
    """The messages of the prompt, and the response."""
    if "messages" in values:
        turns = messages_of(values["messages"], place)
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise ValueError(f"{place}: messages must end with the assistant's, which is learnt")
        return turns[:-1], turns[-1]["content"]
    text = values.get("response", values.get("completion"))
    if not isinstance(text, str):
        raise ValueError(
            f"{place}: response = {short(text)} is no text; a row has prompt_ids and token_ids, "
            "prompt and response, or messages"
        )
    return messages_of(values.get("prompt"), place), text


def _ids(value: object, key: str, place: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError(f"{place}: {key} = {short(value)} is no list of token ids")
    return _non_empty(tuple(value), key, place)


def _non_empty(ids: tuple[int, ...], key: str, place: str) -> tuple[int, ...]:
    if not ids:
        raise ValueError(f"{place}: {key} holds no token; remove the row")
    return ids
