"""Smaller entries: a model for trying things, traces, and the list of settings."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from rlvr.api.quiet import as_found
from rlvr.api.settings_given import overrides_of
from rlvr.distill.generate import generate
from rlvr.distill.recipe import DistillRecipe
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.settings import INHERIT, describe, load_settings
from rlvr.tasks.registry import find_task


def tiny_model(folder: "str | PathLike[str]" = "tiny", *, seed: int = 0, **shape: int) -> Path:
    """Write a tiny Llama with random weights and a character tokenizer, for trying things out.

    It has a third of a million parameters, knows nothing yet, and trains in seconds on a CPU. Its
    tokenizer knows letters, digits and the usual signs of arithmetic.

    Args:
        folder: Where to write it; a folder that is there already is written anew.
        seed: Of the weights.
        shape: Fields of :class:`rlvr.policy.tiny.TinySettings`, such as ``layers=1``,
            ``hidden_size=32``, ``context=64``, or ``experts=8`` for a mixture of experts.

    Returns:
        The folder, which goes wherever a model's path does.

    Raises:
        ValueError: The shape is impossible, or the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise ValueError(f"{str(folder)!r} holds other files and no model; choose another folder")
    settings = load_settings(TinySettings, shape)
    with as_found():
        write_tiny_model(folder, seed, settings)
    return folder


def generate_traces(
    recipe: "str | PathLike[str] | Mapping[str, Any]",
    *,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,  # noqa: ANN401
) -> Path:
    """Generate reasoning traces that a student can learn from, as ``rlvr distill generate`` does.

    Args:
        recipe: A YAML file with task: distill, or its settings as a mapping.
        resume: Generate what is missing; finished traces stay.
        progress: Show progress.
        settings: Settings that replace the recipe's, as in :func:`rlvr.train`.

    Returns:
        The output folder; its traces are in parts/*.jsonl.

    Raises:
        ValueError: The recipe cannot be run.
    """
    source = recipe if isinstance(recipe, Mapping) else Path(recipe)
    resolved = load_settings(DistillRecipe, source, overrides_of(DistillRecipe, settings))
    with as_found():
        generate(resolved, resume=resume, console=Console(quiet=not progress))
    return resolved.output


def list_settings(task: str = "rl", prefix: str = "") -> pd.DataFrame:
    """Every setting of a task's recipe, a row each: type, default, meaning.

    Args:
        task: rl, sft, preference, prm, reward_model or distill.
        prefix: Only settings that begin so, such as "learner.".

    Raises:
        ValueError: There is no such task.
    """
    schema = DistillRecipe if task == "distill" else find_task(task).schema
    rows = [
        {"setting": item.key, "type": item.type, "default": item.default, "meaning": item.help}
        for item in (INHERIT, *describe(schema))
        if item.key.startswith(prefix)
    ]
    return pd.DataFrame(rows, columns=["setting", "type", "default", "meaning"]).set_index(
        "setting"
    )
