"""Ranking scored responses: best of N by a reward model, implicit or explicit.

The curves stand beside what they have to beat: a random choice, majority vote and pass@N, which are
those of ``eval/metrics.py``, exact over the draw of N responses. So is best of N; the weighted vote
is averaged over drawn subsets. Errors are a bootstrap over problems (``eval/statistics.py``).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch

from eval.metrics import REFERENCE, maj_at_k, pass_at_k, shown_ks
from eval.statistics import Bootstrap
from rlvr.files import write_atomically
from rlvr.reward_models.best_of_n import (
    Aggregate,
    Values,
    expected_best,
    expected_vote,
    response_score,
)
from rlvr.reward_models.calibration import calibration
from rlvr.reward_models.quality import ranking
from rlvr.tasks.tools.score import ScoredResponse


def rank(
    scored: Sequence[ScoredResponse],
    *,
    values: str = "diff",
    aggregate: str = "min",
    vote_coefficient: float | None = None,
    beta: float | None = None,
    draws: int = 200,
) -> dict[str, Any]:
    """Curves over N and the quality of the scores, as JSON values.

    Args:
        scored: Several responses to each problem; the smallest number of them bounds N.
        values: diff or cumulative.
        aggregate: min, sum or last.
        vote_coefficient: Of the weighted vote; None is 0.05, or 1 where the model is explicit.
        beta: Scale of rewards, for calibration; None likewise.
        draws: Subsets that the weighted vote is averaged over.

    Raises:
        ValueError: An unknown choice.
    """
    if values not in ("diff", "cumulative"):
        raise ValueError(f"values {values!r} is neither diff nor cumulative")
    how = cast("tuple[Values, Aggregate]", (values, aggregate))
    scale = 1.0 if scored and scored[0].explicit else 0.05
    vote_coefficient = scale if vote_coefficient is None else vote_coefficient
    beta = scale if beta is None else beta
    problems: dict[str, list[ScoredResponse]] = {}
    for item in scored:
        problems.setdefault(item.response.problem, []).append(item)
    groups = list(problems.values())
    numbers = [[response_score(torch.tensor(s.steps), *how) for s in group] for group in groups]
    labels = [bool(item.response.correct) for group in groups for item in group]
    names = [name for name, group in problems.items() for _ in group]
    totals = [beta * sum(item.tokens) for group in groups for item in group]
    return {
        "problems": len(groups),
        "responses": len(scored),
        "settings": {"values": values, "aggregate": aggregate, "beta": beta}
        | {"vote_coefficient": vote_coefficient},
        "curves": _curves(groups, numbers, vote_coefficient, draws),
        "quality": asdict(ranking(totals, labels, names))
        | {"by_score": asdict(ranking([s for row in numbers for s in row], labels, names))}
        | {"calibration": asdict(calibration(totals, [float(label) for label in labels]))},
    }


def _curves(
    groups: Sequence[Sequence[ScoredResponse]],
    numbers: Sequence[Sequence[float]],
    coefficient: float,
    draws: int,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Accuracy with its error by method and N."""
    correct = [[bool(item.response.correct) for item in group] for group in groups]
    votes = [_votes(group) for group in groups]
    voting = any(vote is not None for row in votes for vote in row)
    bootstrap = Bootstrap(len(groups), "prm rank")
    curves: dict[str, dict[str, dict[str, float | None]]] = {}

    def add(name: str, n: int, per_problem: list[float]) -> None:
        estimate = bootstrap.estimate(per_problem)
        row = {"value": estimate.value, "se": estimate.se, "low": estimate.low}
        curves.setdefault(name, {})[str(n)] = row | {"high": estimate.high}

    for n in shown_ks(min(map(len, groups))):
        add("random", n, [fmean(row) for row in correct])
        add("best_of_n", n, [expected_best(c, s, n) for c, s in zip(correct, numbers, strict=True)])
        if voting:
            add("majority", n, [maj_at_k(row, n) for row in votes])
            add(
                "weighted_vote",
                n,
                [
                    expected_vote(v, s, REFERENCE, n, coefficient, draws=draws, seed=str(index))
                    for index, (v, s) in enumerate(zip(votes, numbers, strict=True))
                ],
            )
        add("pass", n, [pass_at_k(len(row), sum(row), n) for row in correct])
    return curves


def _votes(group: Sequence[ScoredResponse]) -> list[int | None]:
    """A class for each response: the reference's, or one of equal wrong answers."""
    classes: dict[str, int] = {}
    votes: list[int | None] = []
    for item in group:
        answer = item.response.extracted
        if answer is None:
            votes.append(None)
        elif item.response.correct:
            votes.append(REFERENCE)
        else:
            votes.append(classes.setdefault(answer, REFERENCE + 1 + len(classes)))
    return votes


def method_labels(figures: dict[str, Any]) -> dict[str, str]:
    """What the methods are called, with their choices."""
    settings = figures["settings"]
    return {
        "random": "random",
        "best_of_n": f"best of N ({settings['values']} {settings['aggregate']})",
        "majority": "majority vote",
        "weighted_vote": f"weighted vote ({settings['vote_coefficient']:g})",
        "pass": "pass@N",
    }


def rank_table(figures: dict[str, Any]) -> str:
    """The curves and the quality as text."""
    curves, labels = figures["curves"], method_labels(figures)
    ns = list(next(iter(curves.values())))
    lines = [f"{figures['problems']} problems, {figures['responses']} responses"]
    lines.append(f"{'N':32}" + "".join(f"{n:>16}" for n in ns))
    for key, row in curves.items():
        cells = [
            f"{row[n]['value']:.3f}" + ("" if row[n]["se"] is None else f" ({row[n]['se']:.3f})")
            for n in ns
        ]
        lines.append(f"{labels[key]:32}" + "".join(f"{cell:>16}" for cell in cells))
    quality = figures["quality"]
    shown = {
        "AUC within prompts": quality["auc_within"],
        "pairs": quality["pairs"],
        "AUC": quality["auc"],
        "AUC of scores within prompts": quality["by_score"]["auc_within"],
        "Brier": quality["calibration"]["brier"],
        "ECE": quality["calibration"]["ece"],
    }
    parts = [f"{label} {value:.3f}" for label, value in shown.items() if value is not None]
    return "\n".join([*lines, ", ".join(parts)])


def write_figures(figures: dict[str, Any], out: Path) -> None:
    """Write all figures as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(figures, indent=1))
