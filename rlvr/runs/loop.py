"""Around the steps of every task: evaluation, checkpoints, and a stop that loses nothing."""

import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from rlvr.learner.bad_updates import DivergedError
from rlvr.learner.checkpoint import CheckpointError
from rlvr.policy.finite import NonFiniteWeightsError
from rlvr.runs.alarms import Asked, RunAlarms
from rlvr.runs.base_run import BaseRun
from rlvr.runs.callers import wants_to_stop
from rlvr.runs.clock import Clock
from rlvr.runs.collectives import FailedTogetherError, on_rank_zero
from rlvr.runs.interrupt import Stopped

Measured = tuple[dict[str, float], list[dict[str, Any]]]
"""Metrics ``eval/<set>/...``, and completions as rows to keep."""


def run_steps(
    run: BaseRun,
    step: Callable[[], None],
    evaluate: Callable[[], None],
    save: Callable[[], object],
    *,
    settle: Callable[[], None] | None = None,
) -> None:
    """Take the run's steps that are left.

    Args:
        run: In progress.
        step: Trains on the next data and records it.
        evaluate: Called before the first step and after each; see :func:`evaluate_if_due`.
        save: Writes a checkpoint; also called where a callback or an alarm ends the run.
        settle: Brings to rest, before a checkpoint, what goes on beside the steps; None is nothing.

    Raises:
        Stopped: A signal came; a checkpoint was written first.
        DivergedError: Training cannot go on; the message names step and last good checkpoint.
        Exception: Whatever a step or an evaluation raised; likewise, unless it came in the middle
            of an update.
    """
    every = run.recipe.checkpoint.every
    run.wall.begin_steps()
    try:
        evaluate()
        alarms = RunAlarms(run)
        asked = alarms.resume()
        _keep(run, asked)
        ended = asked.stop
        while not run.finished and not ended:
            step()
            evaluate()
            asked = alarms.check()
            ended = _ended_by_callback(run) or run.finished or asked.stop
            if run.step % every == 0 or ended or asked.save:
                _save(run, save, settle)
            _keep(run, asked)
        run.learner.bad_updates.check_end()
    except Stopped:
        if run.step and not run.torn:
            run.log.notify(f"stopped after step {run.step}; saving")
            save()
        raise
    except DivergedError as error:
        raise DivergedError(run.diverged(error)) from error
    except Exception as error:
        _save_after(run, error, save)
        raise


def evaluate_if_due(
    run: BaseRun,
    every: int,
    measure: Callable[[], Measured],
    *,
    beside: AbstractContextManager[object] | None = None,
) -> None:
    """Evaluate before the first step, every so often, and after the last, once each.

    Args:
        run: In progress.
        every: Steps between two evaluations.
        measure: What is evaluated; collective.
        beside: Entered for as long as ``measure`` runs.
    """
    if run.step % every and run.step != run.recipe.steps:
        return
    if run.ranks.broadcast(run.log.evaluated(run.step)):
        return
    clock = step_clock(run, run.step)
    with ExitStack() as stack:
        if beside is not None:
            with clock("evaluate_wait"):
                stack.enter_context(beside)
        with clock("evaluate"), run.watch("evaluation"):
            metrics, rows = measure()
    run.wall.name(*clock.seconds.values())
    with run.signals.shield():
        run.log.completions("evaluations", run.step, rows)
        run.log.step(run.step, metrics | clock.seconds)


def step_clock(run: BaseRun, step: int) -> Clock:
    """A clock whose phases stand in the timeline of a step."""
    return Clock(lambda *span: run.log.span("learner", step, *span))


def _ended_by_callback(run: BaseRun) -> bool:
    """Whether a callback ends the run after this step; collective where there are callbacks."""
    callbacks = run.caller.callbacks
    if not callbacks:
        return False
    return on_rank_zero(
        run.ranks, lambda: wants_to_stop(callbacks, run.step, run.log.recorded(run.step))
    )


def _keep(run: BaseRun, asked: Asked) -> None:
    """Keep the checkpoint of this step for good, where an alarm asks for it."""
    if asked.save:
        run.checkpoints.keep_for_good(run.step, f"alarm {', '.join(asked.save)}")


def _save_after(run: BaseRun, error: Exception, save: Callable[[], object]) -> None:
    """Keep the finished steps of a run that fails, where its state is that of a step."""
    if not run.step or run.torn or isinstance(error, CheckpointError | NonFiniteWeightsError):
        return
    if run.ranks.count > 1 and not isinstance(error, FailedTogetherError):
        return  # saving is collective, and the others are elsewhere
    # A fault of the user's making is told in one line at the end, unless the trace is asked for.
    hidden = isinstance(error, ValueError) and not os.environ.get("RLVR_TRACEBACK")
    trace = "" if hidden else "".join(traceback.format_exception(error))
    run.log.notify(f"{trace}a fault after step {run.step}; saving what is there")
    with run.signals.shield():
        save()


def _save(
    run: BaseRun, save: Callable[[], object], settle: Callable[[], None] | None = None
) -> None:
    clock = step_clock(run, run.step)
    if settle is not None:
        with clock("settle"):
            settle()
    with run.signals.shield():
        run.log.phase("saving")
        with clock("checkpoint"), run.watch("checkpoint"):
            save()
        run.wall.name(*clock.seconds.values())
        run.log.step(run.step, clock.seconds)
