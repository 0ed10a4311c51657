"""Around the steps of every task: evaluation, checkpoints, and a stop that loses nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rlvr.train.base_run import BaseRun
from rlvr.train.clock import Clock
from rlvr.train.interrupt import Stopped

Measured = tuple[dict[str, float], list[dict[str, Any]]]
"""Metrics ``eval/<set>/...``, and completions as rows to keep."""


def run_steps(
    run: BaseRun,
    step: Callable[[], None],
    evaluate: Callable[[], None],
    save: Callable[[], object],
    *,
    settle: Callable[[], None] = lambda: None,
) -> None:
    """Take the run's steps that are left.

    Args:
        run: In progress.
        step: Trains on the next data and records it.
        evaluate: Called before the first step and after each; see :func:`evaluate_if_due`.
        save: Writes a checkpoint.
        settle: Brings to rest, between two steps, what goes on beside them.

    Raises:
        Stopped: A signal came; a checkpoint was written first.
    """
    every = run.recipe.checkpoint.every
    try:
        evaluate()
        while not run.finished:
            step()
            evaluate()
            if run.step % every == 0 or run.finished:
                settle()
                _save(run, save)
    except Stopped:
        if run.step:
            run.log.say(f"stopped after step {run.step}; saving")
            save()
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
    with beside or nullcontext(), clock("evaluate"), run.watch("evaluation"):
        metrics, rows = measure()
    with run.signals.shield():
        run.log.completions("evaluations", run.step, rows)
        run.log.step(run.step, metrics | clock.seconds)


def step_clock(run: BaseRun, step: int) -> Clock:
    """A clock whose phases stand in the timeline of a step."""
    return Clock(lambda *span: run.log.span("learner", step, *span))


def _save(run: BaseRun, save: Callable[[], object]) -> None:
    clock = step_clock(run, run.step)
    with run.signals.shield():
        run.log.phase("saving")
        with clock("checkpoint"), run.watch("checkpoint"):
            save()
        run.log.step(run.step, clock.seconds)
