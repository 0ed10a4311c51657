"""Rank problems by how their accuracy varied over a run, and pick the ones to train on.

    v_i = std over visits e of s_ie,     s_ie = share of right completions of problem i at visit e

with the population standard deviation; problems are ranked by falling v, equal ones in the order of
the file. A problem that the run went from never to always solving has a large v, one that it never
solved (or always) 0. Wang et al., "Reinforcement Learning for Reasoning in Large Language Models
with One Training Example" (arXiv:2504.20571, section 2), whose pi_j is the problem of rank j. The
paper does not claim that this ranking is the best one.

A history is a JSON-lines file of one problem a line (``id`` and ``acc_history``), or the
``accuracy.jsonl`` of a run: one step a line, with right completions and completions by problem.
Copies of a problem within a step are one visit, counted exactly.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlvr.types import Problem


@dataclass(frozen=True, slots=True)
class Ranked:
    """A problem's place (from 1), and its accuracy over its visits."""

    id: str
    rank: int
    std: float
    mean: float
    visits: int


def accuracy_counts(graded: Iterable[tuple[str, bool]]) -> dict[str, list[int]]:
    """Right completions and completions by problem, from one (problem id, right) a completion."""
    counts: dict[str, list[int]] = {}
    for problem, right in graded:
        found = counts.setdefault(problem, [0, 0])
        found[0] += right
        found[1] += 1
    return counts


def read_history(path: Path) -> dict[str, list[float]]:
    """Accuracies by problem id, visits and problems in the order of the file.

    Args:
        path: A history file, or the folder of a run.

    Raises:
        ValueError: No such file, or one that is no history; the line is named.
    """
    file = path / "accuracy.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"no accuracy history at {str(file)!r}; give a history file or the folder of a run"
        )
    history: dict[str, list[float]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            _add(history, json.loads(line))
        except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
            raise ValueError(
                f"{file}, line {number}: no line of a history; it has id and acc_history (a list "
                "of accuracies), or a run's step and counts"
            ) from None
    if not history:
        raise ValueError(f"{file}: the history is empty")
    return history


def _add(history: dict[str, list[float]], row: Mapping[str, Any]) -> None:
    if "counts" in row:
        for problem, (right, total) in row["counts"].items():
            history.setdefault(problem, []).append(right / total)
        return
    accuracies = [float(value) for value in row["acc_history"]]
    if str(row["id"]) in history or not all(0 <= value <= 1 for value in accuracies):
        raise ValueError
    history[str(row["id"])] = accuracies


def rank_by_variance(history: Mapping[str, Sequence[float]]) -> list[Ranked]:
    """Problems by falling standard deviation of their accuracy; those never visited come last."""
    stds = {
        problem: float(np.std(values)) if values else 0.0 for problem, values in history.items()
    }
    order = sorted(history, key=lambda problem: -stds[problem])
    return [
        Ranked(
            problem,
            rank,
            stds[problem],
            float(np.mean(history[problem])) if history[problem] else 0.0,
            len(history[problem]),
        )
        for rank, problem in enumerate(order, 1)
    ]


def write_selection(
    path: Path, ranking: Sequence[Ranked], ranks: Sequence[int], problems: Iterable[Problem]
) -> list[Ranked]:
    """Write the problems of the given ranks as a data file, one a line; returns them.

    Raises:
        ValueError: A rank that does not exist, or a ranked problem that the data does not hold.
    """
    by_id = {problem.id: problem for problem in problems}
    chosen, lines = [], []
    for rank in ranks:
        if not 1 <= rank <= len(ranking):
            raise ValueError(f"rank {rank} is not among the {len(ranking)} problems of the history")
        found = ranking[rank - 1]
        if found.id not in by_id:
            raise ValueError(
                f"the data holds no problem {found.id!r}, which has rank {rank}; give the data "
                "that the history was recorded on"
            )
        chosen.append(found)
        lines.append(json.dumps(_row(by_id[found.id], found), ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return chosen


def _row(problem: Problem, found: Ranked) -> dict[str, Any]:
    single = len(problem.messages) == 1 and problem.messages[0]["role"] == "user"
    text = {"problem": problem.messages[0]["content"]}
    prompt = text if single else {"messages": list(problem.messages)}
    statistics = {"rank": found.rank, "std": found.std, "mean": found.mean, "visits": found.visits}
    return {"id": problem.id, **prompt, "answer": problem.answer, **statistics}
