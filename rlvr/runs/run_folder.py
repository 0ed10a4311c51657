"""The folder of a run: check that it belongs to the run, record the run, find where to resume."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.files import differences, enumerate_, locked, write_atomically
from rlvr.install_hints import VLLM_PACKAGES, installed_versions
from rlvr.learner.checkpoint import checkpoints_of, latest_checkpoint, written_by
from rlvr.policy.mixture import model_size
from rlvr.policy.model import Policy
from rlvr.ranks import Ranks
from rlvr.runs.base_recipe import BaseRecipe
from rlvr.runs.collectives import on_rank_zero
from rlvr.runs.ending import LOCK, ending_noted
from rlvr.runs.hub_settings import token_from_environment
from rlvr.runs.log import RunLog, SilentLog
from rlvr.runs.parent import Branch, Parent, check_same_parent, recorded_branch
from rlvr.runs.trackers import check_trackers
from rlvr.settings import Settings, load_settings, read_recipe, to_yaml

# Settings that may differ between a run and its continuation, because they affect no gradient.
MAY_CHANGE = frozenset(
    {"steps", "epochs", "evaluation", "checkpoint", "watchdog", "log", "output", "hub", "alarms"}
)
INPUTS = "inputs"
"""Folder of what a Python program gave in memory, written for whoever runs the recipe again."""
_DESCRIPTION = "run.json"
# Scripts and logs of a launch and inputs, which exist before the run; lock and description of a run
# that was killed while it was recorded.
_BEFORE_THE_RUN = ("launch", INPUTS, LOCK, _DESCRIPTION)
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
    """Open the records of a run after ``step`` steps; only rank 0 keeps them. Collective.

    Raises:
        ValueError: A tracker cannot start, and the run is new.
    """
    opened: list[RunLog] = []

    def open_on_rank_zero() -> None:
        log = RunLog(
            recipe.output,
            recipe.steps,
            resumed_step=step,
            track=recipe.log,
            config=recipe.model_dump(mode="json"),
            console=console,
        )
        opened.append(log)

    on_rank_zero(ranks, open_on_rank_zero)
    return opened[0] if opened else SilentLog()


class FolderClaim:
    """A run's folder while the run goes on: written by one process alone, on rank 0.

    The folder of a run to resume is locked before anything in it is read. That of a new run does
    not exist until everything that may fail has been tried; it is locked when it is made.

    Args:
        recipe: The run's.
        resume: Whether the folder may contain the run already.
        parent: The run to branch from, if it does.
        stack: Releases the folder when it closes.

    Attributes:
        lineage: What is recorded of the parent; None where there is none.
    """

    def __init__(
        self, recipe: BaseRecipe, resume: bool, parent: Parent | None, stack: ExitStack
    ) -> None:
        self.recipe, self.resume, self.parent, self.stack = recipe, resume, parent, stack
        self.folder, self.locked = recipe.output, False
        self.lineage: dict[str, Any] | None = None

    def starting_point(self) -> tuple[str | None, dict[str, Any] | None]:
        """Check that the run can start; where from.

        Returns:
            Its own checkpoint to resume from, or None; fields of the :class:`Branch` that begins
            now, or None.

        Raises:
            ValueError: It cannot: the folder, the parent, a tracker or the Hub's token.
        """
        if self.parent is not None:
            check_other_folder(self.folder, self.parent)
        if contains_run(self.folder):
            self._lock()
        check_folder(self.recipe, self.resume)
        checkpoint = checkpoint_to_resume(self.folder / "checkpoints") if self.resume else None
        branch = self._branch()
        check_trackers(self.recipe.log, self.folder, resuming=checkpoint is not None)
        if self.recipe.hub is not None:
            token_from_environment()
        if checkpoint is not None:
            return str(checkpoint), None
        return None, None if branch is None else vars(branch())

    def _branch(self) -> Callable[[], Branch] | None:
        """What finds the checkpoint of the parent, of a new run or of one to be resumed."""
        if contains_run(self.folder):
            self.lineage = read_lineage(self.folder)
            if self.parent is not None:
                check_same_parent(self.parent, self.lineage, self.folder)
            record = self.lineage
            return None if record is None else lambda: recorded_branch(record)
        if self.parent is None:
            return None
        branch = Branch.of(self.parent)
        branch.check(self.recipe)
        self.lineage = branch.record(self.recipe)
        return lambda: branch

    def record(
        self,
        recipe: BaseRecipe,
        policy: Policy,
        finished_steps: Callable[[], int],
        command: Sequence[str] | None = None,
    ) -> None:
        """Make the folder, where the run is new, and record the run.

        A new folder is removed again if the run fails before it has finished a step: there is
        nothing in it to go on from.

        Args:
            recipe: The run's own.
            policy: Its model.
            finished_steps: How many steps the run has finished.
            command: What started it; None is this process's command line.

        Raises:
            ValueError: The folder cannot be written, or another run has begun in it.
        """
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        if not self.locked:
            self._lock()
            check_folder(recipe, resume=False)  # another start may have been quicker
            self.stack.enter_context(_removed_if_unused(self.folder, missing, finished_steps))
        record_run(recipe, policy, command, self.lineage)
        self.stack.enter_context(ending_noted(self.folder))

    def _lock(self) -> None:
        described = f"output {str(self.folder)!r}"
        try:
            self.stack.enter_context(locked(self.folder / LOCK, described))
        except OSError as error:
            raise ValueError(_no_folder(self.folder, error.strerror)) from error
        self.locked = True


@contextmanager
def _removed_if_unused(
    folder: Path, made: Sequence[Path], finished_steps: Callable[[], int]
) -> Iterator[None]:
    """Remove what a new run wrote if the block ends by an error before a step was finished.

    Args:
        folder: The run's, locked.
        made: The folders that were made for it: itself, if it is one of them, and those above.
        finished_steps: How many steps the run has finished.
    """
    before = set() if folder in made else set(folder.iterdir())
    try:
        yield
    except Exception:
        if not finished_steps():
            for path in set(folder.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):  # something else has come into one
                for path in made:
                    path.rmdir()
        raise


def contains_run(folder: Path) -> bool:
    """Whether a run was recorded there, finished or not."""
    return (folder / "recipe.yaml").is_file()


def not_a_run(folder: Path) -> str:
    """Why a folder without a recipe is not that of a run, and what to name instead."""
    if not folder.is_dir():
        return f"{str(folder)!r} is not a folder; name the output folder of a run"
    inside = sorted(path.parent.name for path in folder.glob("*/recipe.yaml"))
    hint = f"; it contains the runs {enumerate_(inside)}" if inside else ""
    for around in folder.parents[:2]:
        if (around / "recipe.yaml").is_file():
            hint = f"; it is part of the run {str(around)!r}"
    why = f"is not a run (it has no recipe.yaml){hint}"
    return f"{str(folder)!r} {why}; name the output folder of a run"


def check_other_folder(output: Path, parent: Parent) -> None:
    """See that a branch does not go where its parent is.

    Raises:
        ValueError: It does.
    """
    if output.resolve() == parent.run.resolve():
        raise ValueError(
            f"output {str(output)!r} is the run that --from names, and a branch is a run of its "
            "own; give it another folder: output=FOLDER"
        )


def read_lineage(folder: Path) -> dict[str, Any] | None:
    """What a run's folder says of the run that it branched from; None: it did not."""
    path = folder / _DESCRIPTION
    if not path.is_file():
        return None
    parent: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get("parent")
    return parent


def inexact_resume(checkpoint: Path, ranks: Ranks) -> list[str]:
    """A warning if a different number of processes resumes from a checkpoint."""
    wrote, now = written_by(checkpoint), ranks.count
    if wrote == now:
        return []
    return [
        f"the checkpoint was written by {wrote} processes and is resumed by {now}: weights and "
        "optimizer are the same, but sums have another order, and dropout draws other numbers"
    ]


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest intact checkpoint; None if none was written yet.

    Raises:
        ValueError: All checkpoints are damaged; starting again would silently delete the run's
            records.
    """
    found = latest_checkpoint(folder)
    if found is None and checkpoints_of(folder):
        raise ValueError(
            f"every checkpoint in {str(folder)!r} is damaged; delete the folder to start again at "
            "step 0, or choose another output"
        )
    return found


def check_folder(recipe: BaseRecipe, resume: bool) -> None:
    """Check that the output folder can belong to this run.

    Raises:
        ValueError: It contains another run (or this one, but ``resume`` is not set), or other
            files.
    """
    folder = recipe.output
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {str(folder)!r} is a file; give a folder")
    if contains_run(folder):
        if not resume:
            raise ValueError(
                f"output {str(folder)!r} already contains a run; continue it with --resume "
                "(in Python resume=True) or choose another output"
            )
        _check_same_recipe(folder / "recipe.yaml", recipe)
    elif folder.exists() and any(path.name not in _BEFORE_THE_RUN for path in folder.iterdir()):
        raise ValueError(
            f"output {str(folder)!r} contains other files and no run; choose another output"
        )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(_no_folder(folder, f"{str(existing)!r} is a file"))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(_no_folder(folder, f"{str(existing)!r} is not writable"))


def record_run(
    recipe: BaseRecipe,
    policy: Policy,
    command: Sequence[str] | None = None,
    lineage: dict[str, Any] | None = None,
) -> None:
    """Record the recipe, the size of the model, versions, start time, command and parent."""
    description = {
        "versions": versions(),
        "seed": recipe.seed,
        "model": model_size(policy.causal_lm).card,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["rlvr", *sys.argv[1:]] if command is None else list(command),
        **({} if lineage is None else {"parent": lineage}),
    }
    # The file that marks the folder as a run comes last: a run whose parent is not on record would
    # resume from its model's weights.
    write_atomically(recipe.output / _DESCRIPTION, json.dumps(description, indent=1))
    write_atomically(recipe.output / "recipe.yaml", to_yaml(recipe))


def versions() -> dict[str, str]:
    """Installed versions of the packages on which results depend."""
    return installed_versions(_STACK)


def _no_folder(folder: Path, reason: str | None) -> str:
    return f"output {str(folder)!r} cannot be written ({reason}); choose another output"


def _check_same_recipe(recorded: Path, new: BaseRecipe) -> None:
    """See that a run goes on with the settings it has, but for those that affect no gradient.

    Raises:
        ValueError: It does not; each setting is named with both of its values.
    """
    task = str(read_recipe(recorded).data.get("task", "rl"))
    if task != new.task:
        changed = list(differences({"task": task}, {"task": new.task}))
    else:
        old, asked = _lasting(load_settings(type(new), recorded)), _lasting(new)
        before, after = (recipe.model_dump(mode="json") for recipe in (old, asked))
        for name in type(new).model_fields:
            # Settings know which of them mean the same though they are written otherwise.
            if name in MAY_CHANGE or getattr(old, name) == getattr(asked, name):
                before.pop(name, None), after.pop(name, None)
        changed = list(differences(before, after))
    if changed:
        raise ValueError(
            f"output {str(new.output)!r} contains a run with other settings: {'; '.join(changed)}; "
            "resume it with the same recipe, or branch from it: rlvr train RECIPE --from "
            f"{new.output} output=ANOTHER_FOLDER"
        )


def _lasting(value: Any) -> Any:  # noqa: ANN401
    """A recipe's field without what may differ, because a requeued job may run on other
    machines."""
    if isinstance(value, tuple):
        return tuple(map(_lasting, value))
    if not isinstance(value, Settings):
        return value
    fields = type(value).model_fields
    changed = {
        name: fields[name].default if name in value.may_change else _lasting(getattr(value, name))
        for name in fields
    }
    return value.model_copy(update=changed)
