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
from rlvr.prm import ranking
from rlvr.rm import Calibration, calibration
from rlvr.train.loop import Measured
from rlvr.train.preference import learn
from rlvr.train.preference_run import PreferenceRun
from rlvr.train.prm_data import prompt_groups
from rlvr.train.prm_recipe import PrmRecipe


def train(recipe: PrmRecipe, *, resume: bool = False, console: Console | None = None) -> Path:
    """Train a reward model as the recipe says; returns the run folder.

    Arguments and errors as :func:`rlvr.train.rl.train`.
    """
    return learn(recipe, _measure, resume=resume, console=console)


def _measure(run: PreferenceRun) -> Measured:
    assert isinstance(run.recipe, PrmRecipe)
    metrics: dict[str, float] = {}
    for name, batch in run.held_out.items():
        rewards_B = run.recipe.objective.beta * held_out_log_ratios(run, batch)
        found, calibrated = measures(batch, rewards_B)
        run.log.calibration(run.step, name, asdict(calibrated))
        metrics |= {f"eval/{name}/{key}": value for key, value in found.items()}
        metrics[f"eval/{name}/items"] = len(batch)
    return metrics, []


def held_out_log_ratios(run: PreferenceRun, batch: PreferenceBatch) -> torch.Tensor:
    """Summed log-ratio [B] of single responses; collective."""
    own_B = run.learner.passes.sums(batch)[:, 0, 0]
    if batch.reference_BK is not None:
        return own_B - batch.reference_BK[:, 0].to(own_B)
    assert run.learner.reference is not None
    with run.learner.reference() as reference:
        return own_B - run.learner.reference_sums(batch, reference)[:, 0]


def measures(
    batch: PreferenceBatch, rewards_B: torch.Tensor
) -> tuple[dict[str, float], Calibration]:
    """Ranking and calibration of rewards, by name; what cannot be computed is left out."""
    assert batch.desirable_B is not None
    labels = batch.desirable_B.bool().tolist()
    found = asdict(ranking(rewards_B.tolist(), labels, prompt_groups(batch)))
    found["pair_accuracy"] = found.pop("pairs")
    found["sign_accuracy"] = found.pop("accuracy")
    calibrated = calibration(rewards_B.tolist(), [float(label) for label in labels])
    found |= {"brier": calibrated.brier, "ece": calibrated.ece}
    return {n: float(value) for n, value in found.items() if value is not None}, calibrated
