"""reasoning-gym's own scorers, for tasks with more than one right answer.

The reference is ``{"task": "tower_of_hanoi", "entry": {...}}`` with the entry as the generator made
it. The score is the scorer's, from 0 to 1, and an answer is right at 1. Some scorers hand the
answer to Python's ``eval`` or to sympy's parser, which executes it; these tasks are refused, and
``countdown`` and ``n_queens`` have checks of their own (`reward.domains.puzzles`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from reward.domains.base import Domain, Judgement, as_object
from reward.verdict import GradingPolicy

EXECUTES_ANSWERS = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Tasks whose scorers of reasoning-gym 0.1.25 execute what they are given."""


@dataclass(frozen=True)
class GymEntry:
    """A task and one entry of its data set."""

    task: str
    entry: dict[str, Any]

    def __post_init__(self) -> None:
        if self.task in EXECUTES_ANSWERS:
            raise ValueError(f"reasoning-gym's scorer of {self.task!r} executes the answer")
        if not isinstance(self.entry, dict) or "metadata" not in self.entry:
            raise ValueError("the entry has question, answer and metadata, as it was generated")
        scorer(self.task)


class GymDomain(Domain):
    """Tasks of reasoning-gym."""

    name = "reasoning_gym"

    def reference(self, gold: str) -> GymEntry:
        """An object."""
        return as_object(gold, GymEntry)

    def judge(self, text: str, reference: GymEntry, policy: GradingPolicy) -> Judgement:
        """What the task's scorer says."""
        score = float(scorer(reference.task)(text, reference.entry))
        if not 0 <= score <= 1:
            raise ValueError(f"the scorer gave {score}")
        return Judgement(score, f"the scorer gave {score:g}")


@cache
def scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """The scorer of a task.

    Raises:
        ValueError: there is no such task, or reasoning-gym is not installed.
    """
    try:
        from reasoning_gym import get_score_answer_fn
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reasoning_gym needs the package {error.name!r}: pip install 'rlvr[gym]'"
        ) from None
    if task not in DATASETS:
        raise ValueError(f"reasoning-gym has no task {task!r}")
    found: Callable[[str, dict[str, Any]], float] = get_score_answer_fn(task)
    return found


DOMAINS = {"reasoning_gym": GymDomain()}
