"""Training an explicit outcome reward model from labels of whole responses.

    rlvr train recipes/reward_model/tiny_win_tie.yaml

Responses with labels are read and encoded once; pairs, lists or single responses are made of them;
the learner turns a step's items into new weights. Held-out responses are scored from time to time,
and with ``evaluation.keep_best`` the run's model folder holds the model that was best on them.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from rlvr.prm import ranking
from rlvr.report.lines import read_lines
from rlvr.report.reliability import reliability_svg
from rlvr.rm import (
    Bin,
    Responses,
    best_and_spread,
    calibration,
    head_writer,
    members,
    mse_to,
)
from rlvr.train.interrupt import StopSignals
from rlvr.train.log import write_atomically
from rlvr.train.loop import Measured, evaluate_if_due, run_steps, step_clock
from rlvr.train.reward_model_recipe import RewardModelRecipe
from rlvr.train.reward_model_run import RewardModelRun, open_reward_model_run
from rlvr.train.rl import export, memory_used
from rlvr.train.together import stop_together


def train(
    recipe: RewardModelRecipe, *, resume: bool = False, console: Console | None = None
) -> Path:
    """Train a reward model as the recipe says; returns the run folder.

    Arguments and errors as :func:`rlvr.train.rl.train`.
    """
    with (
        StopSignals().watch() as signals,
        open_reward_model_run(recipe, resume, console or Console(), signals) as run,
    ):
        run_steps(run, lambda: train_step(run, signals), lambda: _evaluate(run), run.save)
        if recipe.evaluation.keep_best is None:
            run.log.phase("exporting")
            export_model(run)
        else:
            run.log.say(f"best after step {run.best.step}: {abs(run.best.value or 0):.4f}")
        if run.ranks.first:
            draw_reliability(run)
    return recipe.output


def train_step(run: RewardModelRun, signals: StopSignals) -> None:
    """Take the next items, update, record."""
    clock = step_clock(run, run.step + 1)
    stop_together(run.ranks, signals)
    with signals.shield():
        soft = run.recipe.calibration is not None and run.recipe.calibration.is_soft(run.epoch)
        with clock("targets", counted=False), run.watch("targets"):
            items = run.next_items()
        run.log.phase("updating")
        with clock("update", counted=False), run.watch("update"):
            metrics = run.learner.update(items)
        run.step += 1
        metrics["time/step"] = clock.total
        metrics["rm/epoch"] = run.step * len(items) / len(run.items)
        if run.recipe.calibration is not None:
            metrics["rm/soft"] = float(soft)
        metrics |= memory_used(run.ranks)
        rate = items.tokens() / metrics["time/update"]
        metrics["throughput/trained_tokens_per_second"] = rate
        run.log.step(run.step, metrics)


def _evaluate(run: RewardModelRun) -> None:
    if not run.held_out:
        return
    forgotten = run.recipe.evaluation.keep_best is not None and run.best.step is None
    if forgotten and run.ranks.broadcast(run.log.evaluated(run.step)):
        # Killed before its first checkpoint: the evaluation is on record, the best is not.
        _measure(run)
    evaluate_if_due(run, run.recipe.evaluation.every, lambda: _measure(run))


def _measure(run: RewardModelRun) -> Measured:
    """Score all held-out responses; the model folder then holds the best."""
    metrics: dict[str, float] = {}
    for name, responses in run.held_out.items():
        rewards_M = run.learner.rewards(responses)
        found = measures(rewards_M, responses)
        if run.recipe.loss.absolute:
            calibrated = asdict(calibration(rewards_M.tolist(), responses.outcomes_M.tolist()))
            found |= {key: value for key, value in calibrated.items() if key != "bins"}
            found["rate_mse"] = rate_error(rewards_M, responses)
            run.log.calibration(run.step, name, calibrated)
        metrics |= {f"eval/{name}/{key}": value for key, value in found.items()}
    _keep_best(run, metrics)
    return metrics, []


def measures(rewards_M: torch.Tensor, responses: Responses) -> dict[str, float]:
    """Ranking, best of N and spread of rewards, by name; what cannot be computed is left out."""
    rewards, labels, groups = rewards_M.tolist(), responses.labels, responses.groups
    ranked = asdict(ranking(rewards, labels, groups))
    ranked["pair_accuracy"] = ranked.pop("pairs")
    ranked["sign_accuracy"] = ranked.pop("accuracy")
    found = {name: float(value) for name, value in ranked.items() if value is not None}
    return found | best_and_spread(rewards, labels, groups)


def rate_error(rewards_M: torch.Tensor, responses: Responses) -> float:
    """Squared error of each problem's mean probability to its share of right responses."""
    parts = [torch.tensor(rows) for rows in members(responses.groups).values()]
    p_M, y_M = rewards_M.double().sigmoid(), responses.outcomes_M.double()
    predicted, rates = (torch.stack([v[rows].mean() for rows in parts]) for v in (p_M, y_M))
    return mse_to(predicted, rates)


def _keep_best(run: RewardModelRun, metrics: dict[str, float]) -> None:
    """Have the model folder hold this model, where it is the best; collective."""
    name = run.recipe.evaluation.keep_best
    if name is None:
        return
    measure = "nll" if run.recipe.loss.absolute else "auc_within"
    value = metrics.get(f"eval/{name}/{measure}")
    if value is None:
        raise ValueError(
            f"evaluation.keep_best = {name!r}: none of its problems has both right and wrong "
            "responses, so there is no best; hold out more problems, or sample more of each"
        )
    before = run.best
    run.best = before.with_evaluation(value if measure == "nll" else -value, run.step)
    if run.best.step != before.step:
        run.log.phase("exporting")
        export_model(run)


def export_model(run: RewardModelRun) -> None:
    """Write the model folder, head and all, whole or not at all; collective."""
    write_head = head_writer(run.learner.model, keep=run.ranks.first)
    export(run.policy, run.tokenizer, run.folder, run.ranks, beside=write_head)


def draw_reliability(run: RewardModelRun) -> None:
    """Draw, for each set, the first evaluation and that of the exported model over each other."""
    path = run.folder / "calibration.jsonl"
    rows = read_lines(path).objects if path.is_file() else []
    for name in dict.fromkeys(row["set"] for row in rows):
        by_step = {row["step"]: row["bins"] for row in rows if row["set"] == name}
        steps = sorted(step for step in by_step if step <= run.step)
        last = run.best.step if run.best.step in steps else steps[-1]
        shown = {
            f"after step {step}": [Bin(**found) for found in by_step[step]]
            for step in dict.fromkeys((steps[0], last))
        }
        svg = reliability_svg(shown, f"Probabilities on {name}")
        write_atomically(run.folder / f"reliability_{name}.svg", svg)
