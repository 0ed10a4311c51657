"""A reasoning trace, and the file format of traces: one JSON object per line.

A row has, in this order::

    id            "PROBLEM/SAMPLE", unique in a file
    problem_id    the problem's id
    sample        which of the problem's traces, from 0
    prompt        the prompt's text as the student saw it (rendered, with special tokens)
    prompt_ids    the prompt in the student's token ids
    token_ids     the trace in the student's token ids; ends with the end token if it stopped
    text          the trace's text, decoded once from token_ids without special tokens
    finish_reason "stop" or "length"
    reward        1 right, 0 wrong, null not graded
    answer        the problem's reference answer; null if there is none
    writer        one letter per token: "t" from the teacher, "s" from the student (fallback)
    teacher_prob  the teacher's probability of each token at temperature 1, null if it was not
                  computed; a piece of text (vocabulary.matching: text) has it at its first token
    student_prob  the student's probability of each token, as compared with the threshold
    settings      hash of everything that the trace depends on

``student_prob`` is conditional on all tokens before, so the surprisal of a token is the negative
logarithm of one entry. Probabilities are stored with six significant digits.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from rlvr.files import write_atomically
from rlvr.settings import Settings
from rlvr.types import FinishReason

TEACHER, STUDENT = "t", "s"


def _six_digits(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value


Probability = Annotated[float, Field(ge=0, le=1), BeforeValidator(_six_digits)]


class Trace(Settings):
    """One generated trace with a record per token."""

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
    """The trace in the student's token ids, including the end token."""
    text: str
    """The trace's text, decoded once from ``token_ids``, without special tokens."""
    finish_reason: FinishReason
    """"stop" at an end token, "length" if it was cut."""
    reward: float | None = None
    """1 right, 0 wrong, null not graded."""
    answer: str | None = None
    """The problem's reference answer."""
    writer: str = Field(pattern="^[ts]+$")
    """One letter per token: "t" if the teacher wrote it, "s" if the student did (fallback)."""
    teacher_prob: tuple[Probability | None, ...]
    """The teacher's probability of each token; null if it was not computed."""
    student_prob: tuple[Probability | None, ...]
    """The student's probability of each token; null if it was not computed."""
    settings: str
    """Hash of everything that the trace depends on."""

    @model_validator(mode="after")
    def _one_entry_a_token(self) -> "Trace":
        for name in ("writer", "teacher_prob", "student_prob"):
            if len(getattr(self, name)) != len(self.token_ids):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {len(self.token_ids)} "
                    "tokens; it needs one for each token"
                )
        return self

    @property
    def fallback_rate(self) -> float:
        """Share of the tokens that the student wrote."""
        return self.writer.count(STUDENT) / len(self.writer)


def trace_id(problem_id: str, sample: int) -> str:
    """The id of a trace."""
    return f"{problem_id}/{sample}"


def trace_line(trace: Trace) -> str:
    """The trace as one line of JSON."""
    return json.dumps(trace.model_dump(mode="json"), ensure_ascii=False) + "\n"


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Write a file of traces atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(map(trace_line, traces)))


def iterate_traces(path: Path) -> Iterator[Trace]:
    """The traces of a file, one at a time.

    Raises:
        ValueError: The file is missing, or a line is not a trace; the message names file, line and
            fault.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is not a file; give a JSONL file of traces")
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield _trace(text, f"{path}, line {number}")


def read_traces(paths: Path | Sequence[Path]) -> list[Trace]:
    """The traces of one or several files.

    Raises:
        ValueError: A file is missing, a line is not a trace, there are no traces, or a trace occurs
            twice.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    found = [trace for file in files for trace in iterate_traces(file)]
    named = ", ".join(map(str, files))
    if not found:
        raise ValueError(f"{named}: no traces found; generate some first")
    seen: set[str] = set()
    for trace in found:
        if trace.id in seen:
            raise ValueError(f"{named}: trace {trace.id!r} occurs twice; remove one of them")
        seen.add(trace.id)
    return found


def _trace(text: bytes, place: str) -> Trace:
    try:
        return Trace.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][:1])) or "row"
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {key}: {message}; each line must hold a trace") from None
