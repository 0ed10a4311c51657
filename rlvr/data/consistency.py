"""Checks of a set of problems: unique ids, no contradictions, no duplicates, not empty."""

import json
import warnings
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from rlvr.settings import Settings
from rlvr.types import Message, Problem

Grader = Literal[
    "rlvr", "exact", "math_verify", "one_shot_rlvr", "qwen", "choice", "text", "quantity",
    "json_schema", "pattern", "instructions", "sorting", "sudoku", "countdown", "n_queens",
    "reasoning_gym", "code",
]  # fmt: skip
"""The names of `reward.graders`, which is slow to import."""
MATHEMATICS = ("rlvr", "exact", "math_verify", "one_shot_rlvr", "qwen")
"""Graders whose reference answers are one text; those of the others may be lists and objects."""


class RowSettings(Settings):
    """Settings of all sources: which rows to use, and what to do with faulty ones."""

    grader: Grader = "rlvr"
    """What judges answers: "rlvr" is the verifier of mathematics; "choice", "text" and so on are
    other kinds of answers, each with its own kind of reference (docs/domains.md)."""

    skip: int = Field(default=0, ge=0)
    """Number of rows to skip at the start; with ``limit`` it splits one file into sets."""

    limit: int | None = Field(default=None, ge=1)
    """Maximum number of rows to use."""

    duplicates: Literal["drop", "keep", "error"] = "drop"
    """A problem that occurs twice with the same answer: "drop" keeps the first with a warning,
    "keep" keeps all with a warning, "error" refuses."""

    bad_rows: Literal["error", "drop"] = "error"
    """Rows without a usable problem or answer, and problems that occur with two different answers:
    "error" refuses them, "drop" drops them with a warning that counts them."""


def check_problems(
    labelled: Sequence[tuple[str, Problem]], settings: RowSettings, where: str
) -> list[Problem]:
    """Refuse repeated ids and contradictions; handle duplicates; refuse an empty result.

    Args:
        labelled: Problems, each with the location of its row for messages.
        settings: What to do with duplicates and contradictions.
        where: The file or data set, for messages.
    """
    _refuse_repeated_ids(labelled, where)
    consistent = _without_contradictions(labelled, settings, where)
    problems = _settle_duplicates(consistent, settings, where)
    if not problems:
        raise ValueError(f"{where}: no usable problem is left; check the rows or choose others")
    return problems


def prompt_key(messages: Sequence[Message]) -> str:
    """A key that is equal for equal prompts: roles and contents without outer white space."""
    return json.dumps([[turn["role"], turn["content"].strip()] for turn in messages])


def short(value: object) -> str:
    """A value shortened to at most 60 characters for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_repeated_ids(labelled: Sequence[tuple[str, Problem]], where: str) -> None:
    first: dict[str, str] = {}
    for label, problem in labelled:
        if problem.id in first:
            raise ValueError(
                f"{where}, {label}: problem id {problem.id!r} already occurs in "
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
                f"{where}, {label}, id {problem.id!r}: the same problem occurs in {other_label} "
                f"(id {other.id!r}) with another answer, {short(other.answer)} instead of "
                f"{short(problem.answer)}; correct one, or set bad_rows: drop"
            )
        contradictory.add(key)
    kept = [item for item in labelled if prompt_key(item[1].messages) not in contradictory]
    if contradictory:
        warnings.warn(
            f"{where}: dropped {len(labelled) - len(kept)} rows of {len(contradictory)} problems "
            "that occur with different answers",
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
            f"{where}: {len(repeated)} problems occur twice with the same answer ({repeated[0]}); "
            "remove them, or set duplicates: drop or keep"
        )
    verb = "dropped" if settings.duplicates == "drop" else "kept"
    warnings.warn(
        f"{where}: {verb} {len(repeated)} exact duplicates of {len(labelled)} problems, the first: "
        f"{repeated[0]}",
        stacklevel=3,
    )
    return unique if settings.duplicates == "drop" else [problem for _, problem in labelled]
