"""Rank problems by how much their accuracy varied over a run, and select some to train on.

    v_i = std over visits e of s_ie,     s_ie = share of right completions of problem i at visit e

with the population standard deviation. Problems are ranked by decreasing v; ties keep the order of
the file. A problem that the run at first never solved and later always solved has a large v; one
that it never (or always) solved has v = 0. Wang et al., "Reinforcement Learning for Reasoning in
Large Language Models with One Training Example" (arXiv:2504.20571, section 2), whose pi_j is the
problem of rank j. The paper does not claim that this ranking is the best one.

A history is a JSON-lines file with one problem per line (``id`` and ``acc_history``), or the
``accuracy.jsonl`` of a run: one step per line, with the right completions and all completions of
each problem. Copies of a problem within a step are counted together as one visit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.data.local_file import read_jsonl
from rlvr.lazy import np
from rlvr.types import Problem


@dataclass(frozen=True, slots=True)
class Ranked:
    """A problem's rank (from 1) and its accuracy over its visits."""

    id: str
    rank: int
    std: float
    mean: float
    visits: int


def accuracy_counts(graded: Iterable[tuple[str, bool]]) -> dict[str, list[int]]:
    """Count right completions and all completions of each problem, from (problem id, right)
    pairs."""
    counts: dict[str, list[int]] = {}
    for problem, right in graded:
        found = counts.setdefault(problem, [0, 0])
        found[0] += right
        found[1] += 1
    return counts


def read_accuracy_history(path: Path) -> dict[str, list[float]]:
    """Accuracies by problem id, with visits and problems in the order of the file.

    Args:
        path: A history file, or the folder of a run.

    Raises:
        ValueError: The file is missing or is not a history; the message names the line.
    """
    file = path / "accuracy.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"no accuracy history at {str(file)!r}; name a history file or the folder of a run"
        )
    history: dict[str, list[float]] = {}
    for row in read_jsonl(file):
        try:
            _add(history, row.values)
        except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
            raise ValueError(
                f"{file}, {row.label}: not a line of a history; a line needs id and acc_history "
                "(a list of accuracies), or a run's step and counts"
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
    """Rank problems by decreasing standard deviation of their accuracy; unvisited ones come
    last."""
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
    """Write the problems of the given ranks as a data file, one per line; return them.

    Raises:
        ValueError: A rank does not exist, or the data does not contain a ranked problem.
    """
    by_id = {problem.id: problem for problem in problems}
    chosen, lines = [], []
    for rank in ranks:
        if not 1 <= rank <= len(ranking):
            raise ValueError(f"rank {rank} is not among the {len(ranking)} problems of the history")
        found = ranking[rank - 1]
        if found.id not in by_id:
            raise ValueError(
                f"the data does not contain problem {found.id!r} of rank {rank}; name the data on "
                "which the history was recorded"
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
