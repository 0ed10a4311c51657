"""What ``rlvr fit`` is asked: a model, a recipe, a machine, and what may be changed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlvr.memory import GIB, Machine
from rlvr.settings import Settings, load_settings, read_recipe
from rlvr.settings.load import apply_overrides
from rlvr.tasks.registry import TASKS, Task, find_task

Trained = Literal["full", "lora"]

_GPUS = re.compile(r"(\d+)\s*[xX]\s*(\d+(?:\.\d+)?)\s*(?:GiB|GB)?")
_MOST_GPUS = 64

STARTING_POINT: Mapping[str, Any] = {
    "seed": 0,
    "steps": 100,
    "model": {},
    "data": {"source": {"name": "arithmetic", "digits": 2}, "template": "plain"},
    "rollout": {
        "engine": {"name": "transformers", "max_rows": 64},
        "prompts_per_step": 16,
        "samples_per_prompt": 8,
        "sampling": {"max_tokens": 1024},
    },
    "evaluation": {"every": 20},
    "checkpoint": {"every": 50},
}
"""The recipe that is fitted where none is given: GRPO as the defaults have it, on problems that
need no download."""
_COMPLETION = {
    "rl": "rollout.sampling.max_tokens",
    "preference": "data.max_completion_tokens",
    "prm": "data.max_response_tokens",
    "reward_model": "data.max_response_tokens",
    "sft": "data.max_tokens",
}


@dataclass(frozen=True)
class Asked:
    """A question; :func:`build` makes a recipe of it.

    Attributes:
        model: Folder or Hub id.
        recipe: The file to start from; None is :data:`STARTING_POINT`.
        words: Further settings, ``KEY=VALUE``, which are kept as they are.
        gpus: GPUs of a node.
        nodes: Machines.
        machine: Each GPU with its memory, or this machine without one.
        train: What may be trained: all weights, adapters alone, or (None) whichever fits first.
        prompt: Longest prompt in tokens; None leaves the recipe's.
        completion: Longest completion in tokens; None leaves the recipe's.
        spare: Share of the memory that is to stay free.
    """

    model: str
    recipe: Path | None = None
    words: tuple[str, ...] = ()
    gpus: int = 1
    nodes: int = 1
    machine: Machine = field(default_factory=Machine)
    train: Trained | None = None
    prompt: int | None = None
    completion: int | None = None
    spare: float = 0.1

    @cached_property
    def own(self) -> Any:  # noqa: ANN401  (a recipe of any task)
        """The recipe without changes.

        Raises:
            ValueError: As :meth:`build`.
        """
        return self.build({})

    @cached_property
    def data(self) -> dict[str, Any]:
        """The recipe as it is written, without its base."""
        if self.recipe is None:
            return dict(STARTING_POINT)
        return read_recipe(self.recipe).data

    @property
    def task(self) -> Task:
        """Whose recipe it is."""
        return find_task(str(self.data.get("task") or "rl"))

    @property
    def given(self) -> list[str]:
        """The settings that the command line says, as overrides."""
        found = [f"model.path={self.model}"]
        if self.recipe is None:
            found.append(f"output=runs/fit/{Path(self.model).name}")
            found.append(f"data.max_prompt_tokens={self.prompt or 512}")
        elif self.prompt is not None:
            found.append(f"data.max_prompt_tokens={self.prompt}")
        if self.completion is not None:
            found.append(f"{_COMPLETION[self.task.name]}={self.completion}")
        return [*found, *self.words]

    @property
    def room(self) -> float:
        """Bytes that a process may take."""
        assert self.machine.memory is not None
        return (1 - self.spare) * self.machine.memory

    @property
    def text(self) -> str:
        """The machine for people."""
        assert self.machine.memory is not None
        memory = f"{self.machine.memory / GIB:.4g} GiB"
        if self.machine.device == "cpu":
            return f"a machine of {memory} without a GPU"
        each = f"{self.gpus} x {memory}"
        return each if self.nodes == 1 else f"{self.nodes} nodes of {each}"

    def build(self, changes: Mapping[str, Any]) -> Any:  # noqa: ANN401  (a recipe of any task)
        """The recipe with changes.

        Raises:
            ValueError: Settings that are unknown or do not go together.
        """
        schema: type[Settings] = self.task.schema
        if self.recipe is not None:
            return load_settings(schema, self.recipe, [*self.given, *as_words(changes)])
        return load_settings(schema, apply_overrides(self.data, self.given), as_words(changes))


def as_words(changes: Mapping[str, Any]) -> list[str]:
    """Changes as ``KEY=VALUE``, whose values YAML reads back."""
    return [f"{key}={_yaml(value)}" for key, value in changes.items()]


def _yaml(value: Any) -> str:  # noqa: ANN401
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    return str(value)


def parse_gpus(text: str) -> tuple[int, float]:
    """``2x80`` as two GPUs of 80 GiB: their number, and bytes of each.

    Raises:
        ValueError: It is not of that form.
    """
    found = _GPUS.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"--gpus {text!r} is not COUNTxGIB, such as 1x24 for one GPU of 24 GiB or 8x80"
        )
    count, gib = int(found[1]), float(found[2])
    if not 1 <= count <= _MOST_GPUS or gib <= 0:
        raise ValueError(
            f"--gpus {text!r}: give 1 to {_MOST_GPUS} GPUs of a node, each with memory; more "
            "machines are --nodes"
        )
    return count, gib * GIB


assert set(_COMPLETION) == set(TASKS)
