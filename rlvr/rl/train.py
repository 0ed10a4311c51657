"""Reinforcement learning from verifiable rewards, the loop.

Prompts go to the rollout engine, which samples a group of completions for each; the verifier turns
completions into rewards; rewards become advantages; the learner turns them into new weights, which
the engine samples from in the next step, or, if rollouts are sampled ahead, in a later one.

    rlvr train recipes/smollm2_arithmetic.yaml

With several processes every one runs this loop over the same rollouts; sampling, grading and the
update are shared out, and the first keeps the records.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.rl.batch import build_batch
from rlvr.rl.ledger import open_ledger
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.record import record_step
from rlvr.rl.rollouts import AsynchronousRollouts, Rollouts, sampling_rollouts
from rlvr.rl.run import Run, open_run
from rlvr.runs.callers import NO_CALLER, CallerObjects
from rlvr.runs.collectives import stop_together
from rlvr.runs.evaluation import evaluate
from rlvr.runs.interrupt import StopSignals
from rlvr.runs.loop import evaluate_if_due, run_steps, step_clock
from rlvr.runs.model_folder import export
from rlvr.runs.parent import Parent
from rlvr.runs.uploads import Uploading, no_uploading


def train(
    recipe: RLRecipe,
    *,
    resume: bool = False,
    console: Console | None = None,
    uploading: Uploading = no_uploading,
    parent: Parent | None = None,
    caller: CallerObjects = NO_CALLER,
) -> Path:
    """Train a policy as the recipe says; returns the run folder.

    Args:
        recipe: What to do.
        resume: Continue from the newest valid checkpoint in the output folder, if there is one.
        console: Where progress is shown; None is standard output.
        uploading: Sends checkpoints to the Hub, where the recipe wants that.
        parent: The run to branch from; None begins with the recipe's model.
        caller: What a Python program gives the run: a loaded model, callbacks.

    Raises:
        ValueError: The recipe cannot be carried out; the message says why and what to change.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written first.
    """
    with (
        StopSignals().watch() as signals,
        open_run(recipe, resume, console or Console(), signals, uploading, parent, caller) as run,
    ):
        open_ledger(run)
        with sampling_rollouts(run) as rollouts:
            _train(run, rollouts, signals)
    return recipe.output


def _train(run: Run, rollouts: Rollouts, signals: StopSignals) -> None:
    run_steps(
        run,
        lambda: train_step(run, rollouts, signals),
        lambda: _evaluate_if_due(run, rollouts),
        lambda: run.save(rollouts.state()),
        settle=_settling(run, rollouts),
    )
    run.log.phase("exporting")
    export(run.policy, run.tokenizer, run.folder, run.ranks)
    for hook in run.learner.hooks:
        hook.export(run.tokenizer, run.folder, run.ranks)
    run.finish_uploads()


def train_step(run: Run, rollouts: Rollouts, signals: StopSignals) -> None:
    """Sample, verify, update, record."""
    clock = step_clock(run, run.step + 1)
    stop_together(run.ranks, run.signals)
    with run.watch("rollout"):
        rollout = rollouts.next(clock)
    reward = run.recipe.reward
    batch = build_batch(rollout.groups, run.recipe.advantage, reward.truncated, reward.uncertainty)
    with signals.shield():
        run.log.phase("updating")
        with run.taking_step(), clock("update", counted=False), run.watch("update"):
            metrics = run.learner.update(batch)
        rollouts.finished()
        with clock("sync"), run.watch("sync"):
            run.log.phase("syncing weights")
            metrics |= rollouts.publish()
        record_step(run, rollout, batch, metrics, clock)


def _evaluate_if_due(run: Run, rollouts: Rollouts) -> None:
    if run.held_out.prompts or run.probe:
        every = run.recipe.evaluation.every
        exclusive = rollouts.exclusive() if isinstance(rollouts, AsynchronousRollouts) else None
        evaluate_if_due(run, every, lambda: _measured(run), beside=exclusive)


def _measured(run: Run) -> tuple[dict[str, float], list[dict[str, Any]]]:
    metrics, rows = evaluate(run, run.held_out)
    return metrics | ({} if run.probe is None else run.probe.measure(run.learner)), rows


def _settling(run: Run, rollouts: Rollouts) -> Callable[[], None] | None:
    """What a checkpoint waits for; None where nothing is sampled ahead."""
    if not isinstance(rollouts, AsynchronousRollouts):
        return None

    def settle() -> None:
        run.log.phase("waiting for rollouts to save")
        rollouts.settle()

    return settle
