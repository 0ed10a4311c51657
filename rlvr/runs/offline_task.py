"""What a task without rollouts says of itself: data, a loss, a measure. The frame does the rest.

A task is a file of ``rlvr/tasks`` with a recipe's schema and a subclass of :class:`OfflineTask`
that is called after it (``rlvr/tasks/sft.py``: ``SftTask``); nothing else has to name it. Importing
it must be cheap, as ``rlvr settings`` and ``--dry-run`` do: torch and models are imported inside of
functions. The frame, which opens, restores, saves, evaluates and exports, is
``rlvr/runs/frame.py``; the update is ``rlvr/learner/offline.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from rlvr.data import load_problems
from rlvr.runs.base_recipe import OfflineRecipe, ProblemEvaluation
from rlvr.runs.notices import notices
from rlvr.runs.shown import examples_shown, with_tokenizer
from rlvr.settings import to_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from rlvr.data.examples import Examples
    from rlvr.learner.launch import Launch
    from rlvr.learner.offline import OfflineLearner
    from rlvr.policy.model import Policy
    from rlvr.runs.clock import Clock
    from rlvr.runs.offline_run import OfflineRun
    from rlvr.runs.parent import Branch

RecipeT = TypeVar("RecipeT", bound=OfflineRecipe)


class OfflineTask(Generic[RecipeT]):
    """One run's task; what a run has to remember beside its learner is remembered here.

    Args:
        recipe: What to do.
    """

    schema: ClassVar[type[OfflineRecipe]]
    """Of its recipes."""
    prefix: ClassVar[str]
    """Of its metrics."""

    def __init__(self, recipe: RecipeT) -> None:
        self.recipe = recipe

    @classmethod
    def plan(cls, recipe: RecipeT) -> str:
        """``--dry-run``: the recipe as YAML, then the derived numbers as comment lines.

        Raises:
            ValueError: The data, or problems of an evaluation, cannot be read or encoded, or the
                model cannot be trained.
        """
        from rlvr.policy.unloaded import describe
        from rlvr.runs.memory import offline_memory

        if isinstance(recipe.evaluation, ProblemEvaluation):
            for source in recipe.evaluation.sets.values():
                load_problems(source)
        count, lines = cls(recipe).count()
        steps, per_step = cls(recipe).total_steps(count), recipe.data.per_step
        epochs = steps * per_step / max(1, count)
        lines = [
            *lines,
            *describe(recipe.model),
            *offline_memory(recipe),
            f"the run: {steps} steps of {per_step}, {epochs:.2f} epochs",
            *notices(recipe, 0, steps),
            *with_tokenizer(recipe.model, cls(recipe)._examples_shown),
        ]
        return to_yaml(recipe) + "\n" + "\n".join(f"# {line}" for line in lines)

    def _examples_shown(self, tokenizer: Any) -> list[str]:  # noqa: ANN401
        from rich.console import Console

        examples, _ = self.load(tokenizer, Console(quiet=True))
        return examples_shown(examples, tokenizer)

    # What every task says.

    def count(self) -> tuple[int, list[str]]:
        """How many examples there are, and lines about them for ``--dry-run``."""
        raise NotImplementedError

    def load(
        self,
        tokenizer: Any,  # noqa: ANN401
        console: Console,
    ) -> tuple[Examples, dict[str, Examples]]:
        """Training examples, and held-out ones by name.

        Raises:
            ValueError: They cannot be read, or nothing can be learned from them.
        """
        raise NotImplementedError

    def learner(self, policy: Policy, launch: Launch, checkpoint: Path | None) -> OfflineLearner:
        """The loss with what it is trained by; from a checkpoint, if one is given."""
        raise NotImplementedError

    def measure(self, run: OfflineRun, name: str, examples: Examples) -> dict[str, float]:
        """Metrics of a held-out set; collective."""
        raise NotImplementedError

    # What a task may say.

    too_long: ClassVar[str]
    """What to do where a sequence is longer than the model's context."""

    @property
    def prompt_limit(self) -> int:
        """Longest prompt of problems that are answered, where the recipe names any."""
        raise NotImplementedError

    def fitting(self, policy: Policy, name: str, examples: Examples, console: Console) -> Examples:
        """The examples that the model has room for.

        Raises:
            ValueError: One does not fit, and there is a setting that would leave it out.
        """
        from rlvr.policy.vocabulary import check_token_ids

        names = examples.groups or [f"example {row + 1}" for row in range(len(examples.prompt_ids))]
        sequences = zip(names, examples.prompt_ids, examples.completion_ids, strict=True)
        check_token_ids(
            policy,
            ((f"{name}: {own}", (*prompt, *completion)) for own, prompt, completion in sequences),
            too_long=self.too_long,
        )
        return examples

    def total_steps(self, count: int) -> int:
        """Optimizer steps of the run over so many examples."""
        return self.recipe.steps

    def opened(self, run: OfflineRun) -> None:
        """Called before the first step of a run, or of its continuation."""

    def next(self, run: OfflineRun, clock: Clock) -> tuple[Examples, dict[str, float]]:
        """What the next step trains on, and metrics of how it was chosen; collective."""
        return run.data.select(run.sampler.next(self.recipe.data.per_step)), {}

    def epoch(self, run: OfflineRun) -> float:
        """Passes over the data so far."""
        return run.sampler.drawn / len(run.data)

    def before_evaluation(self, run: OfflineRun) -> None:
        """Called before the run looks whether an evaluation is due."""

    def measured(self, run: OfflineRun, metrics: dict[str, float]) -> None:
        """Called with the metrics of every evaluation; collective."""

    @property
    def stopped(self) -> bool:
        """Whether to end before the last step."""
        return False

    def model_writers(self, run: OfflineRun) -> list[Callable[[Path], None]]:
        """What writes models other than the policy into a checkpoint; weights are gathered now."""
        return []

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold of the task, as JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""

    def branch_from(self, state: dict[str, Any], branch: Branch, *, same_data: bool) -> None:
        """Take from the state of another run, of this task, what fits this one.

        Args:
            state: What :meth:`state` gave there.
            branch: Where this run begins.
            same_data: Whether the examples are the same, and visited in the same order.
        """

    def finish(self, run: OfflineRun) -> None:
        """Write the run's model folder; collective."""
        from rlvr.runs.model_folder import export

        run.log.phase("exporting")
        export(run.policy, run.tokenizer, run.folder, run.ranks)
