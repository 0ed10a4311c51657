"""Which loop a recipe is for: its ``task`` says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rlvr.settings import Settings, parse_yaml


@dataclass(frozen=True)
class Task:
    """Where a task's recipe schema and its loop are; modules load when they are used."""

    name: str
    schema_at: str
    train_at: str
    plan_at: str

    @property
    def schema(self) -> type[Settings]:
        """The recipe's root schema."""
        found: type[Settings] = _load(self.schema_at)
        return found

    @property
    def train(self) -> Callable[..., Path]:
        """The loop: ``train(recipe, resume=...)`` returns the run folder."""
        found: Callable[..., Path] = _load(self.train_at)
        return found

    @property
    def plan(self) -> Callable[[Any], str]:
        """What ``--dry-run`` prints."""
        found: Callable[[Any], str] = _load(self.plan_at)
        return found


TASKS = {
    "rl": Task(
        "rl", "rlvr.train.recipe:RLRecipe", "rlvr.train.rl:train", "rlvr.train.plan:render_plan"
    ),
    "preference": Task(
        "preference",
        "rlvr.train.preference_recipe:PreferenceRecipe",
        "rlvr.train.preference:train",
        "rlvr.train.preference_plan:render_plan",
    ),
    "prm": Task(
        "prm",
        "rlvr.train.prm_recipe:PrmRecipe",
        "rlvr.train.prm:train",
        "rlvr.train.prm_data:render_plan",
    ),
    "reward_model": Task(
        "reward_model",
        "rlvr.train.reward_model_recipe:RewardModelRecipe",
        "rlvr.train.reward_model:train",
        "rlvr.train.reward_model_data:render_plan",
    ),
    "sft": Task(
        "sft",
        "rlvr.train.sft_recipe:SftRecipe",
        "rlvr.train.sft:train",
        "rlvr.train.sft_data:render_plan",
    ),
}


def _load(place: str) -> Any:  # noqa: ANN401
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


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
        ValueError: An unknown task. A file that is no recipe is left to the loader's own words.
    """
    chosen = [text.partition("=")[2] for text in overrides if text.startswith("task=")]
    if not chosen and recipe.is_file():
        data = parse_yaml(recipe.read_text(encoding="utf-8-sig", errors="replace"), str(recipe))
        chosen = [str(data["task"])] if isinstance(data, dict) and data.get("task") else []
    return find_task(chosen[-1] if chosen else "rl")
