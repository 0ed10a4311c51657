"""What a trace engine receives and returns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rlvr.types import FinishReason


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One trace to generate: the prompt in each model's token ids, at least one token each."""

    problem_id: str
    sample: int
    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A finished trace in the student's token ids; a probability is None if no model computed it.

    ``draws`` says which of the teacher's draws each token is, from 1; 0 is the student's fallback.
    """

    request: TraceRequest
    token_ids: tuple[int, ...]
    draws: tuple[int, ...]
    teacher_prob: tuple[float | None, ...]
    student_prob: tuple[float | None, ...]
    finish_reason: FinishReason


class TraceEngine(Protocol):
    """What generates traces."""

    def generate(self, requests: Iterable[TraceRequest]) -> Iterator[Written]:
        """Generate every request, yielding traces as they finish."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counts and times so far (docs/metrics.md)."""
        ...

    def close(self) -> None:
        """Free the engine's resources."""
        ...
