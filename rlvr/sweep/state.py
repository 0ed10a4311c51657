"""How far the runs of a sweep are, as their folders say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.sweep.grid import Sweep, SweepRun


@dataclass(frozen=True)
class RunState:
    """Of one run; ``done`` steps are in its newest checkpoint."""

    finished: bool
    done: int

    @property
    def text(self) -> str:
        """In a word or two."""
        if self.finished:
            return "finished"
        return f"goes on after step {self.done}" if self.done else "new"


def run_state(run: SweepRun) -> RunState:
    """Whether a run has its last checkpoint and, written after it, its model."""
    from rlvr.learner.checkpoint import checkpoints_of

    found = checkpoints_of(run.folder / "checkpoints")
    if not found:
        return RunState(False, 0)
    state = _read(found[0] / "state.json")
    done, model = int(state.get("step", 0)), run.folder / "model"
    steps = run.recipe.steps or _steps_of_epochs(run, state)
    exported = model.is_dir() and model.stat().st_mtime >= found[0].stat().st_mtime
    return RunState(steps is not None and done >= steps and exported, done)


def steps_of(sweep: Sweep, run: SweepRun) -> int:
    """Steps of a run altogether; where epochs are given its data are counted.

    Raises:
        ValueError: They cannot be read.
    """
    if run.recipe.steps is not None:
        return run.recipe.steps
    return sweep.task.count_steps(run.recipe)


def _steps_of_epochs(run: SweepRun, state: dict[str, Any]) -> int | None:
    """Where epochs are given: what the run counted, if it is of as many."""
    from rlvr.settings import read_recipe

    recorded = read_recipe(run.folder / "recipe.yaml").data
    same = recorded.get("epochs") == getattr(run.recipe, "epochs", None)
    return int(state["total_updates"]) if same and "total_updates" in state else None


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # damaged: the run finds an older one
        return {}
    return state
