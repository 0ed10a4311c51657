"""The folder of a run: whether it can be this run's own, what is recorded there, where to go on."""

import json
import os
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.hub.remote import token_from_environment
from rlvr.learner import latest_checkpoint, written_by
from rlvr.policy import Policy
from rlvr.policy.mixture import model_size
from rlvr.ranks import Ranks
from rlvr.remedies import VLLM_PACKAGES
from rlvr.settings import load_settings, to_yaml
from rlvr.train.base_recipe import BaseRecipe
from rlvr.train.log import RunLog, SilentLog, check_trackers, say, write_atomically
from rlvr.train.recipe import RolloutSettings

# What may differ between a run and its continuation: nothing that enters a gradient.
MAY_CHANGE = frozenset(
    {"steps", "epochs", "evaluation", "checkpoint", "watchdog", "log", "output", "hub"}
)
# Of which engine serves, only where it is and how long one waits for it.
_ENGINE_MAY_CHANGE = frozenset(
    {
        "addresses",
        "api_key_variable",
        "weights_folder",
        "log",
        "start_timeout_s",
        "outage_timeout_s",
        "request_timeout_s",
        "silence_timeout_s",
        "max_retries",
        "max_restarts",
    }
)
# Scripts and logs of a launch, which are there before the run is.
_LAUNCH = "launch"
_STACK = (
    "rlvr",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "math-verify",
    *VLLM_PACKAGES,
)


def open_log(recipe: BaseRecipe, ranks: Ranks, step: int, console: Console) -> RunLog:
    """The records of a run that stands after ``step`` steps; the first rank keeps them."""
    if not ranks.first:
        return SilentLog()
    return RunLog(
        recipe.output,
        recipe.steps,
        resumed_step=step,
        trackers=recipe.log.track,
        config=recipe.model_dump(mode="json"),
        console=console,
    )


def starting_point(recipe: BaseRecipe, resume: bool) -> str | None:
    """See that the run can begin; the checkpoint to begin from, if there is one."""
    check_folder(recipe, resume)
    checkpoint = checkpoint_to_resume(recipe.output / "checkpoints") if resume else None
    check_trackers(recipe.log.track)
    if recipe.hub is not None:
        token_from_environment()
    return None if checkpoint is None else str(checkpoint)


def say_what_is_not_exact(console: Console, checkpoint: Path, ranks: Ranks) -> None:
    """Say so where another number of processes takes a checkpoint up."""
    wrote, now = written_by(checkpoint), ranks.count
    if wrote != now:
        say(
            console,
            f"the checkpoint was written by {wrote} processes and is taken up by {now}: weights "
            "and optimizer are the same, but sums are taken in another order, and dropout draws "
            "other numbers",
        )


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest sound checkpoint; None where none was written yet.

    Raises:
        ValueError: There are checkpoints, all damaged: starting over would delete the run's records
            without a word.
    """
    found = latest_checkpoint(folder)
    if found is None and any(folder.glob("step_*")):
        raise ValueError(
            f"every checkpoint in {str(folder)!r} is damaged; delete the folder to start over at "
            "step 0, or choose another output"
        )
    return found


def check_folder(recipe: BaseRecipe, resume: bool) -> None:
    """See that the output folder can be this run's own.

    Raises:
        ValueError: It holds another run (or this one, and ``resume`` is not set), or other files.
    """
    folder, written = recipe.output, recipe.output / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {str(folder)!r} is a file; give a folder")
    if written.is_file():
        if not resume:
            raise ValueError(
                f"output {str(folder)!r} holds a run already; continue it with --resume or choose "
                "another output"
            )
        _check_same_recipe(load_settings(type(recipe), written), recipe)
    elif folder.exists() and any(path.name != _LAUNCH for path in folder.iterdir()):
        raise ValueError(
            f"output {str(folder)!r} holds other files and no run; choose another output"
        )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(_no_folder(folder, f"{str(existing)!r} is a file"))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(_no_folder(folder, f"{str(existing)!r} is not writable"))


def record_run(recipe: BaseRecipe, policy: Policy) -> None:
    """Write what is run, on how large a model, with which versions, when."""
    try:
        recipe.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(_no_folder(recipe.output, error.strerror)) from error
    description = {
        "versions": versions(),
        "seed": recipe.seed,
        "model": model_size(policy.causal_lm).card,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["rlvr", *sys.argv[1:]],
    }
    # First what makes the folder a run's: a kill in between leaves one that --resume takes.
    write_atomically(recipe.output / "recipe.yaml", to_yaml(recipe))
    write_atomically(recipe.output / "run.json", json.dumps(description, indent=1))


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for name in _STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _no_folder(folder: Path, reason: str | None) -> str:
    return f"output {str(folder)!r} cannot be written ({reason}); choose another output"


def _check_same_recipe(old: BaseRecipe, new: BaseRecipe) -> None:
    for name in type(new).model_fields:
        before, after = _lasting(getattr(old, name)), _lasting(getattr(new, name))
        if name not in MAY_CHANGE and before != after:
            raise ValueError(
                f"output {str(new.output)!r} holds a run with other settings: {name} was {before} "
                f"and is {after}; resume with the same recipe or choose another output"
            )


def _lasting(value: Any) -> Any:  # noqa: ANN401
    """A recipe's field without what may differ: a job that is queued again runs elsewhere."""
    if not isinstance(value, RolloutSettings):
        return value
    engine = value.engine
    fields = type(engine).model_fields
    default = {name: fields[name].default for name in _ENGINE_MAY_CHANGE & fields.keys()}
    return value.model_copy(update={"engine": engine.model_copy(update=default)})
