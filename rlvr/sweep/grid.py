"""The grid of a sweep: which values, which runs, in which folders, and whether they can be begun.

``key=a,b`` is an axis and ``key=a`` holds for all runs. The commas that count are those between
YAML values: ``losses=[{name: sigmoid}, {name: ipo}]`` is one value, ``null,{rank: 8}`` are two.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvr.runs.base_recipe import BaseRecipe
from rlvr.settings import load_settings, parse_yaml
from rlvr.tasks.registry import Task, task_of

SEED = "seed"
_LONGEST = 40
# What changes nothing about data and models: a combination that differs in these alone is planned
# once.
_LIGHT = ("output", "seed", "steps", "learner", "checkpoint", "log")


@dataclass(frozen=True)
class Axis:
    """A setting with its values, at least two."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class SweepRun:
    """One combination.

    Attributes:
        name: Of its folder.
        folder: Of the run.
        values: Of the axes, by key.
        words: All that is said to ``rlvr train`` behind the recipe, the folder included.
        recipe: Resolved.
    """

    name: str
    folder: Path
    values: dict[str, Any]
    words: tuple[str, ...]
    recipe: BaseRecipe = field(repr=False)


@dataclass(frozen=True)
class Sweep:
    """A recipe with all combinations of the axes' values."""

    recipe: Path
    out: Path
    task: Task
    axes: tuple[Axis, ...]
    runs: tuple[SweepRun, ...]


def split_values(text: str) -> tuple[Any, ...]:
    """The values of ``key=TEXT``; one where no comma stands between values.

    Raises:
        ValueError: A value stands twice.
    """
    try:
        values = parse_yaml(f"[{text}]", "values")
    except ValueError:
        return (text,)  # the recipe's own reader says what is wrong with it
    if not isinstance(values, list) or len(values) < 2:
        return (text,)
    written = [_json(value) for value in values]
    twice = next((value for value in written if written.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{text!r} holds {twice} twice; two runs would be the same")
    return tuple(values)


def plan_sweep(recipe: Path, words: Sequence[str], out: Path) -> Sweep:
    """Resolve every combination.

    Args:
        recipe: YAML file.
        words: ``KEY=VALUE`` or ``KEY=VALUE,VALUE,...``.
        out: Folder of the runs' folders.

    Raises:
        ValueError: A combination cannot be carried out; it is named.
    """
    fixed: list[str] = []
    axes: dict[str, Axis] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = split_values(text) if equals else (text,)
        if key == "output":
            raise ValueError(f"{word!r}: a sweep gives every run a folder in --out; leave it out")
        if key in axes:
            raise ValueError(f"{key!r} is given twice; put all of its values into one list")
        if len(values) < 2:
            fixed.append(word)
        else:
            axes[key] = Axis(key, values)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {str(out)!r} is a file; give a folder")
    task = task_of(recipe, fixed)
    found = tuple(axes.values())
    runs = [_run(task, recipe, fixed, found, chosen, out) for chosen in _combinations(found)]
    return Sweep(recipe, out, task, found, _with_own_names(runs))


def _combinations(axes: Sequence[Axis]) -> list[tuple[Any, ...]]:
    """Seeds vary fastest, so that a combination's runs stand together."""
    chosen = list(itertools.product(*(axis.values for axis in sorted(axes, key=_is_seed))))
    order = sorted(range(len(axes)), key=lambda place: _is_seed(axes[place]))
    return [tuple(values[order.index(place)] for place in range(len(axes))) for values in chosen]


def _is_seed(axis: Axis) -> bool:
    return axis.key == SEED


def _run(
    task: Task,
    recipe: Path,
    fixed: Sequence[str],
    axes: Sequence[Axis],
    chosen: Sequence[Any],
    out: Path,
) -> SweepRun:
    values = {axis.key: value for axis, value in zip(axes, chosen, strict=True)}
    labels = _labels([axis.key for axis in axes])
    name = ",".join(f"{labels[key]}={_slug(value)}" for key, value in values.items()) or "run"
    folder = out / name
    words = [*fixed, *(f"{key}={_json(value)}" for key, value in values.items())]
    words.append(f"output={_json(str(folder))}")
    try:
        resolved = load_settings(task.schema, recipe, words)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if values else str(error)) from None
    assert isinstance(resolved, BaseRecipe)
    return SweepRun(name, folder, values, tuple(words), resolved)


def _with_own_names(runs: Sequence[SweepRun]) -> tuple[SweepRun, ...]:
    """Runs with different names; long values may have come to be written alike.

    Raises:
        ValueError: They cannot be told apart.
    """
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"several combinations would have the folder {twice!r}, because their values are long "
            "and begin alike; put each into a recipe of its own (base: ...)"
        )
    return tuple(runs)


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ends of keys that tell them apart: ``lr`` of ``learner.lr``."""
    plain = {key: key.removesuffix(".name") for key in keys}
    ends = {}
    for key, text in plain.items():
        parts = text.split(".")
        candidates = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for name, other in plain.items() if name != key]
        ends[key] = next(
            (c for c in candidates if not any(o == c or o.endswith(f".{c}") for o in others)), key
        )
    return ends


def _slug(value: object) -> str:
    """A value as part of a folder's name."""
    text = value if isinstance(value, str) else _json(value)
    text = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-") or "empty"
    return text[-_LONGEST:].strip("-.") or "empty"


def _json(value: object) -> str:
    return json.dumps(value, default=str)


def check_sweep(sweep: Sweep) -> None:
    """Try what may fail for any run, before the first is started.

    Raises:
        ValueError: A combination cannot be carried out, or its folder holds another run.
    """
    from rlvr.runs.run_folder import check_folder

    tried: set[str] = set()
    for run in sweep.runs:
        dumped = run.recipe.model_dump(mode="json")
        heavy = _json({key: value for key, value in dumped.items() if key not in _LIGHT})
        try:
            check_folder(run.recipe, resume=True)
            for fault in run.recipe.launch_faults(1, 0):
                raise ValueError(fault)
            if heavy not in tried:
                sweep.task.plan(run.recipe)
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from None
        tried.add(heavy)
