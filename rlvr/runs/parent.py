"""The run that another one branches from: which checkpoint, and what of it still serves.

A branch is a run of its own that begins where a checkpoint of another run stands, with settings
changed: it counts steps on from there, so that with nothing changed it is the rest of its parent,
bit for bit, and what differs comes from the settings that do. docs/going_on.md says what is taken
over and what begins anew.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlvr.files import differences, enumerate_
from rlvr.runs.base_recipe import BaseRecipe
from rlvr.settings import read_recipe

_ADAPTER = ("rank", "alpha", "target_modules")


@dataclass(frozen=True)
class Parent:
    """A run, and the step whose checkpoint is meant; None is the newest that is intact."""

    run: Path
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Parent":
        """Read ``RUN``, ``RUN@STEP`` or the folder of a checkpoint.

        Raises:
            ValueError: There is no such run.
        """
        folder, at, step = text.rpartition("@")
        checkpoint = re.fullmatch(r"step_(\d+)", Path(text).name)
        if checkpoint and Path(text).parent.name == "checkpoints":
            parent = cls(Path(text).parent.parent, int(checkpoint[1]))
        elif not at or Path(text).is_dir():
            parent = cls(Path(text))
        elif re.fullmatch(r"\d+", step):
            parent = cls(Path(folder), int(step))
        else:
            raise ValueError(
                f"--from {text!r}: {step!r} is no step; give RUN@STEP, such as RUN@100"
            )
        if not parent.recipe.is_file():
            raise ValueError(
                f"--from: there is no run in {str(parent.run)!r}; give the folder of a run, which "
                "holds recipe.yaml and checkpoints"
            )
        return parent

    @property
    def recipe(self) -> Path:
        """The run's recorded recipe."""
        return self.run / "recipe.yaml"

    def check(self) -> None:
        """See that there is the checkpoint; its files are not read.

        Raises:
            ValueError: There is not.
        """
        steps = self._steps()
        if not steps:
            raise ValueError(
                f"--from: the run in {str(self.run)!r} has no checkpoint yet; wait for its first "
                "(checkpoint.every), or start a new run without --from"
            )
        if self.step is not None and self.step not in steps:
            raise ValueError(
                f"--from: the run in {str(self.run)!r} has no checkpoint of step {self.step}; "
                f"there are {enumerate_(steps)} (checkpoint.keep says how many remain)"
            )

    def _steps(self) -> list[int]:
        from rlvr.learner.checkpoint import checkpoints_of

        found = checkpoints_of(self.run / "checkpoints")
        return sorted(int(path.name.removeprefix("step_")) for path in found)

    def find(self) -> Path:
        """The checkpoint, every file of which matches its manifest.

        Raises:
            ValueError: There is none, or it is damaged.
        """
        from rlvr.learner.checkpoint import checkpoint_path, find_fault

        self.check()
        steps = self._steps() if self.step is None else [self.step]
        fault = None
        for step in reversed(steps):
            path = checkpoint_path(self.run / "checkpoints", step)
            fault = find_fault(path)
            if fault is None:
                return path
        others = [step for step in self._steps() if step not in steps]
        remedy = f"there are also {enumerate_(others)}" if others else "there is no other"
        raise ValueError(f"--from: checkpoint {str(path)!r} is damaged ({fault}); {remedy}")


@dataclass(frozen=True)
class Branch:
    """Where a branch begins.

    Attributes:
        checkpoint: Folder.
        folder: The parent's, absolute.
        step: Steps that the parent had finished.
        digest: SHA-256 of the checkpoint's manifest, which holds that of every file.
        recipe: The parent's, as it was recorded.
    """

    checkpoint: str
    folder: str
    step: int
    digest: str
    recipe: dict[str, Any]

    @classmethod
    def of(cls, parent: Parent) -> "Branch":
        """Find the checkpoint and read what is recorded of it.

        Raises:
            ValueError: It is missing or damaged.
        """
        from rlvr.learner.checkpoint import MANIFEST

        path = parent.find()
        step = int(path.name.removeprefix("step_"))
        digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
        folder = str(parent.run.absolute())
        return cls(str(path), folder, step, digest, read_recipe(parent.recipe).data)

    def changes(self, recipe: BaseRecipe) -> list[str]:
        """A line for each setting that the branch changes."""
        now = recipe.model_dump(mode="json")
        return [
            line
            for name in dict.fromkeys([*self.recipe, *now])
            if name != "output"
            for line in differences({name: self.recipe.get(name)}, {name: now.get(name)})
        ]

    def changed(self, recipe: BaseRecipe, *names: str) -> bool:
        """Whether one of these root settings is another than the parent's."""
        now = recipe.model_dump(mode="json")
        return any(now.get(name) != self.recipe.get(name) for name in names)

    def check(self, recipe: BaseRecipe) -> None:
        """See that the checkpoint can be gone on from with this recipe.

        Raises:
            ValueError: It cannot: another task, other adapters, or nothing left to do.
        """
        path = self.checkpoint
        before = str(self.recipe.get("task", "rl"))
        if before != recipe.task:
            raise ValueError(
                f"--from: the run in {self.folder!r} is of task {before!r} and the recipe is of "
                f"task {recipe.task!r}; begin with its weights alone: leave out --from and set "
                f"model.path={path}"
            )
        if recipe.steps is not None:  # as it is where epochs are given
            self.check_steps(recipe.steps)
        model: Mapping[str, Any] = self.recipe.get("model") or {}
        now = recipe.model.model_dump(mode="json")
        if _adapters(model) != _adapters(now):
            found = ", ".join(differences(_adapters(model), _adapters(now)))
            raise ValueError(
                f"--from: {found}, and the checkpoint's weights are of the former; begin with its "
                f"weights alone (adapters are merged): leave out --from and set model.path={path}"
            )
        base = {key: (model.get(key), now[key]) for key in ("path", "revision")}
        if recipe.model.lora is not None and any(old != new for old, new in base.values()):
            raise ValueError(
                f"--from: the checkpoint's adapters are of model {model.get('path')!r} and "
                f"model.path is {now['path']!r}; leave model.path as it was, or leave out --from"
            )

    def check_steps(self, steps: int) -> None:
        """See that something is left to do.

        Raises:
            ValueError: The branch ends where it begins.
        """
        if steps <= self.step:
            raise ValueError(
                f"--from: the checkpoint is after step {self.step} and the run has {steps} steps "
                "altogether, so nothing is left; a branch counts on from its parent: give "
                f"steps={self.step + max(1, steps)} (or more epochs), or another checkpoint"
            )

    def record(self, recipe: BaseRecipe) -> dict[str, Any]:
        """What ``run.json`` says of the parent."""
        own = {key: value for key, value in asdict(self).items() if key in _RECORDED}
        return {**own, "changed": self.changes(recipe)}


_RECORDED = ("folder", "step", "digest")


def recorded_branch(record: Mapping[str, Any]) -> Branch:
    """Where a run began that has no checkpoint of its own yet.

    Args:
        record: What :meth:`Branch.record` gave.

    Raises:
        ValueError: The parent's checkpoint is gone, damaged or another.
    """
    branch = Branch.of(Parent(Path(record["folder"]), record["step"]))
    if branch.digest != record["digest"]:
        raise ValueError(
            f"the run began at checkpoint {branch.checkpoint!r}, which is another one by now; "
            "start again with another output"
        )
    return branch


def check_same_parent(asked: Parent, record: Mapping[str, Any] | None, output: Path) -> None:
    """See that a run to be resumed began where ``--from`` says.

    Raises:
        ValueError: It did not.
    """
    if record is None:
        raise ValueError(
            f"the run in output {str(output)!r} did not branch from another; resume it without "
            "--from, or choose another output"
        )
    same_run = asked.run.resolve() == Path(record["folder"]).resolve()
    if not same_run or asked.step not in (None, record["step"]):
        raise ValueError(
            f"the run in output {str(output)!r} branched from {record['folder']}@{record['step']}; "
            "resume it without --from, or choose another output"
        )


def _adapters(model: Mapping[str, Any]) -> dict[str, Any]:
    """What the shape and meaning of a checkpoint's weights depend on."""
    lora = model.get("lora")
    return {"model.lora": None if lora is None else {key: lora.get(key) for key in _ADAPTER}}
