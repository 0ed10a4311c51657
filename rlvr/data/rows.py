"""Turn rows of any source into problems; messages name every fault with file, row and id.

A row that a verifier could not use (no problem, no answer, an answer that is not text) is an error
by default, because a reward that is always zero looks like a hard problem and not like a broken
row.
"""

import difflib
import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import Field

from rlvr.data.cells import as_structure, given
from rlvr.data.consistency import (
    MATHEMATICS,
    Grader,
    RowSettings,
    check_problems,
    prompt_key,
    short,
)
from rlvr.data.messages import MessageError, holds_messages, read_message
from rlvr.settings import Settings
from rlvr.types import Message, Problem

_MISSING = object()


class Fields(Settings):
    """Names of the columns of the data; ``a.b`` is a key of a column that contains a mapping, and
    ``a.0`` is the first item of a column that contains a list."""

    problem: str = "problem"
    """Column with the text of the problem, which becomes one user message; without it TRL's
    ``prompt``, a text or messages."""

    answer: str = "answer"
    """Column with the reference answer; without it, of rows with a ``prompt``, ``solution``."""

    id: str | None = None
    """Column with the problem's id; null uses the column ``id`` if it exists, otherwise a hash of
    prompt and answer, which does not change when rows are reordered or added."""

    messages: str | None = None
    """Column with the whole prompt as a list of chat messages (role, content), used instead of
    ``problem``."""

    metadata: tuple[str, ...] = ()
    """Columns copied into the problem's metadata."""

    grader: str | None = None
    """Column with the name of the grader of each row; null, or no name there, is the source's."""

    numbers_as_text: bool = False
    """Accept answers that are numbers and write them as decimals (the number 2.50 becomes "2.5").
    If false, a number is an error, because its original spelling is lost."""

    answer_after: str | None = Field(default=None, min_length=1)
    """Keep only the text after the last occurrence of this mark in the answer (GSM8K: "####")."""

    answer_boxed: bool = False
    """Keep only what the last box of the answer contains (MATH's column solution)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as read, with its location for messages ("line 7").

    ``columns`` are all of its columns where ``values`` are only those in use.
    """

    label: str
    values: Mapping[str, Any]
    columns: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RowsWanted:
    """What is made of a row besides its prompt.

    ``answers`` says that a row without a usable answer is a fault; else its answer is "".
    ``columns`` keeps the whole row with the problem.
    """

    answers: bool = True
    columns: bool = False


ANSWERS = RowsWanted()


class RowError(ValueError):
    """A fault of one row; ``bad_rows: drop`` skips the row."""


def problems_from_rows(
    rows: Iterable[Row],
    fields: Fields,
    settings: RowSettings,
    *,
    where: str,
    source: str,
    wanted: RowsWanted = ANSWERS,
) -> list[Problem]:
    """Turn rows into problems: map their fields, check and deduplicate them.

    Args:
        rows: The rows, in order.
        fields: Names of the columns.
        settings: Which rows to use, and what to do with faulty ones.
        where: The file or data set, for messages.
        source: ``Problem.source`` of the result.
        wanted: What is made of a row besides its prompt.

    Raises:
        ValueError: There are no rows, a column is missing, a row is unusable, an id occurs twice,
            or a problem has two different answers. The message names file, row and id.
    """
    taken = _window(list(rows), settings, where)
    fields = _with_names_of_trl(taken, fields, wanted)
    if settings.grader == "instructions":
        taken = [_with_instructions(row, fields) for row in taken]
    id_field = _settle_columns(taken, fields, where, wanted)
    labelled = _mapped(taken, fields, id_field, settings, where, source, wanted)
    return check_problems(labelled, settings, where)


def _window(rows: list[Row], settings: RowSettings, where: str) -> list[Row]:
    if not rows:
        raise ValueError(f"{where}: the data set is empty; name one with at least one row")
    end = None if settings.limit is None else settings.skip + settings.limit
    taken = rows[settings.skip : end]
    if not taken:
        raise ValueError(
            f"{where}: skip={settings.skip} leaves none of the {len(rows)} rows; skip fewer"
        )
    return taken


def _with_names_of_trl(rows: Sequence[Row], fields: Fields, wanted: RowsWanted) -> Fields:
    """The names of columns, or TRL's where the rows are prompts as its trainers take them: a
    ``prompt``, a text or messages, and the ``solution`` that its accuracy reward reads."""
    columns = {name for row in rows for name in row.values}
    unnamed = fields.messages is None and fields.problem == Fields().problem
    if not unnamed or fields.problem in columns or "prompt" not in columns:
        return fields
    messages = any(holds_messages(row.values.get("prompt")) for row in rows)
    names = {"messages" if messages else "problem": "prompt"}
    unnamed = fields.answer == Fields().answer and fields.answer not in columns
    if wanted.answers and unnamed and "solution" in columns:
        names["answer"] = "solution"
    return fields.model_copy(update=names)


def _with_instructions(row: Row, fields: Fields) -> Row:
    """A row of IFEval, whose reference is in two columns, with both in that of the answer."""
    names = ("instruction_id_list", "kwargs")
    if fields.answer in row.values or any(name not in row.values for name in names):
        return row
    reference = {name: as_structure(row.values[name]) for name in names}
    return replace(row, values={**row.values, fields.answer: reference})


def _settle_columns(
    rows: Sequence[Row], fields: Fields, where: str, wanted: RowsWanted
) -> str | None:
    """Check that every named column exists in some row; return the id column, or None."""
    for name in used_columns(fields, wanted):
        if all(_get(row.values, name) is _MISSING for row in rows):
            columns = sorted({column for row in rows for column in row.values})
            close = difflib.get_close_matches(name, columns, n=3, cutoff=0.5)
            hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
            if name == fields.answer == Fields().answer:
                hint += ", which the rewards compare with (accuracy does; others need none)"
            raise ValueError(
                f"{where}: there is no field {name!r}{hint}; the fields are "
                f"{', '.join(map(repr, columns))}; name the right one under 'fields'"
            )
    if fields.id is None and any("id" in row.values for row in rows):
        return "id"
    return fields.id


def used_columns(fields: Fields, wanted: RowsWanted) -> list[str]:
    """The columns that there must be; that of the answer if it is wanted, or was named."""
    names = [fields.answer] if answer_is_asked_for(fields, wanted) else []
    names += [*fields.metadata, fields.problem if fields.messages is None else fields.messages]
    return names if fields.id is None else [*names, fields.id]


def answer_is_asked_for(fields: Fields, wanted: RowsWanted) -> bool:
    """Whether there must be a column of answers: it is wanted, or named by another name than the
    default's (which a recorded recipe spells out)."""
    return wanted.answers or fields.answer != Fields().answer


def _mapped(
    rows: Sequence[Row],
    fields: Fields,
    id_field: str | None,
    settings: RowSettings,
    where: str,
    source: str,
    wanted: RowsWanted,
) -> list[tuple[str, Problem]]:
    found: list[tuple[str, Problem]] = []
    seen: dict[str, int] = {}
    faults: list[str] = []
    for row in rows:
        try:
            problem = _problem(row, fields, id_field, source, wanted, settings.grader)
        except RowError as fault:
            message = f"{where}, {row.label}{_named(row, id_field)}: {fault}"
            if settings.bad_rows == "error":
                raise ValueError(message) from None
            faults.append(message)
            continue
        if id_field is None:
            # The same row again: the hash identifies the content, the number the occurrence.
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


def _problem(
    row: Row, fields: Fields, id_field: str | None, source: str, wanted: RowsWanted, grader: str
) -> Problem:
    grader = _grader(row, fields) or grader
    posed = _get(row.values, fields.problem)
    messages = (
        (Message(role="user", content=_text(posed, fields.problem, "problem")),)
        if fields.messages is None
        else _messages(row, fields.messages)
    )
    row = row if grader in MATHEMATICS else _with_text(row, fields)
    answer = _answer(row, fields) if wanted.answers else _answer_if_there(row, fields)
    identity = _content_id(messages, answer) if id_field is None else _id(row, id_field)
    _refuse_half_characters(identity, answer, *(turn["content"] for turn in messages))
    metadata = {name: _get(row.values, name) for name in fields.metadata}
    metadata = {name: None if value is _MISSING else value for name, value in metadata.items()}
    return Problem(
        identity,
        messages,
        answer,
        source,
        metadata,
        columns=(row.values if row.columns is None else row.columns) if wanted.columns else {},
        conversational=fields.messages is not None,
        grader=grader,
    )


def _grader(row: Row, fields: Fields) -> str:
    """The grader that a row names, or ""."""
    if fields.grader is None or not (name := given(row.values, fields.grader)):
        return ""
    if name not in get_args(Grader):
        near = difflib.get_close_matches(str(name), get_args(Grader), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RowError(
            f"grader (field {fields.grader!r}) = {short(name)} is not one of "
            f"{', '.join(get_args(Grader))}{hint}"
        )
    return str(name)


def _with_text(row: Row, fields: Fields) -> Row:
    """A row whose reference is text: JSON of what is a number, a list or an object."""
    reference = _get(row.values, fields.answer)
    if reference is _MISSING or reference is None or isinstance(reference, str):
        return row
    try:
        text = json.dumps(reference, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RowError(f"answer (field {fields.answer!r}): {error}; write it as JSON") from None
    return replace(row, values={**row.values, fields.answer: text})


def _refuse_half_characters(*texts: str) -> None:
    r"""Refuse half a surrogate pair (JSON can spell ``\ud83d``): no file or tokenizer accepts
    it."""
    for text in texts:
        if half := next((mark for mark in text if "\ud800" <= mark <= "\udfff"), None):
            raise RowError(
                f"{short(text)} contains {half!r}, half a character; correct it or remove the row"
            )


def _text(value: object, name: str, what: str) -> str:
    if value is _MISSING or value is None:
        raise RowError(f"{what} (field {name!r}) is missing; fill it in or remove the row")
    if holds_messages(value):
        raise RowError(
            f"{what} (field {name!r}) is a list of chat messages; set fields.messages: {name}"
        )
    if not isinstance(value, str):
        raise RowError(f"{what} (field {name!r}) = {short(value)} is not text; write it as text")
    if not value.strip():
        raise RowError(f"{what} (field {name!r}) is empty; fill it in or remove the row")
    return str(value)


def _only(values: list[Any], name: str) -> Any:  # noqa: ANN401  (data holds anything)
    """The item of a list of one answer."""
    if len(values) != 1:
        raise RowError(
            f"answer (field {name!r}) = {short(values)} is a list of {len(values)}; a problem has "
            f"one reference answer: set fields.answer: {name}.0 for the first, or write one as text"
        )
    return values[0]


def _answer(row: Row, fields: Fields) -> str:
    value = _get(row.values, fields.answer)
    if isinstance(value, list):
        value = _only(value, fields.answer)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not fields.numbers_as_text:
            raise RowError(
                f"answer (field {fields.answer!r}) = {short(value)} is a number, not text; write "
                "it as text or set fields.numbers_as_text: true"
            )
        return decimal_text(value)
    text = _text(value, fields.answer, "answer")
    if fields.answer_after is not None:
        _, mark, text = text.rpartition(fields.answer_after)
        if not mark:
            raise RowError(
                f"answer does not contain {fields.answer_after!r}, the mark of answer_after"
            )
        if not text.strip():
            raise RowError(f"answer is empty after {fields.answer_after!r}")
    return _boxed(text) if fields.answer_boxed else text.strip()


def _boxed(text: str) -> str:
    from reward.extract import last_box  # the verifier's libraries are slow to load

    content = (last_box(text) or "").strip()
    if not content:
        raise RowError(
            f"answer {short(text)} ends in no \\boxed{{}} with content; leave fields.answer_boxed "
            "out, or drop such rows with bad_rows: drop"
        )
    return content


def _answer_if_there(row: Row, fields: Fields) -> str:
    """The answer, or "" where there is none that can be used; of a column that was named, what is
    there must be usable."""
    value = _get(row.values, fields.answer)
    if value is _MISSING or value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if answer_is_asked_for(fields, RowsWanted(answers=False)):
        return _answer(row, fields)
    try:
        return _answer(row, fields)
    except RowError:
        return ""


def decimal_text(number: int | float) -> str:
    """The shortest decimal spelling without an exponent that reads back as the same number.

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
    value = as_structure(_get(row.values, name))
    if not isinstance(value, list) or not value:
        raise RowError(
            f"messages (field {name!r}) = {short(None if value is _MISSING else value)} is not a "
            "list of chat messages; use fields.problem for plain text"
        )
    turns = tuple(_message(turn, name, number) for number, turn in enumerate(value, 1))
    roles = [turn["role"] for turn in turns]
    if "system" in roles[1:]:
        raise RowError(f"messages (field {name!r}): only the first message may be a system message")
    if roles[-1] != "user":
        raise RowError(
            f"messages (field {name!r}) end with role {roles[-1]!r}; a prompt must end with a user "
            "message"
        )
    return turns


def _message(turn: object, name: str, number: int) -> Message:
    try:
        message = read_message(turn)
    except MessageError as error:
        raise RowError(f"message {number} (field {name!r}) {error}") from None
    if not message["content"].strip():
        raise RowError(f"message {number} (field {name!r}) has content ''; it must be text")
    return message


def _id(row: Row, name: str) -> str:
    value = _get(row.values, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(
            f"id (field {name!r}) = {short(None if value is _MISSING else value)} is neither text "
            "nor a whole number; give every row an id, or name another field as fields.id"
        )
    return value.strip()


def _content_id(messages: Sequence[Message], answer: str) -> str:
    content = f"{prompt_key(messages)}\n{answer}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _with_id(problem: Problem, identity: str) -> Problem:
    return replace(problem, id=identity)


def _named(row: Row, id_field: str | None) -> str:
    value = _get(row.values, id_field) if id_field is not None else _MISSING
    return f", id {value!r}" if isinstance(value, (str, int)) else ""


def _get(values: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401  (data holds anything)
    """The column ``name``, or the key ``b`` (or the item 0) of column ``a`` for ``a.b``
    (``a.0``)."""
    if name in values:
        return values[name]
    found: Any = values
    for part in name.split("."):
        found = as_structure(found)
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            return _MISSING
    return found
