"""Training an implicit process reward model from labels of whole responses.

    rlvr train recipes/prm/tiny_ce.yaml

Responses with labels are read and encoded once, the reference's log-probabilities are taken once,
and the learner of preferences does the rest: all objectives are preference losses of the log-ratio
(``rlvr/prm/objectives.py``). What is its own is the measure: how well rewards of held-out responses
rank right before wrong ones, and how well they are calibrated.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from rlvr.learner import PreferenceBatch
from rlvr.prm import calibration, ranking
from rlvr.train.clock import Clock
from rlvr.train.interrupt import StopSignals
from rlvr.train.preference import learn
from rlvr.train.preference_run import PreferenceRun
from rlvr.train.prm_data import prompt_groups
from rlvr.train.prm_recipe import PrmRecipe


def train(recipe: PrmRecipe, *, resume: bool = False, console: Console | None = None) -> Path:
    """Train a reward model as the recipe says; returns the run folder.

    Args:
        recipe: What to do.
        resume: Continue from the newest valid checkpoint in the output folder, if there is one.
        console: Where progress is shown; None is standard output.

    Raises:
        ValueError: The recipe cannot be carried out; the message says why and what to change.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written first.
    """
    return learn(recipe, _evaluate_if_due, resume=resume, console=console)


def _evaluate_if_due(run: PreferenceRun, signals: StopSignals) -> None:
    """Measure before the first step, every so often, and after the last, once each."""
    due = run.step % run.recipe.evaluation.every == 0 or run.step == run.recipe.steps
    if not due or not run.held_out or run.ranks.broadcast(run.log.evaluated(run.step)):
        return
    assert isinstance(run.recipe, PrmRecipe)
    clock = Clock(lambda *span: run.log.span("learner", run.step, *span))
    metrics: dict[str, float] = {}
    with clock("evaluate"):
        for name, batch in run.held_out.items():
            log_ratio_B = held_out_log_ratios(run, batch)
            found = measures(batch, recipe_beta(run.recipe) * log_ratio_B)
            metrics |= {f"eval/{name}/{key}": value for key, value in found.items()}
            metrics[f"eval/{name}/items"] = len(batch)
    with signals.shield():
        run.log.step(run.step, metrics | clock.seconds)


def recipe_beta(recipe: PrmRecipe) -> float:
    """Scale of the rewards."""
    return recipe.objective.beta


def held_out_log_ratios(run: PreferenceRun, batch: PreferenceBatch) -> torch.Tensor:
    """Summed log-ratio [B] of single responses; collective."""
    own_B = run.learner.passes.sums(batch)[:, 0, 0]
    if batch.reference_BK is not None:
        return own_B - batch.reference_BK[:, 0].to(own_B)
    assert run.learner.reference is not None
    with run.learner.reference() as reference:
        return own_B - run.learner.reference_sums(batch, reference)[:, 0]


def measures(batch: PreferenceBatch, rewards_B: torch.Tensor) -> dict[str, float]:
    """Ranking and calibration of rewards, by name; what cannot be computed is left out."""
    assert batch.desirable_B is not None
    labels = batch.desirable_B.bool().tolist()
    found = asdict(ranking(rewards_B.tolist(), labels, prompt_groups(batch)))
    found["pair_accuracy"] = found.pop("pairs")
    found["sign_accuracy"] = found.pop("accuracy")
    calibrated = calibration(rewards_B.tolist(), [float(label) for label in labels])
    found |= {"brier": calibrated.brier, "ece": calibrated.ece}
    return {name: float(value) for name, value in found.items() if value is not None}
