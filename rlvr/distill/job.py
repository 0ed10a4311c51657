"""What a generating engine is asked for, and what it gives back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rlvr.types import FinishReason


@dataclass(frozen=True, slots=True)
class Job:
    """One trace to be generated: prompts in each model's own token ids, at least one token."""

    problem_id: str
    sample: int
    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A finished trace, in the student's token ids; probabilities are None where nobody asked.

    ``draws`` is which of the teacher's draws each token is, from 1; 0 is the student's fallback.
    """

    job: Job
    token_ids: tuple[int, ...]
    draws: tuple[int, ...]
    teacher_prob: tuple[float | None, ...]
    student_prob: tuple[float | None, ...]
    finish_reason: FinishReason


class TraceEngine(Protocol):
    """What generates traces."""

    def generate(self, jobs: Iterable[Job]) -> Iterator[Written]:
        """Generate every job, yielding traces as they finish."""
        ...

    def metrics(self) -> dict[str, float]:
        """Where the time went so far (docs/metrics.md)."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
