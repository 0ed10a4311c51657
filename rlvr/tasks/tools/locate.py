"""Where a reward model sees the first wrong step of a solution, against where it is.

As ProcessBench (arXiv:2412.06559) measures it: the accuracy of the predicted first wrong step on
solutions that have one, that of "none" on those that have not, and their harmonic mean F1. The
prediction is the first step whose score falls below a threshold, which is chosen for F1 on other
solutions than it is measured on: one half of those given, or a file of its own.

    cumulative    score of a step: sigmoid(c q) of the prefix value at its end (arXiv:2412.01981's
                  released code, with c = 0.005)
    diff          sigmoid(c r^k) of its own reward

Besides, without a threshold: how often the lowest step reward of a solution with an error is that
of its first wrong step, beside the chance of a step drawn at random.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from rlvr.data.solutions import Solution, load_solutions
from rlvr.reward_models.quality import first_error, location, tuned_threshold
from rlvr.reward_models.steps import step_starts
from rlvr.tasks.tools.score import Scoring, score_solutions

Steps = tuple[list[torch.Tensor], list[int]]
"""Step rewards of solutions, and their first wrong steps."""


def locate(
    sources: Sequence[Path],
    how: Scoring,
    *,
    tune: Sequence[Path] = (),
    values: str = "cumulative",
    coefficient: float = 0.05,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure first-error location, as JSON values.

    Args:
        sources: JSONL files of solutions with the index of their first wrong step.
        how: The reward model.
        tune: Other solutions to choose the threshold on; without them it is one half of
            ``sources``, of those with an error and of those without, and only the other half is
            measured.
        values: cumulative or diff.
        coefficient: What values in nats are multiplied by before the sigmoid.
        seed: Which half.

    Raises:
        ValueError: The solutions cannot be read or scored, or there are too few of a kind.
    """
    if values not in ("cumulative", "diff"):
        raise ValueError(f"values {values!r} is neither cumulative nor diff")
    given = _judged(sources, how)
    if tune:
        chosen, measured = _judged(tune, how), given
    else:
        chosen, measured = _halves(given, seed)
    for name, part in (("threshold", chosen), ("measure", measured)):
        _check_kinds(name, part)
    shown, other = _rewards(chosen, how), _rewards(measured, how)
    cumulative = values == "cumulative"
    threshold = tuned_threshold(*shown, coefficient, cumulative=cumulative)
    locations = {
        name: location(
            [first_error(s, threshold, coefficient, cumulative=cumulative) for s in steps], truth
        )
        for name, (steps, truth) in (("tuned_on", shown), ("measured", other))
    }
    return {
        "settings": {"values": values, "coefficient": coefficient, "seed": seed},
        "threshold": threshold,
        **{name: asdict(part) | {"f1": part.f1} for name, part in locations.items()},
        "solutions": {"tuned_on": len(chosen), "measured": len(measured)},
        "lowest": _lowest(*other),
    }


def _judged(sources: Sequence[Path], how: Scoring) -> list[Solution]:
    solutions = load_solutions(sources, partial(step_starts, steps=how.steps))
    for item in solutions:
        if item.first_error is None:
            raise ValueError(
                f"{item.place}: there is no label, the index of the first wrong step (-1 where "
                "there is none), and step_labels do not tell it"
            )
    return solutions


def _halves(solutions: Sequence[Solution], seed: int) -> tuple[list[Solution], list[Solution]]:
    """Two halves at random, each with half of those that have an error."""
    generator = random.Random(f"locate {seed}")
    halves: tuple[list[Solution], list[Solution]] = ([], [])
    for wrong in (True, False):
        own = [item for item in solutions if (item.first_error != -1) == wrong]
        generator.shuffle(own)
        middle = (len(own) + 1) // 2
        halves[0].extend(own[:middle])
        halves[1].extend(own[middle:])
    return halves


def _check_kinds(name: str, solutions: Sequence[Solution]) -> None:
    wrong = sum(item.first_error != -1 for item in solutions)
    if not 0 < wrong < len(solutions):
        raise ValueError(
            f"first-error location needs solutions with and without an error, but of those for the "
            f"{name} {wrong} have one and {len(solutions) - wrong} have none; give more"
        )


def _rewards(solutions: Sequence[Solution], how: Scoring) -> Steps:
    scored = score_solutions(solutions, how)
    truth = [item.first_error for item in solutions]
    return [torch.tensor(item.steps) for item in scored], [t for t in truth if t is not None]


def _lowest(steps: Sequence[torch.Tensor], truth: Sequence[int]) -> dict[str, float]:
    """Of solutions with an error: whether the lowest step reward is the first wrong step's."""
    wrong = [(own, place) for own, place in zip(steps, truth, strict=True) if place >= 0]
    return {
        "hits": fmean(float(int(own.argmin()) == place) for own, place in wrong),
        "chance": fmean(1 / len(own) for own, _ in wrong),
    }


def locate_table(figures: dict[str, Any]) -> str:
    """The figures as text."""
    settings, counts, lowest = figures["settings"], figures["solutions"], figures["lowest"]
    scale = f"{settings['coefficient']:g} x {settings['values']}"
    lines = [
        f"threshold {figures['threshold']:.4f} of sigmoid({scale}), chosen on "
        f"{counts['tuned_on']} solutions (F1 {figures['tuned_on']['f1']:.3f})",
        f"measured on {counts['measured']} others",
        f"{'first wrong step found':32}{figures['measured']['erroneous']:>10.3f}",
        f"{'no error where there is none':32}{figures['measured']['correct']:>10.3f}",
        f"{'F1':32}{figures['measured']['f1']:>10.3f}",
        f"{'lowest step reward is the error':32}{lowest['hits']:>10.3f}  "
        f"(chance {lowest['chance']:.3f})",
    ]
    return "\n".join(lines)
