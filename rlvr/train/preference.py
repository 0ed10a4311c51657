"""Learning from preferences, the loop.

    rlvr train recipes/preference_dpo.yaml

Pairs (or labelled completions) are read and encoded once, reference log-probabilities are taken
once or in every step, and the learner turns a step's pairs into new weights. Checkpoints, records,
signals and the report are those of every other task; with several processes each runs its share of
a step and the first keeps the records.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from rlvr.train.clock import Clock
from rlvr.train.evaluation import evaluate
from rlvr.train.interrupt import Stopped, StopSignals
from rlvr.train.preference_recipe import PreferenceRecipe
from rlvr.train.preference_run import PreferenceRun, open_preference_run
from rlvr.train.prm_recipe import PrmRecipe
from rlvr.train.rl import export, memory_used
from rlvr.train.run import Run, finish_uploads
from rlvr.train.together import stop_together


def train(
    recipe: PreferenceRecipe, *, resume: bool = False, console: Console | None = None
) -> Path:
    """Train a policy as the recipe says; returns the run folder.

    Args:
        recipe: What to do.
        resume: Continue from the newest valid checkpoint in the output folder, if there is one.
        console: Where progress is shown; None is standard output.

    Raises:
        ValueError: The recipe cannot be carried out; the message says why and what to change.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written first.
    """
    return learn(recipe, _evaluate_if_due, resume=resume, console=console)


def learn(
    recipe: PreferenceRecipe | PrmRecipe,
    evaluate_if_due: Callable[[PreferenceRun, StopSignals], None],
    *,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """The loop, with its measure; see :func:`train`."""
    with (
        StopSignals().watch() as signals,
        open_preference_run(recipe, resume, console or Console(), signals) as run,
    ):
        try:
            evaluate_if_due(run, signals)
            while run.step < recipe.steps:
                train_step(run, signals)
                evaluate_if_due(run, signals)
                if run.step % recipe.checkpoint.every == 0 or run.step == recipe.steps:
                    with signals.shield():
                        run.log.phase("saving")
                        run.save()
        except Stopped:
            if run.step:
                run.log.say(f"stopped after step {run.step}; saving")
                run.save()
            raise
        run.log.phase("exporting")
        export(run.policy, run.tokenizer, run.folder, run.ranks)
        finish_uploads(run.uploads, run.checkpoints, run.saved, run.log, signals)
    return recipe.output


def train_step(run: PreferenceRun, signals: StopSignals) -> None:
    """Take the next preferences, update, record."""
    clock = Clock(lambda *span: run.log.span("learner", run.step + 1, *span))
    stop_together(run.ranks, signals)
    with signals.shield():
        batch = run.data.select(run.sampler.next(run.recipe.data.per_step))
        run.log.phase("updating")
        with clock("update", counted=False):
            metrics = run.learner.update(batch)
        run.step += 1
        metrics["time/step"] = clock.total
        metrics["preference/epoch"] = run.step * len(batch) / len(run.data)
        metrics |= memory_used(run.ranks)
        tokens = sum(len(ids) for item in batch.completion_ids for ids in item)
        metrics["throughput/trained_tokens_per_second"] = tokens / metrics["time/update"]
        run.log.step(run.step, metrics)


def _evaluate_if_due(run: PreferenceRun, signals: StopSignals) -> None:
    """Evaluate before the first step, every so often, and after the last, once each."""
    due = run.step % run.recipe.evaluation.every == 0 or run.step == run.recipe.steps
    if not due or not (run.held_out or run.evaluation_prompts):
        return
    if run.ranks.broadcast(run.log.evaluated(run.step)):
        return
    clock = Clock(lambda *span: run.log.span("learner", run.step, *span))
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    with clock("evaluate"):
        for name, batch in run.held_out.items():
            measured = run.learner.measure(batch)
            metrics[f"eval/{name}/items"] = len(batch)
            metrics |= {
                f"eval/{name}/{key.removeprefix('preference/')}": value
                for key, value in measured.items()
            }
        if run.engine is not None:
            answered, rows = evaluate(cast(Run, run))  # it has all that evaluation looks at
            metrics |= answered
    with signals.shield():
        run.log.completions("evaluations", run.step, rows)
        run.log.step(run.step, metrics | clock.seconds)
