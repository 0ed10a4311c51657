"""A run of a task without rollouts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from rlvr.data import ProblemSampler
from rlvr.data.examples import Examples
from rlvr.learner.offline import OfflineLearner
from rlvr.runs.base_recipe import OfflineRecipe
from rlvr.runs.base_run import BaseRun
from rlvr.runs.evaluation import HeldOutProblems
from rlvr.runs.parent import Branch


class RunningTask(Protocol):
    """What a run asks of its task, which is :class:`rlvr.runs.offline_task.OfflineTask`."""

    @property
    def stopped(self) -> bool:
        """Whether to end before the last step."""
        ...

    def model_writers(self, run: "OfflineRun") -> list[Callable[[Path], None]]:
        """What writes models other than the policy into a checkpoint."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold of the task."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        ...

    def branch_from(self, state: dict[str, Any], branch: Branch, *, same_data: bool) -> None:
        """Take from the state of another run what fits this one."""
        ...


@dataclass(kw_only=True)
class OfflineRun(BaseRun):
    """A run in progress; ``step`` counts finished steps."""

    recipe: OfflineRecipe
    """The task's, with the number of steps."""
    task: RunningTask
    learner: OfflineLearner
    data: Examples
    held_out: dict[str, Examples]
    sampler: ProblemSampler
    problems: HeldOutProblems | None = None

    def token_ids(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Prompts and completions of training; evaluation may change."""
        for ids in self.data.prompt_ids:
            yield "prompt", ids
        for ids in self.data.completion_ids:
            yield "completion", ids

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the task has had enough."""
        return super().finished or self.task.stopped

    def prepare(self, console: Console) -> None:
        """Give the engine, where there is one, its first weights."""
        if self.problems is not None:
            self.problems.engine.sync(self.policy, self.step)

    def model_writers(self) -> list[Callable[[Path], None]]:
        """The policy's, and the task's own."""
        return [*super().model_writers(), *self.task.model_writers(self)]

    def save(self) -> Path:
        """Write a checkpoint of the state after ``step`` steps, unless that was done already."""
        return self.save_state({"sampler": self.sampler.state_dict(), **self.task.state()})

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything but the weights (loaded already) from a checkpoint; its state."""
        state = super().restore(checkpoint)
        goes_on = self.continue_order(self.sampler, state["sampler"], state)
        if self.branch is None:
            self.task.load_state(state)
        else:
            self.task.branch_from(state, self.branch, same_data=goes_on)
        return state
