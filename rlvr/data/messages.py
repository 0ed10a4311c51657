"""Chat messages as rows hold them: which are accepted, and what of them is kept.

Content may be text, or typed blocks of text, ``[{"type": "text", "text": ...}]``, which are joined.
A message may say ``from`` and ``value``, as ShareGPT's do, and call its roles human and gpt.
Further keys of a message (``reasoning_content``, ``tool_calls``, ``name``) are kept for the chat
template; what is null or empty is left out, because parquet gives every message every key.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from rlvr.data.cells import as_structure
from rlvr.data.consistency import short
from rlvr.types import Message

ROLES = ("system", "user", "assistant")
_SHAREGPT = {"human": "user", "gpt": "assistant"}
Messages = tuple[Message, ...]


class MessageError(ValueError):
    """A message that cannot be read; the text continues "message 2 ..."."""


def read_message(turn: object) -> Message:
    """A chat message with its further keys.

    Raises:
        MessageError: It has no known role, or its content is no text.
    """
    turn = _as_chatml(turn) if isinstance(turn, Mapping) else {}
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise MessageError(f"has role {role!r}; it must be one of {', '.join(ROLES)}")
    text = _text(content)
    if text is None:
        raise MessageError(f"has content {short(content)}; it must be text{_hint(content)}")
    more = {key: value for key, value in turn.items() if key not in ("role", "content")}
    kept = {key: value for key, value in more.items() if not _empty(value)}
    return cast(Message, {"role": role, "content": text, **kept})


def read_messages(value: object) -> Messages:
    """A list of messages; one message alone is a list of one.

    Raises:
        MessageError: One of them cannot be read; the text names it by its number.
    """
    turns = as_structure(value)
    turns = [turns] if isinstance(turns, Mapping) else turns
    if not isinstance(turns, list) or not turns:
        raise MessageError(f"{short(value)} is neither text nor a list of messages")
    found = []
    for number, turn in enumerate(turns, 1):
        try:
            found.append(read_message(turn))
        except MessageError as error:
            raise MessageError(f"message {number} {error}") from None
    return tuple(found)


def holds_messages(value: object) -> bool:
    """Whether a value is a list of messages (or one), in JSON if it is a cell."""
    turns = as_structure(value)
    turns = turns if isinstance(turns, list) else [turns]
    return bool(turns) and all(_is_message(turn) for turn in turns)


def _is_message(turn: object) -> bool:
    return isinstance(turn, Mapping) and ("role" in turn or {"from", "value"} <= turn.keys())


def _as_chatml(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """ShareGPT's names as those of chat messages, and those of its roles, which TRL's
    ``maybe_convert_to_chatml`` leaves to the chat template; the row itself stays as it is."""
    if "role" in turn or "from" not in turn:
        return turn
    more = {key: value for key, value in turn.items() if key not in ("from", "value")}
    role = turn["from"]
    return {"role": _SHAREGPT.get(role, role), "content": turn.get("value"), **more}


def read_prompt(value: object) -> Messages:
    """A prompt as messages; a text becomes one user message.

    Raises:
        MessageError: It is neither text nor messages.
    """
    if isinstance(value, str) and value and not holds_messages(value):
        return (Message(role="user", content=str(value)),)
    return read_messages(value)


class Reply(NamedTuple):
    """A completion as a row holds it.

    ``before`` are the messages before the assistant's, which repeat the prompt or go on from it.
    ``keys`` is what the assistant's message says besides its content; None if it is no message but
    a text, which is learnt as it stands.
    """

    before: Messages
    text: str
    keys: Mapping[str, Any] | None

    def says_the_same(self, other: "Reply") -> bool:
        """Whether both say the same, but for white space around it."""
        texts = self.text.strip(), other.text.strip()
        return texts[0] == texts[1] and (self.keys or {}) == (other.keys or {})


def read_reply(value: object) -> Reply:
    """A completion: a text, or messages of which the last is the assistant's.

    Raises:
        MessageError: It is neither, or another role ends it.
    """
    if isinstance(value, str) and not holds_messages(value):
        return Reply((), str(value), None)
    *before, last = read_messages(value)
    if last["role"] != "assistant":
        raise MessageError(f"ends with role {last['role']!r}, not with the assistant")
    keys = {key: value for key, value in last.items() if key not in ("role", "content")}
    return Reply(tuple(before), last["content"], keys)


def _text(content: object) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [
        block.get("text") if isinstance(block, Mapping) and _is_text(block) else None
        for block in content
    ]
    if any(not isinstance(text, str) for text in texts):
        return None
    return "".join(cast(list[str], texts))


def _is_text(block: Mapping[str, Any]) -> bool:
    """Whether a block has text alone; parquet gives it the keys of other blocks, as null."""
    return block.get("type", "text") == "text"


def _hint(content: object) -> str:
    if not isinstance(content, list):
        return ""
    kinds = [block.get("type") for block in content if isinstance(block, Mapping)]
    other = sorted({str(kind) for kind in kinds if kind not in (None, "text")})
    return f" or blocks of text, and {', '.join(other)} is none" if other else " or blocks of text"


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)
