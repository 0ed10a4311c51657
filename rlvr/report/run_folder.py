"""Read a run folder: the recipe, how it was started, its history and its completions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.report.calibration import read_calibration
from rlvr.report.completions import Completions, choose_completions
from rlvr.report.history import History, read_history
from rlvr.report.timeline import read_timeline
from rlvr.settings import parse_yaml


@dataclass(frozen=True)
class RunFolder:
    """Everything a report is made of. ``recipe`` and ``info`` are as written, of any schema."""

    path: Path
    recipe: dict[str, Any]
    recipe_text: str
    info: dict[str, Any]
    history: History
    completions: Completions
    timeline: dict[str, Any]
    calibration: list[dict[str, Any]]
    notes: tuple[str, ...]


def read_run(run: Path) -> RunFolder:
    """Read the run folder ``run``.

    Raises:
        ValueError: The folder, its recipe or its metrics are missing, or the recipe is not YAML.
    """
    _check(run)
    recipe_path = run / "recipe.yaml"
    recipe_text = recipe_path.read_text(encoding="utf-8", errors="replace")
    recipe = parse_yaml(recipe_text, str(recipe_path))
    if not isinstance(recipe, dict):
        raise ValueError(f"{recipe_path} holds no settings; put back the recipe the run began with")
    history = read_history(run / "metrics.jsonl")
    info, info_notes = _info(run / "run.json")
    last = history.steps[-1] if history.rewound else None
    return RunFolder(
        path=run,
        recipe=recipe,
        recipe_text=recipe_text,
        info=info,
        history=history,
        completions=choose_completions(run, last),
        timeline=read_timeline(run / "timeline.jsonl", last),
        calibration=read_calibration(run / "calibration.jsonl", last),
        notes=(*_state(run, recipe, history), *info_notes, *history.notes),
    )


def _check(run: Path) -> None:
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder; name the output folder of a run")
    for name in ("recipe.yaml", "metrics.jsonl"):
        if not (run / name).is_file():
            raise ValueError(
                f"{run} holds no {name}, so it is not the folder of a run that has started; "
                "name the recipe's output folder"
            )


def _info(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``run.json``; the report does without it where it is missing or broken."""
    if not path.is_file():
        return {}, (f"{path.name} is missing, so versions, seed and start time may be unknown.",)
    try:
        info = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError:
        info = None
    if not isinstance(info, dict):
        return {}, (f"{path.name} could not be read, so versions and start time may be unknown.",)
    return info, ()


def _state(run: Path, recipe: dict[str, Any], history: History) -> tuple[str, ...]:
    """Say so where the run has not reached its end."""
    if (run / "model").is_dir() or (run / "summary.json").is_file():
        return ()
    reached = history.steps[-1] if history.steps else 0
    planned = recipe.get("steps")
    of = f" of {planned}" if isinstance(planned, int) else ""
    return (
        f"The run has no final model: it is still going or was stopped after step {reached}{of}.",
    )
