"""Rows of any source -> problems: field mapping, and every fault named with file, row and id.

A row that a verifier could not use (no problem, no answer, an answer that is not text) is an error
by default: a reward of zero for ever looks like a hard problem, not like a broken row.
"""

import difflib
import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from rlvr.data.consistency import RowSettings, check_problems, prompt_key, short
from rlvr.settings import Settings
from rlvr.types import Message, Problem

_ROLES = ("system", "user", "assistant")
_MISSING = object()


class Fields(Settings):
    """Which columns of the data hold what; ``a.b`` reaches into a column that holds a mapping, and
    ``a.0`` takes the first item of one that holds a list."""

    problem: str = "problem"
    """Column with the problem's text, which becomes one user message."""

    answer: str = "answer"
    """Column with the reference answer."""

    id: str | None = None
    """Column with the problem's id; null: the column ``id`` if there is one, else a hash of prompt
    and answer, which stays the same when rows are reordered or other rows are added."""

    messages: str | None = None
    """Column with a whole prompt as a list of chat messages (role, content), used instead of
    ``problem``."""

    metadata: tuple[str, ...] = ()
    """Columns copied into the problem's metadata."""

    numbers_as_text: bool = False
    """Accept answers that are numbers, written out in decimals (2.50 read as the number 2.5 becomes
    "2.5"); off, a number is an error, since its original spelling is lost."""

    answer_after: str | None = Field(default=None, min_length=1)
    """Keep only what follows the last occurrence of this mark in the answer (GSM8K: "####")."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as read, with the words that lead a person to it ("line 7")."""

    label: str
    values: Mapping[str, Any]


class RowError(ValueError):
    """A fault of one row, which ``bad_rows: drop`` may skip."""


def problems_from_rows(
    rows: Iterable[Row], fields: Fields, settings: RowSettings, *, where: str, source: str
) -> list[Problem]:
    """Map, check and deduplicate rows.

    Args:
        rows: The rows, in order.
        fields: Which column holds what.
        settings: Which rows to take, and what to do with faulty ones.
        where: The file or data set, for messages.
        source: ``Problem.source`` of the result.

    Raises:
        ValueError: No rows; a missing column; an unusable row; an id twice; a problem with two
            different answers. File, row and id are named.
    """
    taken = _window(list(rows), settings, where)
    id_field = _settle_columns(taken, fields, where)
    labelled = _mapped(taken, fields, id_field, settings, where, source)
    return check_problems(labelled, settings, where)


def _window(rows: list[Row], settings: RowSettings, where: str) -> list[Row]:
    if not rows:
        raise ValueError(f"{where}: the data set is empty; give one with at least one row")
    end = None if settings.limit is None else settings.skip + settings.limit
    taken = rows[settings.skip : end]
    if not taken:
        raise ValueError(
            f"{where}: skip={settings.skip} leaves none of the {len(rows)} rows; skip fewer"
        )
    return taken


def _settle_columns(rows: Sequence[Row], fields: Fields, where: str) -> str | None:
    """Check that every wanted column exists somewhere; return the id column, if there is one."""
    wanted = [fields.answer, *fields.metadata]
    wanted.append(fields.problem if fields.messages is None else fields.messages)
    if fields.id is not None:
        wanted.append(fields.id)
    for name in wanted:
        if all(_get(row.values, name) is _MISSING for row in rows):
            columns = sorted({column for row in rows for column in row.values})
            close = difflib.get_close_matches(name, columns, n=3, cutoff=0.5)
            hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
            raise ValueError(
                f"{where}: there is no field {name!r}{hint}; the fields are "
                f"{', '.join(map(repr, columns))}; name the right one under 'fields'"
            )
    if fields.id is None and any("id" in row.values for row in rows):
        return "id"
    return fields.id


def _mapped(
    rows: Sequence[Row],
    fields: Fields,
    id_field: str | None,
    settings: RowSettings,
    where: str,
    source: str,
) -> list[tuple[str, Problem]]:
    found: list[tuple[str, Problem]] = []
    seen: dict[str, int] = {}
    faults: list[str] = []
    for row in rows:
        try:
            problem = _problem(row, fields, id_field, source)
        except RowError as fault:
            message = f"{where}, {row.label}{_named(row, id_field)}: {fault}"
            if settings.bad_rows == "error":
                raise ValueError(message) from None
            faults.append(message)
            continue
        if id_field is None:
            # The same row again: the hash says what it is, the number which occurrence.
            seen[problem.id] = seen.get(problem.id, 0) + 1
            if seen[problem.id] > 1:
                problem = _with_id(problem, f"{problem.id}-{seen[problem.id]}")
        found.append((row.label, problem))
    if faults:
        warnings.warn(
            f"{where}: dropped {len(faults)} unusable rows of {len(rows)}, the first: {faults[0]}",
            stacklevel=2,
        )
    return found


def _problem(row: Row, fields: Fields, id_field: str | None, source: str) -> Problem:
    messages = (
        (Message(role="user", content=_text(row, fields.problem, "problem")),)
        if fields.messages is None
        else _messages(row, fields.messages)
    )
    answer = _answer(row, fields)
    identity = _content_id(messages, answer) if id_field is None else _id(row, id_field)
    _refuse_half_characters(identity, answer, *(turn["content"] for turn in messages))
    metadata = {name: _get(row.values, name) for name in fields.metadata}
    metadata = {name: None if value is _MISSING else value for name, value in metadata.items()}
    return Problem(identity, messages, answer, source, metadata)


def _refuse_half_characters(*texts: str) -> None:
    r"""JSON can spell half a surrogate pair (``\ud83d``), which no file and no tokenizer takes."""
    for text in texts:
        if half := next((mark for mark in text if "\ud800" <= mark <= "\udfff"), None):
            raise RowError(
                f"{short(text)} holds {half!r}, half a character; mend it or remove the row"
            )


def _text(row: Row, name: str, what: str) -> str:
    value = _get(row.values, name)
    if value is _MISSING or value is None:
        raise RowError(f"{what} (field {name!r}) is missing; fill it in or remove the row")
    if isinstance(value, list):
        raise RowError(
            f"{what} (field {name!r}) is a list; if it holds chat messages, set "
            f"fields.messages: {name}"
        )
    if not isinstance(value, str):
        raise RowError(f"{what} (field {name!r}) = {short(value)} is not text; write it as text")
    if not value.strip():
        raise RowError(f"{what} (field {name!r}) is empty; fill it in or remove the row")
    return value


def _answer(row: Row, fields: Fields) -> str:
    value = _get(row.values, fields.answer)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not fields.numbers_as_text:
            raise RowError(
                f"answer (field {fields.answer!r}) = {short(value)} is a number, not text; write "
                "it as text or set fields.numbers_as_text: true"
            )
        return decimal_text(value)
    text = _text(row, fields.answer, "answer")
    if fields.answer_after is not None:
        _, mark, text = text.rpartition(fields.answer_after)
        if not mark:
            raise RowError(f"answer holds no {fields.answer_after!r}, the mark of answer_after")
        if not text.strip():
            raise RowError(f"answer is empty after {fields.answer_after!r}")
    return text.strip()


def decimal_text(number: int | float) -> str:
    """The shortest decimal spelling without exponent that reads back as the same number.

    Raises:
        RowError: The number is not finite.
    """
    if isinstance(number, int):
        return str(number)
    if not math.isfinite(number):
        raise RowError(f"answer = {number} is not a finite number; remove the row")
    if number.is_integer():
        return str(int(number))
    mantissa, _, exponent = repr(number).partition("e")
    if not exponent:
        return mantissa
    # repr writes an exponent only below 1e-4 (larger floats of this size are whole).
    sign, digits = ("-" if number < 0 else ""), mantissa.lstrip("-").replace(".", "")
    return f"{sign}0.{'0' * (-int(exponent) - 1)}{digits}"


def _messages(row: Row, name: str) -> tuple[Message, ...]:
    value = _get(row.values, name)
    if not isinstance(value, list) or not value:
        raise RowError(
            f"messages (field {name!r}) = {short(None if value is _MISSING else value)} is not a "
            "list of chat messages; use fields.problem for plain text"
        )
    turns = tuple(_message(turn, name, number) for number, turn in enumerate(value, 1))
    roles = [turn["role"] for turn in turns]
    if "system" in roles[1:]:
        raise RowError(f"messages (field {name!r}): a system message may only stand first")
    if roles[-1] != "user":
        raise RowError(
            f"messages (field {name!r}) end with role {roles[-1]!r}; a prompt ends with the user's"
        )
    return turns


def _message(turn: object, name: str, number: int) -> Message:
    role = turn.get("role") if isinstance(turn, Mapping) else None
    content = turn.get("content") if isinstance(turn, Mapping) else None
    if role not in _ROLES:
        raise RowError(
            f"message {number} (field {name!r}) has role {role!r}; it needs one of "
            f"{', '.join(_ROLES)}"
        )
    if not isinstance(content, str) or not content.strip():
        raise RowError(
            f"message {number} (field {name!r}) has content {short(content)}; it needs text"
        )
    return Message(role=role, content=content)


def _id(row: Row, name: str) -> str:
    value = _get(row.values, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(
            f"id (field {name!r}) = {short(None if value is _MISSING else value)} is not a text "
            "or a whole number; give every row an id, or name another field as fields.id"
        )
    return value.strip()


def _content_id(messages: Sequence[Message], answer: str) -> str:
    content = f"{prompt_key(messages)}\n{answer}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _with_id(problem: Problem, identity: str) -> Problem:
    return Problem(identity, problem.messages, problem.answer, problem.source, problem.metadata)


def _named(row: Row, id_field: str | None) -> str:
    value = _get(row.values, id_field) if id_field is not None else _MISSING
    return f", id {value!r}" if isinstance(value, (str, int)) else ""


def _get(values: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401  (data holds anything)
    """The column ``name``, or what ``a.b`` (or ``a.0``) reaches inside column ``a``."""
    if name in values:
        return values[name]
    found: Any = values
    for part in name.split("."):
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            return _MISSING
    return found
