"""Read a run folder: the recipe, how the run was started, its history and its completions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.files import is_locked
from rlvr.report.alarms import read_alarms
from rlvr.report.books import read_books
from rlvr.report.calibration import read_calibration
from rlvr.report.completions import MAX_BYTES, MAX_ROWS, Completions, choose_completions
from rlvr.report.disputes import read_disputes
from rlvr.report.history import MAX_STEPS, History, read_history
from rlvr.report.timeline import read_timeline
from rlvr.runs.ending import LOCK, read_ending
from rlvr.runs.ledger import LEDGER
from rlvr.settings import parse_yaml


@dataclass(frozen=True)
class RunFolder:
    """The data of a report. ``recipe`` and ``info`` are as written, with any schema.

    ``unfinished`` says why there is no final model; ``notes`` what else is unusual.
    """

    path: Path
    recipe: dict[str, Any]
    recipe_text: str
    info: dict[str, Any]
    history: History
    completions: Completions
    timeline: dict[str, Any]
    calibration: list[dict[str, Any]]
    notes: tuple[str, ...]
    unfinished: tuple[str, ...] = ()
    disputes: dict[str, Any] | None = None
    alarms: tuple[dict[str, Any], ...] = ()
    books: dict[str, Any] | None = None


def read_run(
    run: Path, share: float = 1.0, max_steps: int = MAX_STEPS, *, begun: bool = False
) -> RunFolder:
    """Read the run folder ``run``.

    Args:
        run: The folder.
        share: The part of a page's room for completions that this run may fill.
        max_steps: How many steps its curves may have before they are thinned.
        begun: Whether a run that has logged nothing yet will do.

    Raises:
        ValueError: The folder, its recipe or its metrics are missing, or the recipe is not YAML.
    """
    _check(run, ("recipe.yaml",) if begun else ("recipe.yaml", "metrics.jsonl"))
    recipe_path = run / "recipe.yaml"
    recipe_text = recipe_path.read_text(encoding="utf-8", errors="replace")
    recipe = parse_yaml(recipe_text, str(recipe_path))
    if not isinstance(recipe, dict):
        raise ValueError(
            f"{recipe_path} contains no settings; restore the recipe with which the run started"
        )
    history = read_history(run / "metrics.jsonl", max_steps)
    info, info_notes = _info(run / "run.json")
    last = history.steps[-1] if history.rewound else None
    return RunFolder(
        path=run,
        recipe=recipe,
        recipe_text=recipe_text,
        info=info,
        history=history,
        completions=choose_completions(
            run, last, max(1, int(share * MAX_ROWS)), max(1, int(share * MAX_BYTES))
        ),
        timeline=read_timeline(run / "timeline.jsonl", last),
        calibration=read_calibration(run / "calibration.jsonl", last),
        disputes=read_disputes(run / "disputed.jsonl", history, last),
        alarms=tuple(read_alarms(run / "alarms.jsonl", last)),
        books=read_books(run / LEDGER, last),
        unfinished=_state(run, recipe, history),
        notes=(*info_notes, *history.notes),
    )


def _check(run: Path, names: Sequence[str]) -> None:
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder; name the output folder of a run")
    for name in names:
        if not (run / name).is_file():
            raise ValueError(
                f"{run} contains no {name}, so it is not the folder of a started run; name the "
                "recipe's output folder"
            )


def _info(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``run.json``; the report is written without it if it is missing or broken."""
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
    """A note if the run has not reached its end."""
    if (run / "model").is_dir() or (run / "summary.json").is_file():
        return ()
    reached = history.steps[-1] if history.steps else 0
    planned = recipe.get("steps")
    after = f"after step {reached}" + (f" of {planned}" if isinstance(planned, int) else "")
    ended = read_ending(run)
    if ended is None or is_locked(run / LOCK):
        return (f"The run has no final model: it is still running or was stopped {after}.",)
    state, reason = ended
    return (f"The run has no final model: it {_ENDED[state]} {after}{reason and f': {reason}'}.",)


_ENDED = {"stopped": "was stopped", "failed": "failed"}
