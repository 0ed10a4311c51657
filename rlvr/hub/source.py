"""Which weights of a run are exported, and whether they are intact.

The newest checkpoint is exported, because it has checksums; if there is no checkpoint left, the
final model folder is. Damaged weights are refused, never replaced by older ones.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlvr.learner.checkpoint import find_fault
from rlvr.policy.settings import ModelSettings
from rlvr.report.history import History, read_history
from rlvr.rl.recipe import RLRecipe
from rlvr.runs.run_folder import not_a_run
from rlvr.settings import load_settings
from rlvr.tasks.preference import PreferenceRecipe
from rlvr.tasks.prm import PrmRecipe
from rlvr.tasks.registry import task_of
from rlvr.tasks.reward_model import RewardModelRecipe
from rlvr.tasks.sft import SftRecipe

TASKS = {
    "rl": "reinforcement learning from verifiable rewards",
    "preference": "learning from preferences",
    "prm": "training an implicit process reward model on labels of whole responses",
    "reward_model": "training an explicit reward model on labels of whole responses",
    "sft": "supervised fine-tuning on demonstrations",
}
"""Tasks of recipes, as the card names them."""

AnyRecipe = RLRecipe | PreferenceRecipe | PrmRecipe | RewardModelRecipe | SftRecipe
"""The recipes whose runs can be exported."""

_CHECKPOINT = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Source:
    """The weights after ``step`` steps of a run.

    ``saved`` is their checkpoint; None is the run's final model folder. ``base`` replaces the
    recipe's model as the base model of adapters.
    """

    run: Path
    recipe: AnyRecipe
    step: int
    saved: Path | None
    base: str | None = None

    @property
    def adapted(self) -> bool:
        """Whether the weights are adapters that must be merged."""
        return self.saved is not None and self.recipe.model.lora is not None

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        if self.saved is None:
            return self.run / "model"
        return self.saved / ("adapter" if self.adapted else "model")

    @property
    def model(self) -> ModelSettings:
        """Settings that load the model on a CPU, without what only training or a GPU needs."""
        plain = {"attention": "sdpa", "compile": False, "logits": "auto", "liger": False}
        settings = self.recipe.model.model_copy(update={**plain, "gradient_checkpointing": False})
        if self.saved is None:
            own = {"path": str(self.folder), "lora": None, "revision": None}
            return settings.model_copy(update=own)
        if self.base is not None:
            return settings.model_copy(update={"path": self.base, "revision": None})
        return settings

    @property
    def tokenizer(self) -> ModelSettings:
        """Settings that load the tokenizer next to the weights, or else the recipe's."""
        if (self.folder / "tokenizer_config.json").is_file():
            own = {"path": str(self.folder), "tokenizer": None, "revision": None}
            return self.recipe.model.model_copy(update=own)
        if self.base is not None and self.recipe.model.tokenizer is None:
            return self.recipe.model.model_copy(update={"path": self.base, "revision": None})
        return self.recipe.model

    @cached_property
    def history(self) -> History:
        """The metrics logged up to the step of these weights."""
        return until(read_history(self.run / "metrics.jsonl"), self.step)

    @property
    def size(self) -> int:
        """Size of the files in bytes."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())


def until(history: History, step: int) -> History:
    """The history up to a step."""
    count = sum(1 for found in history.steps if found <= step)
    columns = {name: values[:count] for name, values in history.columns.items()}
    return History(history.steps[:count], columns)


def find_source(run: Path, step: int | None = None, base: str | None = None) -> Source:
    """The weights of a run after a step; without a step, the last ones.

    Raises:
        ValueError: The folder is not a run, the run has no such step (the message names the
            nearest), or a file of the weights is missing or damaged.
    """
    recipe = recipe_of(run)
    found = _steps(run, recipe)
    if not found:
        raise ValueError(
            f"run {str(run)!r} has neither a checkpoint nor a final model yet; continue training: "
            "rlvr train RECIPE --resume"
        )
    step = max(found) if step is None else step
    if step not in found:
        nearest = min(found, key=lambda other: (abs(other - step), -other))
        raise ValueError(
            f"run {str(run)!r} has no weights of step {step}; it has {_listed(sorted(found))}: the "
            f"nearest is --step {nearest}"
        )
    source = Source(run, recipe, step, found[step], base)
    _check(source, [other for other in sorted(found) if other != step])
    return source


def staged_source(run: Path, checkpoint: Path, step: int) -> Source:
    """Weights of a run that were staged in another folder.

    Raises:
        ValueError: A file is missing or damaged.
    """
    source = Source(run, recipe_of(run), step, checkpoint)
    _check(source, [])
    return source


def recipe_of(run: Path) -> AnyRecipe:
    """The recipe of a run.

    Raises:
        ValueError: The folder is not a run; the message says what it seems to be.
    """
    written = run / "recipe.yaml"
    if written.is_file():
        check_task(task_of(written).name, run)
        recipe: AnyRecipe = load_settings(task_of(written).schema, written)  # type: ignore[assignment]
        return recipe
    checkpoint = _CHECKPOINT.fullmatch(run.name)
    if checkpoint and (run / "state.json").is_file():
        whole = run.resolve().parent.parent
        raise ValueError(
            f"{str(run)!r} is a checkpoint; name its run: rlvr export {whole} --step "
            f"{int(checkpoint[1])}"
        )
    raise ValueError(not_a_run(run))


def check_task(task: str, run: Path) -> None:
    """Check that runs of a task can be exported: they must train a causal language model.

    Raises:
        ValueError: They cannot be exported.
    """
    if task not in TASKS:
        raise ValueError(
            f"run {str(run)!r} has task {task!r}, whose models export does not support (it "
            f"supports {', '.join(TASKS)}); use the run's folder {str(run / 'model')!r}"
        )


def _steps(run: Path, recipe: AnyRecipe) -> dict[int, Path | None]:
    """Steps with weights; None is the final model.

    That of an explicit reward model, with its head beside it, is in the final model folder alone.
    """
    steps: dict[int, Path | None] = {}
    explicit = isinstance(recipe, RewardModelRecipe)
    for path in () if explicit else (run / "checkpoints").glob("step_*"):
        match = _CHECKPOINT.fullmatch(path.name)
        if match and path.is_dir():
            steps[int(match[1])] = path
    # If there are checkpoints, the final model is one of them or older.
    if not steps and (run / "model").is_dir():
        logged = read_history(run / "metrics.jsonl").steps
        steps[logged[-1] if logged else 0] = None
    return steps


def _check(source: Source, others: list[int]) -> None:
    if source.saved is None:
        fault = model_fault(source.folder)
    else:
        fault = find_fault(source.saved, f"{source.folder.name}/")
        fault = fault or model_fault(source.folder)
    if fault is not None:
        remedy = f"export another step ({_listed(others)})" if others else "train it again"
        raise ValueError(
            f"the weights of step {source.step} are damaged: {fault} in "
            f"{str(source.saved or source.folder)!r}; restore the file or {remedy}"
        )


def model_fault(folder: Path) -> str | None:
    """The fault of a folder of safetensors, or None; its files are opened but not read."""
    shards = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return f"{index.name} cannot be read"
    if not shards:
        return f"{folder.name} contains no safetensors"
    for name in sorted(shards):
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            with safe_open(folder / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{name} is damaged ({' '.join(str(error).split())})"
    return None


def _listed(items: list[int] | list[str], most: int = 6) -> str:
    shown = ", ".join(map(str, items[-most:]))
    return f"..., {shown}" if len(items) > most else shown
