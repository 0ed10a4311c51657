"""What every run is, and how every run begins, whatever its task.

A task's run is a :class:`BaseRun` with what its loop needs beside it. :func:`open_any_run` gives it
processes, checkpoint, console, records and watchdog in the order in which these depend on another;
the task only says how it is built.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console

from rlvr.data import ProblemSampler
from rlvr.learner.bad_updates import BadUpdates
from rlvr.learner.checkpoint import (
    CheckpointWriter,
    checkpoint_path,
    last_sound,
    load_state,
    random_states,
    restore_random_states,
)
from rlvr.learner.deterministic import deterministic_algorithms, one_thread
from rlvr.learner.launch import Launch, join
from rlvr.learner.parameter_store import ParameterStore, give_back_freed_memory
from rlvr.learner.watchdog import Watchdog
from rlvr.policy.loading import model_notes
from rlvr.policy.model import Policy
from rlvr.policy.saving import policy_writer
from rlvr.progress import PlainLines
from rlvr.ranks import Ranks
from rlvr.runs.base_recipe import BaseRecipe
from rlvr.runs.callers import NO_CALLER, CallerObjects
from rlvr.runs.clock import WallClock
from rlvr.runs.collectives import on_rank_zero
from rlvr.runs.interrupt import StopSignals
from rlvr.runs.log import RunLog, SilentLog, notify
from rlvr.runs.notices import branch_notice, notices
from rlvr.runs.parent import Branch, Parent
from rlvr.runs.run_folder import FolderClaim, inexact_resume, open_log
from rlvr.runs.uploads import Uploading, Uploads, no_uploading


class AnyLearner(Protocol):
    """What a run saves of its learner, beside what is the task's own."""

    policy: Policy
    store: ParameterStore
    updates: int
    total_updates: int
    bad_updates: BadUpdates


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
    caller: CallerObjects = NO_CALLER
    """What the Python program that started the run gave it."""
    saved: Path | None = None
    """The checkpoint that this process wrote or read last."""
    uploads: Uploads | None = None
    """What is sent to the Hub while the run goes on."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """The verifier's, of what was trained on and evaluated so far, whatever process did it; a pool
    also counts what was graded ahead, and begins again with every process."""
    branch: Branch | None = None
    """Where the run began in this process, if that is a checkpoint of another run."""
    notes: list[str] = field(default_factory=list)
    """What is to be said of what a branch did not take over."""
    wall: WallClock = field(default_factory=WallClock)
    """What goes by between the steps."""
    torn: bool = False
    """Whether an update has begun and not ended: the state is that of no step."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.output

    @property
    def policy(self) -> Policy:
        """The model being trained."""
        return self.learner.policy

    def token_ids(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Every sequence that the run is given, with its name: what it must find again if it is
        resumed."""
        return iter(())

    @cached_property
    def data_digest(self) -> str:
        """A hash of :meth:`token_ids`: a template that prints the date renders other prompts on
        another day, and a file may have changed."""
        digest = hashlib.sha256()
        for name, ids in self.token_ids():
            digest.update(f"{name} {len(ids)} ".encode())
            digest.update(array("q", ids).tobytes())
        return digest.hexdigest()[:16]

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

    @contextmanager
    def taking_step(self) -> Iterator[None]:
        """Count a step when the block ends; until then there is nothing whole to save."""
        self.torn = True
        yield
        self.step += 1
        self.torn = False

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
            tensors={**self.learner.store.state(), **random_states()},
            state={
                "step": self.step,
                "updates": self.learner.updates,
                "total_updates": self.learner.total_updates,
                "skipped_updates": self.learner.bad_updates.skipped,
                "bad_updates": self.learner.bad_updates.state(),
                "data_digest": self.data_digest,
                **state,
            },
        )
        return self.saved

    def diverged(self, why: Exception) -> str:
        """What a person is told when training cannot go on: the step, and where from it can."""
        self.checkpoints.wait()
        good = last_sound(self.checkpoints.folder)
        there = f"{good} is the last good checkpoint" if good else "there is no good checkpoint"
        step = min(self.step + 1, self.recipe.steps)
        return f"step {step}: {why}; {there}"

    def finish_uploads(self) -> None:
        """Have the final weights sent to the Hub and wait for it, where a run is to be sent."""
        if self.uploads is None or self.saved is None:
            return
        self.checkpoints.wait()
        self.log.phase("sending to the Hub")
        self.uploads.finish(self.saved, self.signals.check)

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything but the weights (loaded already) from a checkpoint; its state.

        From that of another run, where :attr:`branch` is set, only what fits this one.
        """
        state, tensors = load_state(checkpoint, self.ranks)
        if self.branch is None and not self._same_tokens(state):
            raise ValueError(
                f"the run in {str(self.folder)!r} trained on other tokens than its recipe gives "
                "now: a file of data, the tokenizer or the chat template has changed, or the chat "
                "template prints today's date; put back what it was, or start a new run with "
                "another output"
            )
        self.learner.store.load_state(self._moments(tensors))
        restore_random_states(tensors)
        self.learner.updates = state["updates"]
        if self.branch is None:
            self.learner.bad_updates.skipped = state["skipped_updates"]
            self.learner.bad_updates.load_state(state.get("bad_updates", {}))
        self.step, self.saved = state["step"], checkpoint
        return state

    def _same_tokens(self, state: Mapping[str, Any]) -> bool:
        return bool(state.get("data_digest", self.data_digest) == self.data_digest)

    def _moments(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The optimizer state of a checkpoint; for a branch, of what it trains, too."""
        found = [key for key in tensors if not key.startswith("rng/")]
        if self.branch is None:
            return {key: tensors[key] for key in found}
        trained = self.learner.store.named
        before, now = (
            {name.partition(":")[0] for name in names if ":" in name}
            for names in ((key.partition("/")[2] for key in found), trained)
        )
        self.notes += [f"{model} is not trained any more: dropped" for model in before - now]
        self.notes += [f"{model} is new: it begins afresh" for model in now - before]
        return {key: tensors[key] for key in found if key.partition("/")[2] in trained}

    def continue_order(self, sampler: ProblemSampler, saved: Any, state: Mapping[str, Any]) -> bool:  # noqa: ANN401
        """Have a sampler go on where it stood at a checkpoint; whether it does.

        Args:
            sampler: Of this run.
            saved: What the checkpoint says of it.
            state: The checkpoint's, of :meth:`restore`.

        Raises:
            ValueError: It cannot, and the run is no branch.
        """
        fits = self._same_tokens(state) and sampler.fits(saved)
        if self.branch is None or fits:
            sampler.load_state_dict(saved)
            return True
        self.notes.append(
            "the data, their order or the seed are others than the parent's: they are visited from "
            "the beginning of their first epoch"
        )
        return False


AnyRun = TypeVar("AnyRun", bound=BaseRun)


@dataclass(frozen=True)
class RunContext:
    """What there is before a run is built.

    ``checkpoint`` is the one to go on from; ``stack`` closes with the run.
    """

    recipe: BaseRecipe
    launch: Launch
    checkpoint: Path | None
    console: Console
    signals: StopSignals
    stack: ExitStack
    branch: Branch | None = None
    """Set where the checkpoint is another run's."""
    caller: CallerObjects = NO_CALLER

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

    def seed_per_rank(self) -> None:
        """Have each rank draw its own dropout from now on; weights were drawn alike."""
        if not self.ranks.first:
            torch.manual_seed(self.recipe.seed + self.ranks.rank)


@contextmanager
def open_any_run(
    recipe: BaseRecipe,
    build: Callable[[RunContext], AnyRun],
    *,
    resume: bool,
    console: Console,
    signals: StopSignals,
    uploading: Uploading = no_uploading,
    parent: Parent | None = None,
    caller: CallerObjects = NO_CALLER,
) -> Iterator[AnyRun]:
    """Build a run, from its newest valid checkpoint where ``resume`` is set and there is one.

    Without one, a run that has a parent begins with the parent's checkpoint.

    Every process of the job builds one; the first alone writes records and speaks.

    Args:
        recipe: What to do.
        build: Makes the run, its weights from the checkpoint if there is one.
        resume: Whether to go on from a checkpoint.
        console: Where progress is shown.
        signals: What stops the run.
        uploading: Sends checkpoints to the Hub, where the recipe wants that.
        parent: The run that this one branches from.
        caller: What a Python program gives the run.

    Raises:
        ValueError: Anything the recipe names is missing or unusable, the output folder holds
            another run, or the recipe does not go with the launch.
    """
    wall = WallClock(caller.began)
    with ExitStack() as stack:
        # Before the processes meet, which begins CUDA.
        exact = recipe.learner.exact
        stack.enter_context(deterministic_algorithms(recipe.deterministic or exact))
        stack.enter_context(one_thread(exact))
        joined = join()
        launch = joined.whole() if exact else joined
        if not torch.cuda.is_available():
            give_back_freed_memory()  # before weights are read in float32 and rounded
        ranks = launch.ranks
        stage = 0 if launch.zero is None else int(launch.zero["stage"])
        for fault in recipe.launch_faults(ranks.count, stage):
            raise ValueError(fault)
        signals.deferred = ranks.count > 1
        console = console if ranks.first else Console(quiet=True)
        # Of all that the run opens, its folder is released last.
        claim = FolderClaim(recipe, resume, parent, stack.enter_context(ExitStack()))
        own, fields = on_rank_zero(ranks, claim.starting_point)
        branch = None if fields is None else Branch(**fields)
        start = own if branch is None else branch.checkpoint
        checkpoint = None if start is None else Path(start)
        torch.manual_seed(recipe.seed)
        with PlainLines(console) as lines:
            lines.show("loading data, model and engine", 0, 0)
            run = build(
                RunContext(recipe, launch, checkpoint, console, signals, stack, branch, caller)
            )
        run.branch, run.caller, run.wall = branch, caller, wall
        stack.callback(run.checkpoints.wait)
        if ranks.count > 1 or launch.zero is not None:
            notify(console, launch.description)
        if launch is not joined:
            notify(console, "learner.exact keeps weights whole in every process: ZeRO 2, not 3")
        for line in _begin(run, checkpoint):
            notify(console, line)
        run.prepare(console)
        begun = run.step
        # Only now: a recipe that cannot be carried out leaves no folder behind.
        on_rank_zero(
            ranks,
            lambda: claim.record(recipe, run.policy, lambda: run.step - begun, caller.command),
        )
        # The run's own recipe, which says how many steps there are.
        run.log = stack.enter_context(open_log(run.recipe, ranks, run.step, console))
        run.uploads = stack.enter_context(
            uploading(recipe.output, recipe.hub, ranks, run.checkpoints, run.log.notify)
        )
        if recipe.watchdog is not None:
            watchdog = Watchdog(ranks.rank, **recipe.watchdog.model_dump())
            run.watchdog = stack.enter_context(closing(watchdog))
        yield run
        if run.step > begun:
            run.log.step(run.step, {"time/finish": wall.unnamed()})


def _begin(run: BaseRun, checkpoint: Path | None) -> list[str]:
    """Have a run begin or go on; lines about it.

    Raises:
        ValueError: It cannot begin at that checkpoint.
    """
    recipe, branch, lines, before = run.recipe, run.branch, [], None
    if checkpoint is not None:
        state = _restore(run, checkpoint)
        lines = [f"resuming after step {run.step} from {checkpoint}"]
        before = None if branch else state.get("total_updates")
        if branch is not None:
            branch.check_steps(recipe.steps)
            lines = [f"branching after step {run.step} from {checkpoint}"]
            lines += [f"changed: {line}" for line in branch.changes(recipe)]
            position = run.learner.updates, run.learner.total_updates
            lines += run.notes + branch_notice(branch, recipe.learner, state, *position)
        lines += [] if recipe.learner.exact else inexact_resume(checkpoint, run.ranks)
    updates = run.learner.updates, run.learner.total_updates
    return [*lines, *model_notes(recipe.model), *notices(recipe, *updates, before)]


def _restore(run: BaseRun, checkpoint: Path) -> dict[str, Any]:
    """Have a run go on from a checkpoint; its state.

    Raises:
        ValueError: The checkpoint is whole, but holds another state than this version's.
    """
    try:
        return run.restore(checkpoint)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} was written by another version of rlvr, or for "
            f"another kind of run ({type(error).__name__}: {error}); resume with the version that "
            "run.json names, or choose another output"
        ) from error


def weights_device(launch: Launch | None) -> torch.device | None:
    """Where weights are loaded: what does not fit on one GPU is taken apart in host memory."""
    return torch.device("cpu") if shards_weights(launch) else None


def shards_weights(launch: Launch | None) -> bool:
    """Whether the launch parts weights over processes."""
    return launch is not None and launch.zero is not None and launch.zero["stage"] == 3
