"""A reasoning trace and the file that holds many: one JSON object a line.

A row has, in this order::

    id            "PROBLEM/SAMPLE", unique in a file
    problem_id    the problem's id
    sample        which of the problem's traces, from 0
    prompt        the prompt's text as the student saw it (rendered, special tokens and all)
    prompt_ids    the prompt in the student's token ids
    token_ids     the trace in the student's token ids; ends with the end token if it stopped
    text          the trace's text, decoded once from token_ids without special tokens
    finish_reason "stop" or "length"
    reward        1 right, 0 wrong, null not graded
    answer        the problem's reference answer; null if there is none
    writer        one letter a token: "t" the teacher's, "s" the student's fallback
    teacher_prob  the teacher's probability of each token at temperature 1, null where it was not
                  asked; of a piece of text (vocabulary.matching: text) it stands at the first token
    student_prob  the student's likewise, as the threshold was tested on it
    settings      hash of everything that the trace depends on

``student_prob`` is conditional on everything before, token by token, so that a surprisal is the
negative logarithm of one entry. Probabilities are kept to six significant digits.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from rlvr.jsonl import write_atomically
from rlvr.settings import Settings
from rlvr.types import FinishReason

TEACHER, STUDENT = "t", "s"


def _six_digits(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value


Probability = Annotated[float, Field(ge=0, le=1), BeforeValidator(_six_digits)]


class Trace(Settings):
    """One generated trace with its per-token record."""

    id: str
    """"PROBLEM/SAMPLE", unique in a file."""
    problem_id: str
    """The problem's id."""
    sample: int = Field(ge=0)
    """Which of the problem's traces, from 0."""
    prompt: str
    """The prompt's text as the student saw it."""
    prompt_ids: tuple[int, ...] = Field(min_length=1)
    """The prompt in the student's token ids."""
    token_ids: tuple[int, ...] = Field(min_length=1)
    """The trace in the student's token ids, the end token included."""
    text: str
    """The trace's text, decoded once from ``token_ids``, without special tokens."""
    finish_reason: FinishReason
    """"stop" at an end token, "length" where it was cut."""
    reward: float | None = None
    """1 right, 0 wrong, null not graded."""
    answer: str | None = None
    """The problem's reference answer."""
    writer: str = Field(pattern="^[ts]+$")
    """One letter a token: "t" the teacher wrote it, "s" the student (fallback)."""
    teacher_prob: tuple[Probability | None, ...]
    """The teacher's probability of each token; null where the teacher was not asked."""
    student_prob: tuple[Probability | None, ...]
    """The student's probability of each token; null where the student was not asked."""
    settings: str
    """Hash of everything that the trace depends on."""

    @model_validator(mode="after")
    def _one_entry_a_token(self) -> "Trace":
        for name in ("writer", "teacher_prob", "student_prob"):
            if len(getattr(self, name)) != len(self.token_ids):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {len(self.token_ids)} "
                    "tokens; there must be one for each"
                )
        return self

    @property
    def fallback_rate(self) -> float:
        """Share of the tokens that the student wrote."""
        return self.writer.count(STUDENT) / len(self.writer)


def trace_id(problem_id: str, sample: int) -> str:
    """What a trace is called."""
    return f"{problem_id}/{sample}"


def trace_line(trace: Trace) -> str:
    """The trace as a line of its own."""
    return json.dumps(trace.model_dump(mode="json"), ensure_ascii=False) + "\n"


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Write a file of traces, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(map(trace_line, traces)))


def iterate_traces(path: Path) -> Iterator[Trace]:
    """The traces of a file, one at a time.

    Raises:
        ValueError: No such file, or a line that is no trace; file, line and fault are named.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is not a file; give a JSONL file of traces")
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield _trace(text, f"{path}, line {number}")


def read_traces(paths: Path | Sequence[Path]) -> list[Trace]:
    """The traces of a file, or of several.

    Raises:
        ValueError: No such file, a line that is no trace, no traces at all, or a trace twice.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    found = [trace for file in files for trace in iterate_traces(file)]
    named = ", ".join(map(str, files))
    if not found:
        raise ValueError(f"{named}: there are no traces; generate some first")
    seen: set[str] = set()
    for trace in found:
        if trace.id in seen:
            raise ValueError(f"{named}: trace {trace.id!r} stands twice; remove one of them")
        seen.add(trace.id)
    return found


def _trace(text: bytes, place: str) -> Trace:
    try:
        return Trace.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][:1])) or "row"
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {key}: {message}; a row of traces is needed") from None
