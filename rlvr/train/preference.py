"""Learning from preferences, the loop.

    rlvr train recipes/preference_dpo.yaml

Pairs (or labelled completions) are read and encoded once, reference log-probabilities are taken
once or in every step, and the learner turns a step's pairs into new weights. Checkpoints, records,
signals and the report are those of every other task; with several processes each runs its share of
a step and the first keeps the records.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.train.evaluation import evaluate
from rlvr.train.interrupt import StopSignals
from rlvr.train.loop import Measured, evaluate_if_due, run_steps, step_clock
from rlvr.train.preference_recipe import PreferenceRecipe
from rlvr.train.preference_run import PreferenceRun, open_preference_run
from rlvr.train.prm_recipe import PrmRecipe
from rlvr.train.rl import export, memory_used
from rlvr.train.together import stop_together


def train(
    recipe: PreferenceRecipe, *, resume: bool = False, console: Console | None = None
) -> Path:
    """Train a policy as the recipe says; returns the run folder.

    Arguments and errors as :func:`rlvr.train.rl.train`.
    """
    return learn(recipe, _measure, resume=resume, console=console)


def learn(
    recipe: PreferenceRecipe | PrmRecipe,
    measure: Callable[[PreferenceRun], Measured],
    *,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """The loop; ``measure`` is its evaluation, where there is anything held out."""
    with (
        StopSignals().watch() as signals,
        open_preference_run(recipe, resume, console or Console(), signals) as run,
    ):
        run_steps(
            run,
            lambda: train_step(run, signals),
            lambda: _evaluate_if_due(run, measure),
            run.save,
        )
        run.log.phase("exporting")
        export(run.policy, run.tokenizer, run.folder, run.ranks)
        run.finish_uploads()
    return recipe.output


def train_step(run: PreferenceRun, signals: StopSignals) -> None:
    """Take the next preferences, update, record."""
    clock = step_clock(run, run.step + 1)
    stop_together(run.ranks, signals)
    with signals.shield():
        items, drawn = _items(run, run.sampler.next(run.recipe.data.per_step))
        batch = run.data.select(items)
        run.log.phase("updating")
        with clock("update", counted=False), run.watch("update"):
            metrics = run.learner.update(batch) | drawn
        run.step += 1
        metrics["time/step"] = clock.total
        metrics["preference/epoch"] = run.step * len(batch) / len(run.data)
        metrics |= memory_used(run.ranks)
        tokens = sum(len(ids) for item in batch.completion_ids for ids in item)
        metrics["throughput/trained_tokens_per_second"] = tokens / metrics["time/update"]
        run.log.step(run.step, metrics)


def _items(run: PreferenceRun, items: list[int]) -> tuple[list[int], dict[str, float]]:
    """What the step trains on: as the sampler says, or drawn by loss; figures of the draw."""
    resampler = run.resampler
    epochs = run.step * len(items) / len(run.data)
    if resampler is None or epochs < resampler.settings.after_epochs:
        return items, {}
    run.log.phase("drawing pairs")
    picked = resampler.pick(
        run.step, items, lambda asked: run.learner.item_losses(run.data.select(asked))
    )
    return picked.items, {
        "preference/resampled": picked.changed / len(items),
        "preference/candidate_loss": picked.candidate_loss,
        "preference/picked_loss": picked.loss,
    }


def _evaluate_if_due(run: PreferenceRun, measure: Callable[[PreferenceRun], Measured]) -> None:
    if run.held_out or run.problems is not None:
        evaluate_if_due(run, run.recipe.evaluation.every, lambda: measure(run))


def _measure(run: PreferenceRun) -> Measured:
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    for name, batch in run.held_out.items():
        measured = run.learner.measure(batch)
        metrics[f"eval/{name}/items"] = len(batch)
        metrics |= {
            f"eval/{name}/{key.removeprefix('preference/')}": value
            for key, value in measured.items()
        }
    if run.problems is not None:
        answered, rows = evaluate(run, run.problems)
        metrics |= answered
    return metrics, rows
