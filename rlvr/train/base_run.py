"""What every run is, and how every run begins, whatever its task.

A task's run is a :class:`BaseRun` with what its loop needs beside it. :func:`open_any_run` gives it
processes, checkpoint, console, records and watchdog in the order in which these depend on another;
the task only says how it is built.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console

from rlvr.hub.background import Uploads, uploading
from rlvr.learner import (
    CheckpointWriter,
    Launch,
    checkpoint_path,
    join,
    load_state,
    random_states,
    restore_random_states,
)
from rlvr.learner.engine import Engine
from rlvr.learner.watchdog import Watchdog
from rlvr.policy import Policy, policy_writer
from rlvr.ranks import Ranks
from rlvr.train.base_recipe import BaseRecipe
from rlvr.train.interrupt import StopSignals
from rlvr.train.log import RunLog, SilentLog, say
from rlvr.train.run_folder import open_log, record_run, say_what_is_not_exact, starting_point
from rlvr.train.together import first_rank


class AnyLearner(Protocol):
    """What a run saves of its learner, beside what is the task's own."""

    policy: Policy
    engine: Engine
    updates: int
    skipped_updates: int


@dataclass(kw_only=True)
class BaseRun:
    """A run in progress; ``step`` counts finished steps."""

    recipe: BaseRecipe
    tokenizer: Any
    learner: AnyLearner
    checkpoints: CheckpointWriter
    ranks: Ranks
    signals: StopSignals
    log: RunLog = field(default_factory=SilentLog)
    """Silent until the run has a folder."""
    watchdog: Watchdog | None = None
    step: int = 0
    saved: Path | None = None
    """The checkpoint that this process wrote or read last."""
    uploads: Uploads | None = None
    """What is sent to the Hub while the run goes on."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.output

    @property
    def policy(self) -> Policy:
        """The model being trained."""
        return self.learner.policy

    @property
    def finished(self) -> bool:
        """Whether no step is left to take."""
        return self.step >= self.recipe.steps

    def share(self, count: int) -> range:
        """The places, of ``count`` prompts, that this rank answers."""
        return self.ranks.share(count)

    def watch(self, phase: str) -> AbstractContextManager[None]:
        """Have the watchdog end the process if the block hangs."""
        return nullcontext() if self.watchdog is None else self.watchdog.phase(phase)

    def prepare(self, console: Console) -> None:
        """Do what may yet fail before the run is given a folder."""

    def model_writers(self) -> list[Callable[[Path], None]]:
        """What writes the models into a checkpoint; weights are gathered now."""
        copy = self.checkpoints.background
        return [policy_writer(self.policy, keep=self.ranks.first, copy=copy)]

    def save_state(self, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint of the state after ``step`` steps, unless that was done already.

        One that is there but was not read is damaged, and is written again.

        Args:
            state: What is the task's own, as JSON values.
        """
        if self.saved == checkpoint_path(self.checkpoints.folder, self.step):
            return self.saved
        writers = self.model_writers()

        def write_models(path: Path) -> None:
            for write in writers:
                write(path)
            if not self.policy.has_adapters:
                self.tokenizer.save_pretrained(path / "model")

        self.saved = self.checkpoints.save(
            self.step,
            write_models,
            tensors={**self.learner.engine.state(), **random_states()},
            state={
                "step": self.step,
                "updates": self.learner.updates,
                "skipped_updates": self.learner.skipped_updates,
                **state,
            },
        )
        return self.saved

    def finish_uploads(self) -> None:
        """Have the final weights sent to the Hub and wait for it, where a run is to be sent."""
        if self.uploads is None or self.saved is None:
            return
        self.checkpoints.wait()
        self.log.phase("sending to the Hub")
        self.uploads.finish(self.saved, self.signals.check)

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything but the weights (loaded already) from a checkpoint; its state."""
        state, tensors = load_state(checkpoint, self.ranks)
        self.learner.engine.load_state(
            {key: value for key, value in tensors.items() if not key.startswith("rng/")}
        )
        restore_random_states(tensors)
        self.learner.updates = state["updates"]
        self.learner.skipped_updates = state["skipped_updates"]
        self.step, self.saved = state["step"], checkpoint
        return state


AnyRun = TypeVar("AnyRun", bound=BaseRun)


@dataclass(frozen=True)
class Beginning:
    """What there is before a run is built.

    ``checkpoint`` is the one to go on from; ``stack`` closes with the run.
    """

    recipe: BaseRecipe
    launch: Launch
    checkpoint: Path | None
    console: Console
    signals: StopSignals
    stack: ExitStack

    @property
    def ranks(self) -> Ranks:
        """The processes of the job."""
        return self.launch.ranks

    def checkpoint_writer(self) -> CheckpointWriter:
        """What writes the run's checkpoints."""
        settings = self.recipe.checkpoint
        return CheckpointWriter(
            self.recipe.output / "checkpoints",
            settings.keep,
            self.ranks,
            background=settings.background,
        )

    def part_seeds(self) -> None:
        """Have each rank draw its own dropout from now on; weights were drawn alike."""
        if not self.ranks.first:
            torch.manual_seed(self.recipe.seed + self.ranks.rank)


@contextmanager
def open_any_run(
    recipe: BaseRecipe,
    build: Callable[[Beginning], AnyRun],
    *,
    check: Callable[[Launch], None],
    resume: bool,
    console: Console,
    signals: StopSignals,
) -> Iterator[AnyRun]:
    """Build a run, from its newest valid checkpoint where ``resume`` is set and there is one.

    Every process of the job builds one; the first alone writes records and speaks.

    Args:
        recipe: What to do.
        build: Makes the run, its weights from the checkpoint if there is one.
        check: Sees that the recipe goes with the launch.
        resume: Whether to go on from a checkpoint.
        console: Where progress is shown.
        signals: What stops the run.

    Raises:
        ValueError: Anything the recipe names is missing or unusable, the output folder holds
            another run, or the recipe does not go with the launch.
    """
    launch = join()
    ranks = launch.ranks
    check(launch)
    signals.deferred = ranks.count > 1
    console = console if ranks.first else Console(quiet=True)
    found = first_rank(ranks, lambda: starting_point(recipe, resume))
    checkpoint = None if found is None else Path(found)
    torch.manual_seed(recipe.seed)
    with ExitStack() as stack:
        run = build(Beginning(recipe, launch, checkpoint, console, signals, stack))
        stack.callback(run.checkpoints.wait)
        if ranks.count > 1 or launch.zero is not None:
            say(console, launch.description)
        if checkpoint is not None:
            run.restore(checkpoint)
            say(console, f"resuming after step {run.step} from {checkpoint}")
            say_what_is_not_exact(console, checkpoint, ranks)
        run.prepare(console)
        # Only now: a recipe that cannot be carried out leaves no folder behind.
        first_rank(ranks, lambda: record_run(recipe, run.policy))
        # The run's own recipe, which says how many steps there are.
        run.log = stack.enter_context(open_log(run.recipe, ranks, run.step, console))
        run.uploads = stack.enter_context(
            uploading(recipe.output, recipe.hub, ranks, run.checkpoints, run.log.say)
        )
        if recipe.watchdog is not None:
            watchdog = Watchdog(ranks.rank, **recipe.watchdog.model_dump())
            run.watchdog = stack.enter_context(closing(watchdog))
        yield run


def weights_device(launch: Launch | None) -> torch.device | None:
    """Where weights are loaded: what does not fit on one GPU is taken apart in host memory."""
    return torch.device("cpu") if shards_weights(launch) else None


def shards_weights(launch: Launch | None) -> bool:
    """Whether the launch parts weights over processes."""
    return launch is not None and launch.zero is not None and launch.zero["stage"] == 3
