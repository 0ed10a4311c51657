"""``rlvr.train``: a run from Python, with the settings, checks and files of the command line."""

import math
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rlvr.api.data_given import DataGiven
from rlvr.api.inputs import Inputs, tokenizer_of
from rlvr.api.quiet import as_found
from rlvr.api.recorded_run import RecordedRun
from rlvr.api.rewards_given import with_rewards
from rlvr.api.settings_given import overrides_of
from rlvr.hub.background import uploading
from rlvr.learner.launch import join
from rlvr.policy.in_memory import check_in_memory, release
from rlvr.policy.loading import load_tokenizer
from rlvr.runs.base_recipe import BaseRecipe
from rlvr.runs.callers import Callback, CallerObjects
from rlvr.runs.interrupt import Stopped
from rlvr.runs.run_folder import check_folder
from rlvr.settings import Settings, load_settings
from rlvr.tasks.registry import Task, find_task, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_TRL_NAMES = {
    "train_dataset": "data",
    "eval_dataset": "eval_data",
    "reward_funcs": "rewards",
    "processing_class": "tokenizer",
    "peft_config": "model.lora",
    "output_dir": "output",
    "max_steps": "steps",
    "learning_rate": "learner.lr",
    "num_generations": "rollout.samples_per_prompt",
    "max_completion_length": "rollout.sampling.max_tokens",
    "resume_from_checkpoint": "resume",
}
"""How TRL calls arguments and settings, and how they are called here."""


def train(
    model: "str | PathLike[str] | Mapping[str, Any] | PreTrainedModel | None" = None,
    data: Any = None,  # noqa: ANN401  (rows of any library)
    *,
    recipe: "str | PathLike[str] | Mapping[str, Any] | None" = None,
    task: str | None = None,
    tokenizer: "str | PathLike[str] | PreTrainedTokenizerBase | None" = None,
    rewards: Any = None,  # noqa: ANN401  (a function, a name, or several)
    eval_data: Any = None,  # noqa: ANN401
    output: "str | PathLike[str] | None" = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **settings: Any,  # noqa: ANN401
) -> RecordedRun:
    """Train, from a model and data or from a recipe; returns the run.

    Everything that a recipe may say can be said here, by the same names; `rlvr settings` lists
    them. What is not said has the recipe's defaults, except where an argument below names another.

    Args:
        model: What is trained: a folder or Hub id, a model of transformers in memory, or the
            recipe's settings of a model as a mapping. A model in memory is trained in place: it is
            turned to float32, moved to the GPU if there is one, and its first weights are written
            to the run's folder. A path that ends in .yaml or .yml is taken as ``recipe``.
        data: Rows (a list of mappings, a ``datasets.Dataset``, a table of pandas), the path of a
            file, the id of a data set on the Hub, or the recipe's settings of data as a mapping.
        recipe: A YAML file, or its settings as a mapping, that the other arguments replace.
        task: rl (the default), sft, preference, prm or reward_model.
        tokenizer: Of the model: a folder or Hub id, or in memory. By default the model's own.
        rewards: Reward functions, for task rl: functions of your own, or names of built-in ones;
            for a weight, a mapping such as {"function": f, "weight": 0.5}.
        eval_data: Held-out rows as ``data``, or a mapping of them by name.
        output: Folder of the run. By default runs/MODEL-TASK, with a number if that exists.
        resume: Go on from the newest checkpoint in ``output``, if there is one.
        callbacks: Called after each step with its number and metrics, on the first process; one
            that returns True, or raises :class:`rlvr.StopTraining`, ends the run after that step.
        progress: Show progress.
        settings: Any other setting: groups as mappings (``learner={"lr": 1e-5}``), or with dots
            (``**{"learner.lr": 1e-5}``).

    Without a recipe, these defaults differ from a recipe's: ``steps`` is one pass over rows in
    memory; the template is the bare problem where rewards are given or the task is not rl, and
    ``question_text`` for a model without a chat template otherwise; token limits fit the model's
    context; and preferences are learnt by DPO.

    Raises:
        ValueError: It cannot be carried out; the message says why and what to change. No folder is
            left behind.
        KeyboardInterrupt: The run was interrupted; a checkpoint was written first.
    """
    for name in settings.keys() & _TRL_NAMES.keys():
        raise ValueError(f"{name} is TRL's name of what is called {_TRL_NAMES[name]} here")
    if recipe is None and isinstance(model, str | PathLike) and _is_yaml(model):
        model, recipe = None, model
    with as_found():
        order = _Order(model, tokenizer, task, recipe, output, settings)
        given = DataGiven(order.task, order.inputs, data, eval_data)
        resolved = _resolved(order, given, rewards)
        check_folder(resolved, resume)
        caller = CallerObjects(order.in_memory, tuple(callbacks), _command())
        with order.inputs.written(join().ranks):
            try:
                folder = order.task.train(
                    resolved,
                    resume=resume,
                    console=Console(quiet=not progress),
                    uploading=uploading,
                    caller=caller,
                )
            except Stopped as stopped:
                raise _interrupted(stopped, resolved.output) from None
            finally:
                if order.in_memory is not None:
                    release(order.in_memory)
    whole = order.in_memory is not None and resolved.model.lora is None
    return RecordedRun(folder, order.in_memory if whole else None)


@dataclass
class _Order:
    """What is to be trained, how, and where; the arguments of :func:`train`."""

    model: Any
    tokenizer: Any
    task_name: str | None
    recipe: Any
    output_given: Any
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        named = self.model is None or isinstance(self.model, str | PathLike | Mapping | Settings)
        self.in_memory = None if named else self.model
        self.recipe = Path(self.recipe) if isinstance(self.recipe, str | PathLike) else self.recipe
        if self.recipe is None and self.model is None:
            raise ValueError("nothing to train: give a model and data, or a recipe")
        if self.in_memory is not None:
            model = self.settings.get("model") or {}
            check_in_memory(self.in_memory, adapters=bool(dict(model).get("lora")))
            self.tokenizer = self.tokenizer or tokenizer_of(self.in_memory)
        self.task = self._task()
        self.output = self._output()
        self.inputs = Inputs(self.output)

    def _task(self) -> Task:
        if self.task_name is not None:
            return find_task(self.task_name)
        if isinstance(self.recipe, Path):
            return task_of(self.recipe)
        return find_task(str((self.recipe or {}).get("task", "rl")))

    def _output(self) -> Path:
        if self.output_given is not None:
            return Path(self.output_given)
        if isinstance(self.recipe, Path):
            from rlvr.settings import read_recipe

            said = read_recipe(self.recipe).data.get("output")
        else:
            said = (self.recipe or {}).get("output")
        return Path(str(said)) if said is not None else _free_folder(self.model, self.task.name)

    def overrides(self) -> list[str]:
        """The recipe's settings that the arguments name, without data."""
        said: dict[str, Any] = {"output": self.output, "task": self.task.name}
        if self.in_memory is not None:
            said["model.path"] = self.inputs.add_saved("model", self.in_memory, self.tokenizer)
        elif isinstance(self.model, Settings):
            said["model"] = self.model.model_dump(mode="json")
        elif isinstance(self.model, Mapping):
            said["model"] = self.model
        elif self.model is not None:
            said["model.path"] = str(self.model)
        if self.tokenizer is not None and self.in_memory is None:
            named = isinstance(self.tokenizer, str | PathLike)
            place = self.tokenizer if named else self.inputs.add_saved("tokenizer", self.tokenizer)
            said["model.tokenizer"] = str(place)
        return overrides_of(self.task.schema, said)


def _resolved(order: _Order, given: DataGiven, rewards: Any) -> Any:  # noqa: ANN401
    """The recipe that is run, with every setting.

    Raises:
        ValueError: Some setting is wrong.
    """
    schema = order.task.schema
    said = [*order.overrides(), *given.overrides(), *overrides_of(schema, order.settings)]
    if order.recipe is not None:
        resolved: Any = load_settings(schema, order.recipe, said)
    else:
        resolved = _with_defaults(order, given, said, own_rewards=rewards is not None)
    return resolved if rewards is None else with_rewards(resolved, rewards)


def _with_defaults(
    order: _Order, given: DataGiven, said: list[str], *, own_rewards: bool
) -> BaseRecipe:
    schema: type[Any] = order.task.schema
    keys = {text.partition("=")[0] for text in said}

    def is_said(*names: str) -> bool:
        return any(key == name or key.startswith(f"{name}.") for key in keys for name in names)

    defaults: dict[str, Any] = {}
    if order.task.name == "preference" and not is_said("losses"):
        defaults["losses"] = [{"name": "sigmoid"}]
    timed = is_said("steps", "epochs")
    if order.task.name == "rl" and given.count and not is_said("rollout.prompts_per_step"):
        defaults["rollout"] = {"prompts_per_step": min(16, given.count)}
    trial = defaults if timed or not given.count else {**defaults, "steps": 1}
    # A first reading finds what is wrong before a tokenizer is loaded.
    first = load_settings(schema, trial, said)
    if not timed and given.count:
        rl = order.task.name == "rl"
        per_step = first.rollout.prompts_per_step if rl else first.data.per_step
        defaults["steps"] = math.ceil(given.count / per_step)
    tokenizer = order.tokenizer
    if tokenizer is None or isinstance(tokenizer, str | PathLike):
        tokenizer = load_tokenizer(first.model)
    if not is_said("data.template"):
        template = _template(order.task.name, bool(tokenizer.chat_template), own_rewards)
        defaults |= {"data": {} if template is None else {"template": template}}
    if order.task.name == "rl":
        _fit_context(defaults, order, first, is_said)
    resolved: BaseRecipe = load_settings(schema, defaults, said)
    return resolved


def _template(task: str, chat: bool, own_rewards: bool) -> str | None:
    """The default template; None is the recipe's."""
    if task in ("prm", "reward_model"):
        return None
    if task == "rl" and not own_rewards:
        return None if chat else "question_text"
    return "plain" if chat else "raw"


def _fit_context(defaults: dict[str, Any], order: _Order, first: Any, is_said: Any) -> None:  # noqa: ANN401
    """Token limits that a small context has room for, where none are given."""
    from rlvr.policy.families import load_config

    config = load_config(first.model) if order.in_memory is None else order.in_memory.config
    context = getattr(config, "max_position_embeddings", None)
    prompt, completion = first.data.max_prompt_tokens, first.rollout.sampling.max_tokens
    if context is None or prompt + completion <= context:
        return
    if not is_said("rollout.sampling.max_tokens"):
        room = context - prompt if is_said("data.max_prompt_tokens") else context // 2
        completion = max(1, min(completion, room))
        defaults.setdefault("rollout", {})["sampling"] = {"max_tokens": completion}
    if not is_said("data.max_prompt_tokens"):
        fitting = max(1, min(prompt, context - completion))
        defaults.setdefault("data", {})["max_prompt_tokens"] = fitting


def _is_yaml(path: "str | PathLike[str]") -> bool:
    return Path(path).suffix.lower() in (".yaml", ".yml")


def _free_folder(model: Any, task: str) -> Path:  # noqa: ANN401
    """runs/MODEL-TASK, with the first number that no folder has."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("several processes need to agree on a folder; give output=")
    if isinstance(model, Mapping):
        model = model.get("path", "model")
    place = getattr(model, "name_or_path", "") if not isinstance(model, str | PathLike) else model
    name = re.sub(r"[^\w.-]+", "-", Path(str(place or "model")).absolute().name) or "model"
    first = Path("runs") / f"{name}-{task}"
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def _command() -> tuple[str, ...]:
    """How the program was started that calls :func:`train`, for the run's record."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    script = main is not None and "ipykernel" not in sys.modules
    return ("python", *sys.argv) if script else ("rlvr.train(...)",)


def _interrupted(stopped: Stopped, folder: Path) -> BaseException:
    """What Python programs know an interrupt as."""
    if stopped.signal_number != signal.SIGINT:
        return SystemExit(128 + stopped.signal_number)
    return KeyboardInterrupt(
        f"the run in {str(folder)!r} was interrupted; go on with resume=True and this output"
    )
