"""A recipe from a configuration of TRL's GRPO, DPO or SFT trainer.

The configuration is the YAML (or JSON) file of ``trl grpo --config``: settings of the trainer's
config class, of ModelConfig and of ScriptArguments. Their names and defaults are read from the
installed TRL. The recipe says what the configuration meant, TRL's defaults included; what has no
counterpart, or is not quite the same, is told in lines that also stand at the top of the recipe.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlvr.convert.config import TrlConfig
from rlvr.convert.grpo import grpo_recipe
from rlvr.convert.offline import dpo_recipe, sft_recipe
from rlvr.settings import load_settings
from rlvr.settings.parse import read_yaml
from rlvr.tasks.registry import find_task

Convert = Callable[[TrlConfig, int, int | None], dict[str, Any]]
TRAINERS: dict[str, Convert] = {"grpo": grpo_recipe, "dpo": dpo_recipe, "sft": sft_recipe}


@dataclass(frozen=True)
class Converted:
    """A recipe, and what is to be said of it."""

    recipe: dict[str, Any]
    lines: list[str]

    def text(self, source: Path, command: str) -> str:
        """As a YAML file with the lines as comments."""
        head = [f"Converted from {source.name} (TRL). Run:  {command}"]
        comments = [
            textwrap.fill(line, 98, initial_indent="# ", subsequent_indent="#   ")
            for line in [*head, *(f"- {line}" for line in self.lines)]
        ]
        body = yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True)
        return "\n".join(comments) + "\n\n" + body


def convert_trl(
    source: Path, trainer: str | None = None, *, processes: int = 1, rows: int | None = None
) -> Converted:
    """Convert a configuration.

    Args:
        source: YAML or JSON file.
        trainer: grpo, dpo or sft; None tells it by the settings that only one of them has.
        processes: That TRL would be launched with.
        rows: Of the training data, where epochs are given and steps are needed.

    Raises:
        ValueError: The file cannot be read, has an unknown setting, or says what cannot be said.
    """
    if not source.is_file():
        raise ValueError(f"{str(source)!r} is not a file; give TRL's YAML configuration")
    values = read_yaml(source)
    if not isinstance(values, dict):
        raise ValueError(f"{source}: a configuration is a mapping, not {type(values).__name__}")
    environment = values.pop("env", None)
    classes = _classes()
    name = trainer or _told_by(values, classes)
    if name not in TRAINERS:
        raise ValueError(f"trainer {name!r} is none of {', '.join(TRAINERS)}")
    config = TrlConfig(values, classes[name])
    if environment:
        config.say(f"left out: env: set {', '.join(environment)} in the shell")
    recipe = TRAINERS[name](config, processes, rows)
    load_settings(find_task(recipe["task"]).schema, recipe)
    return Converted(recipe, config.lines)


def _classes() -> dict[str, tuple[type, ...]]:
    """TRL's dataclasses by trainer."""
    from trl import DPOConfig, GRPOConfig, ModelConfig, ScriptArguments, SFTConfig
    from trl.scripts.grpo import GRPOScriptArguments
    from trl.scripts.utils import DatasetMixtureConfig

    shared = (ModelConfig, ScriptArguments, DatasetMixtureConfig)
    return {
        "grpo": (GRPOConfig, GRPOScriptArguments, *shared),
        "dpo": (DPOConfig, *shared),
        "sft": (SFTConfig, *shared),
    }


def _told_by(values: dict[str, Any], classes: dict[str, tuple[type, ...]]) -> str:
    """The only trainer that has all of the settings.

    Raises:
        ValueError: None or several have.
    """
    fits = []
    for name, own in classes.items():
        try:
            TrlConfig(values, own)
        except ValueError:
            continue
        fits.append(name)
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(
            f"the settings are those of {' and of '.join(fits)}; say which with --trainer"
        )
    everything = TrlConfig(values, [cls for own in classes.values() for cls in own])
    raise ValueError(
        f"no trainer has all of the settings {', '.join(everything.values)}; say which is meant "
        "with --trainer"
    )
