"""Problems as a whole: ids that differ, no contradictions, duplicates settled, never none."""

import json
import warnings
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from rlvr.settings import Settings
from rlvr.types import Message, Problem


class RowSettings(Settings):
    """What all sources have in common: which rows to take, and what to do with faulty ones."""

    skip: int = Field(default=0, ge=0)
    """Leave out the first rows (with ``limit``, a simple way to part one file)."""

    limit: int | None = Field(default=None, ge=1)
    """Take at most this many rows."""

    duplicates: Literal["drop", "keep", "error"] = "drop"
    """A problem that stands twice with the same answer: keep the first with a warning, keep all
    with a warning, or refuse."""

    bad_rows: Literal["error", "drop"] = "error"
    """Rows without a usable problem or answer, and problems that stand with two different answers:
    refuse, or drop them with a warning that counts them."""


def check_problems(
    labelled: Sequence[tuple[str, Problem]], settings: RowSettings, where: str
) -> list[Problem]:
    """Refuse ids that stand twice and contradictions; settle duplicates; refuse an empty result.

    Args:
        labelled: Problems with the words that lead to their rows.
        settings: What to do with duplicates and contradictions.
        where: The file or data set, for messages.
    """
    _refuse_repeated_ids(labelled, where)
    consistent = _without_contradictions(labelled, settings, where)
    problems = _settle_duplicates(consistent, settings, where)
    if not problems:
        raise ValueError(f"{where}: no usable problem is left; look at the rows or choose others")
    return problems


def prompt_key(messages: Sequence[Message]) -> str:
    """What makes two prompts the same: roles and contents, outer white space aside."""
    return json.dumps([[turn["role"], turn["content"].strip()] for turn in messages])


def short(value: object) -> str:
    """A value as an error message shows it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_repeated_ids(labelled: Sequence[tuple[str, Problem]], where: str) -> None:
    first: dict[str, str] = {}
    for label, problem in labelled:
        if problem.id in first:
            raise ValueError(
                f"{where}, {label}: problem id {problem.id!r} stands already in "
                f"{first[problem.id]}; ids must differ: correct it or name another field as "
                "fields.id"
            )
        first[problem.id] = label


def _without_contradictions(
    labelled: Sequence[tuple[str, Problem]], settings: RowSettings, where: str
) -> list[tuple[str, Problem]]:
    first: dict[str, tuple[str, Problem]] = {}
    contradictory: set[str] = set()
    for label, problem in labelled:
        key = prompt_key(problem.messages)
        other_label, other = first.setdefault(key, (label, problem))
        if other.answer == problem.answer:
            continue
        if settings.bad_rows == "error":
            raise ValueError(
                f"{where}, {label}, id {problem.id!r}: the same problem stands in {other_label} "
                f"(id {other.id!r}) with another answer, {short(other.answer)} instead of "
                f"{short(problem.answer)}; correct one, or set bad_rows: drop"
            )
        contradictory.add(key)
    kept = [item for item in labelled if prompt_key(item[1].messages) not in contradictory]
    if contradictory:
        warnings.warn(
            f"{where}: dropped {len(labelled) - len(kept)} rows of {len(contradictory)} problems "
            "that stand with different answers",
            stacklevel=3,
        )
    return kept


def _settle_duplicates(
    labelled: Sequence[tuple[str, Problem]], settings: RowSettings, where: str
) -> list[Problem]:
    first: dict[str, str] = {}
    unique: list[Problem] = []
    repeated: list[str] = []
    for label, problem in labelled:
        key = prompt_key(problem.messages)
        if key in first:
            repeated.append(f"{label}, id {problem.id!r}, repeats {first[key]}")
        else:
            first[key] = label
            unique.append(problem)
    if not repeated:
        return unique
    if settings.duplicates == "error":
        raise ValueError(
            f"{where}: {len(repeated)} problems stand twice with the same answer ({repeated[0]}); "
            "remove them, or set duplicates: drop or keep"
        )
    verb = "dropped" if settings.duplicates == "drop" else "kept"
    warnings.warn(
        f"{where}: {verb} {len(repeated)} exact duplicates of {len(labelled)} problems, the first: "
        f"{repeated[0]}",
        stacklevel=3,
    )
    return unique if settings.duplicates == "drop" else [problem for _, problem in labelled]
