"""Which task a recipe is for: its ``task`` says so.

A module of this folder is a task: ``rlvr/tasks/sft.py`` holds ``SftTask``, a subclass of
:class:`rlvr.runs.offline_task.OfflineTask`. Reinforcement learning has rollouts, and its own room.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from rlvr.settings import Settings, read_recipe


@dataclass(frozen=True)
class Task:
    """Where a task's recipe schema and its loop are; modules load when they are used."""

    name: str
    schema_at: str
    plan_at: str
    train_at: str
    class_at: str | None = None
    """The class that ``train_at`` wants an object of, instead of a recipe."""

    @property
    def schema(self) -> type[Settings]:
        """The recipe's root schema."""
        schema: type[Settings] = _load(self.schema_at)
        return schema

    @property
    def plan(self) -> Callable[[Any], str]:
        """What ``--dry-run`` prints."""
        plan: Callable[[Any], str] = _load(self.plan_at)
        return plan

    def count_steps(self, recipe: Any) -> int:  # noqa: ANN401
        """Steps of a run of a recipe that says how many epochs; its data are read for it."""
        assert self.class_at is not None, "reinforcement learning says how many steps"
        task = _load(self.class_at)(recipe)
        steps: int = task.total_steps(task.count()[0])
        return steps

    def train(self, recipe: Settings, **options: Any) -> Path:  # noqa: ANN401
        """Train as the recipe says; returns the run folder.

        Options and errors as :func:`rlvr.rl.train.train`.
        """
        what = recipe if self.class_at is None else _load(self.class_at)(recipe)
        folder: Path = _load(self.train_at)(what, **options)
        return folder


def _offline_tasks() -> dict[str, Task]:
    """The tasks of this folder, by the names of their files."""
    tasks = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        name, title = module.name, "".join(part.title() for part in module.name.split("_"))
        at = f"{__package__}.{name}:{title}Task"
        if not module.ispkg and name != "registry":
            tasks[name] = Task(name, f"{at}.schema", f"{at}.plan", "rlvr.runs.frame:train", at)
    return tasks


TASKS = {
    "rl": Task("rl", "rlvr.rl.recipe:RLRecipe", "rlvr.rl.plan:render_plan", "rlvr.rl.train:train"),
    **_offline_tasks(),
}


def _load(place: str) -> Any:  # noqa: ANN401
    module, _, path = place.partition(":")
    return reduce(getattr, path.split("."), import_module(module))


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]


def task_of(recipe: Path, overrides: Sequence[str] = ()) -> Task:
    """The task that a recipe file, or an override ``task=...``, names; without either, rl.

    Raises:
        ValueError: No recipe, or an unknown task.
    """
    named = read_recipe(recipe).data.get("task") or "rl"
    overriding = [text.partition("=")[2] for text in overrides if text.startswith("task=")]
    return find_task(overriding[-1] if overriding else str(named))
