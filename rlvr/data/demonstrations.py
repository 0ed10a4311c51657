"""Responses to imitate, from four kinds of rows.

    {"prompt_ids": [...], "token_ids": [...]}        a trace: used as stored, never encoded again
    {"prompt": text or messages, "response": ...}    ``completion`` may stand for ``response``
    {"messages": [..., {"role": "assistant", ...}]}  the last turn is the response; ShareGPT's
                                                     ``conversations`` may stand for ``messages``
    {"text": text}                                   all of it is learnt but its first token

where a response is text, or messages that end with the assistant's. Text is encoded once: the
prompt with a template, the response as ``rlvr/data/responses.py`` says, followed by the token that
ends it. A trace already has its end token, or was cut and gets none. A run folder stands for the
completions that the run kept; a folder that ``datasets`` saved is read like a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.data.cells import as_structure, given
from rlvr.data.consistency import short
from rlvr.data.kept import check_one_turn, was_cut
from rlvr.data.labelled_responses import messages_of, response_files
from rlvr.data.local_file import read_rows
from rlvr.data.messages import MessageError, Messages, Reply, read_messages, read_reply
from rlvr.data.responses import ResponseEncoder
from rlvr.data.rows import Row
from rlvr.data.templates import Template, begins_texts


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the tokens that must follow it; ``row`` is the row from which it was read."""

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
        sources: JSONL (or .json, .csv, .parquet) files, saved data sets, or run folders.
        template: How the prompt of a text row becomes tokens.
        tokenizer: A Hugging Face tokenizer.
        reencode: Encode a trace's ``prompt`` and ``text`` with this tokenizer instead of using its
            ids, which belong to another one.

    Raises:
        ValueError: A file is missing, or a row is not a demonstration; the message names it.
    """
    encoder = _Encoder(template, tokenizer, reencode)
    found = [
        encoder(row, f"{file}, {row.label}")
        for source in sources
        for file in response_files(source)
        for row in read_rows(file)
    ]
    encoder.encode.warn()
    if not found:
        raise ValueError(
            f"{', '.join(map(str, sources))}: no demonstrations found; check the files"
        )
    return found


def keep_short(
    found: Sequence[Demonstration], limit: int | None
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Split into demonstrations of at most ``limit`` tokens (prompt and response), and longer
    ones."""
    kept = [item for item in found if limit is None or len(item) <= limit]
    return kept, [item for item in found if limit is not None and len(item) > limit]


class _Encoder:
    """Turns a row into a demonstration."""

    def __init__(self, template: Template, tokenizer: Any, reencode: bool) -> None:  # noqa: ANN401
        self.tokenizer, self.reencode = tokenizer, reencode
        self.encode = ResponseEncoder(template, tokenizer)

    def __call__(self, row: Row, place: str) -> Demonstration:
        values = row.values
        name = str(values.get("id", place))
        finished = not was_cut(values)
        check_one_turn(values, place)
        if "token_ids" in values or "prompt_ids" in values:
            if not self.reencode:
                ids = [_ids(values.get(key), key, place) for key in ("prompt_ids", "token_ids")]
                return Demonstration(name, ids[0], ids[1], values)
            prompt = self._plain(values.get("prompt"), "prompt", place)
            response = self._plain(values.get("text"), "text", place)
            return Demonstration(
                name, prompt, self.encode.ended(prompt, response, finished), values
            )
        if _is_text_alone(values):
            return self._whole_text(values, name, place)
        messages, reply = _turns(values, place)
        try:
            prompt, response = self.encode(messages, reply.text, reply.keys, finished=finished)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        return Demonstration(
            name,
            _non_empty(prompt, "prompt", place),
            _non_empty(response, "text", place),
            values,
        )

    def _whole_text(self, values: Mapping[str, Any], name: str, place: str) -> Demonstration:
        """A text of which nothing is a prompt."""
        ids = self._plain(values["text"], "text", place)
        if begins_texts(self.tokenizer):
            ids = (self.tokenizer.bos_token_id, *ids)
        ids = (*ids, self.tokenizer.eos_token_id)
        return Demonstration(name, ids[:1], ids[1:], values)

    def _plain(self, text: object, key: str, place: str) -> tuple[int, ...]:
        if not isinstance(text, str):
            raise ValueError(
                f"{place}: {key} = {short(text)} is not text that can be encoded again"
            )
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return _non_empty(tuple(ids), key, place)


def _is_text_alone(values: Mapping[str, Any]) -> bool:
    names = ("messages", "conversations", "prompt", "response", "completion")
    return isinstance(values.get("text"), str) and given(values, *names) is None


def _turns(values: Mapping[str, Any], place: str) -> tuple[Messages, Reply]:
    """The messages of the prompt, and the response."""
    whole = given(values, "messages", "conversations")
    if whole is not None:
        return _conversation(whole, place)
    value = given(values, "response", "completion")
    if not isinstance(value, str | list | Mapping):
        raise ValueError(
            f"{place}: response = {short(value)} is not text; a row needs prompt_ids and "
            "token_ids, prompt and response, messages, or text"
        )
    try:
        reply = read_reply(value)
    except MessageError as error:
        raise ValueError(f"{place}: response {error}") from None
    if reply.before and given(values, "prompt") is None:
        return reply.before, reply
    prompt = messages_of(values.get("prompt"), place)
    # A completion may repeat the prompt, or go on from it with turns of its own.
    repeated = reply.before[: len(prompt)] == prompt
    return (reply.before if repeated else (*prompt, *reply.before)), reply


def _conversation(value: object, place: str) -> tuple[Messages, Reply]:
    """A whole conversation: its last message is the response."""
    try:
        turns = read_messages(value)
    except MessageError as error:
        raise ValueError(f"{place}: messages: {error}") from None
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise ValueError(
            f"{place}: messages must end with an assistant message, the response to learn"
        )
    return turns[:-1], read_reply(value)


def _ids(value: object, key: str, place: str) -> tuple[int, ...]:
    value = as_structure(value)
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError(f"{place}: {key} = {short(value)} is not a list of token ids")
    return _non_empty(tuple(value), key, place)


def _non_empty(ids: tuple[int, ...], key: str, place: str) -> tuple[int, ...]:
    if not ids:
        raise ValueError(f"{place}: {key} is empty; remove the row")
    return ids
